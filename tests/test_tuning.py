"""Tuning against settings that are known: real small indexes, and one whose recall and time are written down."""

from itertools import pairwise

import numpy as np
import pytest

from indexes import FaissIndex, MismatchError, UsageError
from indexes.vectors.faiss.faiss_factory import properties, search_parameters
from indexes.vectors.tuning import Trial, tune

N, D, B, K = 4000, 16, 40, 10


@pytest.fixture(scope="module")
def vectors_Nd() -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def queries_Bd() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((B, D)).astype(np.float32)


class Scripted:
    """Ten vectors along one axis; how many of the best are found, and how long it takes, follows from the settings."""

    def __init__(self, factory: str, clock: list[float]) -> None:
        self.factory, self.clock = factory, clock
        self.properties, self.search_parameters = properties(factory), search_parameters(factory)

    def __len__(self) -> int:
        return 10

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        return (10 - np.asarray(rows, dtype=np.float32))[:, None]

    def search(self, queries_Bd: np.ndarray, k: int, *, parameters: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        values = {name: int(value) for name, _, value in (p.partition("=") for p in (parameters or "").split(",") if p)}
        nprobe, factor = values.get("nprobe", 1), values.get("k_factor_rf", 1)
        self.clock[0] += nprobe + 10 * factor
        found = min(nprobe.bit_length() + 3, 4 + 2 * factor, 10)
        rows_k = np.where(np.arange(k) < found, np.arange(k), -1)
        return np.zeros((len(queries_Bd), k), np.float32), np.tile(rows_k, (len(queries_Bd), 1))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("indexes.vectors.tuning.perf_counter", lambda: now[0])
    return now


def test_the_fastest_that_finds_enough_is_chosen(clock: list[float]) -> None:
    """Nine of ten need nprobe of at least 32 (6 bits + 3) and a factor of at least 4: 32 + 40 seconds for 6 queries."""
    found = tune(Scripted("IVF256,PQ4x4fs,RFlat", clock), np.ones((6, 1)), recall=0.9, k=10)
    assert (found.parameters, found.reached) == ("nprobe=32,k_factor_rf=4", True)
    assert found.recall == pytest.approx(0.9)
    assert found.queries_per_second == pytest.approx(6 / 72)
    assert found.summary.startswith("nprobe=32,k_factor_rf=4 is the fastest of")
    assert "recall@10 of 0.900" in found.summary
    assert Trial("nprobe=32,k_factor_rf=4", 0.9, 6 / 72) in found.tried
    # Where the factor allows no more, a higher nprobe is not tried to the end.
    assert "nprobe=256,k_factor_rf=1" not in {trial.parameters for trial in found.tried}


def test_unreachable_recall_is_reported(clock: list[float]) -> None:
    """With 16 lists nprobe ends at 16, which finds 5 + 3 of ten; factor 2 is the smallest that allows 8."""
    found = tune(Scripted("IVF16,PQ4x4fs,RFlat", clock), np.ones((6, 1)), recall=0.95, k=10)
    assert (found.parameters, found.recall, found.reached) == ("nprobe=16,k_factor_rf=2", 0.8, False)
    assert found.summary.startswith("No setting reaches a recall of 0.95; nprobe=16,k_factor_rf=2 finds most of")
    assert "another factory" in found.summary


@pytest.mark.parametrize("factory", ["HNSW8", "IVF16,Flat", "IVF16,PQ8x4fs,RFlat", "IVF16_HNSW8,SQ8,RFlat"])
def test_real_indexes_reach_the_recall(factory: str, vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    index = FaissIndex.build(vectors_Nd, factory=factory)
    seen: list[Trial] = []
    found = tune(index, queries_Bd, recall=0.9, k=K, on_trial=seen.append)
    exact_Bk = np.argsort(-(queries_Bd @ vectors_Nd.T), axis=1)[:, :K]
    _, rows_Bk = index.search(queries_Bd, K, parameters=found.parameters)
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(rows_Bk, exact_Bk, strict=True)])
    assert found.reached and found.recall == pytest.approx(recall) and recall >= 0.9
    assert tuple(seen) == found.tried
    assert "approximate" not in found.summary
    thorough = [trial for trial in found.tried if trial.recall >= 0.9]
    assert found.queries_per_second == max(trial.queries_per_second for trial in thorough)


