"""Whole numbers that became floats because a value beside them is missing are whole numbers again.

A column of plain integers in pandas has no place for a missing value: 42 and None become 42.0 and NaN (pandas 3.1.1,
user guide, "Integer dtypes and missing data"), and Parquet, JSON and `datasets` keep what pandas made of them. An id
"42.0" is then never found, and an answer "42.0" is one that nobody gives.

Whether floats are meant is decided by column: one whose values are all whole numbers holds whole numbers. Texts are
never changed, nor a column that holds 3.5 or a text anywhere. From 2**53 on floats skip whole numbers, so such a value
may be another number than the one that was meant; it is refused.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from indexes.errors import DataError
from indexes.records.formats import BrokenRow, Row, Rows

# Fields that hold ids, in passages and in the question files of all formats.
ID_NAMES = frozenset(
    "id _id passage_id psg_id paragraph_id wikipedia_id kilt_id question_id qid query_id gold_ids".split()
)
_FIRST_INEXACT = 2**53
# SQuAD's file has five levels; what somebody put deeper into a row is none of the formats' fields.
_DEEPEST = 12

Path = tuple[str, ...]
"""The keys that lead to a value; lists on the way do not count, as in a table."""


class WholeNumbers:
    """Makes whole numbers of the floats in some columns of a source.

    Nothing is looked at twice until the first float appears. Then the source is read once more, since only all values
    of a column say what it holds.

    Args:
        read_again: The fields of every row of the source, from the first on.
        names: Names of the fields whose values matter, wherever in a row they stand.
    """

    def __init__(self, read_again: Callable[[], Iterable[Mapping[str, Any]]], names: Collection[str]) -> None:
        self._read_again = read_again
        self._names = names
        self._columns: frozenset[Path] | None = None

    def restored(self, fields: Mapping[str, Any], where: object) -> Mapping[str, Any]:
        """The fields of a row, with whole numbers and None instead of the floats and NaN of such columns.

        Raises:
            DataError: A float of 2**53 or beyond, which may stand for several whole numbers. An id further inside a row
                is left as it is, since nothing says here whether anybody reads it.
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
            return value  # most rows hold more than is read of them ("metadata"); whoever reads it as an id refuses it
        return exact_integer(value, f"{where}: {path[-1]}")


def exact_integer(value: float, where: str) -> int:
    """The whole number that a float stands for.

    Raises:
        DataError: It is 2**53 or beyond in size, where neighbouring whole numbers share one float.
    """
    if abs(value) >= _FIRST_INEXACT:
        raise DataError(
            f"{where} must be exact, but {value!r} is a float of 2**53 or more, and stands for several whole numbers. "
            'Write the column as text or as integers (in pandas: dtype "Int64" or "string").'
        )
    return int(value)


def restored_rows(read: Callable[[], Rows], names: Collection[str] = ID_NAMES) -> Rows:
    """The rows that `read` reads, with whole numbers where floats stand for them; see `WholeNumbers`."""
    numbers = WholeNumbers(lambda: (row.fields for row in read() if isinstance(row, Row)), names)
    for row in read():
        if isinstance(row, BrokenRow):
            yield row
            continue
        try:
            fields = numbers.restored(row.fields, row.place)
        except DataError as error:
            yield BrokenRow(row.place, error, row.content)
            continue
        yield row if fields is row.fields else row._replace(fields=fields)


def _holds_float(fields: Mapping[str, Any], names: Collection[str], depth: int = 0) -> bool:
    """Whether a float stands under one of the names; every row is asked this, so it must be quick."""
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
    # A list that begins with a text holds no column of numbers, and most lists are such.
    if not isinstance(value, list | tuple) or not value or isinstance(value[0], str) or depth > _DEEPEST:
        return False
    return any(
        name in names if isinstance(inner, float) else _inside_holds_float(inner, name, names, depth + 1)
        for inner in value
    )


def restored_value(value: Any, name: str, where: str) -> Any:
    """A value of a row that belongs to no table, as a data frame hands them over one by one.

    NaN is None, numpy's integers are Python's, and under the name of an id a float that is whole is a whole number.

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


def _whole_columns(rows: Iterable[Mapping[str, Any]], names: Collection[str]) -> frozenset[Path]:
    """The columns of these names that hold whole numbers and nothing else, as far as the rows can be read."""
    whole: set[Path] = set()
    others: set[Path] = set()
    try:
        for fields in rows:
            for path, value in _values(fields, (), names):
                (whole if _is_whole(value) else others).add(path)
    except DataError:
        pass  # whoever reads the rows meets what is broken in its place
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
    # Rows of one source may call their id either way.
    return (*path, "id" if key == "_id" else key)


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, or NaN, which is what pandas makes of it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_whole(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)
