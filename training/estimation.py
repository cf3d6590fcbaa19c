"""The E-step: which permutations of documents explain the answer (DRO, arXiv 2505.03075, section on estimation).

    candidates <- retriever.search(x)
    z_1..z_M   <- proposal q (the selector at a temperature; or every permutation)
    log p_g    <- the generator scores m of them; the others are guessed from those (proposals_per_sample)
    log omega  <- log p_s(z|x) - log q(z|x) + tau log p_g(y|x, d_z)
    w          <- softmax(log omega)

Where a list is drawn anew for every answer token (`marginalization="token"`), there is a weight for each token.

tau is 1 in the paper; below 1 it flattens a posterior that is too sharp (`likelihood_exponent`).

Legend: m permutations (M, where only m of them are scored), u distinct ones among them, K selected, n candidates,
L answer tokens.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from generator.generator import AnswerRow, Generator
from indexes.corpora.chunk_ids import gold_document
from indexes.errors import UsageError
from retriever.dense import Candidates, Retriever
from retriever.permutations import Permutations
from retriever.selector import SamplingConfig, Selector
from training.config import DROConfig
from training.imputation import Surrogate, choose, features
from training.losses import (
    baseline_weights,
    effective_sample_size,
    log_importance_weights,
    log_marginal,
    posterior_weights,
    token_posterior_weights,
)
from training.questions.example import QAExample
from training.questions.loading import draw_alias
from training.questions.self_retrieval import retrieve


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
    """log p_g(y | x, d_z), nats, sum over answer tokens; a guess where it was not scored."""
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

    def marginals(self) -> Tensor:
        """Posterior probability that each candidate is read `[n]`; sums to K."""
        return self._read(self.weights_m)

    def expected_marginals(self) -> Tensor | None:
        """The same before the answer was seen, by b; None for a single permutation that was given, and not drawn."""
        if self.baseline_m is not None:
            return self._read(self.baseline_m)
        drawn = self.permutations
        return None if len(drawn) == 1 else self._read(baseline_weights(drawn.log_p_m, drawn.log_q_m))

    def _read(self, weights_m: Tensor) -> Tensor:
        z_mK = self.permutations.z_mK
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

    def telemetry(self) -> dict[str, float]:
        """Health of this E-step: ESS, share of distinct permutations, and `log_marginal`.

        The last is the importance-weighted ELBO, an estimate of log p(y|x) from below (exact under enumeration); where
        likelihoods are guessed, it is as good as the guesses.
        """
        d = self.distinct()
        return {
            "ess": float(effective_sample_size(self.weights_m)),
            "distinct_permutations": len(d.z_uK) / len(self.permutations),
            "log_marginal": float(log_marginal(self.log_omega_m))
            if self.by_token is None
            else self.by_token.log_marginal,
            "log_likelihood": float((self.weights_m * self.log_likelihood_m).sum()),
            "posterior_entropy": float(torch.special.entr(d.weights_u).sum()),
            "permutations": len(self.permutations),
            "likelihood_exponent": self.exponent,
            **self._of_scored(),
            **self._gold(d),
        }

    def _of_scored(self) -> dict[str, float]:
        """How many were scored, how much of the weight they have, and how far off the guesses may be."""
        if self.scored is None:
            return {}
        return {
            "scored_permutations": len(self.scored.index_m),
            "scored_weight": float(self.weights_m[self.scored.index_m].sum()),
            "scored_ess": float(effective_sample_size(self.scored.weights_m)),
            "imputation_rmse": float(self.scored.residual_m.square().mean().sqrt()),
        }

    def _gold(self, d: "DistinctPermutations") -> dict[str, float]:
        """Whether the heaviest permutation reads all gold passages; nothing where they are not known."""
        if not self.example.gold_ids:
            return {}
        ids, gold_ids = self.candidates.ids, self.example.gold_ids
        read = {gold_document(ids[i], gold_ids) for i in d.z_uK[int(d.weights_u.argmax())].tolist()}
        return {"best_holds_gold": float(read >= set(gold_ids))}


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
    """log p_g of each less what would have been guessed without it, nats; 0 where that cannot be told."""


@dataclass(frozen=True)
class ByToken:
    """The posterior of one question where a list is drawn anew for every answer token."""

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
    """Share of the draws that this permutation is: the row weights of SelfAug."""
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
            log_p_old_u=drawn.log_p_m[first_u],
            weights_u=added(weights_m),
            baseline_u=None if baseline_m is None else added(baseline_m),
            share_u=added(torch.full((len(inverse_m),), 1.0 / len(inverse_m))),
            weights_uL=None if weights_mL is None else added(weights_mL),
        )


@dataclass(frozen=True)
class _Case:
    """One question on its way through the E-step."""

    example: QAExample
    answer: str
    candidates: Candidates
    single_passage_log_likelihood_n: Tensor | None = None
    """Log-likelihood of the answer given each candidate alone, where it is needed."""


class EStep:
    """Turns questions with golden answers into posteriors.

    Args:
        retriever: Finds candidates.
        selector: Proposes permutations.
        generator: Judges them by the answer.
        config: Sizes, proposal, options.

    Raises:
        UsageError: retriever_objective="lsr" and a selector that picks more than one.
    """

    def __init__(self, retriever: Retriever, selector: Selector, generator: Generator, config: DROConfig) -> None:
        if config.retriever_training.objective == "lsr" and selector.config.num_selected != 1:
            raise UsageError(
                "retriever_objective='lsr' judges each candidate alone: num_selected must be 1; "
                f"{selector.config.num_selected} came."
            )
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
        size = self.config.e_step.batch_size
        posteriors: list[Posterior] = []
        for start in range(0, len(examples), size):
            batch = examples[start : start + size]
            posteriors += self._estimate(batch, round)
            progress(len(batch))
        return posteriors

    def _estimate(self, examples: Sequence[QAExample], round: int) -> list[Posterior]:
        cases = self._cases(examples, round)
        permutations = self._propose(cases, round)
        if self.config.e_step.marginalization == "token":
            return self._by_token(cases, permutations)
        chosen = [self._choose(case, drawn, round) for case, drawn in zip(cases, permutations, strict=True)]
        z = [drawn.z_mK[index_m] for drawn, (index_m, _) in zip(permutations, chosen, strict=True)]
        log_likelihoods = self._log_likelihoods(cases, z)
        if not self._oversamples:
            return [self._posterior(*parts) for parts in zip(cases, permutations, log_likelihoods, strict=True)]
        return self._imputed(cases, permutations, chosen, log_likelihoods)

    def _cases(self, examples: Sequence[QAExample], round: int) -> list[_Case]:
        n = self.selector.config.num_candidates
        found = retrieve(self.retriever, examples, max(n, self.config.e_step.candidate_pool or n))
        cases = [
            _Case(
                e,
                draw_alias(e, seed=self.config.seed, round=round),
                self._in_training_order(self._explored(c, e, round), e, round),
            )
            for c, e in zip(found, examples, strict=True)
        ]
        return self._single_passage_log_likelihoods(cases) if self._oversamples else cases

    @property
    def _oversamples(self) -> bool:
        return self.config.e_step.proposals_per_sample > 1 and not self.config.e_step.exact

    def _explored(self, found: Candidates, example: QAExample, round: int) -> Candidates:
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

    def _single_passage_log_likelihoods(self, cases: Sequence[_Case]) -> list[_Case]:
        """The same with log p(y | x, d_i) of every candidate alone."""
        rows = [self.generator.row(c.candidates.question, [p], c.answer) for c in cases for p in c.candidates.passages]
        alone = self.generator.log_probs(rows).split([len(c.candidates) for c in cases])
        return [
            replace(case, single_passage_log_likelihood_n=single_passage_log_likelihood_n)
            for case, single_passage_log_likelihood_n in zip(cases, alone, strict=True)
        ]

    def _propose(self, cases: Sequence[_Case], round: int) -> list[Permutations]:
        config, candidates = self.config.e_step, [c.candidates for c in cases]
        if config.exact:
            return self.selector.enumerate(candidates)
        seed = stable_seed(self.config.seed, round, "proposal", *(c.example.id for c in cases))
        sampling = SamplingConfig(
            num_permutations=config.num_permutations * config.proposals_per_sample,
            temperature=config.proposal_temperature,
            replacement=config.replacement,
        )
        return self.selector.propose(
            candidates,
            sampling,
            generator=torch.Generator().manual_seed(seed),
        )

    def _choose(self, case: _Case, drawn: Permutations, round: int) -> tuple[Tensor, Tensor]:
        """Positions of the permutations to score, and the log-probability that each is one of them."""
        if not self._oversamples:
            return torch.arange(len(drawn)), torch.zeros(len(drawn))
        m = self.config.e_step.num_permutations
        seed = stable_seed(self.config.seed, round, "scored", case.example.id, m)
        return choose(
            self.config.e_step.likelihood_exponent
            * features(_present(case.single_passage_log_likelihood_n), drawn.z_mK),
            drawn.log_p_m - drawn.log_q_m,
            m,
            torch.Generator().manual_seed(seed),
        )

    def _log_likelihoods(self, cases: Sequence[_Case], permutations: Sequence[Tensor]) -> list[Tensor]:
        """Log p_g per question `[m]` of given permutations `[m, K]`; equal ones are scored once."""
        distinct = [list(dict.fromkeys(map(tuple, z_mK.tolist()))) for z_mK in permutations]
        sequences = [
            answer_row(self.generator, case.candidates, torch.tensor(z), case.answer)
            for case, of_case in zip(cases, distinct, strict=True)
            for z in of_case
        ]
        scores = self.generator.log_probs(sequences).split([len(of_case) for of_case in distinct])
        known = [
            dict(zip(of_case, found.tolist(), strict=True)) for of_case, found in zip(distinct, scores, strict=True)
        ]
        return [
            torch.tensor([of_case[tuple(z)] for z in z_mK.tolist()])
            for of_case, z_mK in zip(known, permutations, strict=True)
        ]

    def _by_token(self, cases: Sequence[_Case], permutations: Sequence[Permutations]) -> list[Posterior]:
        """Posteriors at every answer token, over permutations that are all scored."""
        rows = [
            answer_row(self.generator, case.candidates, z_K, case.answer)
            for case, drawn in zip(cases, permutations, strict=True)
            for z_K in drawn.z_mK
        ]
        found = iter(self.generator.token_log_probs(rows))
        posteriors = []
        for case, drawn in zip(cases, permutations, strict=True):
            log_p_mL = torch.stack([next(found) for _ in range(len(drawn))])
            weights_mL, log_marginal = token_posterior_weights(drawn.log_p_m, drawn.log_q_m, log_p_mL)
            # No control variate: over all permutations the selector's gradient has no noise to take away.
            whole = replace(self._posterior(case, drawn, log_p_mL.sum(-1)), baseline_m=None)
            by_token = ByToken(weights_mL, float(log_marginal))
            posteriors.append(replace(whole, weights_m=weights_mL.mean(-1), by_token=by_token))
        return posteriors

    def _imputed(
        self,
        cases: Sequence[_Case],
        permutations: Sequence[Permutations],
        chosen: Sequence[tuple[Tensor, Tensor]],
        log_likelihoods: Sequence[Tensor],
    ) -> list[Posterior]:
        """Posteriors over all permutations that were drawn; the log-likelihoods that are missing are guessed."""
        said = [
            features(_present(c.single_passage_log_likelihood_n), p.z_mK)
            for c, p in zip(cases, permutations, strict=True)
        ]
        scored = [x_MF[index_m] for x_MF, (index_m, _) in zip(said, chosen, strict=True)]
        surrogate = Surrogate.fit(scored, log_likelihoods)
        posteriors = []
        for case, drawn, x_MF, (index_m, log_inclusion_m), y_m in zip(
            cases, permutations, said, chosen, log_likelihoods, strict=True
        ):
            log_likelihood_M = surrogate.complete(x_MF, index_m, y_m).clamp_max(0.0).scatter(-1, index_m, y_m)
            whole = self._posterior(case, drawn, log_likelihood_M)
            weights_m = posterior_weights(whole.log_omega_m[index_m] - log_inclusion_m)
            residual_m = surrogate.residuals(x_MF[index_m], y_m)
            posteriors.append(replace(whole, scored=Scored(index_m, weights_m, log_inclusion_m, residual_m)))
        return posteriors

    def _posterior(self, case: _Case, permutations: Permutations, log_likelihood_m: Tensor) -> Posterior:
        exponent = self.config.e_step.likelihood_exponent
        log_omega_m = log_importance_weights(permutations.log_p_m, permutations.log_q_m, exponent * log_likelihood_m)
        baseline_m = baseline_weights(permutations.log_p_m, permutations.log_q_m)
        return Posterior(
            example=case.example,
            answer=case.answer,
            candidates=case.candidates,
            permutations=permutations,
            log_likelihood_m=log_likelihood_m,
            weights_m=posterior_weights(log_omega_m),
            baseline_m=baseline_m if self.config.e_step.control_variate else None,
            log_omega_m=log_omega_m,
            exponent=exponent,
        )


def _present(single_passage_log_likelihood_n: Tensor | None) -> Tensor:
    assert single_passage_log_likelihood_n is not None, "each candidate alone was not heard"
    return single_passage_log_likelihood_n


def answer_row(generator: Generator, candidates: Candidates, z_K: Tensor, answer: str) -> AnswerRow:
    """The generator's row for one permutation of one question's candidates."""
    passages = [candidates.passages[i] for i in z_K.tolist()]
    return generator.row(candidates.question, passages, answer)


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same in every process (unlike `hash`)."""
    digest = hashlib.blake2b("\x1f".join(str(p) for p in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
