"""Small bars in the cells of tables: 100 units wide, 14 high."""

from dataclasses import dataclass

from rag.report.report_data import Interval


@dataclass(frozen=True)
class Bar:
    """A bar from x on, and the path of a thin line above or across it."""

    x: float
    width: float
    line: str


def value_bar(value: float, interval: Interval | None, scale: float) -> Bar:
    """A value as a bar from 0 to `scale`, and above it the interval as a line with two caps."""
    line = ""
    if interval:
        low, high = (_share(end, scale) for end in interval)
        line = f"M{low} 3.5H{high}M{low} 1V6M{high} 1V6"
    return Bar(0, _share(value, scale), line)


def difference_bar(difference: float, scale: float) -> Bar:
    """A bar that leaves the middle to the right for a gain and to the left for a loss."""
    width = round(50 * min(abs(difference) / scale, 1.0), 2)
    return Bar(50 - width if difference < 0 else 50, width, "M50 6V14")


def _share(number: float, scale: float) -> float:
    return round(100 * min(max(number / scale, 0.0), 1.0), 2) if scale > 0 else 0.0
