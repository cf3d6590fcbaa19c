"""Files of retention tasks and their registry: readers, errors with file and line, options, a new kind."""

import gzip
import json
import math
import runpy
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from indexes.errors import DataError, UsageError
from rag.cli import main
from rag.forgetting.retention_items import (
    AnsweredPrompt,
    Pair,
    Prompt,
    final_number,
    read_answered_prompts,
    read_pairs,
    read_prompts,
    read_texts,
    task_name,
)
from rag.forgetting.retention_tasks import RETENTION_TASKS, RetentionTasks, options_of, task_options


def write(file: Path, rows: list[Any]) -> Path:
    """JSON lines, packed where the name says so."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def contents(items: list[Any]) -> set[Any]:
    return {item.content for item in items}


def test_prompts_with_answers_in_every_spelling(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "answer": "one"},
        {"question": "b", "answers": ["one", "uno"]},
        {"question": "c", "golden_answers": ["1"], "match": "number"},
        {"prompt": "d", "answer": 7, "match": "exact"},
        {"question": "e", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
    ]
    assert contents(read_answered_prompts(write(tmp_path / "t.jsonl.gz", rows))) == {
        AnsweredPrompt("a", ("one",), "normalised"),
        AnsweredPrompt("b", ("one", "uno"), "normalised"),
        AnsweredPrompt("c", ("1",), "number"),
        AnsweredPrompt("d", ("7",), "exact"),
        AnsweredPrompt("e", ("2 + 2 = <<2+2=4>>4\n#### 4",), "number"),
    }


def test_both_spellings_of_minimal_pairs_and_their_groups(tmp_path: Path) -> None:
    official = {
        "sentence_good": "Cats sleep.",
        "sentence_bad": "Cats sleeps.",
        "UID": "regular_plural",
        "linguistics_term": "subject_verb_agreement",
        "field": "morphology",
        "one_prefix_method": True,
    }
    rows = [official, {"good": "She is.", "bad": "She are.", "task": "agreement"}, {"good": "x y", "bad": "y x"}]
    items = read_pairs(write(tmp_path / "pairs.jsonl", rows))
    assert {item.content: item.groups for item in items} == {
        Pair("Cats sleep.", "Cats sleeps."): ("morphology", "regular_plural", "subject_verb_agreement"),
        Pair("She is.", "She are."): ("agreement",),
        Pair("x y", "y x"): (),
    }


def test_text_items_are_records_or_paragraphs(tmp_path: Path) -> None:
    assert contents(read_texts(write(tmp_path / "a.jsonl", [{"text": " one "}, {"text": "two"}]))) == {" one ", "two"}
    (tmp_path / "b.txt").write_text("First line\nsecond line.\n\n \nOther\r\n\r\nLast\n", encoding="utf-8")
    items = read_texts(tmp_path / "b.txt")
    assert {(item.content, item.where.rsplit(":", 1)[1]) for item in items} == {
        ("First line\nsecond line.", "1"),
        ("Other", "5"),
        ("Last", "7"),
    }
    (tmp_path / "d.txt").write_bytes(b"First line\r\nsecond line.\r\n")
    assert contents(read_texts(tmp_path / "d.txt")) == {"First line\nsecond line."}
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"packed"))
    assert contents(read_texts(tmp_path / "c.txt.gz")) == {"packed"}


def test_prompts_need_no_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "write a poem", "instruction_id_list": ["x"]}, {"question": "why?"}, {"text": "plain"}]
    assert contents(read_prompts(write(tmp_path / "p.jsonl", rows))) == {
        Prompt("write a poem", True),
        Prompt("why?", True),
        Prompt("plain", False),
    }


def test_ids_of_items_depend_on_their_content_only(tmp_path: Path) -> None:
    rows = [{"good": f"good {i}", "bad": f"bad {i}"} for i in range(20)] + [{"good": "good 3", "bad": "bad 3"}]
    there = read_pairs(write(tmp_path / "there.jsonl", rows))
    back = read_pairs(write(tmp_path / "back.jsonl", rows[::-1]))
    assert [(item.id, item.content) for item in there] == [(item.id, item.content) for item in back]
    assert len({item.id for item in there}) == 21
    assert [item.id for item in there] == sorted(item.id for item in there)


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("So 9 * 2 = 18", True),
        ("#### 18", True),
        ("It is $18.00.", True),
        ("First 18, then 17.", False),
        ("#### 18 of the 40", True),
        ("1,018", False),
        ("eighteen", False),
        ("", False),
    ],
)
def test_the_final_number_counts(reply: str, right: bool) -> None:
    assert AnsweredPrompt("q", ("He has <<9*2=18>>18.\n#### 18",), "number").is_right(reply) is right


def test_numbers_in_common_spellings_are_compared() -> None:
    assert final_number("#### 1,250,000") == Decimal(1250000)
    assert final_number("it falls to -3.5.") == Decimal("-3.5")
    assert final_number("costs -$7") == Decimal(-7)
    assert final_number("10-12") == Decimal(12)
    assert final_number("x=-3") == Decimal(-3)
    assert final_number("#### none, but 5") == Decimal(5)
    assert final_number("between 3, 4, and 5, all") == Decimal(5)


def test_normalised_and_exact_replies() -> None:
    normalised, exact = (
        AnsweredPrompt("q", ("The U.S.", "America"), "normalised"),
        AnsweredPrompt("q", ("A B",), "exact"),
    )
    assert normalised.is_right("us") and normalised.is_right("america!") and not normalised.is_right("us of a")
    assert exact.is_right(" A B\n") and not exact.is_right("a b")


def test_an_answer_that_normalises_to_nothing_is_compared_by_its_words() -> None:
    """The first of four choices is an article to SQuAD's normalisation, which would call an empty reply right."""
    choice, sign = AnsweredPrompt("q", ("A",), "normalised"), AnsweredPrompt("q", ("+", "B"), "normalised")
    assert [reply for reply in ("A", "a", " A. ", "(A)", "", "the", "...", "an", "B") if choice.is_right(reply)] == [
        "A",
        "a",
        " A. ",
        "(A)",
    ]
    assert [reply for reply in ("+", "b", "", "-", "a") if sign.is_right(reply)] == ["+", "b"]


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (read_answered_prompts, {"prompt": "x"}, r"f\.jsonl:2: a prompt must have one of .* give the file as drift"),
        (read_answered_prompts, {"prompt": "x", "answers": []}, r"f\.jsonl:2: answers must be text"),
        (read_answered_prompts, {"prompt": "x", "answer": " "}, r"f\.jsonl:2: answer must be text"),
        (read_answered_prompts, {"prompt": "x", "answer": True}, r"f\.jsonl:2: answer must be text"),
        (read_answered_prompts, {"prompt": "x", "answer": "y", "match": "fuzzy"}, r"f\.jsonl:2: match must be one of"),
        (read_answered_prompts, {"prompt": "x", "answer": "none", "match": "number"}, r"f\.jsonl:2: .* must hold one"),
        (read_answered_prompts, {"prompt": "x", "answer": math.nan}, r"f\.jsonl:2: answer must be text"),
        (
            read_answered_prompts,
            {"prompt": "x\ud83d", "answer": "x"},
            r"f\.jsonl:2: prompt: .* at character 2, half of one",
        ),
        (read_answered_prompts, {"answer": "x"}, r"f\.jsonl:2: a record must have prompt or question"),
        (read_pairs, {"good": "x"}, r"f\.jsonl:2: a record must have bad"),
        (read_pairs, {"sentence_good": "x", "bad": "y"}, r"f\.jsonl:2: a record must have sentence_bad"),
        (read_pairs, {"text": "x"}, r"f\.jsonl:2: a minimal pair must have sentence_good and sentence_bad or good and"),
        (read_texts, {"contents": "x"}, r"f\.jsonl:2: a record must have text"),
        (read_texts, {"text": ""}, r"f\.jsonl:2: text must be text with a visible character"),
        (read_texts, {"text": "x", "task": "all"}, r"f\.jsonl:2: a group must not be named 'all'"),
        (read_prompts, {"prompt": 3}, r"f\.jsonl:2: prompt must be text"),
        (read_prompts, ["x"], r"f\.jsonl:2: every record must be a JSON object, got list"),
    ],
)
def test_a_broken_record_is_named_with_file_and_line(tmp_path: Path, read: Any, row: Any, message: str) -> None:
    good = {"prompt": "p", "answer": "a", "good": "g", "bad": "b", "text": "t"}
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "f.jsonl", [good, row]))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_answered_prompts(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        read_pairs(tmp_path)
    with pytest.raises(DataError, match="at least one record"):
        read_texts(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(DataError, match="at least one record"):
        (tmp_path / "empty.txt").write_text("\n \n")
        read_texts(tmp_path / "empty.txt")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:30])
    with pytest.raises(DataError, match="break off"):
        read_texts(tmp_path / "cut.jsonl.gz")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_texts(tmp_path / "latin.txt")


