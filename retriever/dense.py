"""Dense retrieval: question -> candidates, with a question side that can learn.

Legend: B questions, n candidates, d embedding dimension, r adapter rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor, nn

from indexes.passage_index import PassageIndex
from indexes.corpus import Passage
from indexes.encoder import Encoder
from indexes.errors import DataError, MismatchError, UsageError


@dataclass(frozen=True)
class Candidates:
    """What the retriever found for one question, in the order in which a selector will see it."""

    question: str
    passages: list[Passage]
    scores_n: Tensor
    """Retriever scores (inner products), float32."""
    question_vector_d: Tensor
    """Embedding of the question *before* the question adapter, float32."""
    passage_vectors_nd: Tensor
    """Stored embeddings of the passages, float32."""

    def __len__(self) -> int:
        return len(self.passages)

    @property
    def ids(self) -> list[str]:
        """Passage ids in the same order."""
        return [p.id for p in self.passages]

    def reordered(self, order_n: Sequence[int]) -> "Candidates":
        """The same candidates, or some of them, in another order; scores and vectors move with their passages."""
        index = torch.as_tensor(order_n, dtype=torch.long)
        return replace(
            self,
            passages=[self.passages[i] for i in index.tolist()],
            scores_n=self.scores_n[index],
            passage_vectors_nd=self.passage_vectors_nd[index],
        )


class QuestionAdapter(nn.Module):
    """A low-rank change of the question embedding: `q' = normalise(q + B A q)`, the identity at first.

    Only the question side learns, so the passages in the index stay valid. It is trained through the retriever
    prior inside log p_s(z | x).

    Args:
        dimension: d.
        rank: r.
    """

    def __init__(self, dimension: int, rank: int = 32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.down_rd = nn.Parameter(torch.randn(rank, dimension, generator=generator) / dimension**0.5)
        self.up_dr = nn.Parameter(torch.zeros(dimension, rank))

    def forward(self, question_Bd: Tensor) -> Tensor:
        """`[B, d]` to unit vectors `[B, d]`."""
        changed = question_Bd + question_Bd @ self.down_rd.T @ self.up_dr.T
        return nn.functional.normalize(changed, dim=-1)

    @property
    def is_identity(self) -> bool:
        """Whether it still changes nothing."""
        return not bool(self.up_dr.any())


class DenseRetriever:
    """Question -> the k passages with the highest inner product.

    Args:
        index: An opened index directory.
        encoder: The encoder that built it (checked by fingerprint).
        adapter: The question adapter; a fresh one changes nothing.

    Raises:
        MismatchError: `encoder` is not the one that built `index`.
    """

    def __init__(self, index: PassageIndex, encoder: Encoder, *, adapter: QuestionAdapter | None = None) -> None:
        index.manifest.check_encoder(encoder)
        self.index = index
        self.encoder = encoder
        self.adapter = adapter or QuestionAdapter(encoder.dimension)

    def replace(self, index: PassageIndex, encoder: Encoder) -> None:
        """Search another index with the encoder that built it.

        What the question adapter learned belongs to the old one and is forgotten.

        Raises:
            MismatchError: `encoder` is not the one that built `index`, or its vectors have another length.
        """
        index.manifest.check_encoder(encoder)
        if encoder.dimension != self.encoder.dimension:
            raise MismatchError(
                f"The new encoder must make vectors of length {self.encoder.dimension}, as the old one does; it makes "
                f"{encoder.dimension}. Create a new retriever instead."
            )
        self.index, self.encoder = index, encoder
        nn.init.zeros_(self.adapter.up_dr)

    @overload
    def search(self, question: str, k: int = 20) -> Candidates: ...  # type: ignore[overload-overlap]
    @overload
    def search(self, question: Sequence[str], k: int = 20) -> list[Candidates]: ...

    @torch.no_grad()
    def search(self, question: str | Sequence[str], k: int = 20) -> Candidates | list[Candidates]:
        """Candidates of one question, or of several, best first; fewer than k when the index holds fewer.

        Raises:
            DataError: An empty question.
            UsageError: k < 1.
        """
        questions = [question] if isinstance(question, str) else list(question)
        _check_questions(questions, k)
        base_Bd = torch.from_numpy(self.encoder.encode_questions(questions))
        vectors_Bd = self._adapted(base_Bd).cpu().numpy().astype(np.float32)
        scores_Bk, ids_Bk = self.index.vectors.search(vectors_Bd, k)
        found = [
            self._candidates(q, base_d, scores_k, ids_k)
            for q, base_d, scores_k, ids_k in zip(questions, base_Bd, scores_Bk, ids_Bk, strict=True)
        ]
        return found[0] if isinstance(question, str) else found

    def _adapted(self, question_Bd: Tensor) -> Tensor:
        if self.adapter.is_identity:  # exactly the encoder's own vectors, not a renormalised copy
            return question_Bd
        device = self.adapter.up_dr.device
        return self.adapter(question_Bd.to(device))

    def _candidates(self, question: str, base_d: Tensor, scores_k: np.ndarray, ids_k: np.ndarray) -> Candidates:
        found = ids_k >= 0  # FAISS pads short results with -1, which a list would read as its last passage
        positions = ids_k[found]
        return Candidates(
            question=question,
            passages=self.index.corpus.take(positions.tolist()),
            scores_n=torch.from_numpy(scores_k[found].copy()),
            question_vector_d=base_d,
            passage_vectors_nd=torch.from_numpy(self.index.vectors.reconstruct(positions)),
        )

    def score(self, candidates: Candidates) -> Tensor:
        """Scores `[n]` of given candidates under the current question adapter, with gradient to it."""
        device = self.adapter.up_dr.device
        question_1d = self.adapter(candidates.question_vector_d.to(device).unsqueeze(0))
        return (question_1d @ candidates.passage_vectors_nd.to(device).T).squeeze(0)


def _check_questions(questions: Sequence[str], k: int) -> None:
    if k < 1:
        raise UsageError(f"k must be at least 1; {k} came.")
    for i, question in enumerate(questions):
        if not question.strip():
            raise DataError(f"A question must hold at least one visible character; question number {i + 1} is empty.")
