"""The best and the worst questions: candidates in the retriever's order, what was read in which order, what was cited.

A candidate's text stands once per question, however many pipelines read it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from indexes.corpora.chunk_ids import gold_document
from rag.report.answers import badge, verdict
from rag.report.names import Names, answered_by
from rag.report.page import MISSING, decimal, escape, left_out
from rag.report.tables import data_table, table_row
from rag.report.values import finite, mappings, sequence, texts

SHOWN = 10  # of either list
_TEXT = 1200  # characters of a passage
_LEGEND = (
    "<p>Each question opens to its candidates in the retriever's order and to the answers. "
    '<span class="right">\u2713</span> equals a golden answer, <span class="wrong">\u2717</span> does not. A '
    "permutation is given by ranks in the retriever's order (0 = best), in the order they were read: "
    '<span class="chip gold">3</span> holds gold, <span class="chip cited">3</span> is cited.</p>'
)


def question_lists(questions: Sequence[Mapping[str, Any]], names: Names, meaning: str) -> str:
    """Two lists, the best and the worst; `meaning` says by what (HTML)."""
    found = {kind: [q for q in questions if q.get("list", kind) == kind] for kind in ("best", "worst")}
    if not any("list" in question for question in questions):
        found = {"best": list(questions), "worst": []}
    parts = [
        f"<h3>{heading}</h3>{left_out(min(SHOWN, len(entries)), len(entries), 'questions')}"
        f"{''.join(_question(entry, names) for entry in entries[:SHOWN])}"
        for heading, entries in (("Best", found["best"]), ("Worst", found["worst"]))
        if entries
    ]
    return f"{meaning}{_LEGEND}{''.join(parts)}" if parts else ""


def question_list(questions: Sequence[Mapping[str, Any]], names: Names) -> str:
    """Questions in the order in which they come."""
    return _LEGEND + "".join(_question(entry, names) for entry in questions) if questions else ""


def best_and_worst(rows: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The ten best and the ten worst rows of one evaluation, in the form of a sweep's `questions`.

    By F1 (else by exact match), then by log p of the answer; of equals, the smaller id comes first in both lists.
    No question is in both.
    """
    by_id = sorted(rows, key=lambda row: str(row.get("id", "")))
    order = sorted(by_id, key=_score, reverse=True)  # sorted is stable, also in reverse
    worst = sorted(by_id, key=_score)
    size = min(SHOWN, (len(rows) + 1) // 2)
    best_ids = {id(row) for row in order[:size]}
    lowest = [row for row in worst if id(row) not in best_ids][:SHOWN]
    return [_entry(row, name, "best") for row in order[:size]] + [_entry(row, name, "worst") for row in lowest]


def _score(row: Mapping[str, Any]) -> tuple[float, float]:
    scores = row.get("scores")
    scores = scores if isinstance(scores, Mapping) else row
    values = [finite(scores.get("f1")), finite(scores.get("exact_match"))]
    score = next((value for value in values if value is not None), -1.0)
    log_prob = finite(row.get("log_prob"))
    return score, float("-inf") if log_prob is None else log_prob


def _entry(row: Mapping[str, Any], name: str, kind: str) -> Mapping[str, Any]:
    scores = row.get("scores")
    answer = {
        **{key: row.get(key) for key in ("citations", "passages", "permutation", "log_prob", "attribution")},
        **(scores if isinstance(scores, Mapping) else {}),
        "row": name,
        "text": row.get("prediction"),
    }
    return {**row, "list": kind, "answers": [answer]}


def _question(question: Mapping[str, Any], names: Names) -> str:
    answers = mappings(question.get("answers"))
    golden = " \u00b7 ".join(map(escape, sequence(question.get("golden_answers"))))
    strip = "".join(
        f'<span class="pair" title="{escape(answered_by(answer))}">{names.key(answered_by(answer))}'
        f"{verdict(answer, names)}</span>"
        for answer in answers
    )
    said = _candidates(question, answers) + _answers(question, answers, names)
    return (
        f'<details class="sample"><summary><span class="question">{escape(question.get("question", ""))}</span>'
        f'<span class="strip">{strip}</span></summary><p>Golden answers: <b>{golden or MISSING}</b> '
        f"<small>{escape(question.get('id', ''))}</small></p>{said}</details>"
    )


# The candidates.


def _candidates(question: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> str:
    """Rank, passage, score; for one answer also its place among what was read and its support."""
    gold = texts(question.get("gold_ids"))
    shown = _with_texts(mappings(question.get("candidates")), answers)
    support = _support(answers[0]) if len(answers) == 1 else {}
    if not shown:
        return ""
    head = ["Rank", "Candidate", "Score", "Read"] + (["Support, nats"] if support else [])
    body = []
    for rank, candidate in enumerate(shown):
        cells = [_candidate(candidate, gold, answers), decimal(candidate.get("score")), _read(candidate, answers)]
        cells += [_supported(support.get(str(candidate.get("id"))))] if support else []
        body.append(table_row(str(rank) if candidate.get("ranked") else MISSING, cells))
    missing = sorted(set(gold) - {gold_document(str(candidate.get("id")), gold) for candidate in shown})
    note = f'<p class="gold">Gold, but no candidate: {escape(", ".join(missing))}</p>' if missing else ""
    return data_table(head, body, "Candidates in the retriever's order", "candidates") + note


def _with_texts(
    candidates: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Candidates with their texts where some pipeline read them; what was read and is no candidate comes last."""
    read = {str(p.get("id")): p for answer in answers for p in mappings(answer.get("passages"))}
    ranked = [{**read.get(str(c.get("id")), {}), **c, "ranked": True} for c in candidates]
    others = set(read) - {str(c.get("id")) for c in candidates}
    return ranked + [passage for id, passage in read.items() if id in others]


def _candidate(candidate: Mapping[str, Any], gold: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> str:
    id = str(candidate.get("id", ""))
    cited = len(answers) == 1 and id in texts(answers[0].get("citations"))
    badges = badge("gold", gold_document(id, gold) is not None) + badge("cited", cited)
    title = f"{escape(candidate.get('title') or id)} <small>{escape(id)}</small>{badges}"
    text = str(candidate.get("text") or "")
    if not text:
        return title
    text = text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}\u2026"
    return f"<details><summary>{title}</summary><p>{escape(text)}</p></details>"


def _read(candidate: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> str:
    """One pipeline: at which place; several: by how many, and cited by how many."""
    id = str(candidate.get("id", ""))
    places = [[str(p.get("id")) for p in mappings(answer.get("passages"))] for answer in answers]
    if len(answers) == 1:
        return f"{places[0].index(id) + 1}." if id in places[0] else MISSING
    readers = sum(id in read for read in places)
    citing = sum(id in texts(answer.get("citations")) for answer in answers)
    cited = f"<small>cited by {citing}</small>" if citing else ""
    return f"by {readers} of {len(answers)}{cited}" if readers else MISSING


def _support(answer: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return {str(entry.get("id")): entry for entry in mappings(answer.get("attribution"))}


def _supported(entry: Mapping[str, Any] | None) -> str:
    """By how much log p of the answer falls without this passage."""
    if entry is None:
        return MISSING
    changed = "<small>without it, another answer</small>" if entry.get("answer_changed") else ""
    return f"{decimal(entry.get('log_prob_drop'), '+.2f')}{changed}"


# The answers.


def _answers(question: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], names: Names) -> str:
    gold = texts(question.get("gold_ids"))
    head = ["Pipeline", "Answer", "F1", "log p", "Read, in order"]
    body = [
        table_row(
            f"{names.key(answered_by(answer))}<span>{escape(names.label(answered_by(answer)))}</span>",
            [
                f"{verdict(answer, names)} {escape(answer.get('text') or '(nothing)')}",
                decimal(answer.get("f1"), ".2f"),
                decimal(answer.get("log_prob"), ".2f"),
                _chips(answer, question, gold),
            ],
        )
        for answer in answers
    ]
    return data_table(head, body, "Answers", "said") if body else ""


def _chips(answer: Mapping[str, Any], question: Mapping[str, Any], gold: Sequence[str]) -> str:
    """The permutation: a chip for each passage read, with its rank in the retriever's order."""
    ids = [str(candidate.get("id")) for candidate in mappings(question.get("candidates"))]
    read = [str(passage.get("id")) for passage in mappings(answer.get("passages"))]
    cited = texts(answer.get("citations"))
    ranks = texts(answer.get("permutation"))
    # Ranks as they came; where there are none, those of the passages among the candidates.
    ranks = ranks if len(ranks) >= len(read) else [str(ids.index(id)) if id in ids else "?" for id in read]
    chips = "".join(
        _chip(rank, read[place] if place < len(read) else "", gold, cited) for place, rank in enumerate(ranks)
    )
    unread = [id for id in cited if id not in read]
    note = f"<small>Cited without being read: {escape(', '.join(unread))}</small>" if unread else ""
    return (chips or MISSING) + note


def _chip(rank: str, id: str, gold: Sequence[str], cited: Sequence[str]) -> str:
    words = ["gold"] * (gold_document(id, gold) is not None) + ["cited"] * (id in cited)
    said = f'<span class="unseen"> ({" and ".join(words)})</span>' if words else ""
    return f'<span class="{" ".join(["chip", *words])}" title="{escape(id)}">{escape(rank)}{said}</span> '
