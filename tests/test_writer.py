"""An index changes by whole versions: what is added is found, what is deleted is not, and nothing else is touched."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_models import PASSAGES, tiny_encoder

from indexes import (
    Change,
    Chunker,
    Corpus,
    DataError,
    Encoder,
    FaissIndex,
    IndexWriter,
    MilvusIndex,
    MismatchError,
    Passage,
    PassageIndex,
    UsageError,
    build_index,
)
from indexes.directory.manifest import Manifest
from indexes.directory.segments import LiveRowMap, Segments
from indexes.encoder import Vectors

NEW = [
    Passage("n0", "Elbe", "The Elbe is a river that flows through Germany."),
    Passage("n1", "Vienna", "Vienna is the capital of Austria."),
    Passage("n2", "Goethe", "Goethe wrote Faust."),
]
CHANGED = Passage("p4", "Berlin", "Berlin is a city of Germany, and its capital.")
QUESTIONS = ["river through germany", "who wrote hamlet", "capital of austria", "symbol of radium"]


class CountingEncoder(Encoder):
    """Remembers what it encoded."""

    def encode_passages(
        self, passages: Sequence[Passage], *, batch_size: int = 64, progress: object = False
    ) -> Vectors:
        self.__dict__.setdefault("encoded", []).extend(passage.id for passage in passages)
        return super().encode_passages(passages, batch_size=batch_size)

    def taken(self) -> list[str]:
        return self.__dict__.pop("encoded", [])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> CountingEncoder:
    folder = tmp_path_factory.mktemp("encoder") / "words"
    tiny_encoder([p.contents for p in [*PASSAGES, *NEW, CHANGED]] + QUESTIONS, dimension=18).save_pretrained(folder)
    loaded = Encoder.from_pretrained(folder, device="cpu")
    return CountingEncoder(loaded.model, name=loaded.name)


@pytest.fixture
def index(encoder: CountingEncoder, tmp_path: Path) -> PassageIndex:
    built = build_index(Corpus.from_passages(PASSAGES), encoder, tmp_path / "index", bm25=True, progress=False)
    encoder.taken()
    return built


def check(path: Path, encoder: Encoder, expected: Sequence[Passage]) -> PassageIndex:
    """The newest version holds exactly these passages, is whole, and ranks as an index built from them at once."""
    index = PassageIndex.open(path, encoder=encoder, verify="checksums")
    assert {p.id: p for p in index.corpus} == {p.id: p for p in expected}
    assert len(index) == len(index.vectors) == len(expected)
    assert index.manifest.corpus_fingerprint == Corpus.from_passages(expected).fingerprint
    index.verify(encoder=encoder, corpus=Corpus.from_passages(list(reversed(expected))))
    on_disk = {f.relative_to(path).as_posix() for f in path.rglob("*") if f.is_file()}
    assert on_disk == {"manifest.json", *index.manifest.files}
    # The reference is a matrix product over what the encoder gives for the passages in the order of the index.
    vectors_Nd, questions_Bd = encoder.encode_passages(list(index.corpus)), encoder.encode_questions(QUESTIONS)
    scores_Bk, ids_Bk = index.vectors.search(questions_Bd, 5)
    exact_BN = questions_Bd @ vectors_Nd.T
    np.testing.assert_allclose(scores_Bk, -np.sort(-exact_BN, axis=1)[:, :5], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact_BN, ids_Bk, axis=1), scores_Bk, atol=1e-5)
    if index.manifest.bm25:
        assert len(index.load_bm25()) == len(expected)
    return index


def test_add_writes_a_segment_and_encodes_only_new_passages(index: PassageIndex, encoder: CountingEncoder) -> None:
    with IndexWriter(index.path, encoder, progress=False) as writer:
        change = writer.add(NEW)
    assert change == Change(version=2, added=3, deleted=0, updated=0, unchanged=12, passages=15)
    assert encoder.taken() == ["n0", "n1", "n2"]
    newest = check(index.path, encoder, [*PASSAGES, *NEW])
    assert [segment.rows for segment in newest.manifest.segments] == [12, 3]
    with pytest.raises(MismatchError, match=r"verified, which is 2, but version 1 is open\. Open it again"):
        index.verify()
    # Who has the old version open keeps it.
    assert len(index) == 12 and len(index.vectors.search(encoder.encode_questions(QUESTIONS), 20)[1][0]) == 20
    assert (index.vectors.search(encoder.encode_questions(QUESTIONS), 20)[1] < 12).all()
    assert index.newest().manifest.version == 2
    assert newest.newest() is newest


def test_an_old_version_keeps_its_bm25_index(index: PassageIndex, encoder: CountingEncoder) -> None:
    old = PassageIndex.open(index.path)
    with IndexWriter(index.path, encoder, progress=False) as writer:
        writer.delete(["p0"])
    assert not (index.path / "bm25").exists()
    assert old.load_bm25().search(["Hamlet tragedy"], 1)[1].tolist() == [[0]]
    assert (old.newest().load_bm25().search(["tragedy"], 1)[1] == -1).all()


def test_an_id_that_is_there_is_not_added_again(index: PassageIndex, encoder: CountingEncoder) -> None:
    before = (index.path / "manifest.json").read_bytes()
    with IndexWriter(index.path, encoder, progress=False) as writer:
        with pytest.raises(DataError, match=r"need new ids, but 'p4' is in the index already\. Use update"):
            writer.add([*NEW, CHANGED])
        with pytest.raises(DataError, match="must have its own id, got 'n0' twice"):
            writer.add([NEW[0], NEW[0]])
    assert (index.path / "manifest.json").read_bytes() == before
    assert encoder.taken() == []


def test_delete_hides_passages_without_the_encoder(index: PassageIndex, encoder: CountingEncoder) -> None:
    with IndexWriter(index.path, progress=False) as writer:
        writer._load_encoder = None  # type: ignore[assignment, method-assign]
        assert writer.delete(["p0", "p11", "p5"]) == Change(2, 0, 3, 0, 9, 9)
        with pytest.raises(DataError, match="Only passages of the index can be deleted, but 'p5' is not one of its 9"):
            writer.delete(["p5"])
    newest = check(index.path, encoder, [p for p in PASSAGES if p.id not in ("p0", "p11", "p5")])
    assert (len(newest.manifest.segments), newest.manifest.deleted) == (1, "deleted-000002.npy")
    assert newest.info()["deleted"] == 3
    assert newest.corpus.position("p6") == 4 and newest.corpus[4].id == "p6"


def test_a_segment_that_is_half_deleted_is_rewritten(index: PassageIndex, encoder: CountingEncoder) -> None:
    with IndexWriter(index.path, encoder, progress=False) as writer:
        writer.delete([f"p{i}" for i in range(7)])
        assert encoder.taken() == []
        newest = check(index.path, encoder, PASSAGES[7:])
        assert [segment.rows for segment in newest.manifest.segments] == [5]
        assert newest.manifest.deleted == ""
        with pytest.raises(UsageError, match="holds at least one passage, but all would be deleted"):
            writer.delete([f"p{i}" for i in range(7, 12)])


def test_update_replaces_adds_and_keeps_unchanged_passages(index: PassageIndex, encoder: CountingEncoder) -> None:
    with IndexWriter(index.path, encoder, progress=False) as writer:
        change = writer.update([CHANGED, PASSAGES[7], NEW[0]])
    assert change == Change(version=2, added=2, deleted=1, updated=1, unchanged=1, passages=13)
    assert encoder.taken() == ["p4", "n0"]
    check(index.path, encoder, [*(p for p in PASSAGES if p.id != "p4"), CHANGED, NEW[0]])


def test_sync_encodes_only_the_difference(index: PassageIndex, encoder: CountingEncoder, tmp_path: Path) -> None:
    wanted = [CHANGED, *NEW, *(p for p in PASSAGES if p.id not in ("p4", "p0"))]
    file = tmp_path / "edited.jsonl"
    file.write_text("".join(json.dumps({"id": p.id, "title": p.title, "text": p.text}) + "\n" for p in wanted))
    with IndexWriter(index.path, encoder, progress=False) as writer:
        change = writer.sync(file)
        assert change == Change(version=2, added=4, deleted=2, updated=1, unchanged=10, passages=14)
        assert encoder.taken() == ["p4", "n0", "n1", "n2"]
        again = writer.sync(file)
    assert again == Change(version=2, added=0, deleted=0, updated=0, unchanged=14, passages=14)
    assert encoder.taken() == []
    newest = check(index.path, encoder, wanted)
    assert newest.manifest.corpus_source == "edited.jsonl"
    assert newest.manifest.corpus_fingerprint == Corpus.from_file(file).fingerprint


def test_compact_equals_a_fresh_build(index: PassageIndex, encoder: CountingEncoder, tmp_path: Path) -> None:
    with IndexWriter(index.path, encoder, progress=False) as writer:
        writer.add(NEW)
        writer.delete(["p3"])
        writer.compact()
        assert writer.compact().version == 4  # there is nothing left to do
    newest = check(index.path, encoder, [*(p for p in PASSAGES if p.id != "p3"), *NEW])
    assert (len(newest.manifest.segments), newest.manifest.deleted) == (1, "")
    built = build_index(newest.corpus, encoder, tmp_path / "built", progress=False)
    for name in ("vectors.faiss", "passages.arrow"):
        one, two = (i.path / "segments" / i.manifest.segments[0].name / name for i in (newest, built))
        assert one.read_bytes() == two.read_bytes()


def test_many_small_changes_leave_few_segments(index: PassageIndex, encoder: CountingEncoder) -> None:
    added: list[Passage] = []
    with IndexWriter(index.path, encoder, progress=False) as writer:
        for number in range(20):
            passage = Passage(f"s{number}", "", f"river {number}")
            writer.add([passage])
            added.append(passage)
            assert len(PassageIndex.open(index.path).manifest.segments) <= 5
    check(index.path, encoder, [*PASSAGES, *added])


@pytest.mark.parametrize("factory", ["HNSW4", "IVF2,Flat", "SQ8", "IVF2,PQ3x2,Refine(SQ8)"])
def test_every_kind_of_index_can_be_changed(factory: str, encoder: CountingEncoder, tmp_path: Path) -> None:
    build_index(Corpus.from_passages(PASSAGES), encoder, tmp_path / "index", factory=factory, progress=False)
    with IndexWriter(tmp_path / "index", encoder, progress=False) as writer:
        writer.add(NEW)
        writer.delete(["p1", "p2"])
        writer.compact()
    index = PassageIndex.open(tmp_path / "index", verify="checksums")
    assert {p.id for p in index.corpus} == {p.id for p in [*PASSAGES, *NEW]} - {"p1", "p2"}
    stored = index.vectors.reconstruct(range(13))
    exact = encoder.encode_passages(list(index.corpus))
    # Codes and ranges were learned from twelve passages: what came later is clipped to them.
    assert (stored * exact).sum(1).min() > (0.99999 if "Flat" in factory or "HNSW" in factory else 0.8)
    # Each passage finds itself first.
    _, ids_B1 = index.vectors.search(exact, 1)
    assert (ids_B1[:, 0] == np.arange(13)).mean() > 0.9
    index.verify(encoder=encoder)


def test_chunks_follow_their_document(encoder: CountingEncoder, tmp_path: Path) -> None:
    chunker = Chunker(encoder.tokenizer, max_tokens=6, overlap=0)
    build_index(Corpus.from_passages(PASSAGES), encoder, tmp_path / "index", chunker=chunker, progress=False)
    with IndexWriter(tmp_path / "index", encoder, progress=False) as writer:
        writer.add(NEW)
        with pytest.raises(DataError, match="but 'n0' is in the index already"):
            writer.add([NEW[0]])
        writer.delete(["p0"])
        # Two sentences become one: its second chunk must not stay.
        writer.update([Passage("p4", "Berlin", "Berlin is a city.")])
    index = PassageIndex.open(tmp_path / "index")
    documents = [p for p in [*PASSAGES, *NEW] if p.id not in ("p0", "p4")]
    wanted = Corpus.from_passages([*documents, Passage("p4", "Berlin", "Berlin is a city.")]).chunked(chunker)
    assert {p.id: p for p in index.corpus} == {p.id: p for p in wanted}
    index.verify(encoder=encoder, corpus=wanted)


def test_an_id_that_looks_like_a_chunk_id_is_distinguished(encoder: CountingEncoder, tmp_path: Path) -> None:
    chunker = Chunker(encoder.tokenizer, max_tokens=6, overlap=0)
    whole = [Passage("a", "", "Paris is"), Passage("b", "", "Berlin is")]
    build_index(Corpus.from_passages(whole), encoder, tmp_path / "index", chunker=chunker, progress=False)
    with IndexWriter(tmp_path / "index", encoder, progress=False) as writer:
        assert writer.update([Passage("a#1", "", "Oxygen is")]).deleted == 0
        assert writer.add([Passage("b#7", "", "Faust is")]).passages == 4
    assert sorted(PassageIndex.open(tmp_path / "index").corpus.ids) == ["a", "a#1", "b", "b#7"]


def test_foreign_files_in_the_directory_are_kept(index: PassageIndex, encoder: CountingEncoder) -> None:
    mine = ["deleted-ids.txt", "bm25-notes.md", "notes.txt"]
    for name in mine:
        (index.path / name).write_text("mine")
    (index.path / "empty").mkdir()
    (index.path / "link").symlink_to("empty")
    for half in ("deleted-000007.npy.tmp", "bm25-000007.tmp/params", "segments/000007/vectors.faiss.tmp"):
        (index.path / half).parent.mkdir(exist_ok=True)
        (index.path / half).write_text("left by a writer that died")
    with IndexWriter(index.path, encoder, progress=False) as writer:
        writer.delete(["p1"])
    others = {"bm25-000002", "deleted-000002.npy", "manifest.json", "segments"}
    assert set(os.listdir(index.path)) == {*mine, "empty", "link", *others}
    assert os.listdir(index.path / "segments") == ["000000"]


def test_a_single_item_instead_of_a_list_is_refused(index: PassageIndex, encoder: CountingEncoder) -> None:
    with IndexWriter(index.path, encoder, progress=False) as writer:
        with pytest.raises(
            UsageError, match=r"ids must be a list, but got the string 'p1'\. Put it into a list: \['p1'\]"
        ):
            writer.delete("p1")
        for one in (NEW[0], {"id": "n0", "text": "x"}):
            with pytest.raises(UsageError, match=r"must be in a list, but got a (Passage|dict)\. Put it into a list"):
                writer.add(one)  # type: ignore[arg-type]
        with pytest.raises(MismatchError, match="'search_parameters' must be str, but got None"):
            writer.set_search_parameters(None)  # type: ignore[arg-type]
    assert PassageIndex.open(index.path).manifest == index.manifest


def test_a_mistyped_path_makes_no_folders(encoder: CountingEncoder, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="is no directory"):
        with IndexWriter(tmp_path / "no/such/index", encoder):
            pass
    assert os.listdir(tmp_path) == []


def test_opening_retries_with_the_newer_version(
    index: PassageIndex, encoder: CountingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Manifest.verify_files

    def between(manifest: Manifest, folder: Path, *, checksums: bool) -> None:
        if manifest.version > 1:
            return taken(manifest, folder, checksums=checksums)
        monkeypatch.undo()
        with IndexWriter(index.path, encoder, progress=False) as writer:
            writer.delete(["p1"])
        raise FileNotFoundError("gone between two looks at it")

    monkeypatch.setattr(Manifest, "verify_files", between)
    assert PassageIndex.open(index.path).manifest.version == 2


def test_an_interrupted_add_encodes_nothing_twice(
    index: PassageIndex, encoder: CountingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexes.directory import shards

    monkeypatch.setattr(shards, "ROWS", 1)
    taken = CountingEncoder.encode_passages

    def dying(self: CountingEncoder, passages: Sequence[Passage], **options: object) -> Vectors:
        if passages[0].id == "n2":
            raise KeyboardInterrupt
        return taken(self, passages)

    monkeypatch.setattr(CountingEncoder, "encode_passages", dying)
    with IndexWriter(index.path, encoder, progress=False) as writer:
        with pytest.raises(KeyboardInterrupt):
            writer.add(NEW)
    assert encoder.taken() == ["n0", "n1"]
    check_same = PassageIndex.open(index.path, verify="checksums")
    assert check_same.manifest == index.manifest
    monkeypatch.setattr(CountingEncoder, "encode_passages", taken)
    with IndexWriter(index.path, encoder, progress=False) as writer:
        writer.add(NEW)
    assert encoder.taken() == ["n2"]
    check(index.path, encoder, [*PASSAGES, *NEW])
    assert [f for f in os.listdir(index.path.parent) if f.startswith(".")] == []


def test_one_writer_at_a_time_and_only_inside_its_block(index: PassageIndex, encoder: CountingEncoder) -> None:
    writer = IndexWriter(index.path, encoder, progress=False)
    with pytest.raises(UsageError, match="works inside its with block"):
        writer.add(NEW)
    with writer, pytest.raises(UsageError, match="Only one process can write"), IndexWriter(index.path):
        raise AssertionError("two writers")
    other = tiny_encoder([p.contents for p in PASSAGES], dimension=18, seed=5)
    with pytest.raises(MismatchError, match="its weights differ"), IndexWriter(index.path, other):
        raise AssertionError("another encoder")
    with IndexWriter(index.path, encoder, progress=False):
        pass


def test_tuned_parameters_are_kept_and_checked(encoder: CountingEncoder, tmp_path: Path) -> None:
    build_index(Corpus.from_passages(PASSAGES), encoder, tmp_path / "i", factory="IVF4,Flat", progress=False)
    questions = encoder.encode_questions(QUESTIONS)
    with IndexWriter(tmp_path / "i", encoder, progress=False) as writer:
        with pytest.raises(UsageError, match="efSearch"):
            writer.set_search_parameters("efSearch=9")
        writer.set_search_parameters("nprobe=1")
    narrow = PassageIndex.open(tmp_path / "i")
    assert narrow.manifest.search_parameters == "nprobe=1"
    assert (narrow.vectors.search(questions, 12)[1] < 0).any()
    assert (narrow.vectors.search(questions, 12, parameters="nprobe=4")[1] >= 0).all()


def test_rows_and_positions_are_inverse() -> None:
    # Rows 0 1 2 | 3 4 5 6 | 7, of which 1, 3 and 7 are deleted: positions 0 1 2 3 4 are rows 0 2 4 5 6.
    rows = LiveRowMap([3, 4, 1], np.array([1, 3, 7]))
    assert len(rows) == 5
    assert rows.rows_at(np.arange(5)).tolist() == [0, 2, 4, 5, 6]
    assert rows.positions(np.array([-1, 0, 1, 2, 3, 4, 5, 6, 7])).tolist() == [-1, 0, -1, 1, -1, 2, 3, 4, -1]
    assert [rows.count_deleted(n) for n in range(3)] == [1, 1, 1]
    assert rows.live().tolist() == [0, 2, 4, 5, 6]


def test_search_skips_deleted_rows() -> None:
    from indexes import FaissIndex

    vectors = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    query = vectors[:1]
    best = np.argsort(-(vectors @ query[0]), kind="stable")
    deleted = np.sort(best[:150])  # all that would be found first
    parts = [FaissIndex.build(vectors[:300]), FaissIndex.build(vectors[300:])]
    segments = Segments(parts, deleted)
    scores_1k, positions_1k = segments.search(query, 10)
    assert segments.rows.rows_at(positions_1k[0]).tolist() == best[150:160].tolist()
    np.testing.assert_allclose(scores_1k[0], (vectors @ query[0])[best[150:160]], rtol=1e-5)
    _, everything = segments.search(query, 300)
    assert sorted(everything[0, :250].tolist()) == list(range(250)) and (everything[0, 250:] == -1).all()


PROCESSES = """
import json, os, random, sys, time, traceback
from pathlib import Path

