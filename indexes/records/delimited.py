"""Comma- and tab-separated text as lists of fields, with quoting or without.

CSV has quoting (RFC 4180). Tab-separated text exists in two forms under one suffix: DPR's ``psgs_w100.tsv`` is written
by `csv.writer`, while MS MARCO's and ColBERT's collections have no quoting. Read as if they had, a field that begins
with a quote swallows what follows it (primeqa/primeqa#441). So the lines themselves decide.
"""

import csv
import itertools
import re
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from indexes.errors import DataError, UsageError
from indexes.records.text_lines import LONGEST_LINE, Line

Quoting = Literal["auto", "csv", "none"]
# So many consecutive whole records after a line with broken quotes show where records begin again.
_PROOF = 3
# How much of the text is examined from the first quote on.
_WINDOW_LINES = 1000
_WINDOW_CHARACTERS = 2**20
_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')
_NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]*")


class DelimitedRecord(NamedTuple):
    """The fields of a record, and the lines that it spans."""

    values: list[str]
    lines: list[Line]

    @property
    def error(self) -> DataError | None:
        """Why one of its lines is no text, if one is not."""
        return next((line.error for line in self.lines if line.error), None)

    @property
    def content(self) -> str:
        """The lines as the file has them."""
        return "".join(line.text for line in self.lines)


class BrokenLine(NamedTuple):
    """A line that cannot be split into fields, and why."""

    line: Line
    error: DataError


