"""The table of kinds, measured: every column of every row on a small index that FAISS makes of it."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from indexes import FaissIndex, MismatchError, UsageError
from indexes.vectors.faiss.faiss_factory import (
    build_bytes,
    bytes_per_vector,
    choose_factory,
    properties,
    search_parameters,
    stores_exact_vectors,
)
from indexes.vectors.faiss.faiss_kinds import COARSE, FAISS_KINDS, TRANSFORMS, FaissKind, find_kind
from indexes.vectors.faiss.faiss_layers import faiss
from indexes.vectors.faiss.faiss_training import new_faiss_index

N, D, B, K = 800, 32, 30, 10
MOVES = 8
STRUCTURES = {"": "", "IVF": "IVF16,", "HNSW": "HNSW16,"}
ROWS = [
    pytest.param(row, f"{STRUCTURES[row.within]}{code}", id=f"{STRUCTURES[row.within]}{code}")
    for row in FAISS_KINDS
    for code in row.examples
]
# Of what cannot be built without harm there is only the name.
REFUSED = {
    "SQ0": "stores nothing of a vector",
    "IVF16,SQ0": "stores nothing of a vector but its cluster",
    "HNSW16,SQ0": "cannot be built",
    "HNSW16,SQtq4": "cannot be built",
    "HNSW16,SQtq2,RFlat": "cannot be built",
    "RR,HNSW16,SQtq3": "cannot be built",
    "SQ8,Refine(PQ8x4fs)": r"refines with 'PQ8x4fs', which cannot score again",
    "SQ8,Refine(RaBitQfs4)": "cannot score again",
    "SQ8,Refine(RQ4x4fs)": "cannot score again",
    "SQ8,Refine(IVF16,Flat)": "cannot score again",
    "SQ8,Refine(PCA16,PQ8x4fs)": "cannot score again",
    "SQ8,Refine(FlatIPPanorama8_512)": "scores other vectors than its own",
    "SQ8,Refine(FlatIPPanorama8)": "scores other vectors than its own",
    "IVF16,PQ8x4fs,Refine(FlatIPPanorama8)": "scores other vectors than its own",
    "PQ8x4fs_64": "gives no vectors back",
    "IVF16,PQ8x4fs_64": "gives no vectors back",
    "ITQ16,Flat": "does not undo",
    "NSG16,SQ8": "cannot be added to",
}
UNTESTED = [
    "ZnLattice4x10_4",
    "IVF16(SQ6),Flat",
    "SQ8,Refine(RaBitQ4)",
    "SQ8,Refine(HNSW8)",
    "RaBitQfs_64",
    "RQ4x4_Nqint8",
]


@pytest.fixture(scope="module")
def vectors_Nd() -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def long_Nd(vectors_Nd: np.ndarray) -> np.ndarray:
    """Of different lengths, and not around zero."""
    lengths = np.random.default_rng(3).uniform(0.5, 1.5, (N, 1))
    return (vectors_Nd * lengths + 0.05).astype(np.float32)


@pytest.fixture(scope="module")
def queries_Bd() -> np.ndarray:
    queries = np.random.default_rng(1).standard_normal((B, D)).astype(np.float32)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def exhaustive(factory: str) -> str:
    """Parameters with which a search looks everywhere."""
    thorough = {"nprobe": 16, "efSearch": 200, "quantizer_efSearch": 64, "k_factor_rf": 20, "qb": 8}
    return ",".join(f"{name}={thorough[name]}" for name in search_parameters(factory))


def built(factory: str, vectors_Nd: np.ndarray, trained: Path | None = None) -> FaissIndex:
    """As FAISS makes it, whatever the table says; before vectors come in it is saved, if a file is named."""
    with threadpool_limits(1):
        index = FaissIndex(new_faiss_index(vectors_Nd.shape[1], factory), factory)
        index.train(vectors_Nd)
        if trained is not None:
            index.save(trained)
        index.add(vectors_Nd)
    return index


def recall(index: FaissIndex, queries_Bd: np.ndarray, vectors_Nd: np.ndarray) -> float:
    exact_Bk = np.argsort(-(queries_Bd @ vectors_Nd.T), axis=1)[:, :K]
    _, rows_Bk = index.search(queries_Bd, K, parameters=exhaustive(index.factory), prefilter=False)
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(rows_Bk, exact_Bk, strict=True)]))


def vectors_given(index: FaissIndex, vectors_Nd: np.ndarray) -> str:
    """What `reconstruct` gives: "same", "near" or "none"."""
    try:
        given_Nd = index.reconstruct(np.arange(len(index)))
    except RuntimeError:
        return "none"
    if np.array_equal(given_Nd, vectors_Nd):
        return "same"
    lengths = np.linalg.norm(given_Nd, axis=1) * np.linalg.norm(vectors_Nd, axis=1)
    return "near" if float(((given_Nd * vectors_Nd).sum(axis=1) / lengths).mean()) > 0.6 else "none"


def scores_given(index: FaissIndex, queries_Bd: np.ndarray) -> str:
    """How far search scores are from inner products with reconstructed vectors: "exact", "rounded" or "other"."""
    scores_Bk, rows_Bk = index.search(queries_Bd, K, parameters=exhaustive(index.factory), prefilter=False)
    given_BKd = index.reconstruct(rows_Bk.ravel()).reshape(*rows_Bk.shape, -1)
    difference = float(np.abs(scores_Bk - np.einsum("bd,bkd->bk", queries_Bd, given_BKd)).max())
    return "exact" if difference < 1e-5 else "rounded" if difference < 0.015 else "other"


def moved(index: FaissIndex, trained: Path) -> FaissIndex:
    """Eight times: what is read back goes into an index with the same clusters and codes."""
    with threadpool_limits(1):
        for _ in range(MOVES):
            given_Nd = index.reconstruct(np.arange(len(index)))
            index = FaissIndex.load(trained, factory=index.factory)
            index.add(given_Nd)
    return index


# ---------------------------------------------------------------------------------------------------------
# The faults that the table is for
# ---------------------------------------------------------------------------------------------------------


def unit(count: int, dimension: int) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("prefilter", [None, False])
def test_a_panorama_finds_its_own_vectors(prefilter: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS 1.15.1: a subclass of IndexFlat that keeps blocks of levels, which the bfloat16 screen read as rows."""
    monkeypatch.setattr("indexes.vectors.faiss.faiss_index.has_fast_bfloat16", lambda: True)
    vectors_Nd = unit(5000, 64)
    index = FaissIndex.build(vectors_Nd, factory="FlatIPPanorama8")
    assert (index.search(vectors_Nd[:100], 1, prefilter=prefilter)[1][:, 0] == np.arange(100)).mean() == 1.0
    with pytest.raises(UsageError, match='Only a "Flat" index can be pre-filtered'):
        index.search(vectors_Nd[:100], 1, prefilter=True)
    with pytest.raises(
        UsageError, match=r"k must be at most 1,024, the most .*'FlatIPPanorama8' returns, but got 1025"
    ):
        index.search(vectors_Nd[:1], 1025)


