"""Comma- and tab-separated text as records, with quotes or without.

CSV has quotes (RFC 4180). Of tab-separated text there are two kinds under one suffix: DPR's ``psgs_w100.tsv`` is
written by `csv.writer`, MS MARCO's and ColBERT's collections have no quoting, and read as if they had, a field that
begins with a quote swallows what follows it (primeqa/primeqa#441). So it is decided by what the lines say.
"""

import csv
import itertools
import re
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from indexes.errors import DataError, UsageError

Quoting = Literal["auto", "csv", "none"]
# A line is held in memory whole, and an archive of kilobytes can unpack to one of gigabytes.
LONGEST_LINE = 64 * 2**20
# Whole records in a row, after a delimited line whose quotes are broken, that prove where records begin again.
_PROOF = 3
# What is looked at from the first quote on.
_WINDOW_LINES = 1000
_WINDOW_CHARACTERS = 2**20
_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')
_NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]*")


class Line(NamedTuple):
    """A line with its end and its number, from 1; one that is no text has the reason, and a replacement."""

    number: int
    text: str
    error: DataError | None = None


class Record(NamedTuple):
    """The fields of a record, and the lines that it stands on."""

    values: list[str]
    lines: list[Line]

    @property
    def content(self) -> str:
        """The lines as they are."""
        return "".join(line.text for line in self.lines)


class BrokenLine(NamedTuple):
    """A line that cannot be told into fields, and why."""

    line: Line
    error: DataError


class _Feed:
    """Lines for a csv reader, which remembers those of the record at hand and can take them back."""

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
        """The next so many lines, or fewer once they have so many characters."""
        seen = sum(len(line.text) for line in self._ahead) if characters else 0
        while len(self._ahead) < count and not (characters and seen > characters):
            line = next(self._lines, None)
            if line is None:
                break
            self._ahead.append(line)
            seen += len(line.text)
        return list(itertools.islice(self._ahead, count))


def check_quoting(quoting: str) -> None:
    """Refuse a way of quoting that there is not.

    Raises:
        UsageError: It is none of "auto", "csv" and "none".
    """
    if quoting not in get_args(Quoting):
        raise UsageError(f"quoting must be one of {', '.join(get_args(Quoting))}, but {quoting!r} came.")


def delimited_records(
    lines: Iterator[Line], name: str, *, delimiter: str, quoting: Quoting = "auto", fields: int | None = None
) -> Iterator[Record | BrokenLine]:
    """The records of delimited text in order; blank lines are none.

    Args:
        lines: With their ends.
        name: What errors call the file.
        delimiter: A comma or a tab.
        quoting: "csv": a field may stand in double quotes, with quotes inside it doubled, and hold delimiters and line
            ends. "none": a quote is a character like any other, and a line is a record. "auto" is "csv" for commas; for
            tabs it is what fits the first thousand lines (or 2^20 characters) from the first quote on, and a quote
            that would join several lines, each of them whole without it, is broken.
        fields: How many a record has; by default as many as the first, which is a header.
    """
    # The limit is 131,072 characters for the whole process unless somebody raises it; it is never lowered here.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    feed = _Feed(lines)
    readers = {
        # strict: an unclosed quote is an error, where the default silently swallows the rows that follow it.
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
            yield Record(values, list(feed.taken))


def _header(feed: _Feed, reader: Iterator[list[str]], name: str) -> Generator[Record, None, list[str]]:
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
            f"The first line must name the columns, but {name}, line {feed.taken[0].number} is broken: {error}. "
            "Correct the line, or convert the file to JSONL."
        ) from error
    yield Record(header, list(feed.taken))
    return header


# ---------------------------------------------------------------------------------------------------------
# Quotes or none
# ---------------------------------------------------------------------------------------------------------


