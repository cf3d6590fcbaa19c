"""Question sets with a layout of their own, with invented rows in the shape of those that their owners ship.

PopQA (akariasai/PopQA), TriviaQA (mandarjoshi/trivia_qa), BoolQ (google/boolq), StrategyQA (ChilleD/StrategyQA), ARC
(allenai/ai2_arc), OpenBookQA (allenai/openbookqa), CommonsenseQA (tau/commonsense_qa) and MMLU (cais/mmlu).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from indexes.corpora.corpus import Corpus
from indexes.errors import DataError
from training.questions.loading import load_examples


def jsonl(rows: list[dict[str, Any]], folder: Path) -> Path:
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "t.jsonl"


def dataset(rows: list[dict[str, Any]], folder: Path) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows)


def parquet(rows: list[dict[str, Any]], folder: Path) -> Path:
    datasets.disable_progress_bars()
    dataset(rows, folder).to_parquet(folder / "t.parquet")
    datasets.enable_progress_bars()
    return folder / "t.parquet"


Form = Callable[[list[dict[str, Any]], Path], Any]
forms = pytest.mark.parametrize("form", [jsonl, parquet, dataset])


POPQA = {
    "id": 11,
    "subj": "Ada Varn",
    "prop": "occupation",
    "obj": "mariner",
    "obj_id": 7,
    "s_aliases": '["A. Varn"]',
    "o_aliases": '["seafarer","sailor"]',
    "question": "What is Ada Varn's occupation?",
    "possible_answers": '["mariner", "seafarer", "sail\\u00f4r"]',
}


def trivia(**answer: object) -> dict[str, Any]:
    """The columns of `rc.nocontext`: pages and results are objects of lists, here without any entry."""
    return {
        "question": "Which tide is the highest?",
        "question_id": "tc_7",
        "question_source": "http://quiz.example/",
        "entity_pages": {"doc_source": ["TagMe"], "filename": ["Tide.txt"], "title": ["Tide"], "wiki_context": [""]},
        "search_results": {"description": [], "filename": [], "rank": [], "title": [], "url": []},
        "answer": {
            "aliases": ["Spring tide", "Springs", "King tide"],
            "matched_wiki_entity_name": "",
            "normalized_aliases": ["spring tide", "springs", "king tide"],
            "normalized_matched_wiki_entity_name": "",
            "normalized_value": "spring tide",
            "type": "WikipediaEntity",
            "value": "Spring tide",
            **answer,
        },
    }


@forms
def test_popqa(form: Form, tmp_path: Path) -> None:
    (example,) = load_examples(form([POPQA], tmp_path))
    assert (example.id, example.question) == ("11", "What is Ada Varn's occupation?")
    assert example.golden_answers == ("mariner", "seafarer", "sail\u00f4r")


@forms
def test_trivia_qa(form: Form, tmp_path: Path) -> None:
    hidden = trivia(aliases=[], normalized_aliases=[], value="<unk>", normalized_value="<unk>", type="")
    known, unknown = load_examples(form([trivia(), {**hidden, "question_id": "tc_8"}], tmp_path))
    assert (known.id, known.question) == ("tc_7", "Which tide is the highest?")
    assert known.golden_answers == ("Spring tide", "Springs", "King tide")
    assert (unknown.id, unknown.golden_answers) == ("tc_8", ())  # the answers of its test questions are hidden


@forms
def test_true_and_false(form: Form, tmp_path: Path) -> None:
    yes = {"question": "is the tide high at noon", "answer": True, "passage": "At noon the tide is high."}
    no = {"question": "do tides sleep", "answer": False, "passage": "Tides never rest."}
    source = form([yes, no], tmp_path)
    first, second = load_examples(source)
    assert (first.golden_answers, second.golden_answers) == (("yes", "true"), ("no", "false"))
    corpus = Corpus.from_dataset(source) if isinstance(source, datasets.Dataset) else Corpus.from_file(source)
    assert [p.text for p in corpus] == ["At noon the tide is high.", "Tides never rest."]
    assert list(corpus.ids) == [*first.gold_ids, *second.gold_ids]


def test_boolq_as_its_owner_ships_it_has_titles(tmp_path: Path) -> None:
    row = {"question": "is it high", "title": "Tide", "answer": True, "passage": "It is high."}
    (passage,) = Corpus.from_file(jsonl([row], tmp_path))
    assert (passage.title, passage.text) == ("Tide", "It is high.")
    assert load_examples(tmp_path / "t.jsonl")[0].gold_ids == (passage.id,)


@forms
def test_strategy_qa(form: Form, tmp_path: Path) -> None:
    row = {
        "qid": "e0044a",
        "term": "Tide",
        "question": "Could a tide lift a ship?",
        "answer": True,
        "facts": ["It can."],
    }
    (example,) = load_examples(form([row], tmp_path))
    assert (example.id, example.golden_answers) == ("e0044a", ("yes", "true"))


def columns(texts: list[str], labels: list[str]) -> dict[str, list[str]]:
    return {"text": texts, "label": labels}


@forms
def test_choices_with_labels(form: Form, tmp_path: Path) -> None:
    """ARC's labels are letters in most rows and 1 to 4 in the others; only test rows of CommonsenseQA hide the key."""
    texts = ["salt", "wool", "timber", "wine"]
    rows = [
        {"id": "A1", "question": "Which is mineral?", "choices": columns(texts, list("ABCD")), "answerKey": "A"},
        {"id": "A2", "question": "Which is woven?", "choices": columns(texts, list("1234")), "answerKey": "2"},
        {"id": "A3", "question": "Which floats?", "choices": columns(texts[1:], list("ABC")), "answerKey": "B"},
        {"id": "A4", "question": "Which is drunk?", "choices": columns(texts, list("ABCD")), "answerKey": ""},
    ]
    found = {e.id: e.golden_answers for e in load_examples(form(rows, tmp_path))}
    assert found == {"A1": ("salt",), "A2": ("wool",), "A3": ("timber",), "A4": ()}


