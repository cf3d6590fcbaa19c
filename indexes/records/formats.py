"""Files as numbered rows: JSON lines and documents, delimited text, Parquet, Arrow, and BEIR's zip.

A reader streams. A row that is broken comes out as a `BrokenRow` in its place, so that the caller may leave it out;
what makes the rest of a file unreadable (a truncated archive, a header that names no text) is raised.
"""

import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple

import pyarrow as pa

from indexes.errors import DataError
from indexes.records.delimited import LONGEST_LINE, BrokenLine, Line, Quoting, Record, delimited_records
from indexes.records.json_documents import HEAD_BYTES, is_json_document, read_json_document
from indexes.records.tables import (
    ArrowTable,
    column_names,
    indexed_batches,
    open_arrow,
    open_parquet,
    python_rows,
    table_index,
)

ID_FIELDS = ("id", "_id")
TEXT_FIELDS = ("text", "contents")
FIELDS = (*ID_FIELDS, "title", *TEXT_FIELDS)
DPR_FIELDS = ("positive_ctxs", "negative_ctxs", "hard_negative_ctxs", "ctxs")
# The columns of a table of questions with passages inside, and of KILT's pages (indexes.records.question_files).
_QUESTION_COLUMNS = (
    "question",
    "title",
    "context",
    "supporting_facts",
    "paragraphs",
    "passage",
    "answers",
    *DPR_FIELDS,
)
_KILT_COLUMNS = ("wikipedia_id", "kilt_id", "wikipedia_title", "text")


class Place(NamedTuple):
    """Where a row stands: lines count from 1, rows of a table from 0, and a file is named by its path."""

    source: str
    unit: Literal["line", "row", "file"]
    number: int | str

    def __str__(self) -> str:
        return f"{self.source}, {self.unit} {self.number}"


class Row(NamedTuple):
    """The fields found at one place, and its text as it stands there, where it has one."""

    place: Place
    fields: Mapping[str, Any]
    content: str | None = None


class BrokenRow(NamedTuple):
    """A place whose fields cannot be read, and why."""

    place: Place
    error: DataError
    content: str | None = None


Rows = Iterator[Row | BrokenRow]


def has_content(title: str, text: str) -> bool:
    """What every passage must have, wherever it comes from: a title or a text that is not blank.

    BEIR embeds title and text as one string, so a document without a text (in TREC-COVID those without an abstract)
    is found by its title.
    """
    return bool(title.strip() or text.strip())


# ---------------------------------------------------------------------------------------------------------
# Lines
# ---------------------------------------------------------------------------------------------------------


_Opener = Callable[[], AbstractContextManager[BinaryIO]]


def _opener(path: Path) -> _Opener:
    def open_plain_or_gzip() -> AbstractContextManager[BinaryIO]:
        return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]

    return open_plain_or_gzip


def _read_lines(open_stream: _Opener, name: str) -> Iterator[Line]:
    """Numbered lines with their ends, counted from 1; one that is no text carries the error and a replacement."""
    number = 0
    try:
        with open_stream() as stream:
            while raw := stream.readline(LONGEST_LINE + 1):
                number += 1
                yield _line(raw, stream, Place(name, "line", number))
    # BadGzipFile is an OSError, so the order matters.
    except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"A {'.gz' if name.lower().endswith('.gz') else '.zip'} file must be complete, but {name} breaks off after "
            f"line {number} ({error}). Fetch it again."
        ) from error
    except OSError as error:
        raise DataError(
            f"A corpus file must be readable, but {name} is not after line {number}: {error}. Check the file."
        ) from error


def _line(raw: bytes, stream: BinaryIO, place: Place) -> Line:
    number = int(place.number)
    if len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
        quotes = raw.count(b'"')
        while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
            quotes += rest.count(b'"')
        quotes += rest.count(b'"')
        error = DataError(f"A line must have at most {LONGEST_LINE} bytes, but {place} has more. Cut the passage.")
        text = raw[:10_000].decode(errors="replace")
        # A quote that is closed behind the cut must not swallow the lines that follow.
        return Line(number, f'{text}"\n' if (quotes - text.count('"')) % 2 else f"{text}\n", error)
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as cause:
        error = DataError(
            f"A corpus must be UTF-8, but {place} is not ({cause.reason} at byte {cause.start}). Convert the file, "
            "for instance with iconv."
        )
        # A replacement never swallows ASCII, so quotes and delimiters still stand where they stood.
        return Line(number, raw.decode(errors="replace"), error)
    if "\0" in text:
        error = DataError(
            f"A corpus must be UTF-8 text, but {place} holds a NUL byte: it is another encoding such as UTF-16, or "
            "damaged. Convert or fetch it again."
        )
        return Line(number, text, error)
    return Line(number, text, None)


