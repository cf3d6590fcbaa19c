"""Where the vectors of an index live: a FAISS file in each segment, or a partition for each on a Milvus server."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

from indexes.atomic_files import write_path
from indexes.directory.manifest import Manifest, SegmentRecord
from indexes.directory.segments import SegmentVectors, segment_folder
from indexes.encoder import Vectors
from indexes.host_memory import host_memory
from indexes.vectors.faiss.faiss_index import FaissIndex, write_flat
from indexes.vectors.milvus_index import MilvusIndex

VECTORS_FILE = "vectors.faiss"
TRAINED_FILE = "trained.faiss"


class VectorStorage(ABC):
    """Writes the vectors of a segment once, and opens them."""

    @staticmethod
    def of(path: Path, manifest: Manifest) -> "VectorStorage":
        """That of an index directory."""
        return storage_in(
            path, manifest.factory, manifest.dimension, manifest.milvus, allow_untested=manifest.allow_untested
        )

    @abstractmethod
    def open(self, segments: Sequence[SegmentRecord], *, mmap: bool | None = None) -> list[SegmentVectors]:
        """The vectors of these segments.

        Args:
            segments: At least one.
            mmap: Leave them on disk; None does so when they would fill more than half of the free memory.

        Raises:
            MismatchError: They are missing or damaged.
        """

    @abstractmethod
    def write(self, name: str, blocks: Iterable[Vectors]) -> None:
        """Write the vectors of a segment, those that are not there yet."""

    @abstractmethod
    def keep_only(self, names: Set[str]) -> None:
        """Remove the vectors of all segments but these."""


class FaissFiles(VectorStorage):
    """A FAISS file beside the passages of each segment, all of one kind, and all with the same clusters."""

    def __init__(self, path: Path, factory: str, dimension: int, *, allow_untested: bool = False) -> None:
        """The files of an index directory; one of an untested kind that was not allowed is opened with a warning."""
        self.path = path
        self.allow_untested = allow_untested
        self.factory = factory
        self.dimension = dimension

    @property
    def trained(self) -> Path:
        """The file with the clusters and codes of kinds that learn some: an index without vectors."""
        return self.path / TRAINED_FILE

    def open(self, segments: Sequence[SegmentRecord], *, mmap: bool | None = None) -> list[SegmentVectors]:
        """As `VectorStorage.open`."""
        files = [self._file(segment.name) for segment in segments]
        if mmap is None:
            mmap = sum(file.stat().st_size for file in files if file.is_file()) > host_memory()[1] // 2
        return [self._load(file, mmap=mmap) for file in files]

    def _load(self, file: Path, *, mmap: bool = False) -> FaissIndex:
        return FaissIndex.load(file, mmap=mmap, factory=self.factory, allow_untested=self.allow_untested)

    def write(self, name: str, blocks: Iterable[Vectors]) -> None:
        """As `VectorStorage.write`; only a kind that keeps all vectors as they are is never in memory as a whole."""
        file = self._file(name)
        if file.is_file():
            return
        if self.factory == "Flat":
            write_path(file, lambda half: write_flat(half, blocks, self.dimension))
            return
        index = self._load(self.trained) if self.trained.is_file() else self.untrained()
        for block_nd in blocks:
            index.add(block_nd)
        write_path(file, index.save)

    def untrained(self) -> FaissIndex:
        """An index of this kind without vectors; whether an untested one is allowed, `build_index` has asked."""
        return FaissIndex.empty(self.dimension, self.factory, allow_untested=True)

    def keep_only(self, names: Set[str]) -> None:
        """As `VectorStorage.keep_only`: they go with the folders of their segments."""

    def _file(self, name: str) -> Path:
        return segment_folder(self.path, name) / VECTORS_FILE


class MilvusPartitions(VectorStorage):
    """A partition of one Milvus collection for each segment; passages stay in the directory."""

    def __init__(self, factory: str, dimension: int, uri: str, collection: str) -> None:
        """The partitions of a collection; a uri without "://" is a file of Milvus Lite."""
        self.uri = uri
        self.collection = collection
        self.index_type = factory.removeprefix("Milvus(").removesuffix(")")
        self.dimension = dimension

    def open(self, segments: Sequence[SegmentRecord], *, mmap: bool | None = None) -> list[SegmentVectors]:
        """As `VectorStorage.open`; where they are is the server's to say."""
        return [self._open(segment.name) for segment in segments]

    def _open(self, name: str) -> MilvusIndex:
        return MilvusIndex.open(self.uri, self.collection, int(name))

    def write(self, name: str, blocks: Iterable[Vectors]) -> None:
        """As `VectorStorage.write`."""
        with self._open(name) if self._is_there(name) else self._create(name) as index:
            there = len(index)  # of a build that was cut off
            for block_nd in blocks:
                if there < len(block_nd):
                    index.add(block_nd[there:])
                there = max(there - len(block_nd), 0)
            index.flush()

    def keep_only(self, names: Set[str]) -> None:
        """As `VectorStorage.keep_only`; readers of older versions miss the others at once."""
        kept = set(map(int, names))
        for number in MilvusIndex.segments(self.uri, self.collection):
            if number not in kept:
                self._open(str(number)).drop()

    def _is_there(self, name: str) -> bool:
        return int(name) in MilvusIndex.segments(self.uri, self.collection)

    def _create(self, name: str) -> MilvusIndex:
        return MilvusIndex.create(self.uri, self.collection, int(name), self.dimension, index_type=self.index_type)


def storage_in(
    path: Path, factory: str, dimension: int, milvus: Mapping[str, str], *, allow_untested: bool = False
) -> VectorStorage:
    """The storage of a directory whose vectors are of a kind, on a Milvus server if one is named."""
    if milvus:
        return MilvusPartitions(factory, dimension, milvus["uri"], milvus["collection"])
    return FaissFiles(path, factory, dimension, allow_untested=allow_untested)
