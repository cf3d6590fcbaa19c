"""The files of a sweep: its settings, and a folder for each trial.

sweep-settings.json          what is compared, on which questions
trials/NAME/run/             the run of the trainer (`rag train` writes the same)
trials/NAME/bundle/          the trained pipeline
trials/NAME/evaluation.json  every test question, with its answer and scores
trials/NAME/forgetting.json  the general tasks after training, and the divergence from the base model
trials/NAME/retention.json   scores on the retention tasks, if there are any
trials/NAME/trial.json       written last: the trial is finished
trials/NAME/failed.json      the reason, if it failed
"""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from indexes.atomic_files import read_json
from indexes.errors import UsageError
from rag.evaluation.evaluation_file import EvaluationFile, read_evaluation, write_results
from rag.experiments.sweep_results import TrialResult
from rag.experiments.sweep_settings import SweepSettings, Trial, comparable_settings
from training import DROConfig
from training.config import flatten

SETTINGS_FILE = "sweep-settings.json"
RETENTION_FILE = "retention.json"
EVALUATION_FILE = "evaluation.json"
FORGETTING_FILE = "forgetting.json"
TRIAL_FILE = "trial.json"
FAILED_FILE = "failed.json"
_OTHER_FOLDER = "Name another folder with --output_dir."


@dataclass(frozen=True)
class FailedTrial:
    """A trial that raised an error.

    Attributes:
        name: The trial's name.
        label: For tables.
        error: Type and message of the exception.
    """

    name: str
    label: str
    error: str

    def to_dict(self) -> dict[str, str]:
        """As in sweep.json."""
        return asdict(self)


