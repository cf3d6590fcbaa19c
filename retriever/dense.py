"""Question -> candidates: what every retriever is, and the dense one, whose question side can learn.

Legend: B questions, n candidates, d embedding dimension, r adapter rank, D results that are asked for.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from indexes.corpora.passage import Passage
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import COSINE, Encoder
from indexes.errors import DataError, MismatchError, UsageError
from indexes.vectors.faiss.faiss_factory import properties

logger = logging.getLogger(__name__)


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
    """What each word of the question adds to the BM25 score, greatest first, where somebody asked."""


@dataclass(frozen=True)
class Candidates:
    """What the retriever found for one question, in the order in which a selector will see it."""

    question: str
    passages: list[Passage]
    scores_n: Tensor
    """Retriever scores, float32: the inner products of a dense retriever, or what another ranks by."""
    question_vector_d: Tensor
    """Embedding of the question *before* the question adapter, float32."""
    passage_vectors_nd: Tensor
    """Stored embeddings of the passages, float32."""
    dense_scores_n: Tensor | None = None
    """Inner products of `passage_vectors_nd` with the question as it was searched with (after the question adapter),
    float32; None when they are `scores_n`. They are not where a retriever ranks by something else, or where the index
    scores by other numbers than the vectors that it gives back, such as RaBitQ (`faiss_kinds`)."""
    explanations: list[Explanation] | None = None
    """Why each was found, where a retriever says more than `scores_n` does."""

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
            scores_n=self.scores_n[index],
            passage_vectors_nd=self.passage_vectors_nd[index],
            dense_scores_n=None if self.dense_scores_n is None else self.dense_scores_n[index],
            explanations=None if self.explanations is None else [self.explanations[i] for i in chosen],
        )


class QuestionAdapter(nn.Module):
    """A low-rank change of the question embedding: `q' = normalise(q + B A q)`, the identity at first.

    Only the question side learns, so the passages in the index stay valid. It is trained through the retriever
    prior inside log p_s(z | x). Where the similarity is the dot product the retriever gives q' the length of q: it
    changes no ranking of passages, and scores stay what the encoder's own are.

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


@dataclass(frozen=True)
class Asked:
    """Questions on their way through a search."""

    questions: Sequence[str]
    base_Bd: Tensor
    """Their embeddings before the question adapter, float32."""
    searched_Bd: Tensor
    """And after it."""
    ignored: Sequence[Sequence[int]]
    """The positions in the index that each must not find."""

    @property
    def most_ignored(self) -> int:
        """How many results more than wanted leave enough to each question."""
        return max(map(len, self.ignored))

    def some(self, group: Sequence[int]) -> "Asked":
        """The questions at these places."""
        index = list(group)
        questions, ignored = [self.questions[i] for i in index], [self.ignored[i] for i in index]
        return Asked(questions, self.base_Bd[index], self.searched_Bd[index], ignored)


