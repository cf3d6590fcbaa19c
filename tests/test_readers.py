"""Files as their owners ship them: what becomes of each record, written out by hand, and of what is broken.

The fixtures in tests/fixtures are invented, in the layout of each owner and with its odd parts. Ids that are made of a
digest are checked against the rule in docs/formats.md, computed here once more.
"""

import gzip
import hashlib
import io
import json
import logging
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import tiny_encoder

from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage
from indexes.directory.builder import build_index
from indexes.errors import DataError, UsageError
from indexes.records.answer_lists import answer_literal
from indexes.records.json_documents import read_json_document
from rag.metrics import gold_recall
from retriever.dense import DenseRetriever
from training.questions.example import QAExample
from training.questions.gold_ids import check_gold_ids, gold_coverage
from training.questions.loading import load_examples, read_questions, write_examples

FIXTURES = Path(__file__).parent / "fixtures"


def made(title: str, text: str) -> str:
    """The rule of docs/formats.md: title, ~, and 12 hex digits of BLAKE2b over title, U+001F and text."""
    return f"{title}~{hashlib.blake2b((title + chr(31) + text).encode(), digest_size=6).hexdigest()}"


LIGHTHOUSE = Passage(
    made("Varn Lighthouse", "The Varn Lighthouse was built by Mara Oduya. It is 41 metres tall."),
    "Varn Lighthouse",
    "The Varn Lighthouse was built by Mara Oduya. It is 41 metres tall.",
)
ODUYA = Passage(
    made("Mara Oduya", "Mara Oduya was born in Port Elle."), "Mara Oduya", "Mara Oduya was born in Port Elle."
)
FERRY = Passage(
    made("Varn Ferry", "The Varn Ferry was founded in 1931."), "Varn Ferry", "The Varn Ferry was founded in 1931."
)
EMPTY = Passage(made("Empty page", ""), "Empty page", "")  # a page without sentences is found by its title
BUILT = Passage(
    made("Varn Lighthouse", "The Varn Lighthouse was built by Mara Oduya."),
    "Varn Lighthouse",
    "The Varn Lighthouse was built by Mara Oduya.",
)
SECTION = Passage(
    made("Varn Lighthouse", "A second section: it is 41 metres tall."),
    "Varn Lighthouse",
    "A second section: it is 41 metres tall.",
)
CAFE_TEXT = "The Varn Lighthouse was built by Mara Oduya in 1902. It is 41 metres tall."
CAFE = Passage(made("Café of Varn", CAFE_TEXT), "Café of Varn", CAFE_TEXT)
TIDES_TEXT = "Spring tides reach four metres at Port Elle; neap tides reach two."
TIDES = Passage(made("Port Elle", TIDES_TEXT), "Port Elle", TIDES_TEXT)
UNASKED = Passage(
    made("Port Elle", "A paragraph that nobody asked about."), "Port Elle", "A paragraph that nobody asked about."
)
WHERE_BORN = "Where was the builder of the Varn Lighthouse born?"

