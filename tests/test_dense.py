"""Retrieval against numpy, the question adapter, and what a short index does."""

import numpy as np
import pytest
import torch
from conftest import PASSAGES, tiny_encoder

from indexes.encoder import Encoder
from indexes.errors import DataError, MismatchError, UsageError
from indexes.passage_index import PassageIndex
from retriever.dense import DenseRetriever, QuestionAdapter

QUESTIONS = ["who wrote Hamlet?", "capital of France"]


def test_search_is_the_exact_ranking(retriever: DenseRetriever, encoder: Encoder) -> None:
    scores = encoder.encode_questions(QUESTIONS) @ encoder.encode_passages(PASSAGES).T
    for found, row in zip(retriever.search(QUESTIONS, 5), scores, strict=True):
        best = np.argsort(-row, kind="stable")[:5]
        np.testing.assert_allclose(found.scores_n.numpy(), row[best], rtol=1e-5)
        assert sorted(found.ids) == sorted(PASSAGES[i].id for i in best)


def test_one_question_or_many(retriever: DenseRetriever) -> None:
    assert retriever.search(QUESTIONS[0], 3).ids == retriever.search(QUESTIONS, 3)[0].ids


def test_fewer_passages_than_k(retriever: DenseRetriever) -> None:
    """Trap 6: FAISS answers with id -1, which must not become the last passage."""
    found = retriever.search(QUESTIONS[0], 50)
    assert len(found) == len(PASSAGES)
    assert len(set(found.ids)) == len(PASSAGES)


def test_stored_vectors_give_the_scores(retriever: DenseRetriever) -> None:
    found = retriever.search(QUESTIONS[1], 6)
    torch.testing.assert_close(found.passage_vectors_nd @ found.question_vector_d, found.scores_n)
    torch.testing.assert_close(retriever.score(found).detach(), found.scores_n, rtol=1e-5, atol=1e-6)


def test_reordering_moves_everything_together(retriever: DenseRetriever) -> None:
    found = retriever.search(QUESTIONS[0], 4)
    moved = found.reordered([2, 0, 3, 1])
    assert moved.ids == [found.ids[i] for i in (2, 0, 3, 1)]
    torch.testing.assert_close(moved.passage_vectors_nd @ moved.question_vector_d, moved.scores_n)


def test_a_trained_question_adapter_changes_the_search(retriever: DenseRetriever) -> None:
    before = retriever.search(QUESTIONS[0], 12)
    with torch.no_grad():
        retriever.adapter.up_dr.copy_(torch.randn(retriever.adapter.up_dr.shape) * 3)
    after = retriever.search(QUESTIONS[0], 12)
    assert after.ids != before.ids
    torch.testing.assert_close(retriever.score(after).detach(), after.scores_n, rtol=1e-4, atol=1e-5)


def test_the_adapter_gets_a_gradient() -> None:
    adapter = QuestionAdapter(7, rank=3)
    adapter(torch.randn(2, 7))[:, 0].sum().backward()
    assert adapter.up_dr.grad is not None
    assert adapter.up_dr.grad.abs().sum() > 0


def test_another_encoder_is_refused(index: PassageIndex) -> None:
    with pytest.raises(MismatchError):
        DenseRetriever(index, tiny_encoder(["other words"], seed=5))


def test_bad_questions(retriever: DenseRetriever) -> None:
    with pytest.raises(DataError, match="question number 2 is empty"):
        retriever.search(["fine", " "], 3)
    with pytest.raises(UsageError, match="k must be at least 1; 0 came"):
        retriever.search("fine", 0)
