"""The benchmark of exponents: its figures are the E-step's, and its scores are made once."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import tau_curve
from indexes.directory.passage_index import PassageIndex
from retriever.selector_config import SelectorConfig
from training.config import DROConfig, EStepConfig
from training.estimation import EStep
from training.posterior import EStepDiagnostics
from training.questions.example import QAExample
from training.questions.loading import write_examples

EXAMPLES = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare",), ("p0",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
    QAExample("q3", "who designed Python?", ("Guido",), ("p5",)),
    QAExample("q4", "without gold ids?", ("no",)),
]


@pytest.fixture
def arguments(base: Path, index: PassageIndex, tmp_path: Path) -> Callable[..., argparse.Namespace]:
    write_examples(EXAMPLES, tmp_path / "questions.jsonl")
    plain = {
        "index": str(index.path),
        "encoder": None,
        "base": str(base),
        "dtype": "float32",
        "device": "cpu",
        "questions": str(tmp_path / "questions.jsonl"),
        "limit": 10,
        "cache": str(tmp_path / "cache.jsonl"),
        "seconds": 1e9,
        "selector": "listwise",
        "candidates": 4,
        "selected": 2,
        "permutations": 5,
        "exact": False,
    }
    return lambda **changes: argparse.Namespace(**plain | changes)


def test_figures_are_those_of_the_e_step(
    arguments: Callable[..., argparse.Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At tau = 0.2, question by question; a second call reads the cache and loads nothing."""
    records = list(tau_curve._records(arguments()))
    assert [record["id"] for record in records] == ["q1", "q2", "q3"]
    made: list[object] = []
    create = tau_curve.RAG.create
    monkeypatch.setattr(tau_curve.RAG, "create", lambda **options: made.append(options) or create(**options))
    assert list(tau_curve._records(arguments())) == records and not made
    with pytest.raises(SystemExit, match="other settings"):
        list(tau_curve._records(arguments(permutations=6)))

    rows = {row["tau"]: row for row in tau_curve.curve(records)}
    assert list(rows) == ["0", "0.05", "0.1", "0.2", "0.5", "1", "auto"]
    rag = create(
        index=arguments().index,
        base=arguments().base,
        device="cpu",
        selector=SelectorConfig(num_candidates=4, num_selected=2),
    )
    settings = EStepConfig(num_permutations=5, proposals_per_sample=1, batch_size=1, likelihood_exponent=0.2)
    step = EStep(rag.retriever, rag.selector, rag.generator, DROConfig(e_step=settings))
    expected = EStepDiagnostics.mean([step([e], round=1)[0].diagnostics() for e in EXAMPLES[:3]])
    assert rows["0.2"]["gold_share"] == pytest.approx(expected.posterior_gold_share, abs=1e-4)
    assert rows["0.2"]["recall"] == pytest.approx(expected.posterior_recall)
    assert rows["0.2"]["ess"] == pytest.approx(expected.ess, abs=1e-3)
    assert rows["0"]["gold_share"] == pytest.approx(expected.selector_gold_share, abs=1e-4)
    assert rows["0"]["gold_share_gain"] == (0.0, 0.0, 0.0)
    assert rows["0"]["student_gold_share"] == pytest.approx(rows["0"]["gold_share"], abs=1e-3), "nothing is taught"
    assert rows["auto"]["exponent"] == 0.5, "three questions are too few"
    assert "auto (0.5)" in tau_curve._text(list(rows.values()), 3)


def test_scoring_ends_in_time_and_goes_on(arguments: Callable[..., argparse.Namespace]) -> None:
    assert list(tau_curve._records(arguments(seconds=0.0))) == []
    some = list(tau_curve._records(arguments(limit=2)))
    assert len(list(tau_curve._records(arguments()))) == len(some) + 1 == 3
