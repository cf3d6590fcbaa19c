"""`rag demo`: the demo experiment in three sizes, its table, its report, and some real facts at the end."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from indexes.atomic_files import exclusive_writer_lock
from indexes.errors import RAGError, UsageError
from rag.evaluation.metric import METRICS, columns, metric_heading
from rag.experiments.demo_experiment import DEMO_RECIPES, DemoSettings, read_encyclopedia
from rag.experiments.sweep_runner import Sweep
from rag.experiments.trial_store import SETTINGS_FILE
from rag.report import with_evaluation_records, write_report

DEFAULT_OUTPUT = "rag-demo"
FINISHED_FILE = "demo-finished"
_COMPARED_METRICS = ("exact_match", "general")
MODES: dict[str, DemoSettings] = {
    "quick": DemoSettings(
        mode="quick",
        recipes=("no_training", "dro_selfaug"),
        train_questions=16,
        eval_questions=8,
        test_questions=24,
        rounds=1,
        num_candidates=5,
        general_tasks=24,
        encyclopedia_questions=8,
    ),
    "default": DemoSettings(),
    "full": DemoSettings(
        mode="full",
        recipes=DEMO_RECIPES,
        train_questions=256,
        eval_questions=64,
        test_questions=320,
        rounds=3,
        general_tasks=96,
    ),
}


@dataclass(frozen=True)
class DemoResult:
    """The table as text, and everything as data.

    Attributes:
        text: For people.
        data: The sweep's data as `Sweep.run` returns them, with `mode`, `encyclopedia` and `report`.
    """

    text: str
    data: dict[str, Any]


def run_demo(
    *,
    mode: str = "default",
    output: str | Path | None = None,
    seed: int = 42,
    progress: bool = True,
    workers: int | None = None,
    **sizes: Any,
) -> DemoResult:
    """Run the demo experiment, write `report.html` and return its results.

    Args:
        mode: "quick" (a minute), "default" (minutes) or "full" (every recipe of the demo experiment).
        output: Folder for worlds, indexes, runs, bundles and the report; default: `rag-demo/MODE-seed-SEED`. An
            unfinished run in it is continued, a finished one replaced.
        seed: Of the world and of every draw.
        progress: Show progress bars.
        workers: Trials run at the same time, each in its own process; default: one for each core, one on a GPU.
        sizes: Any other field of `DemoSettings`, in place of the mode's value.

    Raises:
        RAGError: A trial failed.
        UsageError: Unknown mode, or `output` holds something else.
    """
    if mode not in MODES:
        raise UsageError(f"mode must be one of {list(MODES)}, got {mode!r}.")
    started = time.perf_counter()
    settings = replace(MODES[mode], seed=seed, **sizes)
    folder = Path(output) if output is not None else Path(DEFAULT_OUTPUT) / f"{mode}-seed-{seed}"
    if (folder / FINISHED_FILE).is_file() and (folder / SETTINGS_FILE).is_file():
        shutil.rmtree(folder)
    sweep = Sweep(folder, settings.sweep(), progress=progress, workers=workers)
    data = sweep.run()
    if data["failed"]:
        failed = data["failed"][0]
        raise RAGError(f"Every trial of the demo must succeed; {failed['name']} failed: {failed['error']}")
    with exclusive_writer_lock(folder):
        encyclopedia = read_encyclopedia(sweep, settings.encyclopedia_questions)
        data |= {"mode": mode, "encyclopedia": encyclopedia, "seconds": time.perf_counter() - started}
        report = write_report(with_evaluation_records(data, folder), folder / "report.html")
        (folder / FINISHED_FILE).touch()
    return DemoResult(_text(data, report), data | {"report": str(report)})


def _text(data: Mapping[str, Any], report: Path) -> str:
    world = data["settings"]["world"]
    lines = [
        f"{world['train_questions']} training questions ({data['answerable_questions']} of which some candidate "
        f"answers; the others are left out) and {world['test_questions']} held-out ones about an invented world "
        f"({world['domain']}), {data['seconds']:.0f} s, seed {world['seed']}.",
        "",
        _table(data["trials"]),
        "in brackets: 95 % bootstrap interval, in points; recall@k: gold passages among the first k,",
        "the selected ones first, then the other candidates in the retriever's order;",
        "general: general tasks solved, which need no retrieval; KL: from the base model, nats per token",
        "",
        *(_compared(c) for c in data["comparisons"] if c["metric"] in _COMPARED_METRICS),
        "",
        *_real_facts(data["encyclopedia"]),
        "",
        f"report: {report}",
    ]
    return "\n".join(lines)


def _table(trials: Sequence[Mapping[str, Any]]) -> str:
    from rich.console import Console
    from rich.table import Table

    shown = columns("trials")
    table = Table("", *(column.heading for column in shown))
    for trial in trials:
        cells = [column.metric.format(trial.get(column.name), trial["intervals"].get(column.name)) for column in shown]
        table.add_row(trial["label"], *cells)
    buffer = StringIO()
    Console(file=buffer, width=170).print(table)
    return buffer.getvalue().rstrip()


def _compared(comparison: Mapping[str, Any]) -> str:
    relative = comparison["relative"]
    share = f" ({100 * relative:+.0f} %)" if relative is not None else ""
    difference = METRICS.get(comparison["metric"]).format_difference(comparison["difference"])
    return (
        f"{metric_heading(comparison['metric'])}: {comparison['name']} - {comparison['against']} = {difference} points"
        f"{share}, paired bootstrap p = {comparison['p']:.4f}"
    )


def _real_facts(part: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Real facts, never seen in training: {100 * part['exact_match']:.0f} % of {part['questions']} questions right."
    ]
    for sample in part["samples"][:4]:
        answer = sample["answers"][0]
        titles = ", ".join(p["title"] for p in answer["passages"])
        lines += [
            f"  Q: {sample['question']}",
            f"  A: {answer['text'] or '(nothing)'}   [golden: {sample['golden_answers'][0]}]   read: {titles}",
        ]
    return lines
