"""A FAISS index whose factory string is its whole configuration: vectors in, rows out, by inner product.

The id of a vector is its row, from 0 on in the order of adding.

Axes: N vectors in the index, B queries, k results, c candidates, d dimensions.
"""

import logging
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

# Before faiss: both bring an OpenMP runtime, and with torch loaded first the two share one pool of threads.
import torch  # noqa: F401

# isort: split
import faiss
import numpy as np
from faiss.contrib.factory_tools import reverse_index_factory
from numpy.typing import ArrayLike, NDArray

from indexes.cpu_features import fast_bfloat16
from indexes.errors import DataError, MismatchError, ResourceError, UsageError
from indexes.vectors.bf16_prefilter import Screen
from indexes.vectors.faiss.faiss_factory import EXAMPLES, Properties, parse, properties, refusal, training_points
from indexes.vectors.faiss.faiss_kinds import storage_row
from indexes.vectors.vector_store import best_first, checked_matrix

logger = logging.getLogger(__name__)

# The stub of faiss lacks some of what is used here.
_untyped: Any = faiss

# From here on screening is faster than FAISS (docs/decisions.md).
_SCREENED_QUERIES = 32
_SCREENED_VECTORS = 4096
# Where FAISS writes the number of vectors and of floats into the file of a "Flat" index.
_COUNT_AT, _FLOATS_AT = 8, 37


