"""What callbacks see of a run: its state after each part of a round, and the metrics of the round so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.posterior import Posterior


@dataclass
class TrainingState:
    """Where a run is; the counterpart of `transformers.TrainerState` over rounds."""

    round: int = 0
    """The round that runs or has just ended; 0 is the supervised warm-up."""
    num_rounds: int = 0
    """Rounds that were asked for."""
    global_step: int = 0
    """Optimizer steps of all M-steps that have ended."""
    log_history: list[dict[str, Any]] = field(default_factory=list)
    """The record of every finished round, as in `metrics.jsonl`."""
    best_round: int | None = None
    """The round with the best `metric_for_best_model` so far (the first of equals); without evaluation the last."""
    best_metric: float | None = None
    """Its metric; None without evaluation."""
    is_world_process_zero: bool = True
    """Whether this process writes the files of a distributed run."""


@dataclass(frozen=True)
class TrainOutput:
    """What `DROTrainer.train` returns."""

    history: list[dict[str, Any]]
    """The record of every round, round 0 being the pipeline after the supervised warm-up."""
    best_round: int
    """The round whose weights the pipeline holds now."""
    global_step: int
    """Optimizer steps in all."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The record of the best round."""
        return self.history[self.best_round]


class RoundCallback:
    """Base class of callbacks that are called within every round; methods that are not overridden do nothing.

    In a distributed run every process calls them; `state.is_world_process_zero` is true in one.
    """

    def on_round_begin(self, state: TrainingState) -> None:
        """Before the E-step of a round."""

    def on_e_step_end(
        self, state: TrainingState, posteriors: Sequence[Posterior], metrics: Mapping[str, float]
    ) -> None:
        """After the E-step, with the posteriors of all training questions and the means of their diagnostics."""

    def on_m_step_end(self, state: TrainingState, metrics: Mapping[str, float]) -> None:
        """After the M-step, with the prior weights that were fitted and the mean losses per question."""

    def on_round_end(self, state: TrainingState, metrics: Mapping[str, Any]) -> None:
        """After evaluation and checkpoint (also of round 0), with the whole record of the round."""
