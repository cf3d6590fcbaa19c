"""A passage is a title, a text, or both: one without a text is read, cut, embedded, searched, shown and cited."""

import gzip
import json
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import PASSAGES, byte_tokenizer

from generator.prompts import AnswerPrompt
from indexes import BM25Index, Chunker, Corpus, DataError, Encoder, IndexWriter, Passage, PassageIndex, build_index
from rag.answering.answer import citations
from rag.planning.index_job import IndexJob
from rag.planning.model_sizes import EncoderShape
from rag.planning.passage_measurements import split_sample
from training.questions.loading import load_examples

# beir#158: in TREC-COVID such are the articles whose abstract is missing; BEIR embeds title + text.
TITLE_ONLY = Passage("c1", "Radium in humid rooms", "")
ROWS = [
    {"_id": "c1", "title": "Radium in humid rooms", "text": ""},
    {"_id": "c2", "title": "Paris", "text": "Paris lies on the Seine."},
]
READ = [TITLE_ONLY, Passage("c2", "Paris", "Paris lies on the Seine.")]


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_beir_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "covid.zip", "w") as archive:
        archive.writestr("covid/corpus.jsonl", lines(ROWS))
    return folder / "covid.zip"


def as_jsonl_gz(folder: Path) -> Path:
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    return folder / "corpus.jsonl.gz"


def as_json_with_null(folder: Path) -> Path:
    (folder / "corpus.json").write_text(json.dumps([{**ROWS[0], "text": None}, ROWS[1]]))
    return folder / "corpus.json"


def as_contents(folder: Path) -> Path:
    (folder / "corpus.jsonl").write_bytes(
        lines([{"id": "c1", "title": ROWS[0]["title"], "contents": ""}, {"id": "c2", "contents": READ[1].contents}])
    )
    return folder / "corpus.jsonl"


def as_csv(folder: Path) -> Path:
    (folder / "corpus.csv").write_text("id,title,text\nc1,Radium in humid rooms,\nc2,Paris,Paris lies on the Seine.\n")
    return folder / "corpus.csv"


def as_parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist([{**ROWS[0], "text": None}, ROWS[1]]), folder / "corpus.parquet")
    return folder / "corpus.parquet"


def as_saved_dataset(folder: Path) -> Path:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize(
    "write", [as_beir_zip, as_jsonl_gz, as_json_with_null, as_contents, as_csv, as_parquet, as_saved_dataset]
)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_title_without_a_text_is_a_passage_of_every_container(write: object, on_error: str, tmp_path: Path) -> None:
    corpus = Corpus.from_file(write(tmp_path), on_error=on_error)
    assert list(corpus) == READ
    assert corpus.quarantined == 0
    assert corpus.fingerprint == Corpus.from_passages(READ).fingerprint


@pytest.mark.parametrize(
    "row",
    [
        {"id": "a", "title": " ", "text": "\n"},  # neither says something
        {"id": "a", "title": "", "contents": " \n "},
        {"id": "a", "title": "A title", "body": "Text under another name is a mistake, no missing text."},
    ],
)
def test_a_record_without_title_and_text_is_refused(row: dict) -> None:
    with pytest.raises(DataError, match=r"record 0: a passage must have .*got (neither \(id 'a'\)|only)"):
        Corpus.from_passages([row])


def test_a_paragraph_that_is_only_a_title_is_in_the_corpus_of_its_questions(tmp_path: Path) -> None:
    question = {
        "_id": "h",
        "question": "q?",
        "answer": "a",
        "supporting_facts": [["Ohio", 0]],
        "context": [["Ohio", []], ["Paris", ["A city."]], ["", [" "]]],
    }
    (tmp_path / "hotpot.json").write_text(json.dumps([question]))
    passages = list(Corpus.from_file(tmp_path / "hotpot.json"))
    assert [(p.title, p.text) for p in passages] == [("Ohio", ""), ("Paris", "A city.")]
    assert load_examples(tmp_path / "hotpot.json")[0].gold_ids == (passages[0].id,)


@pytest.mark.parametrize(
    ("passage", "contents"),
    [
        (TITLE_ONLY, "Radium in humid rooms"),
        (Passage("a", "Title", " \n"), "Title"),
        (Passage("a", "  ", "Text."), "Text."),
        (Passage("a", "Title", "Text."), "Title\nText."),
    ],
)
def test_contents_have_no_line_for_what_is_blank(passage: Passage, contents: str) -> None:
    assert passage.contents == contents


def test_a_title_only_passage_is_not_chunked() -> None:
    chunker = Chunker(byte_tokenizer(), max_tokens=12, overlap=2)
    chunked = list(Corpus.from_passages(READ).chunked(chunker))
    assert chunked[0] == TITLE_ONLY
    assert [p.id for p in chunked[1:]] == [f"c2#{n}" for n in range(len(chunked) - 1)]
    # The plan of an index cuts by characters where there is no tokenizer, and counts the same passages.
    job = IndexJob(
        encoder="e",
        shape=EncoderShape(dimension=8),
        count=2,
        sample=READ,
        basis="both",
        chunk_tokens=12,
        chunk_overlap=2,
    )
    assert split_sample(job, None, "")[0] == TITLE_ONLY


def test_a_title_only_passage_is_shown_by_its_title() -> None:
    tokenizer, prompt, passages = byte_tokenizer(), AnswerPrompt(), [TITLE_ONLY, PASSAGES[0]]
    whole = prompt.encode(tokenizer, "who?", passages, max_tokens=4000)
    cut = tokenizer.decode(prompt.encode(tokenizer, "who?", passages, max_tokens=len(whole) - 20))
    assert "[1] Title: Radium in humid rooms Text: \n[2] Title: Hamlet Text: Hamlet is a tragedy" in cut


def test_a_title_only_passage_is_embedded_and_scored_by_its_title(encoder: Encoder) -> None:
    as_text = Passage("c1", "", TITLE_ONLY.title)
    np.testing.assert_array_equal(encoder.encode_passages([TITLE_ONLY]), encoder.encode_passages([as_text]))
    question = ["radium rooms"]
    one, other = (BM25Index.build([p, *PASSAGES]).search(question, 3) for p in (TITLE_ONLY, as_text))
    assert one[1][0, 0] == 0
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_a_title_only_passage_is_cited_if_its_title_contains_the_answer() -> None:
    assert citations("humid rooms", [PASSAGES[0], TITLE_ONLY]) == ["c1"]


def test_a_writer_adds_updates_and_syncs_title_only_passages(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "index"
    build_index(Corpus.from_passages(PASSAGES), encoder, path, bm25=True, progress=False)
    with IndexWriter(path, encoder) as writer:
        writer.add([{"_id": "c1", "title": TITLE_ONLY.title, "text": ""}])
    found = PassageIndex.open(path, encoder=encoder)
    assert list(found.corpus) == [*PASSAGES, TITLE_ONLY]
    emptied = Passage("p4", "Berlin", "")
    kept = [p if p.id != "p4" else emptied for p in [*PASSAGES, TITLE_ONLY]]
    with IndexWriter(path, encoder) as writer:
        change = writer.sync(kept)
    assert (change.added, change.updated, change.deleted) == (1, 1, 1)
    opened = PassageIndex.open(path, encoder=encoder, verify="checksums")
    assert {p.id: p for p in opened.corpus} == {p.id: p for p in kept}
    opened.verify(encoder=encoder, corpus=Corpus.from_passages(kept))
