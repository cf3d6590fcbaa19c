"""Recall@k of selectors and retriever, with two ceilings: is the selector's order better, and how much is possible?

Recall@k is the share of a question's gold passages among the first k. With all gold passages first it is
min(k, gold) / gold; with the best order of these candidates it is min(k, gold among the candidates) / gold. The
distance from a line to the second ceiling is lost by the selector, the distance between the ceilings by the retriever.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from indexes.corpora.chunk_ids import gold_document
from rag.report.chart import Chart
from rag.report.drawing.line_figure import LineFigure, Point, Series
from rag.report.metric_labels import split_cutoff
from rag.report.report_data import AnsweredQuestion, ComparisonData, Estimate, EvaluationData, Metrics, Trial
from rag.report.series_style import SeriesStyles

CUTOFFS = (1, 3, 5, 20)
_CEILINGS = {"gold": "all gold first", "candidates": "best order"}

RecallByCutoff = Mapping[int, Estimate]


@dataclass(frozen=True)
class RankingResults:
    """Ranking metrics of every trial and of the untrained retriever.

    Attributes:
        trials: Trial name to its metrics, of which those with the prefixes `selector_` and `retriever_` count.
        records: Questions with gold ids and candidates, for the ceilings; may be empty.
        base: The trial whose retriever was not trained. Without it, the retriever of the trial with the most cut-offs
            is taken: pipelines that read one document at a time may retrieve fewer candidates.
    """

    trials: Mapping[str, Metrics]
    records: Sequence[AnsweredQuestion] = ()
    base: str | None = None

    @classmethod
    def of(cls, data: EvaluationData | ComparisonData) -> "RankingResults":
        """Those of an evaluation, or of the trials of a comparison."""
        if isinstance(data, EvaluationData):
            return cls({data.name: data.metrics}, data.records)
        return cls(data.evaluations or _of_trials(data.trials, data.retriever), data.records, data.base_trial)

    @cached_property
    def retriever_metrics(self) -> Metrics:
        """The metrics of the trial whose retriever stands for the untrained one."""
        if self.base is not None and self.base in self.trials:
            return self.trials[self.base]
        return max(self.trials.values(), key=lambda found: len(recall_by_cutoff(found, "retriever")), default={})

    @cached_property
    def retriever(self) -> RecallByCutoff:
        """Recall@k of the untrained retriever."""
        return recall_by_cutoff(self.retriever_metrics, "retriever")

    @cached_property
    def selectors(self) -> Mapping[str, RecallByCutoff]:
        """Recall@k of every trial's selector."""
        return {name: recall_by_cutoff(metrics, "selector") for name, metrics in self.trials.items()}

    @property
    def is_empty(self) -> bool:
        """Whether no recall is known at all."""
        return not any(self.selectors.values()) and not self.retriever

    @cached_property
    def unchanged(self) -> list[str]:
        """Trials whose selector keeps the retriever's order, as far as they retrieve; a single trial never counts."""
        retriever = _rounded(self.retriever)
        same = [
            name for name, found in self.selectors.items() if found and _rounded(found).items() <= retriever.items()
        ]
        return same if len(self.selectors) > 1 else []

    @property
    def drawn(self) -> dict[str, RecallByCutoff]:
        """The selectors that are drawn as lines of their own."""
        return {name: found for name, found in self.selectors.items() if name not in self.unchanged}


class RecallVsCeiling(Chart):
    """Recall@k of the selectors between the retriever's recall and the ceilings."""

    section, order = "recall", 10
    pages = ("evaluation", "sweep")

    def draw(self, data: EvaluationData | ComparisonData, styles: SeriesStyles) -> Sequence[LineFigure]:
        """One figure, if a recall is known."""
        results = RankingResults.of(data)
        if results.is_empty:
            return []
        ceilings = recall_ceilings(results.records)
        cutoffs = sorted({k for found in [results.retriever, *results.drawn.values()] for k in found})
        series = [
            *(
                _line(text, f"ceiling ceiling-{key}", "", ceilings.get(key, {}), cutoffs)
                for key, text in _CEILINGS.items()
            ),
            *(
                _line(name, styles.classes(name), styles.shape(name), found, cutoffs)
                for name, found in results.drawn.items()
            ),
            _line("retriever", "reference", "", results.retriever, cutoffs),
        ]
        texts = {float(place): str(k) for place, k in enumerate(cutoffs)}
        return [LineFigure("recall-vs-ceiling", "Recall@k", _caption(ceilings), "k", "recall@k", series, x_texts=texts)]


def _line(label: str, classes: str, shape: str, found: RecallByCutoff, cutoffs: Sequence[int]) -> Series:
    points = [
        Point(place, place, estimate.value, estimate.interval)
        for place, k in enumerate(cutoffs)
        if (estimate := found.get(k)) is not None and estimate.value is not None
    ]
    return Series(label, classes, shape, points)


def _caption(ceilings: Mapping[str, RecallByCutoff]) -> str:
    text = "Share of the gold passages among the first k. Grey dashes: the retriever alone."
    if ceilings:
        text += " Dots: all gold passages first. Fine dots: the best order of these candidates."
    return text


def recall_by_cutoff(metrics: Metrics, stage: str) -> dict[int, Estimate]:
    """Recall of the selector or the retriever by its k."""
    cutoffs = {name: split_cutoff(name.removeprefix(f"{stage}_")) for name in metrics if name.startswith(f"{stage}_")}
    return {k: metrics[name] for name, (kind, k) in cutoffs.items() if kind == "recall" and k > 0}


def _rounded(found: RecallByCutoff) -> dict[int, float]:
    return {k: round(estimate.value, 9) for k, estimate in found.items() if estimate.value is not None}


def _of_trials(trials: Sequence[Trial], retriever: Mapping[str, float]) -> dict[str, Metrics]:
    """Recall of the trials, where their evaluations are not in the file."""
    shared = {name: Estimate(value) for name, value in retriever.items()}
    own = {t.name: {m: found for m, found in t.metrics.items() if m.startswith("selector_recall@")} for t in trials}
    return {name: {**shared, **found} for name, found in own.items() if found}


def recall_ceilings(records: Sequence[AnsweredQuestion]) -> dict[str, RecallByCutoff]:
    """Both ceilings with bootstrap intervals, over the questions that have gold ids."""
    counts = [
        (
            len(gold),
            len({gold_document(passage.id, gold) for passage in record.candidates} - {None}),
            len(record.candidates),
        )
        for record in records
        if (gold := set(record.gold_ids))
    ]
    if not counts:
        return {}
    longest = max(candidates for _, _, candidates in counts)
    cutoffs = [k for k in CUTOFFS if k <= max(longest, 1)]
    return {
        "gold": {k: _mean([min(k, gold) / gold for gold, _, _ in counts]) for k in cutoffs},
        "candidates": {k: _mean([min(k, found) / gold for gold, found, _ in counts]) for k in cutoffs},
    }


def _mean(values: Sequence[float]) -> Estimate:
    from rag.evaluation.significance import bootstrap_interval  # it needs SciPy, and a page without records does not

    return Estimate(sum(values) / len(values), bootstrap_interval(values), len(values))


chart = RecallVsCeiling()