class FaissIndex:
    """Vectors under their row numbers, searched by inner product (cosine, when the vectors have unit length).

    Make one with `build`, `empty` or `load`. Searching and reconstructing may be done from several threads at once.
    """

    def __init__(
        self,
        index: "faiss.Index",
        factory: str,
        *,
        parameters: str = "",
        mapped: "np.memmap | None" = None,
        read_only: bool = False,
    ) -> None:
        """Wrap an index that compares by inner product; everybody else uses the constructors named above."""
        self._index: Any = index
        self._factory = factory
        self._read_only = read_only
        self._mapped = mapped  # the index points into it
        self._parameters = _understood(index, factory)
        self._parameters = self._with(parameters)
        self._screen: Screen | None = None
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
            allow_untested: Also make kinds that are not in `faiss_kinds`, whose results nobody has compared.

        Raises:
            UsageError: The factory string is not valid, or not for this dimension, the inner product or getting
                vectors back; or the kind is untested.
        """
        if re.search(r"IDMap2?", factory):
            raise UsageError(f"The id of a vector is its row, so leave the IDMap out of the factory {factory!r}.")
        known = refusal(factory, allow_untested=True)  # before FAISS makes anything of it
        if not known:
            index = raw_index(dimension, factory, seed=seed)
        if reason := known or _unfit(index, factory) or refusal(factory, allow_untested=allow_untested):
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
            raise MismatchError(f"Vectors must have the shape [N, d], but {list(vectors.shape)} came.")
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
        on_disk = mmap and _lists_stay_on_disk(path, factory)
        try:
            index, mapped = _read(path, mmap=mmap, lists_on_disk=on_disk)
        except (RuntimeError, MemoryError, ValueError, OverflowError) as error:
            raise MismatchError(
                f"{path} must be a complete FAISS index, but it is damaged or truncated ({_reason(error)}). "
                "Build the index again, or copy the file again."
            ) from error
        factory = factory or _describe(index)
        if reason := _unfit(index, factory) or refusal(factory, allow_untested=True):
            raise MismatchError(
                f"{path} must be an index that is searched by inner product and gives vectors back, but it is "
                f"{factory!r}, which {reason}. Build the index again with this library."
            )
        if warning := refusal(factory, allow_untested=allow_untested):
            logger.warning("%s is opened, but its kind %r %s.", path, factory, warning)
        _mend(index)
        return cls(index, factory, parameters=parameters, mapped=mapped, read_only=mmap)

    def save(self, path: str | Path) -> None:
        """Write the index to one file."""
        with self._lock:
            ivf = _unrefined_ivf(self._index)
            if ivf is not None and not self._read_only:
                ivf.set_direct_map_type(_untyped.DirectMap.NoMap)  # 8 bytes per vector that are quickly made again
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
        # FAISS 1.15.1 says so of "IVF16,SQ0" before it has clusters.
        ivf = [layer for layer in _layers(self._index) if isinstance(layer, faiss.IndexIVF)]
        return bool(self._index.is_trained) and all(layer.quantizer.ntotal == layer.nlist for layer in ivf)

    @property
    def training_points(self) -> int:
        """The fewest vectors that this kind of index can be trained on; 0 when it needs no training."""
        return training_points(self._factory, self.dimension)

    @property
    def stores_exact_vectors(self) -> bool:
        """Whether `reconstruct` gives back the very vectors that were added."""
        return self.properties.vectors == "same"

    @property
    def properties(self) -> Properties:
        """What this kind of index does (`indexes.vectors.faiss.faiss_kinds`)."""
        return properties(self._factory)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def train(self, vectors: ArrayLike) -> None:
        """Learn what this kind of index needs (clusters, codes, rotations, ranges); other kinds ignore it.

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
            with _rotation_codes(self._index):
                self._index.train(sample_nd)
        except RuntimeError as error:
            raise UsageError(f"{self._too_few(len(sample_nd))}; FAISS says: {_reason(error)}.") from error

    def add(self, vectors: ArrayLike) -> None:
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
            self._screen = None
            self._index.add(matrix_nd)

    def search(
        self,
        queries_Bd: ArrayLike,
        k: int,
        *,
        parameters: str | None = None,
        batch_size: int = 1024,
        screen: bool | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k nearest vectors of each query, best first; equal scores are ordered by row.

        Args:
            queries_Bd: float32 [B, d].
            k: How many results per query.
            parameters: For this search only, in FAISS's words, such as "nprobe=32,k_factor_rf=8": `nprobe` of an
                inverted file (more than it has lists is all of them), `efSearch` of a graph, `quantizer_efSearch` of
                the graph that finds lists, `k_factor_rf` of a refined index, `qb` of RaBitQ (bits of a query). What
                is not named stays as in `self.parameters`.
            batch_size: How many queries are read at once.
            screen: Look for candidates in bfloat16 first (`bf16_prefilter`), in a "Flat" index: the same results,
                since what the first look cannot prove is searched by FAISS. It keeps a copy of the vectors, 2 d bytes
                each, from the first such search on. None does it where it is faster: on CPUs that multiply in bfloat16,
                for many queries and vectors that are not memory-mapped.

        Returns:
            Scores, float32 [B, k], and rows, int64 [B, k]. Where fewer than k vectors are found, the rest has the
            row -1 and the score -inf.

        Raises:
            UsageError: k is below 1, a parameter is unknown or impossible, or this kind cannot be screened.
            MismatchError: The queries have another dimension.
        """
        if k < 1:
            raise UsageError(f"k must be at least 1, but {k} came.")
        if screen and not self.properties.is_matrix:
            raise UsageError(
                f'Only a "Flat" index can be screened, but this one is {self._factory!r}. Leave screen out.'
            )
        if (most := self.properties.most_results) is not None and k > most:
            raise UsageError(
                f"k must be at most {most:,}, the most that an index {self._factory!r} returns, but {k} came."
            )
        values = self._with(parameters or "")
        queries = self._matrix(queries_Bd)
        scores_Bk = np.empty((len(queries), k), dtype=np.float32)
        rows_Bk = np.empty((len(queries), k), dtype=np.int64)
        for start in range(0, len(queries), batch_size):
            batch = slice(start, start + batch_size)
            if self._screening_pays(len(queries[batch]), k, screen):
                scores_Bk[batch], rows_Bk[batch] = self._screened_search(queries[batch], k)
            else:
                scores_Bk[batch], rows_Bk[batch] = self._plain_search(queries[batch], k, values)
        scores_Bk[rows_Bk < 0] = -np.inf
        return best_first(scores_Bk, rows_Bk)

    def _plain_search(
        self, queries_Bd: NDArray[np.float32], k: int, values: Mapping[str, float]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if not len(self):  # which some kinds cannot search
            return np.full((len(queries_Bd), k), -np.inf, np.float32), np.full((len(queries_Bd), k), -1, np.int64)
        found: tuple[NDArray[np.float32], NDArray[np.int64]]
        try:
            found = self._index.search(queries_Bd, k, params=_search_parameters(self._index, values))
        except RuntimeError as error:
            raise UsageError(
                f"An index {self._factory!r} must be able to find {k} results, but FAISS says: {_reason(error)}. Use a "
                f"smaller k, or build the index as one of {EXAMPLES}."
            ) from error
        return found

    def _with(self, parameters: str) -> dict[str, float]:
        """The search parameters of this index, with those that are named replaced."""
        named = parse_parameters(parameters)
        if "quantizer_efSearch" in self._parameters and "efSearch" in named:  # FAISS takes both names
            named["quantizer_efSearch"] = named.pop("efSearch")
        for name in named:
            if name not in self._parameters:
                understood = ", ".join(self._parameters) or "none, since there is nothing to trade"
                raise UsageError(
                    f"Search parameters must be those of an index {self._factory!r} ({understood}), but {name!r} "
                    f"came. Leave {name} out."
                )
        return {**self._parameters, **named}

    def _screening_pays(self, queries: int, k: int, screen: bool | None) -> bool:
        if screen is None:
            many = queries >= _SCREENED_QUERIES and len(self) >= max(_SCREENED_VECTORS, 16 * _candidates(k))
            return many and self.properties.is_matrix and self._mapped is None and fast_bfloat16()
        return screen and len(self) >= _candidates(k)

    def _screened_search(
        self, queries_Bd: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As FAISS searches, but scoring exactly only what is best in bfloat16; unproven queries go to FAISS."""
        with self._lock:
            if self._screen is None:
                self._screen = Screen(self._stored())
            screen = self._screen
        rows_Bc, ceilings_B = screen.candidates(queries_Bd, _candidates(k))
        scores_Bc, rows_Bc = best_first(self._scores(queries_Bd, rows_Bc), rows_Bc)
        scores_Bk, rows_Bk = scores_Bc[:, :k], rows_Bc[:, :k]
        unproven_B = ~(scores_Bk[:, -1] > ceilings_B)
        if unproven_B.any():
            scores_Bk[unproven_B], rows_Bk[unproven_B] = self._index.search(queries_Bd[unproven_B], k)
        return scores_Bk, rows_Bk

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

    def reconstruct(self, rows: ArrayLike) -> NDArray[np.float32]:
        """The vectors at these rows: exact where the index keeps them (`stores_exact_vectors`), else approximate.

        An inverted file that is not refined notes where each row lies at the first call, 8 bytes per vector.

        Args:
            rows: int64 [n].

        Returns:
            float32 [n, d].

        Raises:
            DataError: A row is not in the index.
        """
        wanted = np.ascontiguousarray(rows, dtype=np.int64)
        unknown = wanted[(wanted < 0) | (wanted >= len(self))]
        if unknown.size:
            raise DataError(f"The row {int(unknown[0])} is not in the index, which holds {len(self)} vectors.")
        if not wanted.size:
            return np.empty((0, self.dimension), dtype=np.float32)
        with self._lock:
            ivf = _unrefined_ivf(self._index)
            if ivf is not None and ivf.direct_map.no():
                ivf.make_direct_map()
            vectors: NDArray[np.float32] = self._index.reconstruct_batch(wanted)
        return vectors

    def _matrix(self, vectors: ArrayLike) -> NDArray[np.float32]:
        return checked_matrix(vectors, self.dimension)

    def _too_few(self, count: int) -> str:
        return (
            f"An index {self._factory!r} needs at least {self.training_points} vectors to train on, but {count} "
            'came. Use a factory with fewer clusters, or "Flat", which needs no training'
        )


def _candidates(k: int) -> int:
    """How many vectors are looked at twice for k results: enough that the k-th stands out from the last of them."""
    return max(4 * k, k + 64)


def _reason(error: BaseException) -> str:
    """FAISS puts the C++ signature and file in front of what went wrong."""
    text = str(error).strip()
    return re.sub(r"^Error in .*? at \S+: (?:Error: )?", "", text, flags=re.S) or type(error).__name__


# ---------------------------------------------------------------------------------------------------------
# What an index is made of
# ---------------------------------------------------------------------------------------------------------


def _layers(index: Any) -> Iterator[Any]:
    """An index and what it wraps, from outside in: refinement, transforms, then what is searched."""
    index = faiss.downcast_index(index)
    yield index
    if isinstance(index, faiss.IndexRefine):
        yield from _layers(index.base_index)
    elif isinstance(index, faiss.IndexPreTransform):
        yield from _layers(index.index)


def _unrefined_ivf(index: Any) -> Any:
    """The inverted file by which vectors are found again, None where another index keeps them."""
    layers = list(_layers(index))
    refined = any(isinstance(layer, faiss.IndexRefine) for layer in layers)
    return layers[-1] if isinstance(layers[-1], faiss.IndexIVF) and not refined else None


def raw_index(dimension: int, factory: str, *, seed: int = 0) -> Any:
    """An index as FAISS makes it, whose clusterings are seeded; whether it can be used is not asked.

    Args:
        dimension: d.
        factory: FAISS's description of the index.
        seed: Of the clustering that some kinds need.

    Raises:
        UsageError: FAISS cannot make it.
    """
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"The factory must be an index that FAISS can make for {dimension} dimensions and the inner "
            f"product, but {factory!r} is not: {_reason(error)}. Try one of {EXAMPLES}."
        ) from error
    _prepare_training(index, seed)
    return index


