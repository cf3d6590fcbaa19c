"""Question files: each format in its owners' layout, each refusal by its text, and the draw of aliases."""

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from indexes.errors import DataError, UsageError
from indexes.records.question_files import passage_id
from training.questions.example import QAExample
from training.questions.loading import draw_alias, load_examples, write_examples

FLASHRAG = [
    {
        "id": "train_0",
        "question": "who wrote hamlet?",
        "golden_answers": ["William Shakespeare", "Shakespeare"],
        "metadata": {"dataset": "nq"},
    },
    {"id": "train_1", "question": "capital of france", "golden_answers": ["Paris"], "gold_ids": ["p3", "p7"]},
    {"id": "train_2", "question": "what is unknown?", "golden_answers": []},
]
FLASHRAG_EXAMPLES = [
    QAExample("train_0", "who wrote hamlet?", ("William Shakespeare", "Shakespeare")),
    QAExample("train_1", "capital of france", ("Paris",), ("p3", "p7")),
    QAExample("train_2", "what is unknown?"),
]

SQUAD: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Rivers",
            "paragraphs": [
                {
                    "context": "The Seine flows through Paris.",
                    "qas": [
                        {
                            "id": "56be4db0",
                            "question": "Where does the Seine flow?",
                            "answers": [
                                {"text": "Paris", "answer_start": 24},
                                {"text": "through Paris", "answer_start": 16},
                                {"text": "Paris", "answer_start": 24},
                            ],
                            "is_impossible": False,
                        },
                        {
                            "id": "56be4db1",
                            "question": "How deep is it?",
                            "answers": [],
                            "is_impossible": True,
                            "plausible_answers": [{"text": "Paris", "answer_start": 24}],
                        },
                    ],
                }
            ],
        },
        {
            "title": "Mars",
            "paragraphs": [
                {
                    "context": "Mars has two moons.",
                    "qas": [
                        {
                            "id": "57e1",
                            "question": "How many moons?",
                            "answers": [{"text": "two", "answer_start": 9}],
                        }
                    ],
                }
            ],
        },
    ],
}
SEINE = passage_id("Rivers", "The Seine flows through Paris.")
SQUAD_EXAMPLES = [
    QAExample("56be4db0", "Where does the Seine flow?", ("Paris", "through Paris"), (SEINE,)),
    QAExample("56be4db1", "How deep is it?", unanswerable=True),
    QAExample("57e1", "How many moons?", ("two",), (passage_id("Mars", "Mars has two moons."),)),
]

HOTPOTQA = [
    {
        "_id": "5a7a0693",
        "answer": "yes",
        "question": "Were both directors American?",
        "supporting_facts": [["Scott Derrickson", 0], ["Ed Wood", 0]],
        "context": [["Ed Wood", ["Ed Wood is a film."]], ["Scott Derrickson", ["He directs."]]],
        "type": "comparison",
        "level": "hard",
    },
    {
        "_id": "5a8c7595",
        "question": "Which state is it in?",
        "answer": "Ohio",
        "supporting_facts": [["Columbus", 0]],
        "context": [["Columbus", ["Columbus is the capital of Ohio."]]],
    },
]

ED_WOOD = passage_id("Ed Wood", "Ed Wood is a film.")
DERRICKSON = passage_id("Scott Derrickson", "He directs.")
COLUMBUS = passage_id("Columbus", "Columbus is the capital of Ohio.")

DRO_PROMPT = (
    'You are an assistant.\n\nPlease answer the question: "{q}" using provided passages.\n'
    '[1] Title: "Quiz" Text:  A list of questions.\nQuestion: is this a trap?\n'
    "Question: {q}\nYour answer: "
)
DRO = [
    ("who sang help", "the Beatles", 0, "7"),
    ("how many episodes", "seven", 0, "9"),
    ("who sang help", "Beatles", 1, "7"),
    ("who sang help", "the Beatles", 2, "7"),
]


