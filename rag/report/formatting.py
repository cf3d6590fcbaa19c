"""The page around its sections, and how text and numbers are written into it.

Everything that comes from data goes through `escape` before it is put into the page.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rag.report.names import Names
from rag.report.style import STYLE
from rag.report.values import finite

MISSING = "\u2013"
# Control characters are no characters of HTML, and would hide what stands beside them.
_CONTROLS = {code: "\ufffd" for code in range(32) if code not in (9, 10, 13)}
_DIGITS = 12  # of a hash: enough to tell files apart; the whole of it stands in the settings


class Section(NamedTuple):
    """One part of the page; without content it is left out."""

    key: str
    heading: str
    content: str


def escape(value: object) -> str:
    """Text from data, which cannot become markup."""
    return html.escape(str(value).translate(_CONTROLS))


def minus(text: str) -> str:
    """A true minus sign: it is as wide as a plus."""
    return text.replace("-", "\u2212")


def decimal(value: object, form: str = ".3f") -> str:
    """A number, or a dash for what is none."""
    number = finite(value)
    return MISSING if number is None else minus(format(number, form))


def duration(value: object) -> str:
    """Seconds in words."""
    seconds = finite(value)
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest} s" if seconds >= 120 else f"{seconds:.1f} s"


def counted(wording: str, number: Any) -> str:
    """One "round", two "rounds"."""
    text = wording.format(number)
    return text.removesuffix("s") if number == 1 else text


def left_out(shown: int, there: int, what: str) -> str:
    """A sentence for a list that was cut; nothing if it was not."""
    return f"<p><small>{shown:,} of {there:,} {what} are shown.</small></p>" if shown < there else ""


def short_hash(value: object) -> str:
    """The first digits of a hash, with all of them on hover."""
    text = str(value)
    shown = text if len(text) <= _DIGITS else f"{text[:_DIGITS]}\u2026"
    return f'<code title="{escape(text)}">{escape(shown)}</code>'


def fact_list(facts: Mapping[str, str]) -> str:
    """Terms and what is said of them, as HTML; those of which nothing is said are left out."""
    entries = "".join(f"<div><dt>{term}</dt><dd>{said}</dd></div>" for term, said in facts.items() if said)
    return f'<dl class="facts">{entries}</dl>' if entries else ""


def dataset_facts(dataset: Mapping[str, Any]) -> dict[str, str]:
    """What a page says at its top about the questions."""
    n, skipped = finite(dataset.get("n")), finite(dataset.get("skipped"))
    return {
        "Questions": "" if n is None else f"{n:,.0f}" + (f", {skipped:,.0f} skipped" if skipped else ""),
        "Question file": escape(dataset["file"]) if dataset.get("file") else "",
        "Its questions, sha256": short_hash(dataset["sha256"]) if dataset.get("sha256") else "",
    }


def document(title: str, introduction: str, sections: Iterable[Section], names: Names) -> str:
    """The whole page: title and introduction are HTML, and so is every section's content."""
    there = [section for section in sections if section.content]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{title}</title><style>{STYLE}{names.css()}</style></head>\n"
        f'<body><header><h1>{title}</h1>{introduction}<nav aria-label="Sections">{_links(there)}</nav></header>'
        f"\n<main>{''.join(map(_section, there))}</main></body></html>\n"
    )


def _links(sections: Sequence[Section]) -> str:
    return "".join(f'<a href="#{section.key}">{section.heading}</a>' for section in sections)


def _section(section: Section) -> str:
    key = section.key
    return (
        f'<section id="{key}" aria-labelledby="{key}-heading"><h2 id="{key}-heading">{section.heading}</h2>'
        f"{section.content}</section>"
    )
