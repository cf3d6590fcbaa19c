"""A FAISS index whose factory string is its whole configuration: vectors in, rows out, by inner product.

The id of a vector is its row, counted from 0 in the order of adding.

Axes: N vectors in the index, B queries, k results, c candidates, d dimensions.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from indexes.atomic_files import write_path
from indexes.errors import MismatchError, UsageError
from indexes.vectors.faiss.faiss_factory import (
    EXAMPLES,
    FaissProperties,
    build_bytes,
    bytes_per_vector,
    choose_factory,
    parse,
    properties,
    refusal,
    search_parameters,
    training_points,
    training_sample,
)
from indexes.vectors.faiss.faiss_files import read_index, restore_after_reading, write_flat
from indexes.vectors.faiss.faiss_layers import (
    factory_of,
    faiss,
    faiss_reason,
    layers_of,
    unrefined_ivf,
    unsupported_reason,
    untyped_faiss,
)
from indexes.vectors.faiss.faiss_search_parameters import (
    default_search_parameters,
    faiss_search_parameters,
    merge_search_parameters,
)
from indexes.vectors.faiss.faiss_training import new_faiss_index, rotations_for_codes
from indexes.vectors.prefilter import Candidates, Prefilter, has_fast_bfloat16
from indexes.vectors.vector_store import (
    FileVectorStore,
    SearchResult,
    StoreConfig,
    best_first,
    check_k,
    checked_matrix,
    checked_rows,
)

logger = logging.getLogger(__name__)

# The pre-filter is faster than FAISS from so many floats in an index and so many multiplications in a search on; with
# so many queries it is faster still in bfloat16 (docs/decisions.md).
_PREFILTERED_FLOATS = 2**20
_PREFILTERED_PRODUCTS = 2**24
_BFLOAT16_QUERIES = 32
# Of queries whose first candidates prove nothing.
_MORE_CANDIDATES = 1024


class FaissIndex(FileVectorStore):
    """Vectors under their row numbers, searched by inner product (cosine, when the vectors have unit length).

    Make one with `build`, `empty` or `load`. Searching and reconstructing may be done from several threads at once.
    """

    extension = "faiss"

    def __init__(
        self,
        index: "faiss.Index",
        factory: str,
        *,
        parameters: str = "",
        mapped: "np.memmap | None" = None,
        read_only: bool = False,
    ) -> None:
        """Wrap an index of FAISS that compares by inner product; use the constructors named above instead."""
        self._index: Any = index
        self._factory = factory
        self._read_only = read_only
        self._mapped = mapped  # the index points into it
        defaults = default_search_parameters(index, factory)
        self._parameters = merge_search_parameters(defaults, parameters, factory)
        self._prefilter: Prefilter | None = None
        self._lock = Lock()

    @classmethod
    def empty(
        cls, dimension: int, factory: str = "Flat", *, seed: int = 0, allow_untested: bool = False
    ) -> "FaissIndex":
        """An index without vectors.

        Args:
            dimension: d.
            factory: FAISS's description of the index, such as "Flat" or "IVF1024,PQ48x4fs,RFlat".
            seed: Of the clustering that some kinds need.
            allow_untested: Also make kinds that are not in `faiss_kinds`, whose results were not measured.

        Raises:
            UsageError: The factory string is not valid, does not work with this dimension, the inner product or
                reconstruction, or the kind is untested.
        """
        if re.search(r"IDMap2?", factory):
            raise UsageError(f"The id of a vector is its row, so leave the IDMap out of the factory {factory!r}.")
        known = refusal(factory, allow_untested=True)  # before FAISS makes anything of it
        if not known:
            index = new_faiss_index(dimension, factory, seed=seed)
        if reason := known or unsupported_reason(index, factory) or refusal(factory, allow_untested=allow_untested):
            raise UsageError(
                f"The factory must be an index that is searched by inner product and gives vectors back, but "
                f"{factory!r} {reason}. Try one of {EXAMPLES}."
            )
        return cls(index, factory)

    @classmethod
    def build(
        cls,
        vectors_Nd: ArrayLike,
        *,
        factory: str = "Flat",
        train_vectors: ArrayLike | None = None,
        seed: int = 0,
        allow_untested: bool = False,
    ) -> "FaissIndex":
        """Train where the factory needs it, then add all vectors.

        Args:
            vectors_Nd: float32 [N, d].
            factory: FAISS's description of the index.
            train_vectors: float32 [n, d] to train on; None trains on the vectors themselves.
            seed: Of the clustering that some kinds need.
            allow_untested: As in `empty`.

        Raises:
            UsageError: The factory string is not valid or untested, or there are too few vectors to train on.
            DataError: A vector is not finite.
        """
        vectors = np.asarray(vectors_Nd)
        if vectors.ndim != 2:
            raise MismatchError(f"Vectors must have the shape [N, d], but got {list(vectors.shape)}.")
        index = cls.empty(vectors.shape[1], factory, seed=seed, allow_untested=allow_untested)
        index.train(vectors if train_vectors is None else train_vectors)
        index.add(vectors)
        return index

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        mmap: bool = False,
        factory: str | None = None,
        parameters: str = "",
        allow_untested: bool = False,
    ) -> "FaissIndex":
        """Read an index that `save` or `write_flat` wrote.

        Args:
            path: The file.
            mmap: Leave on disk what FAISS can: the vectors of flat, scalar-quantized and graph indexes with the links,
                what is used to refine, and the lists of an inverted file that is neither refined nor for the fast
                scan. The index is then read-only, and the file must stay as it is.
            factory: The factory string, which the file does not hold; None reconstructs it from the index.
            parameters: Search parameters to use where a search names none, such as "nprobe=32,k_factor_rf=4".
            allow_untested: Whether the kind was allowed although it is untested. An untested kind is opened in any
                case, as it may be older than the table of kinds; without this a warning is logged.

        Raises:
            MismatchError: The file is missing, damaged, not an inner-product index, or of a kind with known faults.
            UsageError: The parameters do not belong to this kind of index.
        """
        path = Path(path)
        if not path.is_file():
            raise MismatchError(f"An index file must exist, but {path} does not. Build the index again.")
        try:
            index, mapped = read_index(path, mmap=mmap, factory=factory)
        except (RuntimeError, MemoryError, ValueError, OverflowError) as error:
            raise MismatchError(
                f"{path} must be a complete FAISS index, but it is damaged or truncated ({faiss_reason(error)}). "
                "Build the index again, or copy the file again."
            ) from error
        factory = factory or factory_of(index)
        if reason := unsupported_reason(index, factory) or refusal(factory, allow_untested=True):
            raise MismatchError(
                f"{path} must be an index that is searched by inner product and gives vectors back, but it is "
                f"{factory!r}, which {reason}. Build the index again with this library."
            )
        if warning := refusal(factory, allow_untested=allow_untested):
            logger.warning("%s is opened, but its kind %r %s.", path, factory, warning)
        restore_after_reading(index)
        return cls(index, factory, parameters=parameters, mapped=mapped, read_only=mmap)

    def save(self, path: str | Path, /) -> None:
        """Write the index to one file."""
        with self._lock:
            ivf = unrefined_ivf(self._index)
            if ivf is not None and not self._read_only:
                ivf.set_direct_map_type(untyped_faiss.DirectMap.NoMap)  # 8 bytes per vector, quickly computed again
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
    def parameters(self) -> str:
        """The search parameters that are used where a search names none; "" for kinds without."""
        return ",".join(f"{name}={value:g}" for name, value in self._parameters.items())

    @property
    def is_trained(self) -> bool:
        """Whether vectors can be added; always true for kinds without training."""
        # FAISS 1.15.1 reports an "IVF16,SQ0" as trained before it has clusters.
        ivf = [layer for layer in layers_of(self._index) if isinstance(layer, faiss.IndexIVF)]
        return bool(self._index.is_trained) and all(layer.quantizer.ntotal == layer.nlist for layer in ivf)

    @property
    def training_points(self) -> int:
        """The fewest vectors that this kind of index can be trained on; 0 when it needs no training."""
        return training_points(self._factory, self.dimension)

    @property
    def properties(self) -> FaissProperties:
        """What this kind of index returns and how it searches (`indexes.vectors.faiss.faiss_kinds`)."""
        return properties(self._factory)

    @property
    def stores_exact_vectors(self) -> bool:
        """Whether `reconstruct` returns the very vectors that were added."""
        return self.properties.stores_exact_vectors

    @property
    def search_parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Parameters that trade recall for time, each with values from fast to thorough."""
        return search_parameters(self._factory)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def train(self, vectors: ArrayLike, /) -> None:
        """Learn what this kind of index needs (clusters, codes, rotations, ranges); does nothing for other kinds.

        Args:
            vectors: float32 [n, d], a sample of what will be added (`training_sample` says how many).

        Raises:
            UsageError: There are too few vectors.
        """
        sample_nd = self._matrix(vectors)
        if self.is_trained:
            return
        if len(sample_nd) < self.training_points:
            raise UsageError(f"{self._too_few(len(sample_nd))}.")
        try:
            with rotations_for_codes(self._index):
                self._index.train(sample_nd)
        except RuntimeError as error:
            raise UsageError(f"{self._too_few(len(sample_nd))}; FAISS reports: {faiss_reason(error)}.") from error

    def add(self, vectors: ArrayLike, /) -> None:
        """Append vectors; they get the next rows.

        Args:
            vectors: float32 [n, d].

        Raises:
            UsageError: The index is not trained yet, or is read-only.
            DataError: A vector is not finite.
        """
        if self._read_only:
            raise UsageError("A memory-mapped index is read-only. Load it with mmap=False to add vectors.")
        if not self.is_trained:
            raise UsageError(f"An index {self._factory!r} must be trained before vectors are added: call train.")
        matrix_nd = self._matrix(vectors)
        with self._lock:
            self._prefilter = None
            self._index.add(matrix_nd)

    def search(
        self,
        queries_Bd: ArrayLike,
        k: int,
        *,
        parameters: str | None = None,
        batch_size: int = 1024,
        prefilter: bool | None = None,
    ) -> SearchResult:
        """The k nearest vectors of each query, best first; equal scores are ordered by row.

        Args:
            queries_Bd: float32 [B, d].
            k: How many results per query.
            parameters: For this search only, in FAISS's notation, such as "nprobe=32,k_factor_rf=8": `nprobe` of an
                inverted file (more than it has lists is all of them), `efSearch` of a graph, `quantizer_efSearch` of
                the graph that finds lists, `k_factor_rf` of a refined index, `qb` of RaBitQ (bits of a query). What
                is not named stays as in `self.parameters`.
            batch_size: How many queries are searched at once.
            prefilter: Find candidates by matrix products first (`indexes.vectors.prefilter`), in a "Flat" index. The
                results are the same: FAISS searches the queries whose results cannot be proved. Where the CPU
                multiplies in bfloat16 and there are many queries, the products are in bfloat16, and of vectors that
                are not memory-mapped a copy is kept, 2 d bytes each. None uses it where it is faster: for two queries
                at once or more, in indexes that are not small.

        Returns:
            Scores, float32 [B, k], and rows, int64 [B, k]. Where fewer than k vectors are found, the rest has the
            row -1 and the score -inf.

        Raises:
            UsageError: k is below 1, a parameter is unknown or impossible, or this kind has no pre-filter.
            MismatchError: The queries have another dimension.
        """
        check_k(k)
        if prefilter and not self.properties.is_matrix:
            raise UsageError(
                f'Only a "Flat" index can be pre-filtered, but this one is {self._factory!r}. Leave prefilter out.'
            )
        if (most := self.properties.most_results) is not None and k > most:
            raise UsageError(
                f"k must be at most {most:,}, the most that an index {self._factory!r} returns, but got {k}."
            )
        values = merge_search_parameters(self._parameters, parameters or "", self._factory)
        queries = self._matrix(queries_Bd)
        scores_Bk = np.empty((len(queries), k), dtype=np.float32)
        rows_Bk = np.empty((len(queries), k), dtype=np.int64)
        for start in range(0, len(queries), batch_size):
            batch = slice(start, start + batch_size)
            if self._prefilter_pays(len(queries[batch]), k, prefilter):
                with np.errstate(over="ignore", invalid="ignore"):  # a bound that is not finite proves nothing
                    scores_Bk[batch], rows_Bk[batch] = self._prefiltered_search(queries[batch], k)
            else:
                scores_Bk[batch], rows_Bk[batch] = self._plain_search(queries[batch], k, values)
        scores_Bk[rows_Bk < 0] = -np.inf
        return best_first(scores_Bk, rows_Bk)

    def _plain_search(self, queries_Bd: NDArray[np.float32], k: int, values: Mapping[str, float]) -> SearchResult:
        if not len(self):  # some kinds cannot search an empty index
            return np.full((len(queries_Bd), k), -np.inf, np.float32), np.full((len(queries_Bd), k), -1, np.int64)
        found: SearchResult
        try:
            found = self._index.search(queries_Bd, k, params=faiss_search_parameters(self._index, values))
        except RuntimeError as error:
            raise UsageError(
                f"An index {self._factory!r} must be able to find {k} results, but FAISS reports: "
                f"{faiss_reason(error)}. Use a smaller k, or build the index as one of {EXAMPLES}."
            ) from error
        return found

    def _prefilter_pays(self, queries: int, k: int, prefilter: bool | None) -> bool:
        if prefilter is None:
            floats = len(self) * self.dimension
            many = floats >= _PREFILTERED_FLOATS and queries * floats >= _PREFILTERED_PRODUCTS
            return queries > 1 and many and len(self) >= 16 * _candidates(k, True) and self.properties.is_matrix
        return prefilter and len(self) >= _candidates(k, True)

    def _prefiltered_search(self, queries_Bd: NDArray[np.float32], k: int) -> SearchResult:
        """As FAISS searches, but scoring exactly only what is best by matrix products.

        Where these candidates do not prove the result, as among near-duplicates, products in float32 find all vectors
        that reach the k-th of them; FAISS searches for what even they leave open.
        """
        prefilter, bfloat16 = self._prefilter_for(len(queries_Bd))
        found = prefilter.candidates(queries_Bd, k, _candidates(k, bfloat16), bfloat16=bfloat16)
        scores_Bk, rows_Bk = self._best_candidates(queries_Bd, found, k)
        unproven = np.flatnonzero(~(scores_Bk[:, -1] > found.ceilings_B))
        if len(unproven) > 1:
            queries_bd = queries_Bd[unproven]
            more = min(max(_MORE_CANDIDATES, 2 * _candidates(k, True)), len(self))
            found = prefilter.candidates(queries_bd, k, more, least_B=scores_Bk[unproven, -1])
            scores_Bk[unproven], rows_Bk[unproven] = self._best_candidates(queries_bd, found, k)
            unproven = unproven[~(scores_Bk[unproven, -1] > found.ceilings_B)]
        if len(unproven):
            scores_Bk[unproven], rows_Bk[unproven] = self._index.search(queries_Bd[unproven], k)
        return scores_Bk, rows_Bk

    def _prefilter_for(self, queries: int) -> tuple[Prefilter, bool]:
        """The pre-filter, and whether it multiplies so many queries in bfloat16."""
        bfloat16 = queries >= _BFLOAT16_QUERIES and has_fast_bfloat16()
        with self._lock:
            if self._prefilter is None:
                self._prefilter = Prefilter(self._stored())
            if bfloat16 and self._mapped is None:
                self._prefilter.copy()
            return self._prefilter, bfloat16

    def _best_candidates(self, queries_Bd: NDArray[np.float32], found: Candidates, k: int) -> SearchResult:
        """The k best candidates by exact scores, in order."""
        # A candidate is out of the question if k others are better however all were rounded.
        lowest_B1 = found.bound.lowest(found.scores_Bc[:, k - 1 : k])
        possible_Bc = (found.bound.highest(found.scores_Bc) >= lowest_B1) & (found.rows_Bc >= 0)
        width = max(k, int(possible_Bc.sum(axis=1).max()))
        rows_Bw = found.rows_Bc[:, :width]
        scores_Bw, rows_Bw = best_first(self._scores(queries_Bd, rows_Bw), rows_Bw)
        return scores_Bw[:, :k], rows_Bw[:, :k]

    def _stored(self) -> NDArray[np.float32]:
        """The vectors of a "Flat" index themselves, not a copy: float32 [N, d]."""
        vectors: NDArray[np.float32] = faiss.rev_swig_ptr(self._index.get_xb(), len(self) * self.dimension)
        return vectors.reshape(len(self), self.dimension)

    def _scores(self, queries_Bd: NDArray[np.float32], rows_Bc: NDArray[np.int64]) -> NDArray[np.float32]:
        """Inner products in float32, by FAISS's own routine: float32 [B, c]."""
        scores_Bc = np.empty(rows_Bc.shape, dtype=np.float32)
        rows_Bc = np.ascontiguousarray(rows_Bc)
        scores, rows = faiss.swig_ptr(scores_Bc), faiss.swig_ptr(rows_Bc)
        (queries, count), pointer = rows_Bc.shape, faiss.swig_ptr(queries_Bd)
        self._index.compute_distance_subset(queries, pointer, count, scores, rows)
        return scores_Bc

    def reconstruct(self, rows: ArrayLike, /) -> NDArray[np.float32]:
        """The vectors at these rows: exact where the index keeps them (`stores_exact_vectors`), else approximate.

        An inverted file that is not refined records where each row lies at the first call, 8 bytes per vector.

        Args:
            rows: int64 [n].

        Returns:
            float32 [n, d].

        Raises:
            DataError: A row is not in the index.
        """
        wanted = checked_rows(rows, len(self))
        if not wanted.size:
            return np.empty((0, self.dimension), dtype=np.float32)
        with self._lock:
            ivf = unrefined_ivf(self._index)
            if ivf is not None and ivf.direct_map.no():
                ivf.make_direct_map()
            vectors: NDArray[np.float32] = self._index.reconstruct_batch(wanted)
        return vectors

    def _matrix(self, vectors: ArrayLike) -> NDArray[np.float32]:
        return checked_matrix(vectors, self.dimension)

    def _too_few(self, count: int) -> str:
        return (
            f"An index {self._factory!r} needs at least {self.training_points} vectors to train on, but got {count}. "
            'Use a factory with fewer clusters, or "Flat", which needs no training'
        )

    # -- an index directory --------------------------------------------------------------------------------------

    @classmethod
    def create(cls, config: StoreConfig) -> "FaissIndex":
        """An empty index; `check` has refused untested kinds that were not allowed."""
        return cls.empty(config.dimension, config.factory, allow_untested=True)

    @classmethod
    def open(cls, path: Path, config: StoreConfig, *, mmap: bool = False) -> "FaissIndex":
        """As `load`; an untested kind that was not allowed is opened with a warning."""
        return cls.load(path, mmap=mmap, factory=config.factory, allow_untested=config.allow_untested)

    @classmethod
    def check(cls, config: StoreConfig, *, keeps_lengths: bool) -> None:
        """Refuse what FAISS cannot make, and vectors scaled to unit length where their length counts."""
        if config.factory == "auto":
            return
        cls.empty(config.dimension, config.factory, allow_untested=config.allow_untested)
        if keeps_lengths and any(re.fullmatch("L2[nN]orm", name) for name in parse(config.factory).transforms):
            raise UsageError(
                f"An encoder whose similarity is the dot product needs vectors of their own length, but the factory "
                f'{config.factory!r} normalises them. Leave L2norm out, or load the encoder with similarity="cosine".'
            )

    @classmethod
    def choose_factory(cls, passages: int, dimension: int, *, memory: int | None) -> tuple[str, str]:
        """As `indexes.vectors.faiss.faiss_factory.choose_factory`."""
        return choose_factory(passages, dimension, memory=memory)

    @classmethod
    def min_training_vectors(cls, config: StoreConfig) -> int:
        """The fewest vectors that this kind of index can be trained on; 0 when it needs no training."""
        return training_points(config.factory)

    @classmethod
    def training_sample(cls, config: StoreConfig, n: int) -> int:
        """How many of n vectors to train on."""
        return training_sample(config.factory, n)

    @classmethod
    def build_bytes(cls, config: StoreConfig, n: int) -> int:
        """Bytes of memory of a build; 0 for a "Flat" index, whose vectors are streamed to its file."""
        return 0 if config.factory == "Flat" else build_bytes(config.factory, n, config.dimension)

    @classmethod
    def disk_bytes(cls, config: StoreConfig, n: int) -> int:
        """Bytes of the files of n vectors."""
        return int(bytes_per_vector(config.factory, config.dimension) * n)

    @classmethod
    def write_segment(
        cls, directory: Path, folder: Path, config: StoreConfig, blocks: Iterable[NDArray[np.float32]]
    ) -> None:
        """Write the file of a segment; a "Flat" one without holding its vectors."""
        [name] = cls.segment_files()
        if config.factory != "Flat":
            super().write_segment(directory, folder, config, blocks)
        elif not (folder / name).is_file():
            write_path(folder / name, lambda partial: write_flat(partial, blocks, config.dimension))


def _candidates(k: int, bfloat16: bool) -> int:
    """The most vectors that are scored exactly for k results: enough that the k-th stands out from the last of them."""
    return max(4 * k, k + 64) if bfloat16 else k + 32
