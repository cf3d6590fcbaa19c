"""One chart per number that changes from round to round: scores, the E-step's telemetry, losses, drift."""

from collections.abc import Mapping, Sequence
from typing import Any

from rag.report.charts import FEW, MANY, Chart, Point, Series, chart_figure
from rag.report.names import Names
from rag.report.page import escape
from rag.report.values import ends, finite, mapping, mappings

_Records = Mapping[str, Sequence[Mapping[str, Any]]]


_LOSSES = [
    ("selector_loss", "Selector loss", "Mean over the round's training questions.", "loss"),
    ("generator_loss", "Generator loss", "Minus log-likelihood per answer token, weighted by the E-step.", "nats"),
    ("selfaug_kl", "SelfAug KL", "KL from the base model per input token of the training prompts.", "nats"),
]


def curves_section(result: Mapping[str, Any], names: Names, *, losses: bool = False) -> str:
    """The charts of `curves` (row name to records), with boxes that show and hide series and intervals."""
    curves = {str(name): mappings(records) for name, records in mapping(result.get("curves")).items()}
    charts = [_round_chart(*texts, curves, names) for texts in _round_texts(result)]
    charts.insert(2, _selector_chart(result, curves, names))
    charts += [_round_chart(*texts, curves, names) for texts in (_LOSSES if losses else [])]
    charts.append(_drift_chart(curves, names))
    figures = [chart_figure(chart) for chart in charts if any(series.points for series in chart.series)]
    if not figures:
        return ""
    return (
        "<p>Scores on the validation questions, which choose the round that is kept, before training (round 0) and "
        "after each round. Marks tell their value on hover, and every chart has its numbers in a table.</p>"
        f"{_switches(curves, names)}"
        f'<div class="charts{" many" if len(curves) > MANY else ""}">{"".join(figures)}</div>'
    )


def _round_texts(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Key, title, explanation and unit of the charts that show one number per round."""
    settings = mapping(result.get("settings"))
    settings = {**settings, **mapping(settings.get("e_step"))}
    drawn = settings.get("num_permutations")
    if isinstance(drawn, int) and isinstance(settings.get("proposals_per_sample"), int):
        drawn *= settings["proposals_per_sample"]
    return [
        ("eval_exact_match", "Exact match", "Share of answers that equal a golden answer.", "share of questions"),
        ("eval_f1", "F1", "Overlap with the golden answer in words.", "mean F1"),
        (
            "ess",
            "Effective sample size",
            "How many of a question's lists carry the weight in the E-step: at 1, one list explains the answer alone."
            + ("" if drawn is None else f" DRO draws {escape(drawn)}."),
            "lists per question",
        ),
        (
            "log_marginal",
            "Log marginal",
            "The importance-weighted ELBO, which estimates log p(answer | question) on the training questions. "
            "Higher is better.",
            "nats per question",
        ),
    ]


def _switches(curves: _Records, names: Names) -> str:
    boxes = "".join(
        f'<label><input type="checkbox" id="show-{names.places[name]}" checked>{names.key(name)}{escape(name)}</label>'
        for name in curves
    )
    if any(mapping(record.get("eval_intervals")) for records in curves.values() for record in records):
        boxes += interval_switch(len(curves))
    return f'<fieldset class="switches"><legend>Series in the charts</legend>{boxes}</fieldset>'


def interval_switch(series: int) -> str:
    """The box that shows the intervals of all lines at once; ticked where that can be read."""
    checked = " checked" if series <= FEW else ""
    return (
        f'<label><input type="checkbox" class="intervals"{checked}>95 % intervals&nbsp;'
        "<small>(else of the line that is pointed at)</small></label>"
    )


def _points(records: Sequence[Mapping[str, Any]], y_key: str, x_key: str = "round") -> list[Point]:
    """One point per record that has finite numbers for both axes."""
    points = []
    for record in records:
        round, x, y = (finite(record.get(key)) for key in ("round", x_key, y_key))
        interval = ends(mapping(record.get("eval_intervals")).get(y_key.removeprefix("eval_")))
        if round is not None and x is not None and y is not None:
            points.append(Point(round, x, y, interval))
    return points


def _row_series(curves: _Records, names: Names, y_key: str, x_key: str = "round") -> list[Series]:
    return [
        Series(name, names.style(name), names.shape(name), _points(records, y_key, x_key))
        for name, records in curves.items()
    ]


def _round_chart(key: str, title: str, text: str, unit: str, curves: _Records, names: Names) -> Chart:
    return Chart(key.replace("_", "-"), title, text, "round", unit, _row_series(curves, names, key))


def _selector_chart(result: Mapping[str, Any], curves: _Records, names: Names) -> Chart:
    """The selectors, the retriever they started from, and retrievers that training moved."""
    selectors = _row_series(curves, names, "eval_selector_recall@1")
    text = "Share of the gold passages among the first passage read. Grey dashes: the retriever alone."
    retrievers = [
        Series(f"{name}, retriever", names.style(name), "", _points(records, "eval_retriever_recall@1"), named=False)
        for name, records in curves.items()
    ]
    moved = [series for series in retrievers if len({point.y for point in series.points}) > 1]
    if moved:
        text += " Coloured dashes: the retriever as training moved it."
    # On the questions of the curves, where they say it: those of the table are others.
    firsts = [series.points[0].y for series in retrievers if series.points]
    start = firsts[0] if firsts else finite(mapping(result.get("retriever")).get("recall_at_1"))
    rounds = sorted({point.round for series in selectors for point in series.points})
    reference = [Point(round, round, start) for round in rounds] if start is not None else []
    # The reference comes last, so that it stays visible on selectors that are no better.
    series = [*moved, *selectors, Series("retriever", "reference", "", reference)]
    return Chart("selector", "Selector against retriever", text, "round", "recall@1", series)


def _drift_chart(curves: _Records, names: Names) -> Chart:
    return Chart(
        "drift",
        "Drift and forgetting",
        "Each line starts at the base model and moves on with every round: to the right as the model's "
        "distributions leave the base, down as it forgets.",
        "KL drift, nats",
        "general ability",
        _row_series(curves, names, "eval_general", "eval_kl_drift"),
        by_round=False,
    )
