"""A FAISS index whose factory string is its whole configuration: vectors in, ids out, by inner product.

Axes: N vectors in the index, B queries, k results, c candidates, d dimensions.
"""

import math
import re
from pathlib import Path
from typing import Any

# Before faiss: both bring an OpenMP runtime, and with torch loaded first the two share one pool of threads.
import torch  # noqa: F401

# isort: split
import faiss
import numpy as np
from faiss.contrib.factory_tools import reverse_index_factory
from numpy.typing import ArrayLike, NDArray

from indexes.errors import DataError, MismatchError, UsageError
from indexes.hardware import fast_bfloat16
from indexes.screening import Screen

_EXAMPLES = '"Flat", "HNSW32", "IVF1024,Flat", "IVF4096,PQ48,Refine(SQ8)"'
_FLAT_LIMIT = 200_000
_HNSW_LIMIT = 2_000_000
# From here on screening is faster than FAISS (docs/decisions.md).
_SCREENED_QUERIES = 32
_SCREENED_VECTORS = 4096


class FaissIndex:
    """Vectors under int64 ids, searched by inner product (cosine, when the vectors have unit length).

    Make one with `build`, `empty` or `load`.
    """

    def __init__(self, index: "faiss.IndexIDMap2", factory: str, *, read_only: bool = False) -> None:
        """Wrap an index that compares by inner product; everybody else uses the constructors named above."""
        self._index = index
        self._factory = factory
        self._read_only = read_only
        self._screen: Screen | None = None

    @classmethod
    def empty(cls, dimension: int, factory: str = "Flat", *, seed: int = 0) -> "FaissIndex":
        """An index without vectors.

        Args:
            dimension: d.
            factory: FAISS's description of the index, such as "Flat" or "IVF1024,PQ48".
            seed: Of the clustering that some kinds need.

        Raises:
            UsageError: The factory string is not valid, or not for this dimension or the inner product.
        """
        try:
            index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise UsageError(
                f"The factory must be an index that FAISS can make for {dimension} dimensions and the inner "
                f"product, but {factory!r} is not: {_reason(error)}. Try one of {_EXAMPLES}."
            ) from error
        if isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
            raise UsageError(f"Ids are always mapped, so leave the IDMap out of the factory {factory!r}.")
        _seed_clustering(index, seed)
        _widen_search(index)
        return cls(faiss.IndexIDMap2(index), factory)

    @classmethod
    def build(
        cls,
        vectors_Nd: ArrayLike,
        *,
        factory: str = "Flat",
        ids: ArrayLike | None = None,
        train_vectors: ArrayLike | None = None,
        seed: int = 0,
    ) -> "FaissIndex":
        """Train where the factory needs it, then add all vectors.

        Args:
            vectors_Nd: float32 [N, d].
            factory: FAISS's description of the index.
            ids: int64 [N], unique and not negative; None numbers the rows from 0.
            train_vectors: float32 [n, d] to train on; None trains on the vectors themselves.
            seed: Of the clustering that some kinds need.

        Raises:
            UsageError: The factory string is not valid, or there are too few vectors to train on.
            DataError: A vector is not finite, or an id is negative or appears twice.
        """
        vectors = np.asarray(vectors_Nd)
        if vectors.ndim != 2:
            raise MismatchError(f"Vectors must have the shape [N, d], but {list(vectors.shape)} came.")
        index = cls.empty(vectors.shape[1], factory, seed=seed)
        index.train(vectors if train_vectors is None else train_vectors)
        index.add(vectors, ids)
        return index

    @classmethod
    def load(cls, path: str | Path, *, mmap: bool = False, factory: str | None = None) -> "FaissIndex":
        """Read an index that `save` wrote.

        Args:
            path: The file.
            mmap: Leave the vectors on disk where FAISS can (IVF lists); the index is then read-only.
            factory: The factory string, which the file does not hold; None reconstructs it from the index.

        Raises:
            MismatchError: The file is missing, damaged, or not an inner-product index with ids.
        """
        path = Path(path)
        if not path.is_file():
            raise MismatchError(f"An index file must exist, but {path} does not. Build the index again.")
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if mmap else 0)
        except (RuntimeError, MemoryError) as error:
            raise MismatchError(
                f"{path} must be a complete FAISS index, but it is damaged or truncated ({_reason(error)}). "
                "Build the index again, or copy the file again."
            ) from error
        if not isinstance(index, faiss.IndexIDMap2) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise MismatchError(
                f"{path} must be an inner-product index with mapped ids, but it is a {type(index).__name__} "
                f"with metric {index.metric_type}. Build the index again with this library."
            )
        return cls(index, factory or _describe(_inner(index)), read_only=mmap)

    def save(self, path: str | Path) -> None:
        """Write the index to one file."""
        faiss.write_index(self._index, str(path))

    @property
    def dimension(self) -> int:
        """d, the length of a vector."""
        return int(self._index.d)

    @property
    def factory(self) -> str:
        """FAISS's description of the index."""
        return self._factory

    @property
    def is_trained(self) -> bool:
        """Whether vectors can be added; always true for kinds without clustering."""
        return bool(self._index.is_trained)

    @property
    def training_points(self) -> int:
        """The fewest vectors that this kind of index can be trained on; 0 when it needs no training."""
        return _training_points(self._factory)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def train(self, vectors: ArrayLike) -> None:
        """Learn the clusters of IVF and PQ indexes; other kinds ignore it.

        Args:
            vectors: float32 [n, d], a sample of what will be added.

        Raises:
            UsageError: There are too few vectors.
        """
        sample_nd = self._matrix(vectors)
        if self.is_trained:
            return
        try:
            self._index.train(sample_nd)
        except RuntimeError as error:
            raise UsageError(f"{self._too_few(len(sample_nd))} FAISS says: {_reason(error)}.") from error

    def add(self, vectors: ArrayLike, ids: ArrayLike | None = None) -> None:
        """Append vectors.

        Args:
            vectors: float32 [n, d].
            ids: int64 [n], unique and not negative; None continues after the largest id so far.

        Raises:
            UsageError: The index is not trained yet, or is read-only.
            DataError: A vector is not finite, or an id is negative or appears twice.
        """
        if self._read_only:
            raise UsageError("A memory-mapped index is read-only. Load it with mmap=False to add vectors.")
        if not self.is_trained:
            raise UsageError(f"An index {self._factory!r} must be trained before vectors are added: call train.")
        matrix_nd = self._matrix(vectors)
        self._screen = None
        self._index.add_with_ids(matrix_nd, self._new_ids(len(matrix_nd), ids))

    def search(
        self, queries_Bd: ArrayLike, k: int, *, batch_size: int = 1024, screen: bool | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k nearest vectors of each query, best first; equal scores are ordered by id.

        Args:
            queries_Bd: float32 [B, d].
            k: How many results per query.
            batch_size: How many queries are read at once.
            screen: Look for candidates in bfloat16 first (`indexes.screening`), in a "Flat" index: the same results,
                since what the first look cannot prove is searched by FAISS. It keeps a copy of the vectors, 2 d bytes
                each, from the first such search on. None does it where it is faster: on CPUs that multiply in bfloat16,
                for many queries and vectors.

        Returns:
            Scores, float32 [B, k], and ids, int64 [B, k]. Where fewer than k vectors are found, the rest of
            the row has the id -1 and the score -inf.

        Raises:
            UsageError: k is below 1, or this kind of index cannot be screened.
            MismatchError: The queries have another dimension.
        """
        if k < 1:
            raise UsageError(f"k must be at least 1, but {k} came.")
        if screen and not self._is_flat:
            raise UsageError(
                f'Only a "Flat" index can be screened, but this one is {self._factory!r}. Leave screen out.'
            )
        queries = self._matrix(queries_Bd)
        scores_Bk = np.empty((len(queries), k), dtype=np.float32)
        ids_Bk = np.empty((len(queries), k), dtype=np.int64)
        for start in range(0, len(queries), batch_size):
            rows = slice(start, start + batch_size)
            look = self._screened_search if self._screening_pays(len(queries[rows]), k, screen) else self._index.search
            scores_Bk[rows], ids_Bk[rows] = look(queries[rows], k)
        scores_Bk[ids_Bk < 0] = -np.inf
        return _best_first(scores_Bk, ids_Bk)

    @property
    def _is_flat(self) -> bool:
        return isinstance(_inner(self._index), faiss.IndexFlat)

    def _screening_pays(self, queries: int, k: int, screen: bool | None) -> bool:
        if screen is None:
            many = queries >= _SCREENED_QUERIES and len(self) >= max(_SCREENED_VECTORS, 16 * _candidates(k))
            return many and self._is_flat and fast_bfloat16()
        return screen and len(self) >= _candidates(k)

    def _screened_search(
        self, queries_Bd: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As FAISS searches, but scoring exactly only what is best in bfloat16; unproven queries go to FAISS."""
        if self._screen is None or len(self._screen) != len(self):
            self._screen = Screen(self._stored())
        positions_Bc, ceilings_B = self._screen.candidates(queries_Bd, _candidates(k))
        scores_Bc, ids_Bc = _best_first(self._scores(queries_Bd, positions_Bc), self._ids()[positions_Bc])
        scores_Bk, ids_Bk = scores_Bc[:, :k], ids_Bc[:, :k]
        unproven_B = ~(scores_Bk[:, -1] > ceilings_B)
        if unproven_B.any():
            scores_Bk[unproven_B], ids_Bk[unproven_B] = self._index.search(queries_Bd[unproven_B], k)
        return scores_Bk, ids_Bk

    def _stored(self) -> NDArray[np.float32]:
        """The vectors of a "Flat" index themselves, not a copy: float32 [N, d]."""
        vectors: NDArray[np.float32] = faiss.rev_swig_ptr(_inner(self._index).get_xb(), len(self) * self.dimension)
        return vectors.reshape(len(self), self.dimension)

    def _scores(self, queries_Bd: NDArray[np.float32], positions_Bc: NDArray[np.int64]) -> NDArray[np.float32]:
        """Inner products in float32, by FAISS's own routine: float32 [B, c]."""
        scores_Bc = np.empty(positions_Bc.shape, dtype=np.float32)
        positions_Bc = np.ascontiguousarray(positions_Bc)
        scores, positions = faiss.swig_ptr(scores_Bc), faiss.swig_ptr(positions_Bc)
        (queries, count), pointer = positions_Bc.shape, faiss.swig_ptr(queries_Bd)
        _inner(self._index).compute_distance_subset(queries, pointer, count, scores, positions)
        return scores_Bc

    def reconstruct(self, ids: ArrayLike) -> NDArray[np.float32]:
        """The vectors under these ids: exact where the index keeps them (Flat, HNSW), else approximate.

        Args:
            ids: int64 [n].

        Returns:
            float32 [n, d].

        Raises:
            DataError: An id is not in the index.
        """
        wanted = np.ascontiguousarray(ids, dtype=np.int64)
        unknown = wanted[~np.isin(wanted, self._ids())]
        if unknown.size:
            raise DataError(f"The id {int(unknown[0])} is not in the index, which holds {len(self)} vectors.")
        if not wanted.size:
            return np.empty((0, self.dimension), dtype=np.float32)
        ivf = faiss.try_extract_index_ivf(self._index)
        if ivf is not None and ivf.direct_map.no():
            ivf.make_direct_map()
        vectors: NDArray[np.float32] = self._index.reconstruct_batch(wanted)
        return vectors

    def _matrix(self, vectors: ArrayLike) -> NDArray[np.float32]:
        matrix = np.ascontiguousarray(vectors, dtype=np.float32)
        if matrix.ndim != 2 or matrix.shape[1] != self.dimension:
            raise MismatchError(
                f"Vectors for this index must have the shape [n, {self.dimension}], but {list(matrix.shape)} "
                "came. Use the encoder that the index was built with."
            )
        if not np.isfinite(matrix).all():
            raise DataError("Vectors must be finite, but NaN or infinity came. Check the encoder that made them.")
        return matrix

    def _ids(self) -> NDArray[np.int64]:
        ids: NDArray[np.int64] = faiss.vector_to_array(self._index.id_map)
        return ids

    def _new_ids(self, count: int, ids: ArrayLike | None) -> NDArray[np.int64]:
        known = self._ids()
        if ids is None:
            start = int(known.max()) + 1 if known.size else 0
            return np.arange(start, start + count, dtype=np.int64)
        new = np.ascontiguousarray(ids, dtype=np.int64)
        if new.shape != (count,):
            raise MismatchError(f"Every vector needs one id, but {count} vectors and {new.size} ids came.")
        if (new < 0).any():
            raise DataError(f"Ids must not be negative (-1 means no result), but {int(new.min())} came.")
        values, counts = np.unique(new, return_counts=True)
        twice = values[(counts > 1) | np.isin(values, known)]
        if twice.size:
            raise DataError(f"Every vector needs its own id, but {int(twice[0])} appears twice.")
        return new

    def _too_few(self, count: int) -> str:
        return (
            f"An index {self._factory!r} needs at least {self.training_points} vectors to train on, but "
            f"{count} "
            'came. Use a factory with fewer clusters, or "Flat", which needs no training.'
        )


def choose_factory(n: int, dimension: int) -> tuple[str, str]:
    """The index for n vectors, and the reason in words.

    Exact search while it is fast, then a graph, then compressed clusters whose best hits are scored again.
    """
    if n <= _FLAT_LIMIT:
        return "Flat", f"{n:,} vectors are few enough for exact search (up to {_FLAT_LIMIT:,})"
    if n <= _HNSW_LIMIT:
        return (
            "HNSW32",
            f"{n:,} vectors: a graph finds neighbours fast and fits memory (up to {_HNSW_LIMIT:,})",
        )
    clusters = 2 ** round(math.log2(4 * math.sqrt(n)))
    parts = _pq_parts(dimension)
    return (
        f"IVF{clusters},PQ{parts},Refine(SQ8)",
        f"{n:,} vectors: {clusters:,} clusters (4 sqrt(n)) of vectors of {parts} bytes, refined at 8 bits",
    )


def _pq_parts(dimension: int) -> int:
    """The largest divisor of the dimension that leaves at least 8 dimensions to each part."""
    return next(parts for parts in range(max(1, dimension // 8), 0, -1) if dimension % parts == 0)


def _training_points(factory: str) -> int:
    """k-means needs a point per centroid: IVF has as many as its number, PQ 2^bits (8 bits by default)."""
    clusters = [int(nlist) for nlist in re.findall(r"(?:^|,)IVF(\d+)", factory)]
    codes = [2 ** int(bits or 8) for bits in re.findall(r"PQ\d+(?:x(\d+))?", factory)]
    return max(clusters + codes, default=0)


def _candidates(k: int) -> int:
    """How many vectors are looked at twice for k results: enough that the k-th stands out from the last of them."""
    return max(4 * k, k + 64)


def _inner(index: Any) -> Any:
    return faiss.downcast_index(index.index)


def _describe(index: Any) -> str:
    try:
        return str(reverse_index_factory(index))  # type: ignore[no-untyped-call]
    except NotImplementedError:
        return type(index).__name__


def _seed_clustering(index: Any, seed: int) -> None:
    # FAISS's own default is a fixed seed as well: this only makes it ours to choose.
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf.cp.seed = seed
    if isinstance(ivf, faiss.IndexIVFPQ):
        ivf.pq.cp.seed = seed
    if isinstance(index, faiss.IndexPQ):
        index.pq.cp.seed = seed


def _widen_search(index: Any) -> None:
    """FAISS looks into one cluster by default; look into enough to find most true neighbours."""
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None:
        ivf.nprobe = min(ivf.nlist, max(8, ivf.nlist // 32))
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = 128
    if isinstance(index, faiss.IndexRefine):
        index.k_factor = 4


def _best_first(
    scores_Bk: NDArray[np.float32], ids_Bk: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    order_Bk = np.lexsort((ids_Bk, -scores_Bk), axis=1)
    return np.take_along_axis(scores_Bk, order_Bk, axis=1), np.take_along_axis(ids_Bk, order_Bk, axis=1)


def _reason(error: BaseException) -> str:
    """FAISS puts the C++ signature and file in front of what went wrong."""
    text = str(error).strip()
    return re.sub(r"^Error in .*? at \S+: (?:Error: )?", "", text) or type(error).__name__
