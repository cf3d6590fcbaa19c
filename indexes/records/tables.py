"""Parquet, Arrow and datasets as records of Python values, with what their writers keep outside the columns.

Two writers keep a part of a record where a plain reader does not see it:

- `datasets` (5.0 and newer) stores a column of mixed types as JSON text under Arrow's extension type ``arrow.json``.
  Arrow hands out the text, quotes and all.
- pandas stores an index of evenly spaced whole numbers as start, stop and step in the metadata of the table, any
  other one as a column, named ``__index_level_0__`` if the index has no name.
"""

import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from indexes.errors import DataError
from indexes.records.record import ID_FIELDS

BATCH_SIZE = 1000  # records
_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_UNNAMED_LEVEL = re.compile(r"__index_level_\d+__")


class ArrowTable(NamedTuple):
    """A table on disk.

    Attributes:
        schema: Its columns and the metadata of its writer.
        batches: Record batches of at most 1000 records with the columns asked for, in order; to be called once.
    """

    schema: pa.Schema
    batches: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]


@contextmanager
def open_parquet(path: Path) -> Iterator[ArrowTable]:
    """A Parquet file, read row group by row group.

    Raises:
        pyarrow.ArrowException: It is of another format, or damaged.
        OSError: It cannot be read.
    """
    # Without a buffer of its own the reader would hold a whole row group, which may be the whole file.
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True) as file:
        yield ArrowTable(
            file.schema_arrow, lambda columns: file.iter_batches(batch_size=BATCH_SIZE, columns=list(columns))
        )


@contextmanager
def open_arrow(path: Path) -> Iterator[ArrowTable]:
    """An Arrow file (also Feather's), or an Arrow stream, memory-mapped.

    Raises:
        pyarrow.ArrowException: It is of another format, or damaged.
        OSError: It cannot be read.
    """
    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            file = pa.ipc.open_file(source)
            stored: Iterable[pa.RecordBatch] = (file.get_batch(number) for number in range(file.num_record_batches))
            schema = file.schema
        else:
            refuse_cut_stream(path)
            source.seek(0)
            stored = stream = pa.ipc.open_stream(source)
            schema = stream.schema
        yield ArrowTable(schema, lambda columns: _selected(_sound_batches(stored), list(columns)))


