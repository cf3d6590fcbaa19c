"""`rag sweep`: recipes, with and without SelfAug, over seeds and a grid of settings; one comparison at the end.

    questions, index -> for each row: fresh pipeline -> train -> bundle -> score -> compare

All rows are trained on the same questions for the same number of rounds; the round that is kept is chosen on evaluation
questions, and the table is filled from test questions that nothing was chosen by. A row lives in a folder of its own:

    rows/NAME/run/             the run of the trainer (`rag train` writes the same)
    rows/NAME/bundle/          the trained pipeline
    rows/NAME/evaluation.json  every test question, with its answer and scores
    rows/NAME/forgetting.json  what is left of the base model
    rows/NAME/row.json         written last: the row is finished

Rows that are finished are not done again, one that was interrupted continues after its last round, and one that fails
is reported and holds up nobody. `sweep.json` holds no times, so the same sweep is the same file; they are in
`seconds.json`.
"""

import itertools
import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from generator.adapters import BASE
from generator.configs import AdapterConfig, ChatConfig, DecodingConfig
from generator.language_model import best_device
from indexes import build_index
from indexes.atomic_files import exclusive_writer_lock, read_json
from indexes.dataclass_json import to_json_object
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import RAGError, UsageError
from indexes.records.delimited import Quoting
from indexes.tiny_encoder import TINY
from rag.evaluation.evaluation import Evaluation, evaluate, filter_answerable
from rag.evaluation.evaluation_file import (
    EvaluationFile,
    bundle_digest,
    evaluation_file,
    read_evaluation,
    write_json,
)
from rag.experiments.recipes import RECIPES, Variant
from rag.experiments.sweep_options import DOMAIN_NAMES, SHARED_DEFAULTS, WorldSettings
from rag.experiments.sweep_results import (
    SAMPLES,
    RowResult,
    cells,
    compare,
    extremes,
    question_of,
    retriever_recall,
    sweep_pairs,
    variant_name,
    without_timings,
)
from rag.experiments.workers import Helpers, claim, forget_claims, leave_with_parent
from rag.forgetting.general_tasks import GeneralTask, make_general_tasks
from rag.forgetting.measurement import ModelScores, forgetting_table, measure_general_tasks, measure_model
from rag.forgetting.retention_tasks import retention_tasks_of
from rag.logs import set_up_logs
from rag.model_loading import encoder_of
from rag.pipeline import RAG
from rag.report import with_evaluation_records, write_report
from rag.report.result_files import SECONDS_FILE, SWEEP_FILE, with_seconds
from rag.worlds.domain import Domain, encyclopedia
from rag.worlds.unseen_domain import UNSEEN
from rag.worlds.world import write_world
from retriever.dense import DenseRetriever
from retriever.selector_config import SelectorConfig
from training import DROConfig, DROTrainer, QAExample, load_examples
from training.config import flatten
from training.questions.context_fit import (
    filter_fitting,
    filter_fitting_with_answers,
    refuse_too_long,
    warn_of_too_long,
)
from training.questions.loading import write_examples
from training.run_folder import RUN_FILE

logger = logging.getLogger(__name__)

