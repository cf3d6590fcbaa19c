"""`rag train`: selector, generator and question adapter, jointly."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rag.commands.command import Command, Report, progress
from rag.commands.options import (
    config_options,
    create_pipeline,
    eval_arguments,
    pipeline_arguments,
    training_config,
    training_options,
)
from rag.text_tables import cell, table

logger = logging.getLogger(__name__)


def _train_arguments(parser: Any) -> None:
    pipeline_arguments(parser)
    parser.add_argument("--train_dataset", type=str, required=True, help="training questions with golden answers")
    eval_arguments(parser)
    training_options(parser)
    parser.add_argument(
        "--output_dir", type=str, required=True, help="folder of the run: settings, metrics, a checkpoint per round"
    )
    parser.add_argument(
        "--resume_from_checkpoint",
        type=bool | str,
        default=False,
        help="continue the run in --output_dir after its last finished round (true), or after the given round-N folder",
    )


def _train(args: Any) -> Report:
    config, _ = training_config(args), config_options(args)  # refused settings are found before torch is loaded
    from rag import DROTrainer
    from training import load_examples

    eval_examples = None
    if args.eval_dataset is not None:
        limit = config.max_eval_samples
        eval_examples = load_examples(
            args.eval_dataset, require_answers=True, allow_unanswerable=True, limit=limit, quoting=args.quoting
        )
    rag = create_pipeline(args)
    train = load_examples(
        args.train_dataset,
        require_answers=True,
        limit=config.max_train_samples,
        quoting=args.quoting,
        ignore_identical_ids=config.ignore_identical_ids,
    )
    if args.answerable_only:
        from rag.evaluation.evaluation import filter_answerable

        train, total = filter_answerable(rag, train), len(train)
        if len(train) < total:
            logger.info(
                "Left out %d of %d training questions: no candidate holds an answer.", total - len(train), total
            )
    trainer = DROTrainer(
        rag,
        config,
        train_dataset=train,
        eval_dataset=eval_examples,
        output_dir=args.output_dir,
        progress=progress(args),
    )
    output = trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    history = output.history
    bundle = rag.save_pretrained(trainer.output_dir / "bundle", report=history)
    data = {"bundle": str(bundle), "best_round": output.best_round, "rounds": history}
    data["left_out"] = {split: sorted(too_long) for split, too_long in trainer.left_out.items()}
    if trainer.distributed.is_main_process:
        data["report"] = str(_write_report(trainer.output_dir, output.best_round))
    return Report(f"{_history_text(history)}\nKept round {output.best_round}; bundle in {bundle}", data)


def _write_report(folder: Path, kept: int) -> Path:
    """The run's page, in its folder."""
    from rag.report import read_source, write_report

    return write_report(read_source(folder, kept_round=kept), folder / "report.html")


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
    shown = [name for name in wanted if any(name in record for record in history)]
    rows = [[cell(record.get(name)) for name in shown] for record in history]
    return table([name.removeprefix("eval_") for name in shown], rows)


COMMANDS: dict[str, Command] = {
    "train": Command("train selector, generator and question adapter jointly", _train_arguments, _train),
}
