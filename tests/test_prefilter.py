"""Exact search by matrix products: what FAISS finds, score by score, in memory that does not grow with the index."""

import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes import FaissIndex, UsageError
from indexes.directory.segments import Segments
from indexes.vectors import prefilter as prefilter_module
from indexes.vectors.faiss import faiss_index
from indexes.vectors.faiss.faiss_files import write_flat
from indexes.vectors.faiss.faiss_layers import faiss
from indexes.vectors.prefilter import Prefilter
from indexes.vectors.running_best import RunningBest
from indexes.vectors.score_bound import Extent, ScoreBound

DTYPES = ["float32", "bfloat16"]


def clustered(count: int, dimension: int, *, seed: int, spread: float = 0.5) -> np.ndarray:
    """Unit vectors around a few centres."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, dimension))
    vectors = centres[random.integers(0, 20, count)] + spread * random.standard_normal((count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def nearly_equal(count: int, dimension: int = 64) -> np.ndarray:
    """Unit vectors that differ by less than bfloat16 can tell."""
    random = np.random.default_rng(2)
    near = np.ones((count, dimension)) / dimension**0.5 + 1e-4 * random.standard_normal((count, dimension))
    return near.astype(np.float32)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the products, whatever this CPU is faster with and however few queries there are."""
    monkeypatch.setattr(faiss_index, "has_fast_bfloat16", lambda: request.param == "bfloat16")
    monkeypatch.setattr(faiss_index, "_BFLOAT16_QUERIES", 1)
    return str(request.param)


@pytest.fixture(params=["in memory", "mapped"])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Makes a "Flat" index of vectors, in memory or in a mapped file."""

    def make(vectors_Nd: np.ndarray) -> FaissIndex:
        if request.param == "in memory":
            return FaissIndex.build(vectors_Nd)
        write_flat(tmp_path / "flat", [vectors_Nd], vectors_Nd.shape[1])
        return FaissIndex.load(tmp_path / "flat", mmap=True)

    return make


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many queries were searched by products, and how many by FAISS."""
    seen = {"products": 0, "faiss": 0}
    candidates, search = Prefilter.candidates, faiss.IndexFlat.search

    def by_products(self: Prefilter, queries_Bd: np.ndarray, *args: Any, **options: Any) -> Any:
        seen["products"] += len(queries_Bd)
        return candidates(self, queries_Bd, *args, **options)

    def by_faiss(self: faiss.IndexFlat, queries_Bd: np.ndarray, k: int, **options: Any) -> Any:
        seen["faiss"] += len(queries_Bd)
        return search(self, queries_Bd, k, **options)

    monkeypatch.setattr(Prefilter, "candidates", by_products)
    monkeypatch.setattr(faiss.IndexFlat, "search", by_faiss)
    return seen


def assert_results_of_faiss(index: FaissIndex, queries_Bd: np.ndarray, k: int) -> None:
    """The very scores of FAISS, and the same ids, where no further vector has the score of the last."""
    scores_Bk, rows_Bk = index.search(queries_Bd, k, prefilter=True)
    expected_Bk, expected_rows_Bk = index.search(queries_Bd, k + 1, prefilter=False)
    np.testing.assert_array_equal(scores_Bk, expected_Bk[:, :k])
    clear_B = expected_Bk[:, k - 1] > expected_Bk[:, k]
    assert clear_B.mean() > 0.8
    np.testing.assert_array_equal(rows_Bk[clear_B], expected_rows_Bk[clear_B, :k])


# -- what FAISS finds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 20])
def test_products_find_what_faiss_finds_and_prove_it(k: int, dtype: str, build: Any, looks: dict[str, int]) -> None:
    index, queries_Bd = build(clustered(5000, 64, seed=0)), clustered(37, 64, seed=1)
    index.search(queries_Bd, k, batch_size=10, prefilter=True)
    assert looks["faiss"] == 0 and 37 <= looks["products"] < 50
    assert_results_of_faiss(index, queries_Bd, k)


