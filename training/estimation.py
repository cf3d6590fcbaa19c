"""The E-step: which permutations of documents explain the answer (DRO, arXiv 2505.03075, section on estimation).

    candidates <- retriever.search(x)
    z_1..z_m   <- proposal q (the selector, tempered; or every permutation)
    log omega  <- log p_s(z|x) - log q(z|x) + log p_g(y|x, d_z)
    w          <- softmax(log omega)

Legend: m permutations, u distinct ones among them, K selected, n candidates.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from generator.generator import AnswerRow, Generator
from retriever.dense import Candidates, DenseRetriever
from retriever.permutations import Permutations
from retriever.selector import Selector
from training.config import DROConfig
from training.data import QAExample, draw_alias
from training.losses import (
    baseline_weights,
    effective_sample_size,
    log_importance_weights,
    log_marginal,
    posterior_weights,
)


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
    """log p_g(y | x, d_z), nats, sum over answer tokens."""
    weights_m: Tensor
    """w: posterior over the drawn permutations."""
    baseline_m: Tensor | None
    """b: control variate, None for the paper's estimator (and in warm-up)."""
    log_omega_m: Tensor

    def marginals(self) -> Tensor:
        """Posterior probability that each candidate is read `[n]`; sums to K."""
        z_mK = self.permutations.z_mK
        weights_mK = self.weights_m[:, None].expand_as(z_mK)
        return torch.zeros(len(self.candidates)).index_add(0, z_mK.flatten(), weights_mK.flatten())

    def distinct(self) -> "DistinctPermutations":
        """Each different permutation once; weights of duplicates are added, so multiplicity is kept."""
        z_uK, inverse_m = self.permutations.distinct()
        first_u = torch.zeros(len(z_uK), dtype=torch.long).scatter_(0, inverse_m, torch.arange(len(inverse_m)))

        def added(values_m: Tensor) -> Tensor:
            return torch.zeros(len(z_uK)).index_add(0, inverse_m, values_m)

        return DistinctPermutations(
            z_uK=z_uK,
            log_p_old_u=self.permutations.log_p_m[first_u],
            weights_u=added(self.weights_m),
            baseline_u=None if self.baseline_m is None else added(self.baseline_m),
            share_u=added(torch.full((len(inverse_m),), 1.0 / len(inverse_m))),
        )

    def telemetry(self) -> dict[str, float]:
        """Health of this E-step: ESS, share of distinct permutations, and `log_marginal`.

        The last is the importance-weighted ELBO, an estimate of log p(y|x) from below (exact under enumeration).
        """
        d = self.distinct()
        return {
            "ess": float(effective_sample_size(self.weights_m)),
            "distinct_permutations": len(d.z_uK) / len(self.permutations),
            "log_marginal": float(log_marginal(self.log_omega_m)),
            "log_likelihood": float((self.weights_m * self.log_likelihood_m).sum()),
            "posterior_entropy": float(torch.special.entr(d.weights_u).sum()),
            "permutations": len(self.permutations),
            **self._gold(d),
        }

    def _gold(self, d: "DistinctPermutations") -> dict[str, float]:
        """Whether the heaviest permutation reads all gold passages; nothing where they are not known."""
        if not self.example.gold_ids:
            return {}
        read = {self.candidates.ids[i] for i in d.z_uK[int(d.weights_u.argmax())].tolist()}
        return {"best_holds_gold": float(read >= set(self.example.gold_ids))}


@dataclass(frozen=True)
class DistinctPermutations:
    """The distinct permutations of a question, with what the M-step needs of each."""

    z_uK: Tensor
    log_p_old_u: Tensor
    weights_u: Tensor
    baseline_u: Tensor | None
    share_u: Tensor
    """Share of the m draws that this permutation is: the row weights of SelfAug."""


