"""`rag demo`: the whole road on parts that live inside this package, in a few minutes on a CPU.

encyclopedia -> index -> untrained pipeline -> warm-up and EM rounds -> the same questions again -> table
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from generator import AdapterConfig, GenerationConfig
from indexes import build_index
from indexes.errors import UsageError
from rag.encyclopedia import write
from rag.pipeline import RAG, Answer
from rag.pocket import POCKET, load_encoder
from retriever import SelectorConfig
from training import DROConfig, DROTrainer, QAExample, load_examples

NUM_CANDIDATES, NUM_SELECTED = 10, 3
COLUMNS = (
    "exact_match",
    "f1",
    "selector_recall@1",
    "selector_recall@3",
    "retriever_recall@1",
    "retriever_recall@3",
)


@dataclass(frozen=True)
class DemoResult:
    """The table as text, and everything as data."""

    text: str
    data: dict[str, Any]


def run_demo(
    *,
    output: str | Path | None = None,
    train_questions: int = 48,
    dev_questions: int = 64,
    rounds: int = 2,
    seed: int = 42,
    progress: bool = True,
) -> DemoResult:
    """Build, train, answer and compare.

    Args:
        output: New folder that keeps corpus, index, run and bundle; default: a temporary one.
        train_questions: Questions to train on.
        dev_questions: Held-out questions, scored before and after.
        rounds: EM rounds.
        seed: Of every draw.
        progress: Show progress bars.

    Raises:
        UsageError: `output` is not new or empty.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        folder = Path(output) if output is not None else Path(stack.enter_context(TemporaryDirectory()))
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"The demo's output must be a new or empty folder; {folder} holds something.")
        files = write(folder)
        index = build_index(
            files["corpus"],
            load_encoder(POCKET),
            folder / "index",
            progress=progress,
        )
        train = load_examples(files["train"], require_answers=True, limit=train_questions)
        dev = load_examples(files["dev"], require_answers=True, limit=dev_questions)
        rag = _pipeline(folder / "index")
        before = rag.evaluate(dev, progress=progress)
        trainer = DROTrainer(rag, _config(folder / "run", rounds, seed), train, dev, progress=progress)
        history = trainer.train()
        best = history[trainer.best_round()]
        after = {name.removeprefix("eval_"): value for name, value in best.items() if name.startswith("eval_")}
        rag.save_pretrained(folder / "bundle", report=history)
        answers = rag.answer([e.question for e in dev[:3]])
    seconds = time.perf_counter() - started
    rows = [("base, retriever's order", before), (f"DRO + SelfAug, round {trainer.best_round()}", after)]
    return DemoResult(
        _text(len(index), len(train), rows, dev, answers, seconds),
        {
            "rows": [{"name": name, **metrics} for name, metrics in rows],
            "rounds": history,
            "best_round": trainer.best_round(),
            "answers": [a.to_dict() for a in answers],
            "seconds": seconds,
        },
    )


def _pipeline(index: Path) -> RAG:
    return RAG.create(
        index=index,
        base=POCKET,
        selector=SelectorConfig(num_candidates=NUM_CANDIDATES, num_selected=NUM_SELECTED),
        generation=GenerationConfig(max_new_tokens=24),
        adapter=AdapterConfig(r=8, lora_alpha=16),
    )


def _config(output_dir: Path, rounds: int, seed: int) -> DROConfig:
    return DROConfig(
        output_dir=output_dir,
        rounds=rounds,
        num_samples=4,
        selfaug_rows="one",
        learning_rate=5e-4,
        gradient_accumulation_steps=8,
        metric_for_best_model="f1",
        seed=seed,
    )


def _text(
    passages: int,
    train_questions: int,
    rows: Sequence[tuple[str, dict[str, float]]],
    dev: Sequence[QAExample],
    answers: Sequence[Answer],
    seconds: float,
) -> str:
    lines = [
        f"{passages} passages, {train_questions} training and {len(dev)} held-out questions, {seconds:.0f} s.",
        "The embedded base has about a million parameters and was trained on invented facts only: it is weak, and",
        "so few questions make wide intervals. Read the table as a test of the road, not as a result.",
        "",
        _table(rows),
        "",
    ]
    for example, answer in zip(dev, answers, strict=False):
        lines += [
            f"Q: {answer.question}",
            f"A: {answer.text or '(nothing)'}   [golden: {example.golden_answers[0]}]",
            f"   read: {', '.join(p.title for p in answer.passages)}   cited: {', '.join(answer.citations) or '-'}",
        ]
    return "\n".join(lines)


def _table(rows: Sequence[tuple[str, dict[str, float]]]) -> str:
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    table = Table("pipeline", *(name.replace("_", " ") for name in COLUMNS))
    for name, metrics in rows:
        table.add_row(name, *(f"{metrics[c]:.3f}" if c in metrics else "-" for c in COLUMNS))
    buffer = StringIO()
    Console(file=buffer, width=140).print(table)
    return buffer.getvalue().rstrip()