def test_exact_ids_may_be_given(vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    """Against the opposite of the best nothing is found, whatever is set."""
    index = FaissIndex.build(vectors_Nd, factory="HNSW8")
    worst_Bk = np.argsort(queries_Bd @ vectors_Nd.T, axis=1)[:, :K]
    found = tune(index, queries_Bd, k=K, exact_ids_Bk=worst_Bk)
    assert (found.recall, found.reached) == (0, False)
    with pytest.raises(MismatchError, match=r"shape \[40, 10 or more\].*but got \[39, 10\]"):
        tune(index, queries_Bd, k=K, exact_ids_Bk=worst_Bk[1:])


def test_lossy_kinds_say_what_recall_is_measured_against(vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    index = FaissIndex.build(vectors_Nd, factory="SQ8")
    stored = tune(index, queries_Bd, k=K)
    assert (stored.parameters, stored.recall, stored.reached, len(stored.tried)) == ("", 1.0, True, 1)
    assert stored.summary.startswith("An index 'SQ8' has nothing to tune: recall@10 of 1.000")
    assert stored.summary.endswith("the vectors as this index stores them, which are approximate.")
    exact_Bk = np.argsort(-(queries_Bd @ vectors_Nd.T), axis=1)[:, :K]
    added = tune(index, queries_Bd, k=K, exact_ids_Bk=exact_Bk)
    assert added.recall < 1 and "approximate" not in added.summary


@pytest.mark.parametrize("factory", ["RaBitQ8", "IVF16,RaBitQ", "PCA8,Flat"])
def test_kinds_without_inner_product_scores_need_exact_ids(
    factory: str, vectors_Nd: np.ndarray, queries_Bd: np.ndarray
) -> None:
    """RaBitQ8 finds nearly all of the best, and hardly what the one bit that it gives back would find."""
    index = FaissIndex.build(vectors_Nd, factory=factory)
    with pytest.raises(UsageError, match=rf"{factory!r} does not score by the vectors that it gives back.*--reference"):
        tune(index, queries_Bd, k=K)
    exact_Bk = np.argsort(-(queries_Bd @ vectors_Nd.T), axis=1)[:, :K]
    found = tune(index, queries_Bd, k=K, exact_ids_Bk=exact_Bk, recall=0.9)
    assert found.reached == (factory == "RaBitQ8")


def test_flat_has_nothing_to_tune(vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    found = tune(FaissIndex.build(vectors_Nd), queries_Bd)
    assert (found.parameters, found.recall, found.reached) == ("", 1.0, True)


def test_fewer_vectors_than_results_are_all_found(vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    assert tune(FaissIndex.build(vectors_Nd[:5]), queries_Bd, k=20).recall == 1


def test_impossible_arguments_are_refused(vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    index = FaissIndex.build(vectors_Nd[:50])
    for recall in (0, 1.01, float("nan")):
        with pytest.raises(UsageError, match="recall to reach must be above 0 and at most 1"):
            tune(index, queries_Bd, recall=recall)
    with pytest.raises(UsageError, match="k must be at least 1, but got 0"):
        tune(index, queries_Bd, k=0)
    with pytest.raises(UsageError, match="got 0 vectors and 40 queries"):
        tune(FaissIndex.empty(D), queries_Bd)
    with pytest.raises(UsageError, match="got 50 vectors and 0 queries"):
        tune(index, queries_Bd[:0])


def test_recall_rises_with_each_parameter(vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    """What the sweep relies on."""
    index = FaissIndex.build(vectors_Nd, factory="IVF16,PQ8x4fs,RFlat")
    for name, values in {"nprobe": (1, 4, 16), "k_factor_rf": (1, 4, 16)}.items():
        other = "k_factor_rf=16" if name == "nprobe" else "nprobe=16"
        recalls = [recall_with(index, queries_Bd, vectors_Nd, f"{name}={value},{other}") for value in values]
        assert all(later > earlier for earlier, later in pairwise(recalls))


def recall_with(index: FaissIndex, queries_Bd: np.ndarray, vectors_Nd: np.ndarray, parameters: str) -> float:
    exact_Bk = np.argsort(-(queries_Bd @ vectors_Nd.T), axis=1)[:, :K]
    _, rows_Bk = index.search(queries_Bd, K, parameters=parameters)
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(rows_Bk, exact_Bk, strict=True)]))
