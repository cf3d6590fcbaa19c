"""The estimated log marginal likelihood of the answers, round by round."""

from rag.report.chart_registry import register_chart
from rag.report.charts.metrics_by_round import RoundChart


@register_chart
class LogMarginal(RoundChart):
    """The objective of DRO on the training questions."""

    kind, value, order = "log-marginal", "log_marginal", 50
    title, unit = "Log marginal", "nats per question"
    text = (
        "The importance-weighted ELBO, which estimates log p(answer | question) on the training questions. "
        "Higher is better."
    )
