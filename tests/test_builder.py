"""An index directory appears whole or not at all, and opens only with the parts it was made of."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import datasets
import faiss
import numpy as np
import pytest
import torch
from sentence_transformers import util
from tiny_models import PASSAGES, tiny_encoder

from indexes import (
    Chunker,
    Corpus,
    DataError,
    Encoder,
    FaissIndex,
    IndexWriter,
    MismatchError,
    Passage,
    PassageIndex,
    UsageError,
    atomic_files,
)
from indexes import build_index as build
from indexes.atomic_files import exclusive_writer_lock
from indexes.directory import builder, shards
from indexes.directory.segments import Segments
from indexes.encoder import Vectors
from indexes.vectors.vector_store import StoreConfig

QUESTIONS = ["which river flows through france", "who wrote hamlet", "symbol of the element radium"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("encoder") / "words"
    tiny_encoder([p.contents for p in PASSAGES] + QUESTIONS, dimension=18).save_pretrained(folder)
    return Encoder.from_pretrained(folder, device="cpu")


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.jsonl"
    rows = [{"id": p.id, "title": p.title, "text": p.text} for p in PASSAGES]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def index(encoder: Encoder, corpus_file: Path, tmp_path: Path) -> PassageIndex:
    return build(corpus_file, encoder, tmp_path / "index", progress=False)


class BreakingEncoder(Encoder):
    """Stops after a number of passages."""

    def encode_passages(self, passages: Sequence[Passage], *, batch_size: int = 64, progress: bool = False) -> Vectors:
        if passages[-1].id == PASSAGES[-1].id:
            raise KeyboardInterrupt
        return super().encode_passages(passages, batch_size=batch_size, progress=progress)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_round_trip(index: PassageIndex, encoder: Encoder, tmp_path: Path) -> None:
    assert index.path == tmp_path / "index"
    opened = PassageIndex.open(index.path, encoder=encoder, verify="checksums")
    assert list(opened.corpus) == PASSAGES
    assert (len(opened), len(opened.vectors), opened.vectors.dimension) == (12, 12, 18)
    assert (opened.manifest.corpus_source, opened.manifest.factory) == ("toy.jsonl", "Flat")
    assert sorted(contents_of(index.path)) == sorted(["manifest.json", *opened.manifest.files])
    assert sorted(os.listdir(tmp_path)) == ["index", "toy.jsonl"]
    np.testing.assert_array_equal(opened.vectors.reconstruct(range(12)), encoder.encode_passages(PASSAGES))


def test_flat_top_k_equals_semantic_search(index: PassageIndex, encoder: Encoder) -> None:
    # The reference embeds and searches on its own, from the text that an encoder is meant to see.
    texts = [f"{p.title}\n{p.text}" for p in PASSAGES]
    expected = util.semantic_search(encoder.model.encode(QUESTIONS), encoder.model.encode(texts), top_k=5)
    scores_Bk, ids_Bk = index.vectors.search(encoder.encode_questions(QUESTIONS), 5)
    assert ids_Bk.tolist() == [[hit["corpus_id"] for hit in hits] for hits in expected]
    np.testing.assert_allclose(scores_Bk, [[hit["score"] for hit in hits] for hits in expected], atol=1e-6)


def test_all_types_of_corpus_and_encoder_arguments(
    corpus_file: Path, encoder: Encoder, index: PassageIndex, tmp_path: Path
) -> None:
    dataset = datasets.Dataset.from_list([{"_id": p.id, "title": p.title, "text": p.text} for p in PASSAGES])
    for number, corpus in enumerate([str(corpus_file), Corpus.from_passages(PASSAGES), dataset]):
        built = build(corpus, encoder.name, tmp_path / f"other-{number}", batch_size=1 + number, progress=False)
        assert built.manifest.corpus_fingerprint == index.manifest.corpus_fingerprint
        np.testing.assert_allclose(
            built.vectors.reconstruct(range(12)), index.vectors.reconstruct(range(12)), atol=1e-6
        )


def test_mixed_dtype_is_recorded_and_matches_float32(encoder: Encoder, corpus_file: Path, tmp_path: Path) -> None:
    mixed = Encoder.from_pretrained(encoder.name, dtype="mixed")
    built = build(corpus_file, mixed, tmp_path / "mixed", progress=False)
    assert json.loads((tmp_path / "mixed/manifest.json").read_text())["encoder"]["dtype"] == "mixed"
    assert built.load_encoder().dtype == "mixed"
    assert PassageIndex.open(tmp_path / "mixed", encoder=encoder).verify(encoder=encoder)["lowest_cosine"] > 0.9999


@pytest.mark.parametrize("factory", ["Flat", "HNSW4", "IVF2,Flat", "PQ3x2", "IVF2,PQ3x2,Refine(SQ8)"])
def test_the_same_input_gives_the_same_bytes(factory: str, encoder: Encoder, corpus_file: Path, tmp_path: Path) -> None:
    threads = faiss.omp_get_max_threads()
    # Several threads insert into a graph in an order that is theirs to choose.
    faiss.omp_set_num_threads(1)
    try:
        for name in ("one", "two"):
            build(corpus_file, encoder, tmp_path / name, factory=factory, progress=False)
    finally:
        faiss.omp_set_num_threads(threads)
    one = contents_of(tmp_path / "one")
    assert one == contents_of(tmp_path / "two")
    learned = {"trained.faiss"} if "PQ" in factory or "IVF" in factory else set()
    segment = {"segments/000000/passages.arrow", "segments/000000/vectors.faiss"}
    assert set(one) == {"manifest.json", *segment, *learned}
    assert str(tmp_path / "one").encode() not in b"".join(one.values())


def test_trained_types_train_on_a_sample_and_contain_all_vectors(
    encoder: Encoder, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    train = FaissIndex.train
    monkeypatch.setattr(FaissIndex, "train", lambda self, sample: (sizes.append(len(sample)), train(self, sample))[1])
    monkeypatch.setattr(FaissIndex, "training_sample", lambda config, n: 6)
    built = build(corpus_file, encoder, tmp_path / "ivf", factory="IVF2,Flat", batch_size=1, progress=False)
    assert (sizes, len(built.vectors)) == ([6], 12)
    np.testing.assert_allclose(built.vectors.reconstruct(range(12)), encoder.encode_passages(PASSAGES), atol=1e-6)


def test_too_few_passages_for_the_factory_leave_nothing(encoder: Encoder, corpus_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 256 vectors to train on, but got 12"):
        build(corpus_file, encoder, tmp_path / "index", factory="PQ3", progress=False)
    assert os.listdir(tmp_path) == ["toy.jsonl"]


def test_chunking_happens_before_encoding(encoder: Encoder, corpus_file: Path, tmp_path: Path) -> None:
    chunker = Chunker(encoder.tokenizer, max_tokens=6, overlap=0)
    built = build(corpus_file, encoder, tmp_path / "index", chunker=chunker, progress=False)
    assert len(built) > 12
    assert built.corpus[0] == Passage("p0#0", "Hamlet", "Hamlet is a tragedy that")
    assert built.verify(encoder=encoder)["passages"] == len(built)


def test_an_interrupted_build_keeps_the_old_index_and_resumes(
    index: PassageIndex, encoder: Encoder, tmp_path: Path
) -> None:
    before = contents_of(tmp_path / "index")
    breaking = BreakingEncoder(encoder.model, name=encoder.name)
    corpus = Corpus.from_passages(PASSAGES[1:])
    for output in (tmp_path / "index", tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            build(corpus, breaking, output, overwrite=True, progress=False)
    assert contents_of(tmp_path / "index") == before
    assert sorted(os.listdir(tmp_path)) == [".index.building", ".new.building", "index", "toy.jsonl"]
    with pytest.raises(UsageError, match=r"An unfinished build of .*new is in .*resume \(--resume\), or start over"):
        build(corpus, encoder, tmp_path / "new", progress=False)
    with pytest.raises(MismatchError, match="started with factory = 'auto', but got 'SQ8'"):
        build(corpus, encoder, tmp_path / "new", factory="SQ8", resume=True, progress=False)
    resumed = build(corpus, encoder, tmp_path / "new", resume=True, progress=False)
    assert list(resumed.corpus) == PASSAGES[1:]
    assert len(build(corpus, encoder, tmp_path / "index", overwrite=True, progress=False)) == 11
    assert sorted(os.listdir(tmp_path)) == ["index", "new", "toy.jsonl"]


def test_resuming_a_complete_build_does_nothing(encoder: Encoder, corpus_file: Path, tmp_path: Path) -> None:
    built = build(corpus_file, encoder, tmp_path / "index", resume=True, progress=False)
    written = (tmp_path / "index/manifest.json").stat().st_mtime_ns
    again = build(corpus_file, encoder, tmp_path / "index", resume=True, progress=False)
    assert again.manifest == built.manifest
    assert (tmp_path / "index/manifest.json").stat().st_mtime_ns == written
    corpus_file.write_text('{"id": "x", "text": "hamlet"}\n')
    with pytest.raises(UsageError, match="already holds an index"):
        build(corpus_file, encoder, tmp_path / "index", resume=True, progress=False)


def test_plans_without_later_options_are_recognised(encoder: Encoder, corpus_file: Path, tmp_path: Path) -> None:
    """A plan says of an option that came later only what is not its default; the digest of an old plan is the same."""
    newer = {"quoting", "allow_untested"}
    breaking = BreakingEncoder(encoder.model, name=encoder.name)
    for output, options in ((tmp_path / "old", {}), (tmp_path / "csv", {"quoting": "csv"})):
        with pytest.raises(KeyboardInterrupt):
            build(corpus_file, breaking, output, progress=False, **options)
    plan = json.loads((tmp_path / ".old.building/plan.json").read_text())
    assert newer.isdisjoint(plan)
    with pytest.raises(MismatchError, match="started with quoting = 'auto', but got 'none'"):
        build(corpus_file, encoder, tmp_path / "old", quoting="none", resume=True, progress=False)
    with pytest.raises(MismatchError, match="started with quoting = 'csv', but got 'auto'"):
        build(corpus_file, encoder, tmp_path / "csv", resume=True, progress=False)
    built = build(corpus_file, encoder, tmp_path / "old", resume=True, progress=False)
    assert built.manifest.plan == hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def test_resuming_does_not_accept_an_index_that_was_changed(
    encoder: Encoder, corpus_file: Path, tmp_path: Path
) -> None:
    build(corpus_file, encoder, tmp_path / "index", progress=False)
    with IndexWriter(tmp_path / "index", encoder, progress=False) as writer:
        writer.delete(["p0"])
        writer.add([PASSAGES[0]])
    # The same passages again, if in another order.
    assert build(corpus_file, encoder, tmp_path / "index", resume=True, progress=False).manifest.version == 3
    with IndexWriter(tmp_path / "index", encoder, progress=False) as writer:
        writer.delete(["p0"])
    with pytest.raises(UsageError, match="already holds an index"):
        build(corpus_file, encoder, tmp_path / "index", resume=True, progress=False)


def test_a_build_inside_the_folder_of_its_corpus_is_resumed(
    encoder: Encoder, corpus_file: Path, tmp_path: Path
) -> None:
    breaking = BreakingEncoder(encoder.model, name=encoder.name)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, breaking, tmp_path / "index", resume=True, progress=False)
    first = build(tmp_path, encoder, tmp_path / "index", resume=True, progress=False)
    assert list(first.corpus) == PASSAGES
    assert build(tmp_path, encoder, tmp_path / "index", resume=True, progress=False).manifest == first.manifest


def test_resuming_refuses_a_taken_output_before_it_encodes(
    index: PassageIndex, encoder: Encoder, corpus_file: Path
) -> None:
    breaking = BreakingEncoder(encoder.model, name=encoder.name)
    with pytest.raises(KeyboardInterrupt):
        build(corpus_file, breaking, index.path, overwrite=True, progress=False)
    with pytest.raises(UsageError, match="already holds an index"):  # and not KeyboardInterrupt
        build(corpus_file, breaking, index.path, resume=True, progress=False)
    assert build(corpus_file, encoder, index.path, resume=True, overwrite=True, progress=False).manifest.version == 1


def test_a_build_killed_after_its_last_rename_leaves_no_files(
    index: PassageIndex, encoder: Encoder, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(_: Path) -> None:
        if (tmp_path / ".index.old").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(atomic_files, "remove_replaced", dying)
        with pytest.raises(KeyboardInterrupt):
            build(corpus_file, encoder, index.path, overwrite=True, progress=False)
    assert sorted(os.listdir(tmp_path)) == [".index.building", ".index.old", "index", "toy.jsonl"]
    assert len(build(corpus_file, encoder, index.path, resume=True, progress=False)) == 12
    assert sorted(os.listdir(tmp_path)) == ["index", "toy.jsonl"]


def test_a_quarantine_that_was_cut_off_is_written_again(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"id": "p11", "text": "hamlet"}\n{')
    work = tmp_path / ".index.building"
    breaking = BreakingEncoder(encoder.model, name=encoder.name)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "bad.jsonl", breaking, tmp_path / "index", on_error="skip", progress=False)
    (work / "layout.json").unlink()
    (work / "index/quarantine.jsonl").write_text('{"source": "ba')
    build(tmp_path / "bad.jsonl", encoder, tmp_path / "index", on_error="skip", resume=True, progress=False)
    assert json.loads((tmp_path / "index/quarantine.jsonl").read_text())["line"] == 2


def test_impossible_outputs_are_refused(
    encoder: Encoder, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (corpus_file / "index", tmp_path / ("x" * 250)):
        with pytest.raises(UsageError, match="must be writable, but creating a file there fails"):
            build(corpus_file, encoder, place, progress=False)
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "disk")
    with pytest.raises(UsageError, match=r"disk is the root of a file system\. Choose a folder inside it"):
        build(corpus_file, encoder, tmp_path / "disk", progress=False)
    assert os.listdir(tmp_path) == ["toy.jsonl"]


def test_a_shard_that_has_lost_bytes_is_encoded_again(
    encoder: Encoder, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents_of(build(corpus_file, encoder, tmp_path / "whole", progress=False).path)
    monkeypatch.setattr(shards, "ROWS", 5)
    with pytest.raises(KeyboardInterrupt):
        build(corpus_file, BreakingEncoder(encoder.model, name=encoder.name), tmp_path / "index", progress=False)
    shard = tmp_path / ".index.building/vectors/000001.f32"
    shard.write_bytes(shard.read_bytes()[:-1])
    resumed = build(corpus_file, encoder, tmp_path / "index", resume=True, progress=False)
    assert contents_of(resumed.path) == whole


@pytest.mark.parametrize("position", [107, 115])
def test_a_damaged_list_of_deleted_rows_is_refused(position: int, index: PassageIndex, encoder: Encoder) -> None:
    with IndexWriter(index.path, encoder, progress=False) as writer:
        writer.delete(["p0"])
    file = index.path / "deleted-000002.npy"
    content = bytearray(file.read_bytes())
    content[position] ^= 8  # a bracket opens in the header that numpy reads as Python
    file.write_bytes(content)
    with pytest.raises(MismatchError, match=r"deleted-000002\.npy of .* must be readable, but"):
        PassageIndex.open(index.path)


def test_a_damaged_passage_file_is_refused(index: PassageIndex) -> None:
    file = index.path / "segments/000000/passages.arrow"
    content = file.read_bytes()
    for position in range(len(content) // 2):
        for bit in (1, 16):
            damaged = bytearray(content)
            damaged[position] ^= bit
            file.write_bytes(damaged)
            with pytest.raises(MismatchError):
                PassageIndex.open(index.path, verify="checksums")
            try:
                PassageIndex.open(index.path)
            except MismatchError as error:
                assert "Build" in str(error)


def test_one_process_builds_at_a_time(encoder: Encoder, corpus_file: Path, tmp_path: Path) -> None:
    with exclusive_writer_lock(tmp_path / "index"):
        with pytest.raises(UsageError, match=r"Only one process can write .*index at a time"):
            build(corpus_file, encoder, tmp_path / "index", progress=False)
        assert len(build(corpus_file, encoder, tmp_path / "other", progress=False)) == 12
    assert len(build(corpus_file, encoder, tmp_path / "index", progress=False)) == 12


def test_memory_cuts_an_index_into_segments_that_are_searched_as_one(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Room for 60 vectors at a time, and 150 to index, in shards of 16.
    monkeypatch.setattr(builder, "ROWS", 16)
    monkeypatch.setattr(shards, "ROWS", 16)
    monkeypatch.setattr(builder, "index_memory", lambda *_: 60)
    monkeypatch.setattr(FaissIndex, "build_bytes", lambda config, n: n)
    passages = [Passage(f"n{i}", "", PASSAGES[i % 12].contents + f" {QUESTIONS[i % 3]} {i}") for i in range(150)]
    built = build(Corpus.from_passages(passages), encoder, tmp_path / "index", factory="HNSW16", progress=False)
    # Three parts of 50 would be 64 with whole shards; four of 38 are 48.
    assert [segment.rows for segment in built.manifest.segments] == [48, 48, 48, 6]
    vectors = encoder.encode_passages(passages)
    np.testing.assert_array_equal(built.vectors.reconstruct(range(150)), vectors)
    scores_Bk, _ = built.vectors.search(encoder.encode_questions(QUESTIONS), 20)
    exact_Bk = -np.sort(-(encoder.encode_questions(QUESTIONS) @ vectors.T), axis=1)[:, :20]
    np.testing.assert_allclose(scores_Bk, exact_Bk, atol=1e-6)
    assert list(built.corpus) == passages


def test_a_bm25_index_that_does_not_fit_is_refused_before_encoding(
    encoder: Encoder, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Different words of each passage, counted by hand; the margin of 600 bytes is for what stemming makes one.
    words = sum(len({w.strip(".;,()").casefold() for w in p.contents.split()}) for p in PASSAGES)
    for memory, fits in ((29 * words + 600, True), (29 * words - 600, False)):
        monkeypatch.setattr(builder, "index_memory", lambda *_, memory=memory: memory)
        options = {"bm25": True, "max_memory": "2GB", "overwrite": True, "progress": False}
        if fits:
            assert len(build(corpus_file, encoder, tmp_path / "index", factory="Flat", **options).load_bm25()) == 12
            continue
        with pytest.raises(
            UsageError, match=r"A BM25 index of 12 passages like these takes about .*build without BM25"
        ):
            build(corpus_file, encoder, tmp_path / "index", factory="Flat", **options)


def test_too_little_memory_is_refused(encoder: Encoder, corpus_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"max_memory must leave room for Python.* but it is 100 MB"):
        build(corpus_file, encoder, tmp_path / "index", max_memory="100MB", progress=False)
    with pytest.raises(UsageError, match=r'"2GB" or "512MiB", but got \'much\''):
        build(corpus_file, encoder, tmp_path / "index", max_memory="much", progress=False)
    with pytest.raises(UsageError, match=r"Building 'HNSW32' needs at least .* of memory, but 10 B are left"):
        builder.segment_rows(FaissIndex, StoreConfig(dimension=384, factory="HNSW32"), 10**6, 10)
    assert builder.segment_rows(FaissIndex, StoreConfig(dimension=384, factory="Flat"), 10**9, 10**6) == 10**9


def test_a_broken_corpus_leaves_nothing(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "text": "x"}\n{')
    with pytest.raises(DataError, match=r"bad\.jsonl:2: every line must be one JSON object"):
        build(tmp_path / "bad.jsonl", encoder, tmp_path / "index", progress=False)
    assert os.listdir(tmp_path) == ["bad.jsonl"]


def test_a_failed_replacement_restores_the_old_index(
    index: PassageIndex, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents_of(index.path)
    rename = os.replace

    def failing(source: Path, target: Path) -> None:
        if target == index.path and ".building" in str(source):
            raise OSError("disk on fire")
        rename(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="disk on fire"):
        build(Corpus.from_passages(PASSAGES[:5]), encoder, index.path, overwrite=True, progress=False)
    assert contents_of(index.path) == before
    monkeypatch.undo()
    resumed = build(
        Corpus.from_passages(PASSAGES[:5]), encoder, index.path, overwrite=True, resume=True, progress=False
    )
    assert len(resumed) == 5


def test_an_output_that_is_taken_is_refused(index: PassageIndex, encoder: Encoder, tmp_path: Path) -> None:
    smaller = Corpus.from_passages(PASSAGES[:5])
    with pytest.raises(UsageError, match=r"already holds an index.*ask to overwrite"):
        build(smaller, encoder, index.path, progress=False)
    assert len(build(smaller, encoder, index.path, overwrite=True, progress=False)) == 5
    (tmp_path / "home").mkdir()
    assert len(build(smaller, encoder, tmp_path / "home", progress=False)) == 5
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary/today.txt").write_text("dear diary")
    for output in (tmp_path / "diary", tmp_path / "diary/today.txt"):
        with pytest.raises(UsageError, match="already holds something that is not an index"):
            build(smaller, encoder, output, overwrite=True, progress=False)
    assert sorted(os.listdir(tmp_path)) == ["diary", "home", "index", "toy.jsonl"]
    assert (tmp_path / "diary/today.txt").read_text() == "dear diary"


def test_opening_something_else_than_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"directory with a manifest\.json, but .* has none"):
        PassageIndex.open(tmp_path)
    with pytest.raises(MismatchError, match=r"but .*missing is no directory"):
        PassageIndex.open(tmp_path / "missing")
    with pytest.raises(UsageError, match="verify must be 'none', 'sizes' or 'checksums', but got 'all'"):
        PassageIndex.open(tmp_path, verify="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["segments/000000/vectors.faiss", "segments/000000/passages.arrow"])
def test_truncated_and_changed_files_are_refused(name: str, index: PassageIndex) -> None:
    path = index.path / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MismatchError, match=rf"{path.name} must have {len(whole)} bytes, .*truncated"):
        PassageIndex.open(index.path)
    # Even unchecked, a truncated file gives a sentence and no crash.
    with pytest.raises(MismatchError, match=r"damaged or truncated|passages of an index must be readable"):
        PassageIndex.open(index.path, verify="none")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(MismatchError, match=rf"{path.name} must have the SHA-256"):
        PassageIndex.open(index.path, verify="checksums")


def test_another_encoder_is_refused(index: PassageIndex, encoder: Encoder) -> None:
    other = tiny_encoder([p.contents for p in PASSAGES], dimension=18, seed=5)
    with pytest.raises(MismatchError, match="its weights differ"):
        PassageIndex.open(index.path, encoder=other)
    with pytest.raises(MismatchError, match="its weights differ"):
        index.verify(encoder=other)
    assert index.load_encoder().fingerprint == encoder.fingerprint


def test_an_encoder_that_changed_in_its_folder_is_refused(encoder: Encoder, corpus_file: Path, tmp_path: Path) -> None:
    shutil.copytree(encoder.name, tmp_path / "words")
    built = build(corpus_file, tmp_path / "words", tmp_path / "index", progress=False)
    shutil.rmtree(tmp_path / "words")
    tiny_encoder([p.contents for p in PASSAGES], dimension=18, seed=6).save_pretrained(tmp_path / "words")
    with pytest.raises(MismatchError, match="its weights differ"):
        built.load_encoder()


@pytest.mark.parametrize(
    ("part", "message"),
    [("vectors.faiss", "vectors = 12 .*, but it has 9"), ("passages.arrow", "passages = 12 .*, but it has 9")],
)
def test_parts_of_another_index_are_refused(
    part: str, message: str, index: PassageIndex, encoder: Encoder, tmp_path: Path
) -> None:
    other = build(Corpus.from_passages(PASSAGES[:9]), encoder, tmp_path / "other", progress=False)
    shutil.copy(other.path / "segments/000000" / part, index.path / "segments/000000" / part)
    with pytest.raises(MismatchError, match=message):
        PassageIndex.open(index.path, verify="none")


def test_verify_reports_what_it_checked(index: PassageIndex, encoder: Encoder, corpus_file: Path) -> None:
    report = index.verify(encoder=encoder, corpus=Corpus.from_file(corpus_file), sample=5)
    lowest = report.pop("lowest_cosine")
    assert report == {
        "files": 2,
        "passages": 12,
        "encoder_checked": True,
        "corpus_checked": True,
        "sampled": 5,
    }
    assert lowest == pytest.approx(1, abs=1e-6)
    with pytest.raises(MismatchError, match="but got a corpus of 11 passages"):
        index.verify(corpus=Corpus.from_passages(PASSAGES[:11]))


def test_verify_finds_vectors_in_the_wrong_order(index: PassageIndex, encoder: Encoder) -> None:
    swapped = encoder.encode_passages(PASSAGES)[[0, 2, 1, *range(3, 12)]]
    wrong = PassageIndex(index.path, index.corpus, Segments([FaissIndex.build(swapped)]), index.manifest)
    with pytest.raises(MismatchError, match="vector of passage 'p1' must be what the encoder gives"):
        wrong.verify(encoder=encoder)


def test_verify_reads_the_passages_again(index: PassageIndex) -> None:
    manifest = replace(index.manifest, corpus_fingerprint="0" * 64)
    assert index.verify()["passages"] == 12
    with pytest.raises(MismatchError, match=r"passages of 'toy\.jsonl' \(fingerprint 000000000000\), but got a corpus"):
        PassageIndex(index.path, index.corpus, index.vectors, manifest).verify()


@pytest.mark.parametrize("name", ["vectors.faiss", "passages.arrow"])
def test_verify_finds_files_missing_from_the_manifest(name: str, index: PassageIndex) -> None:
    files = {file: record for file, record in index.manifest.files.items() if not file.endswith(name)}
    replace(index.manifest, files=files).save(index.path / "manifest.json")
    with pytest.raises(MismatchError, match=rf"must list every file .* leaves out 'segments/000000/{name}'"):
        PassageIndex.open(index.path).verify()


def test_load_encoder_restores_the_settings_of_the_build(encoder: Encoder, corpus_file: Path, tmp_path: Path) -> None:
    prompts = {"question_prompt": "who ", "passage_prompt": "river "}
    prompted = Encoder.from_pretrained(encoder.name, device="cpu", dtype="float16", **prompts)
    loaded = build(corpus_file, prompted, tmp_path / "index", progress=False).load_encoder(device="cpu")
    assert (loaded.question_prompt, loaded.passage_prompt, loaded.dtype) == ("who ", "river ", "float16")
    assert loaded.fingerprint == prompted.fingerprint != encoder.fingerprint


def test_verify_does_not_compare_vectors_that_were_compressed(
    encoder: Encoder, corpus_file: Path, tmp_path: Path
) -> None:
    built = build(corpus_file, encoder, tmp_path / "index", factory="PQ3x2", progress=False)
    report = built.verify(encoder=encoder)
    assert (report["sampled"], report["lowest_cosine"]) == (0, None)


def test_info_is_ready_for_json(index: PassageIndex) -> None:
    info = index.info()
    assert json.loads(json.dumps(info)) == info
    assert info["bytes_on_disk"] == sum(len(content) for content in contents_of(index.path).values())
    assert (info["passages"], info["dimension"], info["factory"]) == (12, 18, "Flat")


def test_the_progress_bar_counts_passages(
    encoder: Encoder, corpus_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build(corpus_file, encoder, tmp_path / "quiet", progress=False)
    assert "passages" not in capfd.readouterr().err
    build(corpus_file, encoder, tmp_path / "loud", progress=True)
    assert "12/12" in (shown := capfd.readouterr().err) and "passages/s" in shown


def test_real_passages_with_the_real_encoder(data_dir: Path, real_encoder_dir: Path, tmp_path: Path) -> None:
    corpus = Corpus.from_passages(islice(Corpus.from_file(data_dir / "2wiki/corpus.jsonl.gz"), 60))
    encoder = Encoder.from_pretrained(real_encoder_dir, device="cpu")
    built = build(corpus, encoder, tmp_path / "index", progress=False)
    questions = [f"What is {passage.title}?" for passage in corpus.take(range(0, 60, 7))]
    embeddings_Nd = torch.from_numpy(encoder.model.encode([p.contents for p in corpus]))
    expected = util.semantic_search(torch.from_numpy(encoder.model.encode(questions)), embeddings_Nd, top_k=20)
    _, ids_Bk = built.vectors.search(encoder.encode_questions(questions), 20)
    assert ids_Bk.tolist() == [[hit["corpus_id"] for hit in hits] for hits in expected]
    assert built.verify(encoder=encoder, sample=9)["lowest_cosine"] > 0.99999
