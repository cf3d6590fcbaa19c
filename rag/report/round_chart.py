"""Charts of one number that changes from round to round."""

from collections.abc import Sequence
from typing import ClassVar

from rag.report.chart import Chart
from rag.report.drawing.line_figure import LineFigure, Point, Series
from rag.report.report_data import ComparisonData, Curves, RoundRecord, RunData
from rag.report.series_style import SeriesStyles


class RoundChart(Chart):
    """A number of the records of rounds, as one line for each trial.

    Args:
        value: The number's name in the records.
        title: Heading of the figure.
        unit: Label of its y axis.
        text: A sentence about it.
        order: Its place within the section: lower numbers come first.
    """

    pages: ClassVar[Sequence[str]] = ("run", "sweep")
    section = "rounds"

    def __init__(self, value: str, *, title: str, unit: str, text: str, order: int = 100) -> None:
        self.value, self.title, self.unit, self.text = value, title, unit, text
        self.order = order

    def draw(self, data: RunData | ComparisonData, styles: SeriesStyles) -> Sequence[LineFigure]:
        """One figure, if a record has the number."""
        series = series_by_round(data.curves, styles, self.value)
        if not any(line.points for line in series):
            return []
        key = self.value.replace("_", "-")
        return [LineFigure(key, self.title, self.explain(data), "round", self.unit, series)]

    def explain(self, data: RunData | ComparisonData) -> str:
        """The sentence below the title."""
        return self.text


class RunRoundChart(RoundChart):
    """The same for numbers that different recipes do not share, so that only the page of a run shows them."""

    pages = ("run",)


def series_by_round(curves: Curves, styles: SeriesStyles, y: str, x: str | None = None) -> list[Series]:
    """One line per trial: a number over the rounds, or over another number.

    Args:
        curves: Trial name to its records.
        styles: Colours and marks of the trials.
        y: The number's name in the records.
        x: The name of the other number; None: the round.
    """
    return [
        Series(name, styles.classes(name), styles.shape(name), round_points(records, y, x))
        for name, records in curves.items()
    ]


def round_points(records: Sequence[RoundRecord], y: str, x: str | None = None) -> list[Point]:
    """One point per record that has the numbers of both axes; the arguments are those of `series_by_round`."""
    points = []
    for record in records:
        at_x = record.round if x is None else record.values.get(x)
        at_y = record.values.get(y)
        if record.round is not None and at_x is not None and at_y is not None:
            points.append(Point(record.round, at_x, at_y, record.intervals.get(y.removeprefix("eval_"))))
    return points
