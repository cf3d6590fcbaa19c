"""Everything that learns, behind one `forward`: the losses of the M-step (DRO) and of the alignment (SelfAug).

    L = - sum_j (w_j - b_j) log p_s(z_j|x) - sum_j w_j log p_g(y|x,d_zj) + alpha L_selfaug + lambda L_kl

L_kl is the KL from the untrained to the trained selector (`m_step.selector_kl`, 0 by default).

Where every answer token has its own posterior (RAG-Token), w_j stands before each token's log-probability.

Legend: R sequences of a micro-batch, H hidden size, N aligned positions, u distinct permutations.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from generator.adapters import BASE, ROLES
from generator.answer_sequences import AnswerSequence
from generator.generator import Generator
from generator.recomputation import Recomputation
from indexes.errors import UsageError
from retriever.selector import Selector
from training.config import DROConfig
from training.losses import (
    distillation_loss,
    distillation_target,
    generator_loss,
    lsr_loss,
    marginal_selector_loss,
    selector_loss,
    selfaug_loss,
    selfaug_positions,
)
from training.micro_batches import MicroBatch
from training.posterior import Posterior, answer_sequence, stable_seed

FIRST_KL_TOLERANCE = 1e-3
"""Nats per token that another batch shape may cost in bfloat16."""
ROUNDED_KL = 1e-6
"""The same in one shape: some architectures (Doge, Inkling) take other kernels where a gradient is wanted."""


class JointModel(nn.Module):
    """Everything that learns, behind one `forward`: base with adapters, retriever prior, question adapter.

    All passes go through this `forward`, because wrappers such as DDP and FSDP act on it and not on the parts.

    Args:
        selector: The selector; its language model and retriever adapter are the trained ones.
        generator: The generator over the same language model.
        config: Loss settings.
    """

    def __init__(self, selector: Selector, generator: Generator, config: DROConfig) -> None:
        super().__init__()
        self.language_model = selector.language_model
        self.selector_modules = selector.modules
        self.question_adapter = selector.retriever.adapter
        self.selector, self.generator, self.settings = selector, generator, config
        self._must_start_at_zero = self.language_model.is_untrained("generator")
        self._set_trainable()
        self._recomputation = Recomputation(self.language_model.base_model)

    def _set_trainable(self) -> None:
        config = self.settings
        wanted = {"selector": config.train_selector, "generator": config.train_generator}
        self.language_model.trainable_roles(tuple(role for role in ROLES if wanted[role]))
        # REPLUG's temperature of the retriever is a constant, and nothing but the retriever learns from it.
        self.selector.set_trainable(config.train_selector and config.retriever_training.objective != "lsr")
        teaches_retriever = config.train_selector and config.train_retriever
        self.question_adapter.requires_grad_(teaches_retriever and self.selector.uses_retriever_scores)

    def forward(self, micro_batch: MicroBatch) -> dict[str, Tensor]:
        """Sum over the micro-batch's questions of their losses, and its parts for logging."""
        # With gradient checkpointing a block's input is all that is kept of it anyway.
        with nullcontext() if self.language_model.is_checkpointing else self._recomputation.forward():
            found = self._loss(micro_batch)
        return found if micro_batch.counts else {name: 0 * value for name, value in found.items()}

    def _loss(self, micro_batch: MicroBatch) -> dict[str, Tensor]:
        if micro_batch.role == "selector":
            return self._selector_loss(micro_batch)
        return self._generator_loss(micro_batch)

    def parameter_groups(self, config: DROConfig | None = None, model: nn.Module | None = None) -> list[dict[str, Any]]:
        """Trainable parameters by learner, each with its learning rate and weight decay, as optimizers take them.

        Args:
            config: Rates and weight decay; None: the model's own.
            model: Whose trainable parameters are grouped: what wraps this module; None: this module. A parameter that
                no learner owns has the rates of the generator.

        Raises:
            UsageError: Nothing is trainable.
        """
        config = config or self.settings
        m_step, adapters = config.m_step, self.language_model.adapter_parameters
        rate, decay = m_step.learning_rate, m_step.weight_decay
        selector_rate = rate if m_step.selector_learning_rate is None else m_step.selector_learning_rate
        learners: list[tuple[Iterable[nn.Parameter], float, float]] = [
            (self.question_adapter.parameters(), config.retriever_training.learning_rate, 0.0),
            (self.selector_modules.parameters(), m_step.prior_learning_rate, 0.0),
            (adapters("selector").values(), selector_rate, decay),
            (adapters("generator").values(), rate, decay),
        ]
        group_of = {id(parameter): i for i, (mine, _, _) in enumerate(learners) for parameter in mine}
        groups: list[dict[str, Any]] = [{"params": [], "lr": lr, "weight_decay": d} for _, lr, d in learners]
        for parameter in (self if model is None else model).parameters():
            if parameter.requires_grad:
                groups[group_of.get(id(parameter), len(groups) - 1)]["params"].append(parameter)
        if not any(group["params"] for group in groups):
            raise UsageError(
                "Something must be there to train; these settings leave 0 parameters trainable. Set train_selector or "
                "train_generator, and let target_modules name layers of the base."
            )
        return [group for group in groups if group["params"]]

    # -- selector ----------------------------------------------------------------------------------------------

    def _selector_loss(self, micro_batch: MicroBatch) -> dict[str, Tensor]:
        if self.settings.retriever_training.objective == "lsr":
            loss = torch.stack(
                [
                    replug_loss(self.selector, p, self.settings.retriever_training.first_lsr_temperature)
                    for p in micro_batch.posteriors
                ]
            ).sum()
            return {"loss": loss, "retriever_loss": loss.detach()}
        through_prior = self.settings.retriever_training.objective != "distillation"
        losses_B, kl = self._selection_losses(micro_batch.posteriors, teach_retriever=through_prior)
        choices_B = torch.tensor([self._choices(p) for p in micro_batch.posteriors], device=losses_B.device)
        total = (choices_B * losses_B / self._tokens(self.selector.config.num_selected)).sum()
        found = {"loss": total, "selector_loss": total.detach()}
        if kl is not None:
            total = total + self.settings.m_step.selector_kl * kl
            found |= {"loss": total, "selector_kl": kl.detach()}
        if self.question_adapter.up.requires_grad and self.settings.retriever_training.objective != "prior":
            distilled = torch.stack([distilled_loss(self.selector, p) for p in micro_batch.posteriors]).sum()
            found |= {"loss": total + distilled, "retriever_loss": distilled.detach()}
        return found

    def _selection_losses(
        self, posteriors: Sequence[Posterior], *, teach_retriever: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Loss of each question `[B]`, and the sum of their KLs to the untrained selector where that has a weight."""
        if not self.settings.m_step.selector_kl:
            return selection_losses(self.selector, posteriors, teach_retriever=teach_retriever), None
        log_p, kl = self.selector.log_prob_and_kl(
            [p.candidates for p in posteriors],
            [p.distinct().z_uK for p in posteriors],
            teach_retriever=teach_retriever,
        )
        return _losses_of(posteriors, log_p), torch.stack(kl).sum()

    def _choices(self, posterior: Posterior) -> int:
        """How often a permutation is drawn for the answer: once, or, unless tokens are averaged, for each token."""
        by_token = posterior.by_token
        return 1 if by_token is None else by_token.weights_mL.shape[1] // self._tokens(by_token.weights_mL.shape[1])

    def _tokens(self, count: int) -> int:
        return count if self.settings.m_step.loss_normalization == "token" else 1

    # -- generator and SelfAug ---------------------------------------------------------------------------------

    def _generator_loss(self, micro_batch: MicroBatch) -> dict[str, Tensor]:
        sequences, weights_R, aligned = self.sequences(micro_batch)
        token_weights_N = self._token_weights(micro_batch)
        base_NH = self._base_hidden([sequences[i] for i in aligned.sequences], aligned) if aligned.sequences else None
        log_p_R, read = self.generator.score(sequences, token_weights_N)
        lengths_R = torch.tensor([self._tokens(len(one.answer_ids)) for one in sequences], device=log_p_R.device)
        weights_R = weights_R if token_weights_N is None else torch.ones_like(weights_R)  # they are in log_p_R
        nll = generator_loss(log_p_R / lengths_R, weights_R.to(log_p_R.device))
        if base_NH is None:
            return {"loss": nll, "generator_loss": nll.detach()}
        tuned_NH = read.hidden_at(aligned.sequences_N(read.hidden_TH.device), aligned.positions_N)
        kl = selfaug_loss(
            tuned_NH,
            base_NH,
            aligned.weights_N,
            self.language_model.head,
            direction=self.settings.selfaug.direction,
            chunk_tokens=self.settings.selfaug.chunk_tokens,
        )
        self._check_first_kl(kl, exact=len(aligned.sequences) == len(sequences))
        loss = nll + self.settings.selfaug.alpha * kl
        return {"loss": loss, "generator_loss": nll.detach(), "selfaug_kl": kl.detach()}

    def sequences(self, micro_batch: MicroBatch) -> tuple[list[AnswerSequence], Tensor, "_Aligned"]:
        """The generator's sequences of a micro-batch, the posterior weight of each, and those that SelfAug runs on."""
        sequences, weights_R, share_R = self._weighted_sequences(micro_batch)
        return sequences, weights_R, self._aligned_sequences(micro_batch, share_R)

    def _weighted_sequences(self, micro_batch: MicroBatch) -> tuple[list[AnswerSequence], Tensor, Tensor]:
        """The sequences of every question, with their posterior weight and their share of the draws."""
        sequences: list[AnswerSequence] = list(micro_batch.encoded or ())
        weights: list[Tensor] = []
        shares: list[Tensor] = []
        for number, posterior in enumerate(micro_batch.posteriors):
            d = posterior.distinct_scored()
            mine = list(micro_batch.permutations(number))
            if micro_batch.encoded is None:
                z_uK = d.z_uK[mine]
                sequences += [answer_sequence(self.generator, posterior.candidates, z, posterior.answer) for z in z_uK]
            weights.append(d.weights_u[mine])
            shares.append(d.share_u[mine])
        return sequences, torch.cat(weights), torch.cat(shares)

    def _token_weights(self, micro_batch: MicroBatch) -> Tensor | None:
        """The weight of each answer token of `_weighted_sequences`, in order; None for weights of whole answers."""
        if self.settings.e_step.marginalization != "token" or any(p.by_token is None for p in micro_batch.posteriors):
            return None
        weights: list[Tensor] = []
        for number, posterior in enumerate(micro_batch.posteriors):
            weights_uL = posterior.distinct_scored().weights_uL
            assert weights_uL is not None
            weights.append(weights_uL[list(micro_batch.permutations(number))].flatten())
        return torch.cat(weights).to(self.language_model.device)

    def _aligned_sequences(self, micro_batch: MicroBatch, share_R: Tensor) -> "_Aligned":
        if self.settings.selfaug.alpha == 0:
            return _Aligned([], [])
        if self.settings.selfaug.permutations == "all":
            chosen = torch.nonzero(share_R).flatten().tolist()
            return _Aligned(chosen, share_R[chosen].tolist())
        return self._one_per_question(micro_batch, share_R)

    def _one_per_question(self, micro_batch: MicroBatch, share_R: Tensor) -> "_Aligned":
        """One draw of each question, uniformly: it stands for all of them (unbiased)."""
        chosen: list[int] = []
        start = 0
        for number, posterior in enumerate(micro_batch.posteriors):
            share_u = posterior.distinct_scored().share_u
            seed = stable_seed(micro_batch.seed, posterior.example.id)
            drawn = int(torch.multinomial(share_u, 1, generator=torch.Generator().manual_seed(seed)))
            mine = micro_batch.permutations(number)
            if drawn in mine:
                chosen.append(start + mine.index(drawn))
            start += len(mine)
        return _Aligned(chosen, [1.0] * len(chosen))

    @torch.no_grad()
    def _base_hidden(self, sequences: list[AnswerSequence], aligned: "_Aligned") -> Tensor:
        """Reference hidden states at the aligned positions `[N, H]`: the adapters off, no graph."""
        with self.language_model.use(BASE):
            read = self.generator.forward(sequences)
        aligned.sequence_of_N, aligned.positions_N, aligned.weights_N = selfaug_positions(
            read.prompt_lengths_B, torch.tensor(aligned.sequence_weights, device=read.hidden_TH.device)
        )
        return read.hidden_at(aligned.sequence_of_N, aligned.positions_N)

    def _check_first_kl(self, kl: Tensor, *, exact: bool) -> None:
        """Before the first update the tuned model *is* the base, so anything but 0 means a broken reference.

        When the reference sees only some of the sequences, its batch has another shape and kernels may round otherwise.
        """
        if not self._must_start_at_zero:
            return
        value = float(kl.detach())
        allowed = ROUNDED_KL if exact else FIRST_KL_TOLERANCE
        if self.language_model.is_untrained("generator") and abs(value) > allowed:
            raise RuntimeError(
                f"SelfAug's KL must be exactly 0 before the first update; it is {value:.3e}. The reference "
                "pass does not see the same distribution (active dropout, or a wrapper that hides the adapters)."
            )
        self._must_start_at_zero = False


def selection_losses(selector: Selector, posteriors: Sequence[Posterior], *, teach_retriever: bool = True) -> Tensor:
    """Loss of each question `[B]`, with gradient to the selector and, through its prior, to the question adapter."""
    candidates = [p.candidates for p in posteriors]
    log_p = selector.log_prob(candidates, [p.distinct().z_uK for p in posteriors], teach_retriever=teach_retriever)
    return _losses_of(posteriors, log_p)


def _losses_of(posteriors: Sequence[Posterior], log_p: Sequence[Tensor]) -> Tensor:
    """Loss of each question `[B]` from the log-probabilities of its distinct permutations."""
    losses = []
    for d, log_p_u in zip((p.distinct() for p in posteriors), log_p, strict=True):
        device = log_p_u.device
        weights_u = d.weights_u.to(device)
        if d.baseline_u is None:
            losses.append(selector_loss(log_p_u, weights_u))
        else:
            old_u, baseline_u = d.log_p_old_u.to(device), d.baseline_u.to(device)
            losses.append(marginal_selector_loss(log_p_u, old_u, weights_u, baseline_u))
    return torch.stack(losses)


def distilled_loss(selector: Selector, posterior: Posterior) -> Tensor:
    """Of the selector's retriever, for one question, with gradient to its question adapter."""
    candidates = posterior.candidates
    found_n = selector.retriever_logits(candidates.scores)
    expected_n = posterior.expected_marginals()
    target_n = distillation_target(
        posterior.marginals().to(found_n),
        None if expected_n is None else expected_n.to(found_n),
        found_n,
        len(posterior.permutations),
    )
    return distillation_loss(selector.retriever_logits(selector.retriever.score(candidates)), target_n)


def replug_loss(selector: Selector, posterior: Posterior, temperature: float) -> Tensor:
    """Of the selector's retriever, for one question whose permutations are its single candidates."""
    candidates = posterior.candidates
    logits_n = selector.retriever_logits(selector.retriever.score(candidates))
    log_likelihood_n = torch.empty(len(candidates))
    log_likelihood_n[posterior.permutations.z[:, 0]] = posterior.log_likelihood_m
    return lsr_loss(logits_n, log_likelihood_n.to(logits_n.device), temperature)


class _Aligned:
    """The sequences SelfAug runs on, and (once the reference has run) its positions."""

    def __init__(self, sequences: list[int], sequence_weights: list[float]) -> None:
        self.sequences = sequences
        self.sequence_weights = sequence_weights
        self.sequence_of_N = torch.empty(0, dtype=torch.long)
        self.positions_N = torch.empty(0, dtype=torch.long)
        self.weights_N = torch.empty(0)

    def sequences_N(self, device: torch.device) -> Tensor:
        """Sequence of the micro-batch for each aligned position."""
        return torch.tensor(self.sequences, device=device)[self.sequence_of_N]
