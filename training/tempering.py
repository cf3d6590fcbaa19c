r"""The exponent of the likelihood in the posterior, fitted in every round without gold ids (`"auto"`).

    w_j(tau) ~ p_s(z_j) p_g(y|x,d_zj)^tau

log p_g of a list is evidence with noise in it: what the base happens to like about an answer and a passage together.
tau is the weight that this evidence deserves, and it can be learned from how well it agrees with something that knows
nothing of the answer: the selector. Suppose that one passage of a question is the right one, that the selector draws it
(as one of a list), and that one of the drawn lists that hold it has evidence of another kind: a log-likelihood of
density f(e) exp(tau e), up to a constant, where that of the other lists is f(e). Given the log-likelihoods of a
question, but not which list has which, the way they belong to the lists then has the probability

    m sum_j s_j exp(tau e_j) / sum_j exp(tau e_j),    s_j = sum of P(i) / (K n_i) over the passages i of list j

relative to 1 / m!, that of any way, whatever f is. P(i) is the selector's marginal probability of passage i over the
drawn lists, n_i the number of drawn lists that hold it; with K = 1 s_j is p_s(z_j) among the drawn. `fit_exponent`
takes the tau under which the logarithm of this, the *agreement*, is largest, over a grid. Its derivative is the
expected log-likelihood with the selector's opinion less that without it: tau grows as long as the lists that explain
the answer are those whose passages the selector also prefers, and stops where only noise is added. (Passages, because
the order within a list is the selector's habit on one side and the generator's on the other: over whole lists both
contradict each other where over passages they agree.)

The selector in the agreement is the one that this posterior would teach: its prior weights are fitted, by the M-step's
own objective, to the tempered posteriors of the other folds of questions. The likelihood that such a selector's lists
reach would not do as a criterion: at tau = 1 the M-step maximises log E p_g, and as tau goes to 0 it maximises
E log p_g, so either of them favours its own end of the grid, whatever the evidence is worth.

Legend: N questions, C components, m permutations, K selected, n candidates.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from retriever.selector import Selector
from training.config import AUTO, FALLBACK_EXPONENT, FALLBACK_LSR_TEMPERATURE, DROConfig
from training.losses import log_importance_weights, posterior_weights
from training.posterior import Posterior
from training.prior_weights import Components, best_prior_weights, current_weights, log_prob, prior_components

logger = logging.getLogger(__name__)

GRID = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""The exponents that are compared."""
NUM_FOLDS = 5
LEAST_QUESTIONS = 20
"""With fewer usable questions the fallback is taken."""
MOST_QUESTIONS = 500
"""As many questions are compared, evenly spaced: more would cost time and change little."""


@dataclass(frozen=True)
class FittedExponent:
    """An exponent, and why it."""

    exponent: float
    agreement: Mapping[float, float] = field(default_factory=dict)
    """By exponent, nats per question; 0 is what likelihoods without any relation to the selector have. Empty where the
    exponent is the fallback."""
    questions: int = 0
    """Usable ones that there were."""

    @property
    def is_fallback(self) -> bool:
        """Whether there were too few usable questions."""
        return not self.agreement


def fit_exponent(
    selector: Selector, posteriors: Sequence[Posterior], components: Components, *, fallback: float
) -> FittedExponent:
    """The exponent of largest held-out agreement; of equal ones the smallest.

    Args:
        selector: Whose prior weights the folds start from; it is left as it is.
        posteriors: Of one E-step, at any exponent.
        components: Of all of them, as `training.prior_weights.prior_components` finds them. Empty: the selector has no
            prior weights, and agreement is that of the selector that drew the permutations.
        fallback: Taken where fewer than 20 questions are usable.
    """
    usable = [i for i, posterior in enumerate(posteriors) if _is_usable(posterior)]
    if len(usable) < LEAST_QUESTIONS:
        return FittedExponent(fallback, questions=len(usable))
    step = max(1, math.ceil(len(usable) / MOST_QUESTIONS))
    chosen = usable[::step]
    folds = {i: number % NUM_FOLDS for number, i in enumerate(chosen)}
    groups = _grouped(posteriors, components, folds)
    start = current_weights(selector) if components else None
    agreement = {tau: _agreement(groups, start, tau) for tau in GRID}
    return FittedExponent(max(GRID, key=lambda tau: (agreement[tau], -tau)), agreement, len(usable))


