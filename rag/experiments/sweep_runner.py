"""`rag sweep`: run the trials of a sweep in one or several processes, and compare them.

    questions, index -> for each trial: pipeline -> train -> bundle -> evaluate -> compare

All trials are trained on the same questions for the same number of rounds. The checkpoint of each is chosen on the
evaluation questions, and the table shows the test questions. `rag.experiments.trial_store` says which files there are.

Finished trials are not run again, an interrupted one continues after its last round, and one that fails is reported
while the others go on. `sweep.json` holds no times, so that the same sweep is the same file; they are in
`seconds.json`.
"""

import json
import logging
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from generator.language_model import best_device
from indexes.atomic_files import exclusive_writer_lock
from indexes.errors import RAGError, UsageError
from indexes.worker_processes import WorkerProcesses, claim, clear_claims, exit_with_parent
from rag.evaluation.evaluation_file import write_results
from rag.experiments.recipes import Variant
from rag.experiments.sweep_file import SweepFile
from rag.experiments.sweep_questions import SweepQuestions
from rag.experiments.sweep_results import (
    SAMPLES,
    TrialResult,
    cells,
    compare,
    extremes,
    question_of,
    recipe_of,
    retriever_recall,
    sweep_pairs,
)
from rag.experiments.sweep_settings import SweepSettings
from rag.experiments.trial_runner import TrialRunner
from rag.experiments.trial_store import FailedTrial, TrialStore
from rag.forgetting.measurement import ForgettingTable, ModelScores, forgetting_table
from rag.logs import set_up_logs
from rag.report import with_evaluation_records, write_report
from rag.report.result_files import SECONDS_FILE, SWEEP_FILE, with_seconds
from training import QAExample

logger = logging.getLogger(__name__)