import numpy as np
import torch

torch.set_num_threads(1)
from indexes import Corpus, Encoder, IndexWriter, Passage, PassageIndex

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
encoder = Encoder.from_pretrained(folder / "encoder", device="cpu")


def passage(number, edition):
    return Passage(f"p{number}", f"w{number % 97}", f"w{number * edition % 97} w{(number + edition) % 97} e{edition}")


def write(version, shadow):
    # The shadow of a version is there before anybody can read the version.
    (folder / "half.json").write_text(json.dumps(shadow))
    os.replace(folder / "half.json", folder / f"shadow-{version}.json")


def writer():
    random_, ends, version = random.Random(3), time.monotonic() + seconds, 1
    shadow = {f"p{n}": 1 for n in range(300)}
    next_number, changes = 300, 0
    with IndexWriter(folder / "index", encoder, progress=False) as index:
        while time.monotonic() < ends:
            ids = sorted(shadow)
            gone = random_.sample(ids, random_.randint(1, min(30, len(ids) - 50)))
            action = random_.choice(["add", "delete", "update"] + ["compact"] * (changes % 7 == 6))
            new = dict(shadow)
            if action == "delete" and len(ids) > 150:
                for id_ in gone:
                    del new[id_]
                write(version + 1, new)
                done = index.delete(gone)
            elif action == "update":
                edition = changes + 2
                new.update({id_: edition for id_ in gone})
                write(version + 1, new)
                done = index.update([passage(int(id_[1:]), edition) for id_ in gone])
            elif action == "compact":
                write(version + 1, new)
                done = index.compact()
            else:
                numbers = range(next_number, next_number + random_.randint(1, 40))
                next_number = numbers[-1] + 1
                new.update({f"p{n}": 1 for n in numbers})
                write(version + 1, new)
                done = index.add([passage(n, 1) for n in numbers])
            shadow, version, changes = new, done.version, changes + 1  # nothing to compact makes no version
            (folder / "published").write_text(str(version))
    return {"versions": version}


