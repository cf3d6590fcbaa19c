"""Find the fastest search parameters that reach a recall, by a sweep over the parameters of a kind of index.

Recall and time both rise with the value of each parameter. So for each setting of the others the first one is raised
until the recall is reached, it takes longer than a setting that is known already, or recall rises no more. FAISS's own
sweep (`ParameterSpace.explore`) sets parameters on one index in place, which neither several segments nor concurrent
searches allow.

Axes: N vectors, B queries, k results, d dimensions.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from indexes.errors import MismatchError, UsageError
from indexes.vectors.vector_store import SearchResult, StoreProperties

_BLOCK = 16_384
# A search is repeated until it has taken so many seconds, so that its time means something.
_SECONDS = 0.1
# Less than this is noise, and no reason to look further.
_GAIN = 0.001


class Searchable(Protocol):
    """What can be tuned: a `VectorStore`, or `Segments` that are searched as one."""

    @property
    def factory(self) -> str:
        """The store's own description of its kind of index."""

    @property
    def properties(self) -> StoreProperties:
        """What it returns and how it searches."""

    @property
    def search_parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Parameters that trade recall for time, each with values from fast to thorough."""

    def __len__(self) -> int:
        """N."""

    def search(self, queries_Bd: NDArray[np.float32], k: int, *, parameters: str | None = None) -> SearchResult:
        """Scores and ids, both [B, k]."""

    def reconstruct(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        """The stored vectors at these rows, float32 [n, d]."""


@dataclass(frozen=True)
class Trial:
    """One setting with its recall and speed."""

    parameters: str
    recall: float
    queries_per_second: float


@dataclass(frozen=True)
class Tuning:
    """The setting to use, and all that were tried."""

    parameters: str
    """For `search(parameters=...)`; "" when there is nothing to set."""
    recall: float
    """Share of the k best that are among the k found, averaged over queries."""
    queries_per_second: float
    reached: bool
    """Whether the wanted recall is reached; if not, this is the setting with the highest recall."""
    summary: str
    """The result in a sentence, with what the recall is measured against."""
    tried: tuple[Trial, ...]


def tune(
    index: Searchable,
    queries_Bd: ArrayLike,
    *,
    recall: float = 0.95,
    k: int = 20,
    exact_ids_Bk: ArrayLike | None = None,
    ignored: Sequence[Collection[int]] = (),
    on_trial: Callable[[Trial], object] | None = None,
) -> Tuning:
    """Find the fastest search parameters whose recall is high enough.

    Args:
        index: What is searched.
        queries_Bd: float32 [B, d]; some hundred real questions.
        recall: Of the k best by exact search, the share that must be found.
        k: How many results a search will ask for.
        exact_ids_Bk: int64 [B, k or more], the rows that exact search finds, best first. None searches the stored
            vectors exactly; where the index keeps vectors only approximately (`StoreProperties.vectors`), recall is
            then measured against the stored vectors and not against those that were added. Kinds that do not score
            by the vectors that they return, such as RaBitQ, need the exact ids.
        ignored: For each query the rows that it must not find, such as a question's own passage; every search then asks
            for as many more, and k others count. The exact ids hold as many more as well.
        on_trial: Called after each setting.

    Raises:
        UsageError: There is nothing to search, recall or k is impossible, or this kind needs exact ids.
        MismatchError: The exact ids do not belong to the queries.
    """
    queries = np.ascontiguousarray(queries_Bd, dtype=np.float32)
    k = _check(index, queries, recall, k)
    if exact_ids_Bk is None:
        _check_stored(index)
    ignored = _check_ignored(ignored, queries)
    deep = min(k + max(map(len, ignored)), len(index))
    exact_BD = _exact_ids(index, queries, deep) if exact_ids_Bk is None else _given_ids(exact_ids_Bk, queries, deep)
    exact = _first_k(exact_BD, k, ignored)
    tried: list[Trial] = []

    def attempt(parameters: str) -> Trial:
        trial = _attempt(index, queries, k, parameters, exact, ignored)
        tried.append(trial)
        if on_trial is not None:
            on_trial(trial)
        return trial

    _sweep(index.search_parameters, recall, attempt)
    best = _best(tried, recall)
    against = exact_ids_Bk is not None or index.properties.stores_exact_vectors
    summary = _summary(index.factory, best, recall, k, len(tried), against="vectors" if against else "stored")
    reached = best.recall >= recall
    return Tuning(best.parameters, best.recall, best.queries_per_second, reached, summary, tuple(tried))


def _check(index: Searchable, queries_Bd: NDArray[np.float32], recall: float, k: int) -> int:
    if not 0 < recall <= 1:
        raise UsageError(f"The recall to reach must be above 0 and at most 1, but got {recall}.")
    if k < 1:
        raise UsageError(f"k must be at least 1, but got {k}.")
    if not len(index) or not len(queries_Bd):
        raise UsageError(
            f"Tuning needs vectors and queries, but got {len(index)} vectors and {len(queries_Bd)} queries. "
            "Give it an index that is filled and some hundred questions."
        )
    return min(k, len(index))


def _check_stored(index: Searchable) -> None:
    """Check that exact search over the stored vectors gives what the index should find."""
    if index.properties.scores == "other" and not index.properties.stores_exact_vectors:
        raise UsageError(
            f"Recall needs the results of exact search, but an index {index.factory!r} does not score by the vectors "
            "that it gives back. Give exact_ids_Bk (--reference DIR, an index of the same corpus built with --factory "
            "Flat)."
        )


def _exact_ids(index: Searchable, queries_Bd: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The results of exact search over the stored vectors, read in blocks."""
    import faiss
    from faiss.contrib.exhaustive_search import knn_ground_truth

    def blocks() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(index), _BLOCK):
            yield index.reconstruct(np.arange(start, min(start + _BLOCK, len(index))))

    ids_Bk: NDArray[np.int64]
    _, ids_Bk = knn_ground_truth(queries_Bd, blocks(), k, faiss.METRIC_INNER_PRODUCT)
    return ids_Bk


