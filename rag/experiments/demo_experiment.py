"""The laboratory: every claim about DRO and SelfAug, measured on an invented world with the tiny models.

It is a sweep of these rows over a world of its own, and at the end the last row reads an encyclopedia of
real facts:

| row | what it is |
|---|---|
| base | the base model reads the retriever's top K |
| sft | LoRA, supervised on the retriever's top K |
| rag_sequence | LoRA, marginalised over single documents (RAG-Sequence, arXiv 2005.11401) |
| dro_no_selector | DRO whose selector stays the retriever's order |
| dro_no_generator | DRO whose generator stays the base model |
| dro | DRO (arXiv 2505.03075) |
| dro_selfaug | DRO with the SelfAug term (arXiv 2509.03934) |

All trained rows see the same questions (those that some candidate answers) for the same number of rounds, none sees
which passages are gold, and the round that is kept is chosen on evaluation questions, not on those of the table.
Held-out questions are taken as they come.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from generator.configs import AdapterConfig, DecodingConfig
from generator.language_model import best_device
from indexes import build_index
from indexes.atomic_files import exclusive_writer_lock
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import RAGError, UsageError
from indexes.tiny_encoder import TINY
from indexes.vectors.bf16_prefilter import has_fast_bfloat16
from rag.evaluation.evaluation import evaluate
from rag.evaluation.evaluation_file import evaluation_file
from rag.experiments.recipes import Variant
from rag.experiments.sweep_options import WorldSettings
from rag.experiments.sweep_results import GENERAL, SAMPLES, Pair, RowResult, compare, question_of, retriever_recall
from rag.experiments.sweep_runner import Row, Sweep, SweepSettings
from rag.worlds.encyclopedia import write_encyclopedia
from retriever.selector_config import SelectorConfig
from training import QAExample, load_examples
from training.checkpoint import load_learned

LABELS = {
    name: Variant.of(name).label
    for name in ("base", "sft", "rag_sequence", "dro_no_selector", "dro_no_generator", "dro", "dro_selfaug")
}


@dataclass(frozen=True, kw_only=True)
class LabSettings:
    """Sizes of one run of the laboratory."""

    mode: str = "default"
    rows: tuple[str, ...] = ("base", "sft", "dro_selfaug")
    seed: int = 42
    """Of the world, of every draw and of the batches."""
    domain: str = "unseen"
    """What the world is about: "unseen", of which the tiny base has never read, or "encyclopedia", whose wording it
    was made on."""
    similar_names: int = 6
    """Other entities that are easily taken for the one that is asked about."""
    train_questions: int = 128
    """Those that no candidate answers are left out of training."""
    eval_questions: int = 24
    """They choose the round that is kept, and draw the curves."""
    test_questions: int = 96
    """They fill the table."""
    rounds: int = 2
    num_candidates: int = 9
    num_selected: int = 2
    """About the paper's share: 5 of 20."""
    num_permutations: int = 4
    proposals_per_sample: int = 8
    """Different permutations drawn for each one that is scored; 1 draws with replacement, as the paper."""
    learning_rate: float = 2e-3
    selector_learning_rate: float = 3e-4
    lora_r: int = 16
    selfaug_alpha: float = 4.0
    gradient_accumulation_steps: int = 2
    general_tasks: int = 48
    """General-ability tasks behind the last columns."""
    encyclopedia_questions: int = 32
    """Real-facts questions that the last row answers at the end."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.rows if name not in LABELS]
        if unknown or not self.rows:
            raise UsageError(f"rows must name some of {list(LABELS)}; {list(self.rows)} came.")
        self.sweep()  # refuses an unknown domain

    def sweep(self) -> SweepSettings:
        """The same as the engine takes them."""
        return SweepSettings(
            recipes=self.rows,
            seeds=(self.seed,),
            world=WorldSettings(
                seed=self.seed,
                domain=self.domain,
                similar_names=self.similar_names,
                train_questions=self.train_questions,
                eval_questions=self.eval_questions,
                test_questions=self.test_questions,
            ),
            # The tiny base learned to rank with the identifiers of the answer prompt.
            selector=SelectorConfig(
                num_candidates=self.num_candidates, num_selected=self.num_selected, identifiers="numbers"
            ),
            decoding=DecodingConfig(max_new_tokens=24),
            dtype="mixed" if best_device() == "cpu" and has_fast_bfloat16() else "auto",
            adapter=AdapterConfig(r=self.lora_r, lora_alpha=2 * self.lora_r),
            training={
                "rounds": self.rounds,
                "e_step.num_permutations": self.num_permutations,
                "e_step.proposals_per_sample": self.proposals_per_sample,
                "e_step.replacement": self.proposals_per_sample == 1,
                "m_step.learning_rate": self.learning_rate,
                "m_step.selector_learning_rate": self.selector_learning_rate,
                "m_step.gradient_accumulation_steps": self.gradient_accumulation_steps,
                "selfaug.alpha": self.selfaug_alpha,
            },
            general_tasks=self.general_tasks,
            general_tasks_seed=self.seed,
        )


class Lab:
    """One run: a folder with the world, its index and a folder for each row.

    Rows that are finished are not done again, and a row that was interrupted continues after its last round.

    Args:
        folder: Where everything is written; an unfinished run with the same settings is continued.
        settings: Sizes.
        progress: Show progress bars.
        on_row: Called with the name of each row before it starts in this process.
        workers: Processes that do rows at the same time and share the cores (None: one for each thread of torch).

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
        self.folder, self.settings, self.progress = Path(folder), settings, progress
        self.sweep = Sweep(folder, settings.sweep(), progress=progress, on_row=on_row, workers=workers)

    def run(self) -> dict[str, Any]:
        """Do every row that is not done yet, and compare them; returns what `rag.report` shows.

        Raises:
            RAGError: A row failed.
            UsageError: Another process is at this folder.
        """
        with exclusive_writer_lock(self.folder):
            return self._run()

    def _run(self) -> dict[str, Any]:
        questions = self.sweep.questions()
        results, failed = self.sweep.complete(questions)
        if failed:
            raise RAGError(
                f"Every row of the laboratory must be done; {failed[0]['name']} failed: {failed[0]['error']}"
            )
        return {
            "mode": self.settings.mode,
            "settings": asdict(self.settings),
            "answerable_questions": len(questions["train"]),
            "rows": [{**r.table_row(), "seconds": r.seconds} for r in results],
            "retriever": retriever_recall(results),
            "comparisons": [c.to_dict() for c in compare(lab_pairs(results))],
            "curves": {r.name: list(r.curve) for r in results if r.curve},
            "samples": samples(results, questions["test"]),
            "encyclopedia": self._encyclopedia(self.sweep.rows[-1]),
        }

    def _encyclopedia(self, row: Row) -> dict[str, Any]:
        """Let one trained row read real facts, which neither it nor the base has ever seen."""
        folder = self.folder / "encyclopedia"
        if not (folder / "dev.jsonl").is_file():
            write_encyclopedia(folder)
        asked = load_examples(folder / "dev.jsonl", require_answers=True, limit=self.settings.encyclopedia_questions)
        if not (folder / "index").is_dir():
            build_index(
                folder / "corpus.jsonl",
                Encoder.from_pretrained(TINY),
                folder / "index",
                resume=True,
                progress=self.progress,
            )
        rag = self.sweep.pipeline(row, PassageIndex.open(folder / "index"))
        load_learned(rag.selector, self.sweep.folder_of(row) / "bundle" / "learned")
        evaluation = evaluate(rag, asked, progress=self.progress)
        file = evaluation_file(rag, evaluation, name=row.name, label=row.label)
        return {
            "name": row.name,
            "exact_match": evaluation.metrics["exact_match"],
            "questions": len(asked),
            "samples": samples([self.sweep.result(row, evaluation=file)], asked),
        }


def lab_pairs(results: Sequence[RowResult]) -> list[Pair]:
    """DRO against every baseline and ablation, and SelfAug against plain DRO; for what is forgotten, the base."""
    by_name = {r.name: r for r in results}
    ours = "dro" if "dro" in by_name else "dro_selfaug"
    pairs = [(ours, other, "exact_match") for other in by_name if other not in ("dro", "dro_selfaug")]
    pairs += [("dro_selfaug", "dro", metric) for metric in ("exact_match", GENERAL)]
    pairs += [(name, "base", GENERAL) for name in by_name if name != "base"]
    return [(by_name[one], by_name[other], metric) for one, other, metric in pairs if {one, other} <= by_name.keys()]


def samples(results: Sequence[RowResult], examples: Sequence[QAExample]) -> list[dict[str, Any]]:
    """The first questions, each with what every row made of it."""
    place = {record.id: i for i, record in enumerate(results[0].evaluation.records)}
    return [question_of(results, place[example.id]) for example in examples[:SAMPLES]]