@forms
def test_open_book_qa(form: Form, tmp_path: Path) -> None:
    row = {"id": "7-980", "question_stem": "A tide comes from the", "choices": columns(["sea", "sky"], ["A", "B"])}
    (example,) = load_examples(form([{**row, "answerKey": "A"}], tmp_path))
    assert (example.question, example.golden_answers) == ("A tide comes from the", ("sea",))


@forms
def test_published_files_with_choices_next_to_the_stem_are_read(form: Form, tmp_path: Path) -> None:
    """ARC, OpenBookQA and CommonsenseQA before `datasets` exported them."""
    choices = [{"text": "sea", "label": "A"}, {"text": "sky", "label": "B"}]
    row = {"id": "M1", "question": {"stem": "A tide comes from the", "choices": choices}, "answerKey": "B"}
    (example,) = load_examples(form([row], tmp_path))
    assert (example.question, example.golden_answers) == ("A tide comes from the", ("sky",))


@forms
def test_choices_by_position(form: Form, tmp_path: Path) -> None:
    row = {
        "question": "Which is woven?",
        "subject": "trade",
        "choices": ["salt", "wool", "timber", "wine"],
        "answer": 1,
    }
    assert load_examples(form([row], tmp_path))[0].golden_answers == ("wool",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answerKey": "E"}, r"answerKey must be the label of a choice, one of \['A', 'B'\], got 'E'"),
        ({"choices": {"text": ["sea"]}}, "choices must have the columns text, label"),
        ({"choices": "sea"}, "choices must be a list"),
    ],
)
def test_broken_choices_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    row = {"id": "A1", "question": "q?", "choices": columns(["sea", "sky"], ["A", "B"]), "answerKey": "A", **change}
    with pytest.raises(DataError, match=rf"t\.jsonl:1: {message}"):
        load_examples(jsonl([row], tmp_path))


@forms
@pytest.mark.parametrize("given", [{"input": ""}, {"input": "Be brief."}, {}])
def test_alpaca_records_are_refused_with_what_to_rename(form: Form, given: dict[str, str], tmp_path: Path) -> None:
    row = {"instruction": "Who built the wall?", **given, "output": "The council.", "text": "Below is ..."}
    with pytest.raises(
        DataError, match=r"Alpaca's format.*rename instruction to question and output to golden_answers"
    ):
        load_examples(form([row], tmp_path))
    renamed = {"question": row["instruction"], "golden_answers": row["output"]}
    assert load_examples(form([renamed], tmp_path))[0].golden_answers == ("The council.",)


def test_kilt_records_are_recognised_as_kilt(tmp_path: Path) -> None:
    row = {"id": "k1", "input": "Who built the wall?", "output": [{"answer": "The council"}]}
    assert load_examples(jsonl([row], tmp_path))[0].golden_answers == ("The council",)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(1, "4"), ("B", "4"), ("4", "4"), ("four", "four")],
)
def test_a_choice_by_position_by_letter_or_by_its_text(answer: object, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "2 + 2?", "choices": ["3", "4"], "answer": answer}) + "\n")
    assert load_examples(file)[0].golden_answers == (expected,)


def test_a_choice_text_of_one_letter_is_not_read_as_a_label(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps({"question": "first letter?", "choices": ["B", "A"], "answer": "A"}) + "\n")
    assert load_examples(file)[0].golden_answers == ("A",)
