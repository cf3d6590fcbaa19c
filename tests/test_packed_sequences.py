"""Packing: every sequence can be read off the row, and what is shared is there once where that is worth it."""

import random

import pytest
import torch

from generator.packed_sequences import LARGEST_JOIN, SHORTEST_SHARED, AttentionLayout, PackedSequences


def visible(layout: AttentionLayout, length: int) -> torch.Tensor:
    """Which token (row) sees which (column), from the layout."""
    seen = torch.zeros(length, length, dtype=torch.long)
    for run in layout.runs:
        for i in range(run.count):
            part = slice(run.start + i * run.length, run.start + (i + 1) * run.length)
            seen[part, part] += torch.ones(run.length, run.length, dtype=torch.long).tril()
    for shared in layout.shared:
        seen[shared.queries, shared.keys] += 1
    return seen


def check(packed: PackedSequences, sequences: list[list[int]]) -> None:
    """Each token sees the tokens of its sequence before it and itself, each once, and nothing else."""
    seen = visible(packed.layout, len(packed))
    assert len(packed.places) == len(sequences)
    for places, ids in zip(packed.places, sequences, strict=True):
        assert [packed.token_ids[i] for i in places] == ids
        assert [packed.positions[i] for i in places] == list(range(len(ids)))
        for position, place in enumerate(places.tolist()):
            expected = torch.zeros(len(packed), dtype=torch.long)
            expected[places[: position + 1]] = 1
            assert torch.equal(seen[place], expected)


def test_common_beginnings_are_there_once() -> None:
    first, second = list(range(100, 130)), list(range(200, 220))
    sequences = [
        [*first, 1, 2],
        [*second, 5],
        [*first, 3, 4],
        [*first, *second, 1],
        [*first, *second, 2],
        [9],
        [*second, 6],
    ]
    packed = PackedSequences.of(sequences)
    check(packed, sequences)
    assert len(packed) == 30 + (2 + 2) + 20 + (1 + 1) + 20 + (1 + 1) + 1
    check(PackedSequences.of(sequences, sharing=False), sequences)
    assert len(PackedSequences.of(sequences, sharing=False)) == sum(map(len, sequences))


def test_any_sequences_can_be_packed() -> None:
    """Random trees of sequences, with copies and sequences that are the beginning of others."""
    draw = random.Random(0)
    for _ in range(30):
        stems = [[draw.randrange(3) for _ in range(draw.choice([1, 17, 40]))] for _ in range(3)]
        sequences = [
            [*draw.choice(stems), *draw.choice(stems), *(draw.randrange(3) for _ in range(draw.randrange(1, 5)))]
            for _ in range(8)
        ]
        sequences += [list(sequences[0]), sequences[1][:-1], [7]]
        check(PackedSequences.of(sequences), sequences)


def test_short_or_rarely_used_beginnings_are_read_with_each_sequence() -> None:
    short = [[*range(SHORTEST_SHARED - 1), 100 + i] for i in range(5)]
    assert not PackedSequences.of(short).layout.shared
    beginning = list(range(SHORTEST_SHARED))
    assert PackedSequences.of([[*beginning, 100 + i] for i in range(5)]).layout.shared
    # What would be saved is small against what would have to be joined.
    long = [[*beginning, *[100 + i] * (LARGEST_JOIN * SHORTEST_SHARED)] for i in range(2)]
    assert not PackedSequences.of(long).layout.shared


@pytest.mark.parametrize("sharing", [True, False])
def test_sequences_of_one_length_are_one_run(sharing: bool) -> None:
    sequences = [[1, 2, 3], [4, 5], [6, 7, 8], [9, 10]]
    packed = PackedSequences.of(sequences, sharing=sharing)
    check(packed, sequences)
    assert [(run.count, run.length) for run in packed.layout.runs] == [(2, 2), (2, 3)]


def test_continuations_follow_their_beginnings() -> None:
    beginnings, continuations = [[1, 2, 3], [4]], [[[5, 6], [7, 8]], [[9], [10]]]
    packed = PackedSequences.of_continuations(beginnings, continuations)
    check(packed, [[1, 2, 3, 5, 6], [1, 2, 3, 7, 8], [4, 9], [4, 10]])
    assert len(packed) == 10


def test_a_layout_that_sees_too_much_is_noticed() -> None:
    """The check of this file finds a beginning that the wrong sequences see."""
    sequences = [[*range(20), 100], [*range(20), 101], [50, 51]]
    packed = PackedSequences.of(sequences)
    (shared,) = packed.layout.shared
    wrong = AttentionLayout(packed.layout.runs, (type(shared)(slice(0, len(packed)), shared.keys),))
    with pytest.raises(AssertionError):
        check(PackedSequences(packed.token_ids, packed.positions, packed.places, wrong), sequences)