EXAMPLES: dict[str, list[QAExample]] = {
    "kilt/nq-dev-kilt.jsonl": [
        QAExample(
            "6915606477668963399",
            "who built the lighthouse of varn",
            ("Mara Oduya", "Oduya"),
            ("4101", "4102", "4103"),
        ),
        QAExample("-1290000000000000001", "when was the varn ferry founded", ("1931",), ("4104",)),
    ],
    "kilt/fever-dev-kilt.jsonl": [
        QAExample("91198", "Varn Lighthouse was built by Mara Oduya.", ("SUPPORTS",), ("4101",)),
        QAExample("194462", "Varn has never had a ferry.", ("REFUTES",), ("4104", "4103")),
    ],
    "kilt/trex-dev-kilt.jsonl": [
        QAExample("Q1_2_3", "Varn Ferry [SEP] headquarters location", ("Port Elle",), ("4104",))
    ],
    "kilt/structured_zeroshot-dev-kilt.jsonl": [
        QAExample("0a1", "Mara Oduya [SEP] occupation", ("engineer",), ("4102",))
    ],
    "kilt/wow-dev-kilt.jsonl": [
        QAExample(
            "wow_7",
            "I would like to see a lighthouse.\nHave you been to Varn?\nNo, who built it?",
            ("It was an engineer, Mara Oduya.",),
            ("4101",),
        )
    ],
    "kilt/nq-test_without_answers-kilt.jsonl": [
        QAExample("-42", "how tall is the lighthouse of varn"),
        QAExample("43", "who owns the varn ferry"),
    ],
    "flashrag/dev.jsonl": [
        QAExample("dev_0", "who built the lighthouse of varn", ("Mara Oduya", "Oduya")),
        QAExample("dev_1", "Were both built in 1902?", ("yes",)),
        QAExample("dev_2", "how many keepers lived there", ("3",)),
    ],
    "flashrag/mmlu-test.jsonl": [
        QAExample("test_0", "What makes spring tides high?", ("Sun and moon in line",)),
        QAExample("test_1", "Which of these are islands?", ("Varn", "Tarn")),
    ],
    "squad/dev-v1.1.json": [
        QAExample("56be4db0acb8001400a502ec", "Who built the Varn Lighthouse?", ("Mara Oduya", "Oduya"), (CAFE.id,)),
        QAExample("56be4db0acb8001400a502ed", "When was it built?", ("1902", "in 1902"), (CAFE.id,)),
        QAExample("56be4db0acb8001400a502ee", "How high are spring tides?", ("four metres",), (TIDES.id,)),
    ],
    "squad/dev-v2.0.json": [
        QAExample("56ddde6b9a695914005b9628", "How high are neap tides?", ("two",), (TIDES.id,)),
        QAExample("5ad39d53604f3c001a3fe8d1", "How high are the waves?", unanswerable=True),
    ],
    "hotpotqa/hotpot_dev_distractor_v1.json": [
        QAExample("5a8b57f25542995d1e6f1371", WHERE_BORN, ("Port Elle",), (ODUYA.id, LIGHTHOUSE.id)),
        QAExample(
            "5a8c7595554299585d9e36b6",
            "Were the ferry and the lighthouse founded by one person?",
            ("no",),
            (LIGHTHOUSE.id, FERRY.id),
        ),
    ],
    "hotpotqa/hotpot_dev_fullwiki_v1.json": [
        # The second supporting page was not retrieved, so only its title is known.
        QAExample("5a8b57f25542995d1e6f1371", WHERE_BORN, ("Port Elle",), (LIGHTHOUSE.id, "Mara Oduya")),
    ],
    "hotpotqa/hotpot_test_fullwiki_v1.json": [QAExample("5aba749055429901930fa7d8", "Who founded the ferry?")],
    "2wikimultihopqa/dev.json": [
        QAExample(
            "8813f87c0bdd11eba7f7acde48001122",
            "Where was the builder of Varn Lighthouse born?",
            ("Port Elle", "Port-Elle", "Elle Harbour", "Ellean"),
            (LIGHTHOUSE.id, ODUYA.id),
        ),
        QAExample("9813f87c0bdd11eba7f7acde48001122", "Which is taller?", ("Varn Lighthouse",), (LIGHTHOUSE.id,)),
    ],
    "musique/musique_ans_v1.0_dev.jsonl": [
        QAExample("2hop__482757_12019", WHERE_BORN, ("Port Elle", "Elle Harbour"), (BUILT.id, ODUYA.id)),
    ],
    "musique/musique_full_v1.0_dev.jsonl": [
        QAExample("2hop__482757_12019", WHERE_BORN, ("Port Elle", "Elle Harbour"), (BUILT.id, ODUYA.id)),
        QAExample("2hop__482757_12019~unanswerable", WHERE_BORN, unanswerable=True),
    ],
    "musique/musique_ans_v1.0_test.jsonl": [QAExample("2hop__1_2", "Who built it?")],
    "dpr/biencoder-nq-dev.json": [
        QAExample("A", "who built the lighthouse of varn", ("Mara Oduya",), ("18069902", "18069903")),
        QAExample("B", "when was the varn ferry founded", ("1931", "in 1931"), ("18069904",)),
    ],
    "dpr/nq-test.qa.csv": [
        QAExample("C", "who built the lighthouse of varn", ("Mara Oduya", "Oduya")),
        QAExample("D", "what is the tower called", ('"Elle" tower', "Oduya's tower")),
        QAExample("C~2", "who built the lighthouse of varn", ("Mara Oduya", "Oduya")),
        QAExample("E", "who sails to varn"),
    ],
}
DPR_TIDES = "Spring tides reach four metres."
DPR_PASSAGES = [
    Passage("18069902", "Varn Lighthouse", "The Varn Lighthouse was built by Mara Oduya in 1902."),
    Passage("18069903", "Mara Oduya", 'Mara Oduya, who built "the tower", was an engineer.'),
    Passage("18069904", "Varn Ferry", "The Varn Ferry was founded in 1931."),
]
PASSAGES: dict[str, list[Passage]] = {
    "kilt/kilt_knowledgesource.json": [
        Passage(
            "4101",
            "Varn Lighthouse",
            "The Varn Lighthouse was built by Mara Oduya in 1902.\nHistory: Construction\nIt is 41 metres tall.\n"
            "- Keepers lived in it until 1974.",
        ),
        Passage("4102", "Mara Oduya", "Mara Oduya was an engineer."),
        Passage("4103", "Varn", "Varn is an island."),
        Passage("4104", "Varn Ferry", "History\nThe Varn Ferry was founded in 1931.\nIt sails from Port Elle."),
    ],
    "beir/harbour": [
        Passage("MED-10", "Tides of Varn", "Spring tides reach four metres at Port Elle."),
        Passage("MED-11", "", "Neap tides are gentle on the eastern shore."),
        Passage("MED-12", 'Harbour "Old" Wall', "The wall was raised after the flood."),
    ],
    "flashrag/corpus.jsonl": [
        Passage("0", "Varn Lighthouse", "The Varn Lighthouse was built by Mara Oduya."),
        Passage("1", 'The "Old" Wall', "The wall was raised\nafter the flood."),
    ],
    "squad/dev-v1.1.json": [CAFE, TIDES, UNASKED],
    "squad/dev-v2.0.json": [TIDES],
    "hotpotqa/hotpot_dev_distractor_v1.json": [FERRY, ODUYA, EMPTY, LIGHTHOUSE],
    "hotpotqa/hotpot_dev_fullwiki_v1.json": [FERRY, LIGHTHOUSE],
    "hotpotqa/hotpot_test_fullwiki_v1.json": [FERRY, ODUYA],
    "2wikimultihopqa/dev.json": [LIGHTHOUSE, ODUYA, FERRY],  # cut into sentences in two ways, one passage
    "musique/musique_ans_v1.0_dev.jsonl": [BUILT, ODUYA, SECTION],
    "musique/musique_full_v1.0_dev.jsonl": [BUILT, ODUYA, SECTION],
    "musique/musique_ans_v1.0_test.jsonl": [BUILT, SECTION],
    "dpr/biencoder-nq-dev.json": [*DPR_PASSAGES, Passage(made("Tides", DPR_TIDES), "Tides", DPR_TIDES)],
    "dpr/psgs_w100.tsv": DPR_PASSAGES,
}
# As BEIR's own evaluation, its questions do not find the passage with their own id.
OWN = {"ignore_identical_id": True}
BEIR_EXAMPLES = {
    "test": [
        QAExample("PLAIN-2", "how high are spring tides", gold_ids=("MED-10", "MED-11"), gold_grades=(2, 1), **OWN),
        QAExample("PLAIN-4", "gentle tides", **OWN),  # judged, and nothing is relevant
    ],
    "dev": [QAExample("PLAIN-3", "why was the wall raised?", gold_ids=("MED-12",), gold_grades=(1,), **OWN)],
}


