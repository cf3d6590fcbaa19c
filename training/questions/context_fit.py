"""Which questions fit a model's context, found before anything is asked of the model.

Titles and texts of passages are cut where a prompt is too long, down to nothing; the question and the answer never are.
So whether a question fits depends on it alone, and not on what is retrieved for it. One that does not would end an
evaluation or an E-step after hours; here it is named and left out first.
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
    """Questions, and those among them that do not fit."""

    kept: list[QAExample]
    too_long: dict[str, str]
    """Why each of the others is too long, by id."""


def why_too_long(question: str, selector: Selector, generator: Generator, *, learning: bool = False) -> str | None:
    """Why a question is too long for the ranking prompt or the answer prompt; None where it fits both.

    Args:
        question: The question.
        selector: Who reads the candidates; one that does not use its language model, as its gate is 0, reads no prompt.
        generator: Who reads the K selected passages.
        learning: Whether the selector learns, so that it will read prompts even if it reads none now.
    """
    found = selector.why_too_long(question, learning=learning)
    return found or generator.why_too_long(question, selector.config.num_selected)


def that_fit(
    examples: Sequence[QAExample], selector: Selector, generator: Generator, *, learning: bool = False
) -> Fitted:
    """The questions that can be answered, and why the others are too long; arguments as `why_too_long`."""
    return split_by_length(
        examples, [why_too_long(e.question, selector, generator, learning=learning) for e in examples]
    )


def that_fit_with_answers(
    examples: Sequence[QAExample], selector: Selector, generator: Generator, *, learning: bool = True
) -> Fitted:
    """The questions that can be trained on, without the golden answers that no row has room for.

    A question without any answer that fits does not fit itself; arguments as `why_too_long`.
    """
    k = selector.config.num_selected
    kept = [
        replace(e, golden_answers=tuple(a for a in e.golden_answers if generator.fits(e.question, a, k)))
        for e in examples
    ]
    ranked = [selector.why_too_long(e.question, learning=learning) for e in kept]
    answered = [None if e.golden_answers else f"no answer of it has room in a row of {k} passages" for e in kept]
    return split_by_length(kept, [one or other for one, other in zip(ranked, answered, strict=True)])


def split_by_length(examples: Sequence[QAExample], reasons: Sequence[str | None]) -> Fitted:
    """The questions that are not too long, and why the others are."""
    found = list(zip(examples, reasons, strict=True))
    too_long = {example.id: reason for example, reason in found if reason is not None}
    return Fitted([example for example, reason in found if reason is None], too_long)


def refuse_too_long(too_long: Mapping[str, str], total: int, what: str, advice: str) -> None:
    """Raise if there are any.

    Raises:
        DataError: With the first id and why that question is too long.
    """
    if not too_long:
        return
    first, reason = next(iter(too_long.items()))
    raise DataError(
        f"Every question must fit into the model's context beside passages that are cut to nothing; {len(too_long)} of "
        f"{total} {what} do not, first {first!r}: {reason}. Shorten the question, use fewer passages, take a model "
        f"with a longer context, or {advice}."
    )


def warn_of_too_long(too_long: Mapping[str, str], total: int, what: str) -> None:
    """Say in the log how many were left out, and which."""
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