def test_negative_scores_and_vectors_of_any_length(dtype: str, build: Any) -> None:
    random = np.random.default_rng(0)
    vectors_Nd = (random.standard_normal((2000, 24)) * np.exp(random.normal(0, 1.5, (2000, 1)))).astype(np.float32)
    queries_Bd = (random.standard_normal((15, 24)) * np.exp(random.normal(0, 1.5, (15, 1)))).astype(np.float32)
    assert_results_of_faiss(build(vectors_Nd), queries_Bd, 5)
    assert_results_of_faiss(build(-np.abs(vectors_Nd)), np.abs(queries_Bd), 5)
    assert_results_of_faiss(build(vectors_Nd * np.float32(1e4)), queries_Bd, 5)


def test_near_duplicates_are_found_by_products_in_float32(build: Any, dtype: str, looks: dict[str, int]) -> None:
    near_Nd = nearly_equal(3000)
    index, queries_Bd = build(near_Nd), near_Nd[:6]
    index.search(queries_Bd, 20, prefilter=True)
    assert looks == {"products": 6 if dtype == "float32" else 12, "faiss": 0}
    assert_results_of_faiss(index, queries_Bd, 20)


@pytest.mark.parametrize("dtype", ["bfloat16"], indirect=True)
def test_control_without_the_bound_near_duplicates_are_missed(
    dtype: str, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trusting(self: ScoreBound, scores_Bx: np.ndarray) -> np.ndarray:
        return np.zeros_like(scores_Bx)

    monkeypatch.setattr(ScoreBound, "slack", trusting)
    near_Nd = nearly_equal(3000)
    with pytest.raises(AssertionError):
        assert_results_of_faiss(build(near_Nd), near_Nd[:6], 20)


def test_more_equal_vectors_than_candidates_are_left_to_faiss(dtype: str, build: Any, looks: dict[str, int]) -> None:
    vectors_Nd = clustered(4000, 16, seed=3)
    vectors_Nd[500:3000] = vectors_Nd[0]
    queries_Bd = np.concatenate([vectors_Nd[:1], vectors_Nd[3500:3505]])
    index = build(vectors_Nd)
    scores_Bk, rows_Bk = index.search(queries_Bd, 10, prefilter=True)
    assert looks["faiss"] == 1
    np.testing.assert_array_equal(scores_Bk, index.search(queries_Bd, 10, prefilter=False)[0])
    assert set(rows_Bk[0].tolist()) <= {0, *range(500, 3000)}


def test_equal_scores_are_ordered_by_row(dtype: str, build: Any) -> None:
    twins_Nd = clustered(700, 16, seed=4)
    twins_Nd[[3, 50, 7, 200]] = twins_Nd[7] * 10
    index = build(twins_Nd)
    assert index.search(twins_Nd[[7, 7]], 2, prefilter=True)[1].tolist() == [[3, 7]] * 2
    assert index.search(twins_Nd[[7, 7]], 4, prefilter=True)[1].tolist() == [[3, 7, 50, 200]] * 2


def test_scores_that_overflow_are_left_to_faiss(dtype: str, build: Any, looks: dict[str, int]) -> None:
    vectors_Nd = clustered(700, 16, seed=4) * np.float32(1e30)
    index, queries_Bd = build(vectors_Nd), vectors_Nd[:3] * np.float32(1e-25)
    scores_Bk, rows_Bk = index.search(queries_Bd, 4, prefilter=True)
    assert looks["faiss"] == 3
    for found, expected in zip((scores_Bk, rows_Bk), index.search(queries_Bd, 4, prefilter=False), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("order", ["falling", "rising"])
def test_vectors_in_order_of_their_scores(order: str, dtype: str, build: Any) -> None:
    """Rising scores: every vector is among the best so far."""
    vectors_Nd = clustered(6000, 32, seed=8)
    query = vectors_Nd[:1]
    sorted_Nd = vectors_Nd[np.argsort((vectors_Nd @ query[0]) * (1 if order == "rising" else -1))]
    assert_results_of_faiss(build(sorted_Nd), np.concatenate([query, clustered(5, 32, seed=9)]), 7)


def test_segments_with_deleted_rows(dtype: str, tmp_path: Path) -> None:
    """Two mapped segments; the best rows of each query are deleted, so that each is searched more than once."""
    vectors_Nd, queries_Bd = clustered(6000, 32, seed=5), clustered(9, 32, seed=6)
    parts = []
    for number, rows in enumerate((slice(0, 4000), slice(4000, 6000))):
        write_flat(tmp_path / str(number), [vectors_Nd[rows]], 32)
        parts.append(FaissIndex.load(tmp_path / str(number), mmap=True))
    products_BN = queries_Bd @ vectors_Nd.T
    deleted = np.unique(np.argsort(-products_BN, axis=1)[:, :30])
    live = np.delete(np.arange(6000), deleted)
    expected_Bk = np.argsort(-products_BN[:, live], axis=1)[:, :10]
    found_Bk = Segments(parts, deleted).search(queries_Bd, 10)[1]
    np.testing.assert_array_equal(found_Bk, expected_Bk)
    assert (Segments(parts).search(queries_Bd, 10)[1] != found_Bk).any()


def test_vectors_that_were_added_later_are_found(dtype: str, looks: dict[str, int]) -> None:
    vectors_Nd = clustered(600, 64, seed=3)
    index = FaissIndex.build(vectors_Nd[:500])
    index.search(vectors_Nd[550:560], 1, prefilter=True)
    index.add(vectors_Nd[500:] * np.float32(3))  # longer than all before
    scores_B1, ids_B1 = index.search(vectors_Nd[550:560], 1, prefilter=True)
    assert looks["products"] >= 20
    np.testing.assert_array_equal(scores_B1, index.search(vectors_Nd[550:560], 1, prefilter=False)[0])
    assert (ids_B1 >= 500).all()


def test_small_indexes_are_left_to_faiss(dtype: str, build: Any, looks: dict[str, int]) -> None:
    vectors_Nd = clustered(60, 16, seed=1)
    index = build(vectors_Nd)
    for k in (5, 70):
        for found, expected in zip(
            index.search(vectors_Nd, k, prefilter=True), index.search(vectors_Nd, k, prefilter=False), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    assert looks["products"] == 0


def test_searches_from_several_threads(dtype: str, build: Any) -> None:
    """The first searches measure the vectors, at the same time."""
    vectors_Nd, queries_Bd = clustered(5000, 32, seed=1), clustered(40, 32, seed=2)
    expected = FaissIndex.build(vectors_Nd).search(queries_Bd, 5, prefilter=False)
    index = build(vectors_Nd)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: index.search(queries_Bd, 5, prefilter=True), range(12)))
    for found in results:
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_array_equal(found[0], expected[0])


def test_read_only_queries(dtype: str, build: Any) -> None:
    vectors_Nd = clustered(700, 16, seed=4)
    queries_Bd = vectors_Nd[:9].copy()
    queries_Bd.setflags(write=False)
    assert build(vectors_Nd).search(queries_Bd, 1, prefilter=True)[1][:, 0].tolist() == list(range(9))


# -- when it is used -------------------------------------------------------------------------------------------


def test_products_are_chosen_where_they_pay(monkeypatch: pytest.MonkeyPatch, looks: dict[str, int]) -> None:
    monkeypatch.setattr(faiss_index, "_PREFILTERED_FLOATS", 4096 * 16)
    monkeypatch.setattr(faiss_index, "_PREFILTERED_PRODUCTS", 4096 * 16 * 3)
    index, queries_Bd = FaissIndex.build(clustered(4096, 16, seed=4)), clustered(64, 16, seed=5)
    copies: list[bool] = []
    copy = Prefilter.copy
    monkeypatch.setattr(Prefilter, "copy", lambda self: copies.append(True) or copy(self))
    for fast, queries, products, copied in [
        (False, 64, 64, 0),
        (True, 8, 8, 0),
        (True, 64, 64, 1),
        (False, 3, 3, 0),
        (False, 2, 0, 0),
        (False, 1, 0, 0),
    ]:
        monkeypatch.setattr(faiss_index, "has_fast_bfloat16", lambda fast=fast: fast)
        looks["products"] = 0
        copies.clear()
        index.search(queries_Bd[:queries], 3)
        assert (looks["products"], len(copies)) == (products, copied)
    looks["products"] = 0
    index.search(queries_Bd, 3, prefilter=False)
    index.search(queries_Bd, 300)  # too many candidates
    FaissIndex.build(clustered(4000, 16, seed=4)).search(queries_Bd, 3)
    assert looks["products"] == 0
    with pytest.raises(UsageError, match="Only a \"Flat\" index can be pre-filtered, but this one is 'HNSW8'"):
        FaissIndex.build(clustered(50, 16, seed=4), factory="HNSW8").search(queries_Bd, 3, prefilter=True)


def test_a_mapped_index_keeps_no_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(faiss_index, "has_fast_bfloat16", lambda: True)
    monkeypatch.setattr(Prefilter, "copy", lambda self: pytest.fail("a mapped index was copied"))
    write_flat(tmp_path / "flat", [clustered(700, 16, seed=4)], 16)
    FaissIndex.load(tmp_path / "flat", mmap=True).search(clustered(64, 16, seed=5), 3, prefilter=True)


# -- the bound -------------------------------------------------------------------------------------------------


def excluded_beyond(candidates: Any, products_BN: np.ndarray) -> np.ndarray:
    """How far the best vector that is no candidate lies above the ceiling: [B]."""
    others_BN = products_BN.copy()
    for query, rows_c in enumerate(candidates.rows_Bc):
        others_BN[query, rows_c[rows_c >= 0]] = -np.inf
    return others_BN.max(axis=1) - candidates.ceilings_B


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    dimension=st.integers(1, 90),
    length=st.sampled_from([1e-3, 1.0, 1e3]),
    bfloat16=st.booleans(),
    copied=st.booleans(),
)
def test_no_excluded_vector_scores_above_the_ceiling(
    seed: int, dimension: int, length: float, bfloat16: bool, copied: bool
) -> None:
    random = np.random.default_rng(seed)
    vectors_Nd = (random.standard_normal((300, dimension)) * length).astype(np.float32)
    queries_Bd = random.standard_normal((9, dimension)).astype(np.float32)
    products_BN = queries_Bd.astype(np.float64) @ vectors_Nd.astype(np.float64).T
    prefilter = Prefilter(vectors_Nd)
    if copied:
        prefilter.copy()
    for _ in range(2):  # before and after the vectors were measured
        found = prefilter.candidates(queries_Bd, 3, 12, bfloat16=bfloat16)
        assert (excluded_beyond(found, products_BN) <= 0).all()
        exact_Bc = np.take_along_axis(products_BN, np.maximum(found.rows_Bc, 0), axis=1)
        known_Bc = found.rows_Bc >= 0
        assert ((found.bound.lowest(found.scores_Bc) <= exact_Bc) | ~known_Bc).all()
        assert ((exact_Bc <= found.bound.highest(found.scores_Bc)) | ~known_Bc).all()
    least_B = np.sort(products_BN, axis=1)[:, -4].astype(np.float32)
    found = prefilter.candidates(queries_Bd, 3, 40, least_B=least_B)
    assert (excluded_beyond(found, products_BN) <= 0).all()


