"""Segments: the immutable parts of an index, each a file of vectors beside a file of passages.

Rows are counted through all segments in their order, positions only through the rows that are not deleted. Everybody
outside sees positions: the position of a passage is the id of its vector.

Axes: B queries, k results, n rows or positions, d dimensions.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from datasets.table import MemoryMappedTable, concat_tables
from numpy.typing import ArrayLike, NDArray

from indexes.atomic_files import write_path
from indexes.corpora.corpus import Corpus
from indexes.corpora.ingest import PASSAGE_FEATURES
from indexes.corpora.passage import Passage
from indexes.errors import DataError, UsageError
from indexes.records.tables import BATCH_SIZE
from indexes.vectors.vector_store import best_first

PASSAGES_FILE = "passages.arrow"


def segment_folder(path: Path, name: str) -> Path:
    """Where a segment of an index is."""
    return path / "segments" / name


class SegmentVectors(Protocol):
    """The vectors of one segment, under their rows 0, 1, ..."""

    @property
    def dimension(self) -> int:
        """The length of a vector, d."""

    @property
    def factory(self) -> str:
        """What kind of index it is."""

    def __len__(self) -> int: ...

    def search(
        self, queries_Bd: ArrayLike, k: int, *, parameters: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As `Segments.search`, in rows of the segment."""

    def reconstruct(self, rows: ArrayLike) -> NDArray[np.float32]:
        """As `Segments.reconstruct`, of rows of the segment."""


