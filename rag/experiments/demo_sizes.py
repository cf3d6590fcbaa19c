"""`rag demo`: the demo experiment in three sizes, its table, its report, and some real facts at the end."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from indexes.errors import UsageError
from rag.evaluation.metric import METRICS, columns, metric_heading
from rag.experiments.demo_experiment import LABELS, Lab, LabSettings
from rag.experiments.sweep_runner import SETTINGS_FILE
from rag.report import write_report

DEFAULT_OUTPUT = "rag-demo"
FINISHED_FILE = "lab-finished"
MODES: dict[str, LabSettings] = {
    "quick": LabSettings(
        mode="quick",
        rows=("base", "dro_selfaug"),
        train_questions=16,
        eval_questions=8,
        test_questions=24,
        rounds=1,
        num_candidates=5,
        general_tasks=24,
        encyclopedia_questions=8,
    ),
    "default": LabSettings(),
    "full": LabSettings(
        mode="full",
        rows=tuple(LABELS),
        train_questions=256,
        eval_questions=64,
        test_questions=320,
        rounds=3,
        general_tasks=96,
    ),
}


@dataclass(frozen=True)
class DemoResult:
    """The table as text, and everything as data."""

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
    """Run the laboratory, write `report.html` and say what came out.

    Args:
        mode: "quick" (a minute), "default" (minutes) or "full" (every row of the laboratory).
        output: Folder for worlds, indexes, runs, bundles and the report; default: `rag-demo/MODE-seed-SEED`. An
            unfinished run in it is continued, a finished one replaced.
        seed: Of the world and of every draw.
        progress: Show progress bars.
        workers: Rows done at the same time, each in its own process; default: one for each core, one on a GPU.
        sizes: Any other field of `LabSettings`, to change what the mode says.

    Raises:
        UsageError: Unknown mode, or `output` holds something else.
    """
    if mode not in MODES:
        raise UsageError(f"mode must be one of {list(MODES)}; {mode!r} came.")
    started = time.perf_counter()
    settings = replace(MODES[mode], seed=seed, **sizes)
    folder = Path(output) if output is not None else Path(DEFAULT_OUTPUT) / f"{mode}-seed-{seed}"
    if (folder / FINISHED_FILE).is_file() and (folder / SETTINGS_FILE).is_file():
        shutil.rmtree(folder)
    data = Lab(folder, settings, progress=progress, workers=workers).run()
    data["seconds"] = time.perf_counter() - started
    report = write_report(data, folder / "report.html")
    (folder / FINISHED_FILE).touch()
    return DemoResult(_text(data, report), data | {"report": str(report)})


def _text(data: Mapping[str, Any], report: Path) -> str:
    settings = data["settings"]
    lines = [
        f"{settings['train_questions']} training questions ({data['answerable_questions']} of which some candidate "
        f"answers; the others are left out) and {settings['test_questions']} held-out ones about an invented world "
        f"({settings['domain']}), {data['seconds']:.0f} s, seed {settings['seed']}.",
        "",
        _table(data["rows"]),
        "in brackets: 95 % bootstrap interval, in points; recall@k: gold passages among the first k,",
        "those that are read first, then the other candidates as they were retrieved;",
        "general: exercises solved that have nothing to do with retrieval; KL: from the base model, nats per token",
        "",
        *(_compared(c) for c in data["comparisons"]),
        "",
        *_real_facts(data["encyclopedia"]),
        "",
        f"report: {report}",
    ]
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    from rich.console import Console
    from rich.table import Table

    shown = columns("trials")
    table = Table("", *(column.heading for column in shown))
    for row in rows:
        cells = [column.metric.format(row.get(column.name), row["intervals"].get(column.name)) for column in shown]
        table.add_row(row["label"], *cells)
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
