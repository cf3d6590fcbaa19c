"""The result of a comparison as one HTML page: tables, charts per round, sample answers.

The page is a single file without scripts: charts are SVG, series are shown and hidden by style rules, and its
content policy forbids every load. It can be mailed, archived, or opened from a disk without a network, and text
from a data set cannot run in it.
"""

import html
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from indexes.errors import DataError

_MISSING = "\u2013"

# Eight colours per theme, spread so that any two stay apart for normal sight and for the three kinds of dichromacy
# (at least 12 in OKLab, times 100), and each has a contrast of 3:1 on its background. Shapes say the same again.
_LIGHT = ("#a18d8f", "#e25415", "#157cff", "#b247b4", "#165f65", "#9e1e06", "#271a86", "#49161d")
_DARK = ("#a4a08c", "#ffb031", "#29ebf1", "#a250d9", "#39797e", "#cc420d", "#50aeff", "#faff24")
_SHAPES = (
    "M-4 0A4 4 0 0 1 4 0A4 4 0 0 1-4 0Z",  # disc
    "M-3.5-3.5H3.5V3.5H-3.5Z",  # square
    "M0-4.6L4.5 3.4H-4.5Z",  # triangle
    "M0-5L5 0L0 5L-5 0Z",  # diamond
    "M0 4.6L4.5-3.4H-4.5Z",  # triangle, tip down
    "M-1.6-4.5H1.6V-1.6H4.5V1.6H1.6V4.5H-1.6V1.6H-4.5V-1.6H-1.6Z",  # plus
    "M0-5L1.5-1.6L5-1.5L2.3.8L3.1 4.2L0 2.4L-3.1 4.2L-2.3.8L-5-1.5L-1.5-1.6Z",  # star
    "M-4.5-4H4.5L-4.5 4H4.5Z",  # hourglass
)


@dataclass(frozen=True)
class _Column:
    key: str
    heading: str
    meaning: str
    share: bool = True  # a share lies in [0, 1], and more is better


_COLUMNS = (
    _Column("exact_match", "Exact match", "Share of answers that equal a golden answer after normalisation."),
    _Column("f1", "F1", "Overlap of answer and golden answer in words: the harmonic mean of precision and recall."),
    _Column(
        "recall_at_1",
        "Recall@1",
        "Share of the gold passages that come first: at most 1/2 if there are two.",
    ),
    _Column("recall_at_3", "Recall@3", "The same among the first three: what is read, then the other candidates."),
    _Column("recall_at_5", "Recall@5", "The same among the first five."),
    _Column(
        "general",
        "General ability",
        "Share of tasks solved that need no retrieval and that the base model was made for.",
    ),
    _Column(
        "kl_drift", "KL drift", "Mean KL(base || tuned) per input token of those tasks, in nats; 0 is the base.", False
    ),
    _Column("seconds", "Seconds", "Time for training and evaluation of this row.", False),
)
_HEADINGS = {column.key: column.heading for column in _COLUMNS}


def write_report(result: Mapping[str, Any], file: str | Path) -> Path:
    """Write the page of a comparison as one self-contained HTML file.

    Args:
        result: What was measured. `rows` is needed: one mapping per pipeline with `name`, `label` and the metrics.
            `mode`, `settings`, `retriever`, `comparisons`, `curves`, `samples`, `encyclopedia` and `seconds` are
            shown where they are there. Values that are no finite numbers are left out.
        file: Where to write; missing folders are made, an older file is replaced.

    Returns:
        The path of the file.

    Raises:
        DataError: `result` has no list of rows.
    """
    page = render_report(result)
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lone surrogate, which JSON can hold and UTF-8 cannot, must not cost the whole report.
    path.write_bytes(page.encode("utf-8", "replace"))
    return path


def render_report(result: Mapping[str, Any]) -> str:
    """The page of a comparison as text; `write_report` says what it shows.

    Args:
        result: As for `write_report`.

    Returns:
        An HTML document.

    Raises:
        DataError: `result` has no list of rows.
    """
    if not isinstance(result.get("rows"), list | tuple):
        came = f"the keys {sorted(map(str, result))}" if "rows" not in result else type(result["rows"]).__name__
        raise DataError(
            f"A result must hold 'rows', a list with one mapping per pipeline; got {came}. "
            "Pass the whole result of a comparison, not a part of it."
        )
    names = _Names.of(result)
    samples = _samples(_mappings(result.get("samples")), names)
    sections = [
        ("results", "Results", _results(result, names)),
        ("comparisons", "Comparisons", _comparisons(result, names)),
        ("rounds", "Round by round", _charts(result, names)),
        ("samples", "Sample answers", _ANSWERS + samples if samples else ""),
        ("encyclopedia", "Encyclopedia", _encyclopedia(_mapping(result.get("encyclopedia")), names)),
        ("settings", "Settings", _settings(result)),
    ]
    return _document(_introduction(result), [section for section in sections if section[2]], names)


