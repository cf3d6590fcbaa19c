"""Exact match on the validation questions, round by round."""

from rag.report.round_chart import RoundChart

chart = RoundChart(
    "eval_exact_match",
    title="Exact match",
    unit="share of questions",
    text="Share of answers that equal a golden answer.",
    order=10,
)