class Retriever(ABC):
    """Question -> candidates: what selector, E-step and trainer need of a retriever.

    Args:
        index: An opened index directory.
        encoder: The encoder that built it (checked by fingerprint).
        adapter: The question adapter; a fresh one changes nothing.

    Raises:
        MismatchError: `encoder` is not the one that built `index`.
    """

    kind: ClassVar[str]
    """What configurations call it."""

    def __init__(self, index: PassageIndex, encoder: Encoder, *, adapter: QuestionAdapter | None = None) -> None:
        index.manifest.check_encoder(encoder)
        self.index = index
        self.encoder = encoder
        self.adapter = adapter or QuestionAdapter(encoder.dimension)
        self._said_short = False

    @property
    def settings(self) -> dict[str, Any]:
        """What makes another one like it, besides index, encoder and adapter; ready for JSON."""
        return {}

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
        self._take(index)
        self.encoder = encoder
        nn.init.zeros_(self.adapter.up_dr)

    def refresh(self) -> bool:
        """Search the newest version of the index, with what the question adapter has learned; whether there is one.

        Raises:
            MismatchError: What is there now was built with another encoder, or cannot be opened.
        """
        newest = self.index.newest()
        if newest is self.index:
            return False
        newest.manifest.check_encoder(self.encoder)
        self._take(newest)
        return True

    def _take(self, index: PassageIndex) -> None:
        """Search this index from now on."""
        self.index = index

    @overload
    def search(  # type: ignore[overload-overlap]
        self, question: str, k: int = 20, *, ignored_ids: Sequence[str | None] = ()
    ) -> Candidates: ...
    @overload
    def search(
        self, question: Sequence[str], k: int = 20, *, ignored_ids: Sequence[str | None] = ()
    ) -> list[Candidates]: ...

    @torch.no_grad()
    def search(
        self, question: str | Sequence[str], k: int = 20, *, ignored_ids: Sequence[str | None] = ()
    ) -> Candidates | list[Candidates]:
        """Candidates of one question, or of several, best first; fewer than k when no more are found.

        Args:
            question: B texts, or one.
            k: How many candidates per question.
            ignored_ids: One for each question, or none at all: the id of a passage, or of a document that was cut into
                chunks, that is searched for as if the index did not hold it, so that k others are found. None ignores
                nothing.

        Raises:
            DataError: An empty question.
            UsageError: k < 1, or not one ignored id for each question.
        """
        questions = [question] if isinstance(question, str) else list(question)
        _check_questions(questions, k)
        ignored = self._ignored(ignored_ids or [None] * len(questions), len(questions))
        base_Bd = torch.from_numpy(self.encoder.encode_questions(questions))
        asked = Asked(questions, base_Bd, self._adapted(base_Bd).float().cpu(), ignored)
        found: dict[int, Candidates] = {}
        # Apart, as a search for more than k may break ties otherwise.
        for ignores in (False, True):
            if group := [i for i, positions in enumerate(ignored) if bool(positions) is ignores]:
                found |= zip(group, self._find(asked.some(group), k), strict=True)
        return found[0] if isinstance(question, str) else [found[i] for i in range(len(questions))]

    def _ignored(self, ids: Sequence[str | None], questions: int) -> list[list[int]]:
        """The positions of what each question ignores."""
        if isinstance(ids, str) or len(ids) != questions:
            raise UsageError(
                f"ignored_ids must be a list with one id (or None) for each of {questions} questions; {ids!r} came."
            )
        return [[] if id is None else self.index.corpus.document_positions(id) for id in ids]

    @abstractmethod
    def _find(self, asked: Asked, k: int) -> list[Candidates]:
        """The k best candidates of each question that it does not ignore."""

    @abstractmethod
    def score(self, candidates: Candidates) -> Tensor:
        """Scores `[n]` of given candidates under the current question adapter, with gradient to it.

        They are `candidates.scores_n` as long as the adapter is what it was when they were searched for, whatever the
        kind of index: where its scores are no inner products, only their change is one.
        """

    def explain(self, candidates: Candidates) -> list[Explanation]:
        """Why each candidate was found, in their order.

        Raises:
            UsageError: No search of a retriever found these candidates.
        """
        if candidates.explanations is None:
            raise UsageError("Only what a retriever's search returned can be explained; these candidates are not it.")
        return candidates.explanations

    def _adapted(self, question_Bd: Tensor) -> Tensor:
        if self.adapter.is_identity:  # exactly the encoder's own vectors, not a renormalised copy
            return question_Bd
        return self._through_adapter(question_Bd)

    def _through_adapter(self, question_Bd: Tensor) -> Tensor:
        """What the adapter makes of questions `[B, d]`: of unit length, or of their own where that counts."""
        moved_Bd = question_Bd.to(self.adapter.up_dr.device)
        adapted_Bd: Tensor = self.adapter(moved_Bd)
        if self.encoder.similarity == COSINE:
            return adapted_Bd
        return adapted_Bd * moved_Bd.norm(dim=-1, keepdim=True)

    def _candidates(self, question: str, base_d: Tensor, positions: NDArray[np.int64], scores_n: Tensor) -> Candidates:
        return Candidates(
            question=question,
            passages=self.index.corpus.take(positions.tolist()),
            scores_n=scores_n,
            question_vector_d=base_d,
            passage_vectors_nd=torch.from_numpy(self.index.vectors.reconstruct(positions)),
        )

    def _nearest(self, queries_Bd: Tensor, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and positions of the k nearest vectors, [B, k]; -1 where there are fewer, which is said once."""
        scores_Bk, positions_Bk = self.index.vectors.search(queries_Bd.numpy(), k)
        short = int((positions_Bk < 0).any(axis=1).sum())
        if short and k <= len(self.index) and not self._said_short:
            self._said_short = True
            logger.warning(
                "Fewer than %d passages were found for %d of %d questions, although the index holds %d: its search "
                "parameters look into too little (%s). Raise them with `rag index tune`.",
                k,
                short,
                len(positions_Bk),
                len(self.index),
                self.index.manifest.search_parameters or "the defaults",
            )
        return scores_Bk, positions_Bk

    def _with_change(self, candidates: Candidates, scale: float = 1.0) -> Tensor:
        """The scores of the search, and what the question adapter has changed since at the inner products `[n]`.

        The change is divided by `scale` first.
        """
        dense_n = self._inner_products(candidates)
        found_n = candidates.scores_n if candidates.dense_scores_n is None else candidates.dense_scores_n
        return candidates.scores_n.to(dense_n.device) + (dense_n - found_n.to(dense_n.device)) / scale

    def _inner_products(self, candidates: Candidates) -> Tensor:
        question_1d = self._through_adapter(candidates.question_vector_d.unsqueeze(0))
        return (question_1d @ candidates.passage_vectors_nd.to(question_1d.device).T).squeeze(0)


class DenseRetriever(Retriever):
    """Question -> the k passages with the highest inner product; its arguments are those of `Retriever`."""

    kind: ClassVar[str] = "dense"

    def _find(self, asked: Asked, k: int) -> list[Candidates]:
        scores_BD, ids_BD = self._nearest(asked.searched_Bd, k + asked.most_ignored)
        exact = properties(self.index.manifest.factory).scores == "exact"
        found = []
        for i, question in enumerate(asked.questions):
            scores_D, ids_D = scores_BD[i], ids_BD[i]
            searched_d = asked.searched_Bd[i]
            # FAISS pads short results with -1, which a list would read as its last passage.
            held = np.flatnonzero((ids_D >= 0) & ~np.isin(ids_D, asked.ignored[i]))[:k]
            one = self._candidates(question, asked.base_Bd[i], ids_D[held], torch.from_numpy(scores_D[held].copy()))
            explanations = [
                Explanation(dense_rank=rank, dense_score=score) for rank, score in enumerate(one.scores_n.tolist(), 1)
            ]
            dense_n = None if exact else one.passage_vectors_nd @ searched_d
            found.append(replace(one, dense_scores_n=dense_n, explanations=explanations))
        return found

    def score(self, candidates: Candidates) -> Tensor:
        """Scores `[n]` of given candidates under the current question adapter, with gradient to it.

        They are inner products q' . d where the index scores by them. Where it does not (`faiss_kinds`), they
        are the scores of the search plus (q' - q'_0) . d, where q' is the adapted question now, q'_0 as it was
        searched with, and d what the index gives back of a vector.
        """
        return (
            self._with_change(candidates) if candidates.dense_scores_n is not None else self._inner_products(candidates)
        )


def _check_questions(questions: Sequence[str], k: int) -> None:
    if k < 1:
        raise UsageError(f"k must be at least 1; {k} came.")
    for i, question in enumerate(questions):
        if not question.strip():
            raise DataError(f"A question must hold at least one visible character; question number {i + 1} is empty.")
