"""Lists of answers that are written out as text are read as the lists they are, or refused; never as another answer."""

from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from indexes.errors import DataError
from indexes.records.answer_lists import answer_literal, list_in_text
from training.questions.loading import load_examples


@pytest.mark.parametrize(
    "text",
    [
        "['New York' 'NYC']",
        "['New York'\n 'NYC']",
        "['New York', 'NYC' 'the city']",
        "['New York' \"N'YC\"]",
        "array(['New York', 'NYC'], dtype=object)",
        "[array(['New York'], dtype=object)]",
        "['New York', None]",
        "['New York', nan]",
        "{'New York', 'NYC'}",
        "[['New York'], ['NYC']]",
        "[b'New York']",
        "'New York'",
        "('New York')",
        "[f'New York']",
        "['New ' + 'York']",
    ],
)
def test_values_other_than_lists_of_texts_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="here: the answers must be a list of texts"):
        answer_literal(text, "here")


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("['New York', 'NYC']", ["New York", "NYC"]),
        ("('New York', 'NYC',)", ["New York", "NYC"]),
        ("  ['New York',\n  'NYC']  ", ["New York", "NYC"]),
        ("[\"O'Hare\", 'say \"hi\"', 'a\\tb']", ["O'Hare", 'say "hi"', "a\tb"]),
        ("['it is ''so']".replace("''", ""), ["it is so"]),
        ("[]", []),
    ],
)
def test_lists_of_texts(text: str, answers: list[str]) -> None:
    assert answer_literal(text, "here") == answers


def test_an_array_that_pandas_wrote_to_csv_is_no_single_answer(tmp_path: Path) -> None:
    """numpy 2.4.6 prints no comma between the entries of an array; Python joins two texts that stand side by side."""
    frame = pd.DataFrame({"question": ["n?"], "answers": [np.array(["New York", "NYC"], dtype=object)]})
    frame.to_csv(tmp_path / "q.tsv", sep="\t", header=False, index=False)
    assert (tmp_path / "q.tsv").read_text() == "n?\t['New York' 'NYC']\n"
    with pytest.raises(DataError, match=r"q\.tsv:1: the answers must be a list.*how numpy prints an array.*Parquet"):
        load_examples(tmp_path / "q.tsv")


def rows(**columns: object) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"question": ["n?"], **{name: [value] for name, value in columns.items()}})


@pytest.mark.parametrize("field", ["golden_answers", "answers", "possible_answers"])
def test_a_list_in_a_text_column(field: str) -> None:
    """What `load_dataset("csv")` gives for a file whose lists were written as text."""
    for text in ("['New York', 'NYC']", '["New York", "NYC"]'):
        assert load_examples(rows(**{field: text}))[0].golden_answers == ("New York", "NYC")
    with pytest.raises(DataError, match=rf"record 0: {field}: the answers must be a list of texts.*numpy"):
        load_examples(rows(**{field: "['New York' 'NYC']"}))
    with pytest.raises(DataError, match=rf"record 0: {field}: the answers must be texts.*numpy"):
        load_examples(rows(**{field: "{'text': array(['x'], dtype=object), 'answer_start': array([1])}"}))


def test_aliases_in_a_text_column() -> None:
    found = load_examples(rows(answer="New York", aliases="['NYC', 'Big Apple']"))
    assert found[0].golden_answers == ("New York", "NYC", "Big Apple")


@pytest.mark.parametrize("text", ["[0, 1]", "[citation needed]", "[", "New York", "[x] or [y]", "{1, 2}"])
def test_other_texts_in_brackets_are_kept_as_answers(text: str) -> None:
    """An interval, say, is a right answer to a question."""
    assert list_in_text(text, "here") is None
    assert load_examples(rows(golden_answers=text))[0].golden_answers == (text,)


def test_a_single_answer_field_is_never_parsed_as_a_list() -> None:
    assert load_examples(rows(answer="['New York', 'NYC']"))[0].golden_answers == ("['New York', 'NYC']",)
