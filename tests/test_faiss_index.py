"""FAISS against numpy: inner products, best first, and an honest answer when there is too little."""

import errno
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from indexes import DataError, FaissIndex, MismatchError, ResourceError, UsageError
from indexes.vectors.faiss.faiss_files import _check_flat_layout, write_flat
from indexes.vectors.faiss.faiss_layers import faiss

N, D, B, K = 300, 16, 7, 5
EXACT = ["Flat", "HNSW16", "IVF4,Flat"]
REFINED = [
    "IVF16,PQ8x4fs,RFlat",
    "IVF16,PQ8x4fs,Refine(SQ8)",
    "OPQ8,IVF16,PQ8x4fs,RFlat",
    "IVF16,RaBitQ,Refine(SQ8)",
    "IVF16_HNSW32,PQ8x4fs,RFlat",
]
COMPRESSED = [
    "SQ8",
    "SQfp16",
    "HNSW32,SQ8",
    "PQ4x4",
    "PQ8x4fs",
    "IVF4,PQ8",
    "IVF16,SQ8",
    "IVF16,PQ8x4fs",
    "RQ4x4",
    "RaBitQ",
    "RaBitQfs",
    "IVF16,RaBitQ",
    "IVF16,RaBitQ4",
    "OPQ4,IVF4,PQ4x4",
    "PCA8,Flat",
    "PCAR12,IVF4,SQ8",
]
# What each kind understands, and the values that it searches with when none are given.
PARAMETERS = {
    "Flat": {},
    "SQ8": {},
    "PQ8x4fs": {},
    "RaBitQfs": {},
    "HNSW16": {"efSearch": 128},
    "HNSW32,SQ8": {"efSearch": 128},
    "IVF4,Flat": {"nprobe": 4},
    "IVF16,PQ8x4fs": {"nprobe": 8},
    "PCAR12,IVF4,SQ8": {"nprobe": 4},
    "RaBitQ": {"qb": 8},
    "IVF16,RaBitQ": {"nprobe": 8, "qb": 8},
    "IVF16,PQ8x4fs,RFlat": {"k_factor_rf": 4, "nprobe": 8},
    "OPQ8,IVF16,PQ8x4fs,RFlat": {"k_factor_rf": 4, "nprobe": 8},
    "IVF16,RaBitQ,Refine(SQ8)": {"k_factor_rf": 4, "nprobe": 8, "qb": 8},
    "IVF16_HNSW32,PQ8x4fs,RFlat": {"k_factor_rf": 4, "nprobe": 8, "quantizer_efSearch": 64},
}


