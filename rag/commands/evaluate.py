"""`rag evaluate`: score a pipeline on questions with answers, audit it, and compare what was scored."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from indexes.errors import UsageError
from rag.commands.command import Command, Report, progress
from rag.commands.options import (
    bundle_arguments,
    identical_ids_argument,
    open_pipeline,
    quoting_argument,
    split_argument,
)
from rag.text_tables import cell, interval, table


def _evaluate_arguments(parser: Any) -> None:
    bundle_arguments(parser)
    parser.add_argument("--questions", type=str, help="questions with golden answers")
    split_argument(parser)
    identical_ids_argument(parser)
    quoting_argument(parser)
    parser.add_argument("--limit", type=int, help="use only the first so many of the file")
    parser.add_argument(
        "--on_error",
        choices=["raise", "skip"],
        default="raise",
        help="of a broken row, or a question that nothing can be scored against or that does not fit the model's "
        "context: stop, or leave it out and count it",
    )
    parser.add_argument("--output", type=str, help="write the evaluation, or the comparison, to this JSON file")
    parser.add_argument("--name", type=str, help="what tables call this evaluation (default: the bundle's folder)")
    parser.add_argument("--label", type=str, help="the same in words")
    parser.add_argument("--order_bias", type=int, default=0, help="answer again with so many shuffles of each order")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffles")
    parser.add_argument("--support", action="store_true", help="leave out each passage that was read once")
    parser.add_argument(
        "--compare", type=str, nargs="+", metavar="FILE", help="compare evaluation files, the others with the first"
    )
    parser.add_argument("--metrics", type=str, nargs="+", help="what to compare (default: the main ones)")


_ASKING = (
    "questions",
    "bundle",
    "index",
    "split",
    "ignore_identical_ids",
    "limit",
    "name",
    "label",
    "order_bias",
    "support",
)
"""Options that a comparison has no use for: they belong to answering."""


def _evaluate(args: Any) -> Report:
    if args.compare is not None:
        return _compare(args)
    if args.metrics is not None:
        raise UsageError("--metrics names what --compare compares; an evaluation has all of them.")
    if args.questions is None:
        raise UsageError("Evaluation needs questions: --questions FILE, or --compare FILES that are evaluated already.")
    if args.order_bias < 0:
        raise UsageError(f"--order_bias must be a number of shuffles, 0 for no audit; {args.order_bias} came.")
    from rag import evaluate
    from rag.evaluation.evaluation import scorable
    from rag.evaluation.evaluation_file import check_output, evaluation_file, write_json
    from rag.hub import bundle_folder
    from training import check_gold_ids
    from training.questions.loading import read_questions

    if args.output is not None:
        check_output(args.output)
    reading = {"limit": args.limit, "split": args.split, "quoting": args.quoting, "on_error": args.on_error}
    examples, broken = read_questions(args.questions, ignore_identical_ids=args.ignore_identical_ids, **reading)
    scorable(examples, args.on_error)  # refused before anything is loaded
    name = args.name or (Path(args.bundle).resolve().name if args.bundle else "base")
    if args.bundle is not None:
        given = {"index": args.index, "encoder": args.encoder}
        leave_out = [part for part, value in given.items() if value is not None]
        args.bundle = str(bundle_folder(args.bundle, revision=args.revision, leave_out=leave_out))
        args.revision = None  # a snapshot is a folder, of one revision
    rag = open_pipeline(args)
    examples = check_gold_ids(examples, rag.retriever.index)
    result = evaluate(rag, examples, on_error=args.on_error, progress=progress(args))
    result = replace(result, skipped=result.skipped + len(broken))
    data = evaluation_file(
        rag,
        result,
        name=name,
        label=args.label or "",
        bundle=args.bundle,
        questions=args.questions,
        settings=reading,
        **_audits(args, rag, result),
    )
    if args.output is not None:
        write_json(data, args.output)
    return Report("\n\n".join(_paragraphs(data)), data)


def _audits(args: Any, rag: Any, result: Any) -> dict[str, Any]:
    from rag.evaluation.attribution import support
    from rag.evaluation.order_bias import order_bias

    audits: dict[str, Any] = {}
    if args.order_bias:
        audits["order_bias"] = order_bias(
            rag, result, shuffles=args.order_bias, seed=args.seed, progress=progress(args)
        )
    if args.support:
        audits["support"] = support(rag, result, progress=progress(args))
    return audits


def _compare(args: Any) -> Report:
    from rag.evaluation.comparison import compare_evaluations
    from rag.evaluation.evaluation_file import read_evaluation, write_json

    if given := [f"--{name}" for name in _ASKING if args[name]]:
        raise UsageError(f"--compare reads files that are evaluated already; leave {', '.join(given)} out.")
    evaluations = [read_evaluation(file) for file in args.compare]
    compared = compare_evaluations(evaluations, metrics=args.metrics)
    data = {"kind": "comparison", "format_version": 1, "dataset": evaluations[0]["dataset"], "comparisons": compared}
    if args.output is not None:
        write_json(data, args.output)
    return Report(_comparison_text(compared), data)


# -- for people ------------------------------------------------------------------------------------------------


def _paragraphs(data: Mapping[str, Any]) -> list[str]:
    from training.questions.self_retrieval import IdenticalIds

    skipped = data["dataset"]["skipped"]
    left_out = f", {skipped} left out" if skipped else ""
    found = [f"{data['label']}: {data['n_scored']} questions scored{left_out}", _metrics_table(data)]
    if "identical_ids" in data["dataset"]:
        found.append(str(IdenticalIds(**data["dataset"]["identical_ids"])))
    for audit, summary in data.get("order_bias", {}).items():
        if isinstance(summary, dict):
            found.append(_order_bias_text(audit, summary))
    if "support" in data:
        found.append(_support_text(data["support"]))
    return found


def _metrics_table(data: Mapping[str, Any]) -> str:
    rows = [
        [name, cell(value), interval(data["intervals"][name]), str(data["counts"][name])]
        for name, value in data["metrics"].items()
    ]
    return table(["metric", "mean", "95 % interval", "questions"], rows)


def _order_bias_text(audit: str, summary: Mapping[str, Any]) -> str:
    named = {
        "answer changed by some order": summary["changed"],
        "share of orders that change it": summary["changed_per_shuffle"],
        "share of the commonest answer": summary["agreement"],
        "exact match, shuffled": summary["exact_match"],
        "F1, shuffled": summary["f1"],
    }
    if "selected_overlap" in summary:
        named["overlap of what is selected"] = summary["selected_overlap"]
    for place, estimate in summary.get("exact_match_by_gold_position", {}).items():
        named[f"exact match, gold passage at {place}"] = estimate
    exact_match = summary["exact_match"]
    spread = (
        f"Exact match without shuffling {cell(exact_match['unshuffled'])}, with it between "
        f"{cell(exact_match['lowest'])} and {cell(exact_match['highest'])}."
    )
    return f"Order of {audit}\n{_estimates_table(named)}\n{spread}"


def _support_text(summary: Mapping[str, Any]) -> str:
    named = {
        "citations that are supported": summary["supported_citations"],
        "answers with such a citation": summary["supported_answers"],
        "log p lost without a cited passage": summary["drop_cited"],
        "without another passage": summary["drop_not_cited"],
        "answer changed without a cited one": summary["changed_cited"],
        "without another one": summary["changed_not_cited"],
    }
    share = f"{summary['supported']} of {summary['citations']} citations"
    head = f"Support: without them {share} cost the answer more than {summary['threshold']} nats"
    return f"{head}\n{_estimates_table(named)}"


def _estimates_table(named: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [[name, cell(e["value"]), interval(e["interval"]), str(e["n"])] for name, e in named.items()]
    return table(["", "mean", "95 % interval", "questions"], rows)


def _comparison_text(compared: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{row['name']} - {row['against']}",
            row["metric"],
            f"{row['difference']:+.4f}",
            interval(row["interval"]),
            *(f"{row[p]:.4f}" for p in ("p", "p_adjusted", "p_exact", "p_exact_adjusted")),
            str(row["questions"]),
        ]
        for row in compared
    ]
    header = ["", "metric", "difference", "95 % interval", "p", "Holm", "p exact", "Holm", "questions"]
    return table(header, rows)


COMMANDS: dict[str, Command] = {
    "evaluate": Command(
        "score a pipeline on questions with answers, or compare scores", _evaluate_arguments, _evaluate
    ),
}