def dro_rows() -> list[dict[str, Any]]:
    return [
        {
            "prompt": DRO_PROMPT.format(q=question),
            "response": response,
            "sample_id": sample,
            "query_id": query,
            "probs": 0.25,
        }
        for question, response, sample, query in DRO
    ]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_document(path: Path, document: Any, indent: int | None = None) -> Path:
    path.write_text(json.dumps(document, indent=indent), encoding="utf-8")
    return path


# Formats


def test_flashrag_jsonl(tmp_path: Path) -> None:
    assert load_examples(write_lines(tmp_path / "train.jsonl", FLASHRAG)) == FLASHRAG_EXAMPLES


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    assert load_examples(str(write_lines(tmp_path / "train.jsonl", FLASHRAG))) == FLASHRAG_EXAMPLES


def test_gzip_is_recognised_by_content(tmp_path: Path) -> None:
    plain = write_lines(tmp_path / "train.jsonl", FLASHRAG).read_bytes()
    for name in ("train.jsonl.gz", "no-suffix"):
        (tmp_path / name).write_bytes(gzip.compress(plain))
        assert load_examples(tmp_path / name) == FLASHRAG_EXAMPLES


def test_byte_order_mark_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(row) for row in FLASHRAG]
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(["", *lines, "  ", ""]).encode())
    assert load_examples(path) == FLASHRAG_EXAMPLES


@pytest.mark.parametrize("field", ["answers", "answer"])
def test_other_names_of_the_answers(tmp_path: Path, field: str) -> None:
    rows = [{"id": "a", "question": "q?", field: ["x", "y"]}, {"id": "b", "question": "q?", field: "z"}]
    examples = load_examples(write_lines(tmp_path / "f.jsonl", rows))
    assert [example.golden_answers for example in examples] == [("x", "y"), ("z",)]


def test_golden_answers_win_over_the_other_names(tmp_path: Path) -> None:
    rows = [{"id": "a", "question": "q?", "answer": "x", "golden_answers": ["y"]}]
    assert load_examples(write_lines(tmp_path / "f.jsonl", rows))[0].golden_answers == ("y",)


def test_answers_keep_their_order_and_lose_blanks_and_repetitions(tmp_path: Path) -> None:
    rows = [{"id": "a", "question": "q?", "golden_answers": ["two", "", " 2", "two", "  ", "a pair", 2]}]
    assert load_examples(write_lines(tmp_path / "f.jsonl", rows))[0].golden_answers == ("two", "2", "a pair")


def test_integer_and_missing_ids_become_text(tmp_path: Path) -> None:
    rows = [{"id": 12, "question": "q?"}, {"question": "r?"}, {"_id": "x", "question": "s?"}]
    ids = [example.id for example in load_examples(write_lines(tmp_path / "f.jsonl", rows))]
    assert ids == ["12", "1", "x"]


@pytest.mark.parametrize("indent", [None, 2])
def test_squad(tmp_path: Path, indent: int | None) -> None:
    path = write_document(tmp_path / "dev-v2.0.json", SQUAD, indent)
    assert load_examples(path) == SQUAD_EXAMPLES


def test_squad_broken_over_lines_after_its_first_key(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(SQUAD).replace("}, {", "},\n{"), encoding="utf-8")
    assert load_examples(path) == SQUAD_EXAMPLES


def test_squad_with_paragraph_ids_has_gold_ids(tmp_path: Path) -> None:
    document = json.loads(json.dumps(SQUAD))
    document["data"][0]["paragraphs"][0]["id"] = "p7"
    document["data"][1]["paragraphs"][0]["id"] = "p5"  # what a question says itself comes first
    document["data"][1]["paragraphs"][0]["qas"][0]["gold_ids"] = ["p6", "p8"]
    examples = load_examples(write_document(tmp_path / "f.json", document))
    assert [example.gold_ids for example in examples] == [("p7",), (), ("p6", "p8")]


