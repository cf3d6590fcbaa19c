"""The base of selectors that give every candidate one logit, whatever was chosen before it.

    p(z | x) = prod_k exp(s_{z_k}) / sum_{i not in z_<k} exp(s_i)          (Plackett-Luce)

One pass gives the probability of every permutation; a subclass defines only the logits.

Legend: B questions, b partial permutations each, n candidates, K selected, k of them chosen so far.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from retriever.candidates import Candidates
from retriever.drawing import Greedy, IndependentDraws, Policy, StepLogits, StochasticBeams, draw, padded
from retriever.permutations import Permutations, Proposal, enumerate_permutations, plackett_luce_log_prob
from retriever.selector import Selector
from retriever.selector_config import SamplingConfig


class _ConstantLogits(StepLogits):
    """The same logits at every step."""

    def __init__(self, logits_Bn: Tensor, absent_Bn: Tensor) -> None:
        super().__init__(absent_Bn)
        self._logits_B1n = logits_Bn[:, None]

    def lm_logits(self, z_Bbk: Tensor, parents_Bb: Tensor | None) -> Tensor | None:
        """No language model is asked."""
        return None

    def logits(self, lm_Bbn: Tensor | None) -> Tensor:
        """`[B, 1, n]`, whatever was chosen."""
        return self._logits_B1n


class PlackettLuceSelector(Selector):
    """A selector by one logit per candidate; arguments as `Selector`."""

    @abstractmethod
    def logits(self, candidates: Candidates, *, teach_retriever: bool = True) -> Tensor:
        """Logits `[n]` of one question's candidates, with gradient to what learns, on the device of the model.

        Args:
            candidates: The candidates.
            teach_retriever: As in `Selector.log_prob`; `prior_scores` takes it.
        """

    @torch.no_grad()
    def select(self, candidates: Sequence[Candidates]) -> list[Permutations]:
        """The K candidates of largest logits, largest first."""
        return self._draw(candidates, 1, Proposal(), Greedy())

    @torch.no_grad()
    def propose(
        self,
        candidates: Sequence[Candidates],
        sampling: SamplingConfig,
        *,
        generator: torch.Generator | None = None,
    ) -> list[Permutations]:
        """Draws from Plackett-Luce with logits / temperature; arguments and result as `Selector.propose`."""
        policy = IndependentDraws(generator) if sampling.replacement else StochasticBeams(generator)
        return self._draw(candidates, sampling.num_permutations, Proposal(sampling.temperature), policy)

    def log_prob(
        self, candidates: Sequence[Candidates], permutations: Sequence[Tensor], *, teach_retriever: bool = True
    ) -> list[Tensor]:
        """As `Selector.log_prob`."""
        return log_probs_by(self._logits(candidates, teach_retriever), permutations)

    @torch.no_grad()
    def enumerate(self, candidates: Sequence[Candidates], *, rows_per_pass: int = 64) -> list[Permutations]:
        """As `Selector.enumerate`; everything follows from one logit per candidate, so nothing is read in passes."""
        return [self.every_permutation(logits_n) for logits_n in self._logits(candidates, False)]

    def every_permutation(self, logits_n: Tensor) -> Permutations:
        """All permutations of candidates with these logits, as a proposal that is uniform over them, on the CPU."""
        logits_n = logits_n.cpu()
        z_NK = enumerate_permutations(len(logits_n), self.config.num_selected)
        log_q_N = torch.full((len(z_NK),), -math.log(len(z_NK)))
        return Permutations(z_NK, plackett_luce_log_prob(logits_n, z_NK), log_q_N)

    def _logits(self, candidates: Sequence[Candidates], teach_retriever: bool) -> list[Tensor]:
        for one in candidates:
            self.check(one)
        return [self.logits(one, teach_retriever=teach_retriever) for one in candidates]

    def _draw(self, candidates: Sequence[Candidates], m: int, proposal: Proposal, policy: Policy) -> list[Permutations]:
        return self._draw_by(self._logits(candidates, False), m, proposal, policy)

    def _draw_by(self, logits: Sequence[Tensor], m: int, proposal: Proposal, policy: Policy) -> list[Permutations]:
        """Draws by the logits `[n]` of each question."""
        absent_Bn = self._absent(logits)
        steps = _ConstantLogits(padded(logits, absent_Bn), absent_Bn)
        return policy.permutations(draw(steps, self.config.num_selected, m, proposal, policy))

    def _absent(self, logits: Sequence[Tensor]) -> Tensor:
        n = max(map(len, logits))
        return torch.tensor([[i >= len(c) for i in range(n)] for c in logits], device=self.language_model.device)


def log_probs_by(logits: Sequence[Tensor], permutations: Sequence[Tensor]) -> list[Tensor]:
    """Plackett-Luce log-probabilities of permutations, by the logits `[n]` of each question."""
    return [
        plackett_luce_log_prob(logits_n, z_mK.to(logits_n.device))
        for logits_n, z_mK in zip(logits, permutations, strict=True)
    ]