class Rows:
    """Which rows there are, and which of them are deleted."""

    def __init__(self, counts: Sequence[int], deleted: NDArray[np.int64]) -> None:
        """Rows of each segment, and the deleted rows, int64, ascending."""
        self.starts: NDArray[np.int64] = np.cumsum([0, *counts], dtype=np.int64)
        self.deleted = deleted
        # The position of the first live row behind each deleted one.
        self._gaps = deleted - np.arange(len(deleted))

    def __len__(self) -> int:
        """How many rows are not deleted."""
        return int(self.starts[-1]) - len(self.deleted)

    def of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows at these positions."""
        return positions + np.searchsorted(self._gaps, positions, side="right")

    def positions(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions of these rows; -1 for a deleted row and for -1."""
        before = np.searchsorted(self.deleted, rows)
        return np.where((rows < 0) | self.are_deleted(rows), -1, rows - before)

    def are_deleted(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these rows are deleted."""
        if not len(self.deleted):
            return np.zeros(rows.shape, dtype=bool)
        at = np.minimum(np.searchsorted(self.deleted, rows), len(self.deleted) - 1)
        return self.deleted[at] == rows

    def live(self) -> NDArray[np.int64]:
        """All rows that are not deleted, ascending."""
        return np.delete(np.arange(self.starts[-1], dtype=np.int64), self.deleted)

    def deleted_of(self, segment: int) -> int:
        """How many rows of a segment are deleted."""
        return int(np.diff(np.searchsorted(self.deleted, self.starts[segment : segment + 2]))[0])


class Segments:
    """Vectors of several segments searched as one, without what is deleted.

    Ids are positions: they count what is not deleted, in order.
    """

    def __init__(
        self, parts: Sequence[SegmentVectors], deleted: NDArray[np.int64] | None = None, *, parameters: str = ""
    ) -> None:
        """At least one part, the deleted rows, ascending, and how hard a search looks that is not told."""
        self.parts = list(parts)
        self.parameters = parameters
        self.rows = Rows([len(part) for part in parts], np.empty(0, np.int64) if deleted is None else deleted)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dimension(self) -> int:
        """d, the length of a vector."""
        return self.parts[0].dimension

    @property
    def factory(self) -> str:
        """What kind of index they are."""
        return self.parts[0].factory

    def search(
        self, queries_Bd: ArrayLike, k: int, *, parameters: str | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k nearest vectors of each query, best first; equal scores are ordered by position.

        Args:
            queries_Bd: float32 [B, d].
            k: How many results per query.
            parameters: How hard to look, such as "nprobe=64"; None looks as the index was tuned to.

        Returns:
            Scores, float32 [B, k], and positions, int64 [B, k]. Where fewer than k vectors are found, the rest of
            the row has the position -1 and the score -inf.

        Raises:
            UsageError: k is below 1, or the parameters are not of this kind of index.
            MismatchError: The queries have another dimension.
        """
        if k < 1:
            raise UsageError(f"k must be at least 1, but {k} came.")
        chosen = self.parameters or None if parameters is None else parameters
        found = [self._search_part(number, queries_Bd, k, chosen) for number in range(len(self.parts))]
        scores_Bn = np.concatenate([scores for scores, _ in found], axis=1)
        positions_Bn = np.concatenate([positions for _, positions in found], axis=1)
        scores_Bn, positions_Bn = best_first(scores_Bn, positions_Bn)
        return scores_Bn[:, :k], positions_Bn[:, :k]

    def _search_part(
        self, number: int, queries_Bd: ArrayLike, k: int, parameters: str | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """At least the k best live vectors of a segment, in no order, by position; deleted ones are -1 and -inf.

        Deleted vectors are still found, so a few more are asked for, and ever more until enough live ones are there.
        """
        part, dead = self.parts[number], self.rows.deleted_of(number)
        wanted = k + min(dead, k)
        while True:
            scores_Bn, rows_Bn = part.search(queries_Bd, wanted, parameters=parameters)
            rows_Bn = np.where(rows_Bn < 0, -1, rows_Bn + self.rows.starts[number])
            positions_Bn = self.rows.positions(rows_Bn)
            short_B = ((positions_Bn >= 0).sum(1) < k) & (rows_Bn[:, -1] >= 0)
            if not short_B.any() or wanted >= len(part):
                return np.where(positions_Bn < 0, -np.inf, scores_Bn).astype(np.float32), positions_Bn
            wanted = min(2 * wanted, len(part))

    def reconstruct(self, positions: ArrayLike) -> NDArray[np.float32]:
        """The vectors at these positions: exact where the kind of index keeps them, else approximate.

        Args:
            positions: int64 [n].

        Returns:
            float32 [n, d].

        Raises:
            DataError: A position is not in the index.
        """
        wanted = np.ascontiguousarray(positions, dtype=np.int64)
        unknown = wanted[(wanted < 0) | (wanted >= len(self))]
        if unknown.size:
            raise DataError(f"The id {int(unknown[0])} is not in the index, which holds {len(self)} vectors.")
        rows = self.rows.of(wanted)
        vectors_nd = np.empty((len(rows), self.dimension), dtype=np.float32)
        numbers = np.searchsorted(self.rows.starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            here = numbers == number
            vectors_nd[here] = self.parts[number].reconstruct(rows[here] - self.rows.starts[number])
        return vectors_nd


# ---------------------------------------------------------------------------------------------------------
# Passages
# ---------------------------------------------------------------------------------------------------------


def write_passages(file: Path, passages: Iterable[Passage]) -> int:
    """Stream passages into an Arrow file that appears whole; equal passages become equal bytes. Returns how many."""
    count = 0

    def write(path: Path) -> None:
        nonlocal count
        with ArrowWriter(path=str(path), features=PASSAGE_FEATURES, writer_batch_size=BATCH_SIZE) as writer:
            for passage in passages:
                writer.write({"id": passage.id, "title": passage.title, "text": passage.text})
                count += 1
            writer.finalize()

    write_path(file, write)
    return count


def open_passages(
    files: Sequence[Path], deleted: NDArray[np.int64] | None = None, *, source: str = "", fingerprint: str | None = None
) -> Corpus:
    """The passages of some files in order, memory-mapped, without the deleted rows.

    Raises:
        DataError: A file is damaged or holds something else.
    """
    tables = [_open_table(file) for file in files]
    info = datasets.DatasetInfo(features=PASSAGE_FEATURES)
    dataset = datasets.Dataset(concat_tables(tables), info=info, fingerprint=(fingerprint or "passages")[:16])
    if deleted is not None and len(deleted):
        dataset = dataset.select(Rows([len(dataset)], deleted).live())
    return Corpus(dataset, source=source, fingerprint=fingerprint)


def _open_table(file: Path) -> MemoryMappedTable:
    try:
        # Without what `datasets` has noted about the columns: nothing there says more than their types.
        table = MemoryMappedTable.from_file(str(file)).replace_schema_metadata(None)
        found = {field.name: field.type for field in table.schema}
    except (OSError, ValueError) as error:  # Arrow's errors are both
        raise DataError(
            f"Passages must be readable, but {file} is damaged ({error}). Build the index again."
        ) from error
    wanted = {field.name: field.type for field in PASSAGE_FEATURES.arrow_schema}
    if list(found.items()) != list(wanted.items()):
        raise DataError(f"Passages have the columns {wanted}, but {file} has {found}. Build the index again.")
    return table