class Tempering:
    """The exponents of a run: as they are set, or fitted again in every round.

    Args:
        selector: Of the run.
        config: Its `e_step` and `retriever_training`.
        logs: Whether this process says what it found.
        share: From what this process found to what all processes use: their roundings may differ.
    """

    def __init__(
        self,
        selector: Selector,
        config: DROConfig,
        *,
        logs: bool = True,
        share: Callable[[FittedExponent], FittedExponent] = lambda found: found,
    ) -> None:
        self._selector, self._logs, self._share = selector, logs, share
        self._lists = config.e_step.likelihood_exponent == AUTO
        by_lsr = config.retriever_training.objective == "lsr"
        self._single_passages = by_lsr and config.retriever_training.lsr_temperature == AUTO
        self.lsr_temperature = config.retriever_training.first_lsr_temperature
        """beta of REPLUG's target in this round."""
        self._fell_back: set[str] = set()

    @property
    def is_fitted(self) -> bool:
        """Whether some exponent is "auto"."""
        return self._lists or self._single_passages

    def __call__(
        self, posteriors: list[Posterior], progress: Callable[[int], None] = lambda count: None
    ) -> tuple[list[Posterior], Components]:
        """Fit what is "auto".

        Args:
            posteriors: Of all questions of a round.
            progress: Called with the number of questions just finished.

        Returns:
            The posteriors at the exponent of lists, and the components of the selector's logits, which
            `training.prior_weights.fit_prior_weights` needs too.
        """
        components = prior_components(self._selector, posteriors, progress)
        if self._single_passages:
            found = self._fit(posteriors, components, 1 / FALLBACK_LSR_TEMPERATURE)
            self.lsr_temperature = 1 / found.exponent
            self._note(found, "retriever_training.lsr_temperature", self.lsr_temperature)
        if not self._lists:
            return posteriors, components
        found = self._fit(posteriors, components, FALLBACK_EXPONENT)
        self._note(found, "e_step.likelihood_exponent", found.exponent)
        return [p.tempered(found.exponent) for p in posteriors], components

    def _fit(self, posteriors: Sequence[Posterior], components: Components, fallback: float) -> FittedExponent:
        return self._share(fit_exponent(self._selector, posteriors, components, fallback=fallback))

    def _note(self, found: FittedExponent, setting: str, value: float) -> None:
        if self._logs and not found.is_fallback:
            shown = ", ".join(f"{tau:g}: {nats:.4f}" for tau, nats in found.agreement.items())
            logger.info("%s is %g in this round; agreement by likelihood exponent, nats: %s.", setting, value, shown)
        elif self._logs and setting not in self._fell_back:
            logger.warning(
                'To fit %s="auto", at least %d questions must have two different permutations or more of which one '
                "explains the answer better; %d have. It is %g instead: give more training questions, more "
                "permutations, or a number.",
                *(setting, LEAST_QUESTIONS, found.questions, value),
            )
            self._fell_back.add(setting)


def _is_usable(posterior: Posterior) -> bool:
    """Whether the likelihood tells some permutation from another."""
    found_m = posterior.log_likelihood_m
    return bool(found_m.isfinite().all()) and float(found_m.max() - found_m.min()) > 1e-6


@dataclass(frozen=True)
class _Group:
    """Questions whose tensors have equal shapes."""

    components: tuple[Tensor, ...]
    z_NmK: Tensor
    log_p_Nm: Tensor
    log_q_Nm: Tensor
    log_likelihood_Nm: Tensor
    baseline_Nm: Tensor
    """`[N, 0]` for the paper's estimator."""
    repeated_Nm: Tensor
    """True where a permutation was drawn before."""
    fold_N: Tensor

    def stack(self, chosen_N: Tensor, exponent: float) -> tuple[Tensor, ...]:
        """Some of the questions, weighed by an exponent, as `best_prior_weights` takes them."""
        log_omega_Nm = log_importance_weights(self.log_p_Nm, self.log_q_Nm, self.log_likelihood_Nm, exponent)
        tensors = (*self.components, self.z_NmK, self.log_p_Nm, posterior_weights(log_omega_Nm), self.baseline_Nm)
        return tuple(tensor[chosen_N] for tensor in tensors)

    def held_out(self, chosen_N: Tensor, weights_C: Tensor | None, exponent: float) -> float:
        """Sum over some of the questions, nats, with the selector at these prior weights."""
        log_p_Nm = self.log_p_Nm[chosen_N]
        if weights_C is not None:
            log_p_Nm = log_prob(weights_C, [part[chosen_N] for part in self.components], self.z_NmK[chosen_N])
        z_NmK, repeated_Nm = self.z_NmK[chosen_N], self.repeated_Nm[chosen_N]
        return float(agreement(log_p_Nm, self.log_likelihood_Nm[chosen_N], z_NmK, repeated_Nm, exponent).sum())