class EStep:
    """Turns questions with golden answers into posteriors.

    Args:
        retriever: Finds candidates.
        selector: Proposes permutations.
        generator: Judges them by the answer.
        config: Sizes, proposal, options.
    """

    def __init__(self, retriever: DenseRetriever, selector: Selector, generator: Generator, config: DROConfig) -> None:
        self.retriever = retriever
        self.selector = selector
        self.generator = generator
        self.config = config

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
        size = self.config.questions_per_batch
        posteriors: list[Posterior] = []
        for start in range(0, len(examples), size):
            batch = examples[start : start + size]
            posteriors += self._estimate(batch, round)
            progress(len(batch))
        return posteriors

    def _estimate(self, examples: Sequence[QAExample], round: int) -> list[Posterior]:
        found = self.retriever.search([e.question for e in examples], self.selector.config.num_candidates)
        candidates = [self._in_training_order(c, e, round) for c, e in zip(found, examples, strict=True)]
        answers = [draw_alias(e, seed=self.config.seed, round=round) for e in examples]
        permutations = self._propose(candidates, examples, answers, round)
        log_likelihoods = self._log_likelihoods(candidates, permutations, answers)
        return [
            self._posterior(*parts)
            for parts in zip(examples, answers, candidates, permutations, log_likelihoods, strict=True)
        ]

    def _in_training_order(self, candidates: Candidates, example: QAExample, round: int) -> Candidates:
        if self.config.candidate_order == "retriever":
            return candidates
        generator = torch.Generator().manual_seed(stable_seed(self.config.seed, round, "order", example.id))
        return candidates.reordered(torch.randperm(len(candidates), generator=generator).tolist())

    def _propose(
        self, candidates: Sequence[Candidates], examples: Sequence[QAExample], answers: Sequence[str], round: int
    ) -> list[Permutations]:
        if self.config.exact:
            return self.selector.enumerate(candidates)
        seed = stable_seed(self.config.seed, round, "proposal", *(e.id for e in examples))
        return self.selector.sample(
            candidates,
            self.config.num_samples,
            temperature=self.config.proposal_temperature,
            guides=self._guides(candidates, answers) if self.config.guidance else None,
            replacement=self.config.replacement,
            generator=torch.Generator().manual_seed(seed),
        )

    def _guides(self, candidates: Sequence[Candidates], answers: Sequence[str]) -> list[Tensor]:
        """Per question gamma log p(y | x, d_i) of every candidate alone `[n]`."""
        rows = [
            self.generator.row(c.question, [p], y) for c, y in zip(candidates, answers, strict=True) for p in c.passages
        ]
        scaled_R = self.config.guidance * self.generator.log_probs(rows)
        return list(scaled_R.split([len(c) for c in candidates]))

    def _log_likelihoods(
        self, candidates: Sequence[Candidates], permutations: Sequence[Permutations], answers: Sequence[str]
    ) -> list[Tensor]:
        """Log p_g per question `[m]`; each distinct permutation is scored once."""
        rows: list[AnswerRow] = []
        inverses: list[Tensor] = []
        for one, drawn, answer in zip(candidates, permutations, answers, strict=True):
            z_uK, inverse_m = drawn.distinct()
            inverses.append(inverse_m + len(rows))
            rows += [answer_row(self.generator, one, z_K, answer) for z_K in z_uK]
        log_p_R = self.generator.log_probs(rows)
        return [log_p_R[inverse_m] for inverse_m in inverses]

    def _posterior(
        self,
        example: QAExample,
        answer: str,
        candidates: Candidates,
        permutations: Permutations,
        log_likelihood_m: Tensor,
    ) -> Posterior:
        # The mean over tokens is the same utility at temperature |y|: an option with its name, never the default.
        length = len(self.generator.encode_answer(answer)) if self.config.likelihood == "mean" else 1
        log_omega_m = log_importance_weights(permutations.log_p_m, permutations.log_q_m, log_likelihood_m / length)
        baseline_m = baseline_weights(permutations.log_p_m, permutations.log_q_m)
        return Posterior(
            example=example,
            answer=answer,
            candidates=candidates,
            permutations=permutations,
            log_likelihood_m=log_likelihood_m,
            weights_m=posterior_weights(log_omega_m),
            baseline_m=baseline_m if self.config.control_variate else None,
            log_omega_m=log_omega_m,
        )


def answer_row(generator: Generator, candidates: Candidates, z_K: Tensor, answer: str) -> AnswerRow:
    """The generator's row for one permutation of one question's candidates."""
    passages = [candidates.passages[i] for i in z_K.tolist()]
    return generator.row(candidates.question, passages, answer)


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same in every process (unlike `hash`)."""
    digest = hashlib.blake2b("\x1f".join(str(p) for p in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