def refuse_cut_stream(path: Path) -> None:
    """Refuse an Arrow stream that was cut between two batches, which would read like a shorter one.

    Raises:
        pyarrow.ArrowInvalid: The end-of-stream marker is missing.
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        stream.seek(max(stream.seek(0, io.SEEK_END) - len(_STREAM_END), 0))
        if stream.read() != _STREAM_END:
            raise pa.ArrowInvalid(f"{path.name} is truncated")


def _sound_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        # Offsets that point outside the file would be read as they are.
        batch.validate(full=True)
        for start in range(0, len(batch), BATCH_SIZE):
            yield batch.slice(start, BATCH_SIZE)


def _selected(batches: Iterable[pa.RecordBatch], columns: list[str]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        # `select` refuses a name that exists twice, also where all columns are read.
        yield batch if columns == batch.schema.names else batch.select(columns)


def dataset_table(dataset: datasets.Dataset) -> ArrowTable:
    """A `datasets.Dataset` in its order (shuffled, filtered ...), whatever format it is set to."""

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for table in dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=BATCH_SIZE):
            yield from table.combine_chunks().to_batches()

    return ArrowTable(dataset.features.arrow_schema, batches)


# ---------------------------------------------------------------------------------------------------------
# The index of a pandas table
# ---------------------------------------------------------------------------------------------------------


class TableIndex(NamedTuple):
    """An index of pandas that is not a column under its own name.

    Attributes:
        field: The field that its values become.
        values: The values, where only the metadata have them, or the name of the column that holds them.
    """

    field: str
    values: range | str


def column_names(schema: pa.Schema) -> list[str]:
    """The columns of a table, and the names of an index that only the metadata have, as after `reset_index`."""
    levels = _index_levels(schema)
    named = [level.get("name") for level in levels if isinstance(level, dict)]
    return [*schema.names, *(name for name in named if isinstance(name, str) and name not in schema.names)]


def table_index(schema: pa.Schema, fields: Collection[str], where: str, *, needs_id: bool = True) -> TableIndex | None:
    """The index that the records need, if pandas wrote the table.

    An index named as one of the fields is that field. Any other one is the id of the records where no column is, except
    for one that only counts them from 0. pandas 3 makes a `RangeIndex` also of the numbers that `set_index` finds in
    a column, if they are evenly spaced, and `to_parquet` leaves their column out.

    Args:
        schema: Schema of the table.
        fields: The names of columns that are read.
        where: How errors call the table.
        needs_id: Whether the records need an id; the index is then called by the first of `ID_FIELDS`.

    Raises:
        DataError: The records need an id, and the index has several levels or is neither text nor whole numbers.
    """
    levels = _index_levels(schema)
    has_id = not needs_id or any(name in ID_FIELDS for name in column_names(schema))
    if len(levels) == 1 and isinstance(levels[0], dict):
        name, values = levels[0].get("name"), _range(levels[0], where)
        if name in fields:
            return None if name in schema.names else TableIndex(str(name), values)
        counts = name is None and values == range(len(values))
        return None if has_id or counts else TableIndex(ID_FIELDS[0], values)
    named = [level for level in levels if isinstance(level, str) and level in schema.names and level not in fields]
    if has_id or not named:
        return None
    if len(levels) > 1:
        raise _no_label(f"the levels {levels}", where)
    if not _is_label(schema.field(named[0]).type):
        raise _no_label(f"values of the type {schema.field(named[0]).type}", where)
    return TableIndex(ID_FIELDS[0], named[0])


def unnamed_index(names: Iterable[str], where: str) -> str | None:
    """The column with the index of records without a schema; None where there is none.

    Raises:
        DataError: It has several levels.
    """
    levels = [name for name in names if _UNNAMED_LEVEL.fullmatch(name)]
    if len(levels) > 1:
        raise _no_label(f"the levels {levels}", where)
    return levels[0] if levels else None


def _no_label(found: str, where: str) -> DataError:
    return DataError(
        f"{where}: the index of a pandas table is the id of records that have none, so it must be one level of texts "
        f"or whole numbers, got an index with {found}. Add a column of ids, or write the table with index=False."
    )


def _index_levels(schema: pa.Schema) -> list[Any]:
    try:
        metadata = schema.pandas_metadata
    except ValueError:  # of another program that uses the same key
        metadata = None
    if isinstance(metadata, dict) and isinstance(metadata.get("index_columns"), list):
        return list(metadata["index_columns"])
    # `datasets` (5.2) drops what pandas says about a table and keeps the column.
    return [name for name in schema.names if _UNNAMED_LEVEL.fullmatch(name)]


def _range(level: dict[str, Any], where: str) -> range:
    try:
        return range(level["start"], level["stop"], level["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: the index of a pandas table must be a column or a range, got {level}. Write the table again."
        ) from error


def _is_label(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return pa.types.is_integer(kind) or any(is_text(kind) for is_text in texts)


def indexed_batches(
    table: ArrowTable, columns: Sequence[str], index: TableIndex | None, where: str
) -> Iterator[pa.RecordBatch]:
    """The columns of a table, and the index as one more column.

    Raises:
        DataError: The index in the metadata has another length than the table, or a value of the index is missing.
    """
    if index is None:
        yield from table.batches(columns)
        return
    values = index.values
    needed = [values] if isinstance(values, str) and values not in columns else []
    done = 0
    for batch in table.batches([*columns, *needed]):
        labels = batch.column(values) if isinstance(values, str) else pa.array(values[done : done + len(batch)])
        if len(labels) < len(batch) or labels.null_count:
            raise _wrong_length(index, where)
        yield batch.append_column(index.field, labels)
        done += len(batch)
    if isinstance(values, range) and done != len(values):
        raise _wrong_length(index, where)


def _wrong_length(index: TableIndex, where: str) -> DataError:
    found = "missing values" if isinstance(index.values, str) else f"{len(index.values)} values"
    return DataError(
        f"{where}: the index of a pandas table must have a value for each of its records, got {found}. Write the table "
        "again after reset_index(), so that the ids are a column."
    )


# ---------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------


def python_records(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | Exception]:
    """The records of a batch; for one that cannot be read (invalid UTF-8, a date beyond Python's) the reason."""
    decoders = {field.name: decode for field in batch.schema if (decode := _decoder(field.type))}
    for record in _plain_records(batch):
        if isinstance(record, Exception):
            yield record
        else:
            yield {**record, **{name: decode(record[name]) for name, decode in decoders.items()}}


def _plain_records(batch: pa.RecordBatch) -> Iterable[dict[str, Any] | Exception]:
    # Invalid values raise only when they are converted.
    try:
        return batch.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError, pa.ArrowException):
        return [_readable(batch.slice(number, 1)) for number in range(len(batch))]


def _readable(record: pa.RecordBatch) -> dict[str, Any] | Exception:
    try:
        return record.to_pylist()[0]  # type: ignore[no-any-return]
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return error


_Decoder = Callable[[Any], Any]


def _decoder(kind: pa.DataType) -> _Decoder | None:
    """Decodes the JSON text inside the values of a column; None where there is none."""
    if isinstance(kind, pa.JsonType):
        return _json_value
    if pa.types.is_struct(kind):
        fields = {field.name: decode for field in kind if (decode := _decoder(field.type))}
        return (
            _optional(lambda value: {**value, **{name: fields[name](value[name]) for name in fields}})
            if fields
            else None
        )
    if pa.types.is_dictionary(kind):
        return _decoder(kind.value_type)
    if pa.types.is_map(kind) or not _is_list(kind):
        return None
    inner = _decoder(kind.value_type)
    return _optional(lambda entries: [inner(entry) for entry in entries]) if inner else None


def _is_list(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in (*lists, pa.types.is_list_view, pa.types.is_large_list_view))


def _optional(decode: _Decoder) -> _Decoder:
    return lambda value: None if value is None else decode(value)


def _json_value(text: str | None) -> Any:
    """The value that was written into a JSON column.

    `datasets.utils.json.json_encode_field` (5.2) writes a text as a JSON string only if it is no JSON by itself: of
    the ids 1, "x2", "007" and "1e5" it keeps ``1``, ``"x2"``, ``007`` and ``1e5``, and reads them back as 1, "x2", 7
    and 100000.0. So a number that Python would write otherwise was a text.
    """
    if text is None:
        return None
    try:
        value = json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return text if is_number and repr(value) != text else value
