"""Whole numbers that a missing neighbour turned into floats are whole numbers again, by column; nothing else changes.

pandas 3.1.1 keeps a column of plain integers as float64 as soon as one value is missing; pyarrow, `to_json` and
`datasets` 5.2.0 write down what they are given.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from indexes.corpora.corpus import Corpus
from indexes.errors import DataError
from rag.forgetting.retention_items import read_answered_prompts
from rag.metrics import exact_match
from training.questions.loading import load_examples


def parquet(frame: pd.DataFrame, folder: Path) -> Path:
    frame.to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


def jsonl(frame: pd.DataFrame, folder: Path) -> Path:
    frame.to_json(folder / "t.jsonl", orient="records", lines=True)
    return folder / "t.jsonl"


def array(frame: pd.DataFrame, folder: Path) -> Path:
    frame.to_json(folder / "t.json", orient="records")
    return folder / "t.json"


def arrow(frame: pd.DataFrame, folder: Path) -> Path:
    table = pa.Table.from_pandas(frame)
    with pa.ipc.new_file(folder / "t.arrow", table.schema) as file:
        file.write_table(table)
    return folder / "t.arrow"


def dataset(frame: pd.DataFrame, folder: Path) -> datasets.Dataset:
    return datasets.Dataset.from_pandas(frame, preserve_index=False)


FORMS = [parquet, jsonl, array, arrow, dataset]
Form = Callable[[pd.DataFrame, Path], Any]


def corpus_of(source: Any) -> Corpus:
    return Corpus.from_dataset(source) if isinstance(source, datasets.Dataset) else Corpus.from_file(source)


@pytest.mark.parametrize("form", FORMS)
def test_whole_number_answers_have_no_decimal_point(form: Form, tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["a", "b"], "question": ["How many?", "Who?"], "answer": [42, None]})
    assert frame["answer"].dtype == "float64"
    first, second = load_examples(form(frame, tmp_path))
    assert (first.golden_answers, second.golden_answers) == (("42",), ())
    assert [exact_match(said, first.golden_answers) for said in ("42", "420")] == [1.0, 0.0]


@pytest.mark.parametrize("form", FORMS)
def test_ids_of_questions_and_gold_passages_are_those_of_the_corpus(form: Form, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    corpus = corpus_of(form(pd.DataFrame({"id": [10, 20, None], "text": ["x", "y", "z"]}), tmp_path / "c"))
    assert list(corpus.ids) == ["10", "20", "2"]  # a row without an id is named by its number
    frame = pd.DataFrame({"id": [7, None], "question": ["q?", "r?"], "gold_ids": [[10.0, 20.0], None]})
    first, second = load_examples(form(frame, tmp_path))
    assert (first.id, first.gold_ids, second.id) == ("7", ("10", "20"), "1")
    assert corpus.known_ids(first.gold_ids) == {"10", "20"}


@pytest.mark.parametrize("form", FORMS)
def test_a_column_with_another_number_is_kept_as_it_is(form: Form, tmp_path: Path) -> None:
    frame = pd.DataFrame({"question": ["How many?", "How much?", "Who?"], "answer": [42, 3.5, None]})
    assert [e.golden_answers for e in load_examples(form(frame, tmp_path))] == [("42.0",), ("3.5",), ()]


@pytest.mark.parametrize("form", FORMS)
def test_a_text_is_never_a_number(form: Form, tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["1.0", "2.0"], "question": ["a?", "b?"], "answers": [["42.0"], ["1e3"]]})
    assert [(e.id, e.golden_answers) for e in load_examples(form(frame, tmp_path))] == [
        ("1.0", ("42.0",)),
        ("2.0", ("1e3",)),
    ]
    (tmp_path / "c").mkdir()
    corpus = corpus_of(form(pd.DataFrame({"id": ["1.0", None], "text": ["x", "y"]}), tmp_path / "c"))
    assert list(corpus.ids) == ["1.0", "1"]


@pytest.mark.parametrize("form", FORMS)
def test_lists_and_aliases_are_columns_too(form: Form, tmp_path: Path) -> None:
    rows = {"question": ["a?", "b?"], "answers": [[1960.0, 60.0], [7.0]], "aliases": [None, [8.0]]}
    found = [e.golden_answers for e in load_examples(form(pd.DataFrame(rows), tmp_path))]
    assert found == [("1960", "60"), ("7", "8")]
    rows["answers"][1] = [7.5]
    assert [e.golden_answers for e in load_examples(form(pd.DataFrame(rows), tmp_path))] == [
        ("1960.0", "60.0"),
        ("7.5", "8"),
    ]


@pytest.mark.parametrize("form", FORMS)
def test_floats_beyond_exact_integers_are_refused(form: Form, tmp_path: Path) -> None:
    """2**53 + 1 and 2**53 are one float: whichever was meant, the other would be found."""
    frame = pd.DataFrame({"id": [2**53 - 1, None], "question": ["a?", "b?"], "text": ["x", "y"]})
    assert load_examples(form(frame, tmp_path))[0].id == "9007199254740991"
    frame.loc[0, "id"] = 2**53 + 1
    source = form(frame, tmp_path)
    with pytest.raises(DataError, match=r"id must be exact.*as text or as integers"):
        load_examples(source)
    assert [e.question for e in load_examples(source, on_error="skip")] == ["b?"]
    with pytest.raises(DataError, match=r"id must be exact"):
        corpus_of(form(frame[["id", "text"]], tmp_path))
    whole = form(frame.assign(id=pd.array([2**53 + 1, None], dtype="Int64")), tmp_path)
    assert load_examples(whole)[0].id == "9007199254740993"  # pandas' nullable integers are exact


def test_unread_ids_may_be_inexact_floats(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": 7.0, "question": "a?", "text": "x", "answer": "y", "metadata": {"id": 1.2e18}}\n')
    assert list(Corpus.from_file(file).ids) == ["7"]
    assert [e.id for e in load_examples(file)] == ["7"]


def test_a_float_among_texts_is_no_id(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"id": "a", "text": "x"}\n{"_id": 7.0, "text": "y"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl:2: an id must be .*got 7\.0"):
        Corpus.from_file(tmp_path / "c.jsonl")
    assert list(Corpus.from_file(tmp_path / "c.jsonl", on_error="skip").ids) == ["a"]


def test_nan_in_such_a_column_is_missing() -> None:
    """`Dataset.from_dict` keeps NaN, which is what pandas makes of None."""
    nan = float("nan")
    columns = {"id": [5.0, nan], "question": ["a?", "b?"], "answer": [nan, 3.0]}
    found = load_examples(datasets.Dataset.from_dict(columns))
    assert [(e.id, e.golden_answers) for e in found] == [("5", ()), ("1", ("3",))]
    corpus = Corpus.from_dataset(datasets.Dataset.from_dict({"id": [5.0, nan], "text": ["x", "y"]}))
    assert list(corpus.ids) == ["5", "1"]


def test_rows_of_a_data_frame() -> None:
    frame = pd.DataFrame({"id": [10, None], "title": ["One", None], "text": ["x", "y"]})
    corpus = Corpus.from_passages(frame.to_dict("records"))
    assert [(p.id, p.title) for p in corpus] == [("10", "One"), ("1", "")]
    assert list(Corpus.from_passages([{"id": np.int64(5), "text": "x"}]).ids) == ["5"]
    with pytest.raises(DataError, match=r"the passages, record 0.*7\.5"):
        Corpus.from_passages([{"id": 7.5, "text": "x"}])


def test_passages_beside_a_question_have_the_ids_of_their_corpus(tmp_path: Path) -> None:
    """DPR's `psg_id` and KILT's `wikipedia_id`, in lists of objects."""
    context = [{"title": "T", "text": "one", "psg_id": 5.0}, {"title": "U", "text": "two", "psg_id": None}]
    row = {"question": "q?", "answers": ["x"], "positive_ctxs": context}
    (tmp_path / "d.json").write_text(json.dumps([row]))
    (example,) = load_examples(tmp_path / "d.json")
    assert example.gold_ids[0] == "5"
    assert list(Corpus.from_file(tmp_path / "d.json").ids) == list(example.gold_ids)
    kilt = {"id": "k", "input": "q?", "output": [{"answer": 1960.0, "provenance": [{"wikipedia_id": 290.0}]}]}
    (tmp_path / "k.jsonl").write_text(json.dumps(kilt) + "\n")
    page = {"wikipedia_id": 290.0, "wikipedia_title": "A", "text": ["A\n", "The letter."]}
    (tmp_path / "p.json").write_text(json.dumps(page) + "\n")
    (example,) = load_examples(tmp_path / "k.jsonl")
    assert (example.golden_answers, example.gold_ids) == (("1960",), ("290",))
    assert list(Corpus.from_file(tmp_path / "p.json").ids) == ["290"]
    (tmp_path / "p.json").write_text(json.dumps({**page, "wikipedia_id": 1.5}) + "\n")
    with pytest.raises(DataError, match=r"id of a passage must be text or an integer, got 1\.5"):
        Corpus.from_file(tmp_path / "p.json")


def test_judgements_find_their_questions(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl").write_text('{"_id": 1.0, "text": "a?"}\n{"_id": 2.0, "text": "b?"}\n')
    (tmp_path / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t10\t2.0\n2\t11\t1.0\n")
    found = load_examples(tmp_path, split="test")
    assert [(e.id, e.gold_ids, e.gold_grades) for e in found] == [("1", ("10",), (2,)), ("2", ("11",), (1,))]


def test_choices_by_a_position_that_became_a_float(tmp_path: Path) -> None:
    frame = pd.DataFrame({"question": ["a?", "b?"], "choices": [["x", "y"], ["u", "v"]], "answer": [1, None]})
    assert load_examples(parquet(frame, tmp_path))[0].golden_answers == ("y",)


def test_retention_answers_are_compared_as_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "6 x 7?", "answer": 42.0}\n{"prompt": "6 x 8?", "answer": 48.0}\n')
    assert sorted(item.content.answers for item in read_answered_prompts(tmp_path / "p.jsonl")) == [("42",), ("48",)]


def test_only_as_much_of_a_file_is_read_as_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without floats is read once, and of one with floats what is broken further on stays out of the way."""
    import training.questions.loading

    opened: list[int] = []
    open_records = training.questions.loading.open_records
    monkeypatch.setattr(
        training.questions.loading, "open_records", lambda *args, **how: opened.append(1) or open_records(*args, **how)
    )
    file = tmp_path / "f.jsonl"
    file.write_text('{"question": "a?", "answer": 42}\n{"question": "b?", "answer": 7}\n')
    load_examples(file)
    assert len(opened) == 1
    file.write_text('{"question": "a?", "answer": 42.0}\n{"question": "b?", "answer": 7.0}\n{"question": \n')
    assert load_examples(file, limit=2)[0].golden_answers == ("42",)
    assert len(opened) == 3


def test_deeply_nested_fields_are_left_unchanged(tmp_path: Path) -> None:
    """json reads 800 levels, and a walk through all of them would be more than Python's stack."""
    deep = "[" * 800 + "1.0" + "]" * 800
    file = tmp_path / "f.jsonl"
    file.write_text(f'{{"id": 5.0, "question": "a?", "text": "x", "answer": 42.0, "extra": {{"id": {deep}}}}}\n')
    assert [(e.id, e.golden_answers) for e in load_examples(file)] == [("5", ("42",))]
    assert list(Corpus.from_file(file).ids) == ["5"]
