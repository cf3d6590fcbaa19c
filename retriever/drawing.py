"""Permutations from step-wise logits: one decoding loop, and three policies of what follows from a step.

    logits of the next choice -> proposal -> policy chooses (greedy | independent draws | beams) -> one choice longer

Everything that knows the logits of the next choice (`StepLogits`) can be decoded, whatever it computes them with: a
language model step by step, or scores that never change (Plackett-Luce).

Legend: B questions, b nodes (partial permutations) each, m permutations, n candidates, K selected, k of them chosen so
far, C components of the proposal.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retriever.permutations import (
    NEGATIVE_INFINITY,
    Permutations,
    Proposal,
    log_inclusion,
    mask_used,
    perturbed_children,
    sample_step,
    standard_gumbel,
)


class StepLogits(ABC):
    """The logits of the next choice, after any choices so far.

    Args:
        absent_Bn: True where a question has fewer than n candidates.
    """

    def __init__(self, absent_Bn: Tensor) -> None:
        self.absent_Bn = absent_Bn

    @abstractmethod
    def lm_logits(self, z_Bbk: Tensor, parents_Bb: Tensor | None) -> Tensor | None:
        """What a language model gives every candidate as the next choice `[B, b, n]`; None where none is asked.

        Args:
            z_Bbk: The choices so far, one more than in the call before.
            parents_Bb: The node of the call before that each node continues; None: that of the same number.
        """

    @abstractmethod
    def logits(self, lm_Bbn: Tensor | None) -> Tensor:
        """Logits of the next choice `[B, b, n]` (or such that broadcast to it) from those of the language model."""


@dataclass(frozen=True)
class Draws:
    """Where the loop ended: all nodes of all questions, K choices long, on the CPU."""

    z_BbK: Tensor
    log_p_Bb: Tensor
    """Log-probability under the selector."""
    log_q_Bb: Tensor
    """And under the proposal."""
    lm_BbKn: Tensor | None
    """Logits of the language model at every step, float32."""


class Policy(ABC):
    """Which nodes follow from those of a step, and what sample the last ones are."""

    def num_nodes(self, m: int) -> int:
        """How many nodes are needed for m permutations."""
        return m

    def prepare(self, values: Tensor) -> Tensor:
        """Log-probabilities on the device and in the number format in which this policy works."""
        return values

    @abstractmethod
    def choose(self, log_p_Bbn: Tensor, log_q_Bbn: Tensor) -> tuple[Tensor | None, Tensor]:
        """The next nodes `(parent_Bb, chosen_Bb)` from the log-probabilities of all children; no parent: their own."""

    def permutations(self, draws: Draws) -> list[Permutations]:
        """The sample of each question."""
        lm = [None] * len(draws.z_BbK) if draws.lm_BbKn is None else draws.lm_BbKn
        return [Permutations(*one) for one in zip(draws.z_BbK, draws.log_p_Bb, draws.log_q_Bb, lm, strict=True)]


class Greedy(Policy):
    """The most probable choice under the selector at every step."""

    def choose(self, log_p_Bbn: Tensor, log_q_Bbn: Tensor) -> tuple[Tensor | None, Tensor]:
        """The maximum of `log_p_Bbn`."""
        return None, log_p_Bbn.argmax(-1)


class IndependentDraws(Policy):
    """Draws from the proposal with replacement.

    Args:
        generator: Of the draws.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        self._generator = generator

    def choose(self, log_p_Bbn: Tensor, log_q_Bbn: Tensor) -> tuple[Tensor | None, Tensor]:
        """One choice per node by the Gumbel maximum."""
        return None, sample_step(log_q_Bbn, self._generator)