def named(examples: list[QAExample]) -> list[QAExample]:
    """DPR's questions have no ids; theirs are a digest, which is replaced by letters in order of appearance."""
    letters: dict[str, str] = {}
    found = []
    for example in examples:
        stem, *number = example.id.removeprefix("q~").split("~")
        letter = letters.setdefault(stem, "ABCDE"[len(letters)])
        found.append(QAExample("~".join([letter, *number]), example.question, example.golden_answers, example.gold_ids))
    return found


def expected(name: str) -> list[QAExample]:
    if name == "dpr/nq-test.qa.csv":
        return [
            QAExample({"C": "A", "D": "B", "C~2": "A~2", "E": "C"}[e.id], e.question, e.golden_answers)
            for e in EXAMPLES[name]
        ]
    return EXAMPLES[name]


def load(name: str, path: Path) -> list[QAExample]:
    examples = load_examples(path)
    return named(examples) if name.startswith("dpr/") else examples


# As shipped


@pytest.mark.parametrize("name", EXAMPLES)
def test_published_question_files_are_read(name: str) -> None:
    assert load(name, FIXTURES / name) == expected(name)


@pytest.mark.parametrize("name", PASSAGES)
def test_published_passage_files_are_read(name: str) -> None:
    assert list(Corpus.from_file(FIXTURES / name)) == PASSAGES[name]


@pytest.mark.parametrize("split", BEIR_EXAMPLES)
def test_beir_folder_zip_and_queries(tmp_path: Path, split: str) -> None:
    archive = tmp_path / "harbour.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("__MACOSX/harbour/._queries.jsonl", "junk")
        for file in sorted((FIXTURES / "beir").rglob("*.*")):
            packed.write(file, file.relative_to(FIXTURES / "beir").as_posix())
    folder = FIXTURES / "beir/harbour"
    for source in (folder, archive, folder / "queries.jsonl", folder.parent):
        assert load_examples(source, split=split) == BEIR_EXAMPLES[split], source
    assert list(Corpus.from_file(archive)) == PASSAGES["beir/harbour"]


def test_beir_queries_alone_are_questions_without_gold() -> None:
    examples = load_examples(FIXTURES / "beir/harbour/queries.jsonl")
    assert [(e.id, e.gold_ids) for e in examples] == [(f"PLAIN-{n}", ()) for n in (2, 3, 4, 5)]


