"""Axes with round numbers."""

import math
from collections.abc import Callable, Sequence

from rag.report.formatting import minus


def ticks(values: Sequence[float], *, whole: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, evenly spaced from below the least value to above the greatest."""
    low, high = min(values), max(values)
    if whole:
        # A single round is at the end of its axis, next to the names of the series.
        low, high = math.floor(low), max(math.ceil(high), 1)
        low = low - 1 if low == high else low
    elif high - low <= 1e-9 * max(abs(low), abs(high)):
        # A flat line gets room on both sides, but the axis of a share does not leave [0, 1] for it.
        low, high = low - 0.05 if low else 0.0, high + 0.05 if high != 1 else 1.0
    step = max(_step((high - low) / 8), 1.0) if whole else _step((high - low) / 4)
    # Rounded first: 0.3 / 0.1 is not 3.
    first, last = math.floor(round(low / step, 6)), math.ceil(round(high / step, 6))
    return [i * step for i in range(first, last + 1)]


def _step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20... times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def tick_text(tick: float, step: float) -> str:
    """A tick with as many decimals as the step of its axis needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return minus(f"{tick:.3g}" if step >= 1e5 or decimals > 5 else f"{tick + 0.0:.{decimals}f}")


def scale(ticks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """The map from values to places, under which the first and the last tick are at `start` and `end`."""
    low, high = ticks[0], ticks[-1]
    return lambda value: round(start + (end - start) * (value - low) / (high - low), 1)
