"""The M-step: make good permutations and good answers likelier (DRO), without forgetting the base (SelfAug).

    L = - sum_j (w_j - b_j) log p_s(z_j|x) - sum_j w_j log p_g(y|x,d_zj) + alpha L_selfaug

Where every answer token has its own posterior (RAG-Token), w_j stands before each token's log-probability.

It runs on `transformers.Trainer`. One optimizer step takes whole questions; each question becomes micro-batches
of *one role each* (one for the selector, one or more for the generator), whose backward runs before the adapter
switches. Every micro-batch's loss is divided by the number of questions of the step, so the sum over the step is
the mean over questions.

Legend: R rows of a micro-batch, T tokens, H hidden size, N aligned positions, u distinct permutations.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from generator.generator import AnswerRow, Generator
from generator.language_model import BASE, ROLES
from indexes.errors import UsageError
from retriever.selector import Selector
from training.config import DROConfig
from training.estimation import Posterior, answer_row, stable_seed
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
from training.tracking import RunCallbacks

FIRST_KL_TOLERANCE = 1e-3
"""Nats per token that another batch shape may cost in bfloat16."""
ROUNDED_KL = 1e-6
"""The same in one shape: some architectures (Doge, Inkling) take other kernels where a gradient is wanted."""


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward sees: some questions, one role."""

    role: str
    posteriors: tuple[Posterior, ...]
    part: int = 0
    """Which share of each question's generator rows."""
    parts: int = 1
    """Shares in all: the same for every question, so that all processes make the same number of passes."""
    num_questions: int = 0
    """Questions this micro-batch starts (0 for a later micro-batch of the same questions)."""
    seed: int = 0
    """Draws the aligned row when SelfAug runs on one of them."""


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
        self._selector, self._generator, self._config = selector, generator, config
        self._must_start_at_zero = self.language_model.is_untrained("generator")
        self._set_trainable()

    def _set_trainable(self) -> None:
        config = self._config
        wanted = {"selector": config.train_selector, "generator": config.train_generator}
        self.language_model.trainable_roles(tuple(role for role in ROLES if wanted[role]))
        # REPLUG's temperature of the retriever is a constant, and nothing but the retriever learns from it.
        self._selector.set_trainable(config.train_selector and config.retriever_training.objective != "lsr")
        teaches_retriever = config.train_selector and config.train_retriever
        self.question_adapter.requires_grad_(teaches_retriever and self._selector.uses_retriever_scores)

    def forward(self, micro_batch: MicroBatch) -> dict[str, Tensor]:
        """Sum over the micro-batch's questions of their losses, and its parts for logging."""
        if micro_batch.role == "selector":
            return self._selector_loss(micro_batch)
        return self._generator_loss(micro_batch)

    # -- selector ----------------------------------------------------------------------------------------------

    def _selector_loss(self, micro_batch: MicroBatch) -> dict[str, Tensor]:
        if self._config.retriever_training.objective == "lsr":
            alone = torch.stack(
                [
                    replug_loss(self._selector, p, self._config.retriever_training.lsr_temperature)
                    for p in micro_batch.posteriors
                ]
            ).sum()
            return {"loss": alone, "retriever_loss": alone.detach()}
        through_prior = self._config.retriever_training.objective != "distillation"
        losses_B = selection_losses(self._selector, micro_batch.posteriors, teach_retriever=through_prior)
        choices_B = torch.tensor([self._choices(p) for p in micro_batch.posteriors], device=losses_B.device)
        total = (choices_B * losses_B / self._tokens(self._selector.config.num_selected)).sum()
        found = {"loss": total, "selector_loss": total.detach()}
        if self.question_adapter.up_dr.requires_grad and self._config.retriever_training.objective != "prior":
            distilled = torch.stack([distilled_loss(self._selector, p) for p in micro_batch.posteriors]).sum()
            found |= {"loss": total + distilled, "retriever_loss": distilled.detach()}
        return found

    def _choices(self, posterior: Posterior) -> int:
        """How often a list is drawn for this answer: once, or, unless its tokens are averaged, for each token."""
        by_token = posterior.by_token
        return 1 if by_token is None else by_token.weights_mL.shape[1] // self._tokens(by_token.weights_mL.shape[1])

    def _tokens(self, count: int) -> int:
        return count if self._config.m_step.loss_normalization == "token" else 1

    # -- generator and SelfAug ---------------------------------------------------------------------------------

    def _generator_loss(self, micro_batch: MicroBatch) -> dict[str, Tensor]:
        rows, weights_R, aligned = self.rows(micro_batch)
        token_weights_N = self._token_weights(micro_batch)
        base_NH = self._base_hidden([rows[i] for i in aligned.rows], aligned) if aligned.rows else None
        log_p_R, hidden_RTH = self._generator.score(rows, token_weights_N)
        lengths_R = torch.tensor([self._tokens(len(row.answer_ids)) for row in rows], device=log_p_R.device)
        weights_R = weights_R if token_weights_N is None else torch.ones_like(weights_R)  # they are in log_p_R
        nll = generator_loss(log_p_R / lengths_R, weights_R.to(log_p_R.device))
        if base_NH is None:
            return {"loss": nll, "generator_loss": nll.detach()}
        tuned_NH = hidden_RTH[aligned.rows_N(hidden_RTH.device), aligned.positions_N]
        kl = selfaug_loss(
            tuned_NH,
            base_NH,
            aligned.weights_N,
            self.language_model.head,
            direction=self._config.selfaug.direction,
            chunk_tokens=self._config.selfaug.chunk_tokens,
        )
        self._check_first_kl(kl, exact=len(aligned.rows) == len(rows))
        loss = nll + self._config.selfaug.alpha * kl
        return {"loss": loss, "generator_loss": nll.detach(), "selfaug_kl": kl.detach()}

    def rows(self, micro_batch: MicroBatch) -> tuple[list[AnswerRow], Tensor, "_Aligned"]:
        """The generator's rows of a micro-batch, the posterior weight of each, and those that SelfAug runs on."""
        rows, weights_R, share_R = self._weighted_rows(micro_batch)
        return rows, weights_R, self._aligned_rows(micro_batch, share_R)

    def _weighted_rows(self, micro_batch: MicroBatch) -> tuple[list[AnswerRow], Tensor, Tensor]:
        """This part's rows of every question, with their posterior weight and their share of the draws."""
        rows: list[AnswerRow] = []
        weights: list[Tensor] = []
        shares: list[Tensor] = []
        for posterior in micro_batch.posteriors:
            d = posterior.distinct_scored()
            mine = torch.tensor(range(micro_batch.part, len(d.z_uK), micro_batch.parts), dtype=torch.long)
            if len(mine) == 0:  # fewer distinct rows than parts: a row of weight 0 keeps the passes in step
                rows.append(answer_row(self._generator, posterior.candidates, d.z_uK[0], posterior.answer))
                weights.append(torch.zeros(1))
                shares.append(torch.zeros(1))
                continue
            rows += [answer_row(self._generator, posterior.candidates, d.z_uK[i], posterior.answer) for i in mine]
            weights.append(d.weights_u[mine])
            shares.append(d.share_u[mine])
        return rows, torch.cat(weights), torch.cat(shares)

    def _token_weights(self, micro_batch: MicroBatch) -> Tensor | None:
        """The weight of every answer token of `_weighted_rows`, row by row; None where whole answers are weighed."""
        if self._config.e_step.marginalization != "token" or any(p.by_token is None for p in micro_batch.posteriors):
            return None
        weights: list[Tensor] = []
        for posterior in micro_batch.posteriors:
            weights_uL = posterior.distinct_scored().weights_uL
            assert weights_uL is not None
            mine = weights_uL[micro_batch.part :: micro_batch.parts]
            weights.append(mine.flatten() if len(mine) else torch.zeros_like(weights_uL[0]))
        return torch.cat(weights).to(self.language_model.device)

    def _aligned_rows(self, micro_batch: MicroBatch, share_R: Tensor) -> "_Aligned":
        if self._config.selfaug.alpha == 0:
            return _Aligned([], [])
        if self._config.selfaug.permutations == "all":
            chosen = torch.nonzero(share_R).flatten().tolist()
            return _Aligned(chosen, share_R[chosen].tolist())
        return self._one_row_each(micro_batch, share_R)

    def _one_row_each(self, micro_batch: MicroBatch, share_R: Tensor) -> "_Aligned":
        """One draw of each question, uniformly: it stands for all of them (unbiased)."""
        chosen: list[int] = []
        start = 0
        for posterior in micro_batch.posteriors:
            share_u = posterior.distinct_scored().share_u
            seed = stable_seed(micro_batch.seed, posterior.example.id)
            drawn = int(torch.multinomial(share_u, 1, generator=torch.Generator().manual_seed(seed)))
            mine = range(micro_batch.part, len(share_u), micro_batch.parts)
            if drawn in mine:
                chosen.append(start + mine.index(drawn))
            start += max(len(mine), 1)
        return _Aligned(chosen, [1.0] * len(chosen))

    @torch.no_grad()
    def _base_hidden(self, rows: list[AnswerRow], aligned: "_Aligned") -> Tensor:
        """Reference hidden states at the aligned positions `[N, H]`: the adapters off, no graph."""
        with self.language_model.use(BASE):
            hidden_ATH, _, prompt_A, _ = self._generator.forward(rows)
        aligned.row_of_N, aligned.positions_N, aligned.weights_N = selfaug_positions(
            prompt_A, torch.tensor(aligned.row_weights, device=hidden_ATH.device)
        )
        return hidden_ATH[aligned.row_of_N, aligned.positions_N]

    def _check_first_kl(self, kl: Tensor, *, exact: bool) -> None:
        """Before the first update the tuned model *is* the base, so anything but 0 means a broken reference.

        When the reference sees only some of the rows, its batch has another shape and kernels may round otherwise.
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
    """Of each question `[B]`, with gradient to the selector and, through its prior, to the question adapter."""
    distinct = [p.distinct() for p in posteriors]
    candidates = [p.candidates for p in posteriors]
    log_p = selector.log_prob(candidates, [d.z_uK for d in distinct], teach_retriever=teach_retriever)
    losses = []
    for d, log_p_u in zip(distinct, log_p, strict=True):
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
    found_n = selector.retriever_logits(candidates.scores_n)
    expected_n = posterior.expected_marginals()
    target_n = distillation_target(
        posterior.marginals().to(found_n),
        None if expected_n is None else expected_n.to(found_n),
        found_n,
        len(posterior.permutations),
    )
    return distillation_loss(selector.retriever_logits(selector.retriever.score(candidates)), target_n)


def replug_loss(selector: Selector, posterior: Posterior, temperature: float) -> Tensor:
    """Of the selector's retriever, for one question whose candidates were each read alone."""
    candidates = posterior.candidates
    logits_n = selector.retriever_logits(selector.retriever.score(candidates))
    log_likelihood_n = torch.empty(len(candidates))
    log_likelihood_n[posterior.permutations.z_mK[:, 0]] = posterior.log_likelihood_m
    return lsr_loss(logits_n, log_likelihood_n.to(logits_n.device), temperature)


