"""`rag ask`: answers, and what they were read from."""

from typing import Any

from rag.commands.arguments import bundle_arguments, open_pipeline
from rag.commands.command import Command, Report


def _ask_arguments(parser: Any) -> None:
    parser.add_argument("question", type=str, nargs="+", help="one or more questions, each in quotes")
    bundle_arguments(parser)


def _ask(args: Any) -> Report:
    answers = open_pipeline(args).answer(args.question)
    return Report("\n\n".join(_answer_text(a) for a in answers), {"answers": [a.to_dict() for a in answers]})


def _answer_text(answer: Any) -> str:
    lines = [answer.question, f"  {answer.text or '(no answer)'}   (log p = {answer.log_prob:.2f})"]
    for passage, rank in zip(answer.passages, answer.permutation, strict=True):
        mark = "*" if passage.id in answer.citations else " "
        lines.append(f"  {mark} {passage.id}  {passage.title}  (retriever rank {rank + 1})")
    return "\n".join(lines)


COMMANDS: dict[str, Command] = {
    "ask": Command("answer questions", _ask_arguments, _ask),
}
