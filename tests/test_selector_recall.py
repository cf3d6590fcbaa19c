"""`benchmarks.selector_recall`: every ranking from one reading, and a table whose numbers follow from them."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import selector_recall
from indexes.directory.passage_index import PassageIndex
from rag import RAG

QUESTIONS = [("who wrote Hamlet?", ["p0"]), ("capital of Germany?", ["p4", "p1"]), ("river in Berlin?", ["p1"])]


@pytest.fixture
def args(base: Path, index: PassageIndex, tmp_path: Path) -> argparse.Namespace:
    rows = [
        {"id": f"q{i}", "question": text, "golden_answers": ["x"], "gold_ids": gold}
        for i, (text, gold) in enumerate(QUESTIONS)
    ]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return argparse.Namespace(
        index=str(index.path),
        encoder=None,
        base=str(base),
        dtype="float32",
        questions=str(tmp_path / "dev.jsonl"),
        limit=100,
        candidates=5,
        passage_tokens=20,
        bundle=[],
        without_identifiers=False,
        cache=str(tmp_path / "cache.jsonl"),
        seconds=60.0,
    )


def test_rankings_are_kept_and_the_table_follows_from_them(
    args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = list(selector_recall._records(args))
    assert [record["id"] for record in records] == ["q0", "q1", "q2"]
    assert {len(order) for record in records for order in record["orders"].values()} == {5}
    assert all(record["orders"]["retriever"] == [0, 1, 2, 3, 4] for record in records)
    monkeypatch.setattr(RAG, "create", None)  # a complete cache loads no model
    assert list(selector_recall._records(args)) == records
    rows = {row["selector"]: row for row in selector_recall.table_rows(records)}
    assert list(rows) == ["retriever", "question likelihood", "pooled", "identifiers", "all candidates"]
    for name in ("retriever", "pooled"):
        found = [
            len({record["ids"][i] for i in record["orders"][name][:3]} & set(gold)) / len(gold)
            for record, (_, gold) in zip(records, QUESTIONS, strict=True)
        ]
        assert rows[name]["recall@3"] == pytest.approx(sum(found) / 3)
    assert rows["pooled"]["difference"] == pytest.approx(rows["pooled"]["recall@3"] - rows["retriever"]["recall@3"])
    assert "| pooled |" in selector_recall._text(list(rows.values()), 3)


def test_a_cache_of_other_settings_is_refused(args: argparse.Namespace) -> None:
    args.seconds = 0.0
    assert list(selector_recall._records(args)) == []
    args.candidates = 4
    with pytest.raises(SystemExit, match="numbers of other settings"):
        list(selector_recall._records(args))
