"""Restore whole numbers that became floats because another value of their column is missing.

A column of plain integers in pandas has no place for a missing value: 42 and None become 42.0 and NaN (pandas 3.1.1,
user guide, "Integer dtypes and missing data"), and Parquet, JSON and `datasets` keep what pandas made of them. An id
"42.0" is then never found, and no model answers "42.0".

Whether floats are meant is decided by column: one whose values are all whole numbers holds whole numbers. Texts are
never changed, nor a column that holds 3.5 or a text anywhere. From 2**53 on floats skip whole numbers, so such a value
may stand for another number than the one that was written; it is refused.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from indexes.errors import DataError
from indexes.records.record import BrokenRecord, Record, RecordStream

# Fields that hold ids, in passages and in the question files of all formats.
ID_NAMES = frozenset(
    "id _id passage_id psg_id paragraph_id wikipedia_id kilt_id question_id qid query_id gold_ids".split()
)
_FIRST_INEXACT = 2**53
# SQuAD's file has five levels; no format has fields deeper than this.
_DEEPEST = 12

Path = tuple[str, ...]
"""The keys that lead to a value; lists on the way do not count, as in a table."""


class WholeNumbers:
    """Converts the floats in some columns of a source to whole numbers.

    The source is read once, until the first float appears. Then it is read a second time, since only all values of a
    column say what it holds.

    Args:
        read_again: The fields of every record of the source, from the first on.
        names: Names of the fields whose values matter, at any depth of a record.
    """

    def __init__(self, read_again: Callable[[], Iterable[Mapping[str, Any]]], names: Collection[str]) -> None:
        self._read_again = read_again
        self._names = names
        self._columns: frozenset[Path] | None = None

    def restored(self, fields: Mapping[str, Any], where: object) -> Mapping[str, Any]:
        """The fields of a record, with whole numbers and None instead of the floats and NaN of such columns.

        Raises:
            DataError: A float of 2**53 or beyond, which may stand for several whole numbers. An id deeper inside a
                record is left as it is, since it is unknown here whether it is read.
        """
        if not _holds_float(fields, self._names):
            return fields
        if self._columns is None:
            self._columns = _whole_columns(self._read_again(), self._names)
        changed: Mapping[str, Any] = self._restored(fields, (), str(where)) if self._columns else fields
        return changed

    def _restored(self, value: Any, path: Path, where: str, depth: int = 0) -> Any:
        if depth > _DEEPEST:
            return value
        if isinstance(value, Mapping):
            return {key: self._restored(inner, _below(path, key), where, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._restored(inner, path, where, depth + 1) for inner in value]
        if not isinstance(value, float) or path not in (self._columns or ()):
            return value
        if math.isnan(value):
            return None
        if len(path) > 1 and path[-1] in ID_NAMES and abs(value) >= _FIRST_INEXACT:
            return value  # records hold more than is read ("metadata"); where it is read as an id it is refused
        return exact_integer(value, f"{where}: {path[-1]}")


def exact_integer(value: float, where: str) -> int:
    """The whole number that a float stands for.

    Raises:
        DataError: It is 2**53 or beyond in size, where neighbouring whole numbers share one float.
    """
    if abs(value) >= _FIRST_INEXACT:
        raise DataError(
            f"{where} must be exact, got {value!r}, a float of 2**53 or more that stands for several whole numbers. "
            'Write the column as text or as integers (in pandas: dtype "Int64" or "string").'
        )
    return int(value)


def restore_whole_numbers(read: Callable[[], RecordStream], names: Collection[str] = ID_NAMES) -> RecordStream:
    """The records that `read` reads, with whole numbers where floats stand for them; see `WholeNumbers`.

    Args:
        read: Opens the source; called a second time if a float appears under one of the names.
        names: Names of the fields whose values matter.
    """
    numbers = WholeNumbers(lambda: (record.fields for record in read() if isinstance(record, Record)), names)
    for record in read():
        if isinstance(record, BrokenRecord):
            yield record
            continue
        try:
            fields = numbers.restored(record.fields, record.place)
        except DataError as error:
            yield BrokenRecord(record.place, error, record.content)
            continue
        yield record if fields is record.fields else record._replace(fields=fields)


def _holds_float(fields: Mapping[str, Any], names: Collection[str], depth: int = 0) -> bool:
    """Whether a field of one of the names is a float; called for every record, so it must be quick."""
    for name, value in fields.items():
        kind = type(value)
        if kind is str or kind is int or value is None:
            continue
        if kind is float:
            if name in names:
                return True
        elif depth < _DEEPEST and _inside_holds_float(value, name, names, depth + 1):
            return True
    return False


def _inside_holds_float(value: Any, name: str, names: Collection[str], depth: int) -> bool:
    if isinstance(value, Mapping):
        return _holds_float(value, names, depth)
    # A list that begins with a text holds no column of numbers; most lists are lists of texts.
    if not isinstance(value, list | tuple) or not value or isinstance(value[0], str) or depth > _DEEPEST:
        return False
    return any(
        name in names if isinstance(inner, float) else _inside_holds_float(inner, name, names, depth + 1)
        for inner in value
    )


def restored_value(value: Any, name: str, where: str) -> Any:
    """A value of a record that is given by itself, as `DataFrame.to_dict` does.

    NaN becomes None, numpy's integers become Python's, and a whole float in a field for ids becomes a whole number.

    Raises:
        DataError: As `exact_integer`.
    """
    if is_missing(value):
        return None
    if isinstance(value, np.integer):
        return int(value)
    if name in ID_NAMES and isinstance(value, float) and value.is_integer():
        return exact_integer(value, f"{where}: {name}")
    return value


def _whole_columns(records: Iterable[Mapping[str, Any]], names: Collection[str]) -> frozenset[Path]:
    """The columns of these names that hold whole numbers and nothing else, as far as the records can be read."""
    whole: set[Path] = set()
    others: set[Path] = set()
    try:
        for fields in records:
            for path, value in _values(fields, (), names):
                (whole if _is_whole(value) else others).add(path)
    except DataError:
        pass  # reading the records raises it at its place
    return frozenset(whole - others)


def _values(value: Any, path: Path, names: Collection[str], depth: int = 0) -> Iterator[tuple[Path, Any]]:
    """Every value under one of the names that is not missing."""
    if depth > _DEEPEST:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _values(inner, _below(path, key), names, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _values(inner, path, names, depth + 1)
    elif path and path[-1] in names and not is_missing(value):
        yield path, value


def _below(path: Path, key: str) -> Path:
    # Both names of the id may occur in one source.
    return (*path, "id" if key == "_id" else key)


def is_missing(value: Any) -> bool:
    """Whether a value is missing: None, or NaN, into which pandas turns None."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_whole(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)
