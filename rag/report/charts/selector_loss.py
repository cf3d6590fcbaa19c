"""The selector's loss, round by round."""

from rag.report.round_chart import RunRoundChart

chart = RunRoundChart(
    "selector_loss", title="Selector loss", unit="loss", text="Mean over the round's training questions.", order=60
)