def reader(seed):
    random_, ends, seen, checks = random.Random(seed), time.monotonic() + seconds, set(), 0
    index, cache = PassageIndex.open(folder / "index"), {}
    while time.monotonic() < ends:
        published = int((folder / "published").read_text() or 0)
        if random_.random() < 0.7:
            index = index.newest()
        else:
            index = PassageIndex.open(folder / "index", mmap=random_.random() < 0.5)
        version = index.manifest.version
        assert version >= published, "stale"
        shadow = json.loads((folder / f"shadow-{version}.json").read_text())
        expected = {id_: passage(int(id_[1:]), edition) for id_, edition in shadow.items()}
        assert {p.id: p for p in index.corpus} == expected, "wrong or missing passages"
        sought = random_.sample(sorted(expected), 5)
        for p in expected.values():
            if p.contents not in cache:
                cache[p.contents] = encoder.encode_passages([p])[0]
        vectors = np.stack([cache[expected[i].contents] for i in shadow])
        queries = np.stack([cache[expected[i].contents] for i in sought])
        scores, positions = index.vectors.search(queries, 7)
        np.testing.assert_allclose(scores, -np.sort(-(queries @ vectors.T), axis=1)[:, :7], atol=1e-5)
        for row, passages in zip(scores, ([p.contents for p in index.corpus.take(r.tolist())] for r in positions)):
            found = np.stack([cache[contents] for contents in passages])
            np.testing.assert_allclose((found @ queries.T).max(), 1, atol=1e-5)
        seen.add(version)
        checks += 1
    return {"checks": checks, "versions": len(seen)}


