"""The registry of metrics: one registration reaches evaluation files, tables, comparisons and sweeps."""

import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluation_records import evaluation_of

from indexes.errors import UsageError
from rag.commands.sweep import sweep_text
from rag.evaluation.comparison import compare_evaluations
from rag.evaluation.evaluation import evaluate, search_metrics
from rag.evaluation.evaluation_file import EvaluationFile, evaluation_file
from rag.evaluation.metric import METRICS, Metric, columns, metric_label, metric_of
from rag.experiments.sweep_results import TrialResult, compare, sweep_pairs
from rag.metrics import gold_recall, ranking_quality
from rag.pipeline import RAG
from training.questions.example import QAExample

EXAMPLE = Path(__file__).parents[1] / "examples/new_metric.py"
EXAMPLES = [
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare",)),
    QAExample("q3", "who is nobody?", (), ("p0",), unanswerable=True),
]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(METRICS, "_registered", dict(METRICS._registered))


def register(**fields: Any) -> Metric:
    metric = Metric(**fields)
    METRICS.register(metric.name, metric)
    return metric


def test_tables_show_the_built_in_metrics_in_order() -> None:
    """The columns that the commands had before there was a registry."""
    assert [c.name for c in columns("comparison")] == [
        *("exact_match", "f1", "selector_recall@1", "selector_recall@5", "selector_ndcg@5", "selector_mrr")
    ]
    assert [c.heading for c in columns("trials")] == [
        *("EM", "F1", "recall@1", "recall@3", "recall@5", "general", "KL", "seconds")
    ]
    assert [c.name for c in columns("trial_comparisons")] == ["exact_match", "f1", "general"]
    assert [c.name for c in columns("rounds")] == [*("exact_match", "f1", "selector_recall@1", "retriever_recall@1")]


def test_a_registered_metric_of_answers_is_everywhere(make_rag: Callable[..., RAG]) -> None:
    metric = register(
        name="words", label="Words", unit="count", function=lambda answer, example: len(answer.text.split())
    )
    rag = make_rag()
    found = evaluate(rag, EXAMPLES, progress=False)
    assert [scores["words"] for scores in found.scores] == [len(a.text.split()) for a in found.answers]
    assert found.counts["words_unanswerable"] == 1 and found.counts["words_answerable"] == 2
    file = EvaluationFile.from_dict(evaluation_file(rag, found, name="x").to_dict())
    assert "words" in file.metrics and "words" in file.intervals and "words" in file.records[0].scores
    for table in ("comparison", "trials", "trial_comparisons", "rounds"):
        assert "words" in [c.name for c in columns(table)]
    one, other = (
        evaluation_of(name, {"words": [length, 3.0]}) for name, length in (("no_training", 2.0), ("dro", 12.0))
    )
    (compared,) = compare_evaluations([one, other])
    assert (compared.metric, compared.difference) == ("words", 5.0)
    trials = [TrialResult(e.name, e.name, e.name, False, 1, {}, e, [], None, [], 1.0) for e in (one, other)]
    comparisons = compare(sweep_pairs(trials, "dro"))
    assert [(c.metric, c.difference) for c in comparisons] == [("words", 5.0)]
    data = {"trials": [{**t.scores().to_dict(), "seconds": 1.0} for t in trials], "failed": [], "seconds": 2.0}
    data |= {"answerable_questions": 1, "dataset": {"n": 2}, "comparisons": [c.to_dict() for c in comparisons]}
    text = sweep_text(data, Path("report.html"))
    assert "Words" in text and "7.5 [3.0, 12.0]" in text and "+5.0" in text
    assert metric.format(None) == "-"


