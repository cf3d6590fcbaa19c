"""Where the names of marks find room in a figure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LETTER, LINE = 6.5, 12.0  # width and height of a label's letters
_INDENT = 11  # a small mark stands to the left of the text
_MARK = 7  # half the width of a mark


@dataclass(frozen=True)
class Box:
    """A rectangle, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Whether two rectangles have more than an edge in common."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def contains(self, other: "Box") -> bool:
        """Whether another rectangle lies inside, without touching an edge."""
        return (
            self.left < other.left and other.right < self.right and self.top < other.top and other.bottom < self.bottom
        )

    @property
    def middle(self) -> float:
        """Half-way between top and bottom."""
        return (self.top + self.bottom) / 2


def place_labels(
    texts: Sequence[str], spots: Sequence[tuple[float, float]], lines: Sequence[Box], room: Box
) -> list[Box | None]:
    """A place for every label: the nearest free one around its mark, if possible off all lines; else None.

    Args:
        texts: The labels.
        spots: The centres of their marks.
        lines: Thin boxes that labels should keep off.
        room: Labels stay inside.
    """
    taken = [Box(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in spots]
    found: list[Box | None] = []
    for text, spot in zip(texts, spots, strict=True):
        places = [box for box in _around(spot, _INDENT + LETTER * len(text)) if room.contains(box)]
        off_marks = [box for box in places if not any(map(box.overlaps, taken))]
        off_lines = [box for box in off_marks if not any(map(box.overlaps, lines))]
        box = next(iter([*off_lines, *off_marks]), None)
        if box is not None:
            taken.append(box)
        found.append(box)
    return found


def _around(spot: tuple[float, float], width: float) -> Iterator[Box]:
    """Places for a label around a mark, from near to far, to the right first."""
    x, y = spot
    for distance in range(10, 130, 8):
        for eighth in (0, 4, 1, 7, 3, 5, 2, 6):  # of a full turn
            dx = distance * math.cos(eighth * math.pi / 4)
            dy = distance * math.sin(eighth * math.pi / 4)
            left = x + dx - (0 if dx > 1 else width if dx < -1 else width / 2)
            yield Box(left, y + dy - LINE / 2, left + width, y + dy + LINE / 2)