# Three processes, forks of this one, which has imported what they need.
roles = {"writer": writer, "reader-1": lambda: reader(1), "reader-2": lambda: reader(2)}
children = []
for name, role in roles.items():
    if child := os.fork():
        children.append(child)
        continue
    try:
        (folder / name).write_text(json.dumps(role()))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX")
def test_concurrent_readers_see_complete_versions(tmp_path: Path) -> None:
    """Two readers and one writer with random changes; RAG_CONCURRENCY_SECONDS=120 makes it the long one."""
    seconds = os.environ.get("RAG_CONCURRENCY_SECONDS", "6")
    texts = [" ".join([f"w{n}" for n in range(97)] + [f"e{n}" for n in range(2000)])]
    tiny_encoder(texts, dimension=12).save_pretrained(tmp_path / "encoder")
    encoder = Encoder.from_pretrained(tmp_path / "encoder", device="cpu")
    rows = [Passage(f"p{n}", f"w{n % 97}", f"w{n % 97} w{(n + 1) % 97} e1") for n in range(300)]
    build_index(Corpus.from_passages(rows), encoder, tmp_path / "index", progress=False)
    (tmp_path / "shadow-1.json").write_text(json.dumps({p.id: 1 for p in rows}))
    (tmp_path / "published").write_text("1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-W", "ignore", "-c", PROCESSES, str(tmp_path), seconds]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=float(seconds) + 200)
    assert done.returncode == 0, done.stderr[-6000:]
    wrote, *read = (json.loads((tmp_path / name).read_text()) for name in ("writer", "reader-1", "reader-2"))
    print(wrote, read)
    assert wrote["versions"] > 5
    assert all(reader["checks"] > 5 and reader["versions"] > 2 for reader in read)


