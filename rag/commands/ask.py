"""`rag ask`: answers, and the passages they were generated from."""

from typing import Any

from rag.commands.command import Command, Report
from rag.commands.options import bundle_arguments, open_pipeline


def _ask_arguments(parser: Any) -> None:
    parser.add_argument("question", type=str, nargs="+", help="one or more questions, each in quotes")
    parser.add_argument(
        "--on_error",
        choices=["raise", "skip"],
        default="raise",
        help="for a question that is empty or does not fit the model's context: stop, or leave it out (null in --json)",
    )
    parser.add_argument(
        "--log_prob",
        type=bool,
        default=True,
        help="also the log-probability of each answer; false saves a second pass over truncated answers, and with "
        "--dtype mixed over all of them",
    )
    parser.add_argument(
        "-k", "--k", type=int, help="passages that an answer is generated from (default: as configured)"
    )
    bundle_arguments(parser)


def _ask(args: Any) -> Report:
    answers = open_pipeline(args).answer(args.question, k=args.k, on_error=args.on_error, log_prob=args.log_prob)
    texts = [_answer_text(q, a) for q, a in zip(args.question, answers, strict=True)]
    return Report("\n\n".join(texts), {"answers": [None if a is None else a.to_dict() for a in answers]})


def _answer_text(question: str, answer: Any) -> str:
    if answer is None:
        return f"{question[:200]}\n  (left out: it is empty or does not fit the model's context)"
    log_prob = "" if answer.log_prob is None else f"   (log p = {answer.log_prob:.2f})"
    lines = [answer.question, f"  {answer.text or '(no answer)'}{log_prob}"]
    for passage, rank in zip(answer.passages, answer.permutation, strict=True):
        mark = "*" if passage.id in answer.citations else " "
        found = f"retriever rank {rank + 1}, score {answer.candidates[rank].score:.4f}"
        lines.append(f"  {mark} {passage.id}  {passage.title}  ({found})")
    return "\n".join(lines)


COMMANDS: dict[str, Command] = {
    "ask": Command("answer questions", _ask_arguments, _ask, defers_imports=True),
}