def test_control_a_bound_of_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScoreBound, "slack", lambda self, scores_Bx: np.zeros_like(scores_Bx))
    vectors_Nd = nearly_equal(300)
    found = Prefilter(vectors_Nd).candidates(vectors_Nd[:9], 3, 12, bfloat16=True)
    products_BN = vectors_Nd[:9].astype(np.float64) @ vectors_Nd.astype(np.float64).T
    assert (excluded_beyond(found, products_BN) > 0).any()


def test_float32_that_torch_may_round_is_bounded_as_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors_Nd = clustered(300, 16, seed=1)
    assert Prefilter(vectors_Nd).candidates(vectors_Nd[:3], 2, 5).bound.rounding == 0
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.set_float32_matmul_precision("medium")
    try:
        assert Prefilter(vectors_Nd).candidates(vectors_Nd[:3], 2, 5).bound.rounding > 2**-8
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.matmul.fp32_precision = before


# -- blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3, 31, 200])
def test_the_size_of_blocks_does_not_change_what_is_found(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors_Nd, queries_Bd = clustered(200, 24, seed=6), clustered(9, 24, seed=7)
    expected_Bc = np.argsort(-(queries_Bd @ vectors_Nd.T), axis=1)[:, :12]
    monkeypatch.setattr(prefilter_module, "_LARGEST_BLOCK", block)
    monkeypatch.setattr(prefilter_module, "_FIRST_SCORES", 1)
    for bfloat16 in (False, True):
        prefilter = Prefilter(vectors_Nd)
        for _ in range(2):
            found = prefilter.candidates(queries_Bd, 5, 12, bfloat16=bfloat16)
            if bfloat16:
                assert np.mean([len(set(a) & set(b)) for a, b in zip(found.rows_Bc, expected_Bc, strict=True)]) > 9
            else:
                np.testing.assert_array_equal(found.rows_Bc[:, :5], expected_Bc[:, :5])


def allocated(search: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that a search takes: of numpy at its peak, of all tensors that it makes, and of a copy of a block."""
    sizes, blocks = [0], [0]
    empty, including = torch.empty, Extent.including

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        tensor = empty(*args, **options)
        sizes.append(tensor.nbytes)
        return tensor

    def measured(self: Extent, exact_nd: torch.Tensor, factors_nd: torch.Tensor) -> Extent:
        blocks.append(exact_nd.nbytes)
        return including(self, exact_nd, factors_nd)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty", counted)
        patched.setattr(Extent, "including", measured)
        tracemalloc.start()
        try:
            search()
            return tracemalloc.get_traced_memory()[1] + sum(sizes) + max(blocks)
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_memory_does_not_grow_with_a_mapped_index(
    bfloat16: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In blocks of a MB, four times the vectors take the same memory; a copy of them is noticed."""
    monkeypatch.setattr(prefilter_module, "SEARCH_BYTES", 2**20)
    queries_Bd, peaks = clustered(32, 256, seed=50), []
    for number, count in enumerate((2, 8)):
        write_flat(tmp_path / str(number), (clustered(2000, 256, seed=seed) for seed in range(count)), 256)
        index = FaissIndex.load(tmp_path / str(number), mmap=True)
        prefilter = Prefilter(index._stored())
        search = partial(prefilter.candidates, queries_Bd, 5, 69, bfloat16=bfloat16)
        peaks.append(allocated(search, monkeypatch))
    assert 2**19 < peaks[1] < 1.1 * peaks[0] < 3 * 2**20
    assert allocated(prefilter.copy, monkeypatch) > 7.5 * 2**20


# -- the running best ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["random", "rising", "falling", "equal"])
@pytest.mark.parametrize("blocks", [[100], [40, 40, 20], [1] * 100])
def test_running_best_is_the_best_of_all(order: str, blocks: list[int]) -> None:
    scores_BN = np.random.default_rng(1).standard_normal((6, 100)).astype(np.float32)
    if order == "equal":
        scores_BN = np.round(scores_BN)
    elif order != "random":
        scores_BN = np.sort(scores_BN, axis=1) * (1 if order == "rising" else -1)
    best, start = RunningBest(6, 9, 4, None), 0
    for size in blocks:
        best.add(np.ascontiguousarray(scores_BN[:, start : start + size]), start)
        start += size
    expected_Bc = -np.sort(-scores_BN, axis=1)[:, :9]
    np.testing.assert_array_equal(best.scores_Bc, expected_Bc)
    np.testing.assert_array_equal(np.take_along_axis(scores_BN, best.rows_Bc, axis=1), expected_Bc)
    assert all(len(set(rows)) == 9 for rows in best.rows_Bc.tolist())
    np.testing.assert_array_equal(best.floors_B, expected_Bc[:, -1])


def test_running_best_leaves_out_what_no_error_can_save() -> None:
    """An error of 0.1 on either side: what lies 0.2 or more below the second best is left out from the next block."""
    best = RunningBest(1, 5, 2, ScoreBound(np.array([0.1], np.float32), 0.0))
    best.add(np.array([[1.0, 0.9, 0.5]], np.float32), 0)
    assert best.floors_B[0] == pytest.approx(0.7)
    wide_1n = np.zeros((1, 40), np.float32)
    wide_1n[0, :2] = 0.69, 0.71
    best.add(wide_1n, 3)
    assert best.rows_Bc.tolist() == [[0, 1, 4, 2, -1]]
    wide_1n[0, :2] = 3, 2
    best.add(wide_1n, 43)
    assert best.floors_B[0] == pytest.approx(1.8)
    assert best.rows_Bc.tolist() == [[43, 44, 0, 1, 4]]