def test_an_index_on_milvus_is_built_and_changed(encoder: CountingEncoder, tmp_path: Path) -> None:
    """Built, searched, changed, compacted and verified with the vectors in a file of Milvus Lite."""
    pytest.importorskip("milvus_lite", reason="the milvus extra is not installed")
    where = str(tmp_path / "vectors.db")
    built = build_index(Corpus.from_passages(PASSAGES), encoder, tmp_path / "index", milvus=where, progress=False)
    assert (built.manifest.factory, built.manifest.milvus["uri"]) == ("Milvus(AUTOINDEX)", where)
    assert sorted(built.manifest.files) == ["segments/000000/passages.arrow"]
    check(tmp_path / "index", encoder, PASSAGES)
    with IndexWriter(tmp_path / "index", encoder, progress=False) as writer:
        writer.add(NEW)
        check(tmp_path / "index", encoder, [*PASSAGES, *NEW])
        writer.update([CHANGED])
        writer.delete(["p0", "n1"])
        left = [CHANGED if p.id == "p4" else p for p in [*PASSAGES, *NEW] if p.id not in ("p0", "n1")]
        check(tmp_path / "index", encoder, left)
        writer.compact()
    index = check(tmp_path / "index", encoder, left)
    numbers = [int(segment.name) for segment in index.manifest.segments]
    assert MilvusIndex.segments(where, index.manifest.milvus["collection"]) == numbers
    again = build_index(index.corpus, encoder, index.path, milvus=where, overwrite=True, progress=False)
    assert MilvusIndex.segments(where, index.manifest.milvus["collection"]) == []
    check(again.path, encoder, left)


