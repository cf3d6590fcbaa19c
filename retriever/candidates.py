"""What a search returns: the candidate passages of a question with their scores and vectors.

Legend: n candidates, d embedding dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from indexes.corpora.passage import Passage


@dataclass(frozen=True)
class Explanation:
    """Why a passage was found: its ranks, counted from 1, and its scores; None where a ranking does not hold it."""

    dense_rank: int | None = None
    dense_score: float | None = None
    """The score of the dense ranking; where the passage is in none, the inner product of the question and the vector
    that the index gives back."""
    bm25_rank: int | None = None
    bm25_score: float | None = None
    fused_score: float | None = None
    """Of both ranks together; 1 is first in both."""
    terms: dict[str, float] | None = None
    """What each word of the question adds to the BM25 score, greatest first; None for retrievers without words."""


@dataclass(frozen=True)
class Candidates:
    """The candidate passages of one question, in the order in which a selector will see them."""

    question: str
    passages: list[Passage]
    scores: Tensor
    """Retriever scores `[n]`, float32: the inner products of a dense retriever, or what another ranks by."""
    question_vector: Tensor
    """Embedding of the question *before* the question adapter `[d]`, float32."""
    passage_vectors: Tensor
    """Stored embeddings of the passages `[n, d]`, float32."""
    dense_scores: Tensor | None = None
    """Inner products `[n]` of `passage_vectors` with the question as it was searched with (after the question adapter),
    float32; None when they are `scores`. They are not where a retriever ranks by something else, or where the index
    scores by other numbers than the vectors that it gives back, such as RaBitQ (`faiss_kinds`)."""
    explanations: list[Explanation] | None = None
    """Why each was found; None unless the search was asked to explain."""

    def __len__(self) -> int:
        return len(self.passages)

    @property
    def ids(self) -> list[str]:
        """Passage ids in the same order."""
        return [p.id for p in self.passages]

    def reordered(self, order_n: Sequence[int]) -> "Candidates":
        """The same candidates, or some of them, in another order; scores and vectors move with their passages."""
        index = torch.as_tensor(order_n, dtype=torch.long)
        chosen = index.tolist()
        return replace(
            self,
            passages=[self.passages[i] for i in chosen],
            scores=self.scores[index],
            passage_vectors=self.passage_vectors[index],
            dense_scores=None if self.dense_scores is None else self.dense_scores[index],
            explanations=None if self.explanations is None else [self.explanations[i] for i in chosen],
        )
