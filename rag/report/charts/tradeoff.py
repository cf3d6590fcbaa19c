"""What was learned against what was forgotten: one plane per measurement of forgetting.

To the right: gained on the questions. Upwards: kept of what the base model could do. Both are differences from the
base, so it stands where the axes cross, and the four quarters have a name in words.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag.report.charts import scale, tick_text, ticks
from rag.report.names import Names, brief, name_of
from rag.report.page import MISSING, decimal, escape
from rag.report.tables import data_table, interval_note, metric_heading, table_row
from rag.report.values import ends, finite, mapping, mappings

BASES = ("vanilla", "base")
_WIDTH, _HEIGHT = 520, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 496, 28, 352
_LETTER, _LINE = 6.5, 12.0  # size of a label's letters
_ALMOST = 1e-12
_BITS, _SAME = "bits_per_byte", ("word_perplexity", "byte_perplexity")  # one number, written in three ways

_Change = tuple[float, tuple[float, float] | None]


@dataclass(frozen=True)
class Plane:
    """One measurement of forgetting: its change against the base, upwards for better, by row."""

    key: str
    title: str
    unit: str
    changes: Mapping[str, _Change]


@dataclass(frozen=True)
class _Mark:
    """A row in the plane."""

    name: str
    gain: _Change
    change: _Change


def planes_section(result: Mapping[str, Any], names: Names) -> str:
    """All planes of a comparison; nothing without a base or without a measurement of forgetting."""
    rows = mappings(result.get("rows"))
    base = base_of(rows)
    metric, gains = _gains(result, rows, base)
    # Where the generator is still the base model, what it could do has not been measured again.
    unchanged = [name_of(row) for row in rows if finite(row.get("kl_drift")) == 0.0]
    drawn = (
        [(plane, _marks(plane, gains, base, unchanged)) for plane in _planes(result, base)] if base is not None else []
    )
    shown = [(plane, marks) for plane, marks in drawn if len(marks) > 1]
    if not shown or base is None:
        return ""
    figures = [_figure(plane, marks, metric, names) for plane, marks in shown]
    table = _table(shown, metric, rows, names)
    return (
        f"<p>To the right: {escape(metric_heading(metric))} gained on the questions. Upwards: kept of what the base "
        f"model could do. Both are differences from <b>{escape(names.label(base))}</b>, which stands where the lines "
        "cross; crosses are 95 % intervals. A row without any KL drift has the base model's generator: its change is "
        "0. Hollow marks: with SelfAug.</p>"
        f'<div class="planes">{"".join(figures)}</div>{table}'
    )


def _within(metric: str) -> str:
    """The heading of a metric within a sentence: F1 stays as it is."""
    heading = metric_heading(metric)
    return heading[:1].lower() + heading[1:] if heading[1:2].islower() else heading


def base_of(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The row of the model as it came: called `vanilla` or `base`, or made by that recipe."""
    known = [name_of(row) for row in rows]
    called = [name for name in BASES if name in known]
    made = [name_of(row) for row in rows if row.get("recipe") in BASES]
    return next(iter([*called, *made]), None)


# What is there.


def _gains(
    result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], base: str | None
) -> tuple[str, dict[str, _Change]]:
    """Exact match gained on the base, or F1 where nobody has exact match."""
    metric = next(
        (m for m in ("exact_match", "f1") if sum(finite(row.get(m)) is not None for row in rows) > 1), "exact_match"
    )
    return metric, _against(mappings(result.get("comparisons")), metric, base) | {
        name: change
        for name, change in _plain_differences(rows, metric, base).items()
        if name not in _against(mappings(result.get("comparisons")), metric, base)
    }


def _against(entries: Sequence[Mapping[str, Any]], metric: str, base: str | None) -> dict[str, _Change]:
    """Differences from the base, also where the base was compared with the row and not the row with it."""
    found: dict[str, _Change] = {}
    for entry in entries:
        difference, pair = finite(entry.get("difference")), (name_of(entry), str(entry.get("against", "")))
        if difference is None or entry.get("metric") != metric or base not in pair:
            continue
        interval = ends(entry.get("interval"))
        if pair[1] == base:
            found[pair[0]] = (difference, interval)
        else:
            found.setdefault(pair[1], (-difference, interval and (-interval[1], -interval[0])))
    return found


def _plain_differences(rows: Sequence[Mapping[str, Any]], metric: str, base: str | None) -> dict[str, _Change]:
    values = {name_of(row): finite(row.get(metric)) for row in rows}
    start = None if base is None else values.get(base)
    return {} if start is None else {n: (value - start, None) for n, value in values.items() if value is not None}