def test_the_only_split_needs_no_name(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "beir/harbour", tmp_path / "harbour")
    (tmp_path / "harbour/qrels/test.tsv").unlink()
    assert load_examples(tmp_path / "harbour") == BEIR_EXAMPLES["dev"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_gzip(tmp_path: Path, name: str) -> None:
    packed = tmp_path / f"{Path(name).name}.gz"
    packed.write_bytes(gzip.compress((FIXTURES / name).read_bytes()))
    if name.startswith("2wiki"):
        shutil.copy(FIXTURES / "2wikimultihopqa/id_aliases.json", tmp_path)
    assert load(name, packed) == expected(name)
    if name in PASSAGES:
        assert list(Corpus.from_file(packed)) == PASSAGES[name]


# The gold passages are in the corpus, and are found

CORPUS_OF = {
    "kilt/nq-dev-kilt.jsonl": "kilt/kilt_knowledgesource.json",
    "kilt/fever-dev-kilt.jsonl": "kilt/kilt_knowledgesource.json",
    "dpr/biencoder-nq-dev.json": "dpr/psgs_w100.tsv",
    **{name: name for name in EXAMPLES if name in PASSAGES and "test" not in name and "fullwiki" not in name},
}


@pytest.mark.parametrize("name", CORPUS_OF)
def test_gold_passages_are_found(tmp_path: Path, name: str) -> None:
    corpus = Corpus.from_file(FIXTURES / CORPUS_OF[name])
    encoder = tiny_encoder([p.contents for p in corpus])
    index = build_index(corpus, encoder, tmp_path / "index", progress=False)
    examples = load_examples(FIXTURES / name)
    assert gold_coverage(examples, index).unknown_ids == ()
    scored = [example for example in examples if example.gold_ids]
    found = DenseRetriever(index, encoder).search([e.question for e in scored], k=len(corpus))
    assert [gold_recall(c.ids, e.gold_ids, len(corpus)) for c, e in zip(found, scored, strict=True)] == [1.0] * len(
        scored
    )


# Exports of `datasets`


def hotpot_rows() -> list[dict[str, Any]]:
    rows = json.loads((FIXTURES / "hotpotqa/hotpot_dev_distractor_v1.json").read_text())
    return [
        {
            "id": row["_id"],
            "question": row["question"],
            "answer": row["answer"],
            "type": row["type"],
            "level": row["level"],
            "supporting_facts": {
                "title": [title for title, _ in row["supporting_facts"]],
                "sent_id": [number for _, number in row["supporting_facts"]],
            },
            "context": {
                "title": [title for title, _ in row["context"]],
                "sentences": [sentences for _, sentences in row["context"]],
            },
        }
        for row in rows
    ]


def squad_rows() -> list[dict[str, Any]]:
    document = json.loads((FIXTURES / "squad/dev-v2.0.json").read_text())
    return [
        {
            "id": question["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {
                "text": [answer["text"] for answer in question["answers"]],
                "answer_start": [answer["answer_start"] for answer in question["answers"]],
            },
        }
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def kilt_rows() -> list[dict[str, Any]]:
    """Every field of every row is there; what was not is an empty text, an empty list or None."""
    rows = [json.loads(line) for line in (FIXTURES / "kilt/nq-dev-kilt.jsonl").read_text().splitlines()]
    for row in rows:
        for output in row["output"]:
            output.setdefault("answer", "")
            output["meta"] = {"score": output.get("meta", {}).get("score", -1)}
            output["provenance"] = [
                {"wikipedia_id": entry["wikipedia_id"], "title": entry["title"], "bleu_score": entry["bleu_score"]}
                for entry in output.get("provenance", [])
            ] or [{"wikipedia_id": "", "title": "", "bleu_score": -1.0}]
        row["meta"] = {"partial_evidence": []}
    return rows


EXPORTS: dict[str, tuple[Callable[[], list[dict[str, Any]]], list[QAExample], list[Passage]]] = {
    "hotpot_qa": (
        hotpot_rows,
        EXAMPLES["hotpotqa/hotpot_dev_distractor_v1.json"],
        PASSAGES["hotpotqa/hotpot_dev_distractor_v1.json"],
    ),
    "squad_v2": (
        squad_rows,
        # Exported rows do not say what is unanswerable; they have no answer.
        [
            EXAMPLES["squad/dev-v2.0.json"][0],
            QAExample("5ad39d53604f3c001a3fe8d1", "How high are the waves?", (), (TIDES.id,)),
        ],
        PASSAGES["squad/dev-v2.0.json"],
    ),
    "kilt_tasks": (kilt_rows, EXAMPLES["kilt/nq-dev-kilt.jsonl"], []),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_exported_rows(tmp_path: Path, name: str) -> None:
    rows, examples, passages = EXPORTS[name][0](), *EXPORTS[name][1:]
    dataset = datasets.Dataset.from_list(rows)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "0000.parquet")
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as stream:
        stream.write_table(table)
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as file:
        file.write_table(table)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset.save_to_disk(tmp_path / "saved")
    files = ["0000.parquet", "stream.arrow", "file.arrow", "rows.jsonl", "saved"]
    for source in [dataset, *(tmp_path / file for file in files)]:
        assert load_examples(source) == examples, source
    for file in files if passages else []:
        assert list(Corpus.from_file(tmp_path / file)) == passages, file
    if passages:
        assert list(Corpus.from_dataset(dataset)) == passages


def test_columns_of_lists(tmp_path: Path) -> None:
    """What older versions of `datasets` made of lists of records, with every field that there is."""
    (row,) = (json.loads(line) for line in (FIXTURES / "musique/musique_ans_v1.0_dev.jsonl").read_text().splitlines())
    row["paragraphs"] = {key: [entry[key] for entry in row["paragraphs"]] for key in row["paragraphs"][0]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    assert load_examples(tmp_path / "m.jsonl") == EXAMPLES["musique/musique_ans_v1.0_dev.jsonl"]
    assert list(Corpus.from_file(tmp_path / "m.jsonl")) == PASSAGES["musique/musique_ans_v1.0_dev.jsonl"]


def test_squad_on_one_long_line_whose_first_key_is_another(tmp_path: Path) -> None:
    document = json.loads((FIXTURES / "squad/dev-v1.1.json").read_text())
    (tmp_path / "s.json").write_text(json.dumps({"licence": "x" * 70_000, **document}))
    assert load_examples(tmp_path / "s.json") == EXAMPLES["squad/dev-v1.1.json"]
    assert list(Corpus.from_file(tmp_path / "s.json")) == PASSAGES["squad/dev-v1.1.json"]


def test_exported_kilt_pages(tmp_path: Path) -> None:
    pages = [json.loads(line) for line in (FIXTURES / "kilt/kilt_knowledgesource.json").read_text().splitlines()]
    rows = [
        {
            "kilt_id": page["_id"],
            "wikipedia_id": page["wikipedia_id"],
            "wikipedia_title": page["wikipedia_title"],
            "text": {"paragraph": page["text"]},
            "categories": page["categories"],
        }
        for page in pages
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pages.parquet")
    assert list(Corpus.from_file(tmp_path / "pages.parquet")) == PASSAGES["kilt/kilt_knowledgesource.json"]


# Order


def shuffled(path: Path, target: Path) -> Path:
    """The same records in another order, in the container they came in."""
    mixed = random.Random(3)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        document = json.loads(text)
        records = document["data"] if isinstance(document, dict) else document
        records.reverse()
        for record in records:
            for field in ("paragraphs", "context", "positive_ctxs"):
                mixed.shuffle(record.get(field, []))
        target.write_text(json.dumps(document), encoding="utf-8")
    else:
        target.write_text("".join(reversed(text.splitlines(keepends=True))), encoding="utf-8")
    return target


@pytest.mark.parametrize("name", EXAMPLES)
def test_order_of_records_changes_no_id(tmp_path: Path, name: str) -> None:
    mixed = shuffled(FIXTURES / name, tmp_path / Path(name).name)
    if name.startswith("2wiki"):
        shutil.copy(FIXTURES / "2wikimultihopqa/id_aliases.json", tmp_path)

    def said(path: Path) -> set[tuple[object, ...]]:
        found = load_examples(path)
        return {(e.id, e.question, e.golden_answers, frozenset(e.gold_ids), e.unanswerable) for e in found}

    assert said(mixed) == said(FIXTURES / name)
    if name in PASSAGES:
        assert sorted(Corpus.from_file(mixed), key=lambda p: p.id) == sorted(PASSAGES[name], key=lambda p: p.id)


def test_training_and_evaluation_files_share_passage_ids() -> None:
    hotpot = Corpus.from_file(FIXTURES / "hotpotqa/hotpot_dev_distractor_v1.json")
    wiki = Corpus.from_file(FIXTURES / "2wikimultihopqa/dev.json")
    assert set(hotpot.ids) == {*wiki.ids, EMPTY.id}


# Broken files


def lines(*rows: object) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


KILT = {"id": "a", "input": "q?", "output": [{"answer": "x"}]}
HOTPOT: dict[str, Any] = {
    "_id": "a",
    "question": "q?",
    "answer": "x",
    "supporting_facts": [["T", 0]],
    "context": [["T", ["x"]]],
}
MUSIQUE = {"id": "a", "question": "q?", "answer": "x", "paragraphs": [{"title": "T", "paragraph_text": "x"}]}
DPR = {"question": "q?", "answers": ["x"], "positive_ctxs": [{"title": "T", "text": "x", "passage_id": "1"}]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("k.jsonl", lines(KILT, {**KILT, "output": "x"}), r"k\.jsonl:2: output must be a list, got str"),
        ("k.jsonl", lines({**KILT, "output": ["x"]}), r"k\.jsonl:1: output: every record must be a JSON object"),
        ("k.jsonl", lines({**KILT, "output": [{"answer": {"a": 1}}]}), r"k\.jsonl:1: an answer must be text"),
        (
            "k.jsonl",
            lines({**KILT, "output": [{"provenance": {}}], "id": 7}, {**KILT, "input": 3}),
            r"k\.jsonl:2: .*int",
        ),
        ("k.jsonl", lines({**KILT, "output": [{"provenance": "4101"}]}), r"k\.jsonl:1: provenance must be a list"),
        ("k.jsonl", lines({**KILT, "output": [{"provenance": [{"wikipedia_id": 1.5}]}]}), r"k\.jsonl:1: an id must be"),
        (
            "k.jsonl",
            lines({"id": "tc_33", "output": []}),
            r"k\.jsonl:1: .*got a KILT record without input, 'tc_33'.*get_triviaqa_input",
        ),
        ("h.json", json.dumps([HOTPOT, {**HOTPOT, "context": 3}]), r"h\.json, record 1: context must be a list"),
        (
            "h.json",
            json.dumps([{**HOTPOT, "context": [["T"]]}]),
            r"record 0: context, entry 0 must hold title and sent",
        ),
        ("h.json", json.dumps([{**HOTPOT, "context": [["T", "x"]]}]), r"record 0: sentences must be a list of texts"),
        ("h.json", json.dumps([{**HOTPOT, "supporting_facts": "T"}]), r"record 0: supporting_facts must be a list"),
        (
            "h.json",
            json.dumps([{**HOTPOT, "context": {"title": ["T"], "sentences": []}}]),
            r"columns title, sentences of",
        ),
        ("m.jsonl", lines({**MUSIQUE, "paragraphs": [3]}), r"m\.jsonl:1: paragraphs, entry 0 must hold title and para"),
        ("m.jsonl", lines({**MUSIQUE, "answerable": "no"}), r"m\.jsonl:1: answerable must be true or false, got 'no'"),
        ("m.jsonl", lines(MUSIQUE, MUSIQUE), r"m\.jsonl:2: .*got 'a', which is also the id at .*m\.jsonl:1"),
        ("d.json", json.dumps([{**DPR, "positive_ctxs": "T"}]), r"d\.json, record 0: positive_ctxs must be a list"),
        (
            "d.json",
            json.dumps([{**DPR, "positive_ctxs": [{"title": 3}]}]),
            r"positive_ctxs: title must be text, got int",
        ),
        (
            "f.jsonl",
            lines({"question": "q?", "choices": ["x"], "golden_answers": [1]}),
            r"f\.jsonl:1: .*positions in 1",
        ),
        (
            "f.jsonl",
            lines({"question": "q?", "gold_ids": ["a"], "gold_grades": ["1"]}),
            r"f\.jsonl:1: gold_grades must be",
        ),
        ("f.jsonl", lines({"question": "q?", "gold_ids": ["a"], "gold_grades": [1, 2]}), r"one grade of at least 1"),
        ("f.jsonl", lines({"_id": "1", "title": "T", "text": "x"}), r"f\.jsonl:1: .*got one for '1': this is a corpus"),
    ],
)
def test_broken_records_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_examples(tmp_path / name)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("q?\t[1, 2]", "must be a list of texts"),
        ("q?\t['x'", "must be a list of texts"),
        ("q?\t[__import__('os').system('touch owned')]", "must be a list of texts"),
        ("q?\t[open('owned', 'w')]", "must be a list of texts"),
        ("q?\t{'x': 1}", "must be a list of texts"),
        ("q?\t" + "[" * 5000 + "]" * 5000, "must be a list of texts"),
        ("q?\t['x' * 10**9]", "must be a list of texts"),
        ("q?", "got 1 fields"),
        ("q?\t['x']\t3", "got 3 fields"),
        ("\t['x']", "every question must be text"),
        ("q?\t['" + "x" * 2**20 + "']", "must be a list of texts"),
    ],
)
def test_broken_dpr_lines_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.qa.csv").write_text(f"who?\t['x']\n{row}\nwhere?\t['y']\n")
    with pytest.raises(DataError, match=rf"test\.qa\.csv:2: .*{message}"):
        load_examples(tmp_path / "test.qa.csv")
    assert [e.question for e in load_examples(tmp_path / "test.qa.csv", on_error="skip")] == ["who?", "where?"]
    assert not (tmp_path / "owned").exists()


def test_a_literal_has_a_maximum_length() -> None:
    assert answer_literal(repr(["x" * 131_072]), "here") == ["x" * 131_072]  # beyond the limit that `csv` has by itself
    with pytest.raises(DataError, match="here: the answers must be a list of texts"):
        answer_literal(repr(["x" * 2**20]), "here")


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("query-id\tcorpus-id\tscore\nPLAIN-9\tMED-10\t1\n", r"qrels/test\.tsv:2: .*in queries\.jsonl, got 'PLAIN-9'"),
        ("query-id\tcorpus-id\tscore\nPLAIN-2\tMED-10\n", r"qrels/test\.tsv:2: a judgement must be"),
        ("query-id\tcorpus-id\tscore\nPLAIN-2\tMED-10\thigh\n", r"qrels/test\.tsv:2: a judgement must be"),
        ("PLAIN-2\tMED-10\t1\n", r"qrels/test\.tsv:1: the first line must be query-id corpus-id score"),
        ("query-id\tcorpus-id\tscore\nPLAIN-2\tMED-10\t--1\n", r"qrels/test\.tsv:2: a judgement must be"),
        ("query-id\tcorpus-id\tscore\nPLAIN-2\tMED-10\t\u00b2\n", r"qrels/test\.tsv:2: a judgement must be"),
        ("query-id\tcorpus-id\tscore\n", r"harbour: .*at least one question, got none"),
    ],
)
def test_broken_judgements_are_named(tmp_path: Path, qrels: str, message: str) -> None:
    shutil.copytree(FIXTURES / "beir/harbour", tmp_path / "harbour")
    (tmp_path / "harbour/qrels/test.tsv").write_text(qrels)
    with pytest.raises(DataError, match=message):
        load_examples(tmp_path / "harbour", split="test")


