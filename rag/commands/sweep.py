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
    from rag.experiments.recipes import BUILTIN_RECIPES, RECIPES
    from rag.experiments.sweep_options import SHARED_DEFAULTS, WorldSettings
    from rag.forgetting.retention_tasks import task_options

    parser.add_argument(
        "--output_dir", type=str, required=True, help="folder of the sweep; an unfinished one is continued"
    )
    parser.add_argument("--workers", type=int, help="trials run at the same time (default: one per core; one on a GPU)")
    parser.add_argument(
        "--recipes",
        type=list[str],
        default=list(BUILTIN_RECIPES),
        help=f"of {', '.join(RECIPES)}; with the suffix _selfaug a recipe has the SelfAug term",
    )
    parser.add_argument(
        "--with_selfaug",
        type=bool,
        default=False,
        help="also the SelfAug variant of each recipe that trains the generator",
    )
    parser.add_argument("--seeds", type=list[int], default=[42], help="of draws and batches; one trial for each")
    parser.add_argument(
        "--grid", type=dict[str, list[Any]], default={}, help="settings of training, each with the values to try"
    )
    parser.add_argument("--focus_recipe", type=str, default="auto", help="recipe that is compared with every other one")
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
    parser.add_argument("--documents", type=int, help="passages that RAG-Sequence and RAG-Token sum over")
    parser.add_argument("--general_tasks", type=int, default=48, help="general tasks of the tiny base model; 0: none")
    parser.add_argument(
        "--retention",
        type=dict[str, Any],
        default={},
        help=f"retention tasks by kind, as `rag forgetting` takes them: {', '.join(o.name for o in task_options())}",
    )
    training_options(parser, skip=_OF_A_TRIAL)
    # As in the demo experiment: training does not use gold passage ids.
    parser.set_defaults(SHARED_DEFAULTS)


def settings_of(args: Any) -> Any:
    """`SweepSettings` from parsed options."""
    from dataclasses import fields

    from rag.experiments.sweep_options import WorldSettings
    from rag.experiments.sweep_settings import SweepSettings

    named = {f.name for f in fields(SweepSettings)}
    given: dict[str, Any] = {name: args[name] for name in named if name in args}
    given |= {
        "recipes": tuple(args.recipes),
        "seeds": tuple(args.seeds),
        "world": None if args.world is None else WorldSettings(**vars(args.world)),
        **config_options(args),
        "training": {k: v for k, v in training_settings(args).items() if k not in _OF_A_TRIAL},
    }
    return SweepSettings(**given)


def _sweep(args: Any) -> Report:
    from rag.experiments.sweep_runner import Sweep

    if args.workers is not None and args.workers < 1:
        raise UsageError(f"--workers must be at least 1, got {args.workers}.")
    data = Sweep(args.output_dir, settings_of(args), progress=progress(args), workers=args.workers).run()
    report = Path(args.output_dir) / "report.html"
    return Report(sweep_text(data, report), data | {"report": str(report)}, exit_code=1 if data["failed"] else 0)


# -- for people ------------------------------------------------------------------------------------------------


def sweep_text(data: Mapping[str, Any], report: Path) -> str:
    """The table, the paired tests and what failed."""
    parts = [
        f"{data['answerable_questions']} training questions, {data['dataset']['n']} test questions, "
        f"{data['seconds']:.0f} s in all trials together",
        _rows_text(data["trials"]),
        "in brackets: 95 % bootstrap interval, in points; recall@k: gold passages among the first k;\n"
        "KL: from the base, nats per input token of the general tasks",
        _comparisons_text(data["comparisons"]),
        *(f"FAILED {failed['name']}: {failed['error']}" for failed in data["failed"]),
        f"report: {report}",
    ]
    return "\n\n".join(part for part in parts if part)


def _rows_text(trials: Sequence[Mapping[str, Any]]) -> str:
    from rag.evaluation.metric import columns

    shown = [column for column in columns("trials") if any(column.name in trial for trial in trials)]
    cells = [
        [trial["name"], *(c.metric.format(trial.get(c.name), trial["intervals"].get(c.name)) for c in shown)]
        for trial in trials
    ]
    return table(["", *(column.heading for column in shown)], cells)


def _comparisons_text(comparisons: Sequence[Mapping[str, Any]]) -> str:
    from rag.evaluation.metric import METRICS, metric_heading

    cells = [
        [
            f"{c['name']} - {c['against']}",
            metric_heading(c["metric"]),
            METRICS.get(c["metric"]).format_difference(c["difference"], c["interval"]),
            f"{c['p']:.4f}",
            f"{c['p_adjusted']:.4f}",
            f"{c['p_exact_adjusted']:.4f}",
        ]
        for c in comparisons
    ]
    return table(["", "metric", "difference", "p", "Holm", "exact, Holm"], cells) if cells else ""


COMMANDS: dict[str, Command] = {
    "sweep": Command(
        "recipes with and without SelfAug over seeds and settings, in one comparison",
        _sweep_arguments,
        _sweep,
    ),
}
