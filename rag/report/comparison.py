"""The page of a comparison: several pipelines on the same questions, from the laboratory or from a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from indexes.errors import DataError
from rag.report.answers import ANSWERS, sample_list
from rag.report.contrasts import contrasts_section
from rag.report.curves import curves_section
from rag.report.forgetting import forgetting_section
from rag.report.names import Names, name_of
from rag.report.page import (
    MISSING,
    Section,
    counted,
    dataset_facts,
    decimal,
    document,
    duration,
    escape,
    fact_list,
    left_out,
)
from rag.report.plane import base_of, planes_section
from rag.report.questions import question_list, question_lists
from rag.report.reliability import ceilings_of, of_rows, reliability_section
from rag.report.tables import (
    COLUMNS,
    Column,
    data_table,
    interval_note,
    settings_table,
    value_bar,
    value_text,
)
from rag.report.values import finite, finites, flat, mapping, mappings

TITLE = "DRO and SelfAug: what training a RAG pipeline changes"
MOST_ROWS = 60
_CAVEAT = (
    " The models are tiny and the world they are asked about is invented, so these numbers say something about the "
    "method and nothing about any product."
)
_BY_DIFFERENCE = (
    "<p>Best and worst by F1 above the base model's (where it is not there, by F1): that of {}. Of equals the smaller "
    "id comes first.</p>"
)
_AUTO = "DRO with SelfAug, of DRO where that is not there, else of the last row"


def render_comparison(result: Mapping[str, Any]) -> str:
    """The page of a laboratory's result or of a sweep.

    Raises:
        DataError: `result` has no list of rows.
    """
    if not isinstance(result.get("rows"), list | tuple):
        came = f"the keys {sorted(map(str, result))}" if "rows" not in result else type(result["rows"]).__name__
        raise DataError(
            f"A result must hold 'rows', a list with one mapping per pipeline; got {came}. "
            "Pass the whole result of a comparison, not a part of it."
        )
    rows = mappings(result["rows"])
    result = {**result, "rows": [_complete(row) for row in rows[:MOST_ROWS]]}
    result |= {part: _in_order(mapping(result.get(part)), rows) for part in ("curves", "evaluations")}
    names = Names.of_comparison(result)
    shown = left_out(len(result["rows"]), len(rows), "rows")
    sections = [
        Section("results", "Results", _failed(result) + _results(result, names) + shown),
        Section("comparisons", "Comparisons", contrasts_section(result, names)),
        Section("plane", "Learned against forgotten", planes_section(result, names)),
        Section("rounds", "Round by round", curves_section(result, names)),
        Section("reliability", "The selector", _reliability(result, names)),
        Section("forgetting", "Forgetting", forgetting_section(mapping(result.get("forgetting")), names)),
        Section("questions", "Best and worst questions", _questions(result, names)),
        Section("samples", "Sample answers", _samples(result, names)),
        Section("encyclopedia", "Encyclopedia", _encyclopedia(mapping(result.get("encyclopedia")), names)),
        Section("settings", "Settings", _settings(result)),
    ]
    return document(TITLE, _introduction(result), sections, names)


def _complete(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose recall also has the names of the table's columns."""
    intervals = mapping(row.get("intervals"))
    return {**_named(row), **row, **({"intervals": {**_named(intervals), **intervals}} if intervals else {})}


