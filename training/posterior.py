"""What the E-step hands to the M-step: permutations of a question's candidates, and how well each explains the answer.

Legend: m permutations (M, where only m of them are scored), u distinct ones among them, K selected, n candidates,
L answer tokens.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from generator.answer_sequences import AnswerSequence
from generator.generator import Generator
from indexes.corpora.chunk_ids import gold_document
from indexes.errors import UsageError
from retriever.candidates import Candidates
from retriever.permutations import Permutations
from training.gold_agreement import GoldAgreement, teacher_warning
from training.losses import (
    baseline_weights,
    effective_sample_size,
    log_importance_weights,
    log_marginal,
    posterior_weights,
)
from training.questions.example import QAExample


@dataclass(frozen=True)
class Posterior:
    """One question after the E-step: its permutations, and how much each explains the answer."""

    example: QAExample
    answer: str
    """The golden answer drawn for this round."""
    candidates: Candidates
    """In the order in which the selector saw them."""
    permutations: Permutations
    log_likelihood_m: Tensor
    """log p_g(y | x, d_z), nats, sum over answer tokens; predicted where it was not scored."""
    weights_m: Tensor
    """w: posterior over the drawn permutations."""
    baseline_m: Tensor | None
    """b: control variate, None for the paper's estimator (and in warm-up)."""
    log_omega_m: Tensor
    scored: "Scored | None" = None
    """Which permutations the generator scored; None: all of them."""
    exponent: float = 1.0
    """tau, the power of p_g(y|x,d_z) in the weights."""
    by_token: "ByToken | None" = None
    """The posterior at each answer token, where that is marginalised; `weights_m` is then its mean over tokens."""

    def tempered(self, exponent: float) -> "Posterior":
        """The same permutations, weighed by another power of the likelihood; nothing is drawn or scored again.

        Raises:
            UsageError: The posterior is one of single tokens, which has no exponent.
        """
        if self.by_token is not None:
            raise UsageError(
                f"A posterior at every token is not tempered, got the exponent {exponent:g}. Use "
                "e_step.marginalization='sequence'."
            )
        drawn, scored = self.permutations, self.scored
        log_omega_m = log_importance_weights(drawn.log_p, drawn.log_q, self.log_likelihood_m, exponent)
        if scored is not None:
            weights_m = posterior_weights(log_omega_m[scored.index_m] - scored.log_inclusion_m)
            scored = replace(scored, weights_m=weights_m)
        weights_m = posterior_weights(log_omega_m)
        return replace(self, weights_m=weights_m, log_omega_m=log_omega_m, scored=scored, exponent=exponent)

    def lsr_target(self, temperature: float) -> "Posterior":
        """With the weights that REPLUG LSR teaches, p_g(y|x,d)^(1/temperature) over single passages, without prior."""
        weights_m = posterior_weights(self.log_likelihood_m / temperature)
        return replace(self, weights_m=weights_m, exponent=1 / temperature)

    def marginals(self) -> Tensor:
        """Posterior probability that each candidate is selected `[n]`; sums to K."""
        return self._read(self.weights_m)

    def expected_marginals(self) -> Tensor | None:
        """The same before the answer was seen, by b; None for a single permutation that was given, and not drawn."""
        if self.baseline_m is None and len(self.permutations) == 1:
            return None
        return self._read(self._selector_weights())

    def _selector_weights(self) -> Tensor:
        """b, also for the paper's estimator."""
        drawn = self.permutations
        return baseline_weights(drawn.log_p, drawn.log_q) if self.baseline_m is None else self.baseline_m

    def _read(self, weights_m: Tensor) -> Tensor:
        z_mK = self.permutations.z
        weights_mK = weights_m[:, None].expand_as(z_mK)
        return torch.zeros(len(self.candidates)).index_add(0, z_mK.flatten(), weights_mK.flatten())

    def distinct(self) -> "DistinctPermutations":
        """Each different permutation once; weights of duplicates are added, so multiplicity is kept."""
        weights_mL = None if self.by_token is None else self.by_token.weights_mL
        return DistinctPermutations.of(self.permutations, self.weights_m, self.baseline_m, weights_mL)

    def distinct_scored(self) -> "DistinctPermutations":
        """What the generator learns from: those that it scored, which stand for all."""
        if self.scored is None:
            return self.distinct()
        return DistinctPermutations.of(self.permutations.at(self.scored.index_m), self.scored.weights_m, None)

    def diagnostics(self) -> "EStepDiagnostics":
        """How well this E-step covered the posterior."""
        d, scored, drawn = self.distinct(), self.scored, self.permutations
        log_omega_m = log_importance_weights(drawn.log_p, drawn.log_q, self.log_likelihood_m)  # whatever tau is
        return EStepDiagnostics(
            ess=float(effective_sample_size(self.weights_m)),
            distinct_permutations=len(d.z_uK) / len(self.permutations),
            log_marginal=float(log_marginal(log_omega_m)) if self.by_token is None else self.by_token.log_marginal,
            log_likelihood=float((self.weights_m * self.log_likelihood_m).sum()),
            posterior_entropy=float(torch.special.entr(d.weights_u).sum()),
            permutations=len(self.permutations),
            likelihood_exponent=self.exponent,
            scored_permutations=None if scored is None else len(scored.index_m),
            scored_weight=None if scored is None else float(self.weights_m[scored.index_m].sum()),
            scored_ess=None if scored is None else float(effective_sample_size(scored.weights_m)),
            imputation_rmse=None if scored is None else float(scored.residual_m.square().mean().sqrt()),
            best_holds_gold=self._best_holds_gold(d),
            **self._against_the_selector(),
        )

    def _against_the_selector(self) -> dict[str, float | None]:
        """What the selector's own lists reach beside the posterior's; nothing where there is only one permutation."""
        if len(self.permutations) == 1:
            return {}
        b_m = self._selector_weights()
        found: dict[str, float | None] = {"selector_log_likelihood": float((b_m * self.log_likelihood_m).sum())}
        if self.example.gold_ids:
            for name, weights_m in (("posterior", self.weights_m), ("selector", b_m)):
                one = GoldAgreement.of(self.candidates.ids, self.example.gold_ids, self.permutations.z, weights_m)
                found |= {f"{name}_{key}": value for key, value in asdict(one).items()}
        return found

    def _best_holds_gold(self, d: "DistinctPermutations") -> float | None:
        if not self.example.gold_ids:
            return None
        ids, gold_ids = self.candidates.ids, self.example.gold_ids
        selected = {gold_document(ids[i], gold_ids) for i in d.z_uK[int(d.weights_u.argmax())].tolist()}
        return float(selected >= set(gold_ids))


