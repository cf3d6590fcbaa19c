"""Encoded vectors before they enter an index: files of a fixed number of rows, each written once, atomically.

A shard that exists is never encoded again, even when the process is killed.

Axes: N vectors, n vectors of a block, d dimensions.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexes.atomic_files import write_file, write_json
from indexes.encoder import Vectors
from indexes.errors import MismatchError

ROWS = 4096
"""Rows of a shard: enough that an encoder can batch passages of similar length, few enough that a killed build repeats
only seconds of work."""


class Shards:
    """N float32 vectors of d dimensions in a folder, in shards of a fixed number of rows."""

    def __init__(self, folder: Path, count: int, dimension: int, size: int | None = None) -> None:
        """The shards in a folder, which need not exist yet.

        Args:
            folder: Where they are.
            count: N.
            dimension: d.
            size: Rows of every shard but the last; `ROWS` by default.
        """
        self.folder = folder
        self.count = count
        self.dimension = dimension
        self.size = ROWS if size is None else size

    def __len__(self) -> int:
        """The number of shards when all are written."""
        return -(-self.count // self.size)

    def rows(self, number: int) -> range:
        """The rows of a shard."""
        return range(number * self.size, min((number + 1) * self.size, self.count))

    def missing(self) -> list[int]:
        """The shards that do not exist or are truncated."""
        return [number for number in range(len(self)) if not self.is_whole(number)]

    def is_whole(self, number: int) -> bool:
        """Whether a shard was written."""
        file, size = self._file(number), 4 * len(self.rows(number)) * self.dimension
        return file.is_file() and file.stat().st_size == size

    def write(self, number: int, vectors_nd: Vectors) -> None:
        """Write a shard; it is on the disk when this returns."""
        expected = (len(self.rows(number)), self.dimension)
        if vectors_nd.shape != expected:
            raise MismatchError(
                f"Shard {number} holds vectors of the shape {list(expected)}, but got {list(vectors_nd.shape)}. "
                "Use the encoder and the corpus that the build was begun with."
            )
        block_nd = np.ascontiguousarray(vectors_nd, dtype="<f4")
        write_file(self._file(number), lambda stream: stream.write(block_nd.data))

    def note(self, number: int, counts: Mapping[str, int]) -> None:
        """Write counts beside a shard, before the shard itself, so that every whole shard has them."""
        write_json(self._note(number), dict(counts), indent=None)

    def notes(self) -> list[dict[str, int]] | None:
        """The counts of all shards; None where some are missing."""
        files = [self._note(number) for number in range(len(self))]
        if not all(file.is_file() for file in files):
            return None
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Vectors]:
        """The vectors of rows `start` to `stop`, shard by shard: float32 [n, d]."""
        stop = self.count if stop is None else stop
        for number in range(start // self.size, -(-stop // self.size)):
            rows = self.rows(number)
            yield self._read(number)[max(start - rows.start, 0) : stop - rows.start]

    def sample(self, count: int) -> Vectors:
        """At most `count` vectors, evenly spaced from first to last: float32 [n, d]."""
        wanted = evenly_spaced(self.count, count)
        sample_nd = np.empty((len(wanted), self.dimension), dtype=np.float32)
        numbers = wanted // self.size
        for number in np.unique(numbers).tolist():
            here = numbers == number
            sample_nd[here] = self._read(number)[wanted[here] % self.size]
        return sample_nd

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.f32"

    def _note(self, number: int) -> Path:
        return self._file(number).with_suffix(".json")

    def _read(self, number: int) -> Vectors:
        vectors: Vectors = np.fromfile(self._file(number), dtype="<f4").astype(np.float32, copy=False)
        return vectors.reshape(len(self.rows(number)), self.dimension)


def evenly_spaced(total: int, count: int) -> NDArray[np.int64]:
    """At most `count` different positions from first to last of `total`: int64 [n]."""
    if count < 1 or total < 1:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.int64))
