"""The losses of the M-step, round by round."""

from rag.report.chart_registry import register_chart
from rag.report.charts.metrics_by_round import RoundChart


class LossChart(RoundChart):
    """A loss; losses of different recipes are not comparable, so only the page of a run shows them."""

    pages = ("run",)


@register_chart
class SelectorLoss(LossChart):
    """The selector's loss."""

    kind, value, order = "selector-loss", "selector_loss", 60
    title, unit = "Selector loss", "loss"
    text = "Mean over the round's training questions."


@register_chart
class GeneratorLoss(LossChart):
    """The generator's loss."""

    kind, value, order = "generator-loss", "generator_loss", 70
    title, unit = "Generator loss", "nats"
    text = "Minus log-likelihood per answer token, weighted by the E-step."


@register_chart
class SelfAugKL(LossChart):
    """The distance that SelfAug penalises."""

    kind, value, order = "selfaug-kl", "selfaug_kl", 80
    title, unit = "SelfAug KL", "nats"
    text = "KL from the base model per input token of the training prompts."
