"""Is the selector's order better than the retriever's, and how much better could it be?

Recall@k is the share of a question's gold passages among the first k. Two ceilings belong to it: with all gold first,
min(k, gold) / gold; and with the best order of these candidates, min(k, gold among the candidates) / gold. What
lies between a line and the second ceiling the selector missed; what lies between the ceilings the retriever missed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from indexes.corpora.chunk_ids import gold_document
from rag.report.charts import MANY, Chart, Point, Series, chart_figure
from rag.report.curves import interval_switch
from rag.report.names import Names, name_of
from rag.report.page import MISSING, decimal, escape
from rag.report.tables import data_table, interval_note, metric_heading, table_row
from rag.report.values import ends, finite, mapping, mappings, texts

CUTOFFS = (1, 3, 5, 20)
_Measured = Mapping[int, tuple[float, tuple[float, float] | None]]
_CEILINGS = {"gold": "all gold first", "candidates": "best order"}


def reliability_section(
    evaluations: Mapping[str, Mapping[str, Any]],
    ceilings: Mapping[str, _Measured],
    names: Names,
    *,
    table: bool = True,
    untrained: str | None = None,
) -> str:
    """The chart of recall@k and the table of ranking metrics.

    Args:
        evaluations: Row name to `metrics` and `intervals`.
        ceilings: Of `gold` and `candidates`, as `ceilings_of` finds them; may be empty.
        names: The looks of the rows.
        table: Whether the table is wanted.
        untrained: The row that tells what the retriever finds of itself; without it, the first with most cut-offs.
    """
    selectors = {name: _measured(entry, "selector_recall@") for name, entry in evaluations.items()}
    alone = _of_the_retriever(evaluations, untrained)
    retriever = _measured(alone, "retriever_recall@")
    if not any(selectors.values()) and not retriever:
        return ""
    # Of a pipeline that retrieves fewer, as far as it goes.
    same = [name for name, found in selectors.items() if found and _values(found).items() <= _values(retriever).items()]
    moved = {name: found for name, found in selectors.items() if name not in same or len(selectors) == 1}
    lines = {f"ceiling ceiling-{key}": (text, ceilings.get(key, {})) for key, text in _CEILINGS.items()}
    cutoffs = sorted({k for found in [retriever, *moved.values()] for k in found})
    series = [
        *(_series(text, style, "", found, cutoffs) for style, (text, found) in lines.items()),
        *(_series(name, names.style(name), names.shape(name), found, cutoffs) for name, found in moved.items()),
        _series("retriever", "reference", "", retriever, cutoffs),
    ]
    chart = Chart(
        "reliability",
        "Recall@k",
        _caption(ceilings),
        "k",
        "recall@k",
        series,
        x_texts={place: str(k) for place, k in enumerate(cutoffs)},
    )
    note = f"<p>In the retriever's own order: {escape(', '.join(same))}.</p>" if same and len(selectors) > 1 else ""
    switch = f'<fieldset class="switches"><legend>Recall@k</legend>{interval_switch(len(moved))}</fieldset>'
    figure = f'<div class="charts{" many" if len(moved) > MANY - 3 else ""}">{chart_figure(chart)}</div>'
    return (
        "<p>The selector's ranking is what was read, in its order, then the other candidates in the retriever's.</p>"
        f"{note}{switch}{figure}{_table(evaluations, alone, names) if table else ''}"
    )


def _of_the_retriever(evaluations: Mapping[str, Mapping[str, Any]], untrained: str | None) -> Mapping[str, Any]:
    """Whose numbers stand for the retriever alone."""
    if untrained is not None and untrained in evaluations:
        return evaluations[untrained]
    # Pipelines that read documents alone may retrieve fewer; the longest list knows most cut-offs.
    return max(evaluations.values(), key=lambda entry: len(_measured(entry, "retriever_recall@")), default={})


def _caption(ceilings: Mapping[str, _Measured]) -> str:
    text = "Share of the gold passages among the first k. Grey dashes: the retriever alone."
    if ceilings.get("gold"):
        text += " Dots: all gold passages first."
    if ceilings.get("candidates"):
        text += " Fine dots: the best order of these candidates."
    return text


def ceilings_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, _Measured]:
    """Both ceilings with bootstrap intervals, from an evaluation's rows that hold gold ids and candidates."""
    pairs = [(set(texts(row.get("gold_ids"))), mappings(row.get("candidates"))) for row in rows]
    counts = [
        (len(gold), len({gold_document(str(c.get("id")), gold) for c in found} - {None}), len(found))
        for gold, found in pairs
        if gold
    ]
    candidates = max((n for _, _, n in counts), default=0)
    cutoffs = [k for k in CUTOFFS if k <= max(candidates, 1)]
    if not counts:
        return {}
    return {
        "gold": {k: _mean([min(k, gold) / gold for gold, _, _ in counts]) for k in cutoffs},
        "candidates": {k: _mean([min(k, found) / gold for gold, found, _ in counts]) for k in cutoffs},
    }


