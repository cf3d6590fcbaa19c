"""Passages in Arrow files, memory-mapped: read by position, in runs or one by one, with pyarrow alone."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from indexes.corpora.passage import Passage

COLUMNS = ("id", "title", "text")
PASSAGE_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
"""The columns of a file of passages, without the metadata of its writer."""
_ROWS_AT_ONCE = 1000

Rows: TypeAlias = NDArray[np.int64]


class PassageTable:
    """Passages of some Arrow files in order, all of them or those of some rows."""

    def __init__(self, batches: Sequence[pa.RecordBatch], rows: Rows | None = None) -> None:
        """Join batches.

        Args:
            batches: Of the columns `COLUMNS`, which are strings.
            rows: The rows that count, int64 [n], in the order of their positions; None for all.
        """
        self._batches = [batch for batch in batches if len(batch)]
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches)], dtype=np.int64)
        self._rows = rows

    def select(self, rows: Rows) -> "PassageTable":
        """The same files, of which only these rows count."""
        return PassageTable(self._batches, rows)

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    def take(self, positions: ArrayLike) -> list[Passage]:
        """The passages at these positions, int64 [n] within the table, in the order asked for."""
        return [Passage(*fields) for fields in zip(*self._columns(positions, COLUMNS), strict=True)]

    def batches(self) -> Iterator[list[Passage]]:
        """All passages in order, a bounded number at a time."""
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield self.take(np.arange(start, min(start + _ROWS_AT_ONCE, len(self))))

    @property
    def ids(self) -> "IdColumn":
        """The ids in order, read when they are asked for."""
        return IdColumn(self)

    def ids_at(self, positions: ArrayLike) -> list[str]:
        """The ids at these positions."""
        return self._columns(positions, COLUMNS[:1])[0]

    def to_arrow(self) -> pa.Table:
        """The same passages as one table, of which nothing is copied."""
        parts = (self._batches[number].slice(first, n) for number, first, n in self._runs(np.arange(len(self))))
        return pa.Table.from_batches(parts, PASSAGE_SCHEMA)

    def _columns(self, positions: ArrayLike, names: Sequence[str]) -> list[list[str]]:
        found: list[list[str]] = [[] for _ in names]
        for number, first, count in self._runs(np.asarray(positions, dtype=np.int64)):
            part = self._batches[number].slice(first, count)
            for name, column in zip(names, found, strict=True):
                column.extend(part.column(name).to_pylist())
        return found

    def _runs(self, positions: Rows) -> Iterator[tuple[int, int, int]]:
        """Batch, first row in it, and number of rows, of every run of neighbours within a batch."""
        if not len(positions):
            return
        rows = positions if self._rows is None else self._rows[positions]
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        ends = np.flatnonzero((np.diff(rows) != 1) | (np.diff(numbers) != 0)) + 1
        for first, last in pairwise([0, *ends.tolist(), len(rows)]):
            number = int(numbers[first])
            yield number, int(rows[first] - self._starts[number]), last - first


class IdColumn(Sequence[str]):
    """The ids of a table of passages, as a sequence that is not held in memory."""

    def __init__(self, table: PassageTable) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...

    def __getitem__(self, position: int | slice) -> str | list[str]:
        chosen = range(len(self))[position]
        return self._table.ids_at([chosen])[0] if isinstance(chosen, int) else self._table.ids_at(chosen)

    def __iter__(self) -> Iterator[str]:
        for batch in self.batches():
            yield from batch

    def batches(self) -> Iterator[list[str]]:
        """The ids in order, a bounded number at a time."""
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield self[start : start + _ROWS_AT_ONCE]


def mapped_batches(file: Path) -> list[pa.RecordBatch]:
    """The batches of an Arrow stream of passages, memory-mapped.

    Raises:
        pyarrow.ArrowException: It is damaged, or has other columns.
        OSError: It cannot be read.
    """
    # Not closed: the batches are views of the mapped file, and keep it open as long as they are used.
    stream = pa.ipc.open_stream(pa.memory_map(str(file)))
    if not stream.schema.equals(PASSAGE_SCHEMA):
        raise pa.ArrowInvalid(f"it must have the columns {_types(PASSAGE_SCHEMA)}, but has {_types(stream.schema)}")
    return list(stream)


def _types(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in schema}