@dataclass(frozen=True, kw_only=True)
class EStepDiagnostics:
    """How well the permutations of one question, or on average of several, cover its posterior.

    None stands for what does not apply.
    """

    ess: float
    """Effective sample size of the weights, between 1 and m."""
    distinct_permutations: float
    """Share of distinct permutations among those drawn."""
    log_marginal: float
    """Importance-weighted ELBO, nats: an estimate of log p(y|x) from below (exact under enumeration; with predicted
    log-likelihoods as good as the predictions)."""
    log_likelihood: float
    """Posterior mean of log p_g(y|x,d_z), nats: of the lists that the selector should draw."""
    posterior_entropy: float
    """Entropy of the weights over distinct permutations, nats."""
    permutations: float
    """Permutations that were drawn."""
    likelihood_exponent: float
    """tau, the power of the likelihood in the weights."""
    scored_permutations: float | None = None
    """How many of them the generator scored, where the others were predicted."""
    scored_weight: float | None = None
    """Posterior weight of the scored ones."""
    scored_ess: float | None = None
    """Effective sample size of the weights that the generator learns from."""
    imputation_rmse: float | None = None
    """Leave-one-out error of the predicted log-likelihoods, nats."""
    best_holds_gold: float | None = None
    """1 where the heaviest permutation holds all gold passages, else 0; None where they are not known."""
    selector_log_likelihood: float | None = None
    """Mean of log p_g(y|x,d_z) under the selector that drew the permutations, nats: beside `log_likelihood`."""
    posterior_gold_share: float | None = None
    """Expected share of the gold ids among the passages of a list that the posterior draws."""
    selector_gold_share: float | None = None
    """The same of the selector's own lists."""
    posterior_recall: float | None = None
    """Share of the gold ids among the K candidates of largest posterior marginal."""
    selector_recall: float | None = None
    """The same by the selector's own marginals."""
    posterior_cross_entropy: float | None = None
    """From the gold candidates to the posterior marginals, nats; None where no candidate is gold."""
    selector_cross_entropy: float | None = None
    """The same of the selector's own marginals."""

    def to_dict(self) -> dict[str, float]:
        """By name, without what does not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "EStepDiagnostics":
        """From what `to_dict` made, or from a record of a round; other keys are ignored."""
        return cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})

    @classmethod
    def warning(cls, several: Sequence["EStepDiagnostics"]) -> str | None:
        """What is wrong with the posteriors of several questions as teachers (`training.gold_agreement`)."""
        shares, entropies = (
            [pair for one in several if (pair := one._pair(name)) is not None]
            for name in ("gold_share", "cross_entropy")
        )
        return teacher_warning(shares, entropies, several[0].likelihood_exponent)

    def _pair(self, name: str) -> tuple[float, float] | None:
        posterior, selector = getattr(self, f"posterior_{name}"), getattr(self, f"selector_{name}")
        return None if posterior is None or selector is None else (posterior, selector)

    @classmethod
    def mean(cls, several: Sequence["EStepDiagnostics"]) -> "EStepDiagnostics":
        """Means, each over the questions to which the number applies."""
        values: dict[str, list[float]] = defaultdict(list)
        for one in several:
            for name, value in one.to_dict().items():
                values[name].append(value)
        return cls(**{name: sum(found) / len(found) for name, found in values.items()})


@dataclass(frozen=True)
class Scored:
    """The m permutations of M that the generator scored."""

    index_m: Tensor
    """Their positions among the M."""
    weights_m: Tensor
    """Their posterior weights as a sample of the M: corrected for how they were chosen, summing to 1."""
    log_inclusion_m: Tensor
    """Log-probability of each to be among the scored."""
    residual_m: Tensor
    """log p_g of each less its prediction from the others, nats; 0 where there is none."""


@dataclass(frozen=True)
class ByToken:
    """The posterior of one question with a permutation drawn for every answer token."""

    weights_mL: Tensor
    """w: posterior over the permutations at each token; columns sum to 1."""
    log_marginal: float
    """log p(y|x), the sum over tokens, nats."""


@dataclass(frozen=True)
class DistinctPermutations:
    """The distinct permutations of a question, with what the M-step needs of each."""

    z_uK: Tensor
    log_p_old_u: Tensor
    weights_u: Tensor
    baseline_u: Tensor | None
    share_u: Tensor
    """Share of the draws that this permutation is: its weight in SelfAug."""
    weights_uL: Tensor | None = None
    """The weights at each answer token, where that is marginalised."""

    @classmethod
    def of(
        cls,
        drawn: Permutations,
        weights_m: Tensor,
        baseline_m: Tensor | None,
        weights_mL: Tensor | None = None,
    ) -> "DistinctPermutations":
        """Merge equal draws."""
        z_uK, inverse_m = drawn.distinct()
        first_u = torch.zeros(len(z_uK), dtype=torch.long).scatter_(0, inverse_m, torch.arange(len(inverse_m)))

        def added(values_m: Tensor) -> Tensor:
            return torch.zeros(len(z_uK), *values_m.shape[1:]).index_add(0, inverse_m, values_m)

        return cls(
            z_uK=z_uK,
            log_p_old_u=drawn.log_p[first_u],
            weights_u=added(weights_m),
            baseline_u=None if baseline_m is None else added(baseline_m),
            share_u=added(torch.full((len(inverse_m),), 1.0 / len(inverse_m))),
            weights_uL=None if weights_mL is None else added(weights_mL),
        )


def answer_sequence(generator: Generator, candidates: Candidates, z_K: Tensor, answer: str) -> AnswerSequence:
    """The generator's input for one permutation of one question's candidates: prompt and answer."""
    passages = [candidates.passages[i] for i in z_K.tolist()]
    return generator.answer_sequence(candidates.question, passages, answer)


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same in every process (unlike `hash`)."""
    digest = hashlib.blake2b("\x1f".join(str(p) for p in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
