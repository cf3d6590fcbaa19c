"""The page of one evaluation: its numbers, how they depend on the order of passages, what its citations carry."""

from collections.abc import Mapping, Sequence
from typing import Any

from rag.report.forgetting import forgetting_section
from rag.report.names import Names
from rag.report.page import (
    MISSING,
    Section,
    dataset_facts,
    decimal,
    document,
    escape,
    fact_list,
    left_out,
    short_hash,
)
from rag.report.questions import best_and_worst, question_lists
from rag.report.reliability import ceilings_of, reliability_section
from rag.report.tables import data_table, interval_note, metric_heading, settings_table, table_row, value_bar
from rag.report.values import finite, flat, mapping, mappings

_ORDER = (
    "<p>By F1, then by log p of the answer; of equals the smaller id comes first. No question is in both lists.</p>"
)
_MEANINGS = {
    "exact_match": "equals a golden answer after normalisation",
    "f1": "overlap with the golden answer in words",
    "answer_recall": "a golden answer stands in the first k passages",
    "recall": "share of the gold passages among the first k",
    "ndcg": "normalised discounted cumulative gain of the gold passages",
    "mrr": "one over the rank of the first gold passage",
}
_AUDITS = {
    "candidates": "The retriever's candidates shuffled before the selector reads them",
    "passages": "The passages that were selected shuffled before the generator reads them",
}
_WORDS = {
    "changed": "questions whose answer some shuffle changes",
    "changed_per_shuffle": "answers that one shuffle changes",
    "agreement": "answers that agree with the most frequent one",
    "selected_overlap": "overlap of what was selected (Jaccard's index)",
    "supported_citations": "citations that are supported, mean over questions",
    "supported_answers": "answers with a supported citation",
    "drop_cited": "fall of log p without a cited passage, nats",
    "drop_not_cited": "fall of log p without a passage that was read and not cited, nats",
    "changed_cited": "answers that change without a cited passage",
    "changed_not_cited": "answers that change without a passage that was read and not cited",
    "exact_match": "exact match, mean over shuffles",
    "f1": "F1, mean over shuffles",
}


def render_evaluation(evaluation: Mapping[str, Any]) -> str:
    """The page of an evaluation file."""
    name = str(evaluation.get("name") or "evaluation")
    label = str(evaluation.get("label") or name)
    names = Names.of([{"name": name, "label": label}], _models(evaluation), first_look=2)
    rows = mappings(evaluation.get("records"))
    questions = question_lists(best_and_worst(rows, name), names, _ORDER)
    shown = left_out(min(20, len(rows)), len(rows), "questions") if questions else ""
    sections = [
        Section("metrics", "Metrics", _metrics(evaluation, names.style(name))),
        Section("reliability", "The selector", _reliability(evaluation, name, names)),
        Section("order", "Order bias", _order_bias(mapping(evaluation.get("order_bias")))),
        Section("support", "Support of citations", _support(mapping(evaluation.get("attribution")))),
        Section("forgetting", "Forgetting", forgetting_section(mapping(evaluation.get("forgetting")), names)),
        Section("questions", "Best and worst questions", questions + shown),
        Section("settings", "Settings", _settings(evaluation)),
    ]
    return document(f"Evaluation: {escape(label)}", _introduction(evaluation), sections, names)


def _models(evaluation: Mapping[str, Any]) -> list[str]:
    return [str(m.get("name", "")) for m in mappings(mapping(evaluation.get("forgetting")).get("models"))]


def _introduction(evaluation: Mapping[str, Any]) -> str:
    pipeline = mapping(evaluation.get("pipeline"))
    n, scored = finite(evaluation.get("n")), finite(evaluation.get("n_scored"))
    said = f"{decimal(scored, ',.0f')} of {decimal(n, ',.0f')}" if scored is not None else ""
    if scored is not None and n is not None and scored != n:
        said = f'<b class="wrong">{said}: some were not scored</b>'
    answering = pipeline.get("answering")
    facts = {
        "Name": escape(evaluation.get("name", "")),
        **dataset_facts(mapping(evaluation.get("dataset"))),
        "Scored": said,
        "Bundle, sha256": short_hash(pipeline["bundle_sha256"]) if pipeline.get("bundle_sha256") else "",
        "Answers by": escape(answering) if answering else "",
    }
    return (
        '<p class="lead">One pipeline, greedy decoding, every question counted; intervals are 95 % bootstrap intervals '
        f"over the questions.</p>{fact_list(facts)}"
    )


# The metrics.


def _metrics(evaluation: Mapping[str, Any], style: str) -> str:
    """Metrics of the answers, and below them those of the passages: the selector's beside the retriever's."""
    every = [str(name) for name, value in mapping(evaluation.get("metrics")).items() if finite(value) is not None]
    stages = {metric.removeprefix(f"{stage}_") for stage in _STAGES for metric in every if metric.startswith(stage)}
    answers = sorted((m for m in every if not m.startswith(_STAGES)), key=_place)
    ranked = sorted(stages, key=_place)
    body = [_row(metric, [metric], evaluation, style) for metric in answers]
    pairs = [_row(metric, [f"{stage}_{metric}" for stage in _STAGES], evaluation, style) for metric in ranked]
    return (
        data_table(["Answers", "Mean", "Questions"], body, "Metrics of the answers", "results narrow") if body else ""
    ) + (
        data_table(
            ["Passages", "Selector", "Retriever", "Questions"], pairs, "Metrics of the passages", "results narrow"
        )
        if pairs
        else ""
    )