def _planes(result: Mapping[str, Any], base: str | None) -> list[Plane]:
    """General ability as the laboratory measures it, then every measurement of a forgetting file over all its items."""
    rows = mappings(result.get("rows"))
    general = _plain_differences(rows, "general", base) | _against(mappings(result.get("comparisons")), "general", base)
    own = [Plane("plane-general", "General ability", "change of the share of tasks solved", general)]
    return [plane for plane in [*own, *_measured_planes(mapping(result.get("forgetting")))] if plane.changes]


def _measured_planes(forgetting: Mapping[str, Any]) -> Iterator[Plane]:
    whole = [m for m in mappings(forgetting.get("measurements")) if m.get("group", "all") == "all"]
    compared = [c for c in mappings(forgetting.get("comparisons")) if c.get("group", "all") == "all"]
    tasks = dict.fromkeys((str(m.get("task")), str(m.get("metric"))) for m in whole)
    for number, (task, metric) in enumerate(tasks):
        if metric == "kl_drift" or (metric in _SAME and (task, _BITS) in tasks):
            continue
        here = [m for m in whole if (str(m.get("task")), str(m.get("metric"))) == (task, metric)]
        starts = [finite(m.get("value")) for m in here if m.get("model") == "base"]
        up = any(m.get("higher_is_better") is not False for m in here)
        changes = {
            str(c.get("model")): change
            for c in compared
            if (str(c.get("task")), str(c.get("metric"))) == (task, metric)
            and (change := _change(c, metric, starts[0] if starts else None, up)) is not None
        }
        yield Plane(f"plane-{number}", f"{escape(task)}: {escape(metric_heading(metric))}", _unit(metric, up), changes)


def _change(comparison: Mapping[str, Any], metric: str, base: float | None, up: bool) -> _Change | None:
    """Upwards for better. Perplexities by the log of base / tuned: twice as bad is as far from 0 as twice as good."""
    difference, interval = finite(comparison.get("difference")), ends(comparison.get("interval"))
    if difference is None:
        return None
    if "perplexity" in metric:
        if base is None or base + difference <= 0:
            return None
        logs = interval and [math.log1p(end / base) for end in interval if base + end > 0]
        return _turned(math.log1p(difference / base), logs if logs and len(logs) == 2 else None)
    return (difference, interval) if up else _turned(difference, interval)


def _turned(value: float, interval: Sequence[float] | None) -> _Change:
    return -value, (-interval[1], -interval[0]) if interval else None


def _unit(metric: str, up: bool) -> str:
    """What upwards is; of a metric that is better when it is lower, how far it fell."""
    if "perplexity" in metric:
        return "log (base / tuned), nats"
    return f"{'change' if up else 'fall'} of {_within(metric)}"


def _marks(plane: Plane, gains: Mapping[str, _Change], base: str, unchanged: Sequence[str]) -> list[_Mark]:
    """The base where the axes cross, then what never left it, then everybody else."""
    origin: _Change = (0.0, None)
    kept = {name: origin for name in unchanged if name not in plane.changes}
    others = [_Mark(name, gains[name], change) for name, change in {**kept, **plane.changes}.items() if name in gains]
    return [_Mark(base, origin, origin), *(mark for mark in others if mark.name != base)]


# The drawing.


def _figure(plane: Plane, marks: Sequence[_Mark], metric: str, names: Names) -> str:
    return (
        f'<figure id="{plane.key}"><figcaption><h3>{plane.title}</h3></figcaption>'
        f"{_plot(plane, marks, metric, names)}</figure>"
    )


def _plot(plane: Plane, marks: Sequence[_Mark], metric: str, names: Names) -> str:
    axes = [_axis([mark.gain for mark in marks]), _axis([mark.change for mark in marks])]
    places_x, places_y = scale(axes[0], _LEFT, _RIGHT), scale(axes[1], _BOTTOM, _TOP)
    spots = [(places_x(mark.gain[0]), places_y(mark.change[0])) for mark in marks]
    crosses = "".join(_cross(mark, spot, places_x, places_y, names) for mark, spot in zip(marks, spots, strict=True))
    points = "".join(_point(mark, spot, plane, names) for mark, spot in zip(marks, spots, strict=True))
    lines = [
        (_LEFT, places_y(0.0) - 1, _RIGHT, places_y(0.0) + 1),
        (places_x(0.0) - 1, _TOP, places_x(0.0) + 1, _BOTTOM),
    ]
    lines += [box for mark, spot in zip(marks, spots, strict=True) for box in _arms(mark, spot, places_x, places_y)]
    labels = _labels([mark.name for mark in marks], spots, lines, names)
    return (
        f'<svg class="plot plane" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="{plane.key}-title '
        f'{plane.key}-desc"><title id="{plane.key}-title">{plane.title}</title>'
        f'<desc id="{plane.key}-desc">{escape(_description(marks, plane))}</desc>'
        f"{_grid(axes, places_x, places_y)}{_quarters(places_x(0.0), places_y(0.0))}{_units(plane, metric)}"
        f"{crosses}{points}{labels}</svg>"
    )


