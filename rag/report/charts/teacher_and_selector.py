"""What share of the gold passages the posterior's lists hold, round by round, beside the selector's own."""

from collections.abc import Sequence

from rag.report.chart import Chart
from rag.report.drawing.line_figure import LineFigure, Series
from rag.report.report_data import ComparisonData, RunData
from rag.report.round_chart import round_points, series_by_round
from rag.report.series_style import SeriesStyles


class TeacherAndSelector(Chart):
    """The posterior, from which the selector learns, and the selector that drew the permutations."""

    section, order = "rounds", 35
    pages = ("run", "sweep")

    def draw(self, data: RunData | ComparisonData, styles: SeriesStyles) -> Sequence[LineFigure]:
        """One figure, if training questions had gold ids."""
        teachers = series_by_round(data.curves, styles, "posterior_gold_share")
        if not any(line.points for line in teachers):
            return []
        selectors = [
            Series(f"{name}, selector", styles.classes(name), "", points, named=False)
            for name, records in data.curves.items()
            if (points := round_points(records, "selector_gold_share"))
        ]
        text = (
            "Expected share of a training question's gold passages in a list that the posterior draws. Dashes: in a "
            "list that the selector draws by itself, which has nothing to learn where both are equal."
        )
        return [
            LineFigure("teacher", "Teacher against selector", text, "round", "gold passages", [*teachers, *selectors])
        ]


chart = TeacherAndSelector()