def test_wrong_selections_of_tasks_are_refused() -> None:
    with pytest.raises(UsageError, match=r"give sources of at least one of \['answers', 'pairs'"):
        RetentionTasks()
    with pytest.raises(UsageError, match=r"\['a'\] are there twice among pairs"):
        RetentionTasks(pairs=("x/a.jsonl", "y/a.jsonl.gz"))
    with pytest.raises(UsageError, match="text_window must be at least 1, got 0"):
        RetentionTasks(text=("a.txt",), text_window=0)
    with pytest.raises(UsageError, match="max_new_tokens must be at least 1, got 0"):
        RetentionTasks(text=("a.txt",), max_new_tokens=0)
    with pytest.raises(UsageError, match=r"got 'textwindow'\. Did you mean 'text_window'\?"):
        RetentionTasks(text=("a.txt",), textwindow=3)
    assert task_name("x/wiki.test.txt") == "wiki"


def test_real_files(data_dir: Path) -> None:
    folder = data_dir / "probes"
    pairs = read_pairs(folder / "blimp.jsonl.gz")
    assert len(pairs) == 4020 and len({item.groups for item in pairs}) == 67
    tasks = read_answered_prompts(folder / "gsm8k_test.jsonl.gz")
    assert len(tasks) == 1319 and {item.content.match for item in tasks} == {"number"}
    # Each model solution is right by its own rule, also without the mark before its last number.
    assert all(item.content.is_right(item.content.answers[0]) for item in tasks)
    assert all(item.content.is_right(item.content.answers[0].replace("#### ", "")) for item in tasks)
    assert len(read_prompts(folder / "ifeval.jsonl.gz")) == 541
    with pytest.raises(DataError, match="give the file as drift"):
        read_answered_prompts(folder / "ifeval.jsonl.gz")
    texts = read_texts(folder / "wikitext2_test.jsonl.gz")
    assert (len(texts), sum(len(item.content.split()) for item in texts)) == (1829, 233333)


