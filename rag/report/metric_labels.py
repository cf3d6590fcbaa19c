"""Tables, and the small bars that stand in their cells."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag.report.page import MISSING, decimal, escape
from rag.report.values import ends, finite, sequence


@dataclass(frozen=True)
class Column:
    """A number that rows have, and what it means."""

    key: str
    heading: str
    meaning: str
    share: bool = True  # a share lies in [0, 1], and more is better


COLUMNS = (
    Column("exact_match", "Exact match", "Share of answers that equal a golden answer after normalisation."),
    Column("f1", "F1", "Overlap of answer and golden answer in words: the harmonic mean of precision and recall."),
    Column(
        "recall_at_1",
        "Recall@1",
        "Share of the gold passages that come first: at most 1/2 if there are two.",
    ),
    Column("recall_at_3", "Recall@3", "The same among the first three: what is read, then the other candidates."),
    Column("recall_at_5", "Recall@5", "The same among the first five."),
    Column(
        "general",
        "General ability",
        "Share of tasks solved that need no retrieval and that the base model was made for.",
    ),
    Column(
        "kl_drift", "KL drift", "Mean KL(base || tuned) per input token of those tasks, in nats; 0 is the base.", False
    ),
    Column("seconds", "Seconds", "Time for training and evaluation of this row.", False),
)
_HEADINGS = {column.key: column.heading for column in COLUMNS}
_ACRONYMS = {"ndcg": "nDCG", "mrr": "MRR", "f1": "F1", "kl": "KL", "em": "EM"}


def value_text(column: Column, value: object) -> str:
    """A number of this column."""
    return decimal(value, ",.0f" if column.key == "seconds" else ".3f")


def metric_heading(name: object) -> str:
    """The heading of a metric; a name that is not known is shown as it came, without its underscores."""
    words = [word.partition("@") for word in str(name).split("_")]
    said = " ".join(_ACRONYMS.get(word, word) + at + k for word, at, k in words)
    return _HEADINGS.get(str(name), said)


def data_table(head: Sequence[str], body: Iterable[str], label: str, style: str = "") -> str:
    """A table that scrolls sideways inside itself, so that the page never does, and by keyboard too."""
    headings = "".join(f'<th scope="col">{heading}</th>' for heading in head)
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0"><table class="{style}">'
        f'<caption class="unseen">{escape(label)}</caption>'
        f"<thead><tr>{headings}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def table_row(heading: str, cells: Iterable[str], style: str = "") -> str:
    """One row; heading and cells are HTML."""
    row = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr{f" class={chr(34)}{style}{chr(34)}" if style else ""}><th scope="row">{heading}</th>{row}</tr>'


def settings_table(settings: Mapping[str, Any], label: str) -> str:
    """Names and values; lists are written with commas."""
    texts = {key: ", ".join(map(str, sequence(value))) or str(value) for key, value in settings.items()}
    body = [table_row(escape(key), [escape(value)]) for key, value in texts.items()]
    return data_table(["Setting", "Value"], body, label, "settings") if body else ""


def interval_note(interval: object, form: str = ".3f") -> str:
    """An interval in small print; nothing if there is none."""
    both = ends(interval)
    return f"<small>{decimal(both[0], form)} to {decimal(both[1], form)}</small>" if both else ""


def p_text(value: object) -> str:
    """A p-value; very small ones by their bound."""
    p = finite(value)
    return MISSING if p is None else "&lt; 0.001" if p < 0.001 else decimal(p)


def value_bar(value: float, interval: object, scale: float, style: str) -> str:
    """The value as a bar from 0 to `scale`, and above it the interval as a line with two caps."""

    def place(number: float) -> float:
        return round(100 * min(max(number / scale, 0.0), 1.0), 2) if scale > 0 else 0.0

    line, both = "", ends(interval)
    if both:
        low, high = map(place, both)
        line = f'<path d="M{low} 3.5H{high}M{low} 1V6M{high} 1V6"/>'
    return (
        f'<svg class="bar {style}" viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" y="8" width="100" height="6"/><rect y="8" width="{place(value)}" height="6"/>{line}</svg>'
    )


def difference_bar(difference: float | None, scale: float, style: str) -> str:
    """A bar that leaves the middle to the right for a gain and to the left for a loss."""
    if difference is None or scale <= 0:
        return ""
    width = round(50 * min(abs(difference) / scale, 1.0), 2)
    x = 50 - width if difference < 0 else 50
    return (
        f'<svg class="bar {style}" viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" y="8" width="100" height="6"/><rect x="{x}" y="8" width="{width}" height="6"/>'
        '<path d="M50 6V14"/></svg>'
    )