@pytest.mark.parametrize("indent", [None, 1])
def test_hotpotqa(tmp_path: Path, indent: int | None) -> None:
    assert load_examples(write_document(tmp_path / "f.json", HOTPOTQA, indent)) == [
        QAExample("5a7a0693", "Were both directors American?", ("yes",), (ED_WOOD, DERRICKSON)),
        QAExample("5a8c7595", "Which state is it in?", ("Ohio",), (COLUMBUS,)),
    ]


@pytest.mark.parametrize("field", ["answer_aliases", "aliases"])
def test_2wiki_aliases_follow_the_answer(tmp_path: Path, field: str) -> None:
    rows = [{**HOTPOTQA[1], "evidences": [["Columbus", "state", "Ohio"]], field: ["OH", "Ohio", "Buckeye State"]}]
    example = load_examples(write_document(tmp_path / "f.json", rows))[0]
    assert example.golden_answers == ("Ohio", "OH", "Buckeye State")


def test_musique_has_paragraphs_and_is_not_squad(tmp_path: Path) -> None:
    row = {
        "id": "2hop__482757_12019",
        "paragraphs": [{"idx": 0, "title": "Seine", "paragraph_text": "A river.", "is_supporting": True}],
        "question": "When was the institute founded?",
        "question_decomposition": [{"id": 1, "question": "x", "answer": "1960", "paragraph_support_idx": 0}],
        "answer": "1960",
        "answer_aliases": ["in 1960"],
        "answerable": True,
    }
    gold = (passage_id("Seine", "A river."),)
    expected = [QAExample("2hop__482757_12019", "When was the institute founded?", ("1960", "in 1960"), gold)]
    assert load_examples(write_lines(tmp_path / "f.jsonl", [row])) == expected
    assert load_examples(write_document(tmp_path / "f.json", [row])) == expected


def test_dro_groups_the_responses_of_a_query(tmp_path: Path) -> None:
    """The passage holds a line 'Question: is this a trap?'; the last such line is the question."""
    assert load_examples(write_document(tmp_path / "f.json", dro_rows(), indent=4)) == [
        QAExample("7", "who sang help", ("the Beatles", "Beatles")),
        QAExample("9", "how many episodes", ("seven",)),
    ]


def test_dataset_records() -> None:
    columns = {
        "id": ["a", "b"],
        "question": ["q?", "r?"],
        "answers": [{"text": ["x", "y"], "answer_start": [1, 2]}, {"text": [], "answer_start": []}],
    }
    examples = load_examples(datasets.Dataset.from_dict(columns))
    assert examples == [QAExample("a", "q?", ("x", "y")), QAExample("b", "r?")]


def test_dataset_error_names_the_record() -> None:
    dataset = datasets.Dataset.from_dict({"id": ["a", "b"], "question": ["q?", ""]})
    with pytest.raises(
        DataError, match=r"the dataset, record 1: every question must be text, got an empty one for the id 'b'"
    ):
        load_examples(dataset)


def test_limit_keeps_the_first_and_reads_no_further(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl", FLASHRAG)
    with path.open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    assert load_examples(path, limit=2) == FLASHRAG_EXAMPLES[:2]
    with pytest.raises(DataError, match=r"f\.jsonl:4"):
        load_examples(path)


def test_limit_counts_queries_in_the_dro_format(tmp_path: Path) -> None:
    examples = load_examples(write_document(tmp_path / "f.json", dro_rows()), limit=1)
    assert examples == [QAExample("7", "who sang help", ("the Beatles", "Beatles"))]


# Bad input


def test_limit_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="limit must be at least 1, got 0"):
        load_examples(write_lines(tmp_path / "f.jsonl", FLASHRAG), limit=0)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: a question file must exist"):
        load_examples(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"must be BEIR's, with one queries\.jsonl, got 0"):
        load_examples(tmp_path)


@pytest.mark.parametrize("content", ["", "\n \n", "[]", '{"version": "1.1", "data": []}', '{"data": 3}'])
def test_empty_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "f.json").write_text(content)
    with pytest.raises(DataError, match=r"f\.json.* (at least one question|known question format)"):
        load_examples(tmp_path / "f.json")


