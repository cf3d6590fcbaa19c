"""Present all rounds to callbacks and trackers as one run: each round has a `transformers.Trainer` of its own.

A `Trainer` counts its steps from 0 and announces the beginning and the end of training each time. TensorBoard, Weights
& Biases and a user's callbacks expect that once: here they see one beginning, steps that grow from round to round, the
metrics of each round (E-step diagnostics, `eval_*`), and one end.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, get_reporting_integration_callbacks

_WITHIN_ROUNDS = (
    *("on_epoch_begin", "on_epoch_end", "on_step_begin", "on_pre_optimizer_step", "on_optimizer_step"),
    *("on_substep_end", "on_step_end", "on_evaluate", "on_predict", "on_save", "on_log", "on_prediction_step"),
)


class RunCallbacks(TrainerCallback):
    """Passes the events of all rounds on to callbacks as those of one run.

    Args:
        arguments: Of the run; `report_to` names the trackers.
        callbacks: A user's, instances or classes.
    """

    def __init__(self, arguments: TrainingArguments, callbacks: Sequence[TrainerCallback | type] = ()) -> None:
        self.arguments = arguments
        trackers = get_reporting_integration_callbacks(arguments.report_to)
        self.callbacks = [made() if isinstance(made, type) else made for made in [*trackers, *callbacks]]
        for callback in self.callbacks:
            # By default the time of day names the folder, so that a resumed run would be another one.
            if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
                callback.logging_dir = arguments.output_dir
        self.steps = 0
        """Optimizer steps of all rounds that have ended."""
        self.rounds = 0
        """M-steps that have ended."""
        self._control = TrainerControl()

    def begin(self, model: nn.Module, *, steps: int = 0, rounds: int = 0) -> None:
        """The run begins, or continues after so many optimizer steps and M-steps."""
        self.steps, self.rounds = steps, rounds
        self._announce("on_init_end", model)
        self._announce("on_train_begin", model)

    def end(self, model: nn.Module) -> None:
        """The run has ended."""
        self._announce("on_train_end", model)

    def log(self, record: Mapping[str, Any], model: nn.Module) -> None:
        """The numbers of a round; what is no number is left out."""
        logs = {k: v for k, v in record.items() if isinstance(v, int | float)}
        evaluation = {k: v for k, v in logs.items() if k.startswith("eval_")}
        self._announce("on_log", model, logs=logs)
        if evaluation:
            self._announce("on_evaluate", model, metrics=evaluation)

    def _announce(self, event: str, model: nn.Module, **what: Any) -> None:
        processes = PartialState()
        state = TrainerState(
            is_local_process_zero=processes.is_local_main_process, is_world_process_zero=processes.is_main_process
        )
        self._forward(event, self.arguments, state, self._control, model=model, **what)

    def on_train_end(self, args: Any, state: Any, control: Any, **what: Any) -> None:
        """A round has ended: the next one's steps come after its."""
        self.steps += state.global_step
        self.rounds += 1

    def _forward(self, event: str, args: Any, state: TrainerState, control: TrainerControl, **what: Any) -> Any:
        with self._of_the_run(state):
            for callback in self.callbacks:
                control = getattr(callback, event)(args, state, control, **what) or control
        return control

    @contextmanager
    def _of_the_run(self, state: TrainerState) -> Iterator[None]:
        epoch = state.epoch
        state.global_step += self.steps
        state.max_steps += self.steps
        state.epoch = None if epoch is None else epoch + self.rounds
        try:
            yield
        finally:
            state.global_step -= self.steps
            state.max_steps -= self.steps
            state.epoch = epoch


def _forwarding(event: str) -> Callable[..., Any]:
    def forward(self: RunCallbacks, args: Any, state: Any, control: Any, **what: Any) -> Any:
        return self._forward(event, args, state, control, **what)

    return forward


for _event in _WITHIN_ROUNDS:
    setattr(RunCallbacks, _event, _forwarding(_event))
