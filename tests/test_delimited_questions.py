"""Question files as comma- or tab-separated text under a header, as pandas writes them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from indexes.errors import DataError
from training.questions.loading import load_examples

FRAME = pd.DataFrame(
    {
        "question": ["how high, in metres?", 'who said "yes"?', "where?\nAnd when?"],
        "golden_answers": [json.dumps(["8849", "8,849"]), "['Ada', 'Bob']", "Rome"],
    }
)
READ = [
    ("how high, in metres?", ("8849", "8,849")),
    ('who said "yes"?', ("Ada", "Bob")),
    ("where?\nAnd when?", ("Rome",)),
]


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_under_a_header(delimiter: str, newline: str, encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    FRAME.to_csv(file, index=False, sep=delimiter, lineterminator=newline, encoding=encoding)
    found = load_examples(file, quoting="csv")
    assert [(e.question, e.golden_answers) for e in found] == READ
    assert [e.id for e in found] == ["0", "1", "2"]


def test_an_index_without_a_name_is_the_id(tmp_path: Path) -> None:
    FRAME.set_index(pd.Index([10, 20, 35])).to_csv(tmp_path / "q.csv")
    assert [e.id for e in load_examples(tmp_path / "q.csv")] == ["10", "20", "35"]


def test_an_empty_cell_is_a_missing_value(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("id,question,answer\na,who?,\nb,where?,Rome\n")
    assert [(e.id, e.golden_answers) for e in load_examples(tmp_path / "q.csv")] == [("a", ()), ("b", ("Rome",))]


def test_an_array_that_numpy_printed_is_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"question": ["where?"], "golden_answers": [np.array(["New York", "NYC"], dtype=object)]})
    frame.to_csv(tmp_path / "q.csv", index=False)
    with pytest.raises(DataError, match=r"q\.csv:2: golden_answers: the answers must be a list of texts"):
        load_examples(tmp_path / "q.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,answer\nwho?,Ada,Bob\n", r"q\.csv:2: every record must have the 2 fields of the header"),
        ("question,answer,answer\nwho?,Ada,Bob\n", r"a column must appear once, got \['answer'\]"),
    ],
)
def test_records_that_do_not_fit_the_header_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_examples(tmp_path / "q.csv")


def test_broken_records_are_left_out_with_skip(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("question,answer\nwho?,Ada,Bob\nwhere?,Rome\n")
    assert [e.question for e in load_examples(tmp_path / "q.csv", on_error="skip")] == ["where?"]