def test_a_registered_metric_of_rankings_is_of_both_stages(make_rag: Callable[..., RAG]) -> None:
    register(
        name="precision",
        label="Precision",
        scores="ranking",
        needs="gold_ids",
        cutoffs=True,
        function=lambda ranked, example, k: len({p.id for p in ranked[:k]} & set(example.gold_ids)) / k,
    )
    register(
        name="longest",
        label="Longest passage",
        unit="count",
        scores="ranking",
        function=lambda ranked, example, k: max(len(p.text) for p in ranked),
    )
    rag = make_rag()
    found = evaluate(rag, EXAMPLES, progress=False)
    ids = [candidate.id for candidate in found.candidates[0]]
    assert found.scores[0]["retriever_precision@3"] == float("p4" in ids[:3]) / 3
    assert found.counts["selector_precision@5"] == 2  # q1 has no gold ids
    assert found.scores[0]["retriever_longest"] == found.scores[0]["selector_longest"] > 0
    assert {"selector_precision@5", "selector_longest"} <= {c.name for c in columns("comparison")}
    searched = rag.retriever.search([e.question for e in EXAMPLES], 5)
    metrics = search_metrics(EXAMPLES, searched, 5)
    assert metrics["precision@1"] == found.metrics["retriever_precision@1"]


def test_built_in_ranking_metrics_are_the_functions_of_rag_metrics(make_rag: Callable[..., RAG]) -> None:
    rag = make_rag()
    found = evaluate(rag, EXAMPLES[:1], progress=False)
    ids = [candidate.id for candidate in found.candidates[0]]
    expected = ranking_quality(ids, ["p4"], [1, 3, 5])
    assert {name: found.scores[0][f"retriever_{name}"] for name in expected} == expected
    assert found.scores[0]["retriever_recall@3"] == gold_recall(ids, ["p4"], 3)


def test_a_question_without_a_value_does_not_count(make_rag: Callable[..., RAG]) -> None:
    register(name="half", label="Half", function=lambda answer, example: None if example.id == "q1" else 0.5)
    found = evaluate(make_rag(), EXAMPLES, progress=False)
    assert (found.metrics["half"], found.counts["half"]) == (0.5, 2)
    assert "half" not in found.scores[1]


def test_a_value_that_is_no_number_names_metric_and_question(make_rag: Callable[..., RAG]) -> None:
    register(name="broken", label="Broken", function=lambda answer, example: math.nan)
    with pytest.raises(UsageError, match=r"broken of question 'q\d' is nan"):
        evaluate(make_rag(), EXAMPLES, progress=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "recall@5"}, "must be lower-case letters, digits and underscores"),
        ({"name": "n"}, "and not 'n', got 'n'"),
        ({"unit": "percent"}, "must have one of the units"),
        ({"scores": "passages"}, "score one of"),
        ({"function": None}, "needs a function unless it is one of trials; 'x' scores 'answer' and has no"),
        ({"scores": "trial"}, "'x' scores 'trial' and has a function"),
    ],
)
def test_a_metric_that_cannot_be_computed_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Metric(**{"name": "x", "label": "X", "function": lambda answer, example: 1.0, **fields})


def test_labels_of_keys_and_of_unknown_metrics() -> None:
    assert metric_label("eval_selector_ndcg@3") == "Selector nDCG@3"
    assert metric_label("retriever_answer_recall@1") == "Retriever answer recall@1"
    assert metric_label("exact_match_unanswerable") == "Exact match (unanswerable)"
    assert metric_label("word_perplexity") == "Word perplexity"
    assert metric_of("word_perplexity") is None


@pytest.mark.parametrize(
    ("name", "value", "shown", "difference"),
    [
        ("f1", 0.1234, "12.3", "+12.3"),
        ("kl_drift", 0.1234, "0.123", "+0.123"),
        ("seconds", 1234.5, "1,234", "+1,234"),
    ],
)
def test_values_are_shown_in_their_unit(name: str, value: float, shown: str, difference: str) -> None:
    metric = METRICS.get(name)
    assert (metric.format(value), metric.format_difference(value)) == (shown, difference)
    assert metric.format(value, (value, value)) == f"{shown} [{shown}, {shown}]"


def test_the_example_registers_and_shows_two_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    shown = {label.strip(): value for label, _, value in (line.rpartition("  ") for line in lines[1:])}
    assert {"Exact match", "F1", "Similarity", "Words", "Retriever recall@1", "Selector MRR"} <= shown.keys()
    assert all("[" in value for value in shown.values())