class Sweep:
    """One folder with the questions, a folder for each trial, and the comparison.

    Args:
        folder: Where everything is written; an unfinished sweep with the same settings is continued, and one that
            differs only in its choice of trials is extended.
        settings: What is compared.
        progress: Show progress bars.
        on_trial: Called with the name of each trial before it starts in this process.
        workers: Number of processes that run trials at the same time and share the cores (None: `default_workers`).

    Raises:
        UsageError: The folder holds something else, or fewer than one worker.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: SweepSettings,
        *,
        progress: bool = True,
        on_trial: Callable[[str], None] = lambda name: None,
        workers: int | None = 1,
    ) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"workers must be at least 1, got {workers}.")
        self.folder, self.settings, self.progress, self.on_trial = Path(folder), settings, progress, on_trial
        self.trials = settings.trials()
        self.workers = min(workers or default_workers(), len(self.trials))
        self.store = TrialStore(folder)
        self.runner = TrialRunner(self.store, settings, progress=progress)
        self.questions = SweepQuestions(self.runner)
        self.store.open(settings, self.trials)

    def __repr__(self) -> str:
        return f"Sweep({str(self.folder)!r}, trials={[trial.name for trial in self.trials]})"

    def run(self) -> dict[str, Any]:
        """Run every trial that is not finished and compare them; writes sweep.json, seconds.json and report.html.

        Returns:
            What `rag.report` shows: sweep.json with the times; `failed` lists trials that failed, with the reason.

        Raises:
            RAGError: Every trial failed.
            UsageError: Another process is running this sweep.
        """
        with exclusive_writer_lock(self.folder):
            questions = self.questions.load()
            results, failed = self._complete(questions)
            data = self._compared(results, failed, questions).to_dict()
            # The sum over trials: this process may have found most of them finished.
            seconds = {"total": math.fsum(r.seconds for r in results), "trials": {r.name: r.seconds for r in results}}
            write_results(data, self.folder / SWEEP_FILE)
            write_results(seconds, self.folder / SECONDS_FILE)
            timed = with_seconds(data, seconds) | {"curves": {r.name: list(r.curve) for r in results if r.curve}}
            write_report(with_evaluation_records(timed, self.folder), self.folder / "report.html")
            return timed

    def _complete(self, questions: Mapping[str, list[QAExample]]) -> tuple[list[TrialResult], list[FailedTrial]]:
        """Run every trial that is not finished; returns the finished ones and those that failed."""
        for trial in self.trials:
            self.store.forget_failure(trial)
        clear_claims(self.folder)  # of a sweep that was killed
        with self._worker_processes():
            self.run_trials(questions)
        clear_claims(self.folder)
        self.run_trials(questions)  # what a killed worker left
        failed = [self.store.failure(trial) for trial in self.trials if not self.store.is_done(trial)]
        if len(failed) == len(self.trials):
            raise RAGError(f"Every trial of the sweep failed; the first: {failed[0].error}")
        return [self.store.result(trial) for trial in self.trials if self.store.is_done(trial)], failed

    def run_trials(self, questions: Mapping[str, list[QAExample]]) -> None:
        """Run the trials that no process has finished or claimed.

        A single process begins with the first trial, several with the last, which takes longest. A trial that fails
        leaves `failed.json`, and the next one begins.
        """
        self._measure_retention_of_base()
        trials = list(enumerate(self.trials, 1))
        for number, trial in trials if self.workers == 1 else reversed(trials):
            done = self.store.is_done(trial) or self.store.has_failed(trial)
            if done or not claim(self.folder, trial.name):
                continue
            logger.info("Trial %d of %d: %s.", number, len(trials), trial.label)
            self.on_trial(trial.name)
            try:
                self.runner.run(trial, questions)
            except Exception as error:
                logger.error("Trial %s failed: %s", trial.name, error)
                self.store.save_failure(trial, error, traceback.format_exc())

    def _measure_retention_of_base(self) -> None:
        """Measure the base model on the retention tasks in the first process that asks."""
        file = self.store.base_retention_file
        if self.runner.retention is not None and not file.is_file() and claim(self.folder, file.name):
            self.runner.measure_retention_of_base()

    def _forgetting(self) -> ForgettingTable | None:
        """The forgetting table of all trials whose generator was trained, where there are retention tasks."""
        if self.runner.retention is None:
            return None
        return forgetting_table([ModelScores.load(file) for file in self.store.retention_files(self.trials)])

    def _compared(
        self,
        results: Sequence[TrialResult],
        failed: Sequence[FailedTrial],
        questions: Mapping[str, list[QAExample]],
    ) -> SweepFile:
        focus = self._focus_recipe(results)
        shown = cells(results)[0]
        evaluations = {r.name: r.evaluation.to_dict() for r in results}
        return SweepFile(
            settings=self.settings.to_json(),
            dataset=results[0].evaluation.dataset,
            answerable_questions=len(questions["train"]),
            trials=[r.scores() for r in results],
            retriever=retriever_recall(results),
            comparisons=compare(sweep_pairs(results, focus)),
            evaluations={n: {k: v for k, v in file.items() if k != "records"} for n, file in evaluations.items()},
            curves={r.name: r.curve_without_timings() for r in results if r.curve},
            samples=[question_of(shown, i) for i in range(min(SAMPLES, len(shown[0].evaluation.records)))],
            questions=extremes(results, focus),
            failed=list(failed),
            too_long=self.questions.too_long() or None,
            forgetting=self._forgetting(),
        )

    def _focus_recipe(self, results: Sequence[TrialResult]) -> str:
        if self.settings.focus_recipe != "auto":
            return Variant.of(self.settings.focus_recipe).name
        names = [recipe_of(r) for r in results]
        return next((name for name in ("dro_selfaug", "dro") if name in names), names[-1])

    def _worker_processes(self) -> WorkerProcesses:
        options = {"quiet": not logger.isEnabledFor(logging.INFO), "progress": self.progress}
        code = f"import json, sys; from {__name__} import run_worker; "
        code += "run_worker(sys.argv[1], **json.loads(sys.argv[2]))"
        missing = sum(not self.store.is_done(trial) for trial in self.trials)
        count = max(0, min(self.workers, missing) - 1)
        return WorkerProcesses(count, code, [str(self.folder), json.dumps(options)])


def default_workers() -> int:
    """One process for each thread that torch may use on a CPU; one where there is an accelerator.

    The operations of the built-in tiny model are too short to be divided among threads: two processes of one thread
    each do nearly twice the work of one with two threads.
    """
    return torch.get_num_threads() if best_device() == "cpu" else 1


def run_worker(folder: str, *, quiet: bool, progress: bool) -> None:
    """Run trials of a sweep that another process has opened, until none is left."""
    exit_with_parent()
    set_up_logs(debug=False, quiet=quiet)
    sweep = Sweep(folder, TrialStore(folder).settings(), progress=progress, workers=2)
    sweep.run_trials(sweep.questions.load())
