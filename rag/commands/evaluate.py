"""`rag evaluate`: score a pipeline on questions with answers."""

from typing import Any

from rag.commands.arguments import bundle_arguments, open_pipeline
from rag.commands.command import Command, Report, metrics_text, progress


def _evaluate_arguments(parser: Any) -> None:
    bundle_arguments(parser)
    parser.add_argument("--questions", type=str, required=True, help="questions with golden answers")
    parser.add_argument("--limit", type=int, help="use only the first so many")


def _evaluate(args: Any) -> Report:
    from rag import evaluate
    from training import load_examples

    examples = load_examples(args.questions, require_answers=True, limit=args.limit)
    result = evaluate(open_pipeline(args), examples, progress=progress(args))
    return Report(metrics_text(result.metrics), {"metrics": result.metrics, "rows": result.rows})


COMMANDS: dict[str, Command] = {
    "evaluate": Command("score a pipeline on questions with answers", _evaluate_arguments, _evaluate),
}
