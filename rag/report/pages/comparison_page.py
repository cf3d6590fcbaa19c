"""The page of a comparison: several trials on the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rag.report.drawing.bars import Bar, value_bar
from rag.report.formatting import counted, duration
from rag.report.metric_labels import MetricLabel, trial_columns
from rag.report.page import Page, Section, dataset_facts, settings_section
from rag.report.report_data import ComparisonData, Trial
from rag.report.sections.figure_sections import charts_section, recall_section, rounds_section, tradeoff_section
from rag.report.sections.forgetting_table import forgetting_section
from rag.report.sections.paired_test_table import paired_tests_section
from rag.report.sections.question_lists import QuestionView, question_lists
from rag.report.series_style import SeriesStyles

TITLE = "DRO and SelfAug: what training a RAG pipeline changes"
MOST_TRIALS = 60
_SIZES = {
    "domain": "domain {}",
    "train_questions": "{} training questions",
    "answerable_questions": "{} of which some candidate answers, and no others were learned from",
    "eval_questions": "{} evaluation questions",
    "test_questions": "{} test questions",
    "rounds": "{} rounds",
    "num_candidates": "{} candidate passages per question",
    "num_selected": "{} of them read",
    "num_permutations": "{} permutations scored per question",
}


@dataclass(frozen=True)
class ResultsTable:
    """Every trial with every column that some trial has.

    Attributes:
        data: The comparison with the trials that are shown.
        total: How many trials there are.
    """

    data: ComparisonData
    total: int

    @property
    def columns(self) -> list[MetricLabel]:
        """Those with a number."""
        values = [trial.metrics for trial in self.data.trials]
        known = {*self.data.retriever, *(name for found in values for name in found)}
        return [column for column in trial_columns() if known & {column.name, column.of_retriever}]

    @property
    def has_retriever(self) -> bool:
        """Whether the table has a line for the retriever."""
        return bool(self.data.retriever)

    def is_highest(self, trial: Trial, column: MetricLabel) -> bool:
        """Whether the trial has the highest of several values."""
        values = self._values(column)
        return column.is_share and len(set(values)) > 1 and trial.value(column.name) == max(values)

    def bar(self, trial: Trial, column: MetricLabel) -> Bar:
        """The value with its interval: shares from 0 to 1, other numbers up to the highest one."""
        estimate = trial.metrics[column.name]
        scale = 1.0 if column.is_share else max(self._values(column))
        return value_bar(estimate.value or 0.0, estimate.interval, scale)

    def _values(self, column: MetricLabel) -> list[float]:
        found = (trial.value(column.name) for trial in self.data.trials)
        return [value for value in found if value is not None]


def comparison_page(data: ComparisonData) -> Page:
    """The page of a demo experiment or of a sweep."""
    total = len(data.trials)
    data = replace(data, trials=data.trials[:MOST_TRIALS])
    styles = SeriesStyles.of_comparison(data)
    results = ResultsTable(data, total) if data.trials or data.failed else None
    reading = data.encyclopedia
    return Page(
        title=TITLE,
        introduction="comparison_introduction.html.jinja",
        data=data,
        styles=styles,
        facts=dataset_facts(data.dataset),
        sentence=run_sentence(data),
        sections=[
            Section("results", "Results", "results.html.jinja", results),
            paired_tests_section(data.paired_tests),
            tradeoff_section(data, styles),
            rounds_section(data, styles),
            recall_section(data, styles),
            forgetting_section(data.forgetting),
            Section("questions", "Best and worst questions", "questions.html.jinja", question_lists(data.questions)),
            Section("samples", "Sample answers", "samples.html.jinja", [QuestionView(q) for q in data.samples]),
            Section(
                "encyclopedia",
                "Encyclopedia",
                "encyclopedia.html.jinja",
                [QuestionView(question) for question in reading.samples] or reading.exact_match is not None,
            ),
            charts_section(data, styles),
            settings_section([("Settings of the run", dict(data.settings))]),
        ],
    )


def run_sentence(data: ComparisonData) -> str:
    """A sentence about the size of the run, made of what its settings tell."""
    parts: Sequence[str] = [
        *([f"mode {data.mode}"] if data.mode else []),
        *(counted(wording, data.sizes[name]) for name, wording in _SIZES.items() if name in data.sizes),
        *([_time(data)] if data.seconds is not None else []),
    ]
    return f"This run: {', '.join(parts)}." if parts else ""


def _time(data: ComparisonData) -> str:
    return f"{duration(data.seconds or 0.0)} in all{'' if data.mode else ' trials together'}"