def test_a_file_of_another_class_is_not_taken_for_its_base(vectors_Nd: np.ndarray, tmp_path: Path) -> None:
    """faiss.contrib.factory_tools of FAISS 1.15.1 calls a FlatIPPanorama8 "Flat"."""
    FaissIndex.build(vectors_Nd, factory="FlatIPPanorama8").save(tmp_path / "panorama")
    loaded = FaissIndex.load(tmp_path / "panorama")
    assert (loaded.factory, loaded.properties.is_matrix) == ("IndexFlatIPPanorama", False)
    np.testing.assert_array_equal(loaded.search(vectors_Nd, 1)[1][:, 0], np.arange(N))
    with pytest.raises(MismatchError, match="holds a IndexFlatIPPanorama where IndexFlat or IndexFlatIP belongs"):
        FaissIndex.load(tmp_path / "panorama", factory="Flat")


@pytest.mark.parametrize(("code", "stable"), [("SQtq2", False), ("SQtq4", False), ("SQtqmse4", True), ("SQ4", True)])
def test_turboquant_codes_are_not_stable(code: str, stable: bool) -> None:
    for factory in (code, f"IVF16,{code}", f"RR,{code}", f"SQ8,Refine({code})"):
        assert properties(factory).is_stable == stable
    assert properties(f"{code},RFlat").is_stable


