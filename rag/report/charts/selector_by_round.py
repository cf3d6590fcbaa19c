"""Recall@1 of the selectors, round by round, with that of the retriever they started from."""

from collections.abc import Sequence

from rag.report.chart import Chart
from rag.report.drawing.line_figure import LineFigure, Point, Series
from rag.report.report_data import ComparisonData, RunData
from rag.report.round_chart import round_points, series_by_round
from rag.report.series_style import SeriesStyles


class SelectorByRound(Chart):
    """The selectors, the untrained retriever, and retrievers that training changed."""

    section, order = "rounds", 30
    pages = ("run", "sweep")

    def draw(self, data: RunData | ComparisonData, styles: SeriesStyles) -> Sequence[LineFigure]:
        """One figure, if a selector or a retriever was scored."""
        selectors = series_by_round(data.curves, styles, "eval_selector_recall@1")
        retrievers = [
            Series(f"{name}, retriever", styles.classes(name), "", points, named=False)
            for name, records in data.curves.items()
            if (points := round_points(records, "eval_retriever_recall@1"))
        ]
        trained = [series for series in retrievers if len({point.y for point in series.points}) > 1]
        # On the questions of the curves where they have it: those of the table of results are others.
        start = retrievers[0].points[0].y if retrievers else data.retriever.get("retriever_recall@1")
        rounds = sorted({point.round for series in selectors for point in series.points})
        reference = [Point(round, round, start) for round in rounds] if start is not None else []
        # The reference comes last, so that it stays visible on selectors that are no better.
        series = [*trained, *selectors, Series("retriever", "reference", "", reference)]
        if not any(line.points for line in series):
            return []
        text = "Share of the gold passages among the first passage read. Grey dashes: the retriever alone."
        if trained:
            text += " Coloured dashes: the retriever as training moved it."
        return [LineFigure("selector", "Selector against retriever", text, "round", "recall@1", series)]


chart = SelectorByRound()
