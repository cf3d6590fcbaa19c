"""`rag sweep`: baselines, ablations and DRO over seeds and a grid of settings, and one comparison."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from indexes.errors import UsageError
from rag.commands.command import Command, Report, progress
from rag.commands.options import (
    answerable_argument,
    config_options,
    identical_ids_argument,
    pipeline_arguments,
    quoting_argument,
    training_options,
    training_settings,
)
from rag.text_tables import table

_FILES = {
    "train_dataset": "training questions with golden answers",
    "eval_dataset": "questions that choose the round that is kept",
    "test_dataset": "questions that fill the table",
}
_LIMITS = {"max_train_samples": "training", "max_eval_samples": "evaluation", "max_test_samples": "test"}
# Every trial has its own.
_OF_A_TRIAL = {"seed", "max_train_samples", "max_eval_samples", "ignore_identical_ids"}


def _sweep_arguments(parser: Any) -> None:
    from rag.experiments.recipes import RECIPES
    from rag.experiments.sweep_options import SHARED_DEFAULTS, WorldSettings
    from rag.forgetting.retention_tasks import Probes

    parser.add_argument(
        "--output_dir", type=str, required=True, help="folder of the sweep; an unfinished one is continued"
    )
    parser.add_argument("--workers", type=int, help="rows done at the same time (default: one per core; one on a GPU)")
    parser.add_argument(
        "--recipes",
        type=list[str],
        default=list(RECIPES),
        help=f"of {', '.join(RECIPES)}; with _selfaug behind it a recipe has the SelfAug term",
    )
    parser.add_argument(
        "--with_selfaug", type=bool, default=False, help="also the SelfAug twin of each recipe whose generator learns"
    )
    parser.add_argument("--seeds", type=list[int], default=[42], help="of draws and batches; a row for each")
    parser.add_argument(
        "--grid", type=dict[str, list[Any]], default={}, help="settings of training, each with the values to try"
    )
    parser.add_argument("--ours", type=str, default="auto", help="recipe that is held against every other")
    for name, what in _FILES.items():
        parser.add_argument(f"--{name}", type=str, help=what)
    for name, split in _LIMITS.items():
        parser.add_argument(f"--{name}", type=int, help=f"use only the first so many {split} questions")
    answerable_argument(parser)
    identical_ids_argument(parser)
    quoting_argument(parser)
    parser.add_argument(
        "--world", type=WorldSettings | None, default=None, help="an invented world in place of index and files"
    )
    pipeline_arguments(parser, answer_mode=False)
    parser.add_argument("--documents", type=int, help="documents that RAG-Sequence and RAG-Token sum over")
    parser.add_argument("--exercises", type=int, default=48, help="general-ability tasks of the tiny base; 0: none")
    parser.add_argument("--probes", type=Probes | None, default=None, help="files as those of `rag forgetting`")
    training_options(parser, skip=_OF_A_TRIAL)
    # As in the laboratory: nobody is told which passages are gold.
    parser.set_defaults(SHARED_DEFAULTS)


def settings_of(args: Any) -> Any:
    """`SweepSettings` from parsed options."""
    from dataclasses import fields

    from rag.experiments.sweep_options import WorldSettings
    from rag.experiments.sweep_runner import SweepSettings
    from rag.forgetting.retention_tasks import Probes

    named = {f.name for f in fields(SweepSettings)}
    given: dict[str, Any] = {name: args[name] for name in named if name in args}
    given |= {
        "recipes": tuple(args.recipes),
        "seeds": tuple(args.seeds),
        "world": None if args.world is None else WorldSettings(**vars(args.world)),
        **config_options(args),
        "probes": None if args.probes is None else Probes(**vars(args.probes)),
        "training": {k: v for k, v in training_settings(args).items() if k not in _OF_A_TRIAL},
    }
    return SweepSettings(**given)


def _sweep(args: Any) -> Report:
    from rag.experiments.sweep_runner import Sweep

    if args.workers is not None and args.workers < 1:
        raise UsageError(f"--workers must be at least 1; {args.workers} came.")
    data = Sweep(args.output_dir, settings_of(args), progress=progress(args), workers=args.workers).run()
    report = Path(args.output_dir) / "report.html"
    return Report(sweep_text(data, report), data | {"report": str(report)}, exit_code=1 if data["failed"] else 0)


# -- for people ------------------------------------------------------------------------------------------------

_PERCENT = {
    "exact_match": "EM",
    "f1": "F1",
    "recall_at_1": "recall@1",
    "recall_at_3": "recall@3",
    "recall_at_5": "recall@5",
    "general": "general",
}


def sweep_text(data: Mapping[str, Any], report: Path) -> str:
    """The table, the paired tests and what failed."""
    parts = [
        f"{data['answerable_questions']} training questions, {data['dataset']['n']} test questions, "
        f"{data['seconds']:.0f} s in all rows together",
        _rows_text(data["rows"]),
        "in brackets: 95 % bootstrap interval, in points; recall@k: gold passages among the first k;\n"
        "KL: from the base, nats per input token of the general tasks",
        _comparisons_text(data["comparisons"]),
        *(f"FAILED {failed['name']}: {failed['error']}" for failed in data["failed"]),
        f"report: {report}",
    ]
    return "\n\n".join(part for part in parts if part)


def _rows_text(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [name for name in _PERCENT if any(name in row for row in rows)]
    drift = any("kl_drift" in row for row in rows)
    header = ["", *(_PERCENT[name] for name in shown), *["KL"] * drift, "seconds"]
    cells = [
        [
            row["name"],
            *(_share(row, name) for name in shown),
            *[f"{row['kl_drift']:.3f}" if "kl_drift" in row else "-"] * drift,
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    return table(header, cells)


def _share(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return "-"
    low, high = row["intervals"][name]
    return f"{100 * row[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _comparisons_text(comparisons: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            f"{c['name']} - {c['against']}",
            c["metric"],
            f"{100 * c['difference']:+.1f} [{100 * c['interval'][0]:+.1f}, {100 * c['interval'][1]:+.1f}]",
            f"{c['p']:.4f}",
            f"{c['p_adjusted']:.4f}",
            f"{c['p_exact_adjusted']:.4f}",
        ]
        for c in comparisons
    ]
    return table(["", "metric", "points", "p", "Holm", "exact, Holm"], cells) if cells else ""


COMMANDS: dict[str, Command] = {
    "sweep": Command(
        "recipes with and without SelfAug over seeds and settings, in one comparison",
        _sweep_arguments,
        _sweep,
    ),
}
