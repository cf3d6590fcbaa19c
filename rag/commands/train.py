"""`rag train`: selector, generator and question adapter, jointly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rag.commands.command import Command, Report, cell, progress, table
from rag.commands.options import create_pipeline, dev_arguments, pipeline_arguments


def _train_arguments(parser: Any) -> None:
    from training import DROConfig

    pipeline_arguments(parser)
    parser.add_argument("--train", type=str, required=True, help="training questions with golden answers")
    dev_arguments(parser)
    parser.add_class_arguments(DROConfig, skip={"training_arguments"})
    parser.add_argument("--training_arguments", type=dict[str, Any], default={}, help="more TrainingArguments")


def _train(args: Any) -> Report:
    from dataclasses import fields

    from rag import evaluate
    from training import DROConfig, DROTrainer, load_examples

    config = DROConfig(**{f.name: getattr(args, f.name) for f in fields(DROConfig)})
    dev = None
    if args.dev is not None:
        limit = args.max_eval_samples
        dev = load_examples(args.dev, require_answers=True, allow_unanswerable=True, limit=limit, quoting=args.quoting)
    rag = create_pipeline(args)
    train = load_examples(
        args.train,
        require_answers=True,
        limit=config.max_train_samples,
        quoting=args.quoting,
        ignore_identical_ids=config.ignore_identical_ids,
    )
    if args.answerable_only:
        from rag.evaluation.evaluation import filter_answerable

        train = filter_answerable(rag, train)
    trainer = DROTrainer(rag, config, train, dev, evaluate=evaluate, progress=progress(args))
    history = trainer.train()
    bundle = rag.save_pretrained(Path(config.output_dir) / "bundle", report=history)
    data = {"bundle": str(bundle), "best_round": trainer.best_round(), "rounds": history}
    data["left_out"] = {split: sorted(too_long) for split, too_long in trainer.left_out.items()}
    if trainer.state.is_main_process:
        data["report"] = str(_write_report(Path(config.output_dir), trainer.best_round()))
    return Report(f"{_history_text(history)}\nKept round {trainer.best_round()}; bundle in {bundle}", data)


def _write_report(folder: Path, kept: int) -> Path:
    """The run's page, in its folder."""
    from rag.report import read_source, write_report

    return write_report({**read_source(folder), "kept_round": kept}, folder / "report.html")


def _history_text(history: Sequence[dict[str, Any]]) -> str:
    from rag.evaluation.metric import columns

    wanted = ["round", *(f"eval_{column.name}" for column in columns("rounds"))]
    wanted += [
        "ess",
        "distinct_permutations",
        "log_marginal",
        "selector_loss",
        "generator_loss",
        "selfaug_kl",
        "seconds",
    ]
    columns = [name for name in wanted if any(name in row for row in history)]
    rows = [[cell(row.get(name)) for name in columns] for row in history]
    return table([name.removeprefix("eval_") for name in columns], rows)


COMMANDS: dict[str, Command] = {
    "train": Command("train selector, generator and question adapter jointly", _train_arguments, _train),
}
