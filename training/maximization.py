"""The M-step: make good permutations and good answers likelier, on `transformers.Trainer`.

One optimizer step takes whole questions; each question becomes micro-batches of *one role each* (one for the selector,
one or more for the generator), whose backward runs before the adapter switches. Every micro-batch's loss is divided by
the number of questions of the step, so the sum over the step is the mean over questions. The losses are those of
`training.joint_model`.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from indexes.errors import UsageError
from training.config import DROConfig
from training.joint_model import JointModel, MicroBatch
from training.posterior import Posterior, stable_seed
from training.tracking import RunCallbacks


def plan_micro_batches(
    posteriors: Sequence[Posterior], config: DROConfig, *, seed: int, world_size: int = 1, max_permutations: int
) -> list[MicroBatch]:
    """All micro-batches of one M-step, in order.

    Batches of questions come in groups of `world_size`, role by role, so that with one batch per process all
    processes train the same role at the same time. The last group is filled up from the start.

    Args:
        posteriors: The E-step's result.
        config: Batch sizes, epochs, what is trained.
        seed: Of the shuffling.
        world_size: Number of processes.
        max_permutations: The most distinct permutations a question can have (decides the number of parts).
    """
    parts = _generator_parts(config, max_permutations)
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


def micro_batches_per_batch(config: DROConfig, max_permutations: int) -> int:
    """How many micro-batches one batch of questions becomes."""
    return config.train_selector + _generator_parts(config, max_permutations) * config.train_generator


def _generator_parts(config: DROConfig, max_permutations: int) -> int:
    """Into how many micro-batches the generator's sequences of a question batch are split."""
    most = config.m_step.sequences_per_micro_batch
    return math.ceil(max_permutations / most) if most else 1


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
        max_permutations: As in `plan_micro_batches`.
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
        max_permutations: int,
        callbacks: list[TrainerCallback] | None = None,
        on_questions: Callable[[int], object] = lambda count: None,
    ) -> None:
        use_cpu = model.language_model.device.type == "cpu"
        args = training_arguments(config, output_dir, seed=seed, max_permutations=max_permutations, use_cpu=use_cpu)
        if any(isinstance(callback, RunCallbacks) for callback in callbacks or ()):
            args.report_to = []  # one tracker over all rounds, and not one more for this
        plan = plan_micro_batches(
            posteriors, config, seed=seed, world_size=args.world_size, max_permutations=max_permutations
        )
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

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self._plan)  # the order is part of the plan

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
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
            groups = self._joint.parameter_groups(self._dro_config, model)
            self.optimizer = cls(groups, **kwargs)
        return self.optimizer


def training_arguments(
    config: DROConfig, output_dir: Path, *, seed: int, max_permutations: int, use_cpu: bool
) -> TrainingArguments:
    """`transformers.TrainingArguments` of one M-step.

    Raises:
        UsageError: transformers refuses a setting.
    """
    m_step = config.m_step
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "num_train_epochs": 1,  # epochs are part of the plan
        "per_device_train_batch_size": 1,  # one planned micro-batch
        "gradient_accumulation_steps": m_step.gradient_accumulation_steps
        * micro_batches_per_batch(config, max_permutations),
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
        raise UsageError(f"transformers.TrainingArguments must accept the settings; it raised: {error}") from error
    if arguments.n_gpu > 1:
        # One process that sees several GPUs would wrap the model into DataParallel, which cannot split a plan;
        # several GPUs are used by `accelerate launch` or torchrun, one process each.
        arguments._n_gpu = 1
    return arguments