# -- the registry ------------------------------------------------------------------------------------------------

EXAMPLE = Path(__file__).parents[1] / "examples/new_retention_task.py"


def test_options_of_built_in_kinds_are_those_of_their_classes() -> None:
    """They are listed without importing the classes, so that `--help` stays fast."""
    builtin = ("answers", "pairs", "text", "drift", "harness")
    assert task_options() == [option for kind in builtin for option in options_of(kind)]


def test_a_selection_is_read_as_it_was_written() -> None:
    tasks = RetentionTasks(text=["a.txt"], pairs="b.jsonl", text_window=8, max_new_tokens=3, harness_chat=False)
    assert tasks.to_dict() == {
        "text": ["a.txt"],
        "pairs": ["b.jsonl"],
        "text_window": 8,
        "max_new_tokens": 3,
        "on_error": "raise",
    }
    assert RetentionTasks(**tasks.to_dict()) == tasks != RetentionTasks(text=["a.txt"])
    assert [(task.kind, sources) for task, sources in tasks.tasks()] == [("pairs", ("b.jsonl",)), ("text", ("a.txt",))]


def test_the_example_registers_a_kind_with_its_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From one file: the table, the options of the command, and the settings of a sweep."""
    monkeypatch.setattr(RETENTION_TASKS, "_registered", dict(RETENTION_TASKS._registered))
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    shown = [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    assert [row[:3] for row in shown[1:]] == [["base", "words", "word_accuracy"], ["tuned", "words", "word_accuracy"]]
    assert shown[1][3] == shown[2][3]  # the adapters are not trained
    words = ["--repeats", str(write(tmp_path / "texts.jsonl", [{"text": "ka"}])), "--repeats_prompt", "Say: "]
    assert main(["forgetting", "--base", "tiny", "--device", "cpu", "--json", *words]) == 0
    (measurement,) = json.loads(capsys.readouterr().out)["measurements"]
    assert (measurement["task"], measurement["metric"]) == ("texts", "word_accuracy")
    assert "repeats" in [option.name for option in task_options()]
    assert RetentionTasks(repeats="a.jsonl", repeats_prompt="Say: ").to_dict()["repeats_prompt"] == "Say: "