class StochasticBeams(Policy):
    """Draws without replacement: at every step the m + 1 children of largest perturbed log-probability.

    Stochastic beam search (Kool et al. 2019, arXiv 1903.06059); the beam that is one too many gives the threshold of
    the inclusion probabilities. In float64 on the CPU.

    Args:
        generator: Of the draws.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        self._generator = generator
        self._perturbed_Bb: Tensor | None = None

    def num_nodes(self, m: int) -> int:
        """One more than asked for."""
        return m + 1

    def prepare(self, values: Tensor) -> Tensor:
        """In float64 on the CPU."""
        return values.cpu().double()

    def choose(self, log_p_Bbn: Tensor, log_q_Bbn: Tensor) -> tuple[Tensor | None, Tensor]:
        """The best children of all nodes of a question."""
        B, b, n = log_q_Bbn.shape
        if self._perturbed_Bb is None:
            self._perturbed_Bb = torch.full((B, b), NEGATIVE_INFINITY, dtype=torch.float64)
            self._perturbed_Bb[:, 0] = standard_gumbel((B,), self._generator)  # at first only the root exists
        children_Bbn = perturbed_children(log_q_Bbn, self._perturbed_Bb, self._generator)
        self._perturbed_Bb, best_Bb = children_Bbn.flatten(1).topk(b, dim=-1)
        return best_Bb // n, best_Bb % n

    def permutations(self, draws: Draws) -> list[Permutations]:
        """All beams but the last, as far as they exist, each with its inclusion probability less log m."""
        assert self._perturbed_Bb is not None
        found = []
        for i, perturbed_b in enumerate(self._perturbed_Bb):
            m = int(perturbed_b[:-1].isfinite().sum())
            log_q_m = log_inclusion(draws.log_q_Bb[i, :m], perturbed_b[-1]) - math.log(m)
            lm_mKn = None if draws.lm_BbKn is None else draws.lm_BbKn[i, :m]
            found.append(Permutations(draws.z_BbK[i, :m], draws.log_p_Bb[i, :m].float(), log_q_m.float(), lm_mKn))
        return found


def draw(steps: StepLogits, num_selected: int, m: int, proposal: Proposal, policy: Policy) -> Draws:
    """K choices for the nodes of every question: `policy.permutations` makes the sample of them.

    Args:
        steps: Where logits come from.
        num_selected: K.
        m: Permutations per question.
        proposal: What the policy chooses by.
        policy: How it chooses.
    """
    absent_Bn = steps.absent_Bn
    (B, n), b = absent_Bn.shape, policy.num_nodes(m)
    log_CBb = policy.prepare(proposal.start(B, b, absent_Bn.device))
    z_Bbk = torch.zeros(B, b, 0, dtype=torch.long, device=log_CBb.device)
    lm_Bbkn: Tensor | None = None
    parent_Bb: Tensor | None = None
    for _ in range(num_selected):
        lm_Bbn = steps.lm_logits(z_Bbk.to(absent_Bn.device), parent_Bb)
        used_Bbn = absent_Bn[:, None].expand(B, b, n).scatter(-1, z_Bbk.to(absent_Bn.device), True)
        logits_Bbn = policy.prepare(mask_used(steps.logits(lm_Bbn).expand(B, b, n), used_Bbn))
        log_CBbn = proposal.children(log_CBb, logits_Bbn)
        parent_Bb, chosen_Bb = policy.choose(log_CBbn[0], log_CBbn[1])
        if lm_Bbn is not None:
            new_Bb1n = lm_Bbn.float().to(log_CBb.device).unsqueeze(2)
            lm_Bbkn = new_Bb1n if lm_Bbkn is None else torch.cat([lm_Bbkn, new_Bb1n], dim=2)
        if parent_Bb is None:
            log_CBb = log_CBbn.gather(-1, chosen_Bb.expand(len(log_CBbn), -1, -1).unsqueeze(-1)).squeeze(-1)
        else:
            child_Bb = parent_Bb * n + chosen_Bb
            log_CBb = log_CBbn.flatten(2).gather(2, child_Bb.expand(len(log_CBbn), -1, -1))
            z_Bbk = z_Bbk.gather(1, parent_Bb.unsqueeze(-1).expand_as(z_Bbk))
            if lm_Bbkn is not None:
                lm_Bbkn = lm_Bbkn.gather(1, parent_Bb[:, :, None, None].expand_as(lm_Bbkn))
        z_Bbk = torch.cat([z_Bbk, chosen_Bb.unsqueeze(-1)], dim=-1)
    lm_BbKn = None if lm_Bbkn is None else lm_Bbkn.cpu()
    return Draws(z_Bbk.cpu(), log_CBb[0].cpu(), log_CBb[1].cpu(), lm_BbKn)


def padded(values: Sequence[Tensor], absent_Bn: Tensor) -> Tensor:
    """One number for each candidate of several questions `[B, n]`; candidates that do not exist get 0 (and are masked).

    Args:
        values: Per question `[n_b]`.
        absent_Bn: Whose shape and device they get.
    """
    values_Bn = torch.zeros_like(absent_Bn, dtype=torch.float32)
    for row_n, one_n in zip(values_Bn, values, strict=True):
        row_n[: len(one_n)] = one_n
    return values_Bn
