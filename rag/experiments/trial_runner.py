"""One trial of a sweep: build its pipeline, train it, evaluate it, and measure what was forgotten."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from generator.adapters import BASE
from indexes import build_index
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.tiny_encoder import TINY
from rag.evaluation.evaluation import Evaluation, evaluate
from rag.evaluation.evaluation_file import bundle_digest, evaluation_file, write_results
from rag.experiments.recipes import BASE_RECIPE, Variant
from rag.experiments.sweep_results import without_timings
from rag.experiments.sweep_settings import SweepSettings, Trial
from rag.experiments.trial_store import EVALUATION_FILE, FORGETTING_FILE, RETENTION_FILE, TrialStore
from rag.forgetting.general_tasks import GeneralTask, make_general_tasks
from rag.forgetting.measurement import measure_general_tasks, measure_model
from rag.forgetting.retention_tasks import retention_tasks_of
from rag.pipeline import RAG
from training import DROTrainer, QAExample
from training.run_folder import RUN_FILE


def evaluation_with_retention(tasks: Sequence[GeneralTask]) -> Callable[..., Evaluation]:
    """An `evaluate` for `DROTrainer` whose metrics also have what was forgotten: `general` and `kl_drift`."""

    def evaluate_with_retention(rag: RAG, examples: Sequence[QAExample], **options: Any) -> Evaluation:
        forgotten: dict[str, float] = {}
        if tasks:
            forgetting = measure_general_tasks(rag.generator, tasks)
            forgotten = {"general": forgetting.general, "kl_drift": forgetting.kl_drift}
        found = evaluate(rag, examples, **options)
        return replace(found, metrics=found.metrics | forgotten)

    return evaluate_with_retention


class TrialRunner:
    """Runs trials one at a time.

    Args:
        store: Where their files are.
        settings: Of the sweep.
        progress: Show progress bars.
    """

    def __init__(self, store: TrialStore, settings: SweepSettings, *, progress: bool = True) -> None:
        self.store, self.settings, self.progress = store, settings, progress
        self.tasks = make_general_tasks(settings.general_tasks, seed=settings.general_tasks_seed)
        self.retention = retention_tasks_of(settings.retention)

    def index(self) -> PassageIndex:
        """The index of the questions; that of a generated world is built first if it is missing."""
        if self.settings.world is None:
            return PassageIndex.open(str(self.settings.index))
        world = self.store.folder / "world"
        folder = world / "index"
        if not folder.is_dir():
            encoder = Encoder.from_pretrained(TINY)
            build_index(world / "corpus.jsonl", encoder, folder, resume=True, progress=self.progress)
        return PassageIndex.open(folder)

    def pipeline(self, variant: Variant, index: PassageIndex) -> RAG:
        """An untrained pipeline with the selector and the answer mode of a recipe."""
        s = self.settings
        documents = s.documents or max(3, s.selector.num_selected)
        return RAG.create(
            index=index,
            encoder=index.load_encoder(s.encoder, check=False, device=s.device, trust_remote_code=s.trust_remote_code),
            retriever=s.retriever,
            base=s.base,
            revision=s.revision,
            selector=variant.selector(s.selector, documents),
            decoding=s.decoding,
            adapter=s.adapter,
            chat=s.chat,
            dtype=s.dtype,
            device=s.device,
            quantization=s.quantization,
            context_length=s.context_length,
            trust_remote_code=s.trust_remote_code,
            answer_mode=variant.recipe.answer_mode,
        )

    def base_pipeline(self) -> RAG:
        """The pipeline of the base model."""
        return self.pipeline(Variant.of(BASE_RECIPE), self.index())

    def run(self, trial: Trial, questions: Mapping[str, Sequence[QAExample]]) -> None:
        """Train and evaluate one trial; training continues after its last complete round.

        Args:
            trial: The trial.
            questions: Those of the splits "train", "eval" and "test".
        """
        started = time.perf_counter()
        rag = self.pipeline(trial.variant, self.index())
        config = trial.config(self.settings)
        curve: list[dict[str, Any]] = []
        if config is not None:
            run = self.store.file(trial, "run")
            trainer = DROTrainer(
                rag,
                config,
                train_dataset=questions["train"],
                eval_dataset=questions["eval"],
                output_dir=run,
                compute_metrics=evaluation_with_retention(self.tasks),
                progress=self.progress,
            )
            curve = trainer.train(resume_from_checkpoint=(run / RUN_FILE).is_file()).history
        report = [without_timings(record) for record in curve]
        bundle = rag.save_pretrained(self.store.file(trial, "bundle"), report=report)
        evaluation = evaluate(rag, questions["test"], progress=self.progress)
        file = evaluation_file(rag, evaluation, name=trial.name, label=trial.label, bundle=bundle)
        write_results(file.to_dict(), self.store.file(trial, EVALUATION_FILE))
        write_results(self._forgetting(rag), self.store.file(trial, FORGETTING_FILE))
        self._measure_retention(trial, rag, bundle)
        self.store.finish(trial, seconds=time.perf_counter() - started, curve=curve, config=config)

    def _forgetting(self, rag: RAG) -> dict[str, Any]:
        if not self.tasks:
            return {"general": [], "kl_drift": None}
        more = make_general_tasks(2 * len(self.tasks), seed=self.settings.general_tasks_seed + 1)
        forgetting = measure_general_tasks(rag.generator, more)
        return {"general": forgetting.right, "kl_drift": forgetting.kl_drift}

    def _measure_retention(self, trial: Trial, rag: RAG, bundle: Path) -> None:
        """Scores on the retention tasks; a generator that was not trained has those of the base model."""
        if self.retention is None or rag.generator.language_model.is_untrained("generator"):
            return
        scores = measure_model(
            rag.generator,
            "generator",
            self.retention,
            name=trial.name,
            bundle_sha256=bundle_digest(bundle),
            progress=self.progress,
        )
        scores.save(self.store.file(trial, RETENTION_FILE))

    def measure_retention_of_base(self) -> None:
        """Scores of the base model on the retention tasks."""
        if self.retention is not None:
            scores = measure_model(self.base_pipeline().generator, BASE, self.retention, progress=self.progress)
            scores.save(self.store.base_retention_file)
