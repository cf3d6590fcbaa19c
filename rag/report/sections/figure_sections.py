"""The sections that draw charts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rag.report.chart import Figure
from rag.report.charts import CHARTS
from rag.report.charts.recall_vs_ceiling import RankingResults
from rag.report.charts.tradeoff import Tradeoff, tradeoff_of
from rag.report.drawing.line_figure import FEW, MANY
from rag.report.metric_labels import ranking_metrics, split_cutoff
from rag.report.page import Section
from rag.report.report_data import ComparisonData, EvaluationData, ReportData, RunData
from rag.report.series_style import SeriesStyles


def figures_of(section: str, data: ReportData, styles: SeriesStyles) -> list[Figure]:
    """The figures of all charts of one section of a page, in their order."""
    charts = [(kind, entry() if isinstance(entry, type) else entry) for kind, entry in CHARTS.items()]
    charts = [(kind, chart) for kind, chart in charts if chart.section == section and data.kind in chart.pages]
    charts.sort(key=lambda entry: (entry[1].order, entry[0]))
    return [figure for _, chart in charts for figure in chart.draw(data, styles)]


@dataclass(frozen=True)
class FigureGroup:
    """Figures of one section, with what switches their series and intervals.

    Attributes:
        figures: In their order.
        num_series: How many lines each may have: many need larger figures, and hide their intervals at first.
        switched: Names of series that can be hidden; empty: none.
        has_intervals: Whether the switch of the intervals is shown.
        many: Figures with more lines than this are larger.
    """

    figures: Sequence[Figure]
    num_series: int
    switched: Sequence[str] = ()
    has_intervals: bool = True
    many: int = MANY

    @property
    def is_large(self) -> bool:
        """Whether figures need more room."""
        return self.num_series > self.many

    @property
    def shows_intervals(self) -> bool:
        """Whether intervals can be read without a switch."""
        return self.num_series <= FEW


def rounds_section(data: RunData | ComparisonData, styles: SeriesStyles) -> Section:
    """One chart per number that changes from round to round."""
    figures = figures_of("rounds", data, styles)
    has_intervals = any(record.intervals for records in data.curves.values() for record in records)
    group = FigureGroup(figures, len(data.curves), list(data.curves), has_intervals)
    return Section("rounds", "Round by round", "rounds.html.jinja", group if figures else None)


@dataclass(frozen=True)
class RecallSection:
    """Recall@k and the ranking metrics.

    Attributes:
        group: The charts.
        unchanged: Trials whose selector keeps the retriever's order.
        results: Of which the table is made; None: no table.
        metrics: Columns of the table, without their stage.
    """

    group: FigureGroup
    unchanged: Sequence[str]
    results: RankingResults | None
    metrics: Sequence[str]

    @property
    def has_retriever(self) -> bool:
        """Whether the table has a line for the retriever."""
        return self.results is not None and any(
            name.startswith("retriever_") for name in self.results.retriever_metrics
        )


def recall_section(data: EvaluationData | ComparisonData, styles: SeriesStyles) -> Section:
    """How good the order of the passages is; of a comparison also as a table of all ranking metrics."""
    results = RankingResults.of(data)
    figures = figures_of("recall", data, styles)
    # Lines for the retriever and the two ceilings are drawn too.
    group = FigureGroup(figures, len(results.drawn), many=MANY - 3)
    metrics = _ranking_metrics(results) if isinstance(data, ComparisonData) else []
    content = RecallSection(group, results.unchanged, results if metrics else None, metrics)
    return Section("recall", "The selector", "recall.html.jinja", content if figures else None)


def _ranking_metrics(results: RankingResults) -> list[str]:
    names = [name for metrics in results.trials.values() for name in metrics if name.startswith("selector_")]
    return sorted({name.removeprefix("selector_") for name in names}, key=_ranking_place)


def _ranking_place(metric: str) -> tuple[int, int, str]:
    kind, k = split_cutoff(metric)
    kinds = ranking_metrics()
    return kinds.index(kind) if kind in kinds else len(kinds), k, metric


@dataclass(frozen=True)
class TradeoffSection:
    """What was learned against what was forgotten.

    Attributes:
        tradeoff: The numbers, which a table repeats.
        figures: The charts.
        drift: KL drift by trial, where it was measured.
    """

    tradeoff: Tradeoff
    figures: Sequence[Figure]
    drift: Mapping[str, float | None]


def tradeoff_section(data: ComparisonData, styles: SeriesStyles) -> Section:
    """One chart per measurement of forgetting."""
    tradeoff, figures = tradeoff_of(data), figures_of("tradeoff", data, styles)
    drift = {trial.name: trial.value("kl_drift") for trial in data.trials}
    content = TradeoffSection(tradeoff, figures, drift) if tradeoff and figures else None
    return Section("tradeoff", "Learned against forgotten", "tradeoff.html.jinja", content)


def charts_section(data: ReportData, styles: SeriesStyles) -> Section:
    """Charts that belong to no other section."""
    figures = figures_of("charts", data, styles)
    return Section("charts", "Charts", "charts.html.jinja", FigureGroup(figures, 1) if figures else None)