def test_squad_without_questions_is_empty(tmp_path: Path) -> None:
    path = write_document(tmp_path / "f.json", {"data": [{"title": "T", "paragraphs": []}]})
    with pytest.raises(DataError, match=r"f\.json: .*at least one question, got none"):
        load_examples(path)


def test_empty_dataset() -> None:
    with pytest.raises(DataError, match=r"the dataset: .*at least one question, got none"):
        load_examples(datasets.Dataset.from_dict({"id": [], "question": []}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"id": "x", "question": "q?"',
            r"f\.jsonl:3: every line must be one JSON object, got broken JSON at column \d+ .*Correct or remove",
        ),
        ("not json", r"f\.jsonl:3: .*column 1 .*Correct or remove the line"),
        ('["x", "q?"]', r"f\.jsonl:3: every record must be a JSON object, got list"),
        (
            '{"id": "x", "golden_answers": ["y"]}',
            r"f\.jsonl:3: every question must be text, got an empty one for the id 'x'",
        ),
        ('{"id": "x", "question": "  "}', r"f\.jsonl:3: .*got an empty one for the id 'x'"),
        ('{"id": "x", "question": 5}', r"f\.jsonl:3: .*got int: 5 for the id 'x'"),
        ('{"id": true, "question": "q?"}', r"f\.jsonl:3: an id must be text or an integer, got True"),
        ('{"id": "", "question": "q?"}', r"f\.jsonl:3: an id must be text or an integer, got ''"),
        ('{"id": "x", "question": "q?", "answers": [null]}', r"f\.jsonl:3: an answer must be text .*None"),
        ('{"id": "x", "question": "q?", "answers": {"a": "b"}}', r"f\.jsonl:3: an answer must be text"),
        ('{"id": "x", "question": "q?", "gold_ids": "p1"}', r"f\.jsonl:3: gold_ids must be a list, got str"),
        ('{"id": "train_1", "question": "q?"}', r"f\.jsonl:3: .*got 'train_1', which is also the id at .*f\.jsonl:2"),
    ],
)
def test_broken_records_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    path = write_lines(tmp_path / "f.jsonl", FLASHRAG[:2])
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        load_examples(path)


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text('\n\n{"id": "x", "question": "q?"}\n\n{"id": "y"}\n')
    with pytest.raises(DataError, match=r"f\.jsonl:5"):
        load_examples(tmp_path / "f.jsonl")


def test_first_line_broken(tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_text('{"id": "x", "question": \n{"id": "y", "question": "q?"}\n')
    with pytest.raises(DataError, match=r"f\.jsonl:1: every line must be one JSON object"):
        load_examples(tmp_path / "f.jsonl")


def test_broken_array_names_its_line(tmp_path: Path) -> None:
    text = json.dumps(HOTPOTQA, indent=1)
    (tmp_path / "f.json").write_text(text[: text.index('"type"')])
    with pytest.raises(DataError, match=r"f\.json:\d\d: the file must be one JSON array or object"):
        load_examples(tmp_path / "f.json")


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (
            {"data": [{"paragraphs": [{"context": "c"}]}]},
            "record 0, paragraph 0: qas must be a list, got NoneType",
        ),
        ({"data": [{"paragraphs": {}}]}, "record 0: paragraphs must be a list, got dict"),
        ({"data": [3]}, "record 0: every record must be a JSON object, got int"),
        ({"data": [{"paragraphs": [{"qas": [3]}]}]}, "record 0, paragraph 0, question 0: every record"),
    ],
)
def test_damaged_squad_names_its_place(tmp_path: Path, document: Any, place: str) -> None:
    with pytest.raises(DataError, match=place):
        load_examples(write_document(tmp_path / "f.json", document))


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl", FLASHRAG[:1])
    path.write_bytes(path.read_bytes() + b'{"id": "x", "question": "caf\xe9?"}\n')
    with pytest.raises(DataError, match=r"f\.jsonl:2: text must be UTF-8, got .* at byte 29"):
        load_examples(path)