def test_a_repeated_question_id_is_an_error(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "beir/harbour", tmp_path / "harbour")
    with (tmp_path / "harbour/queries.jsonl").open("a") as file:
        file.write('{"_id": "PLAIN-2", "text": "how low are neap tides"}\n')
    with pytest.raises(DataError, match="got 'PLAIN-2', which is also the id"):
        load_examples(tmp_path / "harbour", split="test")


@pytest.mark.parametrize(
    "row",
    [
        '{"question": "a \\ud83d", "answer": "x"}',
        '{"question": "a", "answer": "\\ude00x"}',
        '{"id": "\\ud83d", "question": "a", "answer": "x"}',
        '{"question": "a", "answer": 1e999}',
        '{"question": "a", "answer": NaN}',
    ],
)
def test_lone_surrogates_and_infinite_answers_are_refused(tmp_path: Path, row: str) -> None:
    """JSON can write half a character, and Python reads numbers that JSON does not have."""
    file = tmp_path / "f.jsonl"
    file.write_text(f'{row}\n{{"question": "b \\ud83d\\ude00", "answer": "\U0001f600"}}\n')
    with pytest.raises(DataError, match=r"f\.jsonl:1: a.* (half of one|got (inf|nan))"):
        load_examples(file)
    (kept,) = load_examples(file, on_error="skip")
    assert kept.question == "b \U0001f600"