class _Signs(NamedTuple):
    """How many lines say what: quoted (surely, perhaps), not quoted (surely, perhaps)."""

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
    """What the line at a position says, and how many lines were looked at for it."""
    text = texts[position]
    if '"' not in text:
        return _Signs(), 1
    values = text.split(delimiter)
    opened = [value for value in values if value.startswith('"')]
    if len(values) == fields and all(map(_QUOTED.fullmatch, opened)):
        return _signs_of_whole_fields(values, opened), 1
    record, used = _quoted_record(texts, position, delimiter)
    is_row = len(values) == fields
    if record is None or len(record) != fields:
        # Without the quote it is a row, and so is the next line, which is no middle of a text then.
        follows = texts[position + 1 : position + 2]
        return _Signs(plain=int(is_row and all(len(line.split(delimiter)) == fields for line in follows))), 1
    if fields == 1 and used > 1:  # each line is a whole row of one field, so only a doubled quote tells
        return _Signs(quoted=int('"' in record[0])), used
    if used > 1 and all(len(line.split(delimiter)) == fields for line in texts[position : position + used]):
        return _Signs(plain=1), 1
    return _Signs(quoted=1), used


def _signs_of_whole_fields(values: Sequence[str], opened: Sequence[str]) -> _Signs:
    """Of a row whose fields begin with a quote, end with one, and hold none in between that is not doubled."""
    if not opened:  # csv.writer would have quoted the field that has a quote inside
        return _Signs(maybe_plain=1)
    if any(value.strip('"') and '""' in value[1:-1] for value in opened):
        return _Signs(quoted=1)
    # It quotes all fields, or all that are no numbers, where it is told to; else quotes around a title are its own.
    return _Signs(maybe_quoted=int(len(opened) == sum(not _NUMBER.fullmatch(value) for value in values)))


def _quoted_record(texts: Sequence[str], position: int, delimiter: str) -> tuple[list[str] | None, int]:
    """The record that begins at a line if quotes are quotes, and on how many lines it stands."""
    feed = _Feed(Line(0, f"{text}\n") for text in itertools.islice(texts, position, None))
    try:
        record = next(csv.reader(feed, delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration):
        return None, 1
    return record, len(feed.taken)


def _joined(lines: Sequence[Line], delimiter: str, fields: int) -> str | None:
    """Why a record of several lines is not believed; None where they are no records by themselves."""
    if any(len(line.text.rstrip("\r\n").split(delimiter)) != fields for line in lines):
        return None
    return (
        f"its quotes join {len(lines)} lines, each of them a whole row without quoting (pass quoting='none' if a quote "
        "is a character like any other, quoting='csv' if this is one row)"
    )


# ---------------------------------------------------------------------------------------------------------
# Behind a broken quote
# ---------------------------------------------------------------------------------------------------------


def _leave_out(feed: _Feed, quoting: str, delimiter: str, fields: int, name: str, cause: str) -> Iterator[BrokenLine]:
    """The line that is broken, and with quoting what follows it until records demonstrably begin again.

    Behind a broken quote nobody can tell a record from a line in the middle of a quoted text, and a guess would
    make passages of fragments. So reading resumes only where `_PROOF` lines in a row are whole records, each by
    itself; all lines before that are left out.
    """
    first, *rest = feed.taken
    feed.put_back(rest)
    rule = "Fields with quotes, delimiters or newlines must be quoted"
    if "field limit" in cause:
        rule = f"A field must have at most {csv.field_size_limit():,} characters"
    error = DataError(
        f"{rule}, but {name}, line {first.number} is broken: {cause}. Correct the line, or convert the file to JSONL."
    )
    yield BrokenLine(first, error)
    whole = _whole_record(delimiter, fields)
    while (
        quoting == "csv"
        and (ahead := feed.ahead(_PROOF))
        and not (len(ahead) == _PROOF and all(line.error is None and whole.fullmatch(line.text) for line in ahead))
    ):
        next(feed)
        error = DataError(
            f"A row must be told from the middle of a quoted text, but {name}, line {ahead[0].number} follows line "
            f"{first.number}, whose quotes are broken, before {_PROOF} whole rows in a row. Correct line "
            f"{first.number}."
        )
        if ahead[0].text.strip():
            yield BrokenLine(ahead[0], error)


def _whole_record(delimiter: str, fields: int) -> re.Pattern[str]:
    field = rf'(?:"(?:[^"\r\n]|"")*"|[^"\r\n{delimiter}]*)'
    return re.compile(rf"{field}(?:{delimiter}{field}){{{fields - 1}}}\r?\n?")