def agreement(
    log_p_Nm: Tensor, log_likelihood_Nm: Tensor, z_NmK: Tensor, repeated_Nm: Tensor, exponent: float
) -> Tensor:
    """Log of `m sum_j s_j softmax(tau log p_g)_j` over different permutations, nats `[N]`; see the module.

    Args:
        log_p_Nm: Log p_s.
        log_likelihood_Nm: log p_g(y | x, d_z).
        z_NmK: The permutations.
        repeated_Nm: True where a permutation was drawn before, and does not count again.
        exponent: tau.
    """
    N, m, K = z_NmK.shape
    selector_Nm = log_p_Nm.double().masked_fill(repeated_Nm, -math.inf).softmax(-1)
    evidence_Nm = (exponent * log_likelihood_Nm.double()).masked_fill(repeated_Nm, -math.inf).log_softmax(-1)
    holds_Nmn = torch.zeros(N, m, int(z_NmK.max()) + 1, dtype=torch.float64).scatter_(2, z_NmK, 1.0)
    holds_Nmn = holds_Nmn * (~repeated_Nm).unsqueeze(-1)
    marginals_Nn = (selector_Nm.unsqueeze(-1) * holds_Nmn).sum(1)
    per_list_Nn = marginals_Nn / holds_Nmn.sum(1).clamp_min(1.0) / K
    shares_Nm = (holds_Nmn * per_list_Nn.unsqueeze(1)).sum(-1)
    return (shares_Nm.log() + evidence_Nm).logsumexp(-1) + (~repeated_Nm).double().sum(-1).log()


def _grouped(posteriors: Sequence[Posterior], components: Components, folds: Mapping[int, int]) -> list[_Group]:
    groups: dict[tuple[torch.Size, ...], list[tuple[Tensor, ...]]] = defaultdict(list)
    for i, fold in folds.items():
        one = posteriors[i]
        drawn = one.permutations
        parts = tuple(components[i]) if components else ()
        baseline_m = torch.zeros(0) if one.baseline_m is None else one.baseline_m
        tensors = (
            *parts,
            *(drawn.z, drawn.log_p.float(), drawn.log_q.float(), one.log_likelihood_m.float(), baseline_m),
            *(_repeated(drawn.z), torch.tensor(fold)),
        )
        groups[tuple(t.shape for t in tensors)].append(tensors)
    stacks = [[torch.stack(tensors) for tensors in zip(*group, strict=True)] for group in groups.values()]
    return [_Group(tuple(stack[:-7]), *stack[-7:]) for stack in stacks]


def _repeated(z_mK: Tensor) -> Tensor:
    seen: set[tuple[int, ...]] = set()
    found = []
    for z in map(tuple, z_mK.tolist()):
        found.append(z in seen)
        seen.add(z)
    return torch.tensor(found)


def _agreement(groups: Sequence[_Group], start: Tensor | None, exponent: float) -> float:
    """Mean over all questions, each with a selector that was taught by the other folds."""
    total, questions = 0.0, 0
    for fold in range(NUM_FOLDS):
        weights_C = None if start is None else _taught(groups, start, exponent, fold)
        for group in groups:
            held_N = group.fold_N == fold
            if held_N.any():
                total += group.held_out(held_N, weights_C, exponent)
                questions += int(held_N.sum())
    return total / questions


def _taught(groups: Sequence[_Group], start: Tensor, exponent: float, fold: int) -> Tensor:
    """The prior weights that the posteriors of all folds but one teach."""
    others = [(group, group.fold_N != fold) for group in groups]
    stacks = [group.stack(chosen_N, exponent) for group, chosen_N in others if chosen_N.any()]
    return best_prior_weights(stacks, start, sum(len(stack[-1]) for stack in stacks))