def test_splits_are_named() -> None:
    for split, chosen in ((None, "no split"), ("train", "split='train'")):
        with pytest.raises(
            DataError, match=rf"one of the splits \['dev', 'test'\] in the folder qrels must be chosen, got {chosen}"
        ):
            load_examples(FIXTURES / "beir/harbour", split=split)
    with pytest.raises(UsageError, match="a split must be part of a dataset with splits, got split='test'"):
        load_examples(FIXTURES / "flashrag/dev.jsonl", split="test")


def test_broken_archives_and_tables(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"a\.zip: an archive must be readable"):
        load_examples(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("one/queries.jsonl", "")
        archive.writestr("two/queries.jsonl", "")
    with pytest.raises(DataError, match=r"b\.zip: .*one queries\.jsonl, got 2"):
        load_examples(tmp_path / "b.zip")
    pq.write_table(pa.table({"question": ["q?"] * 9}), tmp_path / "c.parquet")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "c.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"c\.parquet: this must be a readable Parquet file"):
        load_examples(tmp_path / "c.parquet")


def test_a_broken_aliases_file_is_never_skipped(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "2wikimultihopqa/dev.json", tmp_path)
    (tmp_path / "id_aliases.json").write_text('{"Q_id": "Q13", "aliases": []}\n{"Q_id"\n')
    with pytest.raises(DataError, match=r"id_aliases\.json:2: every line must be one JSON object"):
        load_examples(tmp_path / "dev.json", on_error="skip")


def test_a_passage_with_two_texts_is_refused(tmp_path: Path) -> None:
    other = {**DPR, "question": "r?", "positive_ctxs": [{"title": "T", "text": "y", "passage_id": "1"}]}
    (tmp_path / "d.json").write_text(json.dumps([DPR, other]))
    with pytest.raises(DataError, match=r"d\.json, record 1: .*got '1' with another title or text"):
        Corpus.from_file(tmp_path / "d.json")
    corpus = Corpus.from_file(tmp_path / "d.json", on_error="skip")
    assert list(corpus) == [Passage("1", "T", "x")] and corpus.quarantined == 1


# Documents that are longer than what is read at once


@pytest.mark.parametrize("indent", [None, 1])
def test_long_arrays_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None) -> None:
    """Chunks of 7 bytes cut every token, escape and UTF-8 sequence somewhere."""
    monkeypatch.setattr("indexes.records.json_documents._CHUNK", 7)
    rows = [
        {
            "id": n,
            "question": f'wo ist „Köln“ {n}? "\\u00e9\n',
            "answer": "\u00e9" * n,
            "n": -1.5e-3 * n,
            "b": [True, None],
        }
        for n in range(40)
    ]
    path = tmp_path / "f.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=indent is None), encoding="utf-8")
    assert [(e.id, e.question) for e in load_examples(path)] == [(str(row["id"]), row["question"]) for row in rows]


@pytest.mark.parametrize(
    "tail", [', {"id": 9, "question" "r?"}]', ", {broken", "", "] x", ', "unclosed', ", nul]", ", ]"]
)
def test_broken_records_after_the_limit_are_not_read(tmp_path: Path, tail: str) -> None:
    rows = [{"id": n, "question": "q" * 4000} for n in range(600)]
    whole = json.dumps(rows, indent=1)[:-2]
    (tmp_path / "f.json").write_text(whole + tail)
    assert len(load_examples(tmp_path / "f.json", limit=5)) == 5
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError, match=r"f\.json:240\d: the file must be one JSON array or object"):
            load_examples(tmp_path / "f.json", on_error=on_error)