@pytest.mark.parametrize("factory", ["IVF16,SQ0", "IVF16,SQ0,RFlat"])
def test_lists_without_clusters_are_not_trained(factory: str) -> None:
    """FAISS 1.15.1 calls an inverted file of no bits trained as it is made, and then finds row -1 only."""
    raw = new_faiss_index(D, factory)
    assert raw.is_trained and not FaissIndex(raw, factory).is_trained


def test_ivf_without_codes_needs_refinement(vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    """Every vector of a cluster scores the same, so with all of them scored again the results are exact."""
    with pytest.raises(UsageError, match="'IVF16,SQ0' stores nothing of a vector but its cluster"):
        FaissIndex.build(vectors_Nd, factory="IVF16,SQ0")
    index = FaissIndex.build(vectors_Nd, factory="IVF16,SQ0,RFlat")
    assert (index.search(queries_Bd, K)[1] >= 0).all()
    scores_Bk, rows_Bk = index.search(queries_Bd, K, parameters=f"nprobe=16,k_factor_rf={N // K}")
    products_BN = queries_Bd @ vectors_Nd.T
    np.testing.assert_array_equal(rows_Bk, np.argsort(-products_BN, axis=1)[:, :K])
    np.testing.assert_allclose(scores_Bk, np.sort(products_BN, axis=1)[:, ::-1][:, :K], rtol=1e-5)
    np.testing.assert_array_equal(index.reconstruct(np.arange(N)), vectors_Nd)
    assert bytes_per_vector("IVF16,SQ0,RFlat", D) == bytes_per_vector("IVF16,Flat", D)


def test_lists_that_faiss_cannot_map_are_read(vectors_Nd: np.ndarray, tmp_path: Path) -> None:
    """Every change of an index opens it memory-mapped; FAISS 1.15.1 has no reader for these lists with IO_FLAG_MMAP."""
    index = FaissIndex.build(vectors_Nd, factory="IVF16,FlatPanorama8")
    index.save(tmp_path / "i")
    for factory in ("IVF16,FlatPanorama8", None):
        loaded = FaissIndex.load(tmp_path / "i", mmap=True, factory=factory)
        np.testing.assert_array_equal(loaded.search(vectors_Nd[:9], K), index.search(vectors_Nd[:9], K))


@pytest.mark.parametrize("memory", [10**p for p in range(4, 12)])
def test_auto_chooses_types_whose_scores_are_inner_products(memory: int) -> None:
    for n, dimension in product((1, 10**4, 10**6, 10**8), (8, 384)):
        factory, _ = choose_factory(n, dimension, memory=memory)
        found = properties(factory)
        assert (found.untested, found.refused) == ("", "") and found.scores in ("exact", "rounded")


# ---------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "factory"), ROWS)
def test_every_column_of_every_storage(
    row: FaissKind,
    factory: str,
    vectors_Nd: np.ndarray,
    long_Nd: np.ndarray,
    queries_Bd: np.ndarray,
    tmp_path: Path,
) -> None:
    raw = new_faiss_index(D, factory)
    assert type(faiss.downcast_index(raw)).__name__ in row.classes
    assert FaissIndex(raw, factory).is_trained == row.is_trained
    index = built(factory, vectors_Nd, tmp_path / "trained")
    assert index.is_trained
    assert vectors_given(index, vectors_Nd) == row.vectors
    if row.is_matrix:
        stored = faiss.rev_swig_ptr(index._index.get_xb(), N * D).reshape(N, D)
        np.testing.assert_array_equal(stored, vectors_Nd)
    assert_batches_and_single_queries_agree(index, queries_Bd)
    assert_only_its_parameters(index, row, queries_Bd)
    before = recall(index, queries_Bd, vectors_Nd)
    assert before > 0.12  # fifteen times chance, for the coarsest codes of two bytes
    assert_files_agree(index, row, queries_Bd, tmp_path)
    # What a build of an index directory asks first; the sizes themselves are in tests/test_faiss_factory.py.
    assert build_bytes(factory, N, D) > N * bytes_per_vector(factory, D) > 0
    if row.vectors != "none":
        assert scores_given(built(factory, long_Nd), queries_Bd) == row.scores
        after = recall(moved(index, tmp_path / "trained"), queries_Bd, vectors_Nd)
        assert (after > 0.9 * before) == row.is_stable


def assert_batches_and_single_queries_agree(index: FaissIndex, queries_Bd: np.ndarray) -> None:
    settings = {"parameters": exhaustive(index.factory), "prefilter": False}
    scores_Bk, rows_Bk = index.search(queries_Bd, K, **settings)
    assert (rows_Bk >= 0).all()
    single = [index.search(queries_Bd[b : b + 1], K, **settings) for b in range(len(queries_Bd))]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in single]), rows_Bk)
    np.testing.assert_allclose(np.concatenate([scores for scores, _ in single]), scores_Bk, atol=1e-6)


