"""Leave-one-document-out support, against log-probabilities one at a time and sums by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from tiny_models import randomize_adapters, reply_with

from indexes.errors import UsageError
from rag.evaluation.attribution import support
from rag.evaluation.evaluation import evaluate
from rag.metrics import normalize_answer
from rag.pipeline import RAG
from retriever.selector_config import SelectorConfig
from training.questions.example import QAExample

EXAMPLES = [
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare",), ("p0",)),
    QAExample("q3", "the capital of France", ("Paris",), ("p3",)),
]


@pytest.fixture
def rag(make_rag: Callable[..., RAG]) -> RAG:
    pipeline = make_rag()
    randomize_adapters(pipeline.generator.language_model)
    return pipeline


@pytest.mark.parametrize("k", [2, 1])
def test_drops_are_differences_of_log_probabilities(rag: RAG, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One passage alone is compared with none."""
    rag.selector.config = SelectorConfig(num_candidates=5, num_selected=k)
    texts = {e.question: e.golden_answers[0] for e in EXAMPLES}
    reply_with(monkeypatch, lambda question, passages: texts[question])
    evaluation = evaluate(rag, EXAMPLES, progress=False)
    monkeypatch.undo()
    found = support(rag, evaluation, progress=False)
    for answer, row in zip(evaluation.answers, found.rows, strict=True):
        with_all = rag.generator.log_prob(answer.question, answer.passages, answer.text)
        assert [p["id"] for p in row] == [p.id for p in answer.passages]
        for passage, entry in zip(answer.passages, row, strict=True):
            rest = [p for p in answer.passages if p.id != passage.id]
            without = rag.generator.log_prob(answer.question, rest, answer.text)
            assert entry["log_prob_drop"] == pytest.approx(with_all - without, abs=1e-4)
            [again] = rag.generator.generate([answer.question], [rest])
            assert entry["answer_changed"] == (normalize_answer(again) != normalize_answer(answer.text))
            assert entry["cited"] == (passage.id in answer.citations)
    assert any(abs(entry["log_prob_drop"]) > 0.1 for row in found.rows for entry in row)


def test_the_order_of_the_questions_changes_nothing(rag: RAG) -> None:
    one = support(rag, evaluate(rag, EXAMPLES, progress=False), batch_size=2, progress=False)
    other = support(rag, evaluate(rag, EXAMPLES[::-1], progress=False), batch_size=2, progress=False)
    assert one.summary == other.summary
    assert one.rows == other.rows[::-1]


def test_sums_by_hand(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions q1 (cites b: drop 2), q2 (cites a: 0.05, below the threshold, and b: 1) and q3 (cites nothing)."""
    evaluation = evaluate(rag, EXAMPLES, progress=False)
    rows = {
        "q1": [("a", False, -1.0, False), ("b", True, 2.0, True)],
        "q2": [("a", True, 0.05, False), ("b", True, 1.0, True)],
        "q3": [("a", False, 0.5, True), ("b", False, 0.5, False)],
    }
    names = ("id", "cited", "log_prob_drop", "answer_changed")
    by_question = {e.question: [dict(zip(names, p, strict=True)) for p in rows[e.id]] for e in EXAMPLES}
    monkeypatch.setattr(
        "rag.evaluation.attribution._left_out", lambda rag, answers: [by_question[a.question] for a in answers]
    )
    found = support(rag, evaluation, progress=False).summary
    assert (found["answers"], found["citations"], found["supported"], found["threshold"]) == (3, 3, 2, 0.1)
    values = {name: (found[name]["value"], found[name]["n"]) for name in found if isinstance(found[name], dict)}
    assert values == {
        "supported_citations": (pytest.approx((1 + 0.5) / 2), 2),
        "supported_answers": (pytest.approx(2 / 3), 3),
        "drop_cited": (pytest.approx((2 + 1.05 / 2) / 2), 2),
        "drop_not_cited": (pytest.approx((-1 + 0.5) / 2), 2),
        "changed_cited": (pytest.approx((1 + 0.5) / 2), 2),
        "changed_not_cited": (pytest.approx((0 + 0.5) / 2), 2),
    }
    assert support(rag, evaluation, threshold=0.01, progress=False).summary["supported"] == 3


def test_sums_over_documents_have_no_list_to_leave_out_of(make_rag: Callable[..., RAG]) -> None:
    plain = make_rag()
    plain.selector.config = replace(plain.selector.config, num_selected=1)
    rag = RAG(plain.retriever, plain.selector, plain.generator, answer_mode="rag_token")
    evaluation = evaluate(rag, EXAMPLES[:1], progress=False)
    with pytest.raises(UsageError, match="answers by rag_token"):
        support(rag, evaluation, progress=False)


def test_nothing_cited_has_no_share(rag: RAG) -> None:
    evaluation = evaluate(rag, EXAMPLES[:1], progress=False)
    bare = replace(evaluation, answers=[replace(a, citations=[]) for a in evaluation.answers])
    found = support(rag, bare, progress=False).summary
    assert found["supported_citations"] == {"value": None, "interval": None, "n": 0}
    assert found["supported_answers"]["value"] == 0.0