def _unfit(index: Any, factory: str) -> str:
    """What is wrong with an index itself, beside what `faiss_kinds` says of its kind; "" when nothing is."""
    if isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2):
        return "maps ids, which are rows here"
    if any(layer.metric_type != faiss.METRIC_INNER_PRODUCT for layer in _layers(index)):
        return "compares by distance whatever it is asked for"
    return _other_class(index, factory)


def _describe(index: Any) -> str:
    """The factory string of an index; the name of a class where FAISS has none, or the one of another kind."""
    searched = list(_layers(index))[-1]
    try:
        factory = str(reverse_index_factory(index))  # type: ignore[no-untyped-call]
    except (NotImplementedError, AssertionError, KeyError):
        return type(searched).__name__
    # It calls a FlatIPPanorama8 "Flat", and leaves the size of a block out of "PQ8x4fs_64".
    misnamed = _other_class(index, factory) or getattr(searched, "bbs", 32) != 32
    return type(searched).__name__ if misnamed else factory


def _other_class(index: Any, factory: str) -> str:
    """How the classes of an index differ from those of its kind; "" when they do not, or nothing is known of it."""
    parts, layers = parse(factory), list(_layers(index))
    found = [(storage_row(parts.within, parts.code), layers[-1])]
    if isinstance(layers[0], faiss.IndexRefine):
        found.append((storage_row("", parts.refine), faiss.downcast_index(layers[0].refine_index)))
    for row, layer in found:
        if row is not None and row.classes and type(layer).__name__ not in row.classes:
            return f"holds a {type(layer).__name__} where {' or '.join(row.classes)} belongs"
    return ""