class _Aligned:
    """The rows SelfAug runs on, and (once the reference has run) its positions."""

    def __init__(self, rows: list[int], row_weights: list[float]) -> None:
        self.rows = rows
        self.row_weights = row_weights
        self.row_of_N = torch.empty(0, dtype=torch.long)
        self.positions_N = torch.empty(0, dtype=torch.long)
        self.weights_N = torch.empty(0)

    def rows_N(self, device: torch.device) -> Tensor:
        """Row of the micro-batch for each aligned position."""
        return torch.tensor(self.rows, device=device)[self.row_of_N]


def plan_micro_batches(
    posteriors: Sequence[Posterior], config: DROConfig, *, seed: int, world_size: int = 1, max_rows: int
) -> list[MicroBatch]:
    """All micro-batches of one M-step, in order.

    Batches of questions come in groups of `world_size`, role by role, so that with one batch per process all
    processes train the same role at the same time. The last group is filled up from the start.

    Args:
        posteriors: The E-step's result.
        config: Batch sizes, epochs, what is trained.
        seed: Of the shuffling.
        world_size: Number of processes.
        max_rows: The most distinct permutations a question can have (decides the number of parts).
    """
    parts = _generator_parts(config, max_rows)
    plan: list[MicroBatch] = []
    for epoch in range(config.m_step.num_train_epochs):
        generator = torch.Generator().manual_seed(stable_seed(seed, epoch))
        order = torch.randperm(len(posteriors), generator=generator).tolist()
        size = config.m_step.per_device_train_batch_size
        batches = [tuple(posteriors[i] for i in order[s : s + size]) for s in range(0, len(order), size)]
        batches += [batches[i % len(batches)] for i in range(-len(batches) % world_size)]
        for start in range(0, len(batches), world_size):
            plan += _group(batches[start : start + world_size], config, parts, stable_seed(seed, epoch))
    return plan


