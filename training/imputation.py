"""More permutations in the E-step than the generator scores: the other log-likelihoods are predicted.

    z_1..z_M  <- the proposal, all different
    single_i  <- log p_g(y|x,d_i) of every single candidate: n short sequences
    scored    <- m of the M, drawn in proportion to a first prediction of their posterior weight
    log p_g   =  a linear model of single_i at each place of the permutation and of their maximum, fitted to the scored

Drawing a permutation costs a few tokens after a prompt that is processed anyway; scoring one costs a sequence of K
passages in the E-step and another in the M-step. So the selector learns from M permutations, the generator from m.

Slopes are shared by the questions of a batch, the intercept is each question's own. The predictions make the estimate
biased by their error and less noisy (`benchmarks/estimators.py` measures both).

Legend: M permutations drawn, m of them scored, n candidates, K selected, F = K + 1 features; `...` stands for E-steps
done at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retriever.permutations import log_inclusion, standard_gumbel

RIDGE = 3.0
"""Observations, of one standard deviation each, that the slopes before any observation are worth."""


def features(single_passage_log_likelihood_n: Tensor, z_MK: Tensor) -> Tensor:
    """Features per permutation: the single-passage log-likelihoods, in order, and their maximum `[..., M, K + 1]`.

    Args:
        single_passage_log_likelihood_n: Log-likelihood of the answer given each single candidate, nats.
        z_MK: Permutations.
    """
    read_MK = single_passage_log_likelihood_n[z_MK]
    return torch.cat([read_MK, read_MK.amax(-1, keepdim=True)], dim=-1)


def prior_coefficients(num_features: int) -> Tensor:
    """Slopes before anything is observed `[F]`: half way between the mean of the single passages and their maximum."""
    k = num_features - 1
    return torch.tensor([0.5 / k] * k + [0.5])


def choose_permutations_to_score(
    features_MF: Tensor, log_ratio_M: Tensor, m: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Which m permutations are scored: drawn without replacement in proportion to the posterior they promise.

    Args:
        features_MF: Of all that were drawn.
        log_ratio_M: log p_s - log q.
        m: How many; all, where no more were drawn.
        generator: Of the draws.

    Returns:
        `(scored_m, log_inclusion_m)`: their positions, and the log-probability of each to be among them.
    """
    promise_M = log_ratio_M.float() + features_MF @ prior_coefficients(features_MF.shape[-1])
    count = promise_M.shape[-1]
    if m >= count:
        return torch.arange(count).expand(promise_M.shape), torch.zeros_like(promise_M)
    # The first one left out is the threshold of the inclusion probabilities.
    perturbed_M = promise_M.double() + standard_gumbel(promise_M.shape, generator)
    top_T, index_T = perturbed_M.topk(m + 1, dim=-1)
    scored_m = index_T[..., :m]
    return scored_m, log_inclusion(promise_M.gather(-1, scored_m), top_T[..., m:]).float()


@dataclass(frozen=True)
class Surrogate:
    """The linear model of log p_g: slopes shared by several questions."""

    slopes_F: Tensor
    precision_FF: Tensor
    """Of the slopes, in units of each question's spread."""

    @classmethod
    def fit(cls, features: Sequence[Tensor], log_likelihoods: Sequence[Tensor]) -> "Surrogate":
        """Ridge regression within questions, each scaled by its own spread so that none outweighs the others.

        Args:
            features: Per question, of the scored permutations `[..., m, F]`.
            log_likelihoods: Theirs `[..., m]`.
        """
        num_features = features[0].shape[-1]
        precision_FF = RIDGE * torch.eye(num_features)
        moment_F = RIDGE * prior_coefficients(num_features)
        for scored in zip(features, log_likelihoods, strict=True):
            x_mF, y_m, _ = _within(*scored)
            precision_FF = precision_FF + x_mF.mT @ x_mF
            moment_F = moment_F + (x_mF.mT @ y_m.unsqueeze(-1)).squeeze(-1)
        return cls(torch.linalg.solve(precision_FF, moment_F), precision_FF)

    def complete(self, features_MF: Tensor, scored_m: Tensor, log_likelihood_m: Tensor) -> Tensor:
        """Log-likelihoods of all permutations of a question `[..., M]`: as scored, predicted elsewhere."""
        slope_M = (features_MF * self.slopes_F.unsqueeze(-2)).sum(-1)
        level_1 = (log_likelihood_m - slope_M.gather(-1, scored_m)).mean(-1, keepdim=True)
        return (slope_M + level_1).scatter(-1, scored_m, log_likelihood_m)

    def residuals(self, features_mF: Tensor, log_likelihood_m: Tensor) -> Tensor:
        """Of each scored permutation of a question, log p_g less its prediction from all the others, nats `[..., m]`.

        Leave one out in closed form: the residual over one less its leverage; 0 where nothing is left to predict from.
        """
        x_mF, y_m, spread_1 = _within(features_mF, log_likelihood_m)
        leverage_m = (x_mF * torch.linalg.solve(self.precision_FF, x_mF.mT).mT).sum(-1) + 1 / x_mF.shape[-2]
        kept_m = (1 - leverage_m).clamp_min(0)
        residual_m = spread_1 * (y_m - (x_mF * self.slopes_F.unsqueeze(-2)).sum(-1))
        return torch.where(kept_m > 1e-6, residual_m / kept_m.clamp_min(1e-6), 0.0)


def _within(features_mF: Tensor, log_likelihood_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both centred within the question and divided by its spread, and that spread."""
    centred_m = log_likelihood_m - log_likelihood_m.mean(-1, keepdim=True)
    # One nat more: a question whose permutations differ by less has nothing to tell.
    spread_1 = centred_m.square().mean(-1, keepdim=True).sqrt() + 1.0
    centred_mF = features_mF - features_mF.mean(-2, keepdim=True)
    return centred_mF / spread_1.unsqueeze(-1), centred_m / spread_1, spread_1