def test_truncated_gzip(tmp_path: Path) -> None:
    packed = gzip.compress(write_lines(tmp_path / "f.jsonl", FLASHRAG).read_bytes())
    (tmp_path / "f.jsonl.gz").write_bytes(packed[:-12])
    with pytest.raises(DataError, match=r"f\.jsonl\.gz: compressed data must be complete"):
        load_examples(tmp_path / "f.jsonl.gz")


def test_unknown_format_lists_what_was_found_and_what_is_known(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "f.jsonl", [{"query": "q?", "positive": "p"}])
    with pytest.raises(DataError, match=r"f\.jsonl:1: .*got: query, positive\. Known: FlashRAG.*SQuAD.*DRO"):
        load_examples(path)


def test_missing_answers_are_counted(tmp_path: Path) -> None:
    rows = [*FLASHRAG, {"id": "train_3", "question": "q?", "golden_answers": [" "]}]
    path = write_lines(tmp_path / "f.jsonl", rows)
    with pytest.raises(DataError, match=r"f\.jsonl: .*got none for 2 of 4, first 'train_2'"):
        load_examples(path, require_answers=True)
    assert len(load_examples(path, require_answers=True, limit=2)) == 2


def test_dro_records_of_one_query_must_agree(tmp_path: Path) -> None:
    rows = dro_rows()
    rows[3]["prompt"] = rows[1]["prompt"]
    with pytest.raises(DataError, match=r"record 3: .*got 'how many episodes' here and 'who sang help' at .* for '7'"):
        load_examples(write_document(tmp_path / "f.json", rows))


def test_dro_prompt_without_question(tmp_path: Path) -> None:
    rows = dro_rows()
    rows[1]["prompt"] = "Rank these passages."
    with pytest.raises(DataError, match=r"record 1: the prompt must end with a line 'Question: \.\.\.'"):
        load_examples(write_document(tmp_path / "f.json", rows))


def test_dro_record_without_response(tmp_path: Path) -> None:
    rows = dro_rows()
    del rows[2]["response"]
    with pytest.raises(
        DataError, match="record 2: a record must have prompt, response, query_id, got none of the name response"
    ):
        load_examples(write_document(tmp_path / "f.json", rows))


# The alias of a round