def _group(batches: Sequence[tuple[Posterior, ...]], config: DROConfig, parts: int, seed: int) -> Iterator[MicroBatch]:
    roles = [("selector", 0, 1)] * config.train_selector
    roles += [("generator", part, parts) for part in range(parts)] * config.train_generator
    for i, (role, part, of) in enumerate(roles):
        for batch in batches:
            yield MicroBatch(role, batch, part, of, len(batch) if i == 0 else 0, seed)


def micro_batches_per_batch(config: DROConfig, max_rows: int) -> int:
    """How many micro-batches one batch of questions becomes."""
    return config.train_selector + _generator_parts(config, max_rows) * config.train_generator


def _generator_parts(config: DROConfig, max_rows: int) -> int:
    """Into how many micro-batches a question batch's generator rows are split."""
    most = config.m_step.sequences_per_micro_batch
    return math.ceil(max_rows / most) if most else 1


def _only(batch: list[MicroBatch]) -> dict[str, MicroBatch]:
    return {"micro_batch": batch[0]}


class MStepTrainer(Trainer):
    """`transformers.Trainer` over planned micro-batches.

    Everything it offers (callbacks, `report_to`, DeepSpeed, FSDP, mixed precision) stays available through
    `DROConfig.training_arguments`.

    Args:
        model: The joint model.
        config: The run's settings.
        posteriors: The E-step's result.
        output_dir: Where the trainer logs.
        seed: Of this M-step.
        max_rows: As in `plan_micro_batches`.
        callbacks: Further trainer callbacks.
        on_questions: Called with the number of questions each micro-batch starts.
    """

    def __init__(
        self,
        model: JointModel,
        config: DROConfig,
        posteriors: Sequence[Posterior],
        *,
        output_dir: Path,
        seed: int,
        max_rows: int,
        callbacks: list[TrainerCallback] | None = None,
        on_questions: Callable[[int], object] = lambda count: None,
    ) -> None:
        use_cpu = model.language_model.device.type == "cpu"
        args = training_arguments(config, output_dir, seed=seed, max_rows=max_rows, use_cpu=use_cpu)
        if any(isinstance(callback, RunCallbacks) for callback in callbacks or ()):
            args.report_to = []  # one tracker over all rounds, and not one more for this
        plan = plan_micro_batches(posteriors, config, seed=seed, world_size=args.world_size, max_rows=max_rows)
        super().__init__(model=model, args=args, train_dataset=plan, data_collator=_only, callbacks=callbacks)
        # The trainer's own console lines would tear the run's progress bar; loggers chosen by report_to stay.
        self.remove_callback(PrinterCallback)
        self._on_questions = on_questions
        self._dro_config = config
        self._plan = plan
        # The loss below is already a mean over the questions of the whole step; both names exist because the
        # switch moved between transformers releases.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._sums: dict[str, float] = defaultdict(float)
        self._questions = 0
        self.totals: dict[str, float] = defaultdict(float)
        self.total_questions = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self._plan)  # the order is part of the plan

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """The micro-batches of one optimizer step, and how many questions they hold over all processes."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(s["micro_batch"].num_questions for s in samples), device=device)
        return samples, self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one micro-batch under its own adapter."""
        with self._joint.language_model.use(inputs["micro_batch"].role):
            return super().training_step(model, inputs, num_items_in_batch)

    @property
    def _joint(self) -> JointModel:
        model = self.accelerator.unwrap_model(self.model)
        assert isinstance(model, JointModel)
        return model

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Loss of one micro-batch, scaled so that a step's micro-batches add up to the mean over its questions."""
        outputs = model(**inputs)
        # Gradients are averaged over processes, the question count is summed over them.
        loss = outputs["loss"] * self.args.world_size / num_items_in_batch
        if not bool(torch.isfinite(loss)):
            raise RuntimeError(
                f"The {inputs['micro_batch'].role} loss must be finite; it is {float(loss.detach())}. "
                "Lower the learning rate or use bfloat16 or float32 instead of float16."
            )
        self._record(outputs, inputs["micro_batch"].num_questions)
        return (loss, outputs) if return_outputs else loss

    def _record(self, outputs: dict[str, Tensor], num_questions: int) -> None:
        self._questions += num_questions
        self.total_questions += num_questions
        self._on_questions(num_questions)
        for name, value in outputs.items():
            if name != "loss":
                self._sums[name] += float(value)
                self.totals[name] += float(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss parts (means per question since the last log) to what the trainer logs."""
        if self._questions:
            logs |= {name: total / self._questions for name, total in self._sums.items()}
            self._sums.clear()
            self._questions = 0
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One parameter group per learner, each with its own learning rate."""
        if self.optimizer is None:
            cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args)
            groups = _parameter_groups(self._joint, self._dro_config, model)
            self.optimizer = cls(groups, **kwargs)
        return self.optimizer


