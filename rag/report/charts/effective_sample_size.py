"""Effective sample size of the E-step, round by round: how evenly importance weights are spread."""

from rag.report.report_data import ComparisonData, RunData
from rag.report.round_chart import RoundChart


class EffectiveSampleSize(RoundChart):
    """With the number of permutations drawn, which is the upper bound."""

    def explain(self, data: RunData | ComparisonData) -> str:
        """The sentence below the title."""
        drawn = data.permutations_drawn
        return f"{self.text} DRO draws {drawn}." if drawn else self.text


chart = EffectiveSampleSize(
    "ess",
    title="Effective sample size",
    unit="permutations per question",
    text="How many of a question's permutations carry weight in the E-step: at 1, one carries all of it.",
    order=40,
)
