"""The baseline that DRO argues against: marginalise over single, independent documents.

RAG-Sequence (Lewis et al. 2020, arXiv 2005.11401, section 2.1):

    p(y|x) = sum_d p(d|x) p_g(y|x,d)

In our terms it is a selector that picks one document by the retriever's scores, so it is *trained* by an exact E-step
over K = 1 (the recipe `rag_sequence` of `rag.experiments.recipes`), whose M-step has the gradient of log p(y|x) (with
`loss_normalization="token"` the generator's half of it is divided by the tokens of the answer, as everywhere). What
needs code of its own is its "thorough decoding": every document proposes an answer, greedily and not by a beam as in
the paper, and every answer is judged by all.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from generator.generator import Generator
from generator.recording import Recorded, recording
from indexes.errors import UsageError
from rag.pipeline import RAG, Answer, citations
from retriever.dense import Candidates, Retriever
from training.questions.context_fit import why_too_long


class PerDocumentReader(ABC):
    """Who answers from documents that are read one at a time; abstract.

    Args:
        rag: A pipeline whose selector picks one of n candidates; n is the number of documents read.

    Raises:
        UsageError: The selector picks more than one.
    """

    name: ClassVar[str]
    """As papers call it."""

    def __init__(self, rag: RAG) -> None:
        _check_one_document(rag, self.name)
        self.rag = rag

    @property
    def retriever(self) -> Retriever:
        """Of the pipeline."""
        return self.rag.retriever

    @property
    def generator(self) -> Generator:
        """Of the pipeline."""
        return self.rag.generator

    @property
    def num_candidates(self) -> int:
        """n, the documents read."""
        return self.rag.num_candidates

    def why_too_long(self, question: str) -> str | None:
        """Why a question is too long for the model's context; None where it fits."""
        return why_too_long(question, self.rag.selector, self.rag.generator)

    @abstractmethod
    def answer_from(self, candidates: Sequence[Candidates]) -> list[Answer]:
        """One answer for each question's candidates."""


class RAGSequence(PerDocumentReader):
    """Answers by the sum over documents."""

    name = "RAG-Sequence"

    def answer_from(self, candidates: Sequence[Candidates]) -> list[Answer]:
        """The most probable of the answers that the documents propose, for each question."""
        with recording() as recorded:
            proposals = self._proposals(candidates)
        priors = log_priors(self.rag, candidates)
        judged = self._judged(candidates, proposals, recorded)
        return [self._best(*parts) for parts in zip(candidates, proposals, priors, judged, strict=True)]

    def _proposals(self, candidates: Sequence[Candidates]) -> list[list[str]]:
        """The greedy answer of each document alone, each different one once."""
        questions = [c.question for c in candidates for _ in c.passages]
        texts = iter(self.rag.generator.generate(questions, [[p] for c in candidates for p in c.passages]))
        return [list(dict.fromkeys(next(texts) for _ in c.passages)) for c in candidates]

    def _judged(
        self, candidates: Sequence[Candidates], proposals: Sequence[Sequence[str]], recorded: Recorded
    ) -> list[Tensor]:
        """Log p_g of every proposal under every document of its question, `[texts, n]`, all questions together."""
        rows = [
            self.rag.row(c.question, [passage], text)
            for c, texts in zip(candidates, proposals, strict=True)
            for text in texts
            for passage in c.passages
        ]
        sizes = [len(texts) * len(c) for c, texts in zip(candidates, proposals, strict=True)]
        found = self.rag.generator.log_probs_of_generated(rows, recorded).split(sizes)
        return [log_p.view(len(texts), -1) for log_p, texts in zip(found, proposals, strict=True)]

    def _best(self, candidates: Candidates, texts: Sequence[str], log_p_d: Tensor, log_p_td: Tensor) -> Answer:
        log_p_t = (log_p_td + log_p_d).logsumexp(-1)
        best = int(log_p_t.argmax())
        passages = candidates.passages
        text = texts[best]
        return Answer(
            candidates.question,
            text,
            citations(text, passages),
            passages,
            list(range(len(passages))),
            float(log_p_t[best]),
        )


def _check_one_document(rag: RAG, name: str) -> None:
    if (k := rag.selector.config.num_selected) != 1:
        raise UsageError(f"{name} reads one document at a time: num_selected must be 1, got {k}.")


def log_priors(rag: RAG, candidates: Sequence[Candidates]) -> list[Tensor]:
    """Log p(d|x) over each question's candidates, `[n]`, by a selector that picks one of them.

    Raises:
        UsageError: The selector picks more than one (its settings may have changed since the pipeline was made).
    """
    _check_one_document(rag, "A sum over documents")
    found = []
    for permutations in rag.selector.enumerate(candidates):
        log_p_d = torch.empty(len(permutations))
        log_p_d[permutations.z_mK[:, 0]] = permutations.log_p_m.float()
        found.append(log_p_d)
    return found
