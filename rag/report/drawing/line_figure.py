"""Line charts as SVG: axes with round numbers, marks that tell their value, names beside the last points.

Intervals are bands with a whisker at every point. Where there are few series they are always seen; where there are
many, they would cover each other, so one is seen while its line is pointed at, and all of them on demand.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rag.report.names import brief
from rag.report.page import MISSING, decimal, escape, minus
from rag.report.tables import data_table, interval_note, table_row

_RIGHT_MARGIN, _LEFT, _RIGHT, _TOP, _BOTTOM = 120, 46, 280, 30, 222  # the plot; names of series stand to its right
_WIDE, _TALL = 400, 250  # right and bottom of the plot where there are many series
_NAME_GAP, _LETTER = 13, 6.7
FEW, MANY = 2, 8  # series; with more than MANY a chart is larger, and each name has its mark beside it


@dataclass(frozen=True)
class Point:
    """A round's (or a cut-off's) place in a chart, and the interval of its height."""

    round: float
    x: float
    y: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """One line."""

    label: str
    style: str
    shape: str  # empty: a line without marks
    points: Sequence[Point]
    named: bool = True


@dataclass(frozen=True)
class Chart:
    """Lines over rounds, over cut-offs or over another number, with what is said about them."""

    key: str
    title: str
    text: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    by_round: bool = True
    x_texts: Mapping[float, str] = field(default_factory=dict)
    """What stands below the ticks, for places that are no numbers of their own."""


@dataclass(frozen=True)
class _Frame:
    """The size of the drawing and the scales of its axes."""

    width: float
    right: float
    bottom: float
    ticks_x: Sequence[float]
    ticks_y: Sequence[float]

    @classmethod
    def of(cls, chart: Chart) -> "_Frame":
        shown = [series for series in chart.series if series.points]
        points = [point for series in shown for point in series.points]
        named = [len(brief(series.label)) for series in shown if series.named]
        heights = [height for point in points for height in (point.y, *(point.interval or ()))]
        many = len(named) > MANY
        right = _WIDE if many else _RIGHT
        return cls(
            right + max(_RIGHT_MARGIN, 28 + _LETTER * max(named, default=0) if many else 0),
            right,
            max(_TALL if many else _BOTTOM, _TOP + _NAME_GAP * (len(named) - 1)),
            ticks([point.x for point in points], whole=chart.by_round),
            ticks(heights),
        )

    def x(self, value: float) -> float:
        return scale(self.ticks_x, _LEFT, self.right)(value)

    def y(self, value: float) -> float:
        return scale(self.ticks_y, self.bottom, _TOP)(value)


def chart_figure(chart: Chart) -> str:
    """The chart with its caption, and its numbers in a table below."""
    unit = chart.y_label if chart.by_round else f"{chart.x_label}; {chart.y_label}"
    return (
        f'<figure id="chart-{chart.key}"><figcaption><h3>{chart.title}</h3><p>{chart.text}</p></figcaption>'
        f"{_plot(chart)}<details><summary>Numbers: {escape(unit)}</summary>{_chart_table(chart)}</details></figure>"
    )


def _chart_table(chart: Chart) -> str:
    shown = [series for series in chart.series if series.points]
    rounds = sorted({point.round for series in shown for point in series.points})
    body = []
    for series in shown:
        cells = {point.round: f"{_point_text(chart, point)}{interval_note(point.interval)}" for point in series.points}
        body.append(table_row(escape(series.label), [cells.get(round, MISSING) for round in rounds]))
    heading = chart.x_label.capitalize() if chart.by_round else "Round"
    return data_table([heading, *(_x_text(chart, round) for round in rounds)], body, f"{chart.title}: numbers")


def _x_text(chart: Chart, value: float) -> str:
    return escape(chart.x_texts.get(value, f"{value:g}"))


def _point_text(chart: Chart, point: Point) -> str:
    y = decimal(point.y)
    return y if chart.by_round else f"{decimal(point.x, '.4f')}; {y}"


def _plot(chart: Chart) -> str:
    frame = _Frame.of(chart)
    shown = [series for series in chart.series if series.points]
    ends = _spread([frame.y(s.points[-1].y) for s in shown if s.named], _NAME_GAP, _TOP, frame.bottom)
    heights = iter(ends)
    lines = "".join(_line(chart, series, frame) for series in shown)
    labels = "".join(_end_label(series, frame, next(heights)) for series in shown if series.named)
    return (
        f'<svg class="plot" viewBox="0 0 {frame.width:g} {frame.bottom + 42:g}" role="img" '
        f'aria-labelledby="{chart.key}-title {chart.key}-desc"><title id="{chart.key}-title">{chart.title}</title>'
        f'<desc id="{chart.key}-desc">{escape(_description(chart, shown))}</desc>'
        f"{_axes(chart, frame)}{lines}{labels}</svg>"
    )


def _description(chart: Chart, shown: Sequence[Series]) -> str:
    """The chart in words, for those who do not see it."""
    courses = "; ".join(
        f"{series.label} from {_point_text(chart, series.points[0])} to {_point_text(chart, series.points[-1])}"
        for series in shown
    )
    return f"{chart.y_label} over {chart.x_label}: {courses}."


def ticks(values: Sequence[float], *, whole: bool = False) -> list[float]:
    """Round numbers at even steps of 1, 2 or 5 times a power of ten, from below the least to above the greatest."""
    low, high = min(values), max(values)
    if whole:
        # A single round stands at the end of its axis, beside the names.
        low, high = math.floor(low), max(math.ceil(high), 1)
        low = low - 1 if low == high else low
    elif high - low <= 1e-9 * max(abs(low), abs(high)):
        # A flat line gets room on both sides, but no axis leaves the range of a share for it.
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
    """All ticks of an axis with as many decimals as its step needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return minus(f"{tick:.3g}" if step >= 1e5 or decimals > 5 else f"{tick + 0.0:.{decimals}f}")


