"""Line figures: axes with round numbers, marks with their values as tooltips, names at the ends of the lines.

Intervals are bands with a whisker at every point. Bands of many series would cover each other, so with more than two
series one is shown while its line is pointed at, and all of them on demand.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rag.report.drawing.axes import scale, tick_text, ticks
from rag.report.formatting import between, decimal
from rag.report.report_data import Interval
from rag.report.series_style import brief

_RIGHT_MARGIN, _LEFT, _RIGHT, _TOP, _BOTTOM = 120, 46, 280, 30, 222  # the plot; names of series stand to its right
_WIDE, _TALL = 400, 250  # right and bottom of the plot where there are many series
_NAME_GAP, _LETTER = 13, 6.7
FEW, MANY = 2, 8  # series; with more than MANY a figure is larger, and each name has its mark next to it


@dataclass(frozen=True)
class Point:
    """The place of a round (or of a cut-off) in a figure, and the interval of its height."""

    round: float
    x: float
    y: float
    interval: Interval | None = None


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        label: Its name, also in the table of numbers.
        classes: Style classes, which give it its colour.
        shape: SVG path of its marks; empty for a dashed line without marks.
        points: From left to right.
        named: Whether its name is written at the end of the line.
    """

    label: str
    classes: str
    shape: str
    points: Sequence[Point]
    named: bool = True


@dataclass(frozen=True)
class TickMark:
    """A tick with its place and its text."""

    place: float
    text: str


@dataclass(frozen=True)
class NameLabel:
    """The name of a series at the end of its line, with a thin line to it, since it may have had to make room."""

    text: str
    classes: str
    shape: str
    """Empty where no mark is drawn next to the name."""
    mark_x: float
    text_x: float
    y: float
    leader: str


@dataclass(frozen=True)
class LineFigure:
    """Lines over rounds, over cut-offs or over another number.

    Attributes:
        key: Its id on the page.
        title: Its heading.
        text: A sentence about it.
        x_label: What the x axis shows.
        y_label: What the y axis shows.
        series: The lines; those without points are left out.
        by_round: The x axis is that of the rounds (or cut-offs), so it has whole numbers.
        x_texts: Texts of ticks whose numbers only count places.
    """

    key: str
    title: str
    text: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    by_round: bool = True
    x_texts: Mapping[float, str] = field(default_factory=dict)

    template = "line_figure.html.jinja"

    @property
    def shown(self) -> list[Series]:
        """The series with points."""
        return [series for series in self.series if series.points]

    def plot(self) -> "LinePlot":
        """The geometry of the drawing."""
        return LinePlot(self)

    # Texts.

    @property
    def unit(self) -> str:
        """What the numbers of its table are."""
        return self.y_label if self.by_round else f"{self.x_label}; {self.y_label}"

    @property
    def description(self) -> str:
        """The figure in words, for screen readers."""
        courses = "; ".join(
            f"{series.label} from {self.point_text(series.points[0])} to {self.point_text(series.points[-1])}"
            for series in self.shown
        )
        return f"{self.y_label} over {self.x_label}: {courses}."

    def point_text(self, point: Point) -> str:
        """The numbers of a point."""
        y = decimal(point.y)
        return y if self.by_round else f"{decimal(point.x, '.4f')}; {y}"

    def tooltip(self, series: Series, point: Point) -> str:
        """What a mark tells when it is pointed at."""
        interval = f" ({between(point.interval)})" if point.interval else ""
        kind = self.x_label if self.by_round else "round"
        return f"{series.label}, {kind} {self.round_text(point.round)}: {self.point_text(point)}{interval}"

    def round_text(self, round: float) -> str:
        """A round (or cut-off) as text."""
        return self.x_texts.get(round, f"{round:g}")

    # The table of numbers.

    def table_heads(self) -> list[str]:
        """The headings of the table: the rounds."""
        heading = self.x_label.capitalize() if self.by_round else "Round"
        return [heading, *(self.round_text(round) for round in self._rounds())]

    def table_points(self, series: Series) -> list[Point | None]:
        """The points of a series by column of the table."""
        points = {point.round: point for point in series.points}
        return [points.get(round) for round in self._rounds()]

    def _rounds(self) -> list[float]:
        return sorted({point.round for series in self.shown for point in series.points})


class LinePlot:
    """The places of everything in a line figure, in SVG units."""

    left, top = _LEFT, _TOP

    def __init__(self, figure: LineFigure) -> None:
        self.figure = figure
        points = [point for series in figure.shown for point in series.points]
        heights = [height for point in points for height in (point.y, *(point.interval or ()))]
        letters = [len(brief(series.label)) for series in figure.shown if series.named]
        self.has_many = len(letters) > MANY
        self.right = _WIDE if self.has_many else _RIGHT
        names_width = 28 + _LETTER * max(letters, default=0) if self.has_many else 0
        self.width = self.right + max(_RIGHT_MARGIN, names_width)
        self.bottom = max(_TALL if self.has_many else _BOTTOM, _TOP + _NAME_GAP * (len(letters) - 1))
        self.height = self.bottom + 42
        self._x_ticks, self._y_ticks = ticks([p.x for p in points], whole=figure.by_round), ticks(heights)
        self._x = scale(self._x_ticks, self.left, self.right)
        self._y = scale(self._y_ticks, self.bottom, self.top)

    def x_ticks(self) -> list[TickMark]:
        """Ticks below the plot."""
        step = self._x_ticks[1] - self._x_ticks[0]
        return [TickMark(self._x(t), self.figure.x_texts.get(t, tick_text(t, step))) for t in self._x_ticks]

    def y_ticks(self) -> list[TickMark]:
        """Ticks to the left of the plot."""
        step = self._y_ticks[1] - self._y_ticks[0]
        return [TickMark(self._y(t), tick_text(t, step)) for t in self._y_ticks]

    def place(self, point: Point) -> tuple[float, float]:
        """X and y of a point."""
        return self._x(point.x), self._y(point.y)

    def line(self, series: Series) -> str:
        """The points of a polyline."""
        return " ".join("{},{}".format(*self.place(point)) for point in series.points)

    def band(self, series: Series) -> tuple[str, str] | None:
        """The intervals of a line: the corners of an area around it, and the path of its whiskers.

        The area is empty for a single point; None if no point has an interval.
        """
        places = [(self._x(p.x), *map(self._y, p.interval)) for p in series.points if p.interval]
        if not places:
            return None
        outline = [f"{x},{low}" for x, low, _ in places] + [f"{x},{high}" for x, _, high in reversed(places)]
        whiskers = "".join(f"M{x} {low}V{high}M{x - 3:.1f} {low}h6M{x - 3:.1f} {high}h6" for x, low, high in places)
        return " ".join(outline) if len(places) > 1 else "", whiskers

    def names(self) -> Iterator[NameLabel]:
        """Names at the ends of the lines, apart from each other."""
        named = [series for series in self.figure.shown if series.named]
        wanted = [self._y(series.points[-1].y) for series in named]
        for series, y in zip(named, _spread(wanted, _NAME_GAP, self.bottom), strict=True):
            end_x, end_y = self.place(series.points[-1])
            has_mark = self.has_many and bool(series.shape)
            yield NameLabel(
                text=brief(series.label),
                classes=series.classes,
                shape=series.shape if has_mark else "",
                mark_x=round(end_x + 18, 1),
                text_x=round(end_x + (26 if has_mark else 14), 1),
                y=round(y, 1),
                leader=f"M{end_x + 5} {end_y}L{end_x + 12} {y:.1f}",
            )


def _spread(wanted: Sequence[float], gap: float, high: float) -> list[float]:
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
