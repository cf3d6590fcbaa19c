"""Probe files are read as they come; what they lack is said with file and line."""

import gzip
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from indexes.errors import DataError, UsageError
from rag.forgetting.retention_tasks import (
    Pair,
    Probes,
    Prompt,
    Task,
    final_number,
    read_pairs,
    read_prompts,
    read_tasks,
    read_texts,
    task_name,
)


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
    assert contents(read_tasks(write(tmp_path / "t.jsonl.gz", rows))) == {
        Task("a", ("one",), "normalised"),
        Task("b", ("one", "uno"), "normalised"),
        Task("c", ("1",), "number"),
        Task("d", ("7",), "exact"),
        Task("e", ("2 + 2 = <<2+2=4>>4\n#### 4",), "number"),
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


def test_text_is_rows_or_paragraphs(tmp_path: Path) -> None:
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


def test_items_are_named_by_what_they_say(tmp_path: Path) -> None:
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
    assert Task("q", ("He has <<9*2=18>>18.\n#### 18",), "number").is_right(reply) is right


def test_numbers_as_people_write_them() -> None:
    assert final_number("#### 1,250,000") == Decimal(1250000)
    assert final_number("it falls to -3.5.") == Decimal("-3.5")
    assert final_number("costs -$7") == Decimal(-7)
    assert final_number("10-12") == Decimal(12)
    assert final_number("x=-3") == Decimal(-3)
    assert final_number("#### none, but 5") == Decimal(5)
    assert final_number("between 3, 4, and 5, all") == Decimal(5)


def test_normalised_and_exact_replies() -> None:
    normalised, exact = Task("q", ("The U.S.", "America"), "normalised"), Task("q", ("A B",), "exact")
    assert normalised.is_right("us") and normalised.is_right("america!") and not normalised.is_right("us of a")
    assert exact.is_right(" A B\n") and not exact.is_right("a b")


def test_an_answer_that_normalises_to_nothing_is_still_one() -> None:
    """The first of four choices is an article to SQuAD's normalisation, which would call an empty reply right."""
    choice, sign = Task("q", ("A",), "normalised"), Task("q", ("+", "B"), "normalised")
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
        (read_tasks, {"prompt": "x"}, r"f\.jsonl:2: a prompt must have one of .* give the file as drift"),
        (read_tasks, {"prompt": "x", "answers": []}, r"f\.jsonl:2: answers must be text"),
        (read_tasks, {"prompt": "x", "answer": " "}, r"f\.jsonl:2: answer must be text"),
        (read_tasks, {"prompt": "x", "answer": True}, r"f\.jsonl:2: answer must be text"),
        (read_tasks, {"prompt": "x", "answer": "y", "match": "fuzzy"}, r"f\.jsonl:2: match must be one of"),
        (read_tasks, {"prompt": "x", "answer": "none", "match": "number"}, r"f\.jsonl:2: .* must hold one"),
        (read_tasks, {"prompt": "x", "answer": math.nan}, r"f\.jsonl:2: answer must be text"),
        (read_tasks, {"prompt": "x\ud83d", "answer": "x"}, r"f\.jsonl:2: prompt: .* at character 2, half of one"),
        (read_tasks, {"answer": "x"}, r"f\.jsonl:2: a row must have prompt or question"),
        (read_pairs, {"good": "x"}, r"f\.jsonl:2: a row must have bad"),
        (read_pairs, {"sentence_good": "x", "bad": "y"}, r"f\.jsonl:2: a row must have sentence_bad"),
        (read_pairs, {"text": "x"}, r"f\.jsonl:2: a minimal pair must have sentence_good and sentence_bad or good and"),
        (read_texts, {"contents": "x"}, r"f\.jsonl:2: a row must have text"),
        (read_texts, {"text": ""}, r"f\.jsonl:2: text must be text with a visible character"),
        (read_texts, {"text": "x", "task": "all"}, r"f\.jsonl:2: a group may not be called 'all'"),
        (read_prompts, {"prompt": 3}, r"f\.jsonl:2: prompt must be text"),
        (read_prompts, ["x"], r"f\.jsonl:2: every record must be a JSON object, got list"),
    ],
)
def test_a_row_that_will_not_do(tmp_path: Path, read: Any, row: Any, message: str) -> None:
    good = {"prompt": "p", "answer": "a", "good": "g", "bad": "b", "text": "t"}
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "f.jsonl", [good, row]))


def test_files_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_tasks(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        read_pairs(tmp_path)
    with pytest.raises(DataError, match="at least one row"):
        read_texts(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(DataError, match="at least one row"):
        (tmp_path / "empty.txt").write_text("\n \n")
        read_texts(tmp_path / "empty.txt")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:30])
    with pytest.raises(DataError, match="break off"):
        read_texts(tmp_path / "cut.jsonl.gz")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_texts(tmp_path / "latin.txt")


def test_probes_that_will_not_do() -> None:
    with pytest.raises(UsageError, match="at least one of answers"):
        Probes()
    with pytest.raises(UsageError, match=r"\['a'\] came twice among pairs"):
        Probes(pairs=("x/a.jsonl", "y/a.jsonl.gz"))
    with pytest.raises(UsageError, match="window must be at least 1; 0 came"):
        Probes(text=("a.txt",), window=0)
    assert task_name("x/wiki.test.txt") == "wiki"


def test_the_probes_of_the_shared_data(data_dir: Path) -> None:
    folder = data_dir / "probes"
    pairs = read_pairs(folder / "blimp.jsonl.gz")
    assert len(pairs) == 4020 and len({item.groups for item in pairs}) == 67
    tasks = read_tasks(folder / "gsm8k_test.jsonl.gz")
    assert len(tasks) == 1319 and {item.content.match for item in tasks} == {"number"}
    # Each model solution is right by its own rule, also without the mark before its last number.
    assert all(item.content.is_right(item.content.answers[0]) for item in tasks)
    assert all(item.content.is_right(item.content.answers[0].replace("#### ", "")) for item in tasks)
    assert len(read_prompts(folder / "ifeval.jsonl.gz")) == 541
    with pytest.raises(DataError, match="give the file as drift"):
        read_tasks(folder / "ifeval.jsonl.gz")
    texts = read_texts(folder / "wikitext2_test.jsonl.gz")
    assert (len(texts), sum(len(item.content.split()) for item in texts)) == (1829, 233333)
