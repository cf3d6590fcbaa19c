"""The base class of vector stores: what an index directory needs to know of whatever keeps and searches its vectors.

A store holds the vectors of one segment under the rows 0 to N - 1 and searches them by inner product. `FaissIndex`
("faiss") and `MilvusIndex` ("milvus") are built in. A store of another package derives from `FileVectorStore` (one file
for each segment) or from `VectorStore` (vectors on a server) and is registered in `indexes.vectors.vector_stores`.

Axes: B queries, k results, N vectors of a segment, n vectors, d dimensions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from indexes.atomic_files import write_path
from indexes.errors import DataError, MismatchError, UsageError
from indexes.host_memory import host_memory

Fidelity: TypeAlias = Literal["same", "near", "none"]
"""What `reconstruct` returns: the vectors that were added, approximations of them, or nothing usable."""
Scores: TypeAlias = Literal["exact", "rounded", "other"]
"""What a search score is, compared with the inner product of the query and the reconstructed vector: equal up to
float32 rounding, equal up to 1 % of the lengths (8-bit tables of FAISS's fast scan), or another estimate."""
SearchResult: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores, float32 [B, k], and rows, int64 [B, k], best first; -inf and -1 where there are fewer than k vectors."""

_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class StoreProperties:
    """What a store gives back and how it searches. The defaults are those of exact search."""

    vectors: Fidelity = "same"
    """What `reconstruct` returns."""
    scores: Scores = "exact"
    """What a search score is."""
    is_exhaustive: bool = True
    """Whether a search compares every vector as it was added, so that the results are exact."""
    is_stable: bool = True
    """Whether vectors that are read back and added again are found as well as before, however often. Where they are
    not, merging segments encodes the passages again."""
    untested: str = ""
    """The part of the factory string whose results were not measured; "" where all of it was."""
    refused: str = ""
    """Why such a store cannot be used; "" when it can."""

    @property
    def stores_exact_vectors(self) -> bool:
        """Whether `reconstruct` returns the very vectors that were added."""
        return self.vectors == "same"


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """What an index directory records of its store."""

    dimension: int
    """d."""
    factory: str = ""
    """The store's own description of its kind of index, such as "IVF1024,Flat" for FAISS."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Where the vectors are if not in the directory, such as the address of a server; never a secret."""
    allow_untested: bool = False
    """Whether a kind was allowed whose results were not measured."""


class VectorStore(ABC):
    """Vectors of one segment under their rows, searched by inner product.

    The class methods belong to the index directory: they say what a build needs, and write, open and remove segments.
    The folder of a segment is ``segments/<number>`` of the directory.
    """

    uses_host_memory: ClassVar[bool] = True
    """Whether the vectors of a segment are in the memory of this process while it is built."""

    # -- one segment ---------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def dimension(self) -> int:
        """d, the length of a vector."""

    @property
    @abstractmethod
    def factory(self) -> str:
        """The store's own description of its kind of index."""

    @property
    @abstractmethod
    def properties(self) -> StoreProperties:
        """What it gives back and how it searches."""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def search(self, queries_Bd: ArrayLike, k: int, *, parameters: str | None = None) -> SearchResult:
        """The k nearest vectors of each query, best first; equal scores are ordered by row.

        Args:
            queries_Bd: float32 [B, d].
            k: Results per query, at least 1; it may exceed N.
            parameters: Search parameters, such as "nprobe=32"; None uses the defaults.

        Returns:
            Scores, float32 [B, k], and rows, int64 [B, k]; -inf and -1 where fewer than k vectors are found.

        Raises:
            UsageError: k or a parameter is impossible.
            MismatchError: The queries have another dimension.
        """

    @abstractmethod
    def reconstruct(self, rows: ArrayLike, /) -> NDArray[np.float32]:
        """The vectors at these rows, int64 [n] in any order: float32 [n, d].

        Raises:
            DataError: A row is not in the store.
        """

    @property
    def search_parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Parameters that trade recall for time, each with values from fast to thorough; empty if there are none."""
        return {}

    def close(self) -> None:
        """Give back what the store holds open, such as a connection."""
        return

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.factory!r}, {len(self):,} vectors of {self.dimension} dimensions)"

    # -- an index directory --------------------------------------------------------------------------------------

    @classmethod
    def check(cls, config: StoreConfig, *, keeps_lengths: bool) -> None:
        """Refuse a configuration before the corpus is encoded. `config.factory` is "auto" where none was named.

        Args:
            config: What was asked for.
            keeps_lengths: Whether the length of a vector is part of the similarity (dot product).

        Raises:
            UsageError: No such store can be built.
        """
        return

    @classmethod
    def new_options(cls, options: Mapping[str, str]) -> dict[str, str]:
        """The options of a new index, from those that the caller of `build_index` gave."""
        return dict(options)

    @classmethod
    def choose_factory(cls, passages: int, dimension: int, *, memory: int | None) -> tuple[str, str]:
        """The factory string for `factory="auto"`, and the reason in words.

        Args:
            passages: N.
            dimension: d.
            memory: Bytes that building may take; None is no limit.
        """
        return "", "the only kind of this store"

    @classmethod
    def factory_name(cls, factory: str) -> str:
        """The factory string as the manifest records it."""
        return factory

    @classmethod
    def min_training_vectors(cls, config: StoreConfig) -> int:
        """The fewest vectors that this store can be trained on; 0 when it needs no training."""
        return 0

    @classmethod
    def build_bytes(cls, config: StoreConfig, n: int) -> int:
        """Bytes of memory that building a segment of n vectors takes; 0 for a store that streams them to the disk.

        A build is cut into as many segments as fit.
        """
        return 2 * n * config.dimension * _FLOAT_BYTES

    @classmethod
    def disk_bytes(cls, config: StoreConfig, n: int) -> int:
        """Bytes that n vectors take in the index directory."""
        return n * config.dimension * _FLOAT_BYTES

    @classmethod
    def train_directory(
        cls, directory: Path, config: StoreConfig, count: int, sample: Callable[[int], NDArray[np.float32]]
    ) -> None:
        """Learn what all segments of a directory share, such as clusters, if it was not learned yet.

        Args:
            directory: The index directory.
            config: What the index records.
            count: N of all segments.
            sample: At most so many vectors, evenly spaced: float32 [n, d].
        """
        return

    @classmethod
    @abstractmethod
    def write_segment(
        cls, directory: Path, folder: Path, config: StoreConfig, blocks: Iterable[NDArray[np.float32]]
    ) -> None:
        """Write the vectors of a segment; those that are there from a build that was interrupted stay.

        Args:
            directory: The index directory, with what `train_directory` left there.
            folder: Of the segment.
            config: What the index records.
            blocks: float32 [n, d] each, in the order of the rows.
        """

    @classmethod
    @abstractmethod
    def open_segments(
        cls, folders: Sequence[Path], config: StoreConfig, *, mmap: bool | None = None
    ) -> list["VectorStore"]:
        """Open segments to search them.

        Args:
            folders: Of the segments, at least one.
            config: What the index records.
            mmap: Leave the vectors on disk; None lets the store decide.

        Raises:
            MismatchError: A segment is missing or damaged.
        """

    @classmethod
    def segment_files(cls) -> tuple[str, ...]:
        """Names of the files that every segment's folder must hold."""
        return ()

    @classmethod
    def keep_only(cls, config: StoreConfig, names: Set[str]) -> None:
        """Remove the vectors of all segments but these, where they are not in the folders of the segments."""
        return


class FileVectorStore(VectorStore):
    """A store that keeps each segment in one file, ``vectors.<extension>``, beside the passages."""

    extension: ClassVar[str] = "bin"

    @classmethod
    @abstractmethod
    def create(cls, config: StoreConfig) -> Self:
        """An empty store, not trained."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path, config: StoreConfig, *, mmap: bool = False) -> Self:
        """Read what `save` wrote.

        Args:
            path: The file.
            config: What the index records.
            mmap: Leave the vectors on disk if the store can; it is then read-only.

        Raises:
            MismatchError: The file is missing or damaged.
        """

    @abstractmethod
    def add(self, vectors: ArrayLike, /) -> None:
        """Append vectors, float32 [n, d]; they get the next rows.

        Raises:
            DataError: A vector is not finite.
            MismatchError: The vectors have another dimension.
        """

    @abstractmethod
    def save(self, path: str | Path, /) -> None:
        """Write the store to one file, which need not be replaced atomically."""

    @property
    def is_trained(self) -> bool:
        """Whether vectors can be added; true for stores without training."""
        return True

    def train(self, vectors: ArrayLike, /) -> None:
        """Learn what the store needs from a sample, float32 [n, d]; does nothing for stores without training."""

    @classmethod
    def training_sample(cls, config: StoreConfig, n: int) -> int:
        """How many of n vectors to train on."""
        return n

    # -- an index directory --------------------------------------------------------------------------------------

    @classmethod
    def trained_file(cls, directory: Path) -> Path:
        """The trained store without vectors that all segments of a directory begin with."""
        return directory / f"trained.{cls.extension}"

    @classmethod
    def segment_files(cls) -> tuple[str, ...]:
        """The file of vectors."""
        return (f"vectors.{cls.extension}",)

    @classmethod
    def train_directory(
        cls, directory: Path, config: StoreConfig, count: int, sample: Callable[[int], NDArray[np.float32]]
    ) -> None:
        """Write the trained store of a directory, for kinds that need training."""
        file = cls.trained_file(directory)
        if file.is_file():
            return
        store = cls.create(config)
        if store.is_trained:
            return
        store.train(sample(cls.training_sample(config, count)))
        write_path(file, store.save)

    @classmethod
    def write_segment(
        cls, directory: Path, folder: Path, config: StoreConfig, blocks: Iterable[NDArray[np.float32]]
    ) -> None:
        """Add all blocks to the trained store and save it as the file of the segment."""
        [name] = cls.segment_files()
        file, trained = folder / name, cls.trained_file(directory)
        if file.is_file():
            return
        store = cls.open(trained, config) if trained.is_file() else cls.create(config)
        for block_nd in blocks:
            store.add(block_nd)
        write_path(file, store.save)

    @classmethod
    def open_segments(
        cls, folders: Sequence[Path], config: StoreConfig, *, mmap: bool | None = None
    ) -> list[VectorStore]:
        """Open the files of segments; `mmap=None` maps them when they would fill more than half of the free memory."""
        [name] = cls.segment_files()
        files = [folder / name for folder in folders]
        if mmap is None:
            mmap = sum(file.stat().st_size for file in files if file.is_file()) > host_memory()[1] // 2
        return [cls.open(file, config, mmap=mmap) for file in files]


# ---------------------------------------------------------------------------------------------------------
# What stores share
# ---------------------------------------------------------------------------------------------------------


def checked_matrix(vectors: ArrayLike, dimension: int) -> NDArray[np.float32]:
    """Vectors as a contiguous float32 [n, d].

    Raises:
        MismatchError: They have another dimension.
        DataError: One is not finite.
    """
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    if matrix.ndim != 2 or matrix.shape[1] != dimension:
        raise MismatchError(
            f"Vectors for this index must have the shape [n, {dimension}], but got {list(matrix.shape)}. Use the "
            "encoder that the index was built with."
        )
    if not np.isfinite(matrix).all():
        raise DataError("Vectors must be finite, but got NaN or infinity. Check the encoder that made them.")
    return matrix


def checked_rows(rows: ArrayLike, count: int) -> NDArray[np.int64]:
    """Rows as a contiguous int64 array, all of them from 0 to `count` - 1.

    Raises:
        DataError: One is not.
    """
    wanted = np.ascontiguousarray(rows, dtype=np.int64)
    unknown = wanted[(wanted < 0) | (wanted >= count)]
    if unknown.size:
        raise DataError(f"The row {int(unknown[0])} is not in the index, which holds {count} vectors.")
    return wanted


def check_k(k: int, most: int | None = None) -> None:
    """Refuse an impossible number of results.

    Raises:
        UsageError: k is below 1 or above `most`.
    """
    if k < 1 or (most is not None and k > most):
        limit = f" and at most {most:,}, the most that this index returns" if most is not None else ""
        raise UsageError(f"k must be at least 1{limit}, but got {k}.")


def best_first(scores_Bk: NDArray[np.float32], ids_Bk: NDArray[np.int64]) -> SearchResult:
    """Sort the results of each query by falling score; equal scores are ordered by id."""
    order_Bk = np.lexsort((ids_Bk, -scores_Bk), axis=1)
    return np.take_along_axis(scores_Bk, order_Bk, axis=1), np.take_along_axis(ids_Bk, order_Bk, axis=1)
