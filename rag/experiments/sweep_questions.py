"""The questions of a sweep: gathered once and kept in its folder, so that all trials use the same ones."""

from collections.abc import Callable
from pathlib import Path

from indexes.atomic_files import read_json
from rag.evaluation.evaluation import filter_answerable
from rag.evaluation.evaluation_file import write_results
from rag.experiments.sweep_options import DOMAIN_NAMES, WorldSettings
from rag.experiments.sweep_settings import SPLITS
from rag.experiments.trial_runner import TrialRunner
from rag.pipeline import RAG
from rag.worlds.domain import Domain, encyclopedia
from rag.worlds.unseen_domain import UNSEEN
from rag.worlds.world import write_world
from training import QAExample, load_examples
from training.questions.context_fit import (
    filter_fitting,
    filter_fitting_with_answers,
    refuse_too_long,
    warn_of_too_long,
)
from training.questions.loading import write_examples

DOMAINS: dict[str, Callable[[], Domain]] = dict(zip(DOMAIN_NAMES, (lambda: UNSEEN, encyclopedia), strict=True))


class SweepQuestions:
    """Loads the questions of the three splits, from files or from a generated world.

    Args:
        runner: Whose sweep the questions are of.
    """

    def __init__(self, runner: TrialRunner) -> None:
        self.runner, self.settings = runner, runner.settings
        self.folder = runner.store.folder / "questions"

    def load(self) -> dict[str, list[QAExample]]:
        """Questions by split: "train", "eval" and "test"."""
        files = {split: self.folder / f"{split}.jsonl" for split in SPLITS}
        if not all(file.is_file() for file in files.values()):
            for split, examples in self._gather().items():
                write_examples(examples, files[split])
        return {split: load_examples(file) for split, file in files.items()}

    def too_long(self) -> dict[str, list[str]]:
        """By split, the ids of questions that were left out because they do not fit the model's context."""
        file = self._too_long_file
        return read_json(file, "Name another folder with --output_dir.") if file.is_file() else {}

    @property
    def _too_long_file(self) -> Path:
        return self.folder / "too_long.json"

    def _gather(self) -> dict[str, list[QAExample]]:
        world = self.settings.world
        found = self._from_files() if world is None else self._from_world(world)
        rag = self.runner.base_pipeline()
        found = {split: self._fitting(rag, split, examples) for split, examples in found.items()}
        if self.settings.answerable_only:
            found["train"] = filter_answerable(rag, found["train"])
        return found

    def _from_files(self) -> dict[str, list[QAExample]]:
        s = self.settings
        limits = {"train": s.max_train_samples, "eval": s.max_eval_samples, "test": s.max_test_samples}
        return {
            split: load_examples(
                getattr(s, f"{split}_dataset"),
                require_answers=True,
                allow_unanswerable=split != "train",
                limit=limit,
                quoting=s.quoting,
                ignore_identical_ids=s.ignore_identical_ids,
            )
            for split, limit in limits.items()
        }

    def _from_world(self, world: WorldSettings) -> dict[str, list[QAExample]]:
        folder = self.runner.store.folder / "world"
        if not (folder / "dev.jsonl").is_file():
            write_world(
                folder,
                seed=world.seed,
                domain=DOMAINS[world.domain](),
                similar_names=world.similar_names,
                train_questions=world.train_questions,
                dev_questions=world.eval_questions + world.test_questions,
            )
        held_out = load_examples(folder / "dev.jsonl", require_answers=True)
        train = load_examples(folder / "train.jsonl", require_answers=True)
        return {"train": train, "eval": held_out[: world.eval_questions], "test": held_out[world.eval_questions :]}

    def _fitting(self, rag: RAG, split: str, examples: list[QAExample]) -> list[QAExample]:
        """The questions that fit the context of every trial, also of one whose selector learns.

        Trials are compared on the same questions, so a question that does not fit in one of them is left out of all.
        """
        fitting = filter_fitting_with_answers if split == "train" else filter_fitting
        fitted = fitting(examples, rag.selector, rag.generator, learning=True)
        if not fitted.kept:
            refuse_too_long(fitted.too_long, len(examples), f"{split} questions", "give other questions")
        warn_of_too_long(fitted.too_long, len(examples), f"{split} questions")
        if fitted.too_long:
            write_results(self.too_long() | {split: sorted(fitted.too_long)}, self._too_long_file)
        return fitted.kept