def test_draw_alias_is_the_same_in_another_process() -> None:
    """Python salts hash() per process; the draw must not."""
    example = QAExample("q1", "q?", tuple("abcdefg"))
    here = [draw_alias(example, seed=3, round=number) for number in range(20)]
    code = (
        "from training.questions.loading import draw_alias\nfrom training.questions.example import QAExample\n"
        "e = QAExample('q1', 'q?', tuple('abcdefg'))\n"
        "print(''.join(draw_alias(e, seed=3, round=n) for n in range(20)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert out.stdout.strip() == "".join(here)
    assert len(set(here)) > 3


def test_draw_alias_is_uniform_and_depends_on_seed_round_and_id() -> None:
    """Chi-square of 6,000 draws of 3 aliases: 99.99% of uniform draws stay below 18.4."""
    draws = {
        "seed": [draw_alias(QAExample("q", "?", ("a", "b", "c")), seed=n, round=0) for n in range(6000)],
        "round": [draw_alias(QAExample("q", "?", ("a", "b", "c")), seed=0, round=n) for n in range(6000)],
        "id": [draw_alias(QAExample(f"q{n}", "?", ("a", "b", "c")), seed=0, round=0) for n in range(6000)],
    }
    for name, drawn in draws.items():
        counts = Counter(drawn)
        assert sum((counts[alias] - 2000) ** 2 / 2000 for alias in "abc") < 18.4, name


def test_draw_alias_separates_seed_round_and_id() -> None:
    """Seed 1, round 11 and seed 11, round 1 would share a key that only joins the digits."""
    examples = [QAExample(f"q{n}", "?", tuple("abcdefghijk")) for n in range(30)]
    first = [draw_alias(example, seed=1, round=11) for example in examples]
    assert first != [draw_alias(example, seed=11, round=1) for example in examples]


def test_draw_alias_without_answers() -> None:
    with pytest.raises(DataError, match="must have a golden answer, got none for question 'q1'"):
        draw_alias(QAExample("q1", "q?"), seed=0, round=0)


# Writing


@pytest.mark.parametrize("name", ["out.jsonl", "new/folder/out.jsonl.gz"])
def test_write_then_load(tmp_path: Path, name: str) -> None:
    examples = [*FLASHRAG_EXAMPLES, QAExample("ü", 'Wo liegt "Köln"?\n', ("am Rhein",), ("p1",))]
    path = tmp_path / name
    write_examples(examples, path)
    assert load_examples(path) == examples
    packed = path.read_bytes()
    assert (packed[:2] == b"\x1f\x8b") == name.endswith(".gz")
    text = (gzip.decompress(packed) if name.endswith(".gz") else packed).decode()
    assert "K\u00f6ln" in text  # readable, not escaped
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_written_fields_are_flashrags(tmp_path: Path) -> None:
    write_examples(FLASHRAG_EXAMPLES[1:2], tmp_path / "f.jsonl")
    assert (tmp_path / "f.jsonl").read_text() == (
        '{"id": "train_1", "question": "capital of france", "golden_answers": ["Paris"], "gold_ids": ["p3", "p7"]}\n'
    )


def test_equal_examples_are_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_examples(FLASHRAG_EXAMPLES, tmp_path / name)
    packed = (tmp_path / "a.jsonl.gz").read_bytes()
    assert packed == (tmp_path / "b.jsonl.gz").read_bytes()
    assert packed[4:8] == b"\0\0\0\0"  # the time stamp of the gzip header


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    write_examples(FLASHRAG_EXAMPLES, path)

    def broken() -> Any:
        yield QAExample("new", "q?")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_examples(broken(), path)
    assert load_examples(path) == FLASHRAG_EXAMPLES
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.jsonl"]


# Real files


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("squad/dev", 5665),
        ("nq/train", 7147),
        ("nq/dev", 1355),
        ("hotpotqa/train", 300),
        ("hotpotqa/dev", 300),
        ("2wiki/train", 395),
        ("2wiki/dev", 296),
    ],
)
def test_real_question_files(data_dir: Path, name: str, count: int) -> None:
    examples = load_examples(data_dir / f"{name}.jsonl.gz", require_answers=True)
    assert len(examples) == count
    assert all(example.gold_ids for example in examples)


def test_real_squad_train_repeats_ids(data_dir: Path) -> None:
    """18 of its 87,599 ids stand twice with different questions, first on line 16091; until then it loads."""
    path = data_dir / "squad/train.jsonl.gz"
    assert len(load_examples(path, require_answers=True, limit=16090)) == 16090
    with pytest.raises(
        DataError, match=r"train\.jsonl\.gz:16091: .*got 'squad-3406-q0', which is also the id at .*:16059"
    ):
        load_examples(path)


def test_real_aliases_are_kept(data_dir: Path) -> None:
    first = load_examples(data_dir / "2wiki/dev.jsonl.gz", limit=1)[0]
    assert first.golden_answers == ("Detroit", "Detroit, Michigan", "Detroiter", "Motor City")
    assert first.gold_ids == ("2wiki-261", "2wiki-263")


def test_real_dro_file(data_dir: Path) -> None:
    examples = load_examples(data_dir / "dro_official/nq_generator_training.json.gz", require_answers=True)
    assert len(examples) == 1000
    assert examples[0] == QAExample("0", "big little lies season 2 how many episodes", ("seven",))
    assert all(len(example.golden_answers) == 1 for example in examples)
