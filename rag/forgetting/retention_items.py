"""Files of retention tasks: readers, items and their groups.

| kind | a record | measured |
|---|---|---|
| answers | `prompt` or `question`, and `answer`, `answers` or `golden_answers` | the greedy reply to one chat turn |
| pairs | `sentence_good` and `sentence_bad` (BLiMP), or `good` and `bad` | which of the two is more probable |
| text | `text`, or the paragraphs of a .txt file | the probability of the text |
| drift | `prompt`, `question` or `text` | the change of the next-token distributions on it |

Records are JSON lines, plain or gzipped. A record belongs to the groups that it names: `task`, `group`, `ability`, and
BLiMP's `UID`, `linguistics_term` and `field`. The id of an item is a digest of its content, and items are sorted by id:
a shuffled file gives the same numbers to the last digit.
"""

import gzip
import hashlib
import json
import math
import re
import string
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Generic, TypeVar

import regex

from indexes.errors import DataError
from indexes.records.field_types import check_unicode
from indexes.records.formats import read_json_lines
from indexes.records.record import BrokenRecord, Record
from indexes.records.whole_numbers import restore_whole_numbers
from indexes.word_segmentation import UNSPACED
from rag.metrics import normalize_answer

PROMPT_FIELDS = ("prompt", "question")
ANSWER_FIELDS = ("golden_answers", "answers", "answer")
PAIR_FIELDS = (("sentence_good", "sentence_bad"), ("good", "bad"))
GROUP_FIELDS = ("task", "group", "ability", "UID", "linguistics_term", "field")
WHOLE = "all"
MATCHES = ("normalised", "exact", "number")
# A hyphen behind a letter or a digit ("10-12 hours") is no sign; behind one of a script without blanks it may be.
_NUMBER = regex.compile(rf"(?:(?<![\w--[{UNSPACED}]])[-+])?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)", regex.V1)
_HALF_WIDTH = {full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)}
_FINAL = re.compile(r"####\s*(\S[^\n]*)")


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt with the replies that count as right."""

    prompt: str
    answers: tuple[str, ...]
    match: str
    """How a reply is compared; one of `MATCHES`."""

    def is_right(self, reply: str) -> bool:
        """Whether the reply counts.

        "normalised": equal to an answer after the normalisation of SQuAD (case, articles, ASCII punctuation and
        spacing do not matter); of an answer that is nothing but articles or signs (the choice "A", "+") those count.
        "exact": equal to an answer, but for spaces around both. "number": the final number
        equals that of an answer, as `final_number` finds both.
        """
        if self.match == "number":
            found = final_number(reply)
            return found is not None and found in [final_number(answer) for answer in self.answers]
        if self.match == "exact":
            return reply.strip() in [answer.strip() for answer in self.answers]
        return _compared(reply) in [_compared(answer) for answer in self.answers]


def _compared(text: str) -> str:
    """Normalised; where that leaves nothing, without case and outer punctuation, else without spaces."""
    words = (word.strip(string.punctuation) for word in text.lower().split())
    return normalize_answer(text) or " ".join(word for word in words if word) or "".join(text.split())


@dataclass(frozen=True)
class Pair:
    """Two sentences with a minimal difference, which makes the second ungrammatical."""

    good: str
    bad: str


@dataclass(frozen=True)
class Prompt:
    """The user's turn of a chat, or plain text."""

    text: str
    is_chat: bool


ItemType = TypeVar("ItemType", AnsweredPrompt, Pair, Prompt, str)


@dataclass(frozen=True)
class Item(Generic[ItemType]):
    """One record of a file."""

    id: str
    """A digest of the content; the second record with the same content is "...#2"."""
    groups: tuple[str, ...]
    content: ItemType
    where: str
    """File and line."""


def task_name(file: str | Path) -> str:
    """The name of the task in a file: the file name without suffixes.

    >>> task_name("a/b/wikitext2_test.jsonl.gz")
    'wikitext2_test'
    """
    return Path(file).name.partition(".")[0] or Path(file).name