def _parameter_groups(joint: JointModel, config: DROConfig, model: nn.Module | None = None) -> list[dict[str, Any]]:
    """Parameter groups by learner.

    Args:
        joint: Says whose each parameter is.
        config: Rates and weight decay.
        model: Whose trainable parameters are grouped: what wraps `joint`; None: `joint` itself.

    Raises:
        UsageError: Nothing is trainable.
    """
    settings = config.m_step
    rate, decay = settings.learning_rate, settings.weight_decay
    selector_rate = rate if settings.selector_learning_rate is None else settings.selector_learning_rate
    learners: list[tuple[Iterable[nn.Parameter], float, float]] = [
        (joint.question_adapter.parameters(), config.retriever_training.learning_rate, 0.0),
        (joint.selector_modules.parameters(), settings.prior_learning_rate, 0.0),
        (joint.language_model.adapter_parameters("selector").values(), selector_rate, decay),
        (joint.language_model.adapter_parameters("generator").values(), rate, decay),
    ]
    group_of = {id(parameter): i for i, (mine, _, _) in enumerate(learners) for parameter in mine}
    groups: list[dict[str, Any]] = [{"params": [], "lr": lr, "weight_decay": d} for _, lr, d in learners]
    for parameter in (joint if model is None else model).parameters():
        if parameter.requires_grad:
            groups[group_of.get(id(parameter), len(groups) - 1)]["params"].append(parameter)
    if not any(group["params"] for group in groups):
        raise UsageError(
            "Something must be there to train; these settings leave 0 parameters trainable. Set train_selector or "
            "train_generator, and let target_modules name layers of the base."
        )
    return [group for group in groups if group["params"]]