class TrialStore:
    """Reads and writes the files of a sweep.

    Args:
        folder: The sweep's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"TrialStore({str(self.folder)!r})"

    # The sweep.

    def open(self, settings: SweepSettings, trials: Sequence[Trial]) -> None:
        """Write the settings, or check that they continue or extend the sweep in the folder.

        Raises:
            UsageError: The folder holds something else, a sweep with other settings, or a trial that was trained
                differently under the same name.
        """
        file, current = self.folder / SETTINGS_FILE, settings.to_json()
        written = SweepSettings.with_defaults(read_json(file, _OTHER_FOLDER)) if file.is_file() else None
        if written is None and self.folder.exists() and any(self.folder.iterdir()):
            raise self._not_empty("something else")
        if written is not None and comparable_settings(written) != comparable_settings(current):
            before, now = comparable_settings(written), comparable_settings(current)
            different = sorted(name for name, value in now.items() if before.get(name) != value)
            raise self._not_empty(f"a run with other settings, namely other values of {different}")
        for trial in trials:
            self._check_training(trial, trial.config(settings))
        write_results(current, file)

    def settings(self) -> SweepSettings:
        """What `open` has written."""
        return SweepSettings.from_json(read_json(self.folder / SETTINGS_FILE, "Start the sweep again."))

    def _not_empty(self, found: str) -> UsageError:
        return UsageError(
            f"A sweep needs a new or empty folder, or one of its own to continue; {self.folder} holds {found}. "
            f"{_OTHER_FOLDER}"
        )

    def _check_training(self, trial: Trial, config: DROConfig | None) -> None:
        """Refuse a trial that was trained under its name with another seed, or with other settings of the grid."""
        if config is None:
            return
        wanted, written = training_settings(config, trial), self._trained_with(trial)
        different = sorted(name for name in wanted.keys() & written.keys() if wanted[name] != written[name])
        if different:
            raise UsageError(
                f"A trial must have the settings that its name says; {self.folder_of(trial)} was trained with "
                f"{ {name: written[name] for name in different} }, but now the sweep sets "
                f"{ {name: wanted[name] for name in different} }. Name both values, so that each has a trial of its "
                "own, or another folder with --output_dir."
            )

    def _trained_with(self, trial: Trial) -> dict[str, Any]:
        """The settings of a trial's training, as far as they have been written."""
        found: dict[str, Any] = {}
        for name, key in (("run/run.json", "config"), (TRIAL_FILE, "training")):
            # A file that a killed process left incomplete, or that is being written, is ignored.
            with suppress(FileNotFoundError, json.JSONDecodeError):
                found |= flatten(json.loads(self.file(trial, name).read_text(encoding="utf-8")).get(key) or {})
        return found

    # One trial.

    def folder_of(self, trial: Trial) -> Path:
        """The folder with all files of a trial."""
        return self.folder / "trials" / trial.name

    def file(self, trial: Trial, name: str) -> Path:
        """A file of a trial."""
        return self.folder_of(trial) / name

    def is_done(self, trial: Trial) -> bool:
        """Whether it is trained and evaluated."""
        return self.file(trial, TRIAL_FILE).is_file()

    def has_failed(self, trial: Trial) -> bool:
        """Whether it raised an error since `forget_failure`."""
        return self.file(trial, FAILED_FILE).is_file()

    def forget_failure(self, trial: Trial) -> None:
        """The trial can be run again."""
        self.file(trial, FAILED_FILE).unlink(missing_ok=True)

    def save_failure(self, trial: Trial, error: Exception, traceback: str) -> None:
        """Record why a trial failed."""
        record = {"error": f"{type(error).__name__}: {error}", "traceback": traceback}
        write_results(record, self.file(trial, FAILED_FILE))

    def failure(self, trial: Trial) -> FailedTrial:
        """Why a trial is not finished."""
        error = "no process ran it"
        if self.has_failed(trial):
            error = read_json(self.file(trial, FAILED_FILE), "Delete it.").get("error", "unknown")
        return FailedTrial(trial.name, trial.label, error)

    def finish(
        self, trial: Trial, *, seconds: float, curve: Sequence[Mapping[str, Any]], config: DROConfig | None
    ) -> None:
        """Record that a trial is finished, after all its other files are written.

        Args:
            trial: The trial.
            seconds: Of training and evaluation together.
            curve: The records of its rounds.
            config: How it was trained; None: not at all.
        """
        record = {
            "name": trial.name,
            "seconds": seconds,
            "curve": [_finite(entry) for entry in curve],
            "training": config and training_settings(config, trial),
        }
        write_results(record, self.file(trial, TRIAL_FILE))

    def result(self, trial: Trial, *, evaluation: EvaluationFile | None = None) -> TrialResult:
        """A finished trial.

        Args:
            trial: The trial.
            evaluation: In place of its evaluation on the test questions.
        """
        advice = f"Delete {self.folder_of(trial)} to train it again."
        done = read_json(self.file(trial, TRIAL_FILE), advice)
        forgetting = read_json(self.file(trial, FORGETTING_FILE), advice)
        return TrialResult(
            name=trial.name,
            label=trial.label,
            recipe=trial.variant.recipe.name,
            selfaug=trial.variant.selfaug,
            seed=trial.seed,
            changes=trial.changes,
            evaluation=evaluation or read_evaluation(self.file(trial, EVALUATION_FILE)),
            general=forgetting["general"],
            kl_drift=forgetting["kl_drift"],
            curve=done["curve"],
            seconds=done["seconds"],
        )

    # Retention tasks.

    @property
    def base_retention_file(self) -> Path:
        """Scores of the base model on the retention tasks."""
        return self.folder / f"base-{RETENTION_FILE}"

    def retention_files(self, trials: Sequence[Trial]) -> list[Path]:
        """Scores on the retention tasks that exist: of the base model, then of finished trials."""
        files = [self.file(trial, RETENTION_FILE) for trial in trials if self.is_done(trial)]
        return [file for file in (self.base_retention_file, *files) if file.is_file()]


def training_settings(config: DROConfig, trial: Trial) -> dict[str, Any]:
    """The settings of a trial's training that its recipe does not fix, flat, as JSON has them."""
    fixed = trial.variant.recipe.training or ()
    settings = flatten(json.loads(json.dumps(config.to_dict(), default=str)))
    return {name: value for name, value in settings.items() if name not in fixed}


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON can hold it: numbers that are not finite are left out."""
    return {k: v for k, v in record.items() if not isinstance(v, float) or math.isfinite(v)}
