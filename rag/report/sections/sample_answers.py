"""Sample questions, each with what every pipeline answered and read."""

from collections.abc import Mapping, Sequence
from typing import Any

from indexes.corpora.chunk_ids import gold_document
from rag.report.names import Names, answered_by
from rag.report.page import MISSING, decimal, escape
from rag.report.values import finite, mappings, sequence

ANSWERS = (
    '<p>Each question opens to the answers of all pipelines. <span class="right">\u2713</span> equals a golden answer, '
    '<span class="wrong">\u2717</span> does not. A list of passages is given by their ranks in the retriever\'s '
    "order.</p>"
)


def sample_list(samples: Sequence[Mapping[str, Any]], names: Names) -> str:
    """Questions that open to their answers; the first is open."""
    return "".join(_sample(sample, names, opened=place == 0) for place, sample in enumerate(samples))


def _sample(sample: Mapping[str, Any], names: Names, *, opened: bool) -> str:
    answers = mappings(sample.get("answers"))
    golden = " \u00b7 ".join(escape(answer) for answer in sequence(sample.get("golden_answers")))
    gold_ids = [str(id) for id in sequence(sample.get("gold_ids"))]
    strip = "".join(
        f'<span class="pair" title="{escape(answered_by(answer))}">{names.key(answered_by(answer))}'
        f"{verdict(answer, names)}</span>"
        for answer in answers
    )
    gold = f'<p class="gold">Gold passages: {escape(", ".join(gold_ids))}</p>' if gold_ids else ""
    return (
        f'<details class="sample"{" open" if opened else ""}><summary><span class="question">'
        f'{escape(sample.get("question", ""))}</span><span class="strip">{strip}</span></summary>'
        f"<p>Golden answers: <b>{golden or MISSING}</b></p>{gold}"
        f'<div class="answers">{"".join(_answer(answer, gold_ids, names) for answer in answers)}</div></details>'
    )


def verdict(answer: Mapping[str, Any], names: Names) -> str:
    """A tick or a cross, and the same in words for who cannot see it."""
    score = finite(answer.get("exact_match"))
    sign, word = ("?", "not scored") if score is None else ("\u2713", "right") if score == 1 else ("\u2717", "wrong")
    style, label = word.split()[0], escape(names.label(answered_by(answer)))
    return f'<span class="{style}" aria-hidden="true">{sign}</span><span class="unseen">{label}: {word}. </span>'


def badge(word: str, shown: bool) -> str:
    """A word on a coloured ground."""
    return f' <span class="badge {word}">{word}</span>' if shown else ""


def _answer(answer: Mapping[str, Any], gold_ids: Sequence[str], names: Names) -> str:
    name = answered_by(answer)
    log_prob = finite(answer.get("log_prob"))
    confidence = f' <span class="whole">log p = {decimal(log_prob, ".2f")} nats</span>' if log_prob is not None else ""
    text = escape(answer.get("text") or "(nothing)")
    return (
        f'<article><h4>{names.key(name)}{escape(names.label(name))}</h4><p class="text">{verdict(answer, names)} '
        f"{text}</p><p><small>{_order(answer)}{confidence}</small></p>{_reading(answer, gold_ids)}</article>"
    )


def _order(answer: Mapping[str, Any]) -> str:
    ranks = ", ".join(escape(rank) for rank in sequence(answer.get("permutation")))
    return f"Read in the order of these retriever ranks (0 = best): {ranks}." if ranks else "No passage read."


def _reading(answer: Mapping[str, Any], gold_ids: Sequence[str]) -> str:
    """The passages in the order read, and citations of passages that were not among them."""
    passages = mappings(answer.get("passages"))
    cited = [str(id) for id in sequence(answer.get("citations"))]
    items = "".join(_passage(passage, cited, gold_ids) for passage in passages)
    unread = [id for id in cited if id not in {str(passage.get("id")) for passage in passages}]
    note = f"<p><small>Cited without being read: {escape(', '.join(unread))}</small></p>" if unread else ""
    return (f"<ol>{items}</ol>" if items else "") + note


def _passage(passage: Mapping[str, Any], cited: Sequence[str], gold_ids: Sequence[str]) -> str:
    id = str(passage.get("id", ""))
    badges = badge("gold", gold_document(id, gold_ids) is not None) + badge("cited", id in cited)
    return (
        f"<li><details><summary>{escape(passage.get('title') or id)} <small>{escape(id)}</small>{badges}</summary>"
        f"<p>{escape(passage.get('text', ''))}</p></details></li>"
    )
