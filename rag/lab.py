"""The laboratory: every claim about DRO and SelfAug, measured on an invented world with the pocket models.

    world -> index -> for each recipe: fresh pipeline -> train -> score on the same held-out questions -> compare

A recipe is a row of the final table. All trained rows see the same questions (those that some candidate answers) for
the same number of rounds, none sees which passages are gold, and the round that is kept is chosen on validation
questions, not on those of the table. Held-out questions are taken as they come.

| row | what it is |
|---|---|
| base | the base model reads the retriever's top K |
| sft | LoRA, supervised on the retriever's top K: an E-step with one certain permutation |
| rag_sequence | LoRA, marginalised over single documents (RAG-Sequence, arXiv 2005.11401) |
| dro_no_selector | DRO whose selector stays the retriever's order |
| dro_no_generator | DRO whose generator stays the base model |
| dro | DRO (arXiv 2505.03075) |
| dro_selfaug | DRO with the SelfAug term (arXiv 2509.03934) |
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from generator.generator import GenerationConfig, Generator
from generator.language_model import AdapterConfig, best_device
from indexes import build_index
from indexes.errors import UsageError
from indexes.hardware import fast_bfloat16
from indexes.passage_index import PassageIndex
from rag.cli import set_up_logs
from rag.encyclopedia import write
from rag.evaluation import Answerer, Evaluation, answerable, evaluate
from rag.forgetting import Forgetting, measure_forgetting
from rag.pipeline import RAG
from rag.pocket import POCKET, load_encoder
from rag.pocket.abilities import Exercise, exercises
from rag.pocket.domain import Domain, encyclopedia
from rag.pocket.harbour import HARBOUR
from rag.pocket.world import write_world
from rag.rag_sequence import RAGSequence
from rag.significance import bootstrap_interval, paired_bootstrap
from rag.workers import Helpers, claim, forget_claims, leave_with_parent
from retriever.dense import Retriever
from retriever.selector import Selector, SelectorConfig
from training import DROConfig, DROTrainer, QAExample, load_examples
from training.checkpoint import load_learned

logger = logging.getLogger(__name__)

LABELS = {
    "base": "base model, retrieved top K",
    "sft": "supervised LoRA on top K",
    "rag_sequence": "RAG-Sequence (single documents)",
    "dro_no_selector": "DRO, selector not trained",
    "dro_no_generator": "DRO, generator not trained",
    "dro": "DRO",
    "dro_selfaug": "DRO + SelfAug",
}
DOMAINS: dict[str, Callable[[], Domain]] = {"harbour": lambda: HARBOUR, "encyclopedia": encyclopedia}
LAB_FILE = "lab.json"
SAMPLES = 8
# Choosing a permutation at almost no temperature is choosing the most probable one.
_CERTAIN = 1e-4


@dataclass(frozen=True, kw_only=True)
class LabSettings:
    """Sizes of one run of the laboratory."""

    mode: str = "default"
    rows: tuple[str, ...] = ("base", "sft", "dro_selfaug")
    seed: int = 42
    """Of the world, of every draw and of the batches."""
    domain: str = "harbour"
    """What the world is about: "harbour", of which the pocket base has never read, or "encyclopedia", whose wording it
    was made on."""
    similar_names: int = 6
    """Other entities that are easily taken for the one that is asked about."""
    train_questions: int = 128
    """Those that no candidate answers are left out of training."""
    validation_questions: int = 24
    """They choose the round that is kept, and draw the curves."""
    test_questions: int = 96
    """They fill the table."""
    rounds: int = 2
    num_candidates: int = 9
    num_selected: int = 2
    """About the paper's share: 5 of 20."""
    num_samples: int = 4
    oversampling: int = 8
    """Different permutations drawn for each one that is scored; 1 draws with replacement, as the paper."""
    learning_rate: float = 2e-3
    selector_learning_rate: float = 3e-4
    lora_r: int = 16
    selfaug_alpha: float = 4.0
    gradient_accumulation_steps: int = 2
    exercises: int = 48
    """General-ability tasks behind the last columns."""
    encyclopedia_questions: int = 32
    """Real-facts questions that the last row answers at the end."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.rows if name not in LABELS]
        if unknown or not self.rows:
            raise UsageError(f"rows must name some of {list(LABELS)}; {list(self.rows)} came.")
        if self.domain not in DOMAINS:
            raise UsageError(f"domain must be one of {list(DOMAINS)}; {self.domain!r} came.")


class Watched:
    """A pipeline whose every evaluation also measures what was forgotten: what the trainer sees of a pipeline."""

    def __init__(self, rag: RAG, answerer: Answerer, tasks: Sequence[Exercise]) -> None:
        self.rag, self.answerer, self.tasks = rag, answerer, tasks
        self.retriever: Retriever = rag.retriever
        self.selector: Selector = rag.selector
        self.generator: Generator = rag.generator

    def evaluate(self, examples: Sequence[QAExample], *, progress: bool = True) -> dict[str, float]:
        """Metrics of the answers, and `general` and `kl_drift`."""
        forgetting = measure_forgetting(self.generator, self.tasks)
        metrics = evaluate(self.answerer, examples, progress=progress).metrics
        return metrics | {"general": forgetting.general, "kl_drift": forgetting.kl_drift}


class Lab:
    """One run: a folder with the world, its index, one training run per row and one result per row.

    Rows that are finished are not done again, and a row that was interrupted continues after its last round.

    Args:
        folder: Where everything is written; an unfinished run with the same settings is continued.
        settings: Sizes.
        progress: Show progress bars.
        on_row: Called with the name of each row before it starts in this process.
        workers: Processes that do rows at the same time and share the cores (None: `default_workers`).

    Raises:
        UsageError: The folder holds something else, or fewer than one worker.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: LabSettings,
        *,
        progress: bool = True,
        on_row: Callable[[str], None] = lambda name: None,
        workers: int | None = 1,
    ) -> None:
        if workers is not None and workers < 1:
            raise UsageError(f"workers must be at least 1; {workers} came.")
        self.folder, self.settings, self.progress, self.on_row = Path(folder), settings, progress, on_row
        self.workers = min(workers or default_workers(), len(settings.rows))
        self.tasks = exercises(settings.exercises, seed=settings.seed)
        self._open_folder()

    # -- the story ---------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Do every row that is not done yet, and compare them; returns what `rag.report` shows."""
        questions = self._world()
        forget_claims(self.folder)  # of a run that was killed
        with self._helpers():
            self.do_rows(questions)
        forget_claims(self.folder)
        self.do_rows(questions)  # what a helper failed at, if any did
        results = [self._finished(name) for name in self.settings.rows]
        return {
            "mode": self.settings.mode,
            "settings": asdict(self.settings),
            "answerable_questions": len(questions["train"]),
            "rows": [_table_row(result, self.settings.seed) for result in results],
            "retriever": results[0]["retriever"],
            "comparisons": compare(results),
            "curves": {r["name"]: r["curve"] for r in results if r["curve"]},
            "samples": _samples(results, questions["test"]),
            "encyclopedia": self._encyclopedia(self.settings.rows[-1]),
        }

    def _helpers(self) -> Helpers:
        told = {"quiet": not logger.isEnabledFor(logging.INFO), "progress": self.progress}
        code = "import json, sys, rag.lab; rag.lab.help_out(sys.argv[1], **json.loads(sys.argv[2]))"
        missing = sum(not self._result_file(name).is_file() for name in self.settings.rows)
        return Helpers(max(0, min(self.workers, missing) - 1), code, [str(self.folder), json.dumps(told)])

    def do_rows(self, questions: Mapping[str, list[QAExample]]) -> None:
        """Do the rows that nobody has done or claimed: from the shortest, or, beside others, from the longest."""
        rows = list(enumerate(self.settings.rows, 1))
        for number, name in rows if self.workers == 1 else reversed(rows):
            if self._result_file(name).is_file() or not claim(self.folder, name):
                continue
            logger.info("Row %d of %d: %s.", number, len(rows), LABELS[name])
            self.on_row(name)
            self._row(name, questions)

    def _row(self, name: str, questions: Mapping[str, list[QAExample]]) -> dict[str, Any]:
        """Train one recipe and score it."""
        started = time.perf_counter()
        rag = self._pipeline(name, self._index("world"))
        answerer: Answerer = RAGSequence(rag) if name == "rag_sequence" else rag
        curve: list[dict[str, Any]] = []
        if name != "base":
            watched = Watched(rag, answerer, self.tasks)
            config = self._config(name)
            curve = DROTrainer(
                watched, config, questions["train"], questions["validation"], progress=self.progress
            ).train()
            rag.save_pretrained(self.folder / "bundles" / name, report=curve)
        evaluation = evaluate(answerer, questions["test"], progress=self.progress)
        forgetting = measure_forgetting(rag.generator, exercises(2 * len(self.tasks), seed=self.settings.seed + 1))
        result = _result(name, curve, evaluation, forgetting, time.perf_counter() - started)
        _write_json(self._result_file(name), result)
        return result

    # -- parts -------------------------------------------------------------------------------------------------

    def _world(self) -> dict[str, list[QAExample]]:
        """Write the world once, index it once; returns its questions."""
        s, folder = self.settings, self.folder / "world"
        if not (folder / "dev.jsonl").is_file():
            write_world(
                folder,
                seed=s.seed,
                domain=DOMAINS[s.domain](),
                similar_names=s.similar_names,
                train_questions=s.train_questions,
                dev_questions=s.validation_questions + s.test_questions,
            )
        held_out = load_examples(folder / "dev.jsonl", require_answers=True)
        retrieved = self._pipeline("base", self._index("world"))
        return {
            "train": answerable(retrieved, load_examples(folder / "train.jsonl", require_answers=True)),
            "validation": held_out[: s.validation_questions],
            "test": held_out[s.validation_questions :],
        }

    def _index(self, name: str) -> PassageIndex:
        folder = self.folder / name / "index"
        if not folder.is_dir():
            corpus = self.folder / name / "corpus.jsonl"
            build_index(corpus, load_encoder(POCKET), folder, resume=True, progress=self.progress)
        return PassageIndex.open(folder)

    def _pipeline(self, name: str, index: PassageIndex) -> RAG:
        s = self.settings
        # RAG-Sequence reads one document at a time, and one more of them than the others when those read two.
        n, k = (s.num_candidates, s.num_selected) if name != "rag_sequence" else (max(3, s.num_selected), 1)
        return RAG.create(
            index=index,
            base=POCKET,
            # The pocket base learned to rank with the identifiers of the answer prompt.
            selector=SelectorConfig(num_candidates=n, num_selected=k, identifiers="numbers"),
            generation=GenerationConfig(max_new_tokens=24),
            dtype="mixed" if best_device() == "cpu" and fast_bfloat16() else "auto",
            adapter=AdapterConfig(r=s.lora_r, lora_alpha=2 * s.lora_r),
        )

    def _config(self, name: str) -> DROConfig:
        """The recipe of one row."""
        s = self.settings
        folder = self.folder / "runs" / name
        shared = DROConfig(
            output_dir=folder,
            resume=(folder / "run.json").is_file(),
            rounds=s.rounds,
            num_samples=s.num_samples,
            oversampling=s.oversampling,
            replacement=s.oversampling == 1,
            learning_rate=s.learning_rate,
            selector_learning_rate=s.selector_learning_rate,
            gradient_accumulation_steps=s.gradient_accumulation_steps,
            # The base reads and ranks already. Warm-up towards gold passages would tell which they are, and warm-up
            # towards the retriever's order would only sharpen the prior until nothing else is ever drawn.
            warm_up_epochs=0,
            selfaug_alpha=0.0,
            selfaug_rows="one",
            metric_for_best_model="exact_match",
            seed=s.seed,
        )
        recipes: dict[str, dict[str, Any]] = {
            "sft": {"train_selector": False, "num_samples": 1, "proposal_temperature": _CERTAIN}
            | {"oversampling": 1, "replacement": True},
            "rag_sequence": {"train_selector": False, "exact": True},
            "dro_no_selector": {"train_selector": False},
            "dro_no_generator": {"train_generator": False},
            "dro": {},
            "dro_selfaug": {"selfaug_alpha": s.selfaug_alpha},
        }
        return replace(shared, **recipes[name])

    def _encyclopedia(self, name: str) -> dict[str, Any]:
        """Let one trained row read real facts, which neither it nor the base has ever seen."""
        if not (self.folder / "encyclopedia" / "dev.jsonl").is_file():
            write(self.folder / "encyclopedia")
        asked = load_examples(
            self.folder / "encyclopedia" / "dev.jsonl", require_answers=True, limit=self.settings.encyclopedia_questions
        )
        rag = self._pipeline(name, self._index("encyclopedia"))
        if name != "base":
            load_learned(rag.selector, self.folder / "bundles" / name / "learned")
        answerer: Answerer = RAGSequence(rag) if name == "rag_sequence" else rag
        evaluation = evaluate(answerer, asked, progress=self.progress)
        result = {"name": name, "answers": [a.to_dict() for a in evaluation.answers], "scores": evaluation.rows}
        return {
            "name": name,
            "exact_match": evaluation.metrics["exact_match"],
            "questions": len(asked),
            "samples": _samples([result], asked),
        }

    # -- files -------------------------------------------------------------------------------------------------

    def _open_folder(self) -> None:
        file, ours = self.folder / LAB_FILE, json.loads(json.dumps(asdict(self.settings)))
        if file.is_file() and json.loads(file.read_text(encoding="utf-8")) == ours:
            return
        if self.folder.exists() and any(self.folder.iterdir()):
            what = "a run with other settings" if file.is_file() else "something else"
            raise UsageError(
                f"The laboratory needs a new or empty folder, or one of its own to continue; {self.folder} holds "
                f"{what}. Name another folder with --output."
            )
        _write_json(file, ours)

    def _result_file(self, name: str) -> Path:
        return self.folder / "results" / f"{name}.json"

    def _finished(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self._result_file(name).read_text(encoding="utf-8")))


