"""The values of question records: questions, ids, and answers in the forms that the formats have."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from indexes.errors import DataError
from indexes.records.field_types import check_unicode

# Both ways of writing an answer that is true or false are right.
_YES, _NO = ("yes", "true"), ("no", "false")
# `datasets` writes it for the hidden answers of TriviaQA's test questions (mandarjoshi/trivia_qa, trivia_qa.py).
_HIDDEN_ANSWER = "<unk>"


def question_text(value: object, id_: str | int, where: str) -> str:
    """The question as the file has it.

    Raises:
        DataError: It is no text, or blank.
    """
    if isinstance(value, str) and value.strip():
        return check_unicode(value, where)
    found = "an empty one" if value is None or isinstance(value, str) else f"{type(value).__name__}: {value!r}"
    raise DataError(f"{where}: every question must be text, got {found} for the id {id_!r}. Fill or delete it.")


def identifier(value: object, where: str) -> str:
    """An id as text.

    Raises:
        DataError: It is neither text nor an integer.
    """
    # bool is an int to Python, but True is no id.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip():
        return check_unicode(value, where)
    raise DataError(
        f"{where}: an id must be text or an integer, got {value!r}. Leave the field out to number the records."
    )


def answer_texts(value: object, where: str) -> Iterator[str]:
    """Every answer in a text, a number, true or false, a list, or an object of SQuAD or TriviaQA.

    Raises:
        DataError: The value is something else.
    """
    if isinstance(value, str):
        yield check_unicode(value.strip(), where)
    elif isinstance(value, bool):
        yield from _YES if value else _NO
    elif isinstance(value, int | float) and math.isfinite(value):
        yield str(value)
    elif isinstance(value, Mapping) and "text" in value:
        yield from answer_texts(value["text"], where)
    elif isinstance(value, Mapping) and "aliases" in value:
        yield from _of_trivia_qa(value, where)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from answer_texts(entry, where)
    else:
        raise DataError(f"{where}: an answer must be text or a list of texts, got {value!r}. Correct it.")


def _of_trivia_qa(answer: Mapping[str, Any], where: str) -> Iterator[str]:
    """TriviaQA's answer and its aliases; `normalized_aliases` are the same in lower case without punctuation."""
    aliases = list(answer_texts(answer["aliases"] or (), where))
    value = answer.get("value")
    if value != _HIDDEN_ANSWER or aliases:
        yield from answer_texts(() if value is None else value, where)
    yield from aliases


def distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """The texts in order, without empty ones and repetitions."""
    return tuple(dict.fromkeys(text for text in texts if text))