class _Feed:
    """Lines for a csv reader; remembers those of the current record and can take them back."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self.taken: list[Line] = []
        self._lines = lines
        self._ahead: deque[Line] = deque()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.taken.append(self._ahead.popleft() if self._ahead else next(self._lines))
        return self.taken[-1].text

    def put_back(self, lines: Sequence[Line]) -> None:
        self._ahead.extendleft(reversed(lines))

    def ahead(self, count: int, characters: int = 0) -> list[Line]:
        """The next `count` lines without taking them, or fewer once they have `characters` characters."""
        seen = sum(len(line.text) for line in self._ahead) if characters else 0
        while len(self._ahead) < count and not (characters and seen > characters):
            line = next(self._lines, None)
            if line is None:
                break
            self._ahead.append(line)
            seen += len(line.text)
        return list(itertools.islice(self._ahead, count))


def check_quoting(quoting: str) -> None:
    """Refuse an unknown kind of quoting.

    Raises:
        UsageError: It is none of "auto", "csv" and "none".
    """
    if quoting not in get_args(Quoting):
        raise UsageError(f"quoting must be one of {', '.join(get_args(Quoting))}, got {quoting!r}. Choose one of them.")


def delimited_records(
    lines: Iterator[Line], name: str, *, delimiter: str, quoting: Quoting = "auto", fields: int | None = None
) -> Iterator[DelimitedRecord | BrokenLine]:
    """The records of delimited text in order; blank lines are left out.

    Args:
        lines: Lines with their ends.
        name: How errors call the file.
        delimiter: A comma or a tab.
        quoting: "csv": a field may stand in double quotes, with quotes inside it doubled, and hold delimiters and line
            ends. "none": a quote is a character like any other, and a line is a record. "auto" is "csv" for commas; for
            tabs it is what fits the first thousand lines (or 2^20 characters) from the first quote on, and a quote
            that would join several lines, each of them a whole record without it, is broken.
        fields: How many fields a record has; by default as many as the first record, which is a header.

    Raises:
        DataError: The header is broken.
    """
    # The limit of `csv` is 131,072 characters and one for the whole process; it is never lowered here.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    feed = _Feed(lines)
    readers = {
        # strict: an unclosed quote is an error, where the default silently swallows the records that follow it.
        "csv": csv.reader(feed, delimiter=delimiter, strict=True),
        "none": csv.reader(feed, delimiter=delimiter, strict=True, quoting=csv.QUOTE_NONE),
    }
    by_content = quoting == "auto" and delimiter == "\t"
    if fields is None:
        header = yield from _header(feed, readers["none" if quoting == "none" else "csv"], name)
        fields = len(header)
    if not fields:
        return
    # Lines without a quote are the same either way, and "auto" waits for the first that has one.
    decided: str = "csv" if quoting == "auto" and not by_content else quoting
    joins = True
    while True:
        feed.taken.clear()
        try:
            values = next(readers["csv" if decided == "csv" else "none"], None)
            cause = None
        except csv.Error as error:
            values, cause = [], str(error)
        if decided == "auto" and any('"' in line.text for line in feed.taken):
            feed.put_back(feed.taken)
            decided, joins = _decide(feed.ahead(_WINDOW_LINES, _WINDOW_CHARACTERS), delimiter, fields)
            continue
        if values is None:
            return
        if cause is None and by_content and len(feed.taken) > 1 and not (fields == 1 and joins):
            cause = _joined(feed.taken, delimiter, fields)
        if cause is not None:
            yield from _leave_out(feed, decided, delimiter, fields, name, cause)
        elif values:
            yield DelimitedRecord(values, list(feed.taken))


def _header(feed: _Feed, reader: Iterator[list[str]], name: str) -> Generator[DelimitedRecord, None, list[str]]:
    """The first record that is not blank; empty when there is none."""
    header: list[str] = []
    try:
        while not header:
            feed.taken.clear()
            header = next(reader)
    except StopIteration:
        return header
    except csv.Error as error:
        raise DataError(
            f"{name}:{feed.taken[0].number}: the first line must name the columns, got a broken line: {error}. Correct "
            "the line, or convert the file to JSONL."
        ) from error
    yield DelimitedRecord(header, list(feed.taken))
    return header


# ---------------------------------------------------------------------------------------------------------
# Is the text quoted?
# ---------------------------------------------------------------------------------------------------------


class _Signs(NamedTuple):
    """How many lines speak for quoting (certainly, possibly) and against it (certainly, possibly)."""

    quoted: int = 0
    maybe_quoted: int = 0
    plain: int = 0
    maybe_plain: int = 0


def _decide(window: Sequence[Line], delimiter: str, fields: int) -> tuple[str, bool]:
    """How the lines are quoted, and whether there is a sign that quotes may join lines."""
    texts = [line.text.rstrip("\r\n") for line in window]
    signs, position = _Signs(), 0
    while position < len(texts):
        found, used = _signs(texts, position, delimiter, fields)
        signs = _Signs(*map(sum, zip(signs, found, strict=True)))
        position += used
    against = signs.plain + (0 if signs.quoted else signs.maybe_plain)
    return "none" if against > signs.quoted + signs.maybe_quoted else "csv", signs.quoted > 0


def _signs(texts: Sequence[str], position: int, delimiter: str, fields: int) -> tuple[_Signs, int]:
    """What the line at a position says about quoting, and how many lines were examined for it."""
    text = texts[position]
    if '"' not in text:
        return _Signs(), 1
    values = text.split(delimiter)
    opened = [value for value in values if value.startswith('"')]
    if len(values) == fields and all(map(_QUOTED.fullmatch, opened)):
        return _signs_of_whole_fields(values, opened), 1
    record, used = _quoted_record(texts, position, delimiter)
    is_whole = len(values) == fields
    if record is None or len(record) != fields:
        # Without quoting it is a whole record, and so is the next line, which then is not the middle of a text.
        follows = texts[position + 1 : position + 2]
        return _Signs(plain=int(is_whole and all(len(line.split(delimiter)) == fields for line in follows))), 1
    if fields == 1 and used > 1:  # each line is a whole record of one field, so only a doubled quote is a sign
        return _Signs(quoted=int('"' in record[0])), used
    if used > 1 and all(len(line.split(delimiter)) == fields for line in texts[position : position + used]):
        return _Signs(plain=1), 1
    return _Signs(quoted=1), used


def _signs_of_whole_fields(values: Sequence[str], opened: Sequence[str]) -> _Signs:
    """The signs of a line whose quoted fields begin and end with a quote and hold only doubled quotes in between."""
    if not opened:  # csv.writer would have quoted the field that has a quote inside
        return _Signs(maybe_plain=1)
    if any(value.strip('"') and '""' in value[1:-1] for value in opened):
        return _Signs(quoted=1)
    # csv.writer can quote all fields, or all that are no numbers; other quotes around a title belong to the title.
    return _Signs(maybe_quoted=int(len(opened) == sum(not _NUMBER.fullmatch(value) for value in values)))


def _quoted_record(texts: Sequence[str], position: int, delimiter: str) -> tuple[list[str] | None, int]:
    """The record that begins at a line if the text is quoted, and how many lines it spans."""
    feed = _Feed(Line(0, f"{text}\n") for text in itertools.islice(texts, position, None))
    try:
        record = next(csv.reader(feed, delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration):
        return None, 1
    return record, len(feed.taken)


def _joined(lines: Sequence[Line], delimiter: str, fields: int) -> str | None:
    """Why a record of several lines is refused; None where the lines are no records by themselves."""
    if any(len(line.text.rstrip("\r\n").split(delimiter)) != fields for line in lines):
        return None
    return (
        f"its quotes join {len(lines)} lines, each of them a whole record without quoting (pass quoting='none' if a "
        "quote is a character like any other, quoting='csv' if this is one record)"
    )


# ---------------------------------------------------------------------------------------------------------
# After a broken quote
# ---------------------------------------------------------------------------------------------------------


def _leave_out(feed: _Feed, quoting: str, delimiter: str, fields: int, name: str, cause: str) -> Iterator[BrokenLine]:
    """The broken line, and in quoted text the lines after it until records demonstrably begin again.

    After a broken quote a record cannot be distinguished from a line in the middle of a quoted text, and a guess would
    make passages of fragments. So reading resumes only where `_PROOF` consecutive lines are whole records, each by
    itself; all lines before that are left out.
    """
    first, *rest = feed.taken
    feed.put_back(rest)
    rule = "a field with quotes, delimiters or newlines must be quoted"
    if "field limit" in cause:
        rule = f"a field must have at most {csv.field_size_limit():,} characters"
    where = f"{name}:{first.number}"
    error = DataError(f"{where}: {rule}, got a broken line: {cause}. Correct it, or convert the file to JSONL.")
    yield BrokenLine(first, error)
    whole = _whole_record(delimiter, fields)
    while (
        quoting == "csv"
        and (ahead := feed.ahead(_PROOF))
        and not (len(ahead) == _PROOF and all(line.error is None and whole.fullmatch(line.text) for line in ahead))
    ):
        next(feed)
        error = DataError(
            f"{name}:{ahead[0].number}: a record must be distinguishable from the middle of a quoted text, got a line "
            f"after line {first.number}, whose quotes are broken, and before {_PROOF} consecutive whole records. "
            f"Correct line {first.number}."
        )
        if ahead[0].text.strip():
            yield BrokenLine(ahead[0], error)


def _whole_record(delimiter: str, fields: int) -> re.Pattern[str]:
    field = rf'(?:"(?:[^"\r\n]|"")*"|[^"\r\n{delimiter}]*)'
    return re.compile(rf"{field}(?:{delimiter}{field}){{{fields - 1}}}\r?\n?")
