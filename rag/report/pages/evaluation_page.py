"""The page of one evaluation: its metrics, how they depend on the order of passages, what its citations carry."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rag.report.formatting import count
from rag.report.metric_labels import STAGES, audit_place, split_cutoff
from rag.report.page import Fact, Page, Section, dataset_facts, settings_section
from rag.report.report_data import Estimate, EvaluationData, Metrics, OrderAudit
from rag.report.sections.figure_sections import charts_section, recall_section
from rag.report.sections.forgetting_table import forgetting_section
from rag.report.sections.question_lists import SHOWN, QuestionList, best_and_worst
from rag.report.series_style import SeriesStyles

_AUDITS = {
    "candidates": "The retriever's candidates shuffled before the selector reads them",
    "passages": "The passages that were selected shuffled before the generator reads them",
}


@dataclass(frozen=True)
class MetricTables:
    """Metrics of the answers, and those of the passages: the selector's next to the retriever's.

    Attributes:
        metrics: All of them.
    """

    metrics: Metrics

    @property
    def answers(self) -> list[str]:
        """Names of the metrics of answers."""
        return sorted((name for name in self.metrics if not name.startswith(STAGES)), key=split_cutoff)

    @property
    def passages(self) -> list[str]:
        """Names of the metrics of passages, without their stage."""
        found = {name.removeprefix(f"{stage}_") for stage in STAGES for name in self.metrics if name.startswith(stage)}
        return sorted(found, key=split_cutoff)

    def stages(self, name: str) -> list[Estimate | None]:
        """A metric of the passages of both stages."""
        return [self.metrics.get(f"{stage}_{name}") for stage in STAGES]

    def num_questions(self, name: str) -> float | None:
        """How many questions have a metric of the passages."""
        counts = [estimate.n for estimate in self.stages(name) if estimate is not None]
        return next((n for n in counts if n is not None), None)


@dataclass(frozen=True)
class ShownAudit:
    """An order-bias audit with its heading."""

    heading: str
    audit: OrderAudit
    estimates: Sequence[tuple[str, Estimate]]


@dataclass(frozen=True)
class BestAndWorst:
    """The lists of questions of an evaluation."""

    lists: Sequence[QuestionList]
    shown: int
    total: int


def evaluation_page(data: EvaluationData) -> Page:
    """The page of an evaluation file."""
    styles = SeriesStyles.of({data.name: data.label}, data.forgetting.models, first_look=2)
    total = len(data.records)
    lists = BestAndWorst(best_and_worst(data.records), min(2 * SHOWN, total), total)
    audits = [_shown_audit(heading, getattr(data.order_bias, key)) for key, heading in _AUDITS.items()]
    return Page(
        title=f"Evaluation: {data.label}",
        introduction="evaluation_introduction.html.jinja",
        data=data,
        styles=styles,
        facts=_facts(data),
        sections=[
            Section("metrics", "Metrics", "metrics.html.jinja", MetricTables(data.metrics) if data.metrics else None),
            recall_section(data, styles),
            Section("order", "Order bias", "order_bias.html.jinja", [audit for audit in audits if audit.estimates]),
            Section(
                "support",
                "Support of citations",
                "attribution.html.jinja",
                _in_order(data.attribution.estimates.items()),
            ),
            forgetting_section(data.forgetting),
            Section("questions", "Best and worst questions", "best_and_worst.html.jinja", lists if total else None),
            charts_section(data, styles),
            settings_section([("Settings of the evaluation", dict(data.settings))]),
        ],
    )


def _facts(data: EvaluationData) -> list[Fact]:
    scored = "" if data.n_scored is None else f"{count(data.n_scored)} of {count(data.n)}"
    is_partial = data.n_scored is not None and data.n is not None and data.n_scored != data.n
    return [
        Fact("Name", data.name),
        *dataset_facts(data.dataset),
        Fact("Scored", f"{scored}: some were not scored" if is_partial else scored, is_warning=is_partial),
        Fact("Bundle, sha256", data.bundle, is_hash=True),
        Fact("Answers by", data.answer_mode),
    ]


def _shown_audit(heading: str, audit: OrderAudit) -> ShownAudit:
    return ShownAudit(heading, audit, _in_order(audit.estimates.items()))


def _in_order(estimates: Iterable[tuple[str, Estimate]]) -> list[tuple[str, Estimate]]:
    return sorted(estimates, key=lambda entry: audit_place(entry[0]))
