"""Leave-one-out attribution, against log-probabilities computed one at a time and means by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from tiny_models import randomize_adapters, reply_with

from indexes.errors import UsageError
from rag.evaluation.attribution import PassageAttribution, leave_one_out_attribution, summarize
from rag.evaluation.evaluation import evaluate
from rag.evaluation.significance import Estimate
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
    """With K = 1, the passage is compared with a prompt without passages."""
    rag.selector.config = SelectorConfig(num_candidates=5, num_selected=k)
    texts = {e.question: e.golden_answers[0] for e in EXAMPLES}
    reply_with(monkeypatch, lambda question, passages: texts[question])
    evaluation = evaluate(rag, EXAMPLES, progress=False)
    monkeypatch.undo()
    found = leave_one_out_attribution(rag, evaluation, progress=False)
    for answer, passages in zip(evaluation.answers, found.records, strict=True):
        with_all = rag.generator.log_prob(answer.question, answer.passages, answer.text)
        assert [p.id for p in passages] == [p.id for p in answer.passages]
        for passage, attribution in zip(answer.passages, passages, strict=True):
            rest = [p for p in answer.passages if p.id != passage.id]
            without = rag.generator.log_prob(answer.question, rest, answer.text)
            assert attribution.log_prob_drop == pytest.approx(with_all - without, abs=1e-4)
            [again] = rag.generator.generate([answer.question], [rest])
            assert attribution.answer_changed == (normalize_answer(again) != normalize_answer(answer.text))
            assert attribution.cited == (passage.id in answer.citations)
    assert any(abs(attribution.log_prob_drop) > 0.1 for passages in found.records for attribution in passages)


def test_the_order_of_the_questions_changes_nothing(rag: RAG) -> None:
    evaluations = [evaluate(rag, examples, progress=False) for examples in (EXAMPLES, EXAMPLES[::-1])]
    one, other = (leave_one_out_attribution(rag, e, batch_size=2, progress=False) for e in evaluations)
    assert one.summary == other.summary
    assert one.records == other.records[::-1]


def test_means_by_hand() -> None:
    """The first question cites b (drop 2), the second a (0.05, below the threshold) and b (1), the third nothing."""
    questions = [
        [("a", False, -1.0, False), ("b", True, 2.0, True)],
        [("a", True, 0.05, False), ("b", True, 1.0, True)],
        [("a", False, 0.5, True), ("b", False, 0.5, False)],
    ]
    records = [[PassageAttribution(*passage) for passage in passages] for passages in questions]
    found = summarize(records)
    assert (found.answers, found.citations, found.supported, found.threshold) == (3, 3, 2, 0.1)
    expected = {
        "supported_citations": ((1 + 0.5) / 2, 2),
        "supported_answers": (2 / 3, 3),
        "drop_cited": ((2 + 1.05 / 2) / 2, 2),
        "drop_not_cited": ((-1 + 0.5) / 2, 2),
        "changed_cited": ((1 + 0.5) / 2, 2),
        "changed_not_cited": ((0 + 0.5) / 2, 2),
    }
    for name, (value, n) in expected.items():
        estimate: Estimate = getattr(found, name)
        assert (estimate.value, estimate.n) == (pytest.approx(value), n), name
    assert summarize(records, threshold=0.01).supported == 3


def test_attribution_is_rejected_for_rag_token(make_rag: Callable[..., RAG]) -> None:
    plain = make_rag()
    plain.selector.config = replace(plain.selector.config, num_selected=1)
    rag = RAG(plain.retriever, plain.selector, plain.generator, answer_mode="rag_token")
    evaluation = evaluate(rag, EXAMPLES[:1], progress=False)
    with pytest.raises(UsageError, match="answers by rag_token"):
        leave_one_out_attribution(rag, evaluation, progress=False)


def test_attribution_needs_log_probabilities(rag: RAG) -> None:
    evaluation = evaluate(rag, EXAMPLES[:1], progress=False)
    without = replace(evaluation, answers=[replace(a, log_prob=None) for a in evaluation.answers])
    with pytest.raises(UsageError, match=r"the answer to 'what is the capital of Germany\?' has none"):
        leave_one_out_attribution(rag, without, progress=False)


def test_without_citations_no_share_of_them_is_supported() -> None:
    found = summarize([[PassageAttribution("a", False, 1.0, True)]])
    assert found.supported_citations == Estimate(None, None, 0)
    assert found.supported_answers.value == 0.0
