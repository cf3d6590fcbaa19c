"""From candidates and an answer to a posterior over permutations, in four ways behind `estimate(batch)`.

    log omega  <- log p_s(z|x) - log q(z|x) + tau log p_g(y|x, d_z)
    w          <- softmax(log omega)

| estimator | permutations | scored by the generator |
|---|---|---|
| EnumerationEstimator | all n!/(n-K)! | all, as whole answers |
| TokenEstimator | all n!/(n-K)! | all, token by token (RAG-Token, arXiv 2005.11401) |
| SamplingEstimator | m drawn from the selector | all |
| ImputationEstimator | M drawn from the selector, all different | m of them; the others are predicted (`imputation`) |

Legend: m permutations (M, where only m of them are scored), K selected, n candidates, L answer tokens, F features.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from generator.generator import Generator
from retriever.candidates import Candidates
from retriever.permutations import Permutations
from retriever.selector import Selector
from retriever.selector_config import SamplingConfig
from training.config import DROConfig
from training.imputation import Surrogate, choose_permutations_to_score, features
from training.losses import baseline_weights, log_importance_weights, posterior_weights, token_posterior_weights
from training.posterior import ByToken, Posterior, Scored, answer_sequence, stable_seed
from training.questions.example import QAExample
from training.single_passages import SinglePassageQuestion, SinglePassages


@dataclass(frozen=True)
class EStepItem:
    """One question on its way through the E-step."""

    example: QAExample
    answer: str
    """The golden answer drawn for this round."""
    candidates: Candidates
    """In the order in which the selector sees them."""


class PosteriorEstimator(ABC):
    """Estimates the posteriors of a batch of questions.

    Args:
        selector: Proposes permutations.
        generator: Scores them by the answer.
        config: Its `e_step` and `seed`.
    """

    def __init__(self, selector: Selector, generator: Generator, config: DROConfig) -> None:
        self.selector, self.generator, self.config = selector, generator, config
        self.single_passages: SinglePassages | None = None
        """What is kept over the rounds, where single passages are scored."""

    @abstractmethod
    def estimate(self, batch: Sequence[EStepItem], round: int) -> list[Posterior]:
        """Posteriors of the questions, in order.

        Args:
            batch: Questions with their candidates.
            round: Number of the round; with the seed it fixes every draw.
        """

    def _draw(self, batch: Sequence[EStepItem], round: int) -> list[Permutations]:
        """Permutations from the proposal, `num_permutations * proposals_per_sample` of each question."""
        settings = self.config.e_step
        seed = stable_seed(self.config.seed, round, "proposal", *(item.example.id for item in batch))
        sampling = SamplingConfig(
            num_permutations=settings.num_permutations * settings.proposals_per_sample,
            temperature=settings.proposal_temperature,
            replacement=settings.replacement,
        )
        generator = torch.Generator().manual_seed(seed)
        return self.selector.propose([item.candidates for item in batch], sampling, generator=generator)

    def _enumerate(self, batch: Sequence[EStepItem]) -> list[Permutations]:
        return self.selector.enumerate([item.candidates for item in batch])

    def _log_likelihoods(self, batch: Sequence[EStepItem], permutations: Sequence[Tensor]) -> list[Tensor]:
        """Log p_g per question `[m]` of given permutations `[m, K]`; equal ones are scored once."""
        distinct = [list(dict.fromkeys(map(tuple, z_mK.tolist()))) for z_mK in permutations]
        sequences = [
            answer_sequence(self.generator, item.candidates, torch.tensor(z), item.answer)
            for item, of_item in zip(batch, distinct, strict=True)
            for z in of_item
        ]
        scores = self.generator.log_probs(sequences).split([len(of_item) for of_item in distinct])
        known = [dict(zip(zs, found.tolist(), strict=True)) for zs, found in zip(distinct, scores, strict=True)]
        return [
            torch.tensor([of_item[tuple(z)] for z in z_mK.tolist()])
            for of_item, z_mK in zip(known, permutations, strict=True)
        ]

    def _posterior(self, item: EStepItem, permutations: Permutations, log_likelihood_m: Tensor) -> Posterior:
        exponent = self.config.e_step.first_exponent
        log_omega_m = log_importance_weights(permutations.log_p, permutations.log_q, log_likelihood_m, exponent)
        baseline_m = baseline_weights(permutations.log_p, permutations.log_q)
        return Posterior(
            example=item.example,
            answer=item.answer,
            candidates=item.candidates,
            permutations=permutations,
            log_likelihood_m=log_likelihood_m,
            weights_m=posterior_weights(log_omega_m),
            baseline_m=baseline_m if self.config.e_step.control_variate else None,
            log_omega_m=log_omega_m,
            exponent=exponent,
        )

    def _all_scored(self, batch: Sequence[EStepItem], permutations: Sequence[Permutations]) -> list[Posterior]:
        log_likelihoods = self._log_likelihoods(batch, [p.z for p in permutations])
        return [self._posterior(*parts) for parts in zip(batch, permutations, log_likelihoods, strict=True)]


class EnumerationEstimator(PosteriorEstimator):
    """The exact posterior: every permutation is scored."""

    def estimate(self, batch: Sequence[EStepItem], round: int) -> list[Posterior]:
        """As `PosteriorEstimator.estimate`."""
        return self._all_scored(batch, self._enumerate(batch))


class SamplingEstimator(PosteriorEstimator):
    """Self-normalised importance sampling: every permutation that is drawn is scored."""

    def estimate(self, batch: Sequence[EStepItem], round: int) -> list[Posterior]:
        """As `PosteriorEstimator.estimate`."""
        return self._all_scored(batch, self._draw(batch, round))


class TokenEstimator(PosteriorEstimator):
    """A posterior over all permutations at every answer token."""

    def estimate(self, batch: Sequence[EStepItem], round: int) -> list[Posterior]:
        """As `PosteriorEstimator.estimate`."""
        permutations = self._enumerate(batch)
        sequences = [
            answer_sequence(self.generator, item.candidates, z_K, item.answer)
            for item, enumerated in zip(batch, permutations, strict=True)
            for z_K in enumerated.z
        ]
        found = iter(self.generator.token_log_probs(sequences))
        posteriors = []
        for item, enumerated in zip(batch, permutations, strict=True):
            log_p_mL = torch.stack([next(found) for _ in range(len(enumerated))])
            weights_mL, log_marginal = token_posterior_weights(enumerated.log_p, enumerated.log_q, log_p_mL)
            # No control variate: over all permutations the selector's gradient has no noise to take away.
            whole = replace(self._posterior(item, enumerated, log_p_mL.sum(-1)), baseline_m=None)
            by_token = ByToken(weights_mL, float(log_marginal))
            posteriors.append(replace(whole, weights_m=weights_mL.mean(-1), by_token=by_token))
        return posteriors


class ImputationEstimator(PosteriorEstimator):
    """Importance sampling with more permutations than are scored: the other log-likelihoods are predicted."""

    def __init__(self, selector: Selector, generator: Generator, config: DROConfig) -> None:
        super().__init__(selector, generator, config)
        self.single_passages: SinglePassages = SinglePassages(generator, config.e_step.single_passage_rounds)

    def estimate(self, batch: Sequence[EStepItem], round: int) -> list[Posterior]:
        """As `PosteriorEstimator.estimate`."""
        questions = [
            SinglePassageQuestion(item.example.id, item.candidates.question, item.answer, item.candidates.passages)
            for item in batch
        ]
        singles = self.single_passages.log_likelihoods(questions, round)
        permutations = self._draw(batch, round)
        inputs = [features(single_n, drawn.z) for single_n, drawn in zip(singles, permutations, strict=True)]
        chosen = [self._choose(*parts, round) for parts in zip(batch, permutations, inputs, strict=True)]
        z = [drawn.z[index_m] for drawn, (index_m, _) in zip(permutations, chosen, strict=True)]
        log_likelihoods = self._log_likelihoods(batch, z)
        surrogate = Surrogate.fit(
            [x_MF[index_m] for x_MF, (index_m, _) in zip(inputs, chosen, strict=True)], log_likelihoods
        )
        return [
            self._completed(surrogate, *parts)
            for parts in zip(batch, permutations, inputs, chosen, log_likelihoods, strict=True)
        ]

    def _choose(self, item: EStepItem, drawn: Permutations, x_MF: Tensor, round: int) -> tuple[Tensor, Tensor]:
        """Positions of the permutations to score, and the log-probability of each to be one of them."""
        settings = self.config.e_step
        m = settings.num_permutations
        seed = stable_seed(self.config.seed, round, "scored", item.example.id, m)
        return choose_permutations_to_score(
            settings.first_exponent * x_MF, drawn.log_p - drawn.log_q, m, torch.Generator().manual_seed(seed)
        )

    def _completed(
        self,
        surrogate: Surrogate,
        item: EStepItem,
        drawn: Permutations,
        x_MF: Tensor,
        chosen: tuple[Tensor, Tensor],
        log_likelihood_m: Tensor,
    ) -> Posterior:
        """The posterior over all that were drawn, from the log-likelihoods of those that were scored."""
        index_m, log_inclusion_m = chosen
        predicted_M = surrogate.complete(x_MF, index_m, log_likelihood_m).clamp_max(0.0)
        whole = self._posterior(item, drawn, predicted_M.scatter(-1, index_m, log_likelihood_m))
        weights_m = posterior_weights(whole.log_omega_m[index_m] - log_inclusion_m)
        residual_m = surrogate.residuals(x_MF[index_m], log_likelihood_m)
        return replace(whole, scored=Scored(index_m, weights_m, log_inclusion_m, residual_m))


def estimator_class(config: DROConfig) -> type[PosteriorEstimator]:
    """The estimator that the settings of the E-step ask for."""
    settings = config.e_step
    if settings.marginalization == "token":
        return TokenEstimator
    if settings.exact:
        return EnumerationEstimator
    return ImputationEstimator if settings.proposals_per_sample > 1 else SamplingEstimator