def _axis(changes: Sequence[_Change]) -> list[float]:
    """Round numbers around all values and 0, with room for the names of the quarters on both sides of it."""
    values = [0.0, *(number for value, interval in changes for number in (value, *(interval or ())))]
    width = max(max(values) - min(values), 1e-3)
    return ticks([*values, -0.12 * width, 0.12 * width])


def _grid(axes: Sequence[Sequence[float]], x: Any, y: Any) -> str:
    steps = [axis[1] - axis[0] for axis in axes]
    below = "".join(
        f'<path class="rule" d="M{x(t)} {_TOP}V{_BOTTOM}"/><text class="tick" x="{x(t)}" y="{_BOTTOM + 17}" '
        f'text-anchor="middle">{_signed(t, steps[0])}</text>'
        for t in axes[0]
    )
    left = "".join(
        f'<path class="rule" d="M{_LEFT} {y(t)}H{_RIGHT}"/><text class="tick" x="{_LEFT - 6}" y="{y(t) + 4:.1f}" '
        f'text-anchor="end">{_signed(t, steps[1])}</text>'
        for t in axes[1]
    )
    zero = f'<path class="axis" d="M{x(0.0)} {_TOP}V{_BOTTOM}M{_LEFT} {y(0.0)}H{_RIGHT}"/>'
    return below + left + zero


def _signed(tick: float, step: float) -> str:
    return ("+" if tick > step / 2 else "") + tick_text(tick, step)


def _quarters(x: float, y: float) -> str:
    words = [
        (_RIGHT - 4, _TOP + 13, "end", "learned and kept"),
        (_RIGHT - 4, _BOTTOM - 6, "end", "learned, but forgot"),
        (_LEFT + 4, _TOP + 13, "start", "kept, but lost answers"),
        (_LEFT + 4, _BOTTOM - 6, "start", "lost both"),
    ]
    return "".join(
        f'<text class="quarter" x="{place}" y="{height}" text-anchor="{anchor}">{text}</text>'
        for place, height, anchor, text in words
        if abs(place - x) > _LETTER * len(text)
    )


def _units(plane: Plane, metric: str) -> str:
    return (
        f'<text class="unit" x="4" y="14">{escape(plane.unit)}</text><text class="unit" x="{(_LEFT + _RIGHT) / 2:g}" '
        f'y="{_HEIGHT - 8}" text-anchor="middle">gain of {escape(_within(metric))}</text>'
    )


def _cross(mark: _Mark, spot: tuple[float, float], x: Any, y: Any, names: Names) -> str:
    across, along = mark.gain[1], mark.change[1]
    path = f"M{x(across[0])} {spot[1]}H{x(across[1])}" if across else ""
    path += f"M{spot[0]} {y(along[0])}V{y(along[1])}" if along else ""
    return f'<path class="cross {names.style(mark.name)}" d="{path}"/>' if path else ""


def _point(mark: _Mark, spot: tuple[float, float], plane: Plane, names: Names) -> str:
    said = f"{names.label(mark.name)}: gain {_said(mark.gain)}, {plane.unit} {_said(mark.change)}"
    return (
        f'<g class="series {names.style(mark.name)}"><g class="mark" transform="translate({spot[0]} {spot[1]}) '
        f'scale(1.25)"><title>{escape(said)}</title><circle r="9"/><path d="{names.shape(mark.name)}"/></g></g>'
    )


def _said(change: _Change) -> str:
    interval = f" ({decimal(change[1][0], '+.3f')} to {decimal(change[1][1], '+.3f')})" if change[1] else ""
    return f"{decimal(change[0], '+.3f')}{interval}"


def _description(marks: Sequence[_Mark], plane: Plane) -> str:
    return "; ".join(f"{mark.name}: gain {_said(mark.gain)}, {plane.unit} {_said(mark.change)}" for mark in marks) + "."


# Names beside the marks, where there is room.

_Box = tuple[float, float, float, float]  # left, top, right, bottom