# Reading what came: any part may be missing, and any number may be NaN.


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sequence(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [entry for entry in _sequence(value) if isinstance(entry, Mapping)]


def _finite(value: object) -> float | None:
    """The value as a float if it is a finite number (NumPy's included), else None."""
    if not isinstance(value, Real):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _finites(values: Iterable[object]) -> list[float]:
    return [number for number in map(_finite, values) if number is not None]


@dataclass(frozen=True)
class _Names:
    """The place of every row name, which decides its colour and shape all over the page, and its label."""

    places: Mapping[str, int]
    labels: Mapping[str, str]

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> "_Names":
        rows = _mappings(result["rows"])
        samples = [*_mappings(result.get("samples")), *_mappings(_mapping(result.get("encyclopedia")).get("samples"))]
        found = [
            *(_name(row) for row in rows),
            *map(str, _mapping(result.get("curves"))),
            *(_name(entry) for entry in _mappings(result.get("comparisons"))),
            *(_answered_by(answer) for sample in samples for answer in _mappings(sample.get("answers"))),
        ]
        places = {name: place for place, name in enumerate(dict.fromkeys(found))}
        return cls(places, {_name(row): str(row.get("label") or _name(row)) for row in reversed(rows)})

    def label(self, name: str) -> str:
        return self.labels.get(name, name)

    def style(self, name: str) -> str:
        return f"s{self.places[name]}"

    def shape(self, name: str) -> str:
        place = self.places[name]
        return _SHAPES[(place + place // len(_SHAPES)) % len(_SHAPES)]  # the ninth has the first's colour only

    def key(self, name: str) -> str:
        """A small mark in the colour and the shape of the row."""
        style, shape = self.style(name), self.shape(name)
        return f'<svg class="key {style}" viewBox="-6 -6 12 12" aria-hidden="true"><path d="{shape}"/></svg>'


def _name(row: Mapping[str, Any]) -> str:
    return str(row.get("name", ""))


def _answered_by(answer: Mapping[str, Any]) -> str:
    return str(answer.get("row", ""))


# Text and numbers. Everything that comes from data goes through `_escape` before it is put into the page.

# Control characters are no characters of HTML, and would hide what stands beside them.
_CONTROLS = {code: "\ufffd" for code in range(32) if code not in (9, 10, 13)}


def _escape(value: object) -> str:
    return html.escape(str(value).translate(_CONTROLS))


def _minus(text: str) -> str:
    """A true minus sign: it is as wide as a plus."""
    return text.replace("-", "\u2212")


def _number(value: object, form: str = ".3f") -> str:
    number = _finite(value)
    return _MISSING if number is None else _minus(format(number, form))


def _duration(value: object) -> str:
    seconds = _finite(value)
    if seconds is None:
        return _MISSING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest} s" if seconds >= 120 else f"{seconds:.1f} s"


def _value(column: _Column, value: object) -> str:
    return _number(value, ",.0f" if column.key == "seconds" else ".3f")


def _metric(name: object) -> str:
    """The heading of a metric; a name that is not known is shown as it came."""
    return _HEADINGS.get(str(name), str(name).replace("_", " "))


def _table(head: Sequence[str], body: Iterable[str], label: str, style: str = "") -> str:
    """A table that scrolls sideways inside itself, so that the page never does, and by keyboard too."""
    headings = "".join(f'<th scope="col">{heading}</th>' for heading in head)
    return (
        f'<div class="scroll" role="region" aria-label="{_escape(label)}" tabindex="0"><table class="{style}">'
        f'<caption class="unseen">{_escape(label)}</caption>'
        f"<thead><tr>{headings}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


# The page around its sections.


def _document(introduction: str, sections: Sequence[tuple[str, str, str]], names: _Names) -> str:
    links = "".join(f'<a href="#{key}">{heading}</a>' for key, heading, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-heading"><h2 id="{key}-heading">{heading}</h2>{content}</section>'
        for key, heading, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{_TITLE}</title><style>{_STYLE}{_series_style(names)}</style></head>\n"
        f'<body><header><h1>{_TITLE}</h1>{introduction}<nav aria-label="Sections">{links}</nav></header>'
        f"\n<main>{body}</main></body></html>\n"
    )


def _series_style(names: _Names) -> str:
    """Colours by place, and a rule per series that hides it in the charts while its box is not ticked."""
    places = range(len(names.places))
    colours = _LIGHT, _DARK
    light, dark = ("".join(f".s{i}{{--c:{theme[i % len(theme)]}}}" for i in places) for theme in colours)
    hide = "".join(f"body:has(#show-{i}:not(:checked)) .plot .s{i}{{display:none}}" for i in places)
    return f"{light}@media(prefers-color-scheme:dark){{{dark}}}{hide}"


def _introduction(result: Mapping[str, Any]) -> str:
    paper = '<a href="https://arxiv.org/abs/{0}">arXiv\u00a0{0}</a>'.format
    return (
        '<p class="lead">One pipeline that retrieves, selects and reads passages to answer questions, trained in '
        "several ways and scored on the same held-out questions. Direct retrieval-augmented optimization "
        f"(<b>DRO</b>, {paper('2505.03075')}) treats the ordered list of passages that a selector picks as a latent "
        "variable: an E-step draws lists and weighs each by how well it explains the answer, an M-step makes good "
        f"lists and good answers likelier, and the two alternate. <b>SelfAug</b> ({paper('2509.03934')}) holds the "
        "model's distribution over its input tokens where the base model has it, so that less is forgotten. "
        f"{_escape(_run(result))} The models are tiny and the world they are asked about is invented, so these numbers "
        "say something about the method and nothing about any product.</p>"
    )


def _run(result: Mapping[str, Any]) -> str:
    """A sentence about the size of the run, made of what the settings tell."""
    settings = {**_mapping(result.get("settings")), "answerable": result.get("answerable_questions")}
    wordings = {
        "domain": "domain {}",
        "train_questions": "{} training questions",
        "answerable": "{} of which some candidate answers, and no others were learned from",
        "validation_questions": "{} validation questions",
        "test_questions": "{} test questions",
        "rounds": "{} rounds",
        "num_candidates": "{} candidate passages per question",
        "num_selected": "{} of them read",
        "num_samples": "{} lists scored per question",
    }
    parts = [_counted(wording, settings[key]) for key, wording in wordings.items() if settings.get(key) is not None]
    if result.get("mode"):
        parts.insert(0, f"mode {result['mode']}")
    if _finite(result.get("seconds")) is not None:
        parts.append(f"{_duration(result['seconds'])} in all")
    return f"This run: {', '.join(parts)}." if parts else ""


def _counted(wording: str, number: Any) -> str:
    """One "round", two "rounds"."""
    text = wording.format(number)
    return text.removesuffix("s") if number == 1 else text


# The main table.


def _results(result: Mapping[str, Any], names: _Names) -> str:
    rows = _mappings(result["rows"])
    retriever = _mapping(result.get("retriever"))
    columns = [column for column in _COLUMNS if _finites(row.get(column.key) for row in [*rows, retriever])]
    if not rows:
        return ""
    body = [_result_row(row, columns, rows, names) for row in rows]
    if _finites(retriever.values()):
        body.append(_retriever_row(retriever, columns))
    meanings = "".join(f"<div><dt>{c.heading}</dt><dd>{c.meaning}</dd></div>" for c in columns)
    return (
        "<p>In small print and as a thin line: the 95 % bootstrap interval over the questions. <b>Bold</b> marks the "
        "highest value of a column; where intervals overlap, the order may be chance.</p>"
        f"{_table(['Pipeline', *(c.heading for c in columns)], body, 'Results of every pipeline', 'results')}"
        f'<dl class="meanings">{meanings}</dl>'
    )


def _result_row(
    row: Mapping[str, Any], columns: Sequence[_Column], rows: Sequence[Mapping[str, Any]], names: _Names
) -> str:
    name = _name(row)
    cells = "".join(_result_cell(row, column, rows, names.style(name)) for column in columns)
    seed = f" \u00b7 seed {_escape(row['seed'])}" if row.get("seed") is not None else ""
    return (
        f'<tr><th scope="row">{names.key(name)}<span>{_escape(row.get("label") or name)}'
        f"<small>{_escape(name)}{seed}</small></span></th>{cells}</tr>"
    )


def _result_cell(row: Mapping[str, Any], column: _Column, rows: Sequence[Mapping[str, Any]], style: str) -> str:
    value = _finite(row.get(column.key))
    if value is None:
        return f"<td>{_MISSING}</td>"
    highest = max(_finites(other.get(column.key) for other in rows))
    number = _value(column, value)
    if column.share and value == highest and len(rows) > 1:
        number = f'<b>{number}<span class="unseen"> (highest)</span></b>'
    interval = _mapping(row.get("intervals")).get(column.key)
    scale = 1.0 if column.share else highest
    return f"<td>{number}{_interval(interval)}{_bar(value, _finites(_sequence(interval)), scale, style)}</td>"


def _interval(interval: object, form: str = ".3f") -> str:
    ends = _finites(_sequence(interval))
    return f"<small>{_number(ends[0], form)} to {_number(ends[1], form)}</small>" if len(ends) == 2 else ""


def _bar(value: float, interval: Sequence[float], scale: float, style: str) -> str:
    """The value as a bar from 0 to `scale`, and above it the interval as a line with two caps."""

    def place(number: float) -> float:
        return round(100 * min(max(number / scale, 0.0), 1.0), 2) if scale > 0 else 0.0

    line = ""
    if len(interval) == 2:
        low, high = map(place, interval)
        line = f'<path d="M{low} 3.5H{high}M{low} 1V6M{high} 1V6"/>'
    return (
        f'<svg class="bar {style}" viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" y="8" width="100" height="6"/><rect y="8" width="{place(value)}" height="6"/>{line}</svg>'
    )


def _retriever_row(retriever: Mapping[str, Any], columns: Sequence[_Column]) -> str:
    cells = "".join(f"<td>{_value(column, retriever.get(column.key))}</td>" for column in columns)
    return f'<tr class="aside"><th scope="row"><span>The dense retriever alone</span></th>{cells}</tr>'


# The comparisons.


def _comparisons(result: Mapping[str, Any], names: _Names) -> str:
    entries = _mappings(result.get("comparisons"))
    if not entries:
        return ""
    scale = max([abs(number) for number in _finites(entry.get("difference") for entry in entries)], default=0.0)
    head = ["Pipeline", "against", "Metric", "Difference", "Relative", "p", "Questions"]
    body = [_comparison(entry, scale, names) for entry in entries]
    return (
        "<p>Differences on the same questions (for general ability: tasks), with 95 % bootstrap intervals. p is that "
        "of a two-sided paired bootstrap test: how probable a difference at least this large is if both pipelines are "
        "equally good. <b>Bold</b>: below 0.05, without a correction for the number of comparisons.</p>"
        f"{_table(head, body, 'Comparisons of pipelines', 'comparisons')}"
    )


def _comparison(entry: Mapping[str, Any], scale: float, names: _Names) -> str:
    name, against, p = _name(entry), str(entry.get("against", "")), _finite(entry.get("p"))
    clear = p is not None and p < 0.05
    bar = _difference_bar(_finite(entry.get("difference")), scale, names.style(name))
    cells = [
        _escape(names.label(against)),
        _escape(_metric(entry.get("metric", ""))),
        f"{_number(entry.get('difference'), '+.3f')}{_interval(entry.get('interval'), '+.3f')}{bar}",
        _number(entry.get("relative"), "+.0%"),
        "&lt; 0.001" if p is not None and p < 0.001 else _number(p),
        _number(entry.get("questions"), ",.0f"),
    ]
    cells[4] = f"<b>{cells[4]}</b>" if clear else cells[4]
    row = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{names.key(name)}<span>{_escape(names.label(name))}</span></th>{row}</tr>'


def _difference_bar(difference: float | None, scale: float, style: str) -> str:
    """A bar that leaves the middle to the right for a gain and to the left for a loss."""
    if difference is None or scale <= 0:
        return ""
    width = round(50 * abs(difference) / scale, 2)
    x = 50 - width if difference < 0 else 50
    return (
        f'<svg class="bar {style}" viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" y="8" width="100" height="6"/><rect x="{x}" y="8" width="{width}" height="6"/>'
        '<path d="M50 6V14"/></svg>'
    )


# The charts.

_WIDTH, _HEIGHT = 400, 264
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 280, 30, 222  # the plot; names of series stand to its right
_NAME_LENGTH, _NAME_GAP = 17, 13


@dataclass(frozen=True)
class _Point:
    round: float
    x: float
    y: float


@dataclass(frozen=True)
class _Series:
    label: str
    style: str
    shape: str  # empty: a line without marks
    points: Sequence[_Point]
    named: bool = True


@dataclass(frozen=True)
class _Chart:
    key: str
    title: str
    text: str
    x_label: str
    y_label: str
    series: Sequence[_Series]
    by_round: bool = True


_Records = Mapping[str, Sequence[Mapping[str, Any]]]


def _charts(result: Mapping[str, Any], names: _Names) -> str:
    curves = {str(name): _mappings(records) for name, records in _mapping(result.get("curves")).items()}
    charts = [_round_chart(*texts, curves, names) for texts in _round_texts(result)]
    charts.insert(2, _selector_chart(result, curves, names))
    charts.append(_drift_chart(curves, names))
    figures = [_figure(chart) for chart in charts if any(series.points for series in chart.series)]
    if not figures:
        return ""
    return (
        "<p>Scores on the validation questions, which choose the round that is kept, before training (round 0) and "
        "after each round. Marks tell their value on hover, and every chart has its numbers in a table.</p>"
        f"{_switches(curves, names)}"
        f'<div class="charts">{"".join(figures)}</div>'
    )


def _round_texts(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Key, title, explanation and unit of the charts that show one number per round."""
    settings = _mapping(result.get("settings"))
    drawn = settings.get("num_samples")
    if isinstance(drawn, int) and isinstance(settings.get("oversampling"), int):
        drawn *= settings["oversampling"]
    return [
        ("eval_exact_match", "Exact match", "Share of answers that equal a golden answer.", "share of questions"),
        ("eval_f1", "F1", "Overlap with the golden answer in words.", "mean F1"),
        (
            "ess",
            "Effective sample size",
            "How many of a question's lists carry the weight in the E-step: at 1, one list explains the answer alone."
            + ("" if drawn is None else f" DRO draws {_escape(drawn)}."),
            "lists per question",
        ),
        (
            "log_marginal",
            "Log marginal",
            "The importance-weighted ELBO, which estimates log p(answer | question) on the training questions. "
            "Higher is better.",
            "nats per question",
        ),
    ]


def _switches(curves: _Records, names: _Names) -> str:
    boxes = "".join(
        f'<label><input type="checkbox" id="show-{names.places[name]}" checked>{names.key(name)}{_escape(name)}</label>'
        for name in curves
    )
    return f'<fieldset class="switches"><legend>Series in the charts</legend>{boxes}</fieldset>'


def _points(records: Sequence[Mapping[str, Any]], y_key: str, x_key: str = "round") -> list[_Point]:
    """One point per record that has finite numbers for both axes."""
    points = []
    for record in records:
        round, x, y = (_finite(record.get(key)) for key in ("round", x_key, y_key))
        if round is not None and x is not None and y is not None:
            points.append(_Point(round, x, y))
    return points


def _row_series(curves: _Records, names: _Names, y_key: str, x_key: str = "round") -> list[_Series]:
    return [
        _Series(name, names.style(name), names.shape(name), _points(records, y_key, x_key))
        for name, records in curves.items()
    ]


def _round_chart(key: str, title: str, text: str, unit: str, curves: _Records, names: _Names) -> _Chart:
    return _Chart(key.replace("_", "-"), title, text, "round", unit, _row_series(curves, names, key))


def _selector_chart(result: Mapping[str, Any], curves: _Records, names: _Names) -> _Chart:
    """The selectors, the retriever they started from, and retrievers that training moved."""
    selectors = _row_series(curves, names, "eval_selector_recall@1")
    text = "Share of the gold passages among the first passage read. Grey dashes: the dense retriever alone."
    retrievers = [
        _Series(f"{name}, retriever", names.style(name), "", _points(records, "eval_retriever_recall@1"), named=False)
        for name, records in curves.items()
    ]
    moved = [series for series in retrievers if len({point.y for point in series.points}) > 1]
    if moved:
        text += " Coloured dashes: the retriever as training moved it."
    # On the questions of the curves, where they say it: those of the table are others.
    firsts = [series.points[0].y for series in retrievers if series.points]
    start = firsts[0] if firsts else _finite(_mapping(result.get("retriever")).get("recall_at_1"))
    rounds = sorted({point.round for series in selectors for point in series.points})
    reference = [_Point(round, round, start) for round in rounds] if start is not None else []
    # The reference comes last, so that it stays visible on selectors that are no better.
    series = [*moved, *selectors, _Series("retriever", "reference", "", reference)]
    return _Chart("selector", "Selector against retriever", text, "round", "recall@1", series)


def _drift_chart(curves: _Records, names: _Names) -> _Chart:
    return _Chart(
        "drift",
        "Drift and forgetting",
        "Each line starts at the base model and moves on with every round: to the right as the model's "
        "distributions leave the base, down as it forgets.",
        "KL drift, nats",
        "general ability",
        _row_series(curves, names, "eval_general", "eval_kl_drift"),
        by_round=False,
    )


def _figure(chart: _Chart) -> str:
    unit = chart.y_label if chart.by_round else f"{chart.x_label}; {chart.y_label}"
    return (
        f'<figure id="chart-{chart.key}"><figcaption><h3>{chart.title}</h3><p>{chart.text}</p></figcaption>'
        f"{_plot(chart)}<details><summary>Numbers: {_escape(unit)}</summary>{_chart_table(chart)}</details></figure>"
    )


def _chart_table(chart: _Chart) -> str:
    shown = [series for series in chart.series if series.points]
    rounds = sorted({point.round for series in shown for point in series.points})
    body = []
    for series in shown:
        cells = {point.round: _point_text(chart, point) for point in series.points}
        row = "".join(f"<td>{cells.get(round, _MISSING)}</td>" for round in rounds)
        body.append(f'<tr><th scope="row">{_escape(series.label)}</th>{row}</tr>')
    return _table(["Round", *(f"{round:g}" for round in rounds)], body, f"{chart.title}: numbers")


def _point_text(chart: _Chart, point: _Point) -> str:
    y = _number(point.y)
    return y if chart.by_round else f"{_number(point.x, '.4f')}; {y}"


def _plot(chart: _Chart) -> str:
    points = [point for series in chart.series for point in series.points]
    ticks_x = _ticks([point.x for point in points], whole=chart.by_round)
    ticks_y = _ticks([point.y for point in points])
    x, y = _scale(ticks_x, _LEFT, _RIGHT), _scale(ticks_y, _BOTTOM, _TOP)
    shown = [series for series in chart.series if series.points]
    ends = _spread([y(series.points[-1].y) for series in shown if series.named], _NAME_GAP, _TOP, _BOTTOM)
    heights = iter(ends)
    lines = "".join(_line(chart, series, x, y) for series in shown)
    labels = "".join(_end_label(series, x, y, next(heights)) for series in shown if series.named)
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-labelledby="{chart.key}-title {chart.key}-desc"><title id="{chart.key}-title">{chart.title}</title>'
        f'<desc id="{chart.key}-desc">{_escape(_description(chart, shown))}</desc>'
        f"{_axes(chart, ticks_x, ticks_y, x, y)}{lines}{labels}</svg>"
    )


def _description(chart: _Chart, shown: Sequence[_Series]) -> str:
    """The chart in words, for those who do not see it."""
    courses = "; ".join(
        f"{series.label} from {_point_text(chart, series.points[0])} to {_point_text(chart, series.points[-1])}"
        for series in shown
    )
    return f"{chart.y_label} over {chart.x_label}: {courses}."


def _ticks(values: Sequence[float], *, whole: bool = False) -> list[float]:
    """Round numbers at even steps of 1, 2 or 5 times a power of ten, from below the least to above the greatest."""
    low, high = min(values), max(values)
    if whole:
        low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    elif high - low <= 1e-9 * max(abs(low), abs(high)):
        # A flat line gets room on both sides, but no axis leaves the range of a share for it.
        low, high = low - 0.05 if low else 0.0, high + 0.05 if high != 1 else 1.0
    step = max(_step((high - low) / 8), 1.0) if whole else _step((high - low) / 4)
    # Rounded first: 0.3 / 0.1 is not 3.
    first, last = math.floor(round(low / step, 6)), math.ceil(round(high / step, 6))
    return [i * step for i in range(first, last + 1)]


def _step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20... times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _tick_text(tick: float, step: float) -> str:
    """All ticks of an axis with as many decimals as its step needs."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return _minus(f"{tick:.3g}" if step >= 1e5 or decimals > 5 else f"{tick + 0.0:.{decimals}f}")


def _scale(ticks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = ticks[0], ticks[-1]
    return lambda value: round(start + (end - start) * (value - low) / (high - low), 1)


def _axes(
    chart: _Chart,
    ticks_x: Sequence[float],
    ticks_y: Sequence[float],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> str:
    step_x, step_y = ticks_x[1] - ticks_x[0], ticks_y[1] - ticks_y[0]
    rules = "".join(f'<path class="rule" d="M{_LEFT} {y(tick)}H{_RIGHT}"/>' for tick in ticks_y)
    left = "".join(
        f'<text class="tick" x="{_LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{_tick_text(tick, step_y)}</text>'
        for tick in ticks_y
    )
    below = "".join(
        f'<path class="axis" d="M{x(tick)} {_BOTTOM}v5"/><text class="tick" x="{x(tick)}" y="{_BOTTOM + 18}" '
        f'text-anchor="middle">{_tick_text(tick, step_x)}</text>'
        for tick in ticks_x
    )
    return (
        f'{rules}<path class="axis" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>{left}{below}'
        f'<text class="unit" x="{_LEFT - 38}" y="14">{_escape(chart.y_label)}</text>'
        f'<text class="unit" x="{(_LEFT + _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{_escape(chart.x_label)}</text>"
    )


def _line(chart: _Chart, series: _Series, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    path = " ".join(f"{x(point.x)},{y(point.y)}" for point in series.points)
    marks = "".join(
        f'<g class="mark" transform="translate({x(point.x)} {y(point.y)})"><title>{_escape(series.label)}, round '
        f'{point.round:g}: {_point_text(chart, point)}</title><circle r="9"/><path d="{series.shape}"/></g>'
        for point in (series.points if series.shape else [])
    )
    dashed = "" if series.shape else ' class="dashed"'
    return f'<g class="series {series.style}"><polyline{dashed} points="{path}"/>{marks}</g>'


def _end_label(series: _Series, x: Callable[[float], float], y: Callable[[float], float], height: float) -> str:
    """The name of a series beside its last point, with a thin line to it where it had to make room."""
    last = series.points[-1]
    start, level = x(last.x), y(last.y)
    name = series.label if len(series.label) <= _NAME_LENGTH else f"{series.label[: _NAME_LENGTH - 1]}\u2026"
    leader = f'<path class="leader" d="M{start + 5} {level}L{start + 12} {height:.1f}"/>'
    return (
        f'<g class="{series.style}">{leader}<text class="name" x="{start + 14:.1f}" y="{height + 3.8:.1f}">'
        f"{_escape(name)}</text></g>"
    )


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Heights near the wanted ones, in their order and at least `gap` apart: down first, then up from the end."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    heights = list(wanted)
    for before, this in itertools.pairwise(order):
        heights[this] = max(heights[this], heights[before] + gap)
    limit = high
    for this in reversed(order):
        heights[this] = min(heights[this], limit)
        limit = heights[this] - gap
    return heights


# Answers.

_ANSWERS = (
    '<p>Each question opens to the answers of all pipelines. <span class="right">\u2713</span> equals a golden answer, '
    '<span class="wrong">\u2717</span> does not. A list of passages is given by their ranks in the retriever\'s '
    "order.</p>"
)


def _samples(samples: Sequence[Mapping[str, Any]], names: _Names) -> str:
    return "".join(_sample(sample, names, opened=place == 0) for place, sample in enumerate(samples))


def _sample(sample: Mapping[str, Any], names: _Names, *, opened: bool) -> str:
    answers = _mappings(sample.get("answers"))
    golden = " \u00b7 ".join(_escape(answer) for answer in _sequence(sample.get("golden_answers")))
    gold_ids = [str(id) for id in _sequence(sample.get("gold_ids"))]
    strip = "".join(
        f'<span class="pair" title="{_escape(_answered_by(answer))}">{names.key(_answered_by(answer))}'
        f"{_verdict(answer, names)}</span>"
        for answer in answers
    )
    gold = f'<p class="gold">Gold passages: {_escape(", ".join(gold_ids))}</p>' if gold_ids else ""
    return (
        f'<details class="sample"{" open" if opened else ""}><summary><span class="question">'
        f'{_escape(sample.get("question", ""))}</span><span class="strip">{strip}</span></summary>'
        f"<p>Golden answers: <b>{golden or _MISSING}</b></p>{gold}"
        f'<div class="answers">{"".join(_answer(answer, gold_ids, names) for answer in answers)}</div></details>'
    )


def _verdict(answer: Mapping[str, Any], names: _Names) -> str:
    """A tick or a cross, and the same in words for who cannot see it."""
    score = _finite(answer.get("exact_match"))
    sign, word = ("?", "not scored") if score is None else ("\u2713", "right") if score == 1 else ("\u2717", "wrong")
    style, label = word.split()[0], _escape(names.label(_answered_by(answer)))
    return f'<span class="{style}" aria-hidden="true">{sign}</span><span class="unseen">{label}: {word}. </span>'


def _answer(answer: Mapping[str, Any], gold_ids: Sequence[str], names: _Names) -> str:
    name = _answered_by(answer)
    log_prob = _finite(answer.get("log_prob"))
    confidence = f' <span class="whole">log p = {_number(log_prob, ".2f")} nats</span>' if log_prob is not None else ""
    text = _escape(answer.get("text") or "(nothing)")
    return (
        f'<article><h4>{names.key(name)}{_escape(names.label(name))}</h4><p class="text">{_verdict(answer, names)} '
        f"{text}</p><p><small>{_order(answer)}{confidence}</small></p>{_reading(answer, gold_ids)}</article>"
    )


def _order(answer: Mapping[str, Any]) -> str:
    ranks = ", ".join(_escape(rank) for rank in _sequence(answer.get("permutation")))
    return f"Read in the order of these retriever ranks (0 = best): {ranks}." if ranks else "No passage read."


def _reading(answer: Mapping[str, Any], gold_ids: Sequence[str]) -> str:
    """The passages in the order read, and citations of passages that were not among them."""
    passages = _mappings(answer.get("passages"))
    cited = [str(id) for id in _sequence(answer.get("citations"))]
    items = "".join(_passage(passage, cited, gold_ids) for passage in passages)
    unread = [id for id in cited if id not in {str(passage.get("id")) for passage in passages}]
    note = f"<p><small>Cited without being read: {_escape(', '.join(unread))}</small></p>" if unread else ""
    return (f"<ol>{items}</ol>" if items else "") + note


def _passage(passage: Mapping[str, Any], cited: Sequence[str], gold_ids: Sequence[str]) -> str:
    id = str(passage.get("id", ""))
    badges = "".join(
        f' <span class="badge {word}">{word}</span>'
        for word, ids in (("gold", gold_ids), ("cited", cited))
        if id in ids
    )
    return (
        f"<li><details><summary>{_escape(passage.get('title') or id)} <small>{_escape(id)}</small>{badges}</summary>"
        f"<p>{_escape(passage.get('text', ''))}</p></details></li>"
    )


def _encyclopedia(encyclopedia: Mapping[str, Any], names: _Names) -> str:
    score, questions = _finite(encyclopedia.get("exact_match")), _finite(encyclopedia.get("questions"))
    samples = _samples(_mappings(encyclopedia.get("samples")), names)
    if score is None and not samples:
        return ""
    number = f" Exact match <b>{_number(score)}</b>" if score is not None else ""
    count = f" on {questions:,.0f} questions." if score is not None and questions is not None else ""
    reader = f" Read by: {_escape(names.label(str(encyclopedia['name'])))}." if encyclopedia.get("name") else ""
    return (
        "<p>Questions about a small encyclopedia of real facts, which no pipeline was trained on."
        f"{reader}{number}{count}</p>{samples}"
    )


def _settings(result: Mapping[str, Any]) -> str:
    settings = _mapping(result.get("settings"))
    entries = {**({"mode": result["mode"]} if result.get("mode") else {}), **settings}
    texts = {key: ", ".join(map(str, _sequence(value))) or str(value) for key, value in entries.items()}
    body = [f'<tr><th scope="row">{_escape(key)}</th><td>{_escape(value)}</td></tr>' for key, value in texts.items()]
    return _table(["Setting", "Value"], body, "Settings of the run", "settings") if body else ""


_TITLE = "DRO and SelfAug: what training a RAG pipeline changes"

_STYLE = """
:root{color-scheme:light dark;--bg:#fafaf8;--card:#fff;--ink:#1d2026;--soft:#575d68;--line:#d9dbd6;--track:#ecece8;
--link:#0b57c2;--right:#0a6b3d;--wrong:#a8321a;--gold:#fdf0c4;--cite:#dcebff}
@media(prefers-color-scheme:dark){:root{--bg:#14161a;--card:#1c1f25;--ink:#e8eaed;--soft:#a6adb8;--line:#363b44;
--track:#2a2e36;--link:#8ab8ff;--right:#5fd39b;--wrong:#ff9a80;--gold:#4b3f10;--cite:#1d3a5f}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main{max-width:1264px;margin:auto;padding:0 20px}
h1{font-size:clamp(1.5rem,1.1rem + 1.8vw,2.2rem);line-height:1.2;margin:1.4em 0 .5em;text-wrap:balance}
h2{font-size:1.35rem;line-height:1.25;margin:2.4em 0 .5em;padding-top:.7em;border-top:1px solid var(--line)}
h3,h4{font-size:1rem;margin:0}
p{max-width:80ch;margin:.6em 0}
small{font-size:.8em;color:var(--soft);font-weight:400}
a{color:var(--link)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px;border-radius:3px}
nav{display:flex;flex-wrap:wrap;gap:.2em 1.3em;margin:1em 0}
nav a{padding:.25em 0}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.scroll{overflow-x:auto;position:relative;margin:1em 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.94rem}
.results,.comparisons{width:100%;background:var(--card)}
th,td{text-align:left;vertical-align:top;padding:.55em .8em;border-bottom:1px solid var(--line)}
thead th{font-size:.82rem;color:var(--soft);font-weight:600;white-space:nowrap;vertical-align:bottom}
tbody th{font-weight:600;min-width:11em;line-height:1.35}
.results tbody th,.comparisons tbody th,.results thead th:first-child,.comparisons thead th:first-child{position:sticky;
left:0;z-index:1;background:var(--card)}
tbody th .key{float:left;margin:.18em 0 0 -.1em}
tbody th .key+span{display:block;margin-left:1.4em}
th small,td small{display:block}
.results td{min-width:6.6em}
td small{white-space:nowrap}
.aside th,.aside td{color:var(--soft);font-weight:400}
.key{width:.95em;height:.95em;flex:none;fill:var(--c);vertical-align:-.1em;margin-right:.4em;overflow:visible}
.bar{display:block;width:100%;min-width:4.5em;height:14px;margin-top:1px;overflow:visible}
.bar rect{fill:var(--c)}
.bar .track{fill:var(--track)}
.bar path{fill:none;stroke:var(--ink);stroke-width:1.4;vector-effect:non-scaling-stroke}
.meanings{display:grid;grid-template-columns:repeat(auto-fit,minmax(260px,1fr));gap:.6em 1.6em;margin:1.2em 0;
font-size:.9rem}
.meanings dt{font-weight:600}
.meanings dd{margin:0;color:var(--soft)}
.switches{border:1px solid var(--line);border-radius:8px;background:var(--card);display:flex;flex-wrap:wrap;
gap:.2em 1.3em;padding:.3em 1em .6em;margin:1em 0}
.switches legend{font-size:.82rem;color:var(--soft);padding:0 .4em}
.switches label{display:inline-flex;align-items:center;padding:.2em 0;font-size:.92rem}
.switches input{accent-color:var(--link);width:1.05em;height:1.05em;margin:0 .5em 0 0}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,350px),1fr));gap:18px;
align-items:start}
figure{margin:0;padding:14px 14px 8px;background:var(--card);border:1px solid var(--line);border-radius:8px;
min-width:0}
figcaption p{font-size:.85rem;line-height:1.45;color:var(--soft);margin:.2em 0 .6em}
figure table{font-size:.82rem}
figure tbody th{min-width:0}
figure th,figure td{padding:.3em .5em}
@media(min-width:780px){figcaption{min-height:5.9rem}}
.plot{width:100%;height:auto;font-size:11.5px;fill:var(--ink)}
.plot .tick,.plot .unit{fill:var(--soft)}
.rule{stroke:var(--line);stroke-width:1}
.axis{stroke:var(--soft);stroke-width:1;fill:none}
.series polyline{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}
.series .dashed{stroke-width:1.5;stroke-dasharray:5 4}
.reference{--c:var(--soft)}
.mark path{fill:var(--c);stroke:var(--card);stroke-width:.8}
.mark circle{fill:transparent}
.mark:hover path{stroke:var(--ink);stroke-width:1.6}
.leader{stroke:var(--c);stroke-width:1;fill:none}
.name{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
summary{cursor:pointer;padding:.2em 0}
figure summary{font-size:.85rem;color:var(--soft)}
.sample{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.5em 1em;margin:.7em 0}
.question{font-weight:600;overflow-wrap:anywhere}
.strip{display:inline-flex;flex-wrap:wrap;gap:.1em .9em;margin-left:1em}
.pair,.whole{white-space:nowrap}
.right{color:var(--right);font-weight:700}
.wrong{color:var(--wrong);font-weight:700}
.not{color:var(--soft);font-weight:700}
.gold{font-size:.85rem;color:var(--soft)}
.answers{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,290px),1fr));gap:12px;margin:.8em 0}
article{border:1px solid var(--line);border-radius:6px;padding:.6em .8em;min-width:0;overflow-wrap:anywhere}
article h4{font-size:.9rem;font-weight:600;line-height:1.35}
article p{margin:.35em 0;line-height:1.4}
.text{font-size:1.05rem}
article ol{margin:.3em 0;padding-left:1.3em;font-size:.88rem}
.badge{font-size:.72rem;border-radius:4px;padding:.1em .45em;color:var(--ink)}
.badge.gold{background:var(--gold)}
.badge.cited{background:var(--cite)}
.settings td{overflow-wrap:anywhere}
@media(max-width:600px){header,main{padding:0 14px}.results tbody th,.comparisons tbody th{min-width:8.6em;
max-width:9em;font-size:.84rem}th,td{padding:.5em .6em}.strip{display:flex;margin:.3em 0 0}
figure{padding:12px 8px 6px}}
"""