# ---------------------------------------------------------------------------------------------------------
# JSON lines, also inside BEIR's zip
# ---------------------------------------------------------------------------------------------------------


def read_jsonl(path: Path, name: str) -> Rows:
    """One object on each line; blank lines are nothing."""
    return _json_rows(_read_lines(_opener(path), name), name)


def read_json(path: Path, name: str) -> Rows:
    """The elements of a JSON array, streamed, or those of SQuAD's ``data``; KILT's ``.json`` are lines all the same."""
    with _opener(path)() as stream:
        try:
            head = stream.read(HEAD_BYTES).decode("utf-8-sig", errors="ignore")
        except (EOFError, gzip.BadGzipFile, zlib.error):
            head = ""  # whoever reads the lines says it better
    if not is_json_document(head):
        yield from read_jsonl(path, name)
        return
    with _opener(path)() as stream:
        for number, element in enumerate(read_json_document(stream, name)):
            place = Place(name, "row", number)
            if isinstance(element, dict):
                yield Row(place, element)
            else:
                error = DataError(f"Every element must be an object, but {place} is a {type(element).__name__}.")
                yield BrokenRow(place, error, json.dumps(element))


def read_beir_zip(path: Path, name: str) -> Rows:
    """The one ``corpus.jsonl`` of an archive, streamed from where it is: nothing is ever extracted."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = _corpus_member(archive, name)
            inside = f"{name}/{member.filename}"
            yield from _json_rows(_read_lines(_member_opener(archive, member), inside), inside)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, EOFError, OSError) as error:
        raise DataError(
            f"A .zip file must be a readable archive, but {name} is not: {error}. Fetch it again, or unpack it and "
            "pass the folder."
        ) from error


def _corpus_member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    paths = [(member, PurePosixPath(member.filename)) for member in archive.infolist() if not member.is_dir()]
    found = [member for member, path in paths if path.name == "corpus.jsonl" and "__MACOSX" not in path.parts]
    if len(found) != 1:
        raise DataError(
            f"A BEIR archive must hold one corpus.jsonl, but {name} holds {len(found)} "
            f"({[member.filename for member in found[:5]]}). Unpack it and pass the folder or file that you mean."
        )
    if found[0].flag_bits & 0x1:
        raise DataError(
            f"An archive must be readable without a password, but {found[0].filename!r} in {name} is encrypted. "
            "Unpack it and pass the folder."
        )
    return found[0]


def _member_opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Opener:
    @contextmanager
    def open_member() -> Iterator[BinaryIO]:
        # The archive's own readline is written in Python and slow.
        with archive.open(member) as stream, io.BufferedReader(stream, 2**16) as buffered:  # type: ignore[type-var]
            yield buffered

    return open_member


def _json_rows(lines: Iterable[Line], name: str) -> Rows:
    for line in lines:
        if line.error or line.text.strip():
            yield _json_row(line, Place(name, "line", line.number))


def _json_row(line: Line, place: Place) -> Row | BrokenRow:
    if line.error:
        return BrokenRow(place, line.error, line.text)
    try:
        fields = _JSON.decode(line.text)
    # A number with too many digits is a ValueError, and so is broken JSON.
    except (ValueError, RecursionError) as cause:
        error = DataError(
            f"Every line must be one JSON object, but {place} is broken: {cause}. Correct or remove the line."
        )
        return BrokenRow(place, error, line.text)
    if not isinstance(fields, dict):
        error = DataError(
            f"Every line must be one JSON object, but {place} is a {type(fields).__name__}. "
            'Write {"id": ..., "title": ..., "text": ...}.'
        )
        return BrokenRow(place, error, line.text)
    return Row(place, fields, line.text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice in one object")
    return fields


_JSON = json.JSONDecoder(object_pairs_hook=_unique)


# ---------------------------------------------------------------------------------------------------------
# Delimited text
# ---------------------------------------------------------------------------------------------------------


def read_csv(path: Path, name: str, quoting: Quoting = "auto") -> Rows:
    """Comma-separated rows under a header line."""
    return _read_delimited(path, name, ",", quoting)


def read_tsv(path: Path, name: str, quoting: Quoting = "auto") -> Rows:
    """Tab-separated rows under a header line, quoted as DPR's ``psgs_w100.tsv`` is, or not at all."""
    return _read_delimited(path, name, "\t", quoting)


def _read_delimited(path: Path, name: str, delimiter: str, quoting: Quoting) -> Rows:
    lines = _read_lines(_opener(path), name)
    records = delimited_records(lines, name, delimiter=delimiter, quoting=quoting)
    first = next(records, None)
    if not isinstance(first, Record):
        return
    header = _columns(first, name)
    for record in records:
        if isinstance(record, BrokenLine):
            yield BrokenRow(Place(name, "line", record.line.number), record.error, record.line.text)
        else:
            yield _delimited_row(record, header, name)