def _given_ids(exact_ids_Bk: ArrayLike, queries_Bd: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    ids_Bk = np.asarray(exact_ids_Bk, dtype=np.int64)
    if ids_Bk.ndim != 2 or len(ids_Bk) != len(queries_Bd) or ids_Bk.shape[1] < k:
        raise MismatchError(
            f"The exact ids must have the shape [{len(queries_Bd)}, {k} or more], one row for each query, but "
            f"got {list(ids_Bk.shape)}."
        )
    return ids_Bk[:, :k]


def _check_ignored(ignored: Sequence[Collection[int]], queries_Bd: NDArray[np.float32]) -> Sequence[Collection[int]]:
    if ignored and len(ignored) != len(queries_Bd):
        raise MismatchError(
            f"Rows to ignore must be given for each of {len(queries_Bd)} queries, but got them for {len(ignored)}."
        )
    return ignored or [()] * len(queries_Bd)


def _first_k(ids_BD: NDArray[np.int64], k: int, ignored: Sequence[Collection[int]]) -> list[NDArray[np.int64]]:
    """Of each query the first k that it does not ignore; fewer where the index holds no more."""
    pairs = zip(ids_BD, ignored, strict=True)
    return [ids_D[(ids_D >= 0) & ~np.isin(ids_D, list(without))][:k] for ids_D, without in pairs]


def _attempt(
    index: Searchable,
    queries_Bd: NDArray[np.float32],
    k: int,
    parameters: str,
    exact: Sequence[NDArray[np.int64]],
    ignored: Sequence[Collection[int]],
) -> Trial:
    deep = min(k + max(map(len, ignored)), len(index))
    shortest, total = np.inf, 0.0
    while total < _SECONDS:
        started = perf_counter()
        _, ids_BD = index.search(queries_Bd, deep, parameters=parameters)
        took = perf_counter() - started
        shortest, total = min(shortest, took), total + took
    pairs = zip(_first_k(ids_BD, k, ignored), exact, strict=True)
    found = sum(len(np.intersect1d(ids_k, exact_k)) for ids_k, exact_k in pairs)
    return Trial(parameters, found / max(sum(map(len, exact)), 1), len(queries_Bd) / shortest)


def _sweep(ladders: Mapping[str, tuple[int, ...]], recall: float, attempt: Callable[[str], Trial]) -> None:
    """Try the settings that may turn out best; without parameters, the search as it is."""
    if not ladders:
        attempt("")
        return
    (first, rungs), *others = ladders.items()
    fastest = 0.0
    for values in product(*(ladder for _, ladder in others)):
        rest = [f"{name}={value}" for (name, _), value in zip(others, values, strict=True)]
        stalled, before = 0, 0.0
        for rung in rungs:
            trial = attempt(",".join([f"{first}={rung}", *rest]))
            stalled = stalled + 1 if trial.recall < before + _GAIN else 0
            before = max(before, trial.recall)
            if trial.recall >= recall:
                fastest = max(fastest, trial.queries_per_second)
            if trial.recall >= recall or trial.queries_per_second < fastest or stalled == 2:
                break


def _best(tried: list[Trial], recall: float) -> Trial:
    """The fastest that reaches the recall, else the fastest of those with the highest recall."""
    enough = [trial for trial in tried if trial.recall >= recall]
    most = max(trial.recall for trial in tried)
    candidates = enough or [trial for trial in tried if trial.recall > most - _GAIN]
    return max(candidates, key=lambda trial: trial.queries_per_second)


def _summary(factory: str, best: Trial, recall: float, k: int, tried: int, *, against: str) -> str:
    found = f"recall@{k} of {best.recall:.3f} at {best.queries_per_second:,.0f} queries per second"
    if not best.parameters:
        text = f"An index {factory!r} has nothing to tune: {found}"
        text += "." if best.recall >= recall else f", below the {recall:g} that was asked for."
    elif best.recall >= recall:
        text = f"{best.parameters} is the fastest of {tried} settings with a recall of at least {recall:g}: {found}."
    else:
        text = (
            f"No setting reaches a recall of {recall:g}; {best.parameters} finds most of {tried} settings: {found}. "
            "Build the index with another factory, such as one with Refine(SQ8) or RFlat, for more."
        )
    if against == "stored":
        text += " Recall is measured against the vectors as this index stores them, which are approximate."
    return text