@pytest.mark.parametrize("text", ["[\n1[]\n]", "[1, 2x]", "[\n[],\n1{}]"])
def test_what_follows_a_number_at_the_end_of_a_file_is_seen(text: str) -> None:
    """Without a further chunk places in the text were counted from another beginning, and its rest was passed over."""
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(DataError) as found:
        list(read_json_document(io.BytesIO(text.encode()), "f"))
    assert f"f:{expected.value.lineno}: " in str(found.value)
    assert f"at column {expected.value.colno} " in str(found.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(VALUES, min_size=1, max_size=4),
    chunk=st.integers(1, 40),
    damage=st.none() | st.tuples(st.integers(0, 200), st.sampled_from(["", "x", ",", "]", '"', "1", "\\"])),
    indent=st.sampled_from([None, 1]),
)
def test_an_array_is_valid_when_json_finds_it_valid(
    monkeypatch: pytest.MonkeyPatch, values: list[Any], chunk: int, damage: tuple[int, str] | None, indent: int | None
) -> None:
    """One character replaced, or none: the same values, or an error for both."""
    text = json.dumps(values, indent=indent, ensure_ascii=chunk % 2 == 0)
    if damage is not None:
        place = 1 + damage[0] % len(text)
        text = text[:place] + damage[1] + text[place + 1 :]
    monkeypatch.setattr("indexes.records.json_documents._CHUNK", chunk)
    try:
        whole = json.loads(text)
    except ValueError:
        whole = []
    streamed: list[Any] = []
    try:
        streamed.extend(read_json_document(io.BytesIO(text.encode("utf-8", "surrogatepass")), "f"))
    except DataError:
        assert whole == []
    else:
        assert repr(streamed) == repr(whole)  # NaN is not equal to itself


# What is left out, and what is let through


def test_broken_records_are_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows: list[object] = [{"id": str(n), "question": "q?"} for n in range(3)]
    (tmp_path / "f.jsonl").write_text(lines(*rows, *["{broken"] * 25, {"id": "0", "question": "again?"}))
    with caplog.at_level(logging.WARNING, logger="training.questions.loading"):
        found = read_questions(tmp_path / "f.jsonl", on_error="skip")
    assert [example.id for example in found.examples] == ["0", "1", "2"]
    assert len(found.skipped) == 26
    assert len(caplog.messages) == 21
    assert "f.jsonl:4: every line must be one JSON object" in caplog.messages[0]
    assert caplog.messages[-1].startswith("Left out: 26 records of ")
    with pytest.raises(DataError, match=r"got 25 broken records and no other\. The first: .*g\.jsonl:1"):
        (tmp_path / "g.jsonl").write_text(lines(*["{broken"] * 25))
        load_examples(tmp_path / "g.jsonl", on_error="skip")
    with pytest.raises(UsageError, match='on_error must be "raise" or "skip"'):
        load_examples(tmp_path / "f.jsonl", on_error="ignore")  # type: ignore[arg-type]


def test_unanswerable_questions_are_no_training_questions() -> None:
    path = FIXTURES / "squad/dev-v2.0.json"
    with pytest.raises(DataError, match=r"got none for 1 of 2 \(1 of them marked as unanswerable\)"):
        load_examples(path, require_answers=True)
    assert len(load_examples(path, require_answers=True, allow_unanswerable=True)) == 2
    with pytest.raises(DataError, match="got none for 2 of 2, first"):
        load_examples(
            FIXTURES / "kilt/nq-test_without_answers-kilt.jsonl", require_answers=True, allow_unanswerable=True
        )


def test_an_unanswerable_question_has_no_answer() -> None:
    with pytest.raises(DataError, match=r"unanswerable question must have no golden answers, got .* for 'a'"):
        QAExample("a", "q?", ("x",), unanswerable=True)


def test_examples_are_equal_after_writing_and_reading(tmp_path: Path) -> None:
    for number, (name, examples) in enumerate([*EXAMPLES.items(), *BEIR_EXAMPLES.items()]):
        write_examples(examples, tmp_path / f"{number}.jsonl")
        assert load_examples(tmp_path / f"{number}.jsonl") == examples, name


# Gold ids that an index does not have


def test_unknown_gold_ids_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    corpus = Corpus.from_file(FIXTURES / "hotpotqa/hotpot_dev_fullwiki_v1.json")
    some = load_examples(FIXTURES / "hotpotqa/hotpot_dev_fullwiki_v1.json")
    none = load_examples(FIXTURES / "kilt/nq-dev-kilt.jsonl")
    known = load_examples(FIXTURES / "2wikimultihopqa/dev.json")[1:]
    caplog.clear()  # of news from reading
    assert gold_coverage([*some, *known], corpus) == (2, 1, ("Mara Oduya",))
    assert check_gold_ids(known, corpus, on_unknown="raise") == known
    assert caplog.messages == []
    with pytest.raises(DataError, match="got 1 that are not, first 'Mara Oduya', so only 0 of 1 questions"):
        check_gold_ids(some, corpus, on_unknown="raise")
    assert check_gold_ids(some, corpus) == some  # one of its two passages can be found
    assert check_gold_ids(none, corpus, on_unknown="warn") == none
    assert [e.gold_ids for e in check_gold_ids(none, corpus)] == [(), ()]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "got 4 that are not, first '4101', '4102', '4103', so only 0 of 2" in caplog.messages[-1]


def test_chunks_of_a_gold_passage_are_known(tmp_path: Path) -> None:
    corpus = Corpus.from_passages([Passage("4101#0", "", "x"), Passage("4101#1", "", "y"), Passage("4102", "", "z")])
    examples = [QAExample("a", "q?", ("x",), ("4101", "4102"))]
    assert gold_coverage(examples, corpus).unknown_ids == ()


