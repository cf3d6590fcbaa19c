"""Sequences in one row, without padding, and what several of them begin with only once (pure).

    sequences   A B C x y      packed   A B C | x y | z | D E
                A B C z                 `-----^-----^     each part sees the parts that it continues, and itself
                D E

The tokens of all sequences are read in one pass. A part that several sequences begin with is read once and seen by all
of its continuations, which may have such parts themselves.

Legend: T tokens of the row, c sequences that begin alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

SHORTEST_SHARED = 16
"""Tokens that a common beginning must have to be read by itself."""
LARGEST_JOIN = 8
"""Tokens after a common beginning per token that is saved by it: their attention is computed in two parts."""


@dataclass(frozen=True)
class CausalRun:
    """Parts of equal length, one after another: each token sees those before it in its part, and itself."""

    start: int
    count: int
    length: int

    @property
    def stop(self) -> int:
        """The token after the last one."""
        return self.start + self.count * self.length


@dataclass(frozen=True)
class SharedKeys:
    """Tokens that see all tokens of an earlier part."""

    queries: slice
    keys: slice


@dataclass(frozen=True)
class AttentionLayout:
    """Which tokens of a row see which: those of their own part up to themselves, and all of the parts they continue."""

    runs: tuple[CausalRun, ...]
    """Every token of the row belongs to one of them."""
    shared: tuple[SharedKeys, ...] = ()
    kept: tuple[SharedKeys, ...] = ()
    """As `shared`, with keys of an earlier pass."""


@dataclass(frozen=True)
class PackedSequences:
    """Sequences of token ids in one row."""

    token_ids: list[int]
    """T of them."""
    positions: list[int]
    """Where each token stands in its sequence."""
    places: list[Tensor]
    """Of each sequence: the place in the row of each of its tokens, int64."""
    layout: AttentionLayout

    def __len__(self) -> int:
        return len(self.token_ids)

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], *, sharing: bool = True) -> "PackedSequences":
        """Pack sequences of at least one token.

        Args:
            sequences: Token ids.
            sharing: Whether common beginnings, where they are worth it, are there once; never the last token of one.
        """
        packer = _Packer()
        packer.add(_parts(sequences) if sharing else [_Part(list(ids), [i]) for i, ids in enumerate(sequences)])
        return packer.finish(len(sequences))

    @classmethod
    def of_continuations(
        cls, beginnings: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
    ) -> "PackedSequences":
        """Pack each beginning once, followed by its continuations, which are the sequences, in the order given.

        Args:
            beginnings: Token ids.
            continuations: For each beginning any number of them, each of at least one token.
        """
        packer, number = _Packer(), 0
        parts = []
        for beginning, of_one in zip(beginnings, continuations, strict=True):
            leaves = [_Part(list(ids), [number + i]) for i, ids in enumerate(of_one)]
            parts.append(_Part(list(beginning), [], leaves))
            number += len(of_one)
        packer.add(parts)
        return packer.finish(number)


@dataclass
class _Part:
    """Tokens that are read once."""

    ids: list[int]
    ends: list[int]
    """Numbers of the sequences that end with this part."""
    continuations: list["_Part"] = field(default_factory=list)


class _Packer:
    """Lays parts out, each before its continuations, so that those who see it are neighbours."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._positions: list[int] = []
        self._runs: list[CausalRun] = []
        self._shared: list[SharedKeys] = []
        self._places: dict[int, Tensor] = {}

    def add(self, parts: Sequence[_Part], before: Tensor | None = None) -> None:
        """Parts that continue the tokens at the places `before`."""
        before = torch.empty(0, dtype=torch.long) if before is None else before
        # Of equal length together, as one run; those with continuations by themselves.
        for part in sorted(parts, key=lambda p: (bool(p.continuations), len(p.ids))):
            start = len(self._ids)
            self._ids += part.ids
            self._positions += range(len(before), len(before) + len(part.ids))
            self._append_run(CausalRun(start, 1, len(part.ids)), alone=bool(part.continuations))
            places = torch.cat([before, torch.arange(start, len(self._ids))])
            self._places |= dict.fromkeys(part.ends, places)
            if part.continuations:
                self.add(part.continuations, places)
                seen = slice(start, start + len(part.ids))
                self._shared.append(SharedKeys(slice(seen.stop, len(self._ids)), seen))

    def _append_run(self, run: CausalRun, *, alone: bool) -> None:
        last = self._runs[-1] if self._runs and not alone else None
        if last is not None and last.length == run.length and last.stop == run.start:
            self._runs[-1] = CausalRun(last.start, last.count + 1, run.length)
        else:
            self._runs.append(run)

    def finish(self, count: int) -> PackedSequences:
        """The row of all parts added so far."""
        places = [self._places[number] for number in range(count)]
        return PackedSequences(
            self._ids, self._positions, places, AttentionLayout(tuple(self._runs), tuple(self._shared))
        )


def _parts(sequences: Sequence[Sequence[int]]) -> list[_Part]:
    """Sequences as parts, with the common beginnings that are worth it as parts of their own."""
    order = sorted(range(len(sequences)), key=lambda i: list(sequences[i]))
    return list(_parts_of([(i, list(sequences[i])) for i in order], 0))


def _parts_of(rows: list[tuple[int, list[int]]], start: int) -> Iterator[_Part]:
    """Parts of sequences in lexicographic order, all of which are the same before token `start`."""
    if len(rows) == 1:
        ((number, ids),) = rows
        yield _Part(ids[start:], [number])
        return
    common = _common_length(rows[0][1], rows[-1][1])
    common = min(common, *(len(ids) - 1 for _, ids in rows))
    groups = _by_token(rows, common)
    if _is_worth(rows, start, common):
        yield _Part(rows[0][1][start:common], [], [p for group in groups for p in _parts_of(group, common)])
        return
    for group in groups:
        yield from _parts_of(group, start)


def _by_token(rows: list[tuple[int, list[int]]], position: int) -> list[list[tuple[int, list[int]]]]:
    """Neighbours with the same token at a position together; each by itself where all have the same."""
    groups: list[list[tuple[int, list[int]]]] = []
    for row in rows:
        if groups and groups[-1][-1][1][position] == row[1][position]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups if len(groups) > 1 else [[row] for row in rows]


def _is_worth(rows: list[tuple[int, list[int]]], start: int, common: int) -> bool:
    """Whether reading a common beginning once saves more than computing the attention of what follows in two parts."""
    saved = (len(rows) - 1) * (common - start)
    joined = sum(len(ids) - common for _, ids in rows)
    return common - start >= SHORTEST_SHARED and LARGEST_JOIN * saved >= joined


def _common_length(first: list[int], second: list[int]) -> int:
    """Tokens with which both begin."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
