"""Exact match and F1 on the validation questions, round by round."""

from collections.abc import Sequence
from typing import ClassVar

from rag.report.chart_registry import Chart, register_chart
from rag.report.drawing.line_figure import LineFigure, Point, Series
from rag.report.report_data import ComparisonData, Curves, RoundRecord, RunData
from rag.report.series_style import SeriesStyles


class RoundChart(Chart):
    """A number of the records of rounds, as one line for each trial.

    Attributes:
        value: The number's name in the records.
        title: Heading of the figure.
        unit: Label of its y axis.
        text: A sentence about it.
    """

    pages = ("run", "sweep", "comparison")
    section = "rounds"
    value: ClassVar[str]
    title: ClassVar[str]
    unit: ClassVar[str]
    text: ClassVar[str]

    def draw(self, data: RunData | ComparisonData, styles: SeriesStyles) -> Sequence[LineFigure]:
        """One figure, if a record has the number."""
        series = series_by_round(data.curves, styles, self.value)
        if not any(line.points for line in series):
            return []
        return [LineFigure(self.kind, self.title, self.explain(data), "round", self.unit, series)]

    def explain(self, data: RunData | ComparisonData) -> str:
        """The sentence below the title."""
        return self.text


@register_chart
class ExactMatchByRound(RoundChart):
    """Exact match on the validation questions."""

    kind, value, order = "eval-exact-match", "eval_exact_match", 10
    title, unit = "Exact match", "share of questions"
    text = "Share of answers that equal a golden answer."


@register_chart
class F1ByRound(RoundChart):
    """F1 on the validation questions."""

    kind, value, order = "eval-f1", "eval_f1", 20
    title, unit = "F1", "mean F1"
    text = "Overlap with the golden answer in words."


def series_by_round(curves: Curves, styles: SeriesStyles, y: str, x: str | None = None) -> list[Series]:
    """One line per trial of a comparison: a number over the rounds, or over another number."""
    return [
        Series(name, styles.classes(name), styles.shape(name), round_points(records, y, x))
        for name, records in curves.items()
    ]


def round_points(records: Sequence[RoundRecord], y: str, x: str | None = None) -> list[Point]:
    """One point per record that has the numbers of both axes."""
    points = []
    for record in records:
        at_x = record.round if x is None else record.values.get(x)
        at_y = record.values.get(y)
        if record.round is not None and at_x is not None and at_y is not None:
            points.append(Point(record.round, at_x, at_y, record.intervals.get(y.removeprefix("eval_"))))
    return points