def final_number(text: str) -> Decimal | None:
    r"""The number that a solution ends with: the first after the last "####" (GSM8K's mark), else the last of all.

    Thousands' commas and dollar signs do not count, 18 and 18.0 are equal. Full-width digits and marks are read too.

    >>> final_number("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18")
    Decimal('18')
    >>> final_number("So it costs $1,250.50 in all.")
    Decimal('1250.50')
    >>> final_number("答案是-5。")
    Decimal('-5')
    >>> final_number("No idea.") is None
    True
    """
    text = text.translate(_HALF_WIDTH)
    marked = _FINAL.findall(text)
    numbers = _NUMBER.findall(marked[-1]) if marked else _NUMBER.findall(text)
    if not numbers:
        return None
    try:
        return Decimal((numbers[0] if marked else numbers[-1]).replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


# -- files -------------------------------------------------------------------------------------------------------


def read_answered_prompts(file: str | Path) -> list[Item[AnsweredPrompt]]:
    """Prompts with answers.

    `match` of a record says how its reply is compared; without it an answer with "####" is a number, any other is
    normalised.

    Raises:
        DataError: No such file, an empty one, a record without prompt or answer; file and line are named.
    """
    return _items(file, _answered_prompt)


def read_pairs(file: str | Path) -> list[Item[Pair]]:
    """Minimal pairs; errors as `read_answered_prompts`."""
    return _items(file, _pair)


def read_texts(file: str | Path) -> list[Item[str]]:
    """Documents: `text` of each record, or the paragraphs of a .txt file; errors as `read_answered_prompts`."""
    if _is_text_file(file):
        return _named([(*paragraph, ()) for paragraph in _paragraphs(Path(file))], file)
    return _items(file, _text)


def read_prompts(file: str | Path) -> list[Item[Prompt]]:
    """Prompts or questions, answered or not (IFEval's are not), or plain text; errors as `read_answered_prompts`."""
    if _is_text_file(file):
        return _named([(where, Prompt(text, False), ()) for where, text in _paragraphs(Path(file))], file)
    return _items(file, _prompt)


def _is_text_file(file: str | Path) -> bool:
    return Path(str(file).removesuffix(".gz")).suffix.lower() == ".txt"


def _items(file: str | Path, content: Callable[[Mapping[str, Any], str], ItemType]) -> list[Item[ItemType]]:
    found = []
    for record in _records(file):
        where = f"{file}:{record.place.number}"
        found.append((where, content(record.fields, where), _groups(record.fields, where)))
    return _named(found, file)


def _named(records: Sequence[tuple[str, ItemType, tuple[str, ...]]], file: str | Path) -> list[Item[ItemType]]:
    """Sorted by their ids."""
    if not records:
        raise DataError(f"{file}: a retention task must have at least one record; the file is empty. Check the path.")
    named = sorted(
        ((_fingerprint(content, groups), where, content, groups) for where, content, groups in records),
        key=lambda r: r[0],
    )
    seen: Counter[str] = Counter()
    items = []
    for id_, where, content, groups in named:
        seen[id_] += 1
        items.append(Item(id_ if seen[id_] == 1 else f"{id_}#{seen[id_]}", groups, content, where))
    return items


def _fingerprint(content: Any, groups: tuple[str, ...]) -> str:
    is_plain = isinstance(content, str)
    identity = [content if is_plain else list(vars(content).values()), groups]
    return hashlib.sha256(json.dumps(identity, ensure_ascii=False).encode()).hexdigest()[:16]


def _records(file: str | Path) -> Iterator[Record]:
    path = Path(file)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"Retention tasks are JSON lines (or .txt for plain text); {path} {found}. Check the path.")
    for record in restore_whole_numbers(lambda: read_json_lines(path, str(path)), ANSWER_FIELDS):
        if isinstance(record, BrokenRecord):
            raise record.error
        yield record


def _paragraphs(path: Path) -> Iterator[tuple[str, str]]:
    if not path.is_file():
        raise DataError(f"A text file must exist; {path} does not. Check the path.")
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            text = stream.read().decode("utf-8-sig").replace("\r\n", "\n")
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: a text file must be whole and UTF-8; it is not ({error}). Convert or copy it."
        ) from error
    line = 1
    for part in re.split(r"(\n[ \t\r]*\n\s*)", text):
        if part.strip():
            yield f"{path}:{line}", part.strip()
        line += part.count("\n")


# -- records -----------------------------------------------------------------------------------------------------


def _answered_prompt(fields: Mapping[str, Any], where: str) -> AnsweredPrompt:
    prompt = _text_field(fields, PROMPT_FIELDS, where)
    name = next((name for name in ANSWER_FIELDS if name in fields), None)
    if name is None:
        raise DataError(
            f"{where}: a prompt must have one of {list(ANSWER_FIELDS)}; it has {sorted(fields)}. Prompts without "
            "answers (IFEval's, say) only measure drift: give the file as drift."
        )
    answers = tuple(_answers(fields[name], f"{where}: {name}"))
    match = fields.get("match", "number" if all("####" in answer for answer in answers) else "normalised")
    if match not in MATCHES:
        raise DataError(f"{where}: match must be one of {list(MATCHES)}, got {match!r}. Correct the record.")
    if match == "number" and any(final_number(answer) is None for answer in answers):
        raise DataError(f"{where}: an answer that is compared as a number must hold one, got {answers}. Correct it.")
    return AnsweredPrompt(prompt, answers, match)


def _answers(value: Any, where: str) -> list[str]:
    """A text, a number, or a list of them; at least one, and none empty."""
    found = [str(v) if _is_number(v) else v for v in _as_list(value)]
    if not found or not all(isinstance(v, str) and v.strip() for v in found):
        raise DataError(f"{where} must be text, a number, or a list of at least one, got {value!r}. Correct it.")
    return [check_unicode(text, where) for text in found]


def _is_number(value: Any) -> bool:
    """JSON's own numbers only: `json` reads NaN and 1e999 too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _pair(fields: Mapping[str, Any], where: str) -> Pair:
    names = next((names for names in PAIR_FIELDS if any(name in fields for name in names)), None)
    if names is None:
        raise DataError(
            f"{where}: a minimal pair must have {' or '.join(' and '.join(names) for names in PAIR_FIELDS)}; it "
            f"has {sorted(fields)}. Correct the record."
        )
    return Pair(*(_text_field(fields, (name,), where) for name in names))


def _text(fields: Mapping[str, Any], where: str) -> str:
    return _text_field(fields, ("text",), where)


def _prompt(fields: Mapping[str, Any], where: str) -> Prompt:
    is_chat = any(name in fields for name in PROMPT_FIELDS)
    return Prompt(_text_field(fields, (*PROMPT_FIELDS, "text"), where), is_chat)


def _text_field(fields: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The first of the fields that the record has; it must be text with a visible character."""
    name = next((name for name in names if name in fields), None)
    if name is None:
        raise DataError(f"{where}: a record must have {' or '.join(names)}; this one has {sorted(fields)}. Correct it.")
    value = fields[name]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name} must be text with a visible character, got {value!r}. Correct the record.")
    return check_unicode(value, f"{where}: {name}")


def _groups(fields: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Every group that the record names, each once, sorted."""
    found = {fields[name] for name in GROUP_FIELDS if isinstance(fields.get(name), str) and fields[name]}
    if WHOLE in found:
        raise DataError(f"{where}: a group must not be named {WHOLE!r}, which means the whole file. Rename it.")
    return tuple(sorted(found))