def scale(ticks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """From a value to its place between `start` and `end`, which belong to the first and the last tick."""
    low, high = ticks[0], ticks[-1]
    return lambda value: round(start + (end - start) * (value - low) / (high - low), 1)


def _axes(chart: Chart, frame: _Frame) -> str:
    step_x, step_y = (axis[1] - axis[0] for axis in (frame.ticks_x, frame.ticks_y))
    bottom = f"{frame.bottom:g}"
    rules = "".join(f'<path class="rule" d="M{_LEFT} {frame.y(tick)}H{frame.right}"/>' for tick in frame.ticks_y)
    left = "".join(
        f'<text class="tick" x="{_LEFT - 7}" y="{frame.y(tick) + 4:.1f}" text-anchor="end">{tick_text(tick, step_y)}'
        "</text>"
        for tick in frame.ticks_y
    )
    below = "".join(
        f'<path class="axis" d="M{frame.x(tick)} {bottom}v5"/><text class="tick" x="{frame.x(tick)}" '
        f'y="{frame.bottom + 18:g}" text-anchor="middle">'
        f"{escape(chart.x_texts.get(tick, tick_text(tick, step_x)))}</text>"
        for tick in frame.ticks_x
    )
    return (
        f'{rules}<path class="axis" d="M{_LEFT} {bottom}H{frame.right}"/>{left}{below}'
        f'<text class="unit" x="{_LEFT - 38}" y="14">{escape(chart.y_label)}</text>'
        f'<text class="unit" x="{(_LEFT + frame.right) / 2}" y="{frame.bottom + 36:g}" text-anchor="middle">'
        f"{escape(chart.x_label)}</text>"
    )


def _line(chart: Chart, series: Series, frame: _Frame) -> str:
    path = " ".join(f"{frame.x(point.x)},{frame.y(point.y)}" for point in series.points)
    marks = "".join(_mark(chart, series, point, frame) for point in (series.points if series.shape else []))
    dashed = "" if series.shape else ' class="dashed"'
    band = _band(series, frame)
    return f'<g class="series {series.style}">{band}<polyline{dashed} points="{path}"/>{marks}</g>'


def _mark(chart: Chart, series: Series, point: Point, frame: _Frame) -> str:
    between = f" ({decimal(point.interval[0])} to {decimal(point.interval[1])})" if point.interval else ""
    return (
        f'<g class="mark" transform="translate({frame.x(point.x)} {frame.y(point.y)})"><title>{escape(series.label)}, '
        f"{escape(chart.x_label if chart.by_round else 'round')} {_x_text(chart, point.round)}: "
        f'{_point_text(chart, point)}{between}</title><circle r="9"/><path d="{series.shape}"/></g>'
    )


def _band(series: Series, frame: _Frame) -> str:
    """The intervals of a line: an area around it, and at each point a line with two caps."""
    places = [(frame.x(p.x), *map(frame.y, p.interval)) for p in series.points if p.interval]
    if not places:
        return ""
    outline = [f"{x},{low}" for x, low, _ in places] + [f"{x},{high}" for x, _, high in reversed(places)]
    caps = "".join(f"M{x} {low}V{high}M{x - 3:.1f} {low}h6M{x - 3:.1f} {high}h6" for x, low, high in places)
    area = f'<polygon points="{" ".join(outline)}"/>' if len(places) > 1 else ""
    return f'<g class="band">{area}<path d="{caps}"/></g>'


def _end_label(series: Series, frame: _Frame, height: float) -> str:
    """The name of a series beside its last point, with a thin line to it where it had to make room."""
    last, name = series.points[-1], brief(series.label)
    start, level = frame.x(last.x), frame.y(last.y)
    leader = f'<path class="leader" d="M{start + 5} {level}L{start + 12} {height:.1f}"/>'
    mark, room = "", 14
    if frame.right == _WIDE and series.shape:
        place = f"translate({start + 18:.1f} {height:.1f}) scale(.8)"
        mark, room = f'<g class="mark" transform="{place}"><path d="{series.shape}"/></g>', 26
    return (
        f'<g class="{series.style}">{leader}{mark}<text class="name" x="{start + room:.1f}" y="{height + 3.8:.1f}">'
        f"{escape(name)}</text></g>"
    )


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights near the wanted ones, in their order and at least `gap` apart: down first, then up from the end."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    heights = list(wanted)
    for before, this in itertools.pairwise(order):
        heights[this] = max(heights[this], heights[before] + gap)
    limit = high
    for this in reversed(order):
        heights[this] = min(heights[this], limit)
        limit = heights[this] - gap
    return heights
