"""Retrieval against numpy, the question adapter, and what a short index does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import PASSAGES, tiny_encoder

from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage
from indexes.directory.builder import build_index
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import DataError, MismatchError, UsageError
from retriever.dense import DenseRetriever
from retriever.question_adapter import QuestionAdapter

QUESTIONS = ["who wrote Hamlet?", "capital of France"]


def test_search_is_the_exact_ranking(retriever: DenseRetriever, encoder: Encoder) -> None:
    scores = encoder.encode_questions(QUESTIONS) @ encoder.encode_passages(PASSAGES).T
    for found, row in zip(retriever.search(QUESTIONS, 5), scores, strict=True):
        best = np.argsort(-row, kind="stable")[:5]
        np.testing.assert_allclose(found.scores.numpy(), row[best], rtol=1e-5)
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
    torch.testing.assert_close(found.passage_vectors @ found.question_vector, found.scores)
    torch.testing.assert_close(retriever.score(found).detach(), found.scores, rtol=1e-5, atol=1e-6)


def test_reordering_candidates_reorders_all_their_fields(retriever: DenseRetriever) -> None:
    found = retriever.search(QUESTIONS[0], 4)
    moved = found.reordered([2, 0, 3, 1])
    assert moved.ids == [found.ids[i] for i in (2, 0, 3, 1)]
    torch.testing.assert_close(moved.passage_vectors @ moved.question_vector, moved.scores)


def test_a_trained_question_adapter_changes_the_search(retriever: DenseRetriever) -> None:
    before = retriever.search(QUESTIONS[0], 12)
    with torch.no_grad():
        retriever.adapter.up.copy_(torch.randn(retriever.adapter.up.shape) * 3)
    after = retriever.search(QUESTIONS[0], 12)
    assert after.ids != before.ids
    torch.testing.assert_close(retriever.score(after).detach(), after.scores, rtol=1e-4, atol=1e-5)


def test_the_question_adapter_gets_a_gradient() -> None:
    adapter = QuestionAdapter(7, rank=3)
    adapter(torch.randn(2, 7))[:, 0].sum().backward()
    assert adapter.up.grad is not None
    assert adapter.up.grad.abs().sum() > 0


def test_another_encoder_is_refused(index: PassageIndex) -> None:
    with pytest.raises(MismatchError):
        DenseRetriever(index, tiny_encoder(["other words"], seed=5))


def test_invalid_questions_are_refused(retriever: DenseRetriever) -> None:
    with pytest.raises(DataError, match="question number 2 is empty"):
        retriever.search(["fine", " "], 3)
    with pytest.raises(UsageError, match="k must be at least 1, got 0"):
        retriever.search("fine", 0)


@pytest.mark.parametrize("factory", ["RaBitQ8", "IVF2,RaBitQ", "PCA6,Flat", "PQ6x2", "SQtq4", "PQ6x4fs"])
def test_differentiable_scores_equal_search_scores_for_every_index_kind(
    factory: str, encoder: Encoder, tmp_path: Path
) -> None:
    pairs = [(p, q) for p in PASSAGES for q in PASSAGES[:2]]
    passages = [Passage(f"r{i}", p.title, f"{p.text} {q.text}") for i, (p, q) in enumerate(pairs)]
    index = build_index(Corpus.from_passages(passages), encoder, tmp_path / "index", factory=factory, progress=False)
    retriever = DenseRetriever(index, encoder)
    for _ in range(2):  # before the question adapter has learned anything, and after
        found = retriever.search(QUESTIONS[0], 8, explain=True)
        assert [e.dense_score for e in found.explanations or []] == found.scores.tolist()
        scores_n = retriever.score(found)
        torch.testing.assert_close(scores_n.detach(), found.scores, rtol=1e-4, atol=1e-5)
        scores_n[0].backward()
        assert retriever.adapter.up.grad is not None and retriever.adapter.up.grad.abs().sum() > 0
        moved = found.reordered([3, 0])
        torch.testing.assert_close(retriever.score(moved).detach(), moved.scores, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            searched_d = retriever._adapted(found.question_vector.unsqueeze(0))[0]
            retriever.adapter.up.copy_(torch.randn(retriever.adapter.up.shape))
    # What changes since a search is the change of the inner products with what the index gives back.
    now_d = retriever.adapter(found.question_vector.unsqueeze(0))[0].detach()
    expected_n = found.scores + found.passage_vectors @ (now_d - searched_d)
    torch.testing.assert_close(retriever.score(found).detach(), expected_n, rtol=1e-4, atol=1e-4)


def test_short_results_give_one_warning(encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = build_index(
        Corpus.from_passages(PASSAGES), encoder, tmp_path / "index", factory="IVF6,Flat", progress=False
    )
    index.vectors.parameters = "nprobe=1"
    retriever = DenseRetriever(index, encoder)
    assert all(0 < len(found) < 12 for found in retriever.search(QUESTIONS, 12))
    retriever.search(QUESTIONS, 12)
    said = [record.getMessage() for record in caplog.records if "Fewer than 12 passages" in record.getMessage()]
    assert len(said) == 1 and "for 2 of 2 questions, although the index holds 12" in said[0]
    index.vectors.parameters = ""
    caplog.clear()
    DenseRetriever(index, encoder).search(QUESTIONS, 50)  # there are no more, which is no fault of the search
    assert caplog.records == []
