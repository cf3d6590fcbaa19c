"""The estimated log marginal likelihood of the answers, round by round: the objective of DRO."""

from rag.report.round_chart import RoundChart

chart = RoundChart(
    "log_marginal",
    title="Log marginal",
    unit="nats per question",
    text="The importance-weighted ELBO, which estimates log p(answer | question) on the training questions. "
    "Higher is better.",
    order=50,
)