def _arms(mark: _Mark, spot: tuple[float, float], x: Any, y: Any) -> list[_Box]:
    """The lines of a cross as boxes."""
    across, along = mark.gain[1], mark.change[1]
    arms = [(x(across[0]), spot[1] - 1, x(across[1]), spot[1] + 1)] if across else []
    return arms + ([(spot[0] - 1, y(along[1]), spot[0] + 1, y(along[0]))] if along else [])


def _labels(names: Sequence[str], spots: Sequence[tuple[float, float]], lines: Sequence[_Box], looks: Names) -> str:
    """Each name at the nearest free place around its mark, off all lines if it can be; else only in the table."""
    taken: list[_Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in spots]
    drawn = []
    for name, spot in zip(names, spots, strict=True):
        places = list(_around(spot, 11 + _LETTER * len(brief(name))))
        near = [box for box in places if _free(box, [*taken, *lines])] + [box for box in places if _free(box, taken)]
        box = next(iter(near), None)
        if box is not None:
            taken.append(box)
            drawn.append(_label(name, spot, box, looks))
    return "".join(drawn)


def _around(spot: tuple[float, float], width: float) -> Iterator[_Box]:
    """Places for a label around a mark, from near to far, to the right first."""
    x, y = spot
    for far in range(10, 130, 8):
        for turn in (0, 4, 1, 7, 3, 5, 2, 6):  # eighths of a circle
            dx, dy = far * math.cos(turn * math.pi / 4), far * math.sin(turn * math.pi / 4)
            left = x + dx - (0 if dx > 1 else width if dx < -1 else width / 2)
            yield left, y + dy - _LINE / 2, left + width, y + dy + _LINE / 2


def _free(box: _Box, taken: Sequence[_Box]) -> bool:
    inside = box[0] > _LEFT and box[2] < _RIGHT and box[1] > _TOP + 16 and box[3] < _BOTTOM - 16
    return inside and all(
        box[0] >= other[2] or box[2] <= other[0] or box[1] >= other[3] or box[3] <= other[1] for other in taken
    )


def _label(name: str, spot: tuple[float, float], box: _Box, names: Names) -> str:
    middle = (box[1] + box[3]) / 2
    nearest = min(max(spot[0], box[0]), box[2])
    far = math.hypot(nearest - spot[0], middle - spot[1]) > 14
    leader = f'<path class="leader" d="M{spot[0]} {spot[1]}L{nearest:.1f} {middle:.1f}"/>' if far else ""
    mark = f'<g class="mark" transform="translate({box[0] + 5:.1f} {middle:.1f}) scale(.75)">'
    return (
        f'<g class="{names.style(name)}">{leader}{mark}<path d="{names.shape(name)}"/></g>'
        f'<text class="name" x="{box[0] + 11:.1f}" y="{middle + 4:.1f}">{escape(brief(name))}</text></g>'
    )


# The same as a table.


def _table(
    shown: Sequence[tuple[Plane, Sequence[_Mark]]], metric: str, rows: Sequence[Mapping[str, Any]], names: Names
) -> str:
    drift = {name_of(row): row.get("kl_drift") for row in rows}
    gains = {mark.name: mark.gain for _, marks in shown for mark in marks}
    changes = [{mark.name: mark.change for mark in marks} for _, marks in shown]
    body = [
        table_row(
            f"{names.key(name)}<span>{escape(name)}</span>",
            [
                _cell(gains[name], _LEARNED),
                *(_cell(found.get(name), _KEPT) for found in changes),
                decimal(drift.get(name)),
            ],
        )
        for name in gains
    ]
    planes = [f"{plane.title}<small>{escape(plane.unit)}</small>" for plane, _ in shown]
    head = ["Pipeline", f"Gain of {escape(metric_heading(metric))}", *planes, "KL drift"]
    table = data_table(head, body, "Gain and change of every pipeline", "results")
    return f"<details><summary>The same as a table</summary>{table}</details>"


_LEARNED, _KEPT = ("learned", "lost answers"), ("gained", "forgot")


def _cell(change: _Change | None, words: tuple[str, str]) -> str:
    if change is None:
        return MISSING
    said = f"<small>{_word(change, words)}</small>"
    return f"{decimal(change[0], '+.3f')}{interval_note(change[1], '+.3f')}{said}"


def _word(change: _Change, words: tuple[str, str]) -> str:
    value, interval = change
    if abs(value) < _ALMOST:
        return "no change"
    unclear = " (may be chance)" if interval and interval[0] <= 0 <= interval[1] else ""
    return words[value < 0] + unclear