def assert_only_its_parameters(index: FaissIndex, row: FaissKind, queries_Bd: np.ndarray) -> None:
    structure = {"": set(), "IVF": {"nprobe"}, "HNSW": {"efSearch"}}[row.within]
    named = {part.partition("=")[0] for part in index.parameters.split(",") if part}
    assert named == set(search_parameters(index.factory)) == structure | set(row.parameters)
    for name in ("nprobe", "efSearch", "k_factor_rf", "qb"):
        if name in named:
            index.search(queries_Bd, 1, parameters=f"{name}=3")
        else:
            with pytest.raises(UsageError, match=f"got '{name}'"):
                index.search(queries_Bd, 1, parameters=f"{name}=3")


def assert_files_agree(index: FaissIndex, row: FaissKind, queries_Bd: np.ndarray, tmp_path: Path) -> None:
    index.save(tmp_path / "saved")
    expected = index.search(queries_Bd, K, parameters=exhaustive(index.factory), prefilter=False)
    if row.vectors == "none":  # refused as they are; what refines them keeps them in the same file
        return
    for mmap in (False, True):
        loaded = FaissIndex.load(tmp_path / "saved", mmap=mmap, factory=index.factory)
        np.testing.assert_array_equal(loaded.search(queries_Bd, K, parameters=exhaustive(index.factory)), expected)
        np.testing.assert_array_equal(loaded.reconstruct([5, 0, 99]), index.reconstruct([5, 0, 99]))
    if row.within == "IVF" and not row.maps_lists:
        with pytest.raises(RuntimeError):
            faiss.read_index(str(tmp_path / "saved"), faiss.IO_FLAG_MMAP)


@pytest.mark.parametrize(
    ("step", "name"), [pytest.param(step, name, id=name) for step in TRANSFORMS for name in step.examples]
)
def test_every_column_of_every_transform(
    step: object, name: str, vectors_Nd: np.ndarray, long_Nd: np.ndarray, queries_Bd: np.ndarray, tmp_path: Path
) -> None:
    row = next(one for one in TRANSFORMS if one is step)
    factory = f"{name},Flat"
    assert FaissIndex(new_faiss_index(D, factory), factory).is_trained == row.is_trained
    index = built(factory, vectors_Nd, tmp_path / "trained")
    assert_batches_and_single_queries_agree(index, queries_Bd)
    if row.vectors == "none":
        if not name.startswith("PCAW"):  # which gives something, and has its reason in the table
            assert vectors_given(index, vectors_Nd) == "none"
        with pytest.raises(UsageError, match=re.escape(row.irreversible)):
            FaissIndex.empty(D, factory)
        return
    assert not row.irreversible
    assert vectors_given(index, vectors_Nd) == row.vectors
    assert scores_given(built(factory, long_Nd), 1.5 * queries_Bd) == row.scores
    before = recall(index, queries_Bd, vectors_Nd)
    assert recall(moved(index, tmp_path / "trained"), queries_Bd, vectors_Nd) > 0.9 * before


