"""The life of an index on the command line: built, resumed, changed, followed, tuned, verified."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_models import PASSAGES, tiny_encoder

from indexes.corpora.passage import Passage
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from rag.cli import main

NEW = [Passage("n0", "Elbe", "The Elbe is a river."), Passage("n1", "Vienna", "Vienna is the capital of Austria.")]


def rows(passages: Sequence[Passage]) -> str:
    return "".join(json.dumps({"id": p.id, "title": p.title, "text": p.text}) + "\n" for p in passages)


def run(words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def result(words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> dict:
    code, out, err = run([*words, "--json"], capsys)
    assert code == 0, err
    return json.loads(out)


@pytest.fixture
def built(encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "corpus.jsonl").write_text(rows(PASSAGES))
    words = ["index", "build", "--corpus", tmp_path / "corpus.jsonl", "--encoder", encoder.name]
    assert result([*words, "--output_dir", tmp_path / "index", "--bm25"], capsys)["bm25"] is True
    return tmp_path / "index"


def test_resume_starts_a_build_and_accepts_a_finished_one(
    built: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["index", "build", "--corpus", tmp_path / "corpus.jsonl", "--encoder", encoder.name]
    words += ["--output_dir", tmp_path / "other", "--factory", "SQ8", "--max-memory=3GB", "--on-error", "raise"]
    assert run(words, capsys)[0] == 0
    code, _, err = run(words, capsys)
    assert (code, "already holds an index" in err) == (2, True)
    for _ in range(2):
        assert result([*words, "--resume"], capsys)["factory"] == "SQ8"


def test_add_delete_update_sync_compact(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new.jsonl").write_text(rows(NEW))
    added = result(["index", "add", built, "--corpus", tmp_path / "new.jsonl"], capsys)
    assert (added["version"], added["added"], added["passages"]) == (2, 2, 14)
    code, _, err = run(["index", "add", built, "--corpus", tmp_path / "new.jsonl"], capsys)
    assert code == 3 and "'n0' is in the index already" in err
    updated = result(["index", "update", built, "--corpus", tmp_path / "new.jsonl"], capsys)
    assert (updated["version"], updated["unchanged"]) == (2, 2)
    (tmp_path / "ids").write_text("p3\np5\n")
    deleted = result(["index", "delete", built, "n1", "--ids_file", tmp_path / "ids"], capsys)
    assert (deleted["version"], deleted["deleted"], deleted["passages"]) == (3, 3, 11)
    assert run(["index", "delete", built, "n1"], capsys)[0] == 3
    assert run(["index", "delete", built], capsys)[0] == 2
    synced = result(["index", "sync", built, "--corpus", tmp_path / "corpus.jsonl"], capsys)
    assert (synced["added"], synced["deleted"], synced["passages"]) == (2, 1, 12)
    assert result(["index", "compact", built], capsys)["version"] == 5
    info = result(["index", "info", built], capsys)
    assert (info["segments"], info["deleted"], info["version"]) == ([12], 0, 5)
    assert result(["index", "verify", built, "--corpus", tmp_path / "corpus.jsonl"], capsys)["corpus_checked"] is True


def test_broken_records_are_left_out_listed_and_followed(
    encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(rows(PASSAGES[:2]) + '{"id": "x", "text": ""}\n{broken\n' + rows(PASSAGES[2:]))
    words = ["index", "build", "--corpus", corpus, "--encoder", encoder.name, "--output_dir", tmp_path / "index"]
    code, _, err = run(words, capsys)
    assert code == 3 and "corpus.jsonl:3: " in err
    assert result([*words, "--on_error", "skip"], capsys)["passages"] == 12
    listed = [json.loads(line) for line in (tmp_path / "index/quarantine.jsonl").read_text().splitlines()]
    assert [row["line"] for row in listed] == [3, 4]
    follow = ["--corpus", corpus, "--on_error", "skip"]
    assert result(["index", "verify", tmp_path / "index", *follow], capsys)["corpus_checked"] is True
    corpus.write_text(corpus.read_text() + rows(NEW))
    followed = result(["index", "sync", tmp_path / "index", *follow, "--quarantine", tmp_path / "left"], capsys)
    assert (followed["added"], followed["deleted"]) == (2, 0)
    assert len((tmp_path / "left").read_text().splitlines()) == 2


def test_changes_use_the_chunking_of_the_build(
    encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "corpus.jsonl").write_text(rows(PASSAGES))
    corpus = ["--corpus", tmp_path / "corpus.jsonl"]
    words = ["index", "build", *corpus, "--encoder", encoder.name, "--output_dir", tmp_path / "index"]
    chunks = result([*words, "--chunk_tokens", "6", "--chunk_overlap", "0"], capsys)["passages"]
    assert chunks > 12
    assert result(["index", "verify", tmp_path / "index", *corpus], capsys)["passages"] == chunks
    assert result(["index", "sync", tmp_path / "index", *corpus], capsys)["unchanged"] == chunks


def test_tune_keeps_what_it_found(
    built: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["index", "build", "--corpus", tmp_path / "corpus.jsonl", "--encoder", encoder.name]
    assert run([*words, "--output_dir", tmp_path / "ivf", "--factory", "IVF4,Flat"], capsys)[0] == 0
    (tmp_path / "questions.jsonl").write_text(
        "".join(json.dumps({"id": p.id, "question": p.text, "golden_answers": ["x"]}) + "\n" for p in PASSAGES)
    )
    tune = ["index", "tune", tmp_path / "ivf", "--questions", tmp_path / "questions.jsonl", "-k", "3", "--recall", "1"]
    dry = result([*tune, "--dry_run", "--reference", built], capsys)
    assert dry["reached"] and dry["recall"] == 1
    assert result(["index", "info", tmp_path / "ivf"], capsys)["search_parameters"] == ""
    found = result(tune, capsys)
    assert result(["index", "info", tmp_path / "ivf"], capsys)["search_parameters"] == found["parameters"]
    assert found["parameters"].startswith("nprobe=")
    other = tmp_path / "other"
    (tmp_path / "new.jsonl").write_text(rows(NEW))
    assert run([*words[:2], "--corpus", tmp_path / "new.jsonl", *words[4:], "--output_dir", other], capsys)[0] == 0
    code, _, err = run([*tune, "--reference", other], capsys)
    assert code == 4 and "a corpus of 2 passages" in err

    tiny_encoder(["other words"], seed=1).save_pretrained(tmp_path / "encoder")
    code, _, err = run([*tune, "--encoder", tmp_path / "encoder"], capsys)
    assert code == 4 and "The index was built with the encoder" in err
    code, _, err = run([*tune, "--reference", tmp_path / "ivf"], capsys)
    assert code == 2 and 'must be searched exactly ("Flat", or FLAT in Milvus)' in err and "'IVF4,Flat'" in err


def test_an_untested_kind_is_refused_until_it_is_allowed_and_that_is_remembered(
    built: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    output, factory = tmp_path / "allowed", "IVF4(SQ6),Flat"
    words = ["index", "build", "--corpus", tmp_path / "corpus.jsonl", "--encoder", encoder.name]
    words += ["--output_dir", output, "--factory", factory]
    code, _, err = run(words, capsys)
    assert code == 2 and f"{factory!r} is untested" in err and "--allow_untested" in err and not output.exists()
    assert result([*words, "--allow_untested"], capsys)["factory"] == factory
    assert result([*words, "--allow_untested", "--resume"], capsys)["factory"] == factory
    (tmp_path / "new.jsonl").write_text(rows(NEW))
    assert result(["index", "add", output, "--corpus", tmp_path / "new.jsonl"], capsys)["passages"] == 14
    assert result(["index", "compact", output], capsys)["version"] == 3
    PassageIndex.open(output, encoder=encoder)
    assert "is untested" not in caplog.text
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest.pop("allow_untested") is True
    (output / "manifest.json").write_text(json.dumps(manifest))  # as an older version wrote it
    queries = encoder.encode_questions(["capital of Austria"])
    assert PassageIndex.open(output).vectors.search(queries, 14, parameters="nprobe=4")[1].min() == 0
    assert f"its kind {factory!r} is untested" in caplog.text


def test_a_kind_with_known_faults_is_refused_whatever_is_allowed(
    built: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, factory in (("index build", "HNSW16,SQ0"), ("plan index", "SQ8,Refine(FlatIPPanorama8)")):
        words = [*command.split(), "--corpus", tmp_path / "corpus.jsonl", "--encoder", encoder.name]
        code, _, err = run([*words, "--output_dir", tmp_path / "no", "--factory", factory, "--allow_untested"], capsys)
        assert code == 2 and repr(factory) in err and not (tmp_path / "no").exists()
