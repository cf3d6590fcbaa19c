"""`rag search`: what a retriever finds, with its recall where there are answers."""

from collections.abc import Sequence
from typing import Any

from indexes.errors import UsageError
from rag.commands.command import Command, Report, metrics_text
from rag.commands.options import (
    identical_ids_argument,
    quoting_argument,
    retriever_argument,
    split_argument,
    trust_argument,
)


def _search_arguments(parser: Any) -> None:
    parser.add_argument("question", type=str, nargs="*", help="questions to search for")
    parser.add_argument("--index", type=str, required=True, help="index directory")
    parser.add_argument("--questions", type=str, help="question file; recall is printed when it has answers")
    split_argument(parser)
    identical_ids_argument(parser)
    quoting_argument(parser)
    parser.add_argument("-k", "--k", type=int, default=20, help="passages per question")
    parser.add_argument("--encoder", type=str, help="encoder folder, if it has moved since the index was built")
    trust_argument(parser, "the encoder")
    parser.add_argument("--batch_size", type=int, default=256, help="questions searched at once")
    retriever_argument(parser)
    parser.add_argument(
        "--explain",
        action="store_true",
        help="rank and score of each hit in each ranking, and the words it shares with the question",
    )


def _search(args: Any) -> Report:
    from indexes import PassageIndex
    from rag.evaluation.evaluation import search_metrics
    from retriever import Candidates
    from retriever.retrievers import create_retriever
    from training import check_gold_ids, identical_ids, retrieve

    if args.batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {args.batch_size}.")
    examples = _questions(args)
    index = PassageIndex.open(args.index)
    examples = check_gold_ids(examples, index)
    encoder = index.load_encoder(args.encoder, trust_remote_code=args.trust_remote_code, check=False)
    retriever = create_retriever(index, encoder, args.retriever)
    found: list[Candidates] = []
    for start in range(0, len(examples), args.batch_size):
        found += retrieve(retriever, examples[start : start + args.batch_size], args.k, explain=args.explain)
    results = [{"id": e.id, "hits": _hits(c)} for e, c in zip(examples, found, strict=True)]
    metrics = search_metrics(examples, found, args.k)
    hits = [] if args.questions and not args.explain else [_hits_text(found)]
    identical = identical_ids(examples, index)
    note = [str(identical)] if identical.ignoring else []
    text = "\n\n".join([*hits, *([metrics_text(metrics)] if args.questions else []), *note])
    return Report(text, {"results": results, "metrics": metrics, "identical_ids": identical._asdict()})


def _hits(candidates: Any) -> list[dict[str, Any]]:
    from dataclasses import asdict

    hits = [{"id": i, "score": s} for i, s in zip(candidates.ids, candidates.scores.tolist(), strict=True)]
    if candidates.explanations is None:
        return hits
    return [{**hit, "explanation": asdict(e)} for hit, e in zip(hits, candidates.explanations, strict=True)]


def _questions(args: Any) -> list[Any]:
    from training import QAExample, load_examples

    if bool(args.question) == bool(args.questions):
        raise UsageError("Give either questions as words or a file with --questions (exactly one of the two).")
    if args.ignore_identical_ids is not None and args.question:
        raise UsageError(
            "--ignore_identical_ids is about the ids of a file; give one with --questions, or leave it out."
        )
    if args.questions:
        return load_examples(
            args.questions,
            split=args.split,
            quoting=args.quoting,
            ignore_identical_ids=args.ignore_identical_ids,
        )
    return [QAExample(id=str(i), question=text) for i, text in enumerate(args.question)]


def _hits_text(found: Sequence[Any]) -> str:
    lines = []
    for candidates in found:
        lines.append(candidates.question)
        for n, (passage, score) in enumerate(zip(candidates.passages, candidates.scores.tolist(), strict=True)):
            lines.append(f"  {score:.4f}  {passage.id}  {passage.title}")
            if candidates.explanations:
                lines.append(f"          {_explanation_text(candidates.explanations[n])}")
    return "\n".join(lines)


def _explanation_text(explanation: Any) -> str:
    parts = [
        f"{name} {'-' if rank is None else f'#{rank}'} ({score:.4f})"
        for name, rank, score in (
            ("dense", explanation.dense_rank, explanation.dense_score),
            ("bm25", explanation.bm25_rank, explanation.bm25_score),
        )
        if score is not None
    ]
    if explanation.fused_score is not None:
        parts.append(f"fused {explanation.fused_score:.4f}")
    if explanation.terms is not None:
        parts.append(" + ".join(f"{word} {added:.4f}" for word, added in explanation.terms.items()) or "no word shared")
    return ", ".join(parts)


COMMANDS: dict[str, Command] = {
    "search": Command(
        "retrieve passages, and score recall on a question file", _search_arguments, _search, defers_imports=True
    ),
}