@pytest.mark.parametrize("coarse", [name for names in COARSE.values() for name in names])
def test_every_index_that_finds_clusters(coarse: str, vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    index = FaissIndex.build(vectors_Nd, factory=f"IVF16({coarse}),Flat")
    assert (stores_exact_vectors(index.factory), recall(index, queries_Bd, vectors_Nd)) == (True, 1.0)
    np.testing.assert_array_equal(index.reconstruct(np.arange(N)), vectors_Nd)


@pytest.mark.parametrize(
    "code", [code for row in FAISS_KINDS if row.can_refine for code in row.examples if not row.within]
)
def test_refining_index_scores_as_on_its_own(
    code: str, vectors_Nd: np.ndarray, long_Nd: np.ndarray, queries_Bd: np.ndarray, tmp_path: Path
) -> None:
    factory, alone = f"SQ8,Refine({code})", find_kind("", code)
    assert alone is not None
    index = FaissIndex.build(vectors_Nd, factory=factory)
    assert vectors_given(index, vectors_Nd) == alone.vectors == properties(factory).vectors
    assert scores_given(built(factory, long_Nd), queries_Bd) == alone.scores == properties(factory).scores
    assert_batches_and_single_queries_agree(index, queries_Bd)
    best_Bk = np.argsort(-(queries_Bd @ index.reconstruct(np.arange(N)).T), axis=1)[:, :1]
    np.testing.assert_array_equal(index.search(queries_Bd, 1, parameters=f"k_factor_rf={N}")[1], best_Bk)


@pytest.mark.parametrize("factory", REFUSED)
@pytest.mark.parametrize("allow_untested", [False, True])
def test_refused_kinds_are_never_built(factory: str, allow_untested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> None:
        raise AssertionError("FAISS was asked to make it")

    monkeypatch.setattr(faiss, "index_factory", build)
    with pytest.raises(UsageError, match=f"{re.escape(repr(factory))} .*{REFUSED[factory]}"):
        FaissIndex.empty(D, factory, allow_untested=allow_untested)


@pytest.mark.parametrize("factory", UNTESTED[1:])
def test_untested_kinds_are_refused_until_allowed(
    factory: str, vectors_Nd: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError, match=r"is untested: .* is not in the table .*--allow_untested"):
        FaissIndex.build(vectors_Nd, factory=factory)
    index = FaissIndex.build(vectors_Nd, factory=factory, allow_untested=True)
    assert (index.properties.scores, index.properties.is_matrix) == ("other", False) or "(SQ6)" in factory
    index.save(tmp_path / "i")
    FaissIndex.load(tmp_path / "i", factory=factory, allow_untested=True)
    assert caplog.records == []
    loaded = FaissIndex.load(tmp_path / "i", factory=factory)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "is untested" in caplog.text
    np.testing.assert_array_equal(loaded.search(vectors_Nd[:9], K), index.search(vectors_Nd[:9], K))


def test_allow_untested_does_not_bypass_faults_of_faiss() -> None:
    with pytest.raises(UsageError, match="compares by distance"):
        FaissIndex.empty(D, UNTESTED[0], allow_untested=True)


@pytest.mark.parametrize("factory", ["IVF1k,Flat", "IVF16_HNSW8,SQ8", "HR7,SQ8", "L2Norm,Flat"])
def test_alternative_names_of_faiss_are_known(factory: str) -> None:
    assert (properties(factory).untested, properties(factory).refused) == ("", "")
    FaissIndex.empty(D, factory)
