"""Which questions fit the context of the models, found before the models run.

Titles and texts of passages are truncated where a prompt is too long, if need be to nothing; the question and the
answer never are. So whether a question fits does not depend on the passages that are retrieved for it. One that does
not would stop an evaluation or an E-step after hours; here it is named and left out first.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from generator.generator import Generator
from indexes.errors import DataError
from retriever.selector import Selector
from training.questions.example import QAExample

logger = logging.getLogger(__name__)

_SHOWN = 20  # ids that a message names


class Fitted(NamedTuple):
    """The questions that fit, and the others.

    Attributes:
        kept: The questions that fit.
        too_long: Why each of the others is too long, by id.
    """

    kept: list[QAExample]
    too_long: dict[str, str]


def why_too_long(question: str, selector: Selector, generator: Generator, *, learning: bool = False) -> str | None:
    """Why a question is too long for the ranking prompt or the answer prompt; None where it fits both.

    Args:
        question: The question.
        selector: Reads the candidates; one that does not use its language model reads no prompt.
        generator: Reads the K selected passages.
        learning: Whether the selector learns, so that it will read prompts even if it reads none now.
    """
    found = selector.why_too_long(question, learning=learning)
    return found or generator.why_too_long(question, selector.config.num_selected)


def filter_fitting(
    examples: Sequence[QAExample], selector: Selector, generator: Generator, *, learning: bool = False
) -> Fitted:
    """The questions that can be answered, and why the others are too long; arguments as `why_too_long`."""
    return split_by_length(
        examples, [why_too_long(e.question, selector, generator, learning=learning) for e in examples]
    )


def filter_fitting_with_answers(
    examples: Sequence[QAExample], selector: Selector, generator: Generator, *, learning: bool = True
) -> Fitted:
    """The questions that can be trained on, without the golden answers for which no sequence has room.

    A question without any answer that fits does not fit itself; arguments as `why_too_long`.
    """
    k = selector.config.num_selected
    kept = [
        replace(e, golden_answers=tuple(a for a in e.golden_answers if generator.fits(e.question, a, k)))
        for e in examples
    ]
    ranked = [selector.why_too_long(e.question, learning=learning) for e in kept]
    unanswered = f"none of its answers fits into a sequence with {k} passages"
    answered = [None if e.golden_answers else unanswered for e in kept]
    return split_by_length(kept, [one or other for one, other in zip(ranked, answered, strict=True)])


def split_by_length(examples: Sequence[QAExample], reasons: Sequence[str | None]) -> Fitted:
    """The questions that are not too long, and why the others are."""
    found = list(zip(examples, reasons, strict=True))
    too_long = {example.id: reason for example, reason in found if reason is not None}
    return Fitted([example for example, reason in found if reason is None], too_long)


def refuse_too_long(too_long: Mapping[str, str], total: int, what: str, advice: str) -> None:
    """Refuse questions that are too long.

    Raises:
        DataError: There are any; the message has the first id and the reason.
    """
    if not too_long:
        return
    first, reason = next(iter(too_long.items()))
    raise DataError(
        f"Every question must fit into the model's context with passages that are truncated to nothing, got "
        f"{len(too_long)} of {total} {what} that do not, first {first!r}: {reason}. Shorten the question, use fewer "
        f"passages, use a model with a longer context, or {advice}."
    )


def warn_of_too_long(too_long: Mapping[str, str], total: int, what: str) -> None:
    """Log how many questions were left out, and which."""
    if too_long:
        first = next(iter(too_long.values()))
        logger.warning(
            "Left out %d of %d %s, which do not fit into the model's context: %s. The first: %s.",
            len(too_long),
            total,
            what,
            named(too_long),
            first,
        )


def named(ids: Iterable[str]) -> str:
    """The first ids of several, for a message."""
    shown = list(ids)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(map(repr, shown[:_SHOWN])) + more
