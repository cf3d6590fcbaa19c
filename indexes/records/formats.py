"""File formats as streams of records: JSON lines and documents, delimited text, Parquet, Arrow.

Corpora and question files are read through the same functions. A reader streams. A record that is broken comes out as a
`BrokenRecord` at its place, so that the caller may leave it out; what makes the rest of a file unreadable (a truncated
archive, a document that is no JSON) is raised.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from indexes.errors import DataError
from indexes.records.delimited import BrokenLine, DelimitedRecord, Quoting, delimited_records
from indexes.records.field_types import as_object
from indexes.records.json_documents import HEAD_BYTES, is_json_document, read_json_document
from indexes.records.record import ID_FIELDS, BrokenRecord, Place, Record, RecordStream
from indexes.records.tables import ArrowTable, TableIndex, indexed_batches, open_arrow, open_parquet, python_records
from indexes.records.text_lines import Line, plain_or_gzip, read_lines

HeaderCheck: TypeAlias = Callable[[Sequence[str], str], None]
"""Checks the columns of a table (names; how errors begin) and raises a `DataError` where they do not do."""

ColumnChoice: TypeAlias = Callable[[pa.Schema, str], tuple[Sequence[str], TableIndex | None]]
"""Chooses the columns of a table, and the index of pandas that is a field (the schema; how errors begin)."""


# ---------------------------------------------------------------------------------------------------------
# JSON
# ---------------------------------------------------------------------------------------------------------


def read_json_lines(path: Path, name: str) -> RecordStream:
    """One object on each line; blank lines are left out. Gzipped or plain."""
    return json_line_records(read_lines(plain_or_gzip(path), name), name)


def json_line_records(lines: Iterable[Line], name: str) -> RecordStream:
    """The objects on numbered lines."""
    for line in lines:
        if line.error or line.text.strip():
            yield _json_record(line, Place(name, "line", line.number))


def _json_record(line: Line, place: Place) -> Record | BrokenRecord:
    if line.error:
        return BrokenRecord(place, line.error, line.text)
    try:
        return Record(place, as_object(_JSON.decode(line.text.rstrip("\r\n")), str(place)), line.text)
    except DataError as cause:
        return BrokenRecord(place, cause, line.text)
    except json.JSONDecodeError as cause:
        reason = f"broken JSON at column {cause.colno} ({cause.msg})"
    # A number with too many digits is a ValueError, and so is a key that appears twice.
    except (ValueError, RecursionError) as cause:
        reason = str(cause)
    error = DataError(f"{place}: every line must be one JSON object, got {reason}. Correct or remove the line.")
    return BrokenRecord(place, error, line.text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} twice in one object")
    return fields


_JSON = json.JSONDecoder(object_pairs_hook=_unique)


def read_json(path: Path, name: str) -> RecordStream:
    """The elements of a JSON array, streamed, or those of SQuAD's ``data``; a file of lines is read as lines."""
    head = text_head(path)
    if head is not None and is_json_document(head):
        return read_json_array(path, name)
    return read_json_lines(path, name)


def read_json_array(path: Path, name: str) -> RecordStream:
    """The elements of a file that is one JSON document; see `read_json_document`."""
    with plain_or_gzip(path)() as stream:
        for number, element in enumerate(read_json_document(stream, name)):
            place = Place(name, "record", number)
            try:
                yield Record(place, as_object(element, str(place)))
            except DataError as error:
                yield BrokenRecord(place, error, json.dumps(element))


def text_head(path: Path) -> str | None:
    """How the text of a file begins, from the first block on that is not blank; None where its gzip data break off.

    The reader of the lines says after which of them that is.
    """
    try:
        with plain_or_gzip(path)() as stream:
            while not (head := stream.read(HEAD_BYTES)).strip() and head:
                pass
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return None
    return head.decode("utf-8-sig", errors="ignore")


# ---------------------------------------------------------------------------------------------------------
# Delimited text
# ---------------------------------------------------------------------------------------------------------


def read_delimited(
    path: Path, name: str, delimiter: str, quoting: Quoting, check: HeaderCheck, keep_empty: Collection[str] = ()
) -> RecordStream:
    """Comma- or tab-separated records under a header line, as pandas and `csv.writer` write them.

    Args:
        path: The file, gzipped or plain.
        name: How errors call it.
        delimiter: A comma or a tab.
        quoting: See `delimited_records`.
        check: Checks the names of the columns.
        keep_empty: The fields in which an empty cell is an empty text; in all others it is a missing value.
    """
    records = delimited_records(read_lines(plain_or_gzip(path), name), name, delimiter=delimiter, quoting=quoting)
    first = next(records, None)
    if not isinstance(first, DelimitedRecord):
        return
    header = _header(first, name, check)
    for record in records:
        if isinstance(record, BrokenLine):
            yield BrokenRecord(Place(name, "line", record.line.number), record.error, record.line.text)
        else:
            yield _delimited_record(record, header, name, keep_empty)


def _header(record: DelimitedRecord, name: str, check: HeaderCheck) -> list[str]:
    if record.error:
        raise record.error
    columns = record.values
    check(columns, f"{name}:{record.lines[0].number}")
    # pandas' to_csv writes the index first and leaves its name empty where it has none.
    if columns[0] == "" and not any(field in columns for field in ID_FIELDS):
        return [ID_FIELDS[0], *columns[1:]]
    return columns


def _delimited_record(
    record: DelimitedRecord, header: Sequence[str], name: str, keep_empty: Collection[str]
) -> Record | BrokenRecord:
    values, content = record.values, record.content
    place = Place(name, "line", record.lines[0].number)
    if record.error:
        return BrokenRecord(place, record.error, content)
    if len(values) != len(header):
        error = DataError(
            f"{place}: every record must have the {len(header)} fields of the header {list(header[:50])}, got "
            f"{len(values)}. Correct the line, add the header if it is missing, or pass quoting='csv' or 'none' "
            "(--quoting) if quotes are taken for what they are not."
        )
        return BrokenRecord(place, error, content)
    cells = zip(header, values, strict=True)
    return Record(place, {key: None if not value and key not in keep_empty else value for key, value in cells}, content)


# ---------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------


def read_parquet(path: Path, name: str, choose: ColumnChoice) -> RecordStream:
    """The chosen columns of a Parquet file, row group by row group."""
    with _readable("Parquet", name), open_parquet(path) as table:
        yield from table_records(table, name, choose)


def read_arrow(path: Path, name: str, choose: ColumnChoice) -> RecordStream:
    """The chosen columns of an Arrow file or stream, memory-mapped."""
    with _readable("Arrow", name), open_arrow(path) as table:
        yield from table_records(table, name, choose)


@contextmanager
def _readable(kind: str, name: str) -> Iterator[None]:
    """Names the table that Arrow cannot read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: this must be a readable {kind} file, got: {error}. Write or fetch it again."
        ) from error


def table_records(table: ArrowTable, name: str, choose: ColumnChoice) -> RecordStream:
    """The chosen columns of a table as records, counted from 0.

    Raises:
        DataError: No column does, or the index that would be the id is unfit for it.
    """
    columns, index = choose(table.schema, name)
    first = 0
    for batch in indexed_batches(table, columns, index, name):
        for offset, fields in enumerate(python_records(batch)):
            place = Place(name, "record", first + offset)
            if isinstance(fields, Exception):
                error = DataError(f"{place}: every value must be readable, got: {fields}. Correct the record.")
                yield BrokenRecord(place, error)
            else:
                yield Record(place, fields)
        first += len(batch)