# -- several processes -----------------------------------------------------------------------------------------


def default_workers() -> int:
    """One for each thread that torch may use on a CPU; one where there is an accelerator.

    The pocket model's operations are too short to be shared out: two processes of one thread each do nearly twice the
    work of one with two threads.
    """
    return torch.get_num_threads() if best_device() == "cpu" else 1


def help_out(folder: str, *, quiet: bool, progress: bool) -> None:
    """Do rows of a laboratory that another process has opened, until none is left."""
    leave_with_parent()
    set_up_logs(debug=False, quiet=quiet)
    settings = json.loads((Path(folder) / LAB_FILE).read_text(encoding="utf-8"))
    lab = Lab(folder, LabSettings(**settings | {"rows": tuple(settings["rows"])}), progress=progress, workers=2)
    lab.do_rows(lab._world())


# -- results ---------------------------------------------------------------------------------------------------


def _result(
    name: str, curve: list[dict[str, Any]], evaluation: Evaluation, forgetting: Forgetting, seconds: float
) -> dict[str, Any]:
    metrics = evaluation.metrics
    return {
        "name": name,
        "seconds": seconds,
        "curve": curve,
        "scores": evaluation.rows,
        "answers": [a.to_dict() for a in evaluation.answers],
        "general": forgetting.right,
        "kl_drift": forgetting.kl_drift,
        "retriever": {f"recall_at_{k}": metrics.get(f"retriever_recall@{k}") for k in (1, 3, 5)},
    }


