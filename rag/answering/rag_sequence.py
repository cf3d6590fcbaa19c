"""The answer mode of RAG-Sequence, DRO's main baseline: marginalise over single, independent documents.

RAG-Sequence (Lewis et al. 2020, arXiv 2005.11401, section 2.1):

    p(y|x) = sum_d p(d|x) p_g(y|x,d)

This equals a selector that selects one document by the retriever's scores, so it is *trained* by an exact E-step over
K = 1 (the recipe `rag_sequence` of `rag.experiments.recipes`), whose M-step has the gradient of log p(y|x) (with
`loss_normalization="token"` the generator's part of it is divided by the number of answer tokens, as everywhere). Only
its "thorough decoding" needs code of its own: every document proposes an answer, by greedy decoding instead of the
paper's beam search, and every answer is scored under all documents.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from generator.generator import Generator
from indexes.errors import UsageError
from rag.answering.answer import Answer
from rag.answering.answer_mode import AnswerMode
from retriever.candidates import Candidates
from retriever.retriever import Retriever
from retriever.selector import Selector
from retriever.selector_config import SelectorConfig


class PerDocumentReader(AnswerMode):
    """Base of the modes that read documents one at a time and marginalise over them.

    Args:
        retriever: Finds the n candidates.
        selector: Must select one of them; its distribution is p(d|x).
        generator: Reads one document at a time.

    Raises:
        UsageError: The selector selects more than one passage.
    """

    name: ClassVar[str]
    """What the paper calls it."""

    def __init__(self, retriever: Retriever, selector: Selector, generator: Generator) -> None:
        _check_one_document(selector, self.name)
        super().__init__(retriever, selector, generator)

    def config_for(self, k: int) -> SelectorConfig:
        """The selector's settings with k candidates, all of which are read."""
        return replace(self.selector.config, num_candidates=k)


class RAGSequence(PerDocumentReader):
    """Scores every proposed answer by the sum over documents."""

    kind = "rag_sequence"
    name = "RAG-Sequence"

    def answer_from(self, candidates: Sequence[Candidates], *, log_prob: bool = True) -> list[Answer]:
        """The most probable of the answers that the documents propose, for each question.

        `log_prob` changes nothing: answers are ranked by it, so it is always there.
        """
        prompts = [[self.generator.prompt_ids(c.question, [p]) for p in c.passages] for c in candidates]
        found = self.generator.complete_and_compare(prompts)
        priors = log_priors(self.selector, candidates)
        return [self._best(c, *answers, prior) for c, answers, prior in zip(candidates, found, priors, strict=True)]

    def _best(self, candidates: Candidates, texts: Sequence[str], log_p_td: Tensor, log_p_d: Tensor) -> Answer:
        log_p_t = (log_p_td + log_p_d).logsumexp(-1)
        best = int(log_p_t.argmax())
        return Answer.from_candidates(candidates, range(len(candidates)), texts[best], float(log_p_t[best]))


def _check_one_document(selector: Selector, name: str) -> None:
    if (k := selector.config.num_selected) != 1:
        raise UsageError(f"{name} reads one document at a time: num_selected must be 1, got {k}.")


def log_priors(selector: Selector, candidates: Sequence[Candidates]) -> list[Tensor]:
    """Log p(d|x) over each question's candidates, `[n]`, from a selector that selects one of them.

    Raises:
        UsageError: The selector selects more than one (its settings may have changed since the mode was built).
    """
    _check_one_document(selector, "Marginalising over single documents")
    found = []
    for permutations in selector.enumerate(candidates):
        log_p_d = torch.empty(len(permutations))
        log_p_d[permutations.z[:, 0]] = permutations.log_p.float()
        found.append(log_p_d)
    return found
