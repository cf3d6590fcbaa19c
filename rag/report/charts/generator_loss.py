"""The generator's loss, round by round."""

from rag.report.round_chart import RunRoundChart

chart = RunRoundChart(
    "generator_loss",
    title="Generator loss",
    unit="nats",
    text="Minus log-likelihood per answer token, weighted by the E-step.",
    order=70,
)