@pytest.fixture(scope="module")
def vectors_Nd() -> np.ndarray:
    """Vectors of very different lengths, so that inner product and distance disagree."""
    random = np.random.default_rng(0)
    return (random.standard_normal((N, D)) * random.uniform(0.2, 3, (N, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def unit_Nd(vectors_Nd: np.ndarray) -> np.ndarray:
    return vectors_Nd / np.linalg.norm(vectors_Nd, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def queries_Bd() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((B, D)).astype(np.float32)


@pytest.mark.parametrize("factory", EXACT)
def test_scores_are_dot_products_best_first(factory: str, vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    products_BN = queries_Bd @ vectors_Nd.T
    expected_Bk = np.argsort(-products_BN, axis=1)[:, :K]
    distances_BN = ((queries_Bd[:, None] - vectors_Nd) ** 2).sum(axis=2)
    assert (expected_Bk != np.argsort(distances_BN, axis=1)[:, :K]).any(axis=1).all()
    scores_Bk, ids_Bk = FaissIndex.build(vectors_Nd, factory=factory).search(queries_Bd, K)
    np.testing.assert_array_equal(ids_Bk, expected_Bk)
    np.testing.assert_allclose(scores_Bk, np.take_along_axis(products_BN, expected_Bk, axis=1), rtol=1e-5)
    assert (scores_Bk.dtype, ids_Bk.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("factory", EXACT + REFINED + COMPRESSED)
def test_every_type_finds_and_reconstructs_its_vectors(factory: str, unit_Nd: np.ndarray) -> None:
    index = FaissIndex.build(unit_Nd, factory=factory)
    assert (len(index), index.dimension, index.factory) == (N, D, factory)
    _, rows_Bk = index.search(unit_Nd, K)
    found = (rows_Bk == np.arange(N)[:, None]).any(axis=1).mean()
    error = np.abs(index.reconstruct([29, 0, 4]) - unit_Nd[[29, 0, 4]]).max()
    assert (error == 0) == index.stores_exact_vectors
    if factory in EXACT:
        assert (found, error) == (1, 0)
    else:
        assert found > (0.95 if factory in REFINED else 0.8) and error < 0.7


def test_short_results_are_minus_one_and_minus_infinity(vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    scores_Bk, ids_Bk = FaissIndex.build(vectors_Nd[:3]).search(queries_Bd, K)
    assert sorted(ids_Bk[0, :3].tolist()) == [0, 1, 2]
    assert (ids_Bk[:, 3:] == -1).all() and (scores_Bk[:, 3:] == -np.inf).all()
    scores_Bk, ids_Bk = FaissIndex.empty(D).search(queries_Bd, 2)
    assert (ids_Bk == -1).all() and (scores_Bk == -np.inf).all()


def test_equal_scores_are_ordered_by_row(vectors_Nd: np.ndarray) -> None:
    twins_Nd = vectors_Nd.copy()
    twins_Nd[[3, 50, 7, 200]] = vectors_Nd[7] * 10
    scores_Bk, ids_Bk = FaissIndex.build(twins_Nd).search(vectors_Nd[7:8], 6)
    assert ids_Bk[0, :4].tolist() == [3, 7, 50, 200]
    assert (np.diff(scores_Bk[0]) <= 0).all()
    assert FaissIndex.build(twins_Nd).search(vectors_Nd[7:8], 2)[1].tolist() == [[3, 7]]


def test_results_do_not_depend_on_the_batch_of_queries(vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    index = FaissIndex.build(vectors_Nd)
    whole, split = index.search(queries_Bd, K), index.search(queries_Bd, K, batch_size=3)
    np.testing.assert_array_equal(whole[1], split[1])
    np.testing.assert_allclose(whole[0], split[0], rtol=1e-6)


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,Flat"])
def test_added_vectors_continue_the_numbering(factory: str, vectors_Nd: np.ndarray) -> None:
    index = FaissIndex.empty(D, factory)
    index.train(vectors_Nd)
    index.add(vectors_Nd[:2])
    np.testing.assert_array_equal(index.reconstruct([1]), vectors_Nd[1:2])
    index.add(vectors_Nd[2:4])
    index.add(vectors_Nd[4:5])
    np.testing.assert_array_equal(index.reconstruct([0, 3, 4, 2]), vectors_Nd[[0, 3, 4, 2]])


@pytest.mark.parametrize("factory", EXACT + REFINED + COMPRESSED)
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_save_and_load_keep_every_result(
    factory: str, mmap: bool, named: bool, unit_Nd: np.ndarray, queries_Bd: np.ndarray, tmp_path: Path
) -> None:
    index = FaissIndex.build(unit_Nd, factory=factory)
    index.save(tmp_path / "index.faiss")
    loaded = FaissIndex.load(tmp_path / "index.faiss", mmap=mmap, factory=factory if named else None)
    assert (len(loaded), loaded.dimension, loaded.parameters) == (N, D, index.parameters)
    for before, after in zip(index.search(queries_Bd, K), loaded.search(queries_Bd, K), strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(index.reconstruct([7, 3]), loaded.reconstruct([7, 3]))
    if mmap:
        with pytest.raises(UsageError, match="read-only"):
            loaded.add(unit_Nd[:1])
    else:
        loaded.add(unit_Nd[:1])
        np.testing.assert_allclose(loaded.reconstruct([N]), loaded.reconstruct([0]), atol=1e-6)


def test_the_direct_map_is_not_saved(unit_Nd: np.ndarray, tmp_path: Path) -> None:
    index = FaissIndex.build(unit_Nd, factory="IVF4,SQ8")
    index.save(tmp_path / "before")
    index.reconstruct([3])
    index.save(tmp_path / "after")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()


def test_default_parameters_are_those_of_the_load(unit_Nd: np.ndarray, queries_Bd: np.ndarray, tmp_path: Path) -> None:
    FaissIndex.build(unit_Nd, factory="IVF16,Flat").save(tmp_path / "i")
    loaded = FaissIndex.load(tmp_path / "i", parameters="nprobe=1")
    assert loaded.parameters == "nprobe=1"
    named = FaissIndex.load(tmp_path / "i").search(queries_Bd, K, parameters="nprobe=1")
    for found, expected in zip(loaded.search(queries_Bd, K), named, strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(UsageError, match="got 'efSearch'"):
        FaissIndex.load(tmp_path / "i", parameters="efSearch=3")


@pytest.mark.parametrize("factory", PARAMETERS)
def test_parameters_of_every_kind(factory: str, unit_Nd: np.ndarray) -> None:
    index = FaissIndex.build(unit_Nd, factory=factory)
    assert index.parameters == ",".join(f"{name}={value}" for name, value in PARAMETERS[factory].items())
    for name in ("nprobe", "efSearch", "quantizer_efSearch", "k_factor_rf", "qb"):
        # FAISS calls the search in the graph of centroids by both names.
        if name in PARAMETERS[factory] or (name == "efSearch" and "quantizer_efSearch" in PARAMETERS[factory]):
            index.search(unit_Nd[:2], 3, parameters=f"{name}=2")
        else:
            understood = ", ".join(PARAMETERS[factory]) or "none, since there is nothing to trade"
            with pytest.raises(UsageError, match=rf"must be those of an index .*\({understood}\), but got '{name}'"):
                index.search(unit_Nd[:2], 3, parameters=f"{name}=2")


@pytest.mark.parametrize(
    ("factory", "low", "high"),
    [
        ("HNSW4", "efSearch=1", "efSearch=300"),
        ("IVF16,Flat", "nprobe=1", "nprobe=16"),
        ("IVF16,PQ8x4fs,RFlat", "nprobe=16,k_factor_rf=1", "nprobe=16,k_factor_rf=30"),
        ("OPQ8,IVF16,PQ8x4fs,RFlat", "nprobe=1", "nprobe=16"),
        ("PCAR12,IVF16,Flat,RFlat", "nprobe=1,k_factor_rf=8", "nprobe=16,k_factor_rf=8"),
        ("IVF16_HNSW2,Flat", "nprobe=2,quantizer_efSearch=1", "nprobe=16,quantizer_efSearch=64"),
        ("RaBitQ", "qb=1", "qb=8"),
        ("IVF4,RaBitQ", "qb=1", "qb=8"),
        ("IVF4,RaBitQfs,RFlat", "qb=1", "qb=8"),
    ],
)
def test_search_parameters_affect_only_their_search(
    factory: str, low: str, high: str, unit_Nd: np.ndarray, tmp_path: Path
) -> None:
    """More of each finds more of the best by exact products; nothing is left behind in the index."""
    queries_Bd = np.random.default_rng(2).standard_normal((100, D)).astype(np.float32)
    exact_Bk = np.argsort(-(queries_Bd @ unit_Nd.T), axis=1)[:, :K]
    index = FaissIndex.build(unit_Nd, factory=factory)
    index.save(tmp_path / "before")
    before = index.search(queries_Bd, K)

    def recall(parameters: str) -> float:
        _, rows_Bk = index.search(queries_Bd, K, parameters=parameters)
        return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(rows_Bk, exact_Bk, strict=True)]))

    assert recall(low) + 0.01 < recall(high)
    np.testing.assert_array_equal(index.search(queries_Bd, K), before)
    index.save(tmp_path / "after")
    assert (tmp_path / "before").read_bytes() == (tmp_path / "after").read_bytes()


def test_concurrent_searches_keep_their_parameters(unit_Nd: np.ndarray) -> None:
    index = FaissIndex.build(unit_Nd, factory="IVF16,PQ8x4fs,RFlat")
    settings = ["nprobe=1,k_factor_rf=1", "nprobe=16,k_factor_rf=20"] * 40
    expected = {setting: index.search(unit_Nd, K, parameters=setting) for setting in settings[:2]}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda setting: index.search(unit_Nd, K, parameters=setting), settings))
    for setting, result in zip(settings, found, strict=True):
        np.testing.assert_array_equal(result, expected[setting])
    assert (expected[settings[0]][1] != expected[settings[1]][1]).any()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("nprobe=0", "nprobe must be a whole number of at least 1, but got '0'"),
        ("nprobe=1.5", "nprobe must be a whole number of at least 1, but got '1.5'"),
        ("nprobe=many", "nprobe must be a whole number of at least 1, but got 'many'"),
        ("nprobe=nan", "but got 'nan'"),
        ("nprobe=inf", "but got 'inf'"),
        ("nprobe", "but got ''"),
        ("qb=9", "qb must be a whole number from 1 to 8, but got '9'"),
        ("k_factor_rf=0.5", "k_factor_rf must be a number of at least 1, but got '0.5'"),
        ("nprobes=4", "one of nprobe, efSearch, quantizer_efSearch, k_factor_rf, qb.*got 'nprobes=4'"),
    ],
)
def test_impossible_parameters_are_refused(parameters: str, message: str, unit_Nd: np.ndarray) -> None:
    with pytest.raises(UsageError, match=message):
        FaissIndex.build(unit_Nd, factory="IVF16,RaBitQ,RFlat").search(unit_Nd, K, parameters=parameters)


def test_more_probes_than_lists_are_all_lists(unit_Nd: np.ndarray) -> None:
    index = FaissIndex.build(unit_Nd, factory="IVF16,Flat")
    for found, expected in zip(
        index.search(unit_Nd, K, parameters="nprobe=1000"), FaissIndex.build(unit_Nd).search(unit_Nd, K), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


# In a process of its own: a reader that runs beyond a truncated file takes the interpreter with it.
TRUNCATED = """
import sys
from pathlib import Path
from indexes import FaissIndex, MismatchError
refused = 0
for number, factory in enumerate(sys.argv[2:]):
    path = Path(sys.argv[1]) / str(number)
    whole = path.read_bytes()
    cuts = {0, 1, 3, 4, 8, 12, 20, 36, 40, 44, 45, 60, len(whole) // 2, *range(len(whole) - 9, len(whole))}
    cuts |= {4096 * page + beyond for page in range(1, len(whole) // 4096 + 1) for beyond in (-3, -1, 0, 2)}
    for cut in sorted(cut for cut in cuts if cut < len(whole)):
        path.write_bytes(whole[:cut])
        for mmap, named in ((False, None), (True, None), (True, factory)):
            try:
                FaissIndex.load(path, mmap=mmap, factory=named)
            except MismatchError as error:
                assert "must be a complete FAISS index" in str(error), error
                refused += 1
            else:
                raise SystemExit(f"{factory}: {cut} of {len(whole)} bytes were taken for an index, mmap={mmap}")
print(refused)
"""


def test_a_truncated_file_is_refused_wherever_it_ends(vectors_Nd: np.ndarray, tmp_path: Path) -> None:
    factories = ["Flat", "SQ8", "HNSW16", *REFINED, "IVF4,Flat", "IVF16,RaBitQfs,RFlat", "PCAR12,IVF4,SQ8"]
    for number, factory in enumerate(factories):
        FaissIndex.build(vectors_Nd, factory=factory).save(tmp_path / str(number))
    command = [sys.executable, "-X", "faulthandler", "-c", TRUNCATED, str(tmp_path), *factories]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert int(run.stdout) > 60 * len(factories)


@pytest.mark.parametrize("mmap", [False, True])
def test_a_foreign_file_is_refused(mmap: bool, tmp_path: Path) -> None:
    (tmp_path / "index.faiss").write_bytes(b"not an index" * 50)
    with pytest.raises(MismatchError, match=r"index\.faiss must be a complete FAISS index.* Build the index"):
        FaissIndex.load(tmp_path / "index.faiss", mmap=mmap)


def test_a_mapped_file_with_trailing_bytes_is_refused(vectors_Nd: np.ndarray, tmp_path: Path) -> None:
    FaissIndex.build(vectors_Nd).save(tmp_path / "i")
    with (tmp_path / "i").open("ab") as file:
        file.write(b"more")
    with pytest.raises(MismatchError, match="19249 bytes were found where 19245 belong"):
        FaissIndex.load(tmp_path / "i", mmap=True)


def test_a_mapped_index_holds_no_vectors(tmp_path: Path) -> None:
    """40 MB of vectors are opened for less than 4 MB that belong to the process alone."""
    count = write_flat(tmp_path / "i", (np.ones((1000, 512)) for _ in range(20)), 512)
    code = (
        "import sys; from pathlib import Path; from indexes import FaissIndex\n"
        "def private(): return sum(int(line.split()[1]) for line in Path('/proc/self/smaps_rollup').read_text()"
        ".splitlines() if line.startswith('Private_Dirty'))\n"
        "FaissIndex.empty(2); before = private()\n"
        "index = FaissIndex.load(sys.argv[1], mmap=True); assert index.reconstruct([9])[0, 5] == 1\n"
        "print(len(index), private() - before)"
    )
    if not Path("/proc/self/smaps_rollup").is_file():
        pytest.skip("private memory of a process is read from /proc/self/smaps_rollup")
    command = [sys.executable, "-c", code, str(tmp_path / "i")]
    run = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    found, kilobytes = run.stdout.split()
    assert (int(found), count) == (20_000, 20_000) and int(kilobytes) < 4000


@pytest.mark.parametrize("sizes", [[300], [1, 0, 299], [0], []])
def test_a_written_flat_index_is_the_file_that_faiss_writes(
    sizes: list[int], vectors_Nd: np.ndarray, tmp_path: Path
) -> None:
    ends = np.cumsum([0, *sizes])
    blocks = (vectors_Nd[start:end] for start, end in pairwise(ends))
    assert write_flat(tmp_path / "ours", blocks, D) == sum(sizes)
    index = faiss.IndexFlatIP(D)
    index.add(vectors_Nd[: sum(sizes)])
    faiss.write_index(index, str(tmp_path / "theirs"))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_flat_index_that_was_not_finished_is_no_index(vectors_Nd: np.ndarray, tmp_path: Path) -> None:
    def blocks() -> Iterator[np.ndarray]:
        yield vectors_Nd
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_flat(tmp_path / "i", blocks(), D)
    for mmap in (False, True):
        with pytest.raises(MismatchError, match="must be a complete FAISS index"):
            FaissIndex.load(tmp_path / "i", mmap=mmap)


def test_a_flat_index_takes_only_its_vectors(vectors_Nd: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"shape \[n, 15\], but got \[300, 16\]"):
        write_flat(tmp_path / "i", [vectors_Nd], 15)
    with pytest.raises(DataError, match="must be finite"):
        write_flat(tmp_path / "i", [np.full((1, D), np.inf)], D)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_is_an_error_of_the_system(vectors_Nd: np.ndarray) -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write_flat("/dev/full", [vectors_Nd] * 50, D)
    assert caught.value.errno == errno.ENOSPC


def test_another_layout_of_faiss_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serialize = faiss.serialize_index
    _check_flat_layout.cache_clear()
    monkeypatch.setattr(faiss, "serialize_index", lambda index: np.append(serialize(index), np.uint8(7)))
    with pytest.raises(ResourceError, match="must have the layout of the faiss-cpu version in"):
        write_flat(tmp_path / "i", [], D)
    assert not (tmp_path / "i").exists()
    _check_flat_layout.cache_clear()


def test_an_index_of_another_metric_or_with_ids_is_refused(vectors_Nd: np.ndarray, tmp_path: Path) -> None:
    faiss.write_index(faiss.IndexIDMap2(faiss.IndexFlatIP(D)), str(tmp_path / "mapped.faiss"))
    faiss.write_index(faiss.IndexFlatL2(D), str(tmp_path / "l2.faiss"))
    with pytest.raises(MismatchError, match="it is 'IndexFlatL2', which compares by distance whatever it is asked for"):
        FaissIndex.load(tmp_path / "l2.faiss")
    with pytest.raises(MismatchError, match="it is 'IDMap2,Flat', which maps ids, but ids are rows here"):
        FaissIndex.load(tmp_path / "mapped.faiss")
    with pytest.raises(MismatchError, match=r"nope\.faiss does not"):
        FaissIndex.load(tmp_path / "nope.faiss")


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        ("IDMap,Flat", "leave the IDMap out"),
        ("PCAW8,Flat", "whitens, which cannot be undone"),
        ("HNSW16,PQ4x4", "compares by distance whatever it is asked for"),
        ("IVF16,FlatDedup", "gives no vectors back"),
        ("MinMax,SQ8", "cannot be added to"),
        ("IVF16,RQ4x4fs", "cannot be told for one search how many lists to look into"),
        ("SQ8_direct", "stores whole numbers from 0 to 255 only"),
    ],
)
def test_unusable_factories_are_refused(factory: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        FaissIndex.empty(D, factory)


@pytest.mark.parametrize(
    "factory", ["Flt", "", "PQ5", "LSH", "IVF16,PQ4+4", "HNSW16,RaBitQ", "NSG16", "IVF16,RaBitQfs"]
)
def test_a_bad_factory_is_refused_with_examples(factory: str) -> None:
    with pytest.raises(UsageError, match=rf"factory.*'{re.escape(factory)}'"):
        FaissIndex.empty(D, factory)
    with pytest.raises(UsageError, match='Try one of "Flat", "HNSW32"'):
        FaissIndex.empty(D, "Flt")


@pytest.mark.parametrize(("factory", "needed"), [("IVF301,Flat", 301), ("PQ4x9", 512), ("IVF4,PQ4", 256), ("Flat", 0)])
def test_training_says_how_many_vectors_it_needs(factory: str, needed: int, vectors_Nd: np.ndarray) -> None:
    index = FaissIndex.empty(D, factory)
    assert index.training_points == needed
    if needed:
        with pytest.raises(UsageError, match=f"at least {needed} vectors to train on, but got 200.*Flat"):
            index.train(vectors_Nd[:200])
        with pytest.raises(UsageError, match="must be trained before vectors are added"):
            index.add(vectors_Nd)


@pytest.mark.parametrize("factory", ["IVF4,PQ4x4", "OPQ4,IVF4,PQ4x4fs,RFlat", "IVF4_HNSW8,Flat", "IVF4,RaBitQ"])
def test_the_seed_decides_the_clusters(factory: str, vectors_Nd: np.ndarray, tmp_path: Path) -> None:
    def bytes_with(seed: int) -> bytes:
        FaissIndex.build(vectors_Nd, factory=factory, seed=seed).save(tmp_path / "i")
        return (tmp_path / "i").read_bytes()

    assert bytes_with(3) == bytes_with(3) != bytes_with(4)


@pytest.mark.parametrize("factory", EXACT + REFINED + COMPRESSED)
def test_equal_input_gives_equal_bytes(factory: str, vectors_Nd: np.ndarray, tmp_path: Path) -> None:
    """One thread, as the graphs need it."""
    with threadpool_limits(1):
        for name in ("once", "twice"):
            FaissIndex.build(vectors_Nd, factory=factory).save(tmp_path / name)
    assert (tmp_path / "once").read_bytes() == (tmp_path / "twice").read_bytes()


@pytest.mark.parametrize("factory", ["IVF16,PQ8", "OPQ8,IVF16,PQ8x4fs,RFlat", "IVF16_HNSW32,SQ8", "PQ8x4fs"])
def test_few_training_points_do_not_warn(
    factory: str, vectors_Nd: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    FaissIndex.build(vectors_Nd, factory=factory)
    assert capfd.readouterr().err == ""


def test_rotations_are_trained_in_seconds() -> None:
    """FAISS's own settings took minutes for this; the rotation must still be worth having."""
    random = np.random.default_rng(0)
    vectors_Nd = (random.standard_normal((6000, 128)) @ random.standard_normal((128, 128))).astype(np.float32)
    vectors_Nd /= np.linalg.norm(vectors_Nd, axis=1, keepdims=True)
    started = process_time()
    rotated = FaissIndex.build(vectors_Nd, factory="OPQ32,PQ32x4fs")
    assert process_time() - started < 20
    plain = FaissIndex.build(vectors_Nd, factory="PQ32x4fs")
    rows = np.arange(2000)
    errors = [np.square(index.reconstruct(rows) - vectors_Nd[rows]).mean() for index in (rotated, plain)]
    assert errors[0] < 0.9 * errors[1]


def test_bad_vectors_rows_and_queries_are_refused(vectors_Nd: np.ndarray) -> None:
    index = FaissIndex.build(vectors_Nd[:9])
    with pytest.raises(MismatchError, match=r"shape \[n, 16\], but got \[7, 15\]"):
        index.search(np.zeros((7, 15)), K)
    with pytest.raises(MismatchError, match=r"shape \[N, d\], but got \[16\]"):
        FaissIndex.build(vectors_Nd[0])
    with pytest.raises(UsageError, match="k must be at least 1, but got 0"):
        index.search(vectors_Nd, 0)
    with pytest.raises(DataError, match="must be finite"):
        index.add(np.full((1, D), np.nan))
    with pytest.raises(DataError, match="row 9 is not in the index, which holds 9 vectors"):
        index.reconstruct([0, 9])
    with pytest.raises(DataError, match="row -1 is not in the index"):
        index.reconstruct([0, -1])
    assert len(index) == 9 and index.reconstruct([]).shape == (0, D)