def test_segments_stay_as_small_as_the_build_made_them(
    encoder: CountingEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indexes.directory import builder

    monkeypatch.setattr(builder, "segment_rows", lambda *_: 5)
    build_index(Corpus.from_passages(PASSAGES), encoder, tmp_path / "index", factory="HNSW8", progress=False)
    more = [Passage(f"s{n}", "", f"river {n}") for n in range(13)]
    with IndexWriter(tmp_path / "index", encoder, progress=False) as writer:
        writer.add(more)
        index = check(tmp_path / "index", encoder, [*PASSAGES, *more])
        # 5, 5 and 2 of the build; the 2 would fit into the new ones, were they not full.
        assert [segment.rows for segment in index.manifest.segments] == [5, 5, 2, 5, 5, 3]
        writer.delete(["p0", "s0"])
        writer.compact()
    left = [p for p in [*PASSAGES, *more] if p.id not in ("p0", "s0")]
    assert [segment.rows for segment in check(tmp_path / "index", encoder, left).manifest.segments] == [5, 5, 5, 5, 3]


@pytest.mark.parametrize("factory", ["IVF4,RaBitQ", "SQtq4", "IVF4,SQtq2", "RaBitQ4", "IVF4,EDEN"])
def test_unstable_codes_are_encoded_again_when_merged(factory: str, encoder: CountingEncoder, tmp_path: Path) -> None:
    """Merged again and again, they are those that one build makes, since passages are encoded again and not codes."""
    passages = [Passage(f"r{n}", "", f"river {n % 13} germany {n % 7} faust {n}") for n in range(90)]
    build_index(Corpus.from_passages(passages[:80]), encoder, tmp_path / "index", factory=factory, progress=False)
    with IndexWriter(tmp_path / "index", encoder, progress=False) as writer:
        for passage in passages[80:]:
            writer.add([passage])
        for _ in range(3):
            writer.compact()
    index = PassageIndex.open(tmp_path / "index")
    fresh = FaissIndex.load(tmp_path / "index/trained.faiss", factory=factory)
    fresh.add(encoder.encode_passages(list(index.corpus)))
    queries = encoder.encode_questions(QUESTIONS)
    np.testing.assert_array_equal(index.vectors.search(queries, 10)[1], fresh.search(queries, 10)[1])


def test_an_index_of_the_tiny_encoder_changes_with_no_encoder_named(tmp_path: Path) -> None:
    """Its manifest names "tiny", which is no folder and no model on the hub."""
    built = build_index(Corpus.from_passages(PASSAGES), Encoder.from_pretrained("tiny"), tmp_path / "index")
    assert built.manifest.encoder.name == "tiny"
    assert built.load_encoder().fingerprint == built.manifest.encoder.fingerprint
    with IndexWriter(tmp_path / "index", progress=False) as writer:
        assert writer.add(NEW[:1]).added == 1
    changed = PassageIndex.open(tmp_path / "index")
    [[row]] = changed.vectors.search(Encoder.from_pretrained("tiny").encode_passages(NEW[:1]), 1)[1].tolist()
    assert changed.corpus[row] == NEW[0]


def test_lists_that_faiss_cannot_map_are_changed(encoder: CountingEncoder, tmp_path: Path) -> None:
    """A writer opens its index memory-mapped, which FAISS 1.15.1 cannot do with the lists of a Panorama."""
    build_index(
        Corpus.from_passages(PASSAGES), encoder, tmp_path / "index", factory="IVF2,FlatPanorama3", progress=False
    )
    with IndexWriter(tmp_path / "index", encoder, progress=False) as writer:
        writer.add(NEW)
        writer.compact()
    check(tmp_path / "index", encoder, [*PASSAGES, *NEW])
