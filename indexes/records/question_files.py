"""Passages inside question files, and the ids by which their questions refer to them.

| format | where the passages are | id | gold |
|---|---|---|---|
| HotpotQA, 2WikiMultihopQA | `context`: `[title, sentences]` | title and digest | titles of `supporting_facts` |
| MuSiQue | `paragraphs`: `title, paragraph_text` | title and digest | `is_supporting` |
| SQuAD | `data` > `paragraphs`: `context`; exported records: `title, context` | title and digest | the question's own |
| BoolQ | `passage`, and `title` where it is given | title and digest | the question's own |
| DPR | `positive_ctxs, negative_ctxs, hard_negative_ctxs`, or `ctxs` | `passage_id`, `psg_id`, `id` | `positive_ctxs` |

A record that `datasets` exported has columns of lists where the original file has lists of objects; both are read.

An id depends on nothing but the passage, so neither the order of a file nor its split changes it, and the passages of
several files can be one corpus.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from indexes.errors import DataError
from indexes.records.field_types import as_list, as_object, as_objects, as_text
from indexes.records.record import Place

DPR_FIELDS = ("positive_ctxs", "negative_ctxs", "hard_negative_ctxs", "ctxs")
_DPR_IDS = ("passage_id", "psg_id", "id")
# DPR's own tools put this before the numbers of psgs_w100.tsv.
_DPR_PREFIX = "wiki:"


class InnerPassage(NamedTuple):
    """A passage that is stored with a question."""

    id: str
    title: str
    text: str
    is_gold: bool  # whether the file marks it as support of the answer


def passage_id(title: str, text: str) -> str:
    """The id of a passage whose file gives it none: its title, and twelve digits of a digest of title and text."""
    digest = hashlib.blake2b(f"{title}\x1f{text}".encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{title}~{digest}"


def passages_inside(fields: Mapping[str, Any], where: str) -> list[InnerPassage] | None:
    """The passages of a question's record in its order; None when its format stores none.

    Raises:
        DataError: The record has the fields of one of the formats with values of another type.
    """
    if "question" not in fields:
        return None
    if isinstance(fields.get("context"), str):
        return _squad_record(fields)
    if fields.get("context") is not None:
        return _hotpot(fields, where)
    if fields.get("paragraphs") is not None:
        return _musique(fields, where)
    if any(fields.get(field) is not None for field in DPR_FIELDS):
        return _dpr(fields, where)
    if isinstance(fields.get("passage"), str):
        return [_boolq_passage(fields)]
    return None


def gold_passages(fields: Mapping[str, Any], where: str) -> list[str]:
    """The ids of the passages that a record marks as supporting; empty when it marks none.

    A supporting fact whose passage is not in the record (HotpotQA's full-wiki files keep what was retrieved) is named
    by its title without a digest, so that it is still counted, and reported as unknown by `check_gold_ids`.
    """
    passages = passages_inside(fields, where) or []
    gold = [passage.id for passage in passages if passage.is_gold]
    if isinstance(fields.get("context"), str) or fields.get("supporting_facts") is None:
        return gold
    here = {passage.title for passage in passages}
    return gold + [title for title in _supporting_titles(fields, where) if title not in here]


# ---------------------------------------------------------------------------------------------------------
# The formats
# ---------------------------------------------------------------------------------------------------------


def _hotpot(fields: Mapping[str, Any], where: str) -> list[InnerPassage]:
    gold = set(_supporting_titles(fields, where))
    found = []
    for entry in as_objects(fields["context"], ("title", "sentences"), f"{where}: context"):
        title = as_text(entry, "title", f"{where}: context")
        sentences = entry.get("sentences")
        if not isinstance(sentences, list | tuple) or not all(isinstance(sentence, str) for sentence in sentences):
            raise DataError(
                f"{where}: sentences must be a list of texts, got {str(sentences)[:60]!r}. Correct the record."
            )
        # Releases split the same paragraph differently, and some begin a sentence with the blank before it.
        text = " ".join(" ".join(sentences).split())
        found.append(InnerPassage(passage_id(title, text), title, text, title in gold))
    return found


def _supporting_titles(fields: Mapping[str, Any], where: str) -> list[str]:
    facts = fields.get("supporting_facts")
    if facts is None:  # as in test files
        return []
    place = f"{where}: supporting_facts"
    names = ("title", "sent_id")
    return list(dict.fromkeys(as_text(fact, "title", place) for fact in as_objects(facts, names, place)))


def _musique(fields: Mapping[str, Any], where: str) -> list[InnerPassage]:
    place = f"{where}: paragraphs"
    found = []
    for entry in as_objects(fields["paragraphs"], ("title", "paragraph_text"), place):
        title, text = as_text(entry, "title", place), as_text(entry, "paragraph_text", place)
        found.append(InnerPassage(passage_id(title, text), title, text, entry.get("is_supporting") is True))
    return found


def _dpr(fields: Mapping[str, Any], where: str) -> list[InnerPassage]:
    found = []
    for field in DPR_FIELDS:
        place = f"{where}: {field}"
        for entry in as_objects(fields.get(field) or [], ("title", "text"), place):
            title, text = as_text(entry, "title", place), as_text(entry, "text", place)
            found.append(InnerPassage(_dpr_id(entry, title, text, place), title, text, field == "positive_ctxs"))
    return found


def _dpr_id(entry: Mapping[str, Any], title: str, text: str, where: str) -> str:
    given = next((entry[name] for name in _DPR_IDS if entry.get(name) is not None), None)
    # -1 and "" stand for "no passage of Wikipedia" in files that users made themselves.
    return (
        passage_id(title, text)
        if given in (None, "", -1, "-1")
        else checked_passage_id(given, where).removeprefix(_DPR_PREFIX)
    )


def checked_passage_id(value: object, where: str) -> str:
    """The id of a passage as text.

    Raises:
        DataError: It is neither text nor an integer.
    """
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{where}: the id of a passage must be text or an integer, got {value!r}. Correct the record.")


def _squad_record(fields: Mapping[str, Any]) -> list[InnerPassage] | None:
    """A record of SQuAD as `datasets` exports it; contexts in other files are not passages of a corpus."""
    answers = fields.get("answers")
    if not isinstance(answers, Mapping) and not (isinstance(answers, list) and not any(map(_is_not_span, answers))):
        return None
    return [squad_passage(fields.get("title"), fields["context"], fields.get("paragraph_id"))]


def _is_not_span(answer: object) -> bool:
    return not isinstance(answer, Mapping)


def _boolq_passage(fields: Mapping[str, Any]) -> InnerPassage:
    """The paragraph that a question is about; only the original files have its title."""
    title = fields["title"] if isinstance(fields.get("title"), str) else ""
    return InnerPassage(passage_id(title, fields["passage"]), title, fields["passage"], True)


def squad_passage(title: object, context: str, given: object = None) -> InnerPassage:
    """A paragraph of SQuAD; its titles are the last parts of Wikipedia's URLs, so they are decoded."""
    readable = unquote(title).replace("_", " ") if isinstance(title, str) else ""
    return InnerPassage(passage_id(readable, context) if given is None else str(given), readable, context, True)


def squad_paragraphs(article: Mapping[str, Any], where: Place) -> Iterator[tuple[Place, InnerPassage | None, Any]]:
    """Place, passage and questions of every paragraph of an article; no passage where it has no context."""
    for number, paragraph in enumerate(as_list(article.get("paragraphs"), f"{where}: paragraphs")):
        place = where.within(f"paragraph {number}")
        entry = as_object(paragraph, str(place))
        context, given = entry.get("context"), entry.get("id")
        known = isinstance(context, str) or given is not None
        passage = squad_passage(article.get("title"), as_text(entry, "context", str(place)), given) if known else None
        yield place, passage, entry.get("qas")


def is_squad_article(fields: Mapping[str, Any]) -> bool:
    """Whether a record is an article of SQuAD with its questions; MuSiQue's records also have a question."""
    return "paragraphs" in fields and "question" not in fields


def is_squad_file(fields: Mapping[str, Any]) -> bool:
    """Whether a record is a whole file of SQuAD, which may be one line."""
    return isinstance(fields.get("data"), list) and "question" not in fields
