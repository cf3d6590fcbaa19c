"""Scatter figures of two changes: axes that cross at no change, intervals as crosses, names where there is room."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rag.report.drawing.axes import scale, tick_text, ticks
from rag.report.drawing.label_placement import LETTER, Box, place_labels
from rag.report.drawing.line_figure import TickMark
from rag.report.formatting import between, decimal
from rag.report.report_data import Interval
from rag.report.series_style import brief

_WIDTH, _HEIGHT = 520, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 496, 28, 352
_ALMOST_ZERO = 1e-12
_FAR = 14  # a label farther than this from its mark is connected to it by a line


@dataclass(frozen=True)
class Change:
    """A difference with its interval."""

    value: float
    interval: Interval | None = None

    def __neg__(self) -> "Change":
        """The difference the other way round."""
        return Change(-self.value, self.interval and (-self.interval[1], -self.interval[0]))

    def in_words(self, gain: str, loss: str) -> str:
        """One of two words, or that nothing changed; an interval around 0 says that it may be chance."""
        if abs(self.value) < _ALMOST_ZERO:
            return "no change"
        may_be_chance = self.interval is not None and self.interval[0] <= 0 <= self.interval[1]
        return (loss if self.value < 0 else gain) + (" (may be chance)" if may_be_chance else "")

    def __str__(self) -> str:
        interval = f" ({between(self.interval, '+.3f')})" if self.interval else ""
        return f"{decimal(self.value, '+.3f')}{interval}"


@dataclass(frozen=True)
class ScatterPoint:
    """One mark: its name, how it looks, and its changes along x and y."""

    name: str
    label: str
    classes: str
    shape: str
    x: Change
    y: Change


@dataclass(frozen=True)
class Quadrant:
    """The name of a quarter of the plot and its place."""

    text: str
    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class PlacedLabel:
    """A name with a small mark to its left, and a line from its mark where it is far away; empty: no line."""

    point: ScatterPoint
    mark_x: float
    mark_y: float
    text_x: float
    text_y: float
    leader: str


@dataclass(frozen=True)
class ScatterFigure:
    """Changes along two axes, both better when higher.

    Attributes:
        key: Its id on the page.
        title: Its heading.
        x_label: What the x axis shows.
        y_label: What the y axis shows.
        points: The marks.
        quadrants: Names of the quarters: upper right, lower right, upper left, lower left.
    """

    key: str
    title: str
    x_label: str
    y_label: str
    points: Sequence[ScatterPoint]
    quadrants: tuple[str, str, str, str]

    template = "scatter_figure.html.jinja"

    def plot(self) -> "ScatterPlot":
        """The geometry of the drawing."""
        return ScatterPlot(self)

    @property
    def description(self) -> str:
        """The figure in words, for screen readers."""
        return "; ".join(f"{point.name}: gain {point.x}, {self.y_label} {point.y}" for point in self.points) + "."

    def tooltip(self, point: ScatterPoint) -> str:
        """What a mark tells when it is pointed at."""
        return f"{point.label}: gain {point.x}, {self.y_label} {point.y}"


class ScatterPlot:
    """The places of everything in a scatter figure, in SVG units."""

    width, height = _WIDTH, _HEIGHT
    left, right, top, bottom = _LEFT, _RIGHT, _TOP, _BOTTOM

    def __init__(self, figure: ScatterFigure) -> None:
        self.figure = figure
        self._x_ticks = _axis([point.x for point in figure.points])
        self._y_ticks = _axis([point.y for point in figure.points])
        self._x = scale(self._x_ticks, self.left, self.right)
        self._y = scale(self._y_ticks, self.bottom, self.top)
        self.origin = self._x(0.0), self._y(0.0)

    def x_ticks(self) -> list[TickMark]:
        """Ticks below the plot."""
        step = self._x_ticks[1] - self._x_ticks[0]
        return [TickMark(self._x(tick), _signed(tick, step)) for tick in self._x_ticks]

    def y_ticks(self) -> list[TickMark]:
        """Ticks to the left of the plot."""
        step = self._y_ticks[1] - self._y_ticks[0]
        return [TickMark(self._y(tick), _signed(tick, step)) for tick in self._y_ticks]

    def quadrants(self) -> Iterator[Quadrant]:
        """The names of the quarters that are wide enough."""
        corners = [
            (self.right - 4, self.top + 13, "end"),
            (self.right - 4, self.bottom - 6, "end"),
            (self.left + 4, self.top + 13, "start"),
            (self.left + 4, self.bottom - 6, "start"),
        ]
        for text, (x, y, anchor) in zip(self.figure.quadrants, corners, strict=True):
            if abs(x - self.origin[0]) > LETTER * len(text):
                yield Quadrant(text, x, y, anchor)

    def spot(self, point: ScatterPoint) -> tuple[float, float]:
        """X and y of a mark."""
        return self._x(point.x.value), self._y(point.y.value)

    def cross(self, point: ScatterPoint) -> str:
        """The path of a mark's intervals; empty without one."""
        x, y = self.spot(point)
        across, along = point.x.interval, point.y.interval
        path = f"M{self._x(across[0])} {y}H{self._x(across[1])}" if across else ""
        return path + (f"M{x} {self._y(along[0])}V{self._y(along[1])}" if along else "")

    def labels(self) -> Iterator[PlacedLabel]:
        """Names next to their marks; one that finds no room is only in the table."""
        points, spots = self.figure.points, [self.spot(point) for point in self.figure.points]
        room = Box(self.left, self.top + 16, self.right, self.bottom - 16)
        boxes = place_labels([brief(point.name) for point in points], spots, self._lines(), room)
        for point, spot, box in zip(points, spots, boxes, strict=True):
            if box is not None:
                nearest = min(max(spot[0], box.left), box.right)
                far = math.hypot(nearest - spot[0], box.middle - spot[1]) > _FAR
                leader = f"M{spot[0]} {spot[1]}L{nearest:.1f} {box.middle:.1f}" if far else ""
                mark_x, text_x = round(box.left + 5, 1), round(box.left + 11, 1)
                yield PlacedLabel(point, mark_x, round(box.middle, 1), text_x, round(box.middle + 4, 1), leader)

    def _lines(self) -> list[Box]:
        """The axes and the crosses as thin boxes."""
        x, y = self.origin
        boxes = [Box(self.left, y - 1, self.right, y + 1), Box(x - 1, self.top, x + 1, self.bottom)]
        for point in self.figure.points:
            x, y = self.spot(point)
            if point.x.interval:
                boxes.append(Box(self._x(point.x.interval[0]), y - 1, self._x(point.x.interval[1]), y + 1))
            if point.y.interval:
                boxes.append(Box(x - 1, self._y(point.y.interval[1]), x + 1, self._y(point.y.interval[0])))
        return boxes


def _axis(changes: Sequence[Change]) -> list[float]:
    """Ticks around all values and 0, with room for the names of the quarters on both sides of it."""
    values = [0.0, *(end for change in changes for end in (change.value, *(change.interval or ())))]
    width = max(max(values) - min(values), 1e-3)
    return ticks([*values, -0.12 * width, 0.12 * width])


def _signed(tick: float, step: float) -> str:
    return ("+" if tick > step / 2 else "") + tick_text(tick, step)