# Corpora in .json


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"id": "a", "text": "x"}', r"c\.json:1: the file must be one JSON array or object"),
        (b'[{"id": "a", "text": "x"}, 3]', r"c\.json, record 1: every record must be a JSON object, got int"),
        (b'{"version": "1", "data": []}', r"c\.json: .* at least one question or passage"),
        (b"[\n\xff]", r"c\.json:2: a JSON file must be UTF-8"),
        (b"[" * 100_000, r"c\.json:1: the file must be one JSON array or object"),
        (
            b'[{"question": "q?", "context": [["T"]]}]',
            r"c\.json, record 0: context, entry 0 must hold title and sentences",
        ),
        (b'[{"title": "T", "paragraphs": 3}]', r"c\.json, record 0: paragraphs must be a list, got int"),
        (b'{"wikipedia_title": "T", "text": ["T", "x"]}', r"c\.json:1: a KILT page must have a wikipedia_id"),
        (
            b'{"wikipedia_title": "T", "wikipedia_id": 1, "text": ["T", 3]}',
            r"c\.json:1: the text of a KILT page must be",
        ),
        (b'[{"_id": "a", "question": "q?", "answer": "x"}]', r'a passage must have a "text"'),
        (b"", "a corpus must have at least one passage"),
    ],
)
def test_broken_json_corpora_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Corpus.from_file(tmp_path / "c.json")


def test_json_arrays_of_passages(tmp_path: Path) -> None:
    rows = [{"id": "a", "title": "T", "text": "x"}, {"contents": '"U"\ny'}]
    (tmp_path / "c.json").write_text(json.dumps(rows))
    assert list(Corpus.from_file(tmp_path / "c.json")) == [Passage("a", "T", "x"), Passage("1", "U", "y")]
    packed = gzip.compress((tmp_path / "c.json").read_bytes())
    (tmp_path / "d.json.gz").write_bytes(packed[:-9])
    with pytest.raises(DataError, match=r"d\.json\.gz"):
        Corpus.from_file(tmp_path / "d.json.gz")


def test_passages_with_a_context_stay_passages(tmp_path: Path) -> None:
    row = {"id": "a", "text": "x", "question": "q?", "context": [["T", ["y"]]], "paragraphs": []}
    (tmp_path / "c.jsonl").write_text(lines(row))
    assert list(Corpus.from_file(tmp_path / "c.jsonl")) == [Passage("a", "", "x")]


# Real text


def as_hotpot(example: QAExample, gold: list[Passage], others: list[Passage]) -> dict[str, Any]:
    return {
        "_id": example.id,
        "question": example.question,
        "answer": example.golden_answers[0],
        "supporting_facts": [[passage.title, 0] for passage in gold],
        "context": [[passage.title, [passage.text]] for passage in (*others, *gold)],
    }


def as_musique(example: QAExample, gold: list[Passage], others: list[Passage]) -> dict[str, Any]:
    paragraphs = [{"title": p.title, "paragraph_text": p.text, "is_supporting": p in gold} for p in (*others, *gold)]
    return {
        "id": example.id,
        "question": example.question,
        "answer": example.golden_answers[0],
        "paragraphs": paragraphs,
    }


def as_dpr(example: QAExample, gold: list[Passage], others: list[Passage]) -> dict[str, Any]:
    def contexts(passages: list[Passage]) -> list[dict[str, Any]]:
        return [{"title": p.title, "text": p.text, "score": 0.5, "passage_id": p.id} for p in passages]

    return {
        "question": example.question,
        "answers": list(example.golden_answers),
        "positive_ctxs": contexts(gold),
        "negative_ctxs": [],
        "hard_negative_ctxs": contexts(others),
    }


def as_squad(example: QAExample, gold: list[Passage], others: list[Passage]) -> dict[str, Any]:
    answers = [{"text": answer, "answer_start": 0} for answer in example.golden_answers]
    question = {"id": example.id, "question": example.question, "answers": answers}
    paragraphs = [{"context": p.text, "qas": [question] if p is gold[0] else []} for p in (*others, gold[0])]
    return {"title": "An article", "paragraphs": paragraphs}


@pytest.mark.parametrize("name", ["squad", "2wiki", "hotpotqa", "nq"])
@pytest.mark.parametrize("shape", [as_hotpot, as_musique, as_dpr, as_squad])
def test_real_text_in_every_layout(data_dir: Path, tmp_path: Path, name: str, shape: Callable[..., Any]) -> None:
    """Exported and read again, every question has its answers, and its gold ids lead to its gold text."""
    corpus = Corpus.from_file(data_dir / name / "corpus.jsonl.gz")
    originals = load_examples(data_dir / name / "dev.jsonl.gz", limit=60)
    golds = [[corpus[corpus.position(id_)] for id_ in example.gold_ids] for example in originals]
    others = [corpus[position] for position in range(7)]
    rows = [
        shape(example, gold, [other for other in others if other not in gold and other.title != gold[0].title])
        for example, gold in zip(originals, golds, strict=True)
    ]
    path = tmp_path / "export.json"
    path.write_text(json.dumps({"data": rows} if shape is as_squad else rows))
    inside = Corpus.from_file(path)
    read = load_examples(path, require_answers=True)
    assert gold_coverage(read, inside) == (len(originals), len(originals), ())
    for original, gold, example in zip(originals, golds, read, strict=True):
        assert example.question == original.question
        assert example.golden_answers[0] == original.golden_answers[0].strip()
        found = {" ".join(inside[inside.position(id_)].text.split()) for id_ in example.gold_ids}
        wanted = gold[:1] if shape is as_squad else gold
        assert found >= {" ".join(passage.text.split()) for passage in wanted}
        assert shape is as_hotpot or len(found) == len({p.text for p in wanted})  # a title may have several texts
