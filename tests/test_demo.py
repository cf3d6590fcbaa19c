"""`rag demo` on a handful of questions: every part of the road, with the models inside the package."""

from pathlib import Path

import pytest

from indexes.errors import UsageError
from rag.demo import run_demo
from rag.pipeline import RAG


@pytest.mark.slow
def test_the_demo_walks_the_whole_road(tmp_path: Path) -> None:
    result = run_demo(output=tmp_path / "demo", train_questions=2, dev_questions=3, rounds=1, progress=False)
    before, after = result.data["rows"]
    assert before["n"] == after["n"] == 3
    assert [row["round"] for row in result.data["rounds"]] == [0, 1]
    assert after["f1"] == result.data["rounds"][result.data["best_round"]]["eval_f1"]
    assert "it is weak" in result.text
    answers = RAG.from_pretrained(tmp_path / "demo/bundle").answer([a["question"] for a in result.data["answers"]])
    assert [a.text for a in answers] == [a["text"] for a in result.data["answers"]]


def test_the_demo_refuses_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="must be a new or empty folder"):
        run_demo(output=tmp_path, progress=False)
