"""Milvus against numpy and FAISS: a local file, and a server on this machine that speaks over a real connection.

The server of a real cluster is not here: what is tested over http is milvus-lite's, with a guard in front of it.
"""

import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexes import DataError, FaissIndex, MilvusIndex, MismatchError, ResourceError, UsageError
from indexes.vectors import milvus_index as module
from indexes.vectors.milvus_kinds import milvus_properties, search_settings

grpc = pytest.importorskip("grpc", reason="Milvus is optional: pip install dro-rag[milvus]")
pymilvus = pytest.importorskip("pymilvus", reason="Milvus is optional: pip install dro-rag[milvus]")
pytest.importorskip("milvus_lite", reason="Milvus is optional: pip install dro-rag[milvus]")

N, D, B, K = 300, 16, 7, 5


@pytest.fixture(scope="module")
def vectors_Nd() -> np.ndarray:
    """Vectors of very different lengths, so that inner product and distance disagree."""
    random = np.random.default_rng(0)
    return (random.standard_normal((N, D)) * random.uniform(0.2, 3, (N, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def queries_Bd() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((B, D)).astype(np.float32)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, and a proxy that nothing on this machine may be looked for behind."""
    monkeypatch.delenv("MILVUS_TOKEN", raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A file that is not there yet. Afterwards nothing runs any more, and no process holds it."""
    yield tmp_path / "vectors.db"
    assert module._connections == {}
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("milvus_lite")] == []


def create(path: Path, segment: int = 0, dimension: int = D, *, kind: str = "FLAT", **settings: Any) -> MilvusIndex:
    return MilvusIndex.create(path, "passages", segment, dimension, index_type=kind, **settings)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("k", [1, K, N, N + 20])
def test_results_are_those_of_faiss(
    k: int, sealed: bool, path: Path, vectors_Nd: np.ndarray, queries_Bd: np.ndarray
) -> None:
    expected_scores_Bk, expected_rows_Bk = FaissIndex.build(vectors_Nd).search(queries_Bd, k)
    with create(path) as index:
        index.add(vectors_Nd)
        if sealed:
            index.flush()
        scores_Bk, rows_Bk = index.search(queries_Bd, k)
    np.testing.assert_array_equal(rows_Bk, expected_rows_Bk)
    np.testing.assert_allclose(scores_Bk, expected_scores_Bk, rtol=1e-5, atol=1e-5)
    assert (scores_Bk.dtype, rows_Bk.dtype) == (np.float32, np.int64)
    assert (rows_Bk[:, N:] == -1).all()
    assert (scores_Bk[:, N:] == -np.inf).all()


def test_equal_scores_are_ordered_by_row(path: Path) -> None:
    """Whole numbers, so that equal products are equal to the last bit: 3 for the even rows, -2 for the odd ones."""
    with create(path, dimension=2) as index:
        index.add(np.array([[3, 0], [-2, 0]] * 4, dtype=np.float32))
        scores_Bk, rows_Bk = index.search([[1, 0], [-1, 0]], 10)
    assert rows_Bk.tolist() == [[0, 2, 4, 6, 1, 3, 5, 7, -1, -1], [1, 3, 5, 7, 0, 2, 4, 6, -1, -1]]
    assert scores_Bk.tolist() == [[3] * 4 + [-2] * 4 + [-np.inf] * 2, [2] * 4 + [-3] * 4 + [-np.inf] * 2]


def test_split_requests_give_the_same_results(
    path: Path, vectors_Nd: np.ndarray, queries_Bd: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven vectors, or two queries, at once; then 301 rows need several rounds of probes as well."""
    monkeypatch.setattr(module, "_REQUEST_BYTES", 7 * 4 * D)
    monkeypatch.setattr(module, "_REQUEST_RESULTS", 2 * K)
    monkeypatch.setattr(module, "_PROBES", 3)
    with create(path) as index:
        index.add(vectors_Nd)
        _, rows_Bk = index.search(queries_Bd, K)
        np.testing.assert_array_equal(rows_Bk, np.argsort(-queries_Bd @ vectors_Nd.T, axis=1)[:, :K])
        np.testing.assert_array_equal(index.reconstruct(np.arange(N)), vectors_Nd)
        with MilvusIndex.open(path, "passages", 0) as again:
            assert len(again) == N


@pytest.mark.parametrize("rows", [0, 1, 2, 1023, 1024, 1025])
def test_rows_are_counted(rows: int, path: Path) -> None:
    with create(path, dimension=2) as index:
        index.add(np.ones((rows, 2), dtype=np.float32))
        assert len(index) == rows
        with MilvusIndex.open(path, "passages", 0) as again:
            assert len(again) == rows


def test_an_empty_segment_and_no_queries(path: Path, queries_Bd: np.ndarray) -> None:
    with create(path) as index:
        index.add(np.empty((0, D), dtype=np.float32))
        scores_Bk, rows_Bk = index.search(queries_Bd, 2)
        assert rows_Bk.tolist() == [[-1, -1]] * B
        assert (scores_Bk == -np.inf).all()
        assert [a.shape for a in index.search(np.empty((0, D)), 2)] == [(0, 2), (0, 2)]
        assert index.reconstruct([]).shape == (0, D)
        index.flush()


def test_reconstruct_is_exact_in_any_order(path: Path, vectors_Nd: np.ndarray) -> None:
    rows = np.array([299, 0, 7, 7, 123])
    with create(path, kind="HNSW_SQ") as index:
        index.add(vectors_Nd)
        index.flush()
        found_nd = index.reconstruct(rows)
        assert found_nd.dtype == np.float32
        np.testing.assert_array_equal(found_nd, vectors_Nd[rows])
        for row in (-1, 300):
            with pytest.raises(DataError, match=f"The row {row} is not in the index, which holds 300 vectors"):
                index.reconstruct([0, row])


@pytest.mark.parametrize("sealed", [False, True])
def test_a_closed_index_can_be_opened_again(
    sealed: bool, path: Path, vectors_Nd: np.ndarray, queries_Bd: np.ndarray
) -> None:
    with create(path, segment=3, kind="HNSW", index_parameters={"M": 8, "efConstruction": 50}) as index:
        index.add(vectors_Nd)
        if sealed:
            index.flush()
    with MilvusIndex.open(str(path), "passages", 3) as index:
        assert (len(index), index.dimension, index.factory) == (N, D, "Milvus(HNSW)")
        _, rows_Bk = index.search(queries_Bd, K, parameters="ef=300")
        np.testing.assert_array_equal(index.reconstruct(np.arange(N)), vectors_Nd)
    np.testing.assert_array_equal(rows_Bk, np.argsort(-queries_Bd @ vectors_Nd.T, axis=1)[:, :K])


def test_parameters_reach_the_index(path: Path) -> None:
    """Eight clusters around the axes; a query between two of them needs both to be looked at."""
    random = np.random.default_rng(2)
    vectors_Nd = (10 * np.repeat(np.eye(8), 40, axis=0) + random.standard_normal((320, 8)) / 10).astype(np.float32)
    query_Bd = [[1, 0.99, 0, 0, 0, 0, 0, 0]]
    with create(path, dimension=8, kind="IVF_FLAT", index_parameters={"nlist": 8}) as index:
        index.add(vectors_Nd)
        index.flush()
    with MilvusIndex.open(path, "passages", 0) as index:  # now the index is built
        found = {n: int((index.search(query_Bd, 80, parameters=f"nprobe={n}")[1] >= 0).sum()) for n in (1, 2, 8)}
    assert found == {1: 40, 2: 80, 8: 80}


def test_a_segment_is_added_to_a_file_that_was_closed(path: Path, vectors_Nd: np.ndarray) -> None:
    with create(path, segment=0) as index:
        index.add(vectors_Nd)
    with create(path, segment=1) as index:
        index.add(vectors_Nd[:2])
        assert index.search(vectors_Nd[:1], 3)[1].max() == 1
    with MilvusIndex.open(path, "passages", 0) as index:
        assert len(index) == N


def test_segments_do_not_see_each_other(path: Path, vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    half = N // 2
    with create(path, segment=2) as first, create(path, segment=2**23 - 1) as second:
        first.add(vectors_Nd[:half])
        second.add(vectors_Nd[half:])
        for index, part_nd in ((first, vectors_Nd[:half]), (second, vectors_Nd[half:])):
            scores_Bk, rows_Bk = index.search(queries_Bd, N)
            assert sorted(rows_Bk[0, :half].tolist()) == list(range(half))
            assert (rows_Bk[:, half:] == -1).all()
            np.testing.assert_allclose(scores_Bk[:, 0], (queries_Bd @ part_nd.T).max(axis=1), rtol=1e-5)
            np.testing.assert_array_equal(index.reconstruct([0, half - 1]), part_nd[[0, -1]])
        assert MilvusIndex.segments(path, "passages") == [2, 2**23 - 1]


def test_an_interrupted_add_is_continued(path: Path, vectors_Nd: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies in the third request of fifty vectors, after the server has stored them."""
    monkeypatch.setattr(module, "_REQUEST_BYTES", 50 * 4 * D)
    upsert, calls = pymilvus.MilvusClient.upsert, []

    def dying(*arguments: Any, **settings: Any) -> Any:
        calls.append(upsert(*arguments, **settings))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return calls[-1]

    with create(path) as index, monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pymilvus.MilvusClient, "upsert", dying)
        index.add(vectors_Nd)
    with MilvusIndex.open(path, "passages", 0) as index:
        assert len(index) == 150
        index.add(vectors_Nd[len(index) :])
        assert len(index) == N
        np.testing.assert_array_equal(index.reconstruct(np.arange(N)), vectors_Nd)


def test_rows_that_are_sent_twice_replace_each_other(
    path: Path, vectors_Nd: np.ndarray, queries_Bd: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a request that was carried out is lost; the caller tries again with the same index."""
    with create(path) as index:
        with monkeypatch.context() as patch, pytest.raises(ResourceError, match="lost"):
            upsert = pymilvus.MilvusClient.upsert

            def losing(*arguments: Any, **settings: Any) -> Any:
                upsert(*arguments, **settings)
                raise pymilvus.MilvusException(message="lost")

            patch.setattr(pymilvus.MilvusClient, "upsert", losing)
            index.add(vectors_Nd)
        assert len(index) == 0
        index.add(vectors_Nd)
        index.flush()
        _, rows_Bk = index.search(queries_Bd, N + 1)
    assert (np.sort(rows_Bk, axis=1) == np.arange(-1, N)).all()


def test_dropping_the_last_segment_drops_the_collection(path: Path, vectors_Nd: np.ndarray) -> None:
    with create(path, segment=0) as first, create(path, segment=1) as second:
        first.add(vectors_Nd)
        second.add(vectors_Nd[:3])
        first.drop()
        assert MilvusIndex.segments(path, "passages") == [1]
        assert second.search(vectors_Nd[:1], 9)[1].max() == 2
        with pytest.raises(MismatchError, match="must have segment 0, but it does not"):
            MilvusIndex.open(path, "passages", 0)
        with pytest.raises(UsageError, match="is closed"):
            first.search(vectors_Nd, 1)
        second.drop()
        assert MilvusIndex.segments(path, "passages") == []
    with create(path, dimension=3) as index:  # the name is free for vectors of another kind
        assert (len(index), index.dimension) == (0, 3)


def test_invalid_vectors_are_refused(path: Path) -> None:
    with create(path, dimension=3) as index:
        with pytest.raises(MismatchError, match=r"shape \[n, 3\], but got \[1, 4\]"):
            index.add(np.zeros((1, 4)))
        with pytest.raises(MismatchError, match=r"shape \[n, 3\], but got \[3\]"):
            index.search(np.zeros(3), 1)
        for bad in (np.nan, np.inf):
            with pytest.raises(DataError, match="must be finite"):
                index.add([[0, 0, 0], [0, bad, 0]])
        assert len(index) == 0


@pytest.mark.parametrize("k", [0, -1, 16_385])
def test_k_out_of_range(k: int, path: Path, queries_Bd: np.ndarray) -> None:
    with create(path) as index, pytest.raises(UsageError, match=f"at least 1 and at most 16,384, .* but got {k}"):
        index.search(queries_Bd, k)


def test_the_largest_k(path: Path, vectors_Nd: np.ndarray, queries_Bd: np.ndarray) -> None:
    with create(path) as index:
        index.add(vectors_Nd)
        _, rows_Bk = index.search(queries_Bd, 16_384)
    assert (rows_Bk >= 0).sum(axis=1).tolist() == [N] * B


@pytest.mark.parametrize("parameters", ["ef", "ef=", "ef=many", "ef=64;nprobe=8", "ef=64,", "=3"])
def test_invalid_parameters_are_refused(parameters: str, path: Path, queries_Bd: np.ndarray) -> None:
    with create(path, kind="HNSW") as index, pytest.raises(UsageError, match="must be like"):
        index.search(queries_Bd, 1, parameters=parameters)


# milvus-lite 3.2.2 finds one of ten results with the first, and ignores the names of other types.
@pytest.mark.parametrize(
    ("kind", "parameters", "message"),
    [
        ("HNSW", "ef=0", "ef must be a whole number from 1 to .*, but got '0'"),
        ("HNSW", "ef=-3", "but got '-3'"),
        ("HNSW", "ef=2.5", "but got '2.5'"),
        ("HNSW", "efSearch=64", r"index type 'HNSW' in milvus-lite \(ef\), but got 'efSearch'"),
        ("HNSW", "ef=64,nprobe=8", "got 'nprobe'"),
        ("HNSW_SQ", "ef=0", "but got '0'"),
        ("HNSW_SQ", "refine_k=2", "got 'refine_k'"),
        ("AUTOINDEX", "ef=0", "but got '0'"),
        ("AUTOINDEX", "level=3", "got 'level'"),
        ("IVF_FLAT", "nprobe=0", "nprobe must be a whole number from 1 to 65,536, but got '0'"),
        ("IVF_FLAT", "ef=64", "got 'ef'"),
        ("IVF_FLAT", "nprobe=8,max_empty_result_buckets=1", "got 'max_empty_result_buckets'"),
        ("IVF_SQ8", "nprobe=70000", "but got '70000'"),
        ("FLAT", "ef=64", r"\(none\), but got 'ef'"),
    ],
)
def test_parameters_are_those_of_the_index_type(
    kind: str, parameters: str, message: str, path: Path, queries_Bd: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create(path, kind=kind) as index:
        monkeypatch.setattr(pymilvus.MilvusClient, "search", None)  # nothing is sent
        with pytest.raises(UsageError, match=message):
            index.search(queries_Bd, 1, parameters=parameters)


def test_a_graph_keeps_at_least_as_many_candidates_as_results(
    path: Path, vectors_Nd: np.ndarray, queries_Bd: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Milvus refuses an ef below k; FAISS, which milvus-lite uses, raises it."""
    sent: list[dict] = []
    search = pymilvus.MilvusClient.search

    def sending(*arguments: Any, **settings: Any) -> Any:
        sent.append(settings["search_params"]["params"])
        return search(*arguments, **settings)

    monkeypatch.setattr(pymilvus.MilvusClient, "search", sending)
    with create(path, kind="HNSW") as index:
        index.add(vectors_Nd)
        index.flush()
        for parameters, ef in (("ef=5", 20), ("ef=40", 40)):
            assert (index.search(queries_Bd, 20, parameters=parameters)[1] >= 0).all()
            assert sent.pop() == {"ef": ef}


@pytest.mark.parametrize(
    ("index_type", "parameters", "settings"),
    [
        ("IVF_PQ", "nprobe=32,max_empty_result_buckets=2", {"nprobe": 32, "max_empty_result_buckets": 2}),
        ("IVF_RABITQ", "nprobe=8,rbq_query_bits=0,refine_k=1.5", {"nprobe": 8, "rbq_query_bits": 0, "refine_k": 1.5}),
        ("SCANN", "nprobe=8,reorder_k=5", {"nprobe": 8, "reorder_k": 10}),
        ("DISKANN", "search_list=64", {"search_list": 64}),
        ("AUTOINDEX", "level=3", {"level": 3}),
        ("HNSW_PQ", "", {}),
        ("NEWER", None, {}),
    ],
)
def test_parameters_of_a_server(index_type: str, parameters: str | None, settings: dict[str, float]) -> None:
    assert search_settings(parameters, index_type, 10, is_lite=False) == settings
    with pytest.raises(UsageError, match=f"index type '{index_type}' in Milvus .* got 'beam'"):
        search_settings("beam=3", index_type, 10, is_lite=False)
    if settings:
        with pytest.raises(UsageError, match=r"must be a .*number from"):
            search_settings(f"{next(iter(settings))}=-1", index_type, 10, is_lite=False)


def test_properties_of_index_types() -> None:
    kinds = {name: milvus_properties(name) for name in ("FLAT", "HNSW", "IVF_SQ8", "AUTOINDEX")}
    assert [kind.is_exhaustive for kind in kinds.values()] == [True, False, False, False]
    assert [kind.scores for kind in kinds.values()] == ["exact", "exact", "other", "other"]
    assert {kind.vectors for kind in kinds.values()} == {"same"}


@pytest.mark.parametrize(("kind", "scores"), [("FLAT", True), ("HNSW", True), ("HNSW_SQ", False), ("IVF_SQ8", False)])
def test_scores_property_of_index_types(
    kind: str, scores: bool, path: Path, vectors_Nd: np.ndarray, queries_Bd: np.ndarray
) -> None:
    with create(path, kind=kind, index_parameters={"nlist": 4} if kind.startswith("IVF") else {}) as index:
        index.add(vectors_Nd)
        index.flush()
    with MilvusIndex.open(path, "passages", 0) as index:  # now the index is built
        scores_Bk, rows_Bk = index.search(queries_Bd, K)
    found = np.abs(scores_Bk - np.take_along_axis(queries_Bd @ vectors_Nd.T, rows_Bk, axis=1)).max() < 1e-4
    assert (found, index.properties.scores == "exact") == (scores, scores)


def test_parameters_that_the_server_refuses(
    path: Path, vectors_Nd: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise pymilvus.MilvusException(message="nprobe must be at most nlist")

    with create(path, kind="IVF_FLAT") as index:
        monkeypatch.setattr(pymilvus.MilvusClient, "search", refuse)
        with pytest.raises(UsageError, match="nprobe must be at most nlist"):
            index.search(vectors_Nd, 9, parameters="nprobe=8")
        with pytest.raises(ResourceError, match="nprobe must be at most nlist"):
            index.search(vectors_Nd, 9)


@pytest.mark.parametrize("name", ["", "two words", "1st", "a-b", "x" * 256, "naïve"])
def test_invalid_collection_names_are_refused(name: str, path: Path) -> None:
    for make in (lambda: MilvusIndex.create(path, name, 0, D), lambda: MilvusIndex.segments(path, name)):
        with pytest.raises(UsageError, match="letters, digits and underscores"):
            make()
    assert not path.exists()


@pytest.mark.parametrize("segment", [-1, 2**23])
def test_invalid_segments_are_refused(segment: int, path: Path) -> None:
    with pytest.raises(UsageError, match=f"from 0 to 8,388,607, but got {segment}"):
        create(path, segment)


@pytest.mark.parametrize("uri", ["vectors", "localhost:19530", "ftp://host/vectors.db", "http://", ""])
def test_invalid_addresses_are_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="must be like"):
        MilvusIndex.create(uri, "passages", 0, D)


def test_an_address_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(UsageError, match="MILVUS_TOKEN") as caught:
        MilvusIndex.open("https://root:secret@host:19530", "passages", 0)
    assert "secret" not in str(caught.value)


def test_a_segment_is_created_once(path: Path) -> None:
    with create(path, 4), pytest.raises(UsageError, match="segment 4 of the collection 'passages' exists"):
        create(path, 4)


def test_missing_files_and_collections_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"must exist, but .*vectors\.db does not"):
        MilvusIndex.open(path, "passages", 0)
    assert MilvusIndex.segments(path, "passages") == []
    assert not path.exists()
    with pytest.raises(UsageError, match=r"folder that exists, but .*nowhere does not"):
        create(tmp_path / "nowhere/vectors.db")
    with create(path), pytest.raises(MismatchError, match="must have the collection 'others', but it does not"):
        MilvusIndex.open(path, "others", 0)


def test_mismatched_collections_are_refused(path: Path) -> None:
    with create(path, 0, kind="HNSW"):
        for dimension, kind in ((D + 1, "HNSW"), (D, "FLAT")):
            with pytest.raises(
                MismatchError, match=f"16 dimensions in an index 'HNSW', but got {dimension} and '{kind}'"
            ):
                create(path, 1, dimension, kind=kind)


def test_a_collection_with_other_fields_is_refused(path: Path) -> None:
    """pymilvus's own default: another metric, and fields that are made up as they come."""
    with create(path) as index, index._asking("spoil") as client:
        client.create_collection("others", dimension=D, metric_type="L2")
        with pytest.raises(MismatchError, match="compares by L2"):
            MilvusIndex.open(path, "others", 0)


def test_index_types(path: Path) -> None:
    with pytest.raises(UsageError, match=r"needs an index type of AUTOINDEX, FLAT, .* but got 'Flat'"):
        create(path, kind="Flat")
    with create(path, kind="AUTOINDEX") as index:
        assert index.factory == "Milvus(AUTOINDEX)"


def test_a_refused_index_leaves_no_collection(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise pymilvus.MilvusException(message="no such knob")

    monkeypatch.setattr(pymilvus.MilvusClient, "create_index", refuse)
    with pytest.raises(UsageError, match=r"index 'HNSW' and {'M': -1}, but it reports: no such knob"):
        create(path, kind="HNSW", index_parameters={"M": -1})
    monkeypatch.undo()
    with create(path, kind="FLAT") as index:
        assert len(index) == 0


def test_damaged_files(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b"SQLite format 3\0")
    with pytest.raises(MismatchError, match="must be a database of milvus-lite 3, which is a folder"):
        create(path)
    path.unlink()
    path.mkdir()
    (path / "LOCK").mkdir()
    with pytest.raises(ResourceError, match=r"must be able to open .*vectors\.db, but it reports: .*LOCK"):
        create(path)
    assert caplog.records == []


def test_a_process_killed_while_adding_leaves_a_readable_index(path: Path) -> None:
    """Row r holds r; whatever was stored when the process died is a beginning of that, and can be continued."""
    script = f"""
        import numpy as np
        from indexes import MilvusIndex
        index = MilvusIndex.create({str(path)!r}, "passages", 0, 2, index_type="FLAT")
        for start in range(0, 1_000_000, 100):
            index.add(np.repeat(np.arange(start, start + 100, dtype=np.float32)[:, None], 2, axis=1))
            print(len(index), flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        reported = [int(process.stdout.readline()) for _ in range(20)]
        process.kill()
    assert reported[-1] == 2000
    with MilvusIndex.open(path, "passages", 0) as index:
        assert len(index) >= 2000
        assert len(index) % 100 == 0
        np.testing.assert_array_equal(index.reconstruct(np.arange(len(index)))[:, 0], np.arange(len(index)))
        index.add([[len(index)] * 2])
        assert index.search([[1, 1]], 1)[1].tolist() == [[len(index) - 1]]


def test_one_process_at_a_time(path: Path, vectors_Nd: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    """Another process writes, says so, and keeps the file open until it is told to end."""
    script = f"""
        import sys
        import numpy as np
        from indexes import MilvusIndex
        index = MilvusIndex.create({str(path)!r}, "passages", 0, 2, index_type="FLAT")
        index.add(np.eye(2, dtype=np.float32))
        print("ready", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(ResourceError, match=r"vectors\.db can be open in one process only, but another one has it"):
            MilvusIndex.open(path, "passages", 0)
        _, noise = process.communicate(timeout=60)  # closes its input; it ends without having closed the index
    assert (process.returncode, noise) == (0, "")
    assert caplog.records == []
    with MilvusIndex.open(path, "passages", 0) as index:
        np.testing.assert_array_equal(index.reconstruct([1, 0]), [[0, 1], [1, 0]])


def test_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / ("longer" * 30)
    folder.mkdir(parents=True)
    with create(folder / "vectors.db") as index:
        index.add(np.zeros((1, D)))
    with MilvusIndex.open(folder / ".." / folder.name / "vectors.db", "passages", 0) as index:
        assert len(index) == 1


def test_one_file_under_two_names(path: Path, tmp_path: Path) -> None:
    """Both are the same connection, or else the second would find the file locked."""
    (tmp_path / "linked").symlink_to(tmp_path)
    with create(path, dimension=2) as index, MilvusIndex.open(tmp_path / "linked/vectors.db", "passages", 0) as same:
        index.add([[1, 2]])
        assert same.search([[1, 1]], 1)[0].tolist() == [[3]]


def test_a_missing_library_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pymilvus", "milvus_lite.server_manager"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ResourceError, match=r"pip install dro-rag\[milvus\]"):
                create(path)


def test_the_package_opens_without_the_library() -> None:
    code = "import sys; from indexes import MilvusIndex; assert not {'pymilvus', 'grpc'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Starts milvus-lite's server behind a guard that wants a token, as Milvus sends it: base64 in the metadata."""
    from milvus_lite.adapter.grpc.servicer import MilvusServicer
    from milvus_lite.db import MilvusLite
    from pymilvus.grpc_gen import milvus_pb2_grpc

    class Guard(grpc.ServerInterceptor):
        def __init__(self, authorization: str) -> None:
            self.authorization = authorization

        def intercept_service(self, continuation: Any, details: Any) -> Any:
            if dict(details.invocation_metadata).get("authorization") == self.authorization:
                return continuation(details)
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure")
            )

    running: list[tuple[Any, Any]] = []

    def start(authorization: str) -> str:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        database = MilvusLite(str(tmp_path / "server"))
        server = grpc.server(futures.ThreadPoolExecutor(2), interceptors=[Guard(authorization)])
        milvus_pb2_grpc.add_MilvusServiceServicer_to_server(MilvusServicer(database), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        running.append((server, database))
        return f"http://127.0.0.1:{port}"

    yield start
    for server, database in running:
        server.stop(grace=None).wait()
        database.close()
    assert module._connections == {}


def test_a_server_with_a_token(
    serve: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uri = serve("cm9vdDpNaWx2dXM=")  # root:Milvus
    with MilvusIndex.create(uri, "passages", 0, 2, token="root:Milvus", index_type="FLAT") as index:
        index.add(np.eye(2, dtype=np.float32))
        index.flush()
    for token in ("root:wrong", ""):
        with pytest.raises(ResourceError, match=r"must accept the token .* MILVUS_TOKEN") as caught:
            MilvusIndex.open(uri, "passages", 0, token=token)
        assert "root:wrong" not in str(caught.value)
    monkeypatch.setenv("MILVUS_TOKEN", "root:Milvus")
    with MilvusIndex.open(uri, "passages", 0) as index:
        assert index.search([[0, 1]], 3)[1].tolist() == [[1, 0, -1]]
        index.drop()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_an_unreachable_server_is_a_resource_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that was free a moment ago."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setattr(module, "_CONNECT_SECONDS", 1.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ResourceError, match=f"server at http://127.0.0.1:{port} must answer to connect"):
        MilvusIndex.create(f"http://127.0.0.1:{port}", "passages", 0, D)
    assert module._connections == {}


def test_a_server_that_stops_is_a_resource_error(
    tmp_path: Path, vectors_Nd: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from milvus_lite.adapter.grpc.server import start_server_in_thread

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server, database, port = start_server_in_thread(str(tmp_path / "server"))
    index = MilvusIndex.create(f"http://127.0.0.1:{port}", "passages", 0, D, index_type="FLAT", timeout=2.0)
    index.add(vectors_Nd)
    server.stop(grace=None).wait()
    database.close()
    with pytest.raises(ResourceError, match="must answer to search segment 0 of 'passages'"):
        index.search(vectors_Nd[:1], 1)
    assert len(index) == N
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    index.close()
    index.close()
