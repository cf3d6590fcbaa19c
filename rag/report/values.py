"""Reading what came: any part may be missing, and any number may be NaN."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: object) -> Sequence[Any]:
    """The value if it is a list, else an empty one; a text is none."""
    return value if isinstance(value, list | tuple) else ()


def mappings(value: object) -> list[Mapping[str, Any]]:
    """The mappings in a list; whatever else stands in it is left out."""
    return [entry for entry in sequence(value) if isinstance(entry, Mapping)]


def texts(value: object) -> list[str]:
    """The entries of a list as texts."""
    return [str(entry) for entry in sequence(value)]


def finite(value: object) -> float | None:
    """The value as a float if it is a finite number (NumPy's included), else None."""
    if not isinstance(value, Real):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def finites(values: Iterable[object]) -> list[float]:
    """Those of the values that are finite numbers."""
    return [number for number in map(finite, values) if number is not None]


def ends(interval: object) -> tuple[float, float] | None:
    """The two ends of an interval, the lower one first; None if there are not two finite ones."""
    found = sorted(finites(sequence(interval)))
    return (found[0], found[1]) if len(found) == 2 else None


def flat(entries: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; empty ones are left out."""
    found: dict[str, Any] = {}
    for key, value in entries.items():
        inner = {f"{prefix}{key}": value} if not isinstance(value, Mapping) else flat(value, f"{prefix}{key}.")
        found |= inner
    return found
