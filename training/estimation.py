"""The E-step: which permutations of candidate passages explain the answer (DRO, arXiv 2505.03075, its estimation step).

    candidates <- retriever.search(x)
    z_1..z_M   <- proposal q (the selector at a temperature; or every permutation)
    log p_g    <- the generator scores m of them; the others are predicted from those (proposals_per_sample)
    log omega  <- log p_s(z|x) - log q(z|x) + tau log p_g(y|x, d_z)
    w          <- softmax(log omega)

With `marginalization="token"` there is a weight for each answer token. tau is 1 in the paper; below 1 it flattens a
posterior that is too sharp (`likelihood_exponent`; "auto" is fitted to the posteriors of a whole round by
`training.tempering`). This module finds the candidates; `posterior_estimators` does the rest.
"""

from collections.abc import Callable, Sequence

import torch

from generator.generator import Generator
from indexes.errors import UsageError
from retriever.candidates import Candidates
from retriever.retriever import Retriever
from retriever.selector import Selector
from training.config import DROConfig
from training.posterior import Posterior, stable_seed
from training.posterior_estimators import EStepItem, estimator_class
from training.questions.example import QAExample
from training.questions.loading import draw_alias
from training.questions.self_retrieval import retrieve
from training.single_passages import SinglePassages


class EStep:
    """Turns questions with golden answers into posteriors.

    Args:
        retriever: Finds candidates.
        selector: Proposes permutations.
        generator: Scores them by the answer.
        config: Its `e_step` and `seed`.

    Raises:
        UsageError: retriever_training.objective="lsr" and a selector that picks more than one.
    """

    def __init__(self, retriever: Retriever, selector: Selector, generator: Generator, config: DROConfig) -> None:
        if config.retriever_training.objective == "lsr" and selector.config.num_selected != 1:
            raise UsageError(
                "retriever_training.objective='lsr' scores each candidate by itself: num_selected must be 1; got "
                f"{selector.config.num_selected}."
            )
        self.retriever = retriever
        self.selector = selector
        self.generator = generator
        self.config = config
        self.estimator = estimator_class(config)(selector, generator, config)

    @property
    def single_passages(self) -> SinglePassages | None:
        """What each candidate says of the answer by itself, kept over the rounds; None where that is not asked."""
        return self.estimator.single_passages

    @torch.no_grad()
    def __call__(
        self,
        examples: Sequence[QAExample],
        *,
        round: int,
        progress: Callable[[int], None] = lambda count: None,
    ) -> list[Posterior]:
        """Posteriors of all examples, in order.

        Args:
            examples: Questions with at least one golden answer each.
            round: Number of the round; with the seed it fixes every draw.
            progress: Called with the number of questions just finished.

        Raises:
            DataError: Fewer than K candidates were retrieved for a question.
        """
        size = self.config.e_step.batch_size
        posteriors: list[Posterior] = []
        for start in range(0, len(examples), size):
            batch = examples[start : start + size]
            posteriors += self.estimator.estimate(self._items(batch, round), round)
            progress(len(batch))
        return posteriors

    def _items(self, examples: Sequence[QAExample], round: int) -> list[EStepItem]:
        n = self.selector.config.num_candidates
        found = retrieve(self.retriever, examples, max(n, self.config.e_step.candidate_pool or n))
        return [
            EStepItem(
                e,
                draw_alias(e, seed=self.config.seed, round=round),
                self._in_training_order(self._sample_candidate_pool(c, e, round), e, round),
            )
            for c, e in zip(found, examples, strict=True)
        ]

    def _sample_candidate_pool(self, found: Candidates, example: QAExample, round: int) -> Candidates:
        """The first half as found, the rest drawn from everything found after it; in the order of their scores."""
        n = self.selector.config.num_candidates
        if len(found) <= n:
            return found
        first = (n + 1) // 2
        generator = torch.Generator().manual_seed(stable_seed(self.config.seed, round, "pool", example.id))
        others = torch.randperm(len(found) - first, generator=generator)[: n - first].sort().values + first
        return found.reordered([*range(first), *others.tolist()])

    def _in_training_order(self, candidates: Candidates, example: QAExample, round: int) -> Candidates:
        if self.config.e_step.candidate_order == "retriever":
            return candidates
        generator = torch.Generator().manual_seed(stable_seed(self.config.seed, round, "order", example.id))
        return candidates.reordered(torch.randperm(len(candidates), generator=generator).tolist())
