"""The demo experiment: a sweep over an invented world with the built-in tiny models, in three sizes.

It compares these recipes, and at the end the last trial answers questions about real facts:

| recipe | what it is |
|---|---|
| no_training | the base model reads the retriever's top K |
| sft | LoRA, supervised on the retriever's top K |
| rag_sequence | LoRA, marginalised over single passages (RAG-Sequence, arXiv 2005.11401) |
| dro_no_selector | DRO whose selector keeps the retriever's order |
| dro_no_generator | DRO whose generator stays the base model |
| dro | DRO (arXiv 2505.03075) |
| dro_selfaug | DRO with the SelfAug term (arXiv 2509.03934) |

All trained recipes see the same questions (those that some candidate answers) for the same number of rounds, none uses
gold passage ids, and the checkpoint is chosen on evaluation questions, not on the test questions of the table. Test
questions are not filtered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from generator.configs import AdapterConfig, DecodingConfig
from generator.language_model import best_device
from indexes import build_index
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import UsageError
from indexes.tiny_encoder import TINY
from indexes.vectors.prefilter import has_fast_bfloat16
from rag.evaluation.evaluation import evaluate
from rag.evaluation.evaluation_file import evaluation_file
from rag.experiments.sweep_options import WorldSettings
from rag.experiments.sweep_results import SAMPLES, TrialResult, question_of
from rag.experiments.sweep_runner import Sweep
from rag.experiments.sweep_settings import SweepSettings
from rag.worlds.encyclopedia import write_encyclopedia
from retriever.selector_config import SelectorConfig
from training import QAExample, load_examples
from training.checkpoint import load_learned

DEMO_RECIPES = ("no_training", "sft", "rag_sequence", "dro_no_selector", "dro_no_generator", "dro", "dro_selfaug")


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Sizes of the demo experiment.

    Raises:
        UsageError: An unknown recipe or domain.
    """

    mode: str = "default"
    recipes: tuple[str, ...] = ("no_training", "sft", "dro_selfaug")
    seed: int = 42
    """Of the world, of every draw and of the batches."""
    domain: str = "unseen"
    """What the world is about: "unseen", which the tiny base model was not trained on, or "encyclopedia", whose wording
    it was."""
    similar_names: int = 6
    """Number of other entities with names similar to the one asked about."""
    train_questions: int = 128
    """Before those that no candidate answers are left out."""
    eval_questions: int = 24
    """They choose the checkpoint and draw the curves."""
    test_questions: int = 96
    """The questions of the table."""
    rounds: int = 2
    num_candidates: int = 9
    num_selected: int = 2
    """About the paper's share: 5 of 20."""
    num_permutations: int = 4
    proposals_per_sample: int = 8
    """Different permutations drawn for each one that is scored; 1 draws with replacement, as in the paper."""
    learning_rate: float = 2e-3
    selector_learning_rate: float = 3e-4
    lora_r: int = 16
    selfaug_alpha: float = 4.0
    gradient_accumulation_steps: int = 2
    general_tasks: int = 48
    encyclopedia_questions: int = 32
    """Questions about real facts that the last trial answers at the end."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.recipes if name not in DEMO_RECIPES]
        if unknown or not self.recipes:
            raise UsageError(
                f"recipes must be some of {list(DEMO_RECIPES)}, got {list(self.recipes)}. For others use `rag sweep`."
            )
        self.sweep()  # refuses an unknown domain

    def sweep(self) -> SweepSettings:
        """The settings of the sweep that the demo experiment is."""
        return SweepSettings(
            recipes=self.recipes,
            seeds=(self.seed,),
            world=WorldSettings(
                seed=self.seed,
                domain=self.domain,
                similar_names=self.similar_names,
                train_questions=self.train_questions,
                eval_questions=self.eval_questions,
                test_questions=self.test_questions,
            ),
            # The tiny base model learned to rank with the identifiers of the answer prompt.
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


def read_encyclopedia(sweep: Sweep, count: int) -> dict[str, Any]:
    """Let the last trial of a sweep answer questions about real facts, which no training has used.

    Args:
        sweep: A finished sweep; passages, questions and their index are written into its folder.
        count: Number of questions.

    Returns:
        The trial's `name`, the `exact_match`, the number of `questions` and the first of them as `samples`.
    """
    trial, folder = sweep.trials[-1], sweep.folder / "encyclopedia"
    if not (folder / "dev.jsonl").is_file():
        write_encyclopedia(folder)
    questions = load_examples(folder / "dev.jsonl", require_answers=True, limit=count)
    if not (folder / "index").is_dir():
        encoder = Encoder.from_pretrained(TINY)
        build_index(folder / "corpus.jsonl", encoder, folder / "index", resume=True, progress=sweep.progress)
    rag = sweep.runner.pipeline(trial.variant, PassageIndex.open(folder / "index"))
    load_learned(rag.selector, sweep.store.file(trial, "bundle") / "learned")
    evaluation = evaluate(rag, questions, progress=sweep.progress)
    file = evaluation_file(rag, evaluation, name=trial.name, label=trial.label)
    return {
        "name": trial.name,
        "exact_match": evaluation.metrics["exact_match"],
        "questions": len(questions),
        "samples": samples([sweep.store.result(trial, evaluation=file)], questions),
    }


def samples(results: Sequence[TrialResult], examples: Sequence[QAExample]) -> list[dict[str, Any]]:
    """The first questions, each with the answers of all trials."""
    positions = {record.id: i for i, record in enumerate(results[0].evaluation.records)}
    return [question_of(results, positions[example.id]) for example in examples[:SAMPLES]]
