"""What every retriever is: question -> candidates.

A new retriever is one class, in any module, registered under its kind:

    @RETRIEVERS.register("nearest")
    class NearestRetriever(Retriever): ...

It implements `rank` and `score`, and gives in `settings` what its constructor takes besides index and encoder, so that
a bundle can make it again. `retriever.retrievers` holds the registry; `examples/new_retriever.py` is a complete one.

Legend: B questions, n candidates, d embedding dimension.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from indexes.directory.passage_index import PassageIndex
from indexes.encoder import COSINE, Encoder
from indexes.errors import DataError, MismatchError, UsageError
from retriever.candidates import Candidates
from retriever.question_adapter import QuestionAdapter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Queries:
    """The questions of one search, embedded."""

    questions: Sequence[str]
    base_vectors: Tensor
    """Their embeddings before the question adapter, float32 `[B, d]`."""
    vectors: Tensor
    """And after it: what is searched with."""
    ignored: Sequence[Sequence[int]]
    """Per question the positions in the index that it must not find."""

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def max_ignored(self) -> int:
        """How many more results than wanted leave enough for every question."""
        return max(map(len, self.ignored))

    def take(self, indices: Sequence[int]) -> "Queries":
        """The questions at these positions."""
        index = list(indices)
        questions, ignored = [self.questions[i] for i in index], [self.ignored[i] for i in index]
        return Queries(questions, self.base_vectors[index], self.vectors[index], ignored)


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
    """Its name in `retriever.retrievers.RETRIEVERS`."""

    def __init__(self, index: PassageIndex, encoder: Encoder, *, adapter: QuestionAdapter | None = None) -> None:
        index.manifest.check_encoder(encoder)
        self.index = index
        self.encoder = encoder
        self.adapter = adapter or QuestionAdapter(encoder.dimension)
        self._warned_of_short_results = False

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.settings.items())
        trained = "untrained" if self.adapter.is_identity else "trained"
        return f"{type(self).__name__}(index={str(self.index.path)!r}, {trained} question adapter{settings})"

    @property
    def settings(self) -> dict[str, Any]:
        """JSON-ready settings that rebuild this retriever (without index, encoder and adapter)."""
        return {}

    @classmethod
    def from_settings(cls, index: PassageIndex, encoder: Encoder, settings: Mapping[str, Any]) -> Self:
        """A retriever over an index from what `settings` gave.

        The settings are keyword arguments of the constructor; a retriever that needs more than index and encoder
        overrides this.
        """
        return cls(index, encoder, **settings)

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
        nn.init.zeros_(self.adapter.up)

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
        self, question: str, k: int = 20, *, ignored_ids: Sequence[str | None] = (), explain: bool = False
    ) -> Candidates: ...
    @overload
    def search(
        self, question: Sequence[str], k: int = 20, *, ignored_ids: Sequence[str | None] = (), explain: bool = False
    ) -> list[Candidates]: ...

    @torch.no_grad()
    def search(
        self,
        question: str | Sequence[str],
        k: int = 20,
        *,
        ignored_ids: Sequence[str | None] = (),
        explain: bool = False,
    ) -> Candidates | list[Candidates]:
        """Candidates of one question, or of several, best first; fewer than k when no more are found.

        Args:
            question: B texts, or one.
            k: How many candidates per question.
            ignored_ids: One for each question, or none at all: the id of a passage, or of a document that was cut into
                chunks, that is searched for as if the index did not hold it, so that k others are found. None ignores
                nothing.
            explain: Whether `Candidates.explanations` are made: ranks and scores, and the words that count.

        Raises:
            DataError: An empty question.
            UsageError: k < 1, or not one ignored id for each question.
        """
        questions = [question] if isinstance(question, str) else list(question)
        _check_questions(questions, k)
        ignored = self._ignored(ignored_ids or [None] * len(questions), len(questions))
        base_Bd = torch.from_numpy(self.encoder.encode_questions(questions))
        queries = Queries(questions, base_Bd, self._adapted(base_Bd).float().cpu(), ignored)
        found: dict[int, Candidates] = {}
        # In two groups, as a search for more than k may break ties otherwise.
        for ignores in (False, True):
            if group := [i for i, positions in enumerate(ignored) if bool(positions) is ignores]:
                found |= zip(group, self.rank(queries.take(group), k, explain=explain), strict=True)
        return found[0] if isinstance(question, str) else [found[i] for i in range(len(questions))]

    def _ignored(self, ids: Sequence[str | None], questions: int) -> list[list[int]]:
        """The positions of what each question ignores."""
        if isinstance(ids, str) or len(ids) != questions:
            raise UsageError(
                f"ignored_ids must be a list with one id (or None) for each of {questions} questions, got {ids!r}."
            )
        return [[] if id is None else self.index.corpus.document_positions(id) for id in ids]

    @abstractmethod
    def rank(self, queries: Queries, k: int, *, explain: bool = False) -> list[Candidates]:
        """What `search` calls: the k best candidates of each question, best first, without what it ignores.

        Args:
            queries: Questions that were checked and embedded.
            k: How many candidates per question; fewer where no more are found.
            explain: Whether the candidates get `explanations`.
        """

    @abstractmethod
    def score(self, candidates: Candidates) -> Tensor:
        """Scores `[n]` of given candidates under the current question adapter, with gradient to it.

        They are `candidates.scores` as long as the adapter is what it was when they were searched for, whatever the
        kind of index: where its scores are no inner products, only their change is one.
        """

    def _adapted(self, question_Bd: Tensor) -> Tensor:
        if self.adapter.is_identity:  # exactly the encoder's own vectors, not a renormalised copy
            return question_Bd
        return self._through_adapter(question_Bd)

    def _through_adapter(self, question_Bd: Tensor) -> Tensor:
        """What the adapter makes of questions `[B, d]`: of unit length, or of their own where that counts."""
        moved_Bd = question_Bd.to(self.adapter.up.device)
        adapted_Bd: Tensor = self.adapter(moved_Bd)
        if self.encoder.similarity == COSINE:
            return adapted_Bd
        scaled_Bd: Tensor = adapted_Bd * moved_Bd.norm(dim=-1, keepdim=True)
        return scaled_Bd

    def candidates_at(self, queries: Queries, i: int, positions: Sequence[int], scores: Sequence[float]) -> Candidates:
        """The passages at some positions of the index as candidates of question i, with their stored vectors.

        Args:
            queries: The questions.
            i: Which of them.
            positions: Positions in the index, best first.
            scores: What the retriever ranks by, one for each.
        """
        rows_n = np.asarray(positions, dtype=np.int64)
        passage_vectors_nd = torch.from_numpy(self.index.vectors.reconstruct(rows_n))
        return Candidates(
            question=queries.questions[i],
            passages=self.index.corpus.take(rows_n.tolist()),
            scores=torch.tensor(scores, dtype=torch.float32),
            question_vector=queries.base_vectors[i],
            passage_vectors=passage_vectors_nd,
            dense_scores=passage_vectors_nd @ queries.vectors[i],
        )

    def nearest(self, queries_Bd: Tensor, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and positions of the k nearest vectors `[B, k]`; -1 where there are fewer, with one warning."""
        scores_Bk, positions_Bk = self.index.vectors.search(queries_Bd.numpy(), k)
        short = int((positions_Bk < 0).any(axis=1).sum())
        if short and k <= len(self.index) and not self._warned_of_short_results:
            self._warned_of_short_results = True
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

    def moved_scores(self, candidates: Candidates, scale: float = 1.0) -> Tensor:
        """Scores `[n]` of the search plus what the question adapter has changed of the inner products since.

        It has gradient to the question adapter: what `score` returns of retrievers that rank by something else.

        Args:
            candidates: What a search returned.
            scale: The change is divided by it first.
        """
        dense_n = self._inner_products(candidates)
        found_n = candidates.scores if candidates.dense_scores is None else candidates.dense_scores
        return candidates.scores.to(dense_n.device) + (dense_n - found_n.to(dense_n.device)) / scale

    def _inner_products(self, candidates: Candidates) -> Tensor:
        question_1d = self._through_adapter(candidates.question_vector.unsqueeze(0))
        return (question_1d @ candidates.passage_vectors.to(question_1d.device).T).squeeze(0)


def _check_questions(questions: Sequence[str], k: int) -> None:
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}.")
    for i, question in enumerate(questions):
        if not question.strip():
            raise DataError(f"A question must hold at least one visible character; question number {i + 1} is empty.")
