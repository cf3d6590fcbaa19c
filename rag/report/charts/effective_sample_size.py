"""Effective sample size of the E-step, round by round."""

from rag.report.chart_registry import register_chart
from rag.report.charts.metrics_by_round import RoundChart
from rag.report.report_data import ComparisonData, RunData


@register_chart
class EffectiveSampleSize(RoundChart):
    """How evenly the importance weights of a question's permutations are spread."""

    kind, value, order = "ess", "ess", 40
    title, unit = "Effective sample size", "lists per question"
    text = "How many of a question's lists carry the weight in the E-step: at 1, one list explains the answer alone."

    def explain(self, data: RunData | ComparisonData) -> str:
        """With the number of permutations drawn, which is the upper bound."""
        drawn = data.permutations_drawn
        return f"{self.text} DRO draws {drawn}." if drawn else self.text