def _mean(values: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    from rag.evaluation.significance import bootstrap_interval  # it needs SciPy, and a page without rows does not

    return sum(values) / len(values), bootstrap_interval(values)


def of_rows(rows: Sequence[Mapping[str, Any]], retriever: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rows of a comparison in the form of evaluations: `recall_at_3` is `selector_recall@3`."""
    shared = _renamed(retriever, "retriever")
    return {
        name_of(row): {
            "metrics": {**shared, **_renamed(row, "selector")},
            "intervals": _renamed(mapping(row.get("intervals")), "selector"),
        }
        for row in rows
        if _renamed(row, "selector")
    }


def _renamed(entry: Mapping[str, Any], stage: str) -> dict[str, Any]:
    return {
        f"{stage}_recall@{key.rpartition('_')[2]}": value
        for key, value in entry.items()
        if str(key).startswith("recall_at_")
    }


def _measured(evaluation: Mapping[str, Any], prefix: str) -> _Measured:
    metrics, intervals = mapping(evaluation.get("metrics")), mapping(evaluation.get("intervals"))
    found = {}
    for name in metrics:
        k = str(name).removeprefix(prefix)
        value = finite(metrics[name])
        if str(name).startswith(prefix) and k.isdecimal() and value is not None:
            found[int(k)] = (value, ends(intervals.get(name)))
    return found


def _values(found: _Measured) -> dict[int, float]:
    return {k: round(value, 9) for k, (value, _) in found.items()}


def _series(label: str, style: str, shape: str, found: _Measured, cutoffs: Sequence[int]) -> Series:
    points = [Point(place, place, *found[k]) for place, k in enumerate(cutoffs) if k in found]
    return Series(label, style, shape, points)


# The table.


def _table(evaluations: Mapping[str, Mapping[str, Any]], alone: Mapping[str, Any], names: Names) -> str:
    """Every ranking metric of every row, and the retriever's below."""
    known = [str(metric) for entry in evaluations.values() for metric in mapping(entry.get("metrics"))]
    metrics = [m.removeprefix("selector_") for m in dict.fromkeys(known) if m.startswith("selector_")]
    metrics.sort(key=_rank)
    body = [
        table_row(f"{names.key(name)}<span>{escape(name)}</span>", _cells(entry, "selector", metrics))
        for name, entry in evaluations.items()
    ]
    if any(str(metric).startswith("retriever_") for metric in mapping(alone.get("metrics"))):
        body.append(table_row("<span>The retriever alone</span>", _cells(alone, "retriever", metrics), "aside"))
    table = data_table(["Selector", *map(_heading, metrics)], body, "Ranking metrics", "results ranking")
    return f"<details open><summary>Ranking metrics</summary>{table}</details>" if metrics else ""


def _heading(metric: str) -> str:
    return escape(metric_heading(metric))


def _rank(metric: str) -> tuple[int, int, str]:
    kind, _, k = metric.partition("@")
    kinds = ["recall", "ndcg", "mrr", "answer_recall"]
    return (kinds.index(kind) if kind in kinds else len(kinds), int(k) if k.isdecimal() else 0, metric)


def _cells(entry: Mapping[str, Any], stage: str, metrics: Sequence[str]) -> list[str]:
    values, intervals = mapping(entry.get("metrics")), mapping(entry.get("intervals"))
    names = [f"{stage}_{metric}" for metric in metrics]
    return [
        f"{decimal(values[name])}{interval_note(intervals.get(name))}" if name in values else MISSING for name in names
    ]