def training_arguments(
    config: DROConfig, output_dir: Path, *, seed: int, max_rows: int, use_cpu: bool
) -> TrainingArguments:
    """What `transformers.Trainer` is told for one M-step.

    Raises:
        UsageError: transformers refuses a setting.
    """
    m_step = config.m_step
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "num_train_epochs": 1,  # epochs are part of the plan
        "per_device_train_batch_size": 1,  # one planned micro-batch
        "gradient_accumulation_steps": m_step.gradient_accumulation_steps * micro_batches_per_batch(config, max_rows),
        "learning_rate": m_step.learning_rate,
        "weight_decay": m_step.weight_decay,
        "max_grad_norm": m_step.max_grad_norm,
        "warmup_steps": m_step.warmup_steps,
        "lr_scheduler_type": m_step.lr_scheduler_type,
        "logging_steps": config.logging_steps,
        "report_to": config.report_to,
        "seed": seed % (1 << 31),
        "save_strategy": "no",  # rounds are saved by DROTrainer
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": True,  # each micro-batch uses one adapter of two
        "use_cpu": use_cpu,
        "disable_tqdm": True,  # DROTrainer shows one bar over the whole run
    }
    try:
        arguments = TrainingArguments(**{**settings, **config.training_arguments})
    except (TypeError, ValueError) as error:
        raise UsageError(f"transformers.TrainingArguments must accept the settings; it says: {error}") from error
    if arguments.n_gpu > 1:
        # One process that sees several GPUs would wrap the model into DataParallel, which cannot split a plan;
        # several GPUs are used by `accelerate launch` or torchrun, one process each.
        arguments._n_gpu = 1
    return arguments
