"""`rag evaluate`: score a pipeline on questions with answers, audit it, and compare what was scored."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from rag.evaluation.attribution import AttributionSummary
    from rag.evaluation.comparison import PairedComparison
    from rag.evaluation.evaluation_file import EvaluationFile
    from rag.evaluation.order_bias import OrderAuditSummary, ShuffledScore
    from rag.evaluation.significance import Estimate


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
    parser.add_argument(
        "--attribution", action="store_true", help="leave out each passage once: how much the answer depends on it"
    )
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
    "attribution",
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
        raise UsageError(f"--order_bias must be a number of shuffles, 0 for no audit, got {args.order_bias}.")
    from rag import evaluate
    from rag.evaluation.evaluation import filter_scorable
    from rag.evaluation.evaluation_file import check_output, evaluation_file, write_results
    from rag.hub import bundle_folder
    from training import check_gold_ids
    from training.questions.loading import read_questions

    if args.output is not None:
        check_output(args.output)
    reading = {"limit": args.limit, "split": args.split, "quoting": args.quoting, "on_error": args.on_error}
    examples, broken = read_questions(args.questions, ignore_identical_ids=args.ignore_identical_ids, **reading)
    filter_scorable(examples, args.on_error)  # refused before anything is loaded
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
    file = evaluation_file(
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
        write_results(file.to_dict(), args.output)
    return Report("\n\n".join(_paragraphs(file)), file.to_dict())


def _audits(args: Any, rag: Any, result: Any) -> dict[str, Any]:
    from rag.evaluation.attribution import leave_one_out_attribution
    from rag.evaluation.order_bias import order_bias

    audits: dict[str, Any] = {}
    if args.order_bias:
        audits["order_bias"] = order_bias(
            rag, result, shuffles=args.order_bias, seed=args.seed, progress=progress(args)
        )
    if args.attribution:
        audits["attribution"] = leave_one_out_attribution(rag, result, progress=progress(args))
    return audits


def _compare(args: Any) -> Report:
    from rag.evaluation.comparison import ComparisonFile, compare_evaluations
    from rag.evaluation.evaluation_file import read_evaluation, write_results

    if given := [f"--{name}" for name in _ASKING if args[name]]:
        raise UsageError(f"--compare reads files that are evaluated already; leave {', '.join(given)} out.")
    evaluations = [read_evaluation(file) for file in args.compare]
    compared = compare_evaluations(evaluations, metrics=args.metrics)
    data = ComparisonFile(dataset=evaluations[0].dataset, comparisons=compared).to_dict()
    if args.output is not None:
        write_results(data, args.output)
    return Report(_comparison_text(compared), data)


# -- for people ------------------------------------------------------------------------------------------------


def _paragraphs(file: "EvaluationFile") -> list[str]:
    from training.questions.self_retrieval import IdenticalIds

    left_out = f", {file.dataset.skipped} left out" if file.dataset.skipped else ""
    found = [f"{file.label}: {file.n_scored} questions scored{left_out}", _metrics_table(file)]
    if file.dataset.identical_ids is not None:
        found.append(str(IdenticalIds(**file.dataset.identical_ids)))
    if file.order_bias is not None:
        audits = {"candidates": file.order_bias.candidates, "passages": file.order_bias.passages}
        found += [_order_bias_text(audit, summary) for audit, summary in audits.items() if summary is not None]
    if file.attribution is not None:
        found.append(_attribution_text(file.attribution))
    return found


def _metrics_table(file: "EvaluationFile") -> str:
    rows = [
        [name, cell(value), interval(file.intervals[name]), str(file.counts[name])]
        for name, value in file.metrics.items()
    ]
    return table(["metric", "mean", "95 % interval", "questions"], rows)


def _order_bias_text(audit: str, summary: "OrderAuditSummary") -> str:
    named: dict[str, Estimate | ShuffledScore] = {
        "answer changed by some order": summary.changed,
        "share of orders that change it": summary.changed_per_shuffle,
        "share of the most frequent answer": summary.agreement,
        "exact match, shuffled": summary.exact_match,
        "F1, shuffled": summary.f1,
    }
    if summary.selected_overlap is not None:
        named["overlap of the passages selected"] = summary.selected_overlap
    for position, estimate in (summary.exact_match_by_gold_position or {}).items():
        named[f"exact match, gold passage at {position}"] = estimate
    spread = (
        f"Exact match without shuffling {cell(summary.exact_match.unshuffled)}, with it between "
        f"{cell(summary.exact_match.lowest)} and {cell(summary.exact_match.highest)}."
    )
    return f"Order of {audit}\n{_estimates_table(named)}\n{spread}"


def _attribution_text(summary: "AttributionSummary") -> str:
    named: dict[str, Estimate | ShuffledScore] = {
        "citations that are supported": summary.supported_citations,
        "answers with such a citation": summary.supported_answers,
        "log p lost without a cited passage": summary.drop_cited,
        "without another passage": summary.drop_not_cited,
        "answer changed without a cited one": summary.changed_cited,
        "without another one": summary.changed_not_cited,
    }
    share = f"{summary.supported} of {summary.citations} citations"
    head = f"Attribution: without them {share} cost the answer more than {summary.threshold} nats"
    return f"{head}\n{_estimates_table(named)}"


def _estimates_table(named: "Mapping[str, Estimate | ShuffledScore]") -> str:
    rows = [[name, cell(e.value), interval(e.interval), str(e.n)] for name, e in named.items()]
    return table(["", "mean", "95 % interval", "questions"], rows)


def _comparison_text(compared: "Sequence[PairedComparison]") -> str:
    rows = [
        [
            f"{c.name} - {c.against}",
            c.metric,
            f"{c.difference:+.4f}",
            interval(c.interval),
            *(f"{p:.4f}" for p in (c.p, c.p_adjusted, c.p_exact, c.p_exact_adjusted)),
            str(c.questions),
        ]
        for c in compared
    ]
    header = ["", "metric", "difference", "95 % interval", "p", "Holm", "p exact", "Holm", "questions"]
    return table(header, rows)


COMMANDS: dict[str, Command] = {
    "evaluate": Command(
        "score a pipeline on questions with answers, or compare scores", _evaluate_arguments, _evaluate
    ),
}