def _named(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {f"recall_at_{k}": entry[f"selector_recall@{k}"] for k in (1, 3, 5) if f"selector_recall@{k}" in entry}


def _in_order(parts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By name, in the order of the rows: files sort their keys."""
    places = {name_of(row): place for place, row in enumerate(rows)}
    return {str(name): parts[name] for name in sorted(parts, key=lambda name: places.get(str(name), len(places)))}


def _reliability(result: Mapping[str, Any], names: Names) -> str:
    evaluations = {str(name): mapping(entry) for name, entry in mapping(result.get("evaluations")).items()}
    ranked = of_rows(mappings(result["rows"]), mapping(result.get("retriever")))
    with_rows = next((mappings(entry.get("records")) for entry in evaluations.values() if entry.get("records")), [])
    base = base_of(mappings(result["rows"]))  # training moves the retrievers of others
    return reliability_section(evaluations or ranked, ceilings_of(with_rows), names, untrained=base)


def _failed(result: Mapping[str, Any]) -> str:
    entries = [
        f"<li><b>{escape(name_of(entry))}</b>: {escape(entry.get('error', 'no reason was written down'))}</li>"
        for entry in mappings(result.get("failed"))
    ]
    return f"<p>These rows failed and are not in the tables:</p><ul>{''.join(entries)}</ul>" if entries else ""


def _samples(result: Mapping[str, Any], names: Names) -> str:
    """Samples whose candidates are known look like the best and the worst questions."""
    samples = mappings(result.get("samples"))
    if any(sample.get("candidates") for sample in samples):
        return question_list(samples, names)
    return ANSWERS + sample_list(samples, names) if samples else ""


def _questions(result: Mapping[str, Any], names: Names) -> str:
    ours = mapping(result.get("settings")).get("ours") or "auto"
    said = _AUTO if ours == "auto" else f"{escape(ours)}, or of the last row where that is not there"
    return question_lists(mappings(result.get("questions")), names, _BY_DIFFERENCE.format(said))


def _introduction(result: Mapping[str, Any]) -> str:
    paper = '<a href="https://arxiv.org/abs/{0}">arXiv\u00a0{0}</a>'.format
    return (
        '<p class="lead">One pipeline that retrieves, selects and reads passages to answer questions, trained in '
        "several ways and scored on the same held-out questions. Direct retrieval-augmented optimization "
        f"(<b>DRO</b>, {paper('2505.03075')}) treats the ordered list of passages that a selector picks as a latent "
        "variable: an E-step draws lists and weighs each by how well it explains the answer, an M-step makes good "
        f"lists and good answers likelier, and the two alternate. <b>SelfAug</b> ({paper('2509.03934')}) holds the "
        "model's distribution over its input tokens where the base model has it, so that less is forgotten. "
        f"{escape(run_sentence(result))}{_CAVEAT if is_lab(result) else ''}</p>"
        f"{fact_list(_facts(result))}"
    )


def is_lab(result: Mapping[str, Any]) -> bool:
    """Whether the questions are about an invented world; a sweep is over somebody's data."""
    return result.get("kind") != "sweep" or _sizes(result).get("domain") is not None


def _sizes(result: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their own names; a sweep keeps those of its parts in parts."""
    settings = mapping(result.get("settings"))
    nested = [mapping(settings.get(part)) for part in ("world", "training", "selector")]
    questions = mapping(result.get("dataset")).get("n")
    merged = {key: value for part in [*nested, settings] for key, value in part.items()}
    return {**({} if questions is None else {"test_questions": questions}), **merged}


def _facts(result: Mapping[str, Any]) -> dict[str, str]:
    return dataset_facts(mapping(result.get("dataset")))


def run_sentence(result: Mapping[str, Any]) -> str:
    """A sentence about the size of the run, made of what the settings tell."""
    settings = {**_sizes(result), "answerable": result.get("answerable_questions")}
    if settings.get("train_questions") is None and settings["answerable"] is not None:
        settings |= {"train_questions": settings["answerable"], "answerable": None}
    wordings = {
        "domain": "domain {}",
        "train_questions": "{} training questions",
        "answerable": "{} of which some candidate answers, and no others were learned from",
        "validation_questions": "{} validation questions",
        "test_questions": "{} test questions",
        "rounds": "{} rounds",
        "num_candidates": "{} candidate passages per question",
        "num_selected": "{} of them read",
        "num_permutations": "{} lists scored per question",
    }
    parts = [counted(wording, settings[key]) for key, wording in wordings.items() if settings.get(key) is not None]
    if result.get("mode"):
        parts.insert(0, f"mode {result['mode']}")
    if finite(result.get("seconds")) is not None:
        parts.append(f"{duration(result['seconds'])} in all{' rows together' * (result.get('kind') == 'sweep')}")
    return f"This run: {', '.join(parts)}." if parts else ""


def _results(result: Mapping[str, Any], names: Names) -> str:
    rows = mappings(result["rows"])
    retriever = mapping(result.get("retriever"))
    columns = [column for column in COLUMNS if finites(row.get(column.key) for row in [*rows, retriever])]
    if not rows:
        return ""
    body = [_result_row(row, columns, rows, names) for row in rows]
    if finites(retriever.values()):
        body.append(_retriever_row(retriever, columns, mapping(result.get("settings")).get("retriever") or "dense"))
    meanings = "".join(f"<div><dt>{c.heading}</dt><dd>{c.meaning}</dd></div>" for c in columns)
    return (
        "<p>In small print and as a thin line: the 95 % bootstrap interval over the questions. <b>Bold</b> marks the "
        "highest value of a column; where intervals overlap, the order may be chance.</p>"
        f"{data_table(['Pipeline', *(c.heading for c in columns)], body, 'Results of every pipeline', 'results')}"
        f'<dl class="meanings">{meanings}</dl>'
    )


def _result_row(
    row: Mapping[str, Any], columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], names: Names
) -> str:
    name = name_of(row)
    cells = "".join(_result_cell(row, column, rows, names.style(name)) for column in columns)
    seed = f" \u00b7 seed {escape(row['seed'])}" if row.get("seed") is not None else ""
    return (
        f'<tr><th scope="row">{names.key(name)}<span>{escape(row.get("label") or name)}'
        f"<small>{escape(name)}{seed}</small></span></th>{cells}</tr>"
    )


def _result_cell(row: Mapping[str, Any], column: Column, rows: Sequence[Mapping[str, Any]], style: str) -> str:
    value = finite(row.get(column.key))
    if value is None:
        return f"<td>{MISSING}</td>"
    highest = max(finites(other.get(column.key) for other in rows))
    number = value_text(column, value)
    if column.share and value == highest and len({*finites(other.get(column.key) for other in rows)}) > 1:
        number = f'<b>{number}<span class="unseen"> (highest)</span></b>'
    interval = mapping(row.get("intervals")).get(column.key)
    scale = 1.0 if column.share else highest
    return f"<td>{number}{interval_note(interval)}{value_bar(value, interval, scale, style)}</td>"


def _retriever_row(retriever: Mapping[str, Any], columns: Sequence[Column], kind: object) -> str:
    cells = "".join(f"<td>{value_text(column, retriever.get(column.key))}</td>" for column in columns)
    return f'<tr class="aside"><th scope="row"><span>The {escape(kind)} retriever alone</span></th>{cells}</tr>'


def _encyclopedia(encyclopedia: Mapping[str, Any], names: Names) -> str:
    score, questions = finite(encyclopedia.get("exact_match")), finite(encyclopedia.get("questions"))
    samples = sample_list(mappings(encyclopedia.get("samples")), names)
    if score is None and not samples:
        return ""
    number = f" Exact match <b>{decimal(score)}</b>" if score is not None else ""
    count = f" on {questions:,.0f} questions." if score is not None and questions is not None else ""
    reader = f" Read by: {escape(names.label(str(encyclopedia['name'])))}." if encyclopedia.get("name") else ""
    return (
        "<p>Questions about a small encyclopedia of real facts, which no pipeline was trained on."
        f"{reader}{number}{count}</p>{samples}"
    )


def _settings(result: Mapping[str, Any]) -> str:
    mode = {"mode": result["mode"]} if result.get("mode") else {}
    return settings_table(flat({**mode, **mapping(result.get("settings"))}), "Settings of the run")