def _columns(header: Record, name: str) -> list[str]:
    """The names of the columns."""
    for line in header.lines:
        if line.error:
            raise line.error
    columns = header.values
    _check_columns(columns, f"{name}, line {header.lines[0].number}")
    # to_csv of pandas writes the index first and leaves its name empty where it has none.
    if columns[0] == "" and not any(field in columns for field in ID_FIELDS):
        return [ID_FIELDS[0], *columns[1:]]
    return columns


def _check_columns(names: Sequence[str], where: str) -> None:
    if not any(field in names for field in TEXT_FIELDS):
        raise DataError(
            f'A passage needs a "text" (or FlashRAG\'s "contents"), but {where} has only {sorted(names)[:50]}. '
            "Rename the column that holds the text, or add the header if it is missing."
        )
    twice = [field for field in FIELDS if list(names).count(field) > 1]
    if twice:
        raise DataError(f"A column must appear once, but {where} has {twice} twice. Rename or remove one of them.")


def _delimited_row(record: Record, header: list[str], name: str) -> Row | BrokenRow:
    values, content = record.values, record.content
    place = Place(name, "line", record.lines[0].number)
    for line in record.lines:
        if line.error:
            return BrokenRow(place, line.error, content)
    if len(values) != len(header):
        error = DataError(
            f"Every row must have the {len(header)} fields of the header {header[:50]}, but {place} has "
            f"{len(values)}. Correct the row, add the header line if it is missing, or pass quoting='csv' or 'none' if "
            "its quotes are taken for what they are not."
        )
        return BrokenRow(place, error, content)
    # An empty id cell is a missing id.
    fields = {key: None if key in ID_FIELDS and not value else value for key, value in zip(header, values, strict=True)}
    return Row(place, fields, content)


# ---------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------


def read_parquet(path: Path, name: str) -> Rows:
    """The known columns of a Parquet file, row group by row group."""
    with unreadable_table(".parquet", name), open_parquet(path) as table:
        yield from passage_table(table, name)


def read_arrow(path: Path, name: str) -> Rows:
    """The known columns of an Arrow file, of either kind, memory-mapped."""
    with unreadable_table(".arrow", name), open_arrow(path) as table:
        yield from passage_table(table, name)


@contextmanager
def unreadable_table(kind: str, name: str) -> Iterator[None]:
    """Say which table it is that Arrow cannot read.

    Raises:
        DataError: Arrow has complained.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"A {kind} file must be readable, but {name} is not: {error}. Write or fetch it again."
        ) from error


def passage_table(table: ArrowTable, name: str) -> Rows:
    """The known columns of a table, with the index of pandas as the id where no column is.

    Raises:
        DataError: No column holds a text, or the index that would be the id is unfit for it.
    """
    names = column_names(table.schema)
    known = known_columns(names)
    of_passages = set(known) <= set(FIELDS)
    if of_passages:
        _check_columns(names, name)
    index = table_index(table.schema, known, ID_FIELDS, name, labels=of_passages)
    columns = [column for column in known if column in table.schema.names]
    yield from table_rows(indexed_batches(table, columns, index, name), name)


def known_columns(names: Sequence[str]) -> list[str]:
    """The columns of a table that passages are read from: its own, or those of questions with passages inside."""
    if "wikipedia_title" in names:
        fields: tuple[str, ...] = _KILT_COLUMNS
    elif "question" in names and not set(TEXT_FIELDS) & set(names) and set(_QUESTION_COLUMNS[2:]) & set(names):
        fields = _QUESTION_COLUMNS
    else:
        fields = FIELDS
    return [name for name in names if name in fields]


def table_rows(batches: Iterable[pa.RecordBatch], name: str) -> Rows:
    """The rows of record batches, counted from 0 over all of them."""
    first = 0
    for batch in batches:
        for offset, fields in enumerate(python_rows(batch)):
            place = Place(name, "row", first + offset)
            if isinstance(fields, Exception):
                yield BrokenRow(
                    place, DataError(f"Every value must be readable, but {place} is not: {fields}. Correct the row.")
                )
            else:
                yield Row(place, fields)
        first += len(batch)


READERS: dict[str, Callable[[Path, str], Rows]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".zip": read_beir_zip,
}
GZIPPED = (".jsonl", ".json", ".csv", ".tsv")
_DELIMITED: dict[str, Callable[[Path, str, Quoting], Rows]] = {".csv": read_csv, ".tsv": read_tsv}


def read_rows(suffix: str, path: Path, name: str, quoting: Quoting) -> Rows:
    """The rows of a file with one of the suffixes of `READERS`; quoting is said of delimited text alone."""
    if suffix in _DELIMITED:
        return _DELIMITED[suffix](path, name, quoting)
    return READERS[suffix](path, name)
