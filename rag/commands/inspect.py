"""`rag inspect ...`: what the model reads, what an E-step samples, and what a training batch contains."""

from collections.abc import Set
from typing import Any

from rag.commands.command import Command, Report
from rag.commands.options import (
    bundle_arguments,
    open_pipeline,
    quoting_argument,
    training_config,
    training_options,
)


def _inspect_prompts_arguments(parser: Any) -> None:
    parser.add_argument("question", type=str, help="one question, in quotes")
    bundle_arguments(parser)


def _inspect_prompts(args: Any) -> Report:
    from rag.diagnostics.inspection import inspect_prompts

    found = inspect_prompts(open_pipeline(args), args.question)
    return Report(found.text(), found.to_dict())


def _inspect_permutations_arguments(parser: Any) -> None:
    parser.add_argument("question", type=str, help="one question, in quotes")
    parser.add_argument(
        "--answer", type=str, nargs="+", required=True, help="golden answers, of which the E-step scores one"
    )
    parser.add_argument("--gold_ids", type=str, nargs="+", default=[], help="ids of gold passages, to mark them")
    _inspect_arguments(parser, skip={"ignore_identical_ids"})  # a question of the command line has no id


def _inspect_arguments(parser: Any, *, skip: Set[str] = frozenset()) -> None:
    bundle_arguments(parser)
    training_options(parser, skip={"training_arguments", *skip})
    parser.add_argument("--round", type=int, default=1, help="round whose samples are shown")


def _inspect_permutations(args: Any) -> Report:
    from rag.diagnostics.inspection import inspect_permutations
    from training import QAExample

    example = QAExample("inspected", args.question, tuple(args.answer), tuple(args.gold_ids))
    found = inspect_permutations(open_pipeline(args), example, training_config(args), round=args.round)
    return Report(found.text(), found.to_dict())


def _inspect_batch_arguments(parser: Any) -> None:
    parser.add_argument("--questions", type=str, required=True, help="training questions with golden answers")
    quoting_argument(parser)
    _inspect_arguments(parser)


def _inspect_batch(args: Any) -> Report:
    from rag.diagnostics.inspection import inspect_batch
    from training import load_examples
    from training.questions.context_fit import filter_fitting_with_answers, refuse_too_long, warn_of_too_long

    config, rag = training_config(args), open_pipeline(args)
    limit = config.m_step.per_device_train_batch_size
    examples = load_examples(
        args.questions,
        require_answers=True,
        limit=limit,
        quoting=args.quoting,
        ignore_identical_ids=config.ignore_identical_ids,
    )
    fitted = filter_fitting_with_answers(examples, rag.selector, rag.generator, learning=config.train_selector)
    if not fitted.kept:
        refuse_too_long(fitted.too_long, len(examples), "questions", "give others")
    warn_of_too_long(fitted.too_long, len(examples), "questions")  # as training does
    batch = inspect_batch(rag, fitted.kept, config, round=args.round)
    return Report(batch.text(rag.generator.language_model.tokenizer.decode), batch.to_dict())


COMMANDS: dict[str, Command] = {
    "inspect prompts": Command(
        "what the model reads for a question, with the parts that the chat template adds",
        _inspect_prompts_arguments,
        _inspect_prompts,
    ),
    "inspect permutations": Command(
        "the permutations that the E-step samples for a question, with their posterior weights",
        _inspect_permutations_arguments,
        _inspect_permutations,
    ),
    "inspect batch": Command(
        "the generator's sequences of a training batch, with the role of every token",
        _inspect_batch_arguments,
        _inspect_batch,
    ),
}
