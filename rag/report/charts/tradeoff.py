"""What was learned against what was forgotten: one figure per measurement of forgetting.

To the right: gained on the questions. Upwards: kept of what the base model could do. Both are differences from the base
model, so it is where the axes cross.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rag.report.chart import Chart
from rag.report.drawing.scatter_figure import Change, ScatterFigure, ScatterPoint
from rag.report.metric_labels import metric_label, metric_within_sentence
from rag.report.report_data import (
    BASE_MODEL,
    WHOLE_TASK,
    ComparisonData,
    ForgettingData,
    ForgettingDifference,
    PairedTest,
    TaskMetric,
    Trial,
)
from rag.report.series_style import SeriesStyles

QUADRANTS = ("learned and kept", "learned, but forgot", "kept, but lost answers", "lost both")
_GENERAL = "general"
# bits_per_byte, word_perplexity and byte_perplexity are one number written in three ways.
_BITS, _SAME_AS_BITS = "bits_per_byte", ("word_perplexity", "byte_perplexity")
_DISTANCES = ("kl_drift",)  # from the base model already, so there is no change to draw
_UNCHANGED = Change(0.0)

Changes = Mapping[str, Change]
"""Trial name to its difference from the base model, upwards for better."""


@dataclass(frozen=True)
class ForgettingMeasure:
    """One measurement of forgetting: the vertical axis of a figure.

    Attributes:
        key: The id of its figure.
        title: The task and its metric.
        unit: What upwards is.
        changes: Those of the trials.
    """

    key: str
    title: str
    unit: str
    changes: Changes


@dataclass(frozen=True)
class Tradeoff:
    """Gains of the trials and their changes by every measurement of forgetting.

    Attributes:
        base: The trial that was not trained.
        metric: What the gains are measured by.
        gains: Those of the trials.
        measures: Measurements of forgetting of the base and of at least one more trial that has a gain.
    """

    base: str
    metric: str
    gains: Changes
    measures: Sequence[ForgettingMeasure]

    @property
    def names(self) -> list[str]:
        """The trials in the figures, the base first."""
        return list(dict.fromkeys(name for measure in self.measures for name in measure.changes))


def tradeoff_of(data: ComparisonData) -> Tradeoff | None:
    """The trade-off of a comparison; None without a base model or without a measurement of forgetting."""
    base = data.base_trial
    if base is None:
        return None
    metric = _gain_metric(data.trials)
    gains = {**_plain_differences(data.trials, metric, base), **_tested(data.paired_tests, metric, base)}
    gains[base] = _UNCHANGED
    # A generator that is still the base model was not measured again, and has forgotten nothing.
    unchanged = [trial.name for trial in data.trials if trial.value("kl_drift") == 0.0]
    measures = [_drawn(measure, base, gains, unchanged) for measure in _measures(data, base)]
    measures = [measure for measure in measures if len(measure.changes) > 1]
    return Tradeoff(base, metric, gains, measures) if measures else None


class TradeoffChart(Chart):
    """A figure per measurement of forgetting."""

    section, order = "tradeoff", 10
    pages = ("sweep",)

    def draw(self, data: ComparisonData, styles: SeriesStyles) -> Sequence[ScatterFigure]:
        """General tasks first, then the tasks of the forgetting file."""
        tradeoff = tradeoff_of(data)
        if tradeoff is None:
            return []
        return [
            ScatterFigure(
                measure.key,
                measure.title,
                f"gain of {metric_within_sentence(tradeoff.metric)}",
                measure.unit,
                [
                    ScatterPoint(
                        name, styles.label(name), styles.classes(name), styles.shape(name), tradeoff.gains[name], change
                    )
                    for name, change in measure.changes.items()
                ],
                QUADRANTS,
            )
            for measure in tradeoff.measures
        ]


def _drawn(measure: ForgettingMeasure, base: str, gains: Changes, unchanged: Iterable[str]) -> ForgettingMeasure:
    """The measure with only the trials that have a gain: the base, generators that are still the base, the others."""
    changes = {base: _UNCHANGED, **{name: _UNCHANGED for name in unchanged if name not in measure.changes}}
    changes |= {name: change for name, change in measure.changes.items() if name != base}
    kept = {name: change for name, change in changes.items() if name in gains}
    return ForgettingMeasure(measure.key, measure.title, measure.unit, kept)


def _gain_metric(trials: Sequence[Trial]) -> str:
    """Exact match, or F1 if no two trials have exact match."""
    measured = {metric: sum(trial.value(metric) is not None for trial in trials) for metric in ("exact_match", "f1")}
    return next((metric for metric, trials_with_it in measured.items() if trials_with_it > 1), "exact_match")


def _tested(tests: Iterable[PairedTest], metric: str, base: str) -> dict[str, Change]:
    """Differences from the base, also where the base was compared with the trial and not the trial with it."""
    found: dict[str, Change] = {}
    for test in tests:
        if test.difference is None or test.metric != metric:
            continue
        change = Change(test.difference, test.interval)
        if test.against == base:
            found[test.name] = change
        elif test.name == base:
            found.setdefault(test.against, -change)
    return found


def _plain_differences(trials: Iterable[Trial], metric: str, base: str) -> dict[str, Change]:
    """Differences of means, for trials that no test compared with the base."""
    values = {trial.name: trial.value(metric) for trial in trials}
    start = values.get(base)
    return {name: Change(value - start) for name, value in values.items() if value is not None and start is not None}


def _measures(data: ComparisonData, base: str) -> list[ForgettingMeasure]:
    """General tasks as the trials measure them, then every task and metric of the forgetting file."""
    general = {**_plain_differences(data.trials, _GENERAL, base), **_tested(data.paired_tests, _GENERAL, base)}
    own = ForgettingMeasure("tradeoff-general", "General tasks", "change of the share of tasks solved", general)
    return [measure for measure in [own, *_task_measures(data.forgetting)] if measure.changes]


def _task_measures(forgetting: ForgettingData) -> list[ForgettingMeasure]:
    columns = list(dict.fromkeys(m.column for m in forgetting.measurements if m.group == WHOLE_TASK))
    return [
        _task_measure(f"tradeoff-{number}", column, forgetting)
        for number, column in enumerate(columns)
        if column.metric not in _DISTANCES
        and not (column.metric in _SAME_AS_BITS and TaskMetric(column.task, _BITS) in columns)
    ]


def _task_measure(key: str, column: TaskMetric, forgetting: ForgettingData) -> ForgettingMeasure:
    here = [m for m in forgetting.measurements if m.column == column and m.group == WHOLE_TASK]
    base = next((m.estimate.value for m in here if m.model == BASE_MODEL), None)
    upwards = any(m.higher_is_better is not False for m in here)
    differences = [d for d in forgetting.differences if d.column == column and d.group == WHOLE_TASK]
    changes = {d.model: _change(d, base, upwards=upwards) for d in differences}
    return ForgettingMeasure(
        key,
        f"{column.task}: {metric_label(column.metric)}",
        _unit(column.metric, upwards=upwards),
        {model: change for model, change in changes.items() if change is not None},
    )


def _change(difference: ForgettingDifference, base: float | None, *, upwards: bool) -> Change | None:
    """Upwards for better; perplexities by their logarithm."""
    if difference.difference is None:
        return None
    if "perplexity" in difference.column.metric:
        return _log_ratio(difference.difference, difference.interval, base)
    change = Change(difference.difference, difference.interval)
    return change if upwards else -change


def _log_ratio(difference: float, interval: tuple[float, float] | None, base: float | None) -> Change | None:
    """Log (base / tuned): twice as bad is as far from 0 as twice as good.

    Resampled differences of heavy-tailed perplexities may exceed the base's perplexity; then there is no interval.
    """
    if base is None or base + difference <= 0:
        return None
    logs = [math.log1p(end / base) for end in interval or () if base + end > 0]
    return -Change(math.log1p(difference / base), (logs[0], logs[1]) if len(logs) == 2 else None)


def _unit(metric: str, *, upwards: bool) -> str:
    """What upwards is; of a metric that is better when it is lower, how far it fell."""
    if "perplexity" in metric:
        return "log (base / tuned), nats"
    return f"{'change' if upwards else 'fall'} of {metric_within_sentence(metric)}"


chart = TradeoffChart()
