"""The vectors of an index directory: the store that its manifest names, applied to the folders of its segments."""

from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from indexes.directory.manifest import Manifest, SegmentRecord
from indexes.directory.segments import segment_folder
from indexes.directory.shards import Shards
from indexes.encoder import Vectors
from indexes.vectors.vector_store import StoreConfig, VectorStore
from indexes.vectors.vector_stores import VECTOR_STORES


class VectorStorage:
    """Trains a store, writes the vectors of segments once, and opens them.

    Attributes:
        directory: Of the index.
        store: The class of the store.
        config: What the index records of it.
    """

    def __init__(self, directory: Path, store: type[VectorStore], config: StoreConfig) -> None:
        """The vectors of a directory in a store of this class."""
        self.directory = directory
        self.store = store
        self.config = config

    @classmethod
    def of(cls, directory: Path, manifest: Manifest) -> "VectorStorage":
        """The storage of an index directory.

        Raises:
            UsageError: The manifest names a kind of store that is not registered.
        """
        config = StoreConfig(
            dimension=manifest.dimension,
            factory=manifest.factory,
            options=manifest.store_options,
            allow_untested=manifest.allow_untested,
        )
        return cls(directory, VECTOR_STORES.get(manifest.store_kind, manifest.store_package), config)

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of the files of vectors that every segment's folder must hold."""
        return self.store.segment_files()

    def train(self, shards: Shards) -> None:
        """Learn what all segments share, such as clusters, from a sample of all vectors."""
        self.store.train_directory(self.directory, self.config, shards.count, shards.sample)

    def write(self, name: str, blocks: Iterable[Vectors]) -> None:
        """Write the vectors of a segment, those that are not there yet."""
        self.store.write_segment(self.directory, segment_folder(self.directory, name), self.config, blocks)

    def open(self, segments: Sequence[SegmentRecord], *, mmap: bool | None = None) -> list[VectorStore]:
        """The vectors of these segments.

        Args:
            segments: At least one.
            mmap: Leave them on disk; None does so when they would fill more than half of the free memory.

        Raises:
            MismatchError: They are missing or damaged.
        """
        folders = [segment_folder(self.directory, segment.name) for segment in segments]
        return self.store.open_segments(folders, self.config, mmap=mmap)

    def keep_only(self, names: Set[str]) -> None:
        """Remove the vectors of all segments but these from where they are outside the directory."""
        self.store.keep_only(self.config, names)
