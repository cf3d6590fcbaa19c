"""The M-step: make good permutations and good answers likelier, on `transformers.Trainer`.

One optimizer step takes whole questions, in micro-batches of *one role each* (`training.micro_batches`), whose backward
runs before the adapter switches. Every micro-batch's loss is divided by the number of questions of the step, so the sum
over the step is the mean over questions. The losses are those of `training.joint_model`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from generator.adapters import ROLES
from indexes.errors import UsageError
from training.config import DROConfig
from training.joint_model import JointModel
from training.micro_batches import MicroBatch, Step, micro_batches, plan_steps, token_counter
from training.posterior import Posterior
from training.tracking import RunCallbacks


def _only(batch: list[Step]) -> dict[str, Step]:
    return {"step": batch[0]}


class MStepTrainer(Trainer):
    """`transformers.Trainer` over planned optimizer steps: what it takes for a batch is all of a process's questions.

    Everything it offers (callbacks, `report_to`, DeepSpeed, FSDP, mixed precision) stays available through
    `DROConfig.training_arguments`.

    Args:
        model: The joint model.
        config: The run's settings.
        posteriors: The E-step's result.
        output_dir: Where the trainer logs.
        seed: Of this M-step.
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
        callbacks: list[TrainerCallback] | None = None,
        on_questions: Callable[[int], object] = lambda count: None,
    ) -> None:
        use_cpu = model.language_model.device.type == "cpu"
        args = training_arguments(config, output_dir, seed=seed, use_cpu=use_cpu)
        if any(isinstance(callback, RunCallbacks) for callback in callbacks or ()):
            args.report_to = []  # one tracker over all rounds, and not one more for this
        selector, generator = model.selector, model.generator
        counter = token_counter(selector, generator, config)
        plan = plan_steps(posteriors, config, seed=seed, world_size=args.world_size, count_tokens=counter)
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
        """The questions of one optimizer step, and how many they are over all processes."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(len(s["step"]) for s in samples), device=device)
        return samples, self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of all micro-batches of a step, each under its own adapter."""
        joint = self._joint
        batches = micro_batches(joint.selector, joint.generator, inputs["step"], self._dro_config)
        batches = self._in_step_with_others(batches)
        losses = []
        for number, micro_batch in enumerate(batches, start=1):
            with self._synchronised(model, number == len(batches)), joint.language_model.use(micro_batch.role):
                losses.append(super().training_step(model, {"micro_batch": micro_batch}, num_items_in_batch))
        return torch.stack(losses).sum()

    def _in_step_with_others(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """As many passes of each role as the process that has most: wrappers such as FSDP act in every one."""
        if self.args.world_size == 1:
            return batches
        found: list[MicroBatch] = []
        for role in ROLES:
            mine = [batch for batch in batches if batch.role == role]
            most = int(self.accelerator.gather(torch.tensor([len(mine)], device=self.args.device)).max())
            found += mine
            found += [replace(mine[-1], num_questions=0, counts=False)] * (most - len(mine))
        return found

    @contextmanager
    def _synchronised(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Gradients are reduced over the processes after the last pass of a step, as `Trainer` does with accumulation.

        DeepSpeed has no `no_sync`, and is told by the flag.
        """
        state = self.accelerator.gradient_state
        state._set_sync_gradients(last)
        at_once = state.plugin_kwargs.get("sync_each_batch", False)
        waits = not (last or at_once or self.accelerator.distributed_type == DistributedType.DEEPSPEED)
        with self.accelerator.no_sync(model=model) if waits else nullcontext():
            yield

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


def training_arguments(config: DROConfig, output_dir: Path, *, seed: int, use_cpu: bool) -> TrainingArguments:
    """`transformers.TrainingArguments` of one M-step.

    Raises:
        UsageError: transformers refuses a setting.
    """
    m_step = config.m_step
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "num_train_epochs": 1,  # epochs are part of the plan
        "per_device_train_batch_size": 1,  # all questions of an optimizer step
        "gradient_accumulation_steps": 1,
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