DOMAINS: dict[str, Callable[[], Domain]] = dict(zip(DOMAIN_NAMES, (lambda: UNSEEN, encyclopedia), strict=True))
SETTINGS_FILE = "sweep-settings.json"
FORMAT_VERSION = 1
RETENTION_FILE = "retention.json"
SPLITS = ("train", "eval", "test")
# Of DROConfig: every row has its own, or all rows have the sweep's.
_OWN = ("seed", "max_train_samples", "max_eval_samples", "ignore_identical_ids")
_WHICH_ROWS = ("recipes", "with_selfaug", "seeds", "grid", "ours")


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What is compared, on which questions."""

    recipes: tuple[str, ...] = tuple(RECIPES)
    """Names from `rag.experiments.recipes`; with `_selfaug` behind it a recipe has the SelfAug term."""
    with_selfaug: bool = False
    """Also the SelfAug twin of each recipe whose generator learns."""
    seeds: tuple[int, ...] = (42,)
    """Of every draw and of the batches; one row for each."""
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Settings of `DROConfig` by their dotted names (`m_step.learning_rate`), with the values to try: one row for each
    combination. A recipe that sets one itself keeps its own value, so that its rows for the values are the same."""
    ours: str = "auto"
    """Which of the recipes is held against every other; "auto": DRO with SelfAug, or without where that is not there,
    else the last."""

    index: str | None = None
    """Index directory (with files of questions)."""
    train_dataset: str | None = None
    eval_dataset: str | None = None
    """Questions that choose the round that is kept, and draw the curves."""
    test_dataset: str | None = None
    """Questions that fill the table."""
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    max_test_samples: int | None = None
    world: WorldSettings | None = None
    """An invented world in place of index and files."""
    answerable_only: bool = True
    """Leave out training questions that no candidate answers."""
    ignore_identical_ids: bool | None = None
    """As in `training.questions.loading.load_examples`, for the questions of all three files."""
    quoting: Quoting = "auto"
    """As in `training.questions.loading.load_examples`, for the questions of all three files."""

    base: str = TINY
    """Causal LM: Hub name, folder, or "tiny"."""
    revision: str | None = None
    encoder: str | None = None
    retriever: str = DenseRetriever.kind
    dtype: str = "auto"
    device: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    trust_remote_code: bool = False
    selector: SelectorConfig = field(default_factory=SelectorConfig)
    """n, K and decoding of every row that does not read documents alone."""
    documents: int | None = None
    """How many documents RAG-Sequence and RAG-Token sum over; None: K, and at least 3."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `DROConfig` that all rows share, dotted or nested; `selfaug.alpha` is of the rows with SelfAug."""
    general_tasks: int = 48
    """General tasks of the tiny base model: this number after each round, twice as many at the end. 0: none."""
    general_tasks_seed: int = 42
    retention: Mapping[str, Any] = field(default_factory=dict)
    """Retention tasks on which every trial is compared with the base model, as keywords of
    `rag.forgetting.retention_tasks.RetentionTasks`: {"pairs": ["blimp.jsonl"]}. Empty: only the general tasks."""

    def __post_init__(self) -> None:
        for name in ("recipes", "seeds"):
            if not getattr(self, name):
                raise UsageError(f"A sweep needs at least one of its {name}; none came.")
        files = {name: getattr(self, name) for name in ("index", *(f"{split}_dataset" for split in SPLITS))}
        missing = [name for name, file in files.items() if file is None]
        if (self.world is None and missing) or (self.world is not None and len(missing) < len(files)):
            raise UsageError(
                "A sweep needs either a world, or an index with train_dataset, eval_dataset and test_dataset; "
                f"{'a world' if self.world else 'no world'} and {[n for n in files if n not in missing]} came."
            )
        self._check_fields("training", self.training)
        self._check_fields("grid", self.grid)
        if empty := [name for name, values in self.grid.items() if not values]:
            raise UsageError(f"Each setting of the grid needs values to try; {empty} has none.")
        if self.documents is not None and self.documents < 1:
            raise UsageError(f"documents must be at least 1; {self.documents} came.")
        retention_tasks_of(self.retention)  # refuses unknown kinds
        self.rows()  # every configuration is made, so that a wrong one is found before the first row
        if self.ours != "auto" and Variant.of(self.ours) not in self.variants().values():
            raise UsageError(f"ours must be one of the rows, {list(self.variants())}, or auto; {self.ours!r} came.")

    @staticmethod
    def _check_fields(what: str, given: Mapping[str, Any]) -> None:
        names = flatten(given)
        DROConfig.check_names(names)
        if own := sorted(set(names) & set(_OWN)):
            raise UsageError(f"{what} must name settings that every row may share; got {own}, which the sweep sets.")

    def shared_config(self, seed: int, changes: Mapping[str, Any]) -> DROConfig:
        """What the rows of one cell of the grid share."""
        return DROConfig().with_settings({**SHARED_DEFAULTS, **flatten(self.training), **changes, "seed": seed})

    def variants(self) -> dict[str, Variant]:
        """What is compared, by name: each once, under the first name that it was given.

        Raises:
            UsageError: An unknown recipe, or SelfAug where nothing is trained that it could hold back.
        """
        found = [(name, Variant.of(name)) for name in self.recipes]
        if self.with_selfaug:
            found += [(twin.name, twin) for _, variant in found if (twin := variant.twin) is not None]
        first: dict[str, tuple[str, Variant]] = {}
        for name, variant in found:
            first.setdefault(variant.name, (name, variant))
        return dict(first.values())

    def rows(self) -> list["Row"]:
        """One for each recipe, seed and cell of the grid, in the order of the table.

        Raises:
            UsageError: As for `variants`, or settings that cannot be.
        """
        variants = self.variants()
        cells = [
            (seed, dict(zip(self.grid, values, strict=True)))
            for seed in self.seeds
            for values in itertools.product(*self.grid.values())
        ]
        rows = [
            Row.of(name, variant, seed, changes, self) for seed, changes in cells for name, variant in variants.items()
        ]
        unique = {row.name: row for row in rows}
        for row in unique.values():
            row.variant.config(self.shared_config(row.seed, row.changes))
        return list(unique.values())

    def to_json(self) -> dict[str, Any]:
        """As it is written; `from_json` reads it."""
        return dict(json.loads(json.dumps(asdict(self), default=str)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SweepSettings":
        """What `to_json` made."""
        data = _as_written_now(data)
        kinds = {
            "selector": SelectorConfig,
            "decoding": DecodingConfig,
            "adapter": AdapterConfig,
            "chat": ChatConfig,
        }
        made: dict[str, Any] = {name: kind(**data[name]) for name, kind in kinds.items()}
        made["world"] = None if data["world"] is None else WorldSettings(**data["world"])
        return cls(**{**data, **made, "recipes": tuple(data["recipes"]), "seeds": tuple(data["seeds"])})


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    variant: Variant
    seed: int
    changes: Mapping[str, Any]
    label: str
    """For tables."""

    @classmethod
    def of(cls, name: str, variant: Variant, seed: int, changes: Mapping[str, Any], settings: SweepSettings) -> "Row":
        """Named after its recipe, and after its seed and its cell where there are several."""
        if variant.recipe.training is None:  # the same whatever is drawn, and with any setting of training
            return cls(name, variant, settings.seeds[0], {}, variant.label)
        parts = [f"seed={seed}"] if len(settings.seeds) > 1 else []
        parts += [f"{key}={value}" for key, value in changes.items() if len(settings.grid[key]) > 1]
        folder = "-".join([name, *parts]).replace("/", "_")
        return cls(folder, variant, seed, dict(changes), " ".join([variant.label, *parts]))


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


class Sweep:
    """One folder with the questions, a folder for each row, and the comparison.

    Args:
        folder: Where everything is written; an unfinished sweep with the same settings is continued, and one that
            differs in its rows alone is extended.
        settings: What is compared.
        progress: Show progress bars.
        on_row: Called with the name of each row before it starts in this process.
        workers: Processes that do rows at the same time and share the cores (None: `default_workers`).

    Raises:
        UsageError: The folder holds something else, or fewer than one worker.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: SweepSettings,
        *,
        progress: bool = True,
        on_row: Callable[[str], None] = lambda name: None,
        workers: int | None = 1,
    ) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"workers must be at least 1; {workers} came.")
        self.folder, self.settings, self.progress, self.on_row = Path(folder), settings, progress, on_row
        self.rows = settings.rows()
        self.workers = min(workers or default_workers(), len(self.rows))
        self.tasks = make_general_tasks(settings.general_tasks, seed=settings.general_tasks_seed)
        self.retention = retention_tasks_of(settings.retention)
        self._open_folder()

    # -- the story ---------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Do every row that is not done yet and compare them; writes sweep.json, seconds.json and report.html.

        Returns:
            What `rag.report` shows: sweep.json with the times; `failed` lists rows that failed, with the reason.

        Raises:
            RAGError: Every row failed.
            UsageError: Another process is at this sweep.
        """
        with exclusive_writer_lock(self.folder):
            return self._run()

    def _run(self) -> dict[str, Any]:
        questions = self.questions()
        results, failed = self.complete(questions)
        data = self._compared(results, questions) | {"failed": failed}
        # Of the rows and not of this process, which may have found most of them done.
        seconds = {"total": math.fsum(r.seconds for r in results), "rows": {r.name: r.seconds for r in results}}
        write_json(data, self.folder / SWEEP_FILE)
        write_json(seconds, self.folder / SECONDS_FILE)
        timed = with_seconds(data, seconds) | {"curves": {r.name: list(r.curve) for r in results if r.curve}}
        write_report(with_evaluation_records(timed, self.folder), self.folder / "report.html")
        return timed

    def complete(self, questions: Mapping[str, list[QAExample]]) -> tuple[list[RowResult], list[dict[str, str]]]:
        """Do every row that is not done yet; returns the finished ones, and those that failed with the reason.

        Raises:
            RAGError: Every row failed.
        """
        for row in self.rows:
            self._file(row, "failed.json").unlink(missing_ok=True)  # tried again
        forget_claims(self.folder)  # of a sweep that was killed
        with self._helpers():
            self.do_rows(questions)
        forget_claims(self.folder)
        self.do_rows(questions)  # what a helper left that was killed
        failed = [self._failure(row) for row in self.rows if not self.is_done(row)]
        if len(failed) == len(self.rows):
            raise RAGError(f"Every row of the sweep failed; the first: {failed[0]['error']}")
        return [self.result(row) for row in self.rows if self.is_done(row)], failed

    def do_rows(self, questions: Mapping[str, list[QAExample]]) -> None:
        """Do the rows that nobody has done or claimed: from the first, or, beside others, from the last (the longest).

        A row that fails leaves `failed.json` and the next one begins.
        """
        rows = list(enumerate(self.rows, 1))
        self._measure_retention_of_base()
        for number, row in rows if self.workers == 1 else reversed(rows):
            if self.is_done(row) or self._file(row, "failed.json").is_file() or not claim(self.folder, row.name):
                continue
            logger.info("Row %d of %d: %s.", number, len(rows), row.label)
            self.on_row(row.name)
            try:
                self._row(row, questions)
            except Exception as error:
                logger.error("Row %s failed: %s", row.name, error)
                text = f"{type(error).__name__}: {error}"
                write_json({"error": text, "traceback": traceback.format_exc()}, self._file(row, "failed.json"))

    def _row(self, row: Row, questions: Mapping[str, list[QAExample]]) -> None:
        """Train one recipe and score it."""
        started = time.perf_counter()
        folder = self.folder_of(row)
        rag = self.pipeline(row, self.index())
        config = self.config(row)
        curve: list[dict[str, Any]] = []
        if config is not None:
            run = self._file(row, "run")
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
        bundle = rag.save_pretrained(folder / "bundle", report=[without_timings(record) for record in curve])
        evaluation = evaluate(rag, questions["test"], progress=self.progress)
        file = evaluation_file(rag, evaluation, name=row.name, label=row.label, bundle=bundle)
        write_json(file.to_dict(), folder / "evaluation.json")
        write_json(self._forgetting(rag), folder / "forgetting.json")
        self._measure_retention(row, rag, bundle)
        seconds = time.perf_counter() - started
        done = {
            "name": row.name,
            "seconds": seconds,
            "curve": [_finite(record) for record in curve],
            "training": config and _comparable(config, row),
        }
        write_json(done, folder / "row.json")

    def _forgetting(self, rag: RAG) -> dict[str, Any]:
        if not self.tasks:
            return {"general": [], "kl_drift": None}
        more = make_general_tasks(2 * len(self.tasks), seed=self.settings.general_tasks_seed + 1)
        forgetting = measure_general_tasks(rag.generator, more)
        return {"general": forgetting.right, "kl_drift": forgetting.kl_drift}

    def _measure_retention(self, row: Row, rag: RAG, bundle: Path) -> None:
        """Scores on the retention tasks; a generator that was not trained has those of the base model."""
        if self.retention is None or rag.generator.language_model.is_untrained("generator"):
            return
        name, digest = row.name, bundle_digest(bundle)
        scores = measure_model(
            rag.generator, "generator", self.retention, name=name, bundle_sha256=digest, progress=self.progress
        )
        scores.save(self._file(row, RETENTION_FILE))

    def _measure_retention_of_base(self) -> None:
        """The base model on the retention tasks: a job like any trial."""
        file = self._base_retention
        if self.retention is not None and not file.is_file() and claim(self.folder, file.name):
            measure_model(self._vanilla().generator, BASE, self.retention, progress=self.progress).save(file)

    @property
    def _base_retention(self) -> Path:
        return self.folder / f"base-{RETENTION_FILE}"

    def _forgotten(self) -> dict[str, Any]:
        """The forgetting table of all trials whose generator was trained, where there are retention tasks."""
        if self.retention is None:
            return {}
        files = [self._file(row, RETENTION_FILE) for row in self.rows if self.is_done(row)]
        scores = [ModelScores.load(file) for file in (self._base_retention, *files) if file.is_file()]
        return {"forgetting": forgetting_table(scores).to_dict()}

    def _compared(self, results: Sequence[RowResult], questions: Mapping[str, list[QAExample]]) -> dict[str, Any]:
        ours = self._ours(results)
        shown = cells(results)[0]
        return {
            "kind": "sweep",
            "format_version": FORMAT_VERSION,
            "settings": self.settings.to_json(),
            "dataset": to_json_object(results[0].evaluation.dataset),
            "answerable_questions": len(questions["train"]),
            **({"too_long": too_long} if (too_long := self._too_long()) else {}),
            "rows": [r.table_row() for r in results],
            "retriever": retriever_recall(results),
            "comparisons": [c.to_dict() for c in compare(sweep_pairs(results, ours))],
            "evaluations": {
                r.name: {k: v for k, v in r.evaluation.to_dict().items() if k != "records"} for r in results
            },
            "curves": {r.name: r.timeless_curve() for r in results if r.curve},
            "samples": [question_of(shown, i) for i in range(min(SAMPLES, len(shown[0].evaluation.records)))],
            "questions": extremes(results, ours),
            **self._forgotten(),
        }

    def _ours(self, results: Sequence[RowResult]) -> str:
        if self.settings.ours != "auto":
            return Variant.of(self.settings.ours).name
        names = [variant_name(r) for r in results]
        return next((name for name in ("dro_selfaug", "dro") if name in names), names[-1])

    # -- parts -------------------------------------------------------------------------------------------------

    def questions(self) -> dict[str, list[QAExample]]:
        """Questions of the three splits; gathered once and kept in the folder, so that all rows see the same."""
        files = {split: self.folder / "questions" / f"{split}.jsonl" for split in SPLITS}
        if not all(file.is_file() for file in files.values()):
            for split, examples in self._gathered().items():
                write_examples(examples, files[split])
        return {split: load_examples(file) for split, file in files.items()}

    def _gathered(self) -> dict[str, list[QAExample]]:
        s = self.settings
        if s.world is not None:
            found = self._of_world(s.world)
        else:
            limits = {"train": s.max_train_samples, "eval": s.max_eval_samples, "test": s.max_test_samples}
            found = {
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
        rag = self._vanilla()
        found = {split: self._that_fit(rag, split, examples) for split, examples in found.items()}
        if s.answerable_only:
            found["train"] = filter_answerable(rag, found["train"])
        return found

    def _that_fit(self, rag: RAG, split: str, examples: list[QAExample]) -> list[QAExample]:
        """The questions that every row can be asked: also one whose selector has learned to read its prompt.

        Rows are compared on the same questions, so one that does not fit some of them is left out of all.
        """
        fitting = filter_fitting_with_answers if split == "train" else filter_fitting
        fitted = fitting(examples, rag.selector, rag.generator, learning=True)
        if not fitted.kept:
            refuse_too_long(fitted.too_long, len(examples), f"{split} questions", "give other questions")
        warn_of_too_long(fitted.too_long, len(examples), f"{split} questions")
        self._write_too_long(split, sorted(fitted.too_long))
        return fitted.kept

    @property
    def _too_long_file(self) -> Path:
        return self.folder / "questions" / "too_long.json"

    def _write_too_long(self, split: str, ids: list[str]) -> None:
        if ids:
            write_json(self._too_long() | {split: ids}, self._too_long_file)

    def _too_long(self) -> dict[str, list[str]]:
        """Ids of the questions of each split that do not fit the model's context and were left out."""
        file = self._too_long_file
        return read_json(file, "Name another folder with --output_dir.") if file.is_file() else {}

    def _of_world(self, world: WorldSettings) -> dict[str, list[QAExample]]:
        folder = self.folder / "world"
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

    def _vanilla(self) -> RAG:
        return self.pipeline(Row.of("vanilla", Variant.of("vanilla"), 0, {}, self.settings), self.index())

    def index(self) -> PassageIndex:
        """That of the questions; of a world it is built when it is not there."""
        if self.settings.world is None:
            return PassageIndex.open(str(self.settings.index))
        folder = self.folder / "world" / "index"
        if not folder.is_dir():
            corpus = self.folder / "world" / "corpus.jsonl"
            build_index(corpus, Encoder.from_pretrained(TINY), folder, resume=True, progress=self.progress)
        return PassageIndex.open(folder)

    def pipeline(self, row: Row, index: PassageIndex) -> RAG:
        """A fresh one, as the row's recipe has it."""
        s = self.settings
        documents = s.documents or max(3, s.selector.num_selected)
        return RAG.create(
            index=index,
            encoder=encoder_of(index, s.encoder, device=s.device, trust_remote_code=s.trust_remote_code),
            retriever=s.retriever,
            base=s.base,
            revision=s.revision,
            selector=row.variant.selector(s.selector, documents),
            decoding=s.decoding,
            adapter=s.adapter,
            chat=s.chat,
            dtype=s.dtype,
            device=s.device,
            quantization=s.quantization,
            context_length=s.context_length,
            trust_remote_code=s.trust_remote_code,
            answer_mode=row.variant.recipe.answer_mode,
        )

    def config(self, row: Row) -> DROConfig | None:
        """How the row is trained; None: not at all."""
        return row.variant.config(self.settings.shared_config(row.seed, row.changes))

    # -- files -------------------------------------------------------------------------------------------------

    def _open_folder(self) -> None:
        file, ours = self.folder / SETTINGS_FILE, self.settings.to_json()
        written = _as_written_now(read_json(file, "Name another folder with --output_dir.")) if file.is_file() else None
        if written is None and self.folder.exists() and any(self.folder.iterdir()):
            what = "something else"
        elif written is not None and _data_of(written) != _data_of(ours):
            different = sorted(name for name, value in _data_of(ours).items() if written.get(name) != value)
            what = f"a run with other settings, namely other values of {different}"
        else:
            self._check_rows()
            write_json(ours, file)
            return
        raise UsageError(
            f"A sweep needs a new or empty folder, or one of its own to continue; {self.folder} holds "
            f"{what}. Name another folder with --output_dir."
        )

    def _check_rows(self) -> None:
        """Refuse a row that was trained under its name with another seed, or in another cell of the grid."""
        for row in self.rows:
            trained, written = self.config(row), self._trained_with(row)
            if trained is None:
                continue
            ours = _comparable(trained, row)
            different = sorted(name for name in ours.keys() & written.keys() if ours[name] != written[name])
            if different:
                raise UsageError(
                    f"A row must be what its name says; {self.folder_of(row)} was trained with "
                    f"{ {name: written[name] for name in different} }, and now "
                    f"{ {name: ours[name] for name in different} } came. Name both values, so that each has a row of "
                    "its own, or another folder with --output_dir."
                )

    def _trained_with(self, row: Row) -> dict[str, Any]:
        """The settings of a row's training as they were written down, as far as they were."""
        found: dict[str, Any] = {}
        for name, key in (("run/run.json", "config"), ("row.json", "training")):
            file = self._file(row, name)
            # One that a kill cut off, or that is being written, is no evidence.
            with suppress(FileNotFoundError, json.JSONDecodeError):
                found |= flatten(json.loads(file.read_text(encoding="utf-8")).get(key) or {})
        return found

    def folder_of(self, row: Row) -> Path:
        """Where everything about a row is."""
        return self.folder / "rows" / row.name

    def _file(self, row: Row, name: str) -> Path:
        return self.folder_of(row) / name

    def is_done(self, row: Row) -> bool:
        """Whether it is trained and scored."""
        return self._file(row, "row.json").is_file()

    def result(self, row: Row, *, evaluation: EvaluationFile | None = None) -> RowResult:
        """What was written of a finished row; `evaluation` stands in place of that on the test questions."""
        done, forgetting = (
            read_json(self._file(row, f"{name}.json"), f"Delete {self.folder_of(row)} to train it again.")
            for name in ("row", "forgetting")
        )
        return RowResult(
            name=row.name,
            label=row.label,
            recipe=row.variant.recipe.name,
            selfaug=row.variant.selfaug,
            seed=row.seed,
            changes=row.changes,
            evaluation=evaluation or read_evaluation(self._file(row, "evaluation.json")),
            general=forgetting["general"],
            kl_drift=forgetting["kl_drift"],
            curve=done["curve"],
            seconds=done["seconds"],
        )

    def _failure(self, row: Row) -> dict[str, str]:
        file = self._file(row, "failed.json")
        error = read_json(file, "Delete it.").get("error", "unknown") if file.is_file() else "nobody did it"
        return {"name": row.name, "label": row.label, "error": error}

    def _helpers(self) -> Helpers:
        told = {"quiet": not logger.isEnabledFor(logging.INFO), "progress": self.progress}
        code = f"import json, sys; from {__name__} import help_out; help_out(sys.argv[1], **json.loads(sys.argv[2]))"
        missing = sum(not self.is_done(row) for row in self.rows)
        return Helpers(max(0, min(self.workers, missing) - 1), code, [str(self.folder), json.dumps(told)])


def _as_written_now(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the defaults of those that a sweep did not have when it began, also inside of its parts."""
    parts = {
        "world": WorldSettings,
        "selector": SelectorConfig,
        "decoding": DecodingConfig,
        "adapter": AdapterConfig,
        "chat": ChatConfig,
    }
    now = _defaults(SweepSettings) | dict(settings)
    return now | {
        name: _defaults(kind) | now[name] for name, kind in parts.items() if isinstance(now.get(name), Mapping)
    }


def _defaults(kind: Any) -> dict[str, Any]:
    """Of the fields of a dataclass that have one, as JSON has them."""
    made = {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}
    made |= {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    parts = {name: asdict(value) if is_dataclass(value) else value for name, value in made.items()}  # type: ignore[arg-type]
    return dict(json.loads(json.dumps(parts, default=str)))


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON can hold it: a number that is none is left out."""
    return {k: v for k, v in record.items() if not isinstance(v, float) or math.isfinite(v)}


def _comparable(config: DROConfig, row: Row) -> dict[str, Any]:
    """What a sweep asks of a row's training beside its recipe, as JSON has it."""
    own = row.variant.recipe.training or ()
    return {k: v for k, v in flatten(json.loads(json.dumps(config.to_dict(), default=str))).items() if k not in own}


def _data_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change between two runs over one folder: everything but which rows there are."""
    return {name: value for name, value in settings.items() if name not in _WHICH_ROWS}


# -- several processes -----------------------------------------------------------------------------------------


def default_workers() -> int:
    """One for each thread that torch may use on a CPU; one where there is an accelerator.

    The tiny model's operations are too short to be shared out: two processes of one thread each do nearly twice the
    work of one with two threads.
    """
    return torch.get_num_threads() if best_device() == "cpu" else 1


def help_out(folder: str, *, quiet: bool, progress: bool) -> None:
    """Do rows of a sweep that another process has opened, until none is left."""
    leave_with_parent()
    set_up_logs(debug=False, quiet=quiet)
    settings = SweepSettings.from_json(read_json(Path(folder) / SETTINGS_FILE, "Start the sweep again."))
    sweep = Sweep(folder, settings, progress=progress, workers=2)
    sweep.do_rows(sweep.questions())
