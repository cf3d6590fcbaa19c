"""Segments: the immutable parts of an index, each with its vectors and a file of passages.

Rows are counted through all segments in their order, positions only through the rows that are not deleted. Callers of
an index see positions only: the position of a passage is the id of its vector.

Axes: B queries, k results, n rows or positions, d dimensions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from indexes.corpora.corpus import Corpus
from indexes.corpora.passage_table import PassageTable, mapped_batches
from indexes.errors import DataError
from indexes.vectors.vector_store import SearchResult, StoreProperties, VectorStore, best_first, check_k

PASSAGES_FILE = "passages.arrow"


def segment_folder(path: Path, name: str) -> Path:
    """The folder of a segment."""
    return path / "segments" / name


class LiveRowMap:
    """Translates rows to positions and back: positions count only the rows that are not deleted."""

    def __init__(self, counts: Sequence[int], deleted: NDArray[np.int64]) -> None:
        """Make the map of some segments.

        Args:
            counts: Rows of each segment.
            deleted: The deleted rows, int64 [n], ascending.
        """
        self.starts: NDArray[np.int64] = np.cumsum([0, *counts], dtype=np.int64)
        self.deleted = deleted
        # The position of the first live row behind each deleted one.
        self._gaps = deleted - np.arange(len(deleted))

    def __len__(self) -> int:
        """How many rows are not deleted."""
        return int(self.starts[-1]) - len(self.deleted)

    def rows_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
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
        deleted: NDArray[np.bool_] = self.deleted[at] == rows
        return deleted

    def live(self) -> NDArray[np.int64]:
        """All rows that are not deleted, ascending."""
        return np.delete(np.arange(self.starts[-1], dtype=np.int64), self.deleted)

    def live_in(self, segment: int) -> NDArray[np.int64]:
        """The rows of a segment that are not deleted, ascending."""
        rows = np.arange(self.starts[segment], self.starts[segment + 1])
        return rows[~self.are_deleted(rows)]

    def count(self, segment: int) -> int:
        """How many rows a segment has, with those that are deleted."""
        return int(np.diff(self.starts)[segment])

    def count_deleted(self, segment: int) -> int:
        """How many rows of a segment are deleted."""
        return int(np.diff(np.searchsorted(self.deleted, self.starts[segment : segment + 2]))[0])

    def count_live(self, segment: int) -> int:
        """How many rows of a segment are not deleted."""
        return self.count(segment) - self.count_deleted(segment)

    def deleted_in(self, segments: Sequence[int]) -> NDArray[np.int64]:
        """The deleted rows of these segments, counted as if there were no others."""
        found, start = [np.empty(0, np.int64)], 0
        for segment in segments:
            first, last = self.starts[segment : segment + 2]
            here = self.deleted[np.searchsorted(self.deleted, first) : np.searchsorted(self.deleted, last)]
            found.append(here - first + start)
            start += int(last - first)
        return np.concatenate(found)


class Segments:
    """Vectors of several segments searched as one, without deleted rows. Ids are positions."""

    def __init__(
        self, parts: Sequence[VectorStore], deleted: NDArray[np.int64] | None = None, *, parameters: str = ""
    ) -> None:
        """Join segments.

        Args:
            parts: At least one.
            deleted: The deleted rows, int64 [n], ascending.
            parameters: Search parameters of searches that name none.
        """
        self.parts = list(parts)
        self.parameters = parameters
        self.rows = LiveRowMap([len(part) for part in parts], np.empty(0, np.int64) if deleted is None else deleted)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def dimension(self) -> int:
        """d, the length of a vector."""
        return self.parts[0].dimension

    @property
    def factory(self) -> str:
        """The store's own description of the kind of index."""
        return self.parts[0].factory

    @property
    def properties(self) -> StoreProperties:
        """What the store returns and how it searches."""
        return self.parts[0].properties

    @property
    def search_parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Parameters that trade recall for time, each with values from fast to thorough."""
        return self.parts[0].search_parameters

    def __repr__(self) -> str:
        return (
            f"Segments({self.factory!r}, {len(self):,} vectors of {self.dimension} dimensions in {len(self.parts)} "
            "segments)"
        )

    def search(self, queries_Bd: ArrayLike, k: int, *, parameters: str | None = None) -> SearchResult:
        """The k nearest vectors of each query, best first; equal scores are ordered by position.

        Args:
            queries_Bd: float32 [B, d].
            k: How many results per query.
            parameters: Search parameters, such as "nprobe=64"; None uses those that the index was tuned to.

        Returns:
            Scores, float32 [B, k], and positions, int64 [B, k]; -inf and -1 where fewer than k vectors are found.

        Raises:
            UsageError: k is below 1, or the parameters are not of this kind of index.
            MismatchError: The queries have another dimension.
        """
        check_k(k)
        chosen = self.parameters or None if parameters is None else parameters
        found = [self._search_part(number, queries_Bd, k, chosen) for number in range(len(self.parts))]
        scores_Bn = np.concatenate([scores for scores, _ in found], axis=1)
        positions_Bn = np.concatenate([positions for _, positions in found], axis=1)
        scores_Bn, positions_Bn = best_first(scores_Bn, positions_Bn)
        return scores_Bn[:, :k], positions_Bn[:, :k]

    def _search_part(self, number: int, queries_Bd: ArrayLike, k: int, parameters: str | None) -> SearchResult:
        """At least the k best live vectors of a segment, in no order, by position; deleted ones are -1 and -inf.

        The store still finds deleted vectors, so more are asked for until enough live ones are found.
        """
        part, dead = self.parts[number], self.rows.count_deleted(number)
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
        rows = self.rows.rows_at(wanted)
        vectors_nd = np.empty((len(rows), self.dimension), dtype=np.float32)
        numbers = np.searchsorted(self.rows.starts, rows, side="right") - 1
        for number in np.unique(numbers).tolist():
            here = numbers == number
            vectors_nd[here] = self.parts[number].reconstruct(rows[here] - self.rows.starts[number])
        return vectors_nd


# ---------------------------------------------------------------------------------------------------------
# Passages
# ---------------------------------------------------------------------------------------------------------


def open_passages(
    files: Sequence[Path], deleted: NDArray[np.int64] | None = None, *, source: str = "", fingerprint: str | None = None
) -> Corpus:
    """The passages of some files in order, memory-mapped, without the deleted rows.

    Raises:
        DataError: A file is damaged or holds something else.
    """
    table = PassageTable([batch for file in files for batch in _open_batches(file)])
    if deleted is not None and len(deleted):
        table = table.select(LiveRowMap([len(table)], deleted).live())
    return Corpus(table, source=source, fingerprint=fingerprint)


def _open_batches(file: Path) -> list[pa.RecordBatch]:
    try:
        return mapped_batches(file)
    except (OSError, ValueError) as error:  # Arrow's errors are both
        raise DataError(
            f"Passages must be readable, but {file} is damaged ({error}). Build the index again."
        ) from error
