"""The page of a training run: its rounds, and what it was set to."""

from collections.abc import Sequence
from dataclasses import dataclass

from rag.report.formatting import count
from rag.report.metric_labels import round_columns
from rag.report.page import Fact, Page, Section, settings_section
from rag.report.report_data import Interval, RoundRecord, RunData
from rag.report.sections.figure_sections import charts_section, rounds_section
from rag.report.sections.forgetting_table import forgetting_section
from rag.report.series_style import SeriesStyles

MOST_ROUNDS = 200
MOST_WARNINGS = 3


@dataclass(frozen=True)
class RoundTable:
    """The numbers of every round.

    Attributes:
        columns: Names of the numbers that some round has.
        records: Those that are shown.
        total: How many there are.
        kept_round: The round whose checkpoint was kept, if it is known.
    """

    columns: Sequence[str]
    records: Sequence[RoundRecord]
    total: int
    kept_round: float | None

    def interval(self, record: RoundRecord, name: str) -> Interval | None:
        """The interval of a number."""
        return record.intervals.get(name.removeprefix("eval_"))


def run_page(data: RunData) -> Page:
    """The page of a run folder."""
    styles = SeriesStyles.of({data.name: data.name}, data.forgetting.models, first_look=2)
    columns = [name for name in round_columns() if any(name in record.values for record in data.records)]
    table = RoundTable(columns, data.records[:MOST_ROUNDS], len(data.records), data.kept_round)
    return Page(
        title=f"Training run: {data.name}",
        introduction="run_introduction.html.jinja",
        data=data,
        styles=styles,
        facts=_facts(data),
        sections=[
            rounds_section(data, styles),
            Section("table", "Numbers", "round_table.html.jinja", table if columns else None),
            forgetting_section(data.forgetting),
            charts_section(data, styles),
            settings_section([("Settings of the run", dict(data.settings))]),
        ],
    )


def _facts(data: RunData) -> list[Fact]:
    last = data.records[-1].round if data.records else None
    wanted = "" if data.rounds is None else f" of {count(data.rounds)}"
    best = {
        "Best round by exact match": _best(data.records, "eval_exact_match"),
        "Best round by F1": _best(data.records, "eval_f1"),
    }
    return [
        Fact("Rounds", "" if last is None else count(last) + wanted),
        Fact("Round kept", "" if data.kept_round is None else count(data.kept_round)),
        *(Fact(term, text) for term, text in best.items() if data.kept_round is None),
        *_warnings(data.records),
        Fact("Base", data.base),
        *(Fact(f"{what}, sha256", digest, is_hash=True) for what, digest in data.digests.items()),
    ]


def _warnings(records: Sequence[RoundRecord]) -> list[Fact]:
    """Those of the last rounds that have some."""
    found = [(record.round, text) for record in records for text in record.warnings if record.round is not None]
    return [Fact(f"Warning in round {count(round)}", text, is_warning=True) for round, text in found[-MOST_WARNINGS:]]


def _best(records: Sequence[RoundRecord], metric: str) -> str:
    """The first round with the highest value."""
    known = [(r.values[metric], -r.round) for r in records if metric in r.values and r.round is not None]
    return count(-max(known)[1]) if known else ""
