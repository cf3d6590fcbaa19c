"""General tasks over the distance from the base model, round by round."""

from collections.abc import Sequence

from rag.report.chart import Chart
from rag.report.drawing.line_figure import LineFigure
from rag.report.report_data import ComparisonData, RunData
from rag.report.round_chart import series_by_round
from rag.report.series_style import SeriesStyles


class KLDrift(Chart):
    """Forgetting against drift: one line per trial, one point per round."""

    section, order = "rounds", 90
    pages = ("run", "sweep")

    def draw(self, data: RunData | ComparisonData, styles: SeriesStyles) -> Sequence[LineFigure]:
        """One figure, if forgetting was measured in a round."""
        series = series_by_round(data.curves, styles, "eval_general", x="eval_kl_drift")
        if not any(line.points for line in series):
            return []
        text = (
            "Each line starts at the base model and moves on with every round: to the right as the model's "
            "distributions leave the base, down as it forgets."
        )
        labels = "KL drift, nats", "general tasks"
        return [LineFigure("drift", "Drift and forgetting", text, *labels, series, by_round=False)]


chart = KLDrift()