# ---------------------------------------------------------------------------------------------------------
# Search parameters
# ---------------------------------------------------------------------------------------------------------

_LOWEST = {"nprobe": 1, "efSearch": 1, "quantizer_efSearch": 1, "k_factor_rf": 1, "qb": 1}
_HIGHEST = {"qb": 8}
_FRACTIONS = {"k_factor_rf"}


def parse_parameters(parameters: str) -> dict[str, float]:
    """Search parameters from FAISS's way of writing them.

    Args:
        parameters: Such as "nprobe=32,k_factor_rf=4"; "" names none.

    Returns:
        A value for each name.

    Raises:
        UsageError: It is not a list of known names and possible numbers.
    """
    found: dict[str, float] = {}
    for assignment in filter(None, (part.strip() for part in parameters.split(","))):
        name, _, text = (part.strip() for part in assignment.partition("="))
        if name not in _LOWEST:
            raise UsageError(
                f"A search parameter must be one of {', '.join(_LOWEST)}, written as name=number with commas between, "
                f"but {assignment!r} came."
            )
        found[name] = _possible(name, text)
    return found


def _possible(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    whole = name in _FRACTIONS or value == math.floor(value) if math.isfinite(value) else False
    low, high = _LOWEST[name], _HIGHEST.get(name, 2**31 - 1)
    if not (whole and low <= value <= high):
        kind = "a number" if name in _FRACTIONS else "a whole number"
        limits = f"from {low} to {high}" if name in _HIGHEST else f"of at least {low}"
        raise UsageError(f"The search parameter {name} must be {kind} {limits}, but {text!r} came.")
    return value


def _understood(index: Any, factory: str) -> dict[str, float]:
    """The search parameters of an index with values that find most true neighbours; FAISS's own look into little."""
    found: dict[str, float] = {}
    for layer in _layers(index):
        if isinstance(layer, faiss.IndexRefine):
            found["k_factor_rf"] = 4
        if isinstance(layer, faiss.IndexHNSW):
            found["efSearch"] = 128
        if isinstance(layer, faiss.IndexIVF):
            found["nprobe"] = min(layer.nlist, max(8, layer.nlist // 16))
            if isinstance(faiss.downcast_index(layer.quantizer), faiss.IndexHNSW):
                found["quantizer_efSearch"] = max(64, 2 * found["nprobe"])
    parts = parse(factory)
    if (row := storage_row(parts.within, parts.code)) is not None:
        found |= {name: _HIGHEST[name] for name in row.parameters}
    return found


def _search_parameters(index: Any, values: Mapping[str, float]) -> Any:
    """FAISS's objects for these values, nested as the index is; None where there is nothing to say."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        inner = _search_parameters(index.base_index, values)
        base = {} if inner is None else {"base_index_params": inner}
        return _untyped.IndexRefineSearchParameters(k_factor=values["k_factor_rf"], **base)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _search_parameters(index.index, values)
        return None if inner is None else _untyped.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexHNSW):
        return _untyped.SearchParametersHNSW(efSearch=int(values["efSearch"]))
    if isinstance(index, faiss.IndexIVF):
        return _ivf_parameters(index, values)
    if "qb" in values:
        return _untyped.RaBitQSearchParameters(qb=int(values["qb"]))
    return None


def _ivf_parameters(index: Any, values: Mapping[str, float]) -> Any:
    settings: dict[str, Any] = {"nprobe": min(index.nlist, int(values["nprobe"]))}
    if "quantizer_efSearch" in values:
        settings["quantizer_params"] = _untyped.SearchParametersHNSW(efSearch=int(values["quantizer_efSearch"]))
    if "qb" in values:
        return _untyped.IVFRaBitQSearchParameters(qb=int(values["qb"]), **settings)
    return faiss.SearchParametersIVF(**settings)


# ---------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------

# A rotation is as good after so many rounds on so many points (docs/decisions.md); FAISS's 50 rounds on 65,536 points
# take minutes.
_ROTATION_ROUNDS, _ROTATION_POINTS = 10, 16_384
_MOST_POINTS_PER_LIST, _MOST_POINTS_PER_CODE = 256, 1024
_PRODUCT_QUANTIZED = (faiss.IndexPQ, faiss.IndexPQFastScan, faiss.IndexIVFPQ, faiss.IndexIVFPQFastScan)


def _prepare_training(index: Any, seed: int) -> None:
    """Seed every clustering, cap it, and let it be content with few points, of which the caller knows."""
    for layer in _layers(index):
        if isinstance(layer, faiss.IndexIVF):
            _prepare_clustering(layer.cp, seed, _MOST_POINTS_PER_LIST)
            _prepare_training(layer.quantizer, seed)
        if isinstance(layer, faiss.IndexHNSW):
            _prepare_training(layer.storage, seed)
        if isinstance(layer, faiss.IndexRefine):
            _prepare_training(layer.refine_index, seed)
        if isinstance(layer, _PRODUCT_QUANTIZED):
            _prepare_clustering(layer.pq.cp, seed, _MOST_POINTS_PER_CODE if layer.pq.nbits <= 4 else 256)
        if isinstance(layer, _untyped.IndexPQ | _untyped.IndexIVFPQ):
            # Seconds to minutes of annealing for a filter by Hamming distance that no search here uses.
            layer.do_polysemous_training = False


def _prepare_clustering(parameters: Any, seed: int, most_points: int) -> None:
    parameters.seed = seed
    parameters.min_points_per_centroid = 1
    parameters.max_points_per_centroid = most_points


@contextmanager
def _rotation_codes(index: Any) -> Iterator[None]:
    """While it lasts, rotations are learned for the very codes that follow them, not for FAISS's codes of 8 bits."""
    searched = list(_layers(index))[-1]
    with_codes = isinstance(
        searched, faiss.IndexPQ | faiss.IndexPQFastScan | faiss.IndexIVFPQ | faiss.IndexIVFPQFastScan
    )
    rotations, codes = _rotations(index), []
    for rotation in rotations:
        codes.append(faiss.ProductQuantizer(rotation.d_out, rotation.M, searched.pq.nbits if with_codes else 8))
        seed = searched.pq.cp.seed if with_codes else 1234
        _prepare_clustering(codes[-1].cp, seed, _MOST_POINTS_PER_CODE)
        rotation.pq = codes[-1]
        rotation.niter, rotation.max_train_points = _ROTATION_ROUNDS, _ROTATION_POINTS
    try:
        yield
    finally:
        for rotation in rotations:
            rotation.pq = None


def _rotations(index: Any) -> list[Any]:
    chains = [layer.chain for layer in _layers(index) if isinstance(layer, faiss.IndexPreTransform)]
    return [step for chain in chains for step in _steps(chain) if isinstance(step, faiss.OPQMatrix)]


def _steps(chain: Any) -> list[Any]:
    return [faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size())]


# ---------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------


def _read(path: Path, *, mmap: bool, lists_on_disk: bool) -> tuple[Any, "np.memmap[Any, Any] | None"]:
    """An index, and the file that it points into."""
    if not mmap:
        return faiss.read_index(str(path)), None
    if lists_on_disk:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP), None
    # Not IO_FLAG_MMAP_IFC: its reader rounds what is left of a truncated file up and reads beyond it, and it asks
    # the system not to read ahead. This reader refuses the first and leaves the second to the system.
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    reader = _untyped.ZeroCopyIOReader(faiss.swig_ptr(mapped), mapped.size)
    index = faiss.read_index(reader)
    if reader.rp_ != mapped.size:
        raise ValueError(f"{mapped.size} bytes were found where {reader.rp_} belong")
    return index, mapped


def _mend(index: Any) -> None:
    """Point an inverted file for the fast scan at its codebook, which reading forgets and reconstructing needs."""
    searched: Any = list(_layers(index))[-1]
    if isinstance(searched, _untyped.IndexIVFPQFastScan):
        searched.fine_quantizer = searched.pq


def _lists_stay_on_disk(path: Path, factory: str | None) -> bool:
    """Whether most of a file is lists of the kind that FAISS can leave on disk."""
    if factory is not None:
        parts = parse(factory)
        return bool(parts.lists) and not parts.refine and properties(factory).maps_lists
    with path.open("rb") as file:
        kind = file.read(4)
    return kind.startswith(b"Iw") and kind != b"IwP2"  # the lists of FlatPanorama, which FAISS cannot map


def write_flat(path: str | Path, blocks: Iterable[ArrayLike], dimension: int) -> int:
    """Write the file of a "Flat" index, byte for byte what FAISS writes, without holding its vectors.

    Until the last block is on the disk the file is not a readable index.

    Args:
        path: The file; one that exists is replaced.
        blocks: float32 [n, d] each, in the order of their rows.
        dimension: d.

    Returns:
        N, how many vectors were written.

    Raises:
        DataError: A vector is not finite.
        MismatchError: A block has another dimension.
        OSError: The disk is full, or the file cannot be written.
    """
    header = _flat_header(dimension, 0)
    count = 0
    with Path(path).open("wb") as file:
        file.write(bytes(len(header)))
        for block in blocks:
            matrix_nd = checked_matrix(block, dimension)
            file.write(matrix_nd.data)
            count += len(matrix_nd)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        file.write(_flat_header(dimension, count))
        file.flush()
        os.fsync(file.fileno())
    return count


def _flat_header(dimension: int, count: int) -> bytes:
    _check_flat_layout()
    header = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dimension)).tobytes())
    struct.pack_into("=q", header, _COUNT_AT, count)
    struct.pack_into("=Q", header, _FLOATS_AT, count * dimension)
    return bytes(header)


@cache
def _check_flat_layout() -> None:
    """See that this FAISS writes a "Flat" index as `write_flat` does.

    Raises:
        ResourceError: It does not.
    """
    vectors_nd = np.arange(6, dtype=np.float32).reshape(3, 2)
    index = faiss.IndexFlatIP(2)
    header = bytearray(faiss.serialize_index(index).tobytes())
    index.add(vectors_nd)
    whole = faiss.serialize_index(index).tobytes()
    if len(header) == _FLOATS_AT + 8:
        struct.pack_into("=q", header, _COUNT_AT, 3)
        struct.pack_into("=Q", header, _FLOATS_AT, 6)
    if whole != bytes(header) + vectors_nd.tobytes():
        raise ResourceError(
            f'The file of a "Flat" index must be laid out as this library knows it, but faiss {faiss.__version__} '
            "writes it otherwise. Install the version of faiss-cpu that constraints.txt names."
        )