def _column(result: Mapping[str, Any], name: str) -> list[float]:
    """One score per question (or per exercise)."""
    return list(result["general"]) if name == "general" else [row[name] for row in result["scores"] if name in row]


_COLUMNS = {
    "exact_match": "exact_match",
    "f1": "f1",
    "recall_at_1": "selector_recall@1",
    "recall_at_3": "selector_recall@3",
    "recall_at_5": "selector_recall@5",
    "general": "general",
}


def _table_row(result: Mapping[str, Any], seed: int) -> dict[str, Any]:
    columns = {name: _column(result, source) for name, source in _COLUMNS.items()}
    columns = {name: values for name, values in columns.items() if values}
    return {
        "name": result["name"],
        "label": LABELS[result["name"]],
        **{name: sum(values) / len(values) for name, values in columns.items()},
        "kl_drift": result["kl_drift"],
        "seconds": result["seconds"],
        "seed": seed,
        "intervals": {name: list(bootstrap_interval(values)) for name, values in columns.items()},
    }


def compare(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """DRO against every baseline and ablation, and SelfAug against plain DRO, paired over the same questions."""
    by_name = {r["name"]: r for r in results}
    ours = "dro" if "dro" in by_name else "dro_selfaug"
    pairs = [(ours, other, "exact_match") for other in by_name if other not in ("dro", "dro_selfaug")]
    pairs += [("dro_selfaug", "dro", metric) for metric in ("exact_match", "general")]
    pairs += [(name, "base", "general") for name in by_name if name != "base"]
    return [
        _comparison(by_name[name], by_name[other], metric)
        for name, other, metric in pairs
        if name in by_name and other in by_name
    ]


def _comparison(result: Mapping[str, Any], other: Mapping[str, Any], metric: str) -> dict[str, Any]:
    values, others = _column(result, _COLUMNS[metric]), _column(other, _COLUMNS[metric])
    paired = paired_bootstrap(values, others)
    mean = sum(others) / len(others)
    return {
        "name": result["name"],
        "against": other["name"],
        "metric": metric,
        "difference": paired.difference,
        "interval": list(paired.interval),
        "relative": paired.difference / mean if mean else None,
        "p": paired.p,
        "questions": len(values),
    }


def _samples(results: Sequence[Mapping[str, Any]], examples: Sequence[QAExample]) -> list[dict[str, Any]]:
    """The first questions, each with what every row made of it."""
    return [
        {
            "question": example.question,
            "golden_answers": list(example.golden_answers),
            "gold_ids": list(example.gold_ids),
            "answers": [
                {**r["answers"][i], "row": r["name"], "exact_match": r["scores"][i]["exact_match"]} for r in results
            ],
        }
        for i, example in enumerate(examples[:SAMPLES])
    ]


def _write_json(file: Path, data: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    partial.replace(file)