_STAGES = ("selector", "retriever")


def _row(heading: str, metrics: Sequence[str], evaluation: Mapping[str, Any], style: str) -> str:
    counts = mapping(evaluation.get("counts"))
    count = next((counts[metric] for metric in metrics if metric in counts), None)
    said = f"<span>{escape(metric_heading(heading))}<small>{_meaning(heading)}</small></span>"
    return table_row(said, [*(_cell(metric, evaluation, style) for metric in metrics), decimal(count, ",.0f")])


def _cell(metric: str, evaluation: Mapping[str, Any], style: str) -> str:
    value = finite(mapping(evaluation.get("metrics")).get(metric))
    interval = mapping(evaluation.get("intervals")).get(metric)
    if value is None:
        return MISSING
    return f"{decimal(value)}{interval_note(interval)}{value_bar(value, interval, 1.0, style)}"


def _reliability(evaluation: Mapping[str, Any], name: str, names: Names) -> str:
    ceilings = ceilings_of(mappings(evaluation.get("records")))
    return reliability_section({name: evaluation}, ceilings, names, table=False)


def _place(metric: str) -> tuple[str, int]:
    """By name, and cut-offs by size."""
    kind, _, k = metric.partition("@")
    return kind, int(k) if k.isdecimal() else 0


def _meaning(metric: str) -> str:
    kind = metric.partition("@")[0]
    known = next((key for key in _MEANINGS if kind == key or kind.startswith(f"{key}_")), None)
    return _MEANINGS[known] if known else ""


# The audits: estimates are `value`, `interval` and `n`.


def _order_bias(audit: Mapping[str, Any]) -> str:
    parts = [_audit(key, heading, mapping(audit.get(key))) for key, heading in _AUDITS.items()]
    if not any(parts):
        return ""
    shuffles = finite(audit.get("shuffles"))
    count = f" Each question was shuffled {shuffles:,.0f} times." if shuffles is not None else ""
    return (
        "<p>An order carries no evidence: a pipeline without order bias gives the same answer whatever the order."
        f"{count}</p>{''.join(parts)}"
    )


def _audit(key: str, heading: str, audit: Mapping[str, Any]) -> str:
    body = _estimates(audit)
    if not body:
        return ""
    table = data_table(["Measured", "Mean", "Unshuffled", "Lowest", "Highest", "Questions"], body, heading, "results")
    return f"<h3>{heading}</h3>{table}{_positions(mapping(audit.get('exact_match_by_gold_position')))}"


def _estimates(audit: Mapping[str, Any]) -> list[str]:
    return [
        table_row(
            f"<span>{escape(_WORDS.get(str(key), metric_heading(key)))}</span>",
            [
                f"{decimal(entry.get('value'))}{interval_note(entry.get('interval'))}",
                *(decimal(entry.get(extreme)) for extreme in ("unshuffled", "lowest", "highest")),
                decimal(entry.get("n"), ",.0f"),
            ],
        )
        for key, entry in _in_order(audit)
        if isinstance(entry, Mapping) and "value" in entry
    ]


def _in_order(audit: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """As the words for them are ordered; files sort their keys."""
    places = list(_WORDS)
    return sorted(audit.items(), key=lambda entry: places.index(entry[0]) if entry[0] in places else len(places))


def _positions(places: Mapping[str, Any]) -> str:
    """Exact match by where the first gold passage stood: "lost in the middle" would be a dip."""
    cells = [
        f"{decimal(mapping(e).get('value'))}{interval_note(mapping(e).get('interval'))}"
        f"<small>{decimal(mapping(e).get('n'), ',.0f')} questions</small>"
        for e in places.values()
    ]
    head = ["Place of the first gold passage", *map(escape, places)]
    return (
        data_table(head, [table_row("Exact match", cells)], "Exact match by place of gold", "results") if cells else ""
    )


def _support(support: Mapping[str, Any]) -> str:
    rows = [
        table_row(
            f"<span>{escape(_WORDS.get(str(key), metric_heading(key)))}</span>",
            [f"{decimal(e.get('value'))}{interval_note(e.get('interval'))}", decimal(e.get("n"), ",.0f")],
        )
        for key, e in _in_order(support)
        if isinstance(e, Mapping) and "value" in e
    ]
    if not rows:
        return ""
    threshold, citations = finite(support.get("threshold")), finite(support.get("citations"))
    rule = f" A citation is supported where it falls by more than {threshold:g} nats." if threshold is not None else ""
    count = (
        f" {citations:,.0f} citations, {decimal(support.get('supported'), ',.0f')} of them supported."
        if citations is not None
        else ""
    )
    table = data_table(["Measured", "Mean", "Questions"], rows, "Support of citations", "results narrow")
    return (
        "<p>Each passage that was read is left out once: by how much does log p of the answer fall, and does the "
        f"answer change?{rule}{count}</p>{table}"
    )


def _settings(evaluation: Mapping[str, Any]) -> str:
    parts = {key: mapping(evaluation.get(key)) for key in ("dataset", "pipeline", "settings")}
    return settings_table(flat(parts), "Settings of the evaluation")
