"""The order-bias audit, against pipelines whose bias is known, and against answering again one by one."""

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from tiny_models import randomize_adapters, reply_with

from indexes.corpora.passage import Passage
from indexes.errors import UsageError
from rag.evaluation.evaluation import Evaluation, evaluate
from rag.evaluation.order_bias import OrderBiasSummary, order_bias, other_orders
from rag.evaluation.significance import Estimate
from rag.metrics import normalize_answer
from rag.pipeline import RAG
from retriever.selector_config import SelectorConfig
from training.questions.example import QAExample

EXAMPLES = [
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
    QAExample("q1", "who wrote Hamlet?", ("Hamlet",), ("p0",)),
    QAExample("q3", "the capital of France", ("Paris",), ("p3",)),
]


@pytest.fixture
def listening(make_rag: Callable[..., RAG]) -> RAG:
    """A pipeline whose selector hears its random language model, and so depends on the order."""
    rag = make_rag()
    randomize_adapters(rag.generator.language_model)
    with torch.no_grad():
        rag.selector.prior.gate.fill_(1.0)
        rag.selector.prior.strength.fill_(0.1)
    return rag


def reads(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Sequence[Passage]], str]) -> None:
    """A generator that is no language model."""
    reply_with(monkeypatch, lambda question, passages: answer(passages))


def test_other_orders_are_uniform_over_the_others() -> None:
    drawn = [order for i in range(400) for order in other_orders(3, 5, 0, "candidates", f"q{i}")]
    counts = Counter(drawn)
    assert set(counts) == {(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}
    # 2000 draws from 5: 400 each, standard deviation sqrt(2000 x 0.2 x 0.8) = 17.9
    assert all(abs(count - 400) < 5 * 17.9 for count in counts.values())


def test_other_orders_belong_to_their_question() -> None:
    assert other_orders(9, 4, 0, "x", "q1") == other_orders(9, 4, 0, "x", "q1")
    others = [other_orders(9, 4, *key) for key in [(0, "x", "q2"), (1, "x", "q1"), (0, "y", "q1")]]
    assert other_orders(9, 4, 0, "x", "q1") not in others
    assert other_orders(1, 4, "x") == []
    assert other_orders(2, 3, "x") == [(1, 0)] * 3


def test_an_order_invariant_generator_has_no_order_bias(
    make_rag: Callable[..., RAG], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained selector keeps the retriever's order however candidates stand in the prompt."""
    reads(monkeypatch, lambda passages: " ".join(sorted(p.title for p in passages)))
    rag = make_rag()
    summary = order_bias(rag, evaluate(rag, EXAMPLES, progress=False), shuffles=3, progress=False).summary
    for found in (summary.candidates, summary.passages):
        assert found.questions == 3
        assert found.changed == Estimate(0.0, (0.0, 0.0), 3)
        assert found.agreement.value == 1.0
        assert found.exact_match.lowest == found.exact_match.highest == found.exact_match.unshuffled
    assert summary.candidates.selected_overlap.value == 1.0


def test_a_generator_that_reads_only_the_first_passage_has_maximal_order_bias(
    make_rag: Callable[..., RAG], monkeypatch: pytest.MonkeyPatch
) -> None:
    """K = 2, so three shuffles are three times the other order: 3 of 4 answers agree with each other."""
    reads(monkeypatch, lambda passages: passages[0].title)
    rag = make_rag()
    evaluation = evaluate(rag, EXAMPLES, progress=False)
    audit = order_bias(rag, evaluation, shuffles=3, progress=False)
    found = audit.summary.passages
    assert found.changed.value == found.changed_per_shuffle.value == 1.0
    assert found.agreement.value == 0.75
    read = [[p.id for p in a.passages] for a in evaluation.answers]
    with_gold = [(ids.index(e.gold_ids[0]), e) for ids, e in zip(read, EXAMPLES, strict=True) if e.gold_ids[0] in ids]
    assert with_gold
    positions = found.exact_match_by_gold_position
    assert {position: (e.value, e.n) for position, e in positions.items()} == {
        "1": (1.0, len(with_gold)),
        "2": (0.0, len(with_gold)),
    }
    unshuffled = sum(place == 0 for place, _ in with_gold) / 3
    assert found.exact_match.unshuffled == pytest.approx(unshuffled)
    assert found.exact_match.value == pytest.approx(len(with_gold) / 3 - unshuffled)
    assert audit.summary.candidates.changed.value == 0.0


def test_shuffled_candidates_are_answered_as_one_by_one(listening: RAG) -> None:
    evaluation = evaluate(listening, EXAMPLES, progress=False)
    audit = order_bias(listening, evaluation, shuffles=4, seed=3, progress=False)
    changed = []
    for example, answer, record in zip(EXAMPLES, evaluation.answers, audit.records, strict=True):
        candidates = listening.retriever.search(example.question, 5)
        original = {p.id for p in answer.passages}
        texts, overlaps = [], []
        for order in other_orders(5, 4, 3, "candidates", example.id):
            [again] = listening.answer_from([candidates.reordered(order)])
            texts.append(again.text)
            ids = {p.id for p in again.passages}
            overlaps.append(len(ids & original) / len(ids | original))
        assert record.candidates is not None
        assert record.candidates.answers == texts
        assert record.candidates.selected_overlap == pytest.approx(sum(overlaps) / 4)
        different = [normalize_answer(t) != normalize_answer(answer.text) for t in texts]
        assert record.candidates.changed == sum(different) / 4
        changed.append(any(different))
    assert audit.summary.candidates.changed.value == pytest.approx(sum(changed) / 3)
    assert 0 < audit.summary.candidates.selected_overlap.value < 1  # else nothing was shuffled


def test_the_order_of_the_questions_changes_nothing(listening: RAG) -> None:
    def audit(examples: Sequence[QAExample]) -> OrderBiasSummary:
        evaluation: Evaluation = evaluate(listening, examples, progress=False)
        return order_bias(listening, evaluation, shuffles=2, batch_size=2, progress=False).summary

    assert audit(EXAMPLES) == audit(EXAMPLES[::-1])


def test_shuffling_a_single_passage_is_refused(make_rag: Callable[..., RAG]) -> None:
    rag = make_rag()
    rag.selector.config = SelectorConfig(num_candidates=5, num_selected=1)
    evaluation = evaluate(rag, EXAMPLES, progress=False)
    found = order_bias(rag, evaluation, shuffles=2, progress=False)
    assert found.summary.passages.questions == 0
    assert found.summary.passages.exact_match.value is None
    assert all(record.passages is None for record in found.records)
    summed = RAG(rag.retriever, rag.selector, rag.generator, answer_mode="rag_sequence")
    found = order_bias(summed, evaluate(summed, EXAMPLES, progress=False), shuffles=1, progress=False)
    assert found.summary.passages is None
    assert found.summary.candidates.changed.value == 0.0  # a sum over documents has no order


def test_zero_shuffles_are_refused(make_rag: Callable[..., RAG]) -> None:
    rag = make_rag()
    with pytest.raises(UsageError, match="at least one shuffle, got 0"):
        order_bias(rag, evaluate(rag, EXAMPLES, progress=False), shuffles=0, progress=False)
