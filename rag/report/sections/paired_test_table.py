"""Pairs of pipelines on the same questions: differences, intervals and p-values."""

from collections.abc import Mapping, Sequence
from typing import Any

from rag.report.names import Names, name_of
from rag.report.page import decimal, escape, left_out
from rag.report.tables import data_table, difference_bar, interval_note, metric_heading, p_text, table_row
from rag.report.values import finite, finites, mappings

MOST = 400
_MANY = 14  # more are shown by metric, each in a table of its own that opens
_MEANING = (
    "<p>Differences on the same questions (for general ability: tasks), with 95 % bootstrap intervals. p is that "
    "of a two-sided paired bootstrap test: how probable a difference at least this large is if both pipelines are "
    "equally good; in small print that of a test which flips signs, for exact match McNemar's. "
)
_PLAIN = "<b>Bold</b>: below 0.05, without a correction for the number of comparisons.</p>"
_HOLM = (
    "Holm's adjusted p counts all comparisons of the metric: among them, one false finding or more has at most that "
    "probability. <b>Bold</b>: adjusted p below 0.05.</p>"
)


def contrasts_section(result: Mapping[str, Any], names: Names) -> str:
    """All comparisons in one table, or, where they are many, one table for each metric."""
    every = mappings(result.get("comparisons"))
    if not every:
        return ""
    entries = every[:MOST]
    adjusted = any("p_adjusted" in entry for entry in entries)
    by_metric: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        by_metric.setdefault(str(entry.get("metric", "")), []).append(entry)
    if len(entries) <= _MANY or len(by_metric) == 1:
        tables = _table(entries, names, "Comparisons of pipelines", adjusted=adjusted, named=True)
    else:
        tables = "".join(
            f"<details{' open' if place == 0 else ''}><summary>{_heading(metric)}: {len(those)} comparisons</summary>"
            f"{_table(those, names, metric_heading(metric), adjusted=adjusted, named=False)}</details>"
            for place, (metric, those) in enumerate(by_metric.items())
        )
    return _MEANING + (_HOLM if adjusted else _PLAIN) + left_out(len(entries), len(every), "comparisons") + tables


def _heading(metric: str) -> str:
    return escape(metric_heading(metric))


def _table(entries: Sequence[Mapping[str, Any]], names: Names, label: str, *, adjusted: bool, named: bool) -> str:
    scale = max([abs(number) for number in finites(entry.get("difference") for entry in entries)], default=0.0)
    body = [_row(entry, scale, names, adjusted=adjusted, named=named) for entry in entries]
    metric, holm = ["Metric"] if named else [], ["p, Holm"] if adjusted else []
    head = ["Pipeline", "against", *metric, "Difference", "Relative", "p", *holm, "Questions"]
    return data_table(head, body, label, "comparisons")


def _row(entry: Mapping[str, Any], scale: float, names: Names, *, adjusted: bool, named: bool) -> str:
    name, against = name_of(entry), str(entry.get("against", ""))
    bar = difference_bar(finite(entry.get("difference")), scale, names.style(name))
    cells = [
        escape(names.label(against)),
        *([escape(metric_heading(entry.get("metric", "")))] if named else []),
        f"{decimal(entry.get('difference'), '+.3f')}{interval_note(entry.get('interval'), '+.3f')}{bar}",
        decimal(entry.get("relative"), "+.0%"),
        _p(entry, "", decisive=not adjusted),
        *([_p(entry, "_adjusted", decisive=True)] if adjusted else []),
        decimal(entry.get("questions"), ",.0f"),
    ]
    return table_row(f"{names.key(name)}<span>{escape(names.label(name))}</span>", cells)


def _p(entry: Mapping[str, Any], kind: str, *, decisive: bool) -> str:
    """The p of the bootstrap, in bold where it decides, and below it that of the sign-flip test."""
    p, exact = finite(entry.get(f"p{kind}")), entry.get(f"p_exact{kind}")
    text = f"<b>{p_text(p)}</b>" if decisive and p is not None and p < 0.05 else p_text(p)
    return text + (f"<small>{p_text(exact)}</small>" if finite(exact) is not None else "")
