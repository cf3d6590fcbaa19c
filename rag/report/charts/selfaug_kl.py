"""The distance from the base model that SelfAug penalises, round by round."""

from rag.report.round_chart import RunRoundChart

chart = RunRoundChart(
    "selfaug_kl",
    title="SelfAug KL",
    unit="nats",
    text="KL from the base model per input token of the training prompts.",
    order=80,
)
