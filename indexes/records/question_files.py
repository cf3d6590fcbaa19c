"""Passages that stand inside question files, and the ids by which their questions find them.

| format | where the passages stand | id | gold |
|---|---|---|---|
| HotpotQA, 2WikiMultihopQA | `context`: `[title, sentences]` | title and digest | titles of `supporting_facts` |
| MuSiQue | `paragraphs`: `title, paragraph_text` | title and digest | `is_supporting` |
| SQuAD | `data` > `paragraphs`: `context`; exported rows: `title, context` | title and digest | the question's own |
| BoolQ | `passage`, and `title` where it is given | title and digest | the question's own |
| DPR | `positive_ctxs, negative_ctxs, hard_negative_ctxs`, or `ctxs` | `passage_id`, `psg_id`, `id` | `positive_ctxs` |

A row that `datasets` exported has columns of lists where its owner's file has lists of records; both are read.

An id depends on the passage alone, so neither the order of a file nor its split changes it, and the passages of
several files can be one corpus. KILT keeps its passages in a file of their own, whose pages are read here too.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from indexes.errors import DataError
from indexes.records.formats import DPR_FIELDS, BrokenRow, Row, Rows, has_content

_DPR_IDS = ("passage_id", "psg_id", "id")
# What DPR's own tools put before the numbers of psgs_w100.tsv.
_DPR_PREFIX = "wiki:"
_KILT_HEADING = re.compile(r"^Section::::(.*?)\.?$", re.MULTILINE)
_KILT_BULLET = re.compile(r"^BULLET::::-?[ \t]*", re.MULTILINE)


class InnerPassage(NamedTuple):
    """A passage beside a question."""

    id: str
    title: str
    text: str
    is_gold: bool  # whether the file says that the answer rests on it


def passage_id(title: str, text: str) -> str:
    """The id of a passage whose file gives it none: its title, and twelve digits of a digest of title and text."""
    digest = hashlib.blake2b(f"{title}\x1f{text}".encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{title}~{digest}"


def passages_inside(fields: Mapping[str, Any], where: str) -> list[InnerPassage] | None:
    """The passages of a question's record in its order; None when it is no record that carries some.

    Raises:
        DataError: The record has the fields of one of the formats and something else inside them.
    """
    if "question" not in fields:
        return None
    if isinstance(fields.get("context"), str):
        return _squad_row(fields)
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
    """The ids of the passages that a record calls supporting; empty when it says nothing about them.

    A supporting fact whose passage is not in the record (HotpotQA's full-wiki files keep what was retrieved) is named
    by its title alone, so that it is still counted, and found to be unknown by whoever looks.
    """
    passages = passages_inside(fields, where) or []
    gold = [passage.id for passage in passages if passage.is_gold]
    if isinstance(fields.get("context"), str) or fields.get("supporting_facts") is None:
        return gold
    here = {passage.title for passage in passages}
    return gold + [title for title in _supporting_titles(fields, where) if title not in here]


def records(value: object, names: tuple[str, ...], where: str) -> list[Mapping[str, Any]]:
    """Records given as objects, as bare lists in the order of the names, or as one object of columns.

    Raises:
        DataError: It is none of these.
    """
    if isinstance(value, Mapping):
        columns = list(value.values())
        lists = all(isinstance(column, list | tuple) for column in columns) and set(names) <= set(value)
        if lists and len({len(column) for column in columns}) == 1:
            return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
        raise DataError(f"{where} must have the columns {', '.join(names)} of equal lengths, got {str(value)[:60]!r}.")
    return [_record(entry, names, f"{where}, entry {number}") for number, entry in enumerate(listed(value, where))]


def _record(entry: object, names: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if isinstance(entry, Mapping):
        return entry
    if isinstance(entry, list | tuple) and len(entry) == len(names):
        return dict(zip(names, entry, strict=True))
    raise DataError(f"{where} must hold {' and '.join(names)}, got {type(entry).__name__}: {str(entry)[:60]!r}.")


# ---------------------------------------------------------------------------------------------------------
# A corpus of them
# ---------------------------------------------------------------------------------------------------------


def passage_rows(rows: Rows) -> Rows:
    """Rows of passages as they are; a question's record becomes its passages, each where it stands first.

    About a hundred bytes are remembered of each passage that came out of a question's record.
    """
    seen: dict[int, int] = {}
    for row in rows:
        if isinstance(row, BrokenRow) or not _carries_passages(row.fields):
            yield row
        elif is_kilt_page(row.fields):
            yield from _as_rows(row, lambda row: [kilt_page(row.fields, str(row.place))])
        else:
            yield from _new_ones(_as_rows(row, _row_passages), seen)


def _carries_passages(fields: Mapping[str, Any]) -> bool:
    # A passage with fields of those names is still a passage.
    if isinstance(fields.get("text"), str) or fields.get("contents") is not None:
        return False
    if "question" in fields:
        inside = any(fields.get(field) is not None for field in ("context", "paragraphs", *DPR_FIELDS))
        return inside or isinstance(fields.get("passage"), str)
    return is_squad_article(fields) or is_squad_file(fields) or is_kilt_page(fields)


def _row_passages(row: Row) -> list[InnerPassage]:
    fields, where = row.fields, str(row.place)
    if "question" in fields:
        return passages_inside(fields, where) or []
    articles = fields["data"] if is_squad_file(fields) else [fields]
    paragraphs = (found for article in articles for found in squad_paragraphs(mapping(article, where), where))
    return [passage for _, passage, _ in paragraphs if passage is not None]


def _as_rows(row: Row, read: Callable[[Row], list[InnerPassage]]) -> Rows:
    try:
        passages = read(row)
    except DataError as error:
        yield BrokenRow(row.place, error, row.content)
        return
    for passage in passages:
        if has_content(passage.title, passage.text):
            yield Row(row.place, {"id": passage.id, "title": passage.title, "text": passage.text})


def _new_ones(rows: Rows, seen: dict[int, int]) -> Rows:
    for row in rows:
        if isinstance(row, BrokenRow):
            yield row
            continue
        id_, digest = row.fields["id"], hash((row.fields["title"], row.fields["text"]))
        before = seen.get(hash(id_))
        if before is None:
            seen[hash(id_)] = digest
            yield row
        elif before != digest:
            error = DataError(
                f"A passage that several questions share must be the same for all, but {id_!r} has another title or "
                f"text at {row.place} than before. Correct one of them."
            )
            yield BrokenRow(row.place, error, row.fields["text"])


# ---------------------------------------------------------------------------------------------------------
# The formats
# ---------------------------------------------------------------------------------------------------------


def _hotpot(fields: Mapping[str, Any], where: str) -> list[InnerPassage]:
    gold = set(_supporting_titles(fields, where))
    found = []
    for entry in records(fields["context"], ("title", "sentences"), f"{where}: context"):
        title = _text(entry, "title", f"{where}: context")
        sentences = entry.get("sentences")
        if not isinstance(sentences, list | tuple) or not all(isinstance(sentence, str) for sentence in sentences):
            raise DataError(f"{where}: sentences must be a list of texts, got {str(sentences)[:60]!r}. Mend the row.")
        # Some files cut the same paragraph differently, and some begin a sentence with the blank before it.
        text = " ".join(" ".join(sentences).split())
        found.append(InnerPassage(passage_id(title, text), title, text, title in gold))
    return found


def _supporting_titles(fields: Mapping[str, Any], where: str) -> list[str]:
    facts = fields.get("supporting_facts")
    if facts is None:  # as in test files
        return []
    place = f"{where}: supporting_facts"
    names = ("title", "sent_id")
    return list(dict.fromkeys(_text(fact, "title", place) for fact in records(facts, names, place)))


def _musique(fields: Mapping[str, Any], where: str) -> list[InnerPassage]:
    place = f"{where}: paragraphs"
    found = []
    for entry in records(fields["paragraphs"], ("title", "paragraph_text"), place):
        title, text = _text(entry, "title", place), _text(entry, "paragraph_text", place)
        found.append(InnerPassage(passage_id(title, text), title, text, entry.get("is_supporting") is True))
    return found


def _dpr(fields: Mapping[str, Any], where: str) -> list[InnerPassage]:
    found = []
    for field in DPR_FIELDS:
        place = f"{where}: {field}"
        for entry in records(fields.get(field) or [], ("title", "text"), place):
            title, text = _text(entry, "title", place), _text(entry, "text", place)
            found.append(InnerPassage(_dpr_id(entry, title, text, place), title, text, field == "positive_ctxs"))
    return found


def _dpr_id(entry: Mapping[str, Any], title: str, text: str, where: str) -> str:
    given = next((entry[name] for name in _DPR_IDS if entry.get(name) is not None), None)
    # -1 and "" stand for "no passage of Wikipedia" in files that people made themselves.
    return passage_id(title, text) if given in (None, "", -1, "-1") else _id(given, where).removeprefix(_DPR_PREFIX)


def _id(value: object, where: str) -> str:
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{where}: the id of a passage must be text or an integer, got {value!r}. Mend the row.")


def _squad_row(fields: Mapping[str, Any]) -> list[InnerPassage] | None:
    """A row as `datasets` exports SQuAD; other files have contexts of their own that are no corpus."""
    answers = fields.get("answers")
    if not isinstance(answers, Mapping) and not (isinstance(answers, list) and not any(map(_is_not_span, answers))):
        return None
    return [squad_passage(fields.get("title"), fields["context"], fields.get("paragraph_id"))]


def _is_not_span(answer: object) -> bool:
    return not isinstance(answer, Mapping)


def _boolq_passage(fields: Mapping[str, Any]) -> InnerPassage:
    """The paragraph that a question is asked about; only the owner's files have its title."""
    title = fields["title"] if isinstance(fields.get("title"), str) else ""
    return InnerPassage(passage_id(title, fields["passage"]), title, fields["passage"], True)


def squad_passage(title: object, context: str, given: object = None) -> InnerPassage:
    """A paragraph of SQuAD; its titles are the ends of Wikipedia's addresses, so they are made readable."""
    readable = unquote(title).replace("_", " ") if isinstance(title, str) else ""
    return InnerPassage(passage_id(readable, context) if given is None else str(given), readable, context, True)


def squad_paragraphs(article: Mapping[str, Any], where: str) -> Iterator[tuple[str, InnerPassage | None, Any]]:
    """Place, passage and questions of every paragraph of an article; no passage where it has no context."""
    for number, paragraph in enumerate(listed(article.get("paragraphs"), f"{where}: paragraphs")):
        place = f"{where}, paragraph {number}"
        entry = mapping(paragraph, place)
        context, given = entry.get("context"), entry.get("id")
        known = isinstance(context, str) or given is not None
        passage = squad_passage(article.get("title"), _text(entry, "context", place), given) if known else None
        yield place, passage, entry.get("qas")


def is_squad_article(fields: Mapping[str, Any]) -> bool:
    """Whether a record is an article of SQuAD with its questions inside; MuSiQue's records have a question too."""
    return "paragraphs" in fields and "question" not in fields


def is_squad_file(fields: Mapping[str, Any]) -> bool:
    """Whether a record is a whole file of SQuAD, which may stand on one line."""
    return isinstance(fields.get("data"), list) and "question" not in fields


def is_kilt_page(fields: Mapping[str, Any]) -> bool:
    """Whether a record is a page of KILT's knowledge source, in whose file or as `datasets` exports it."""
    return "wikipedia_title" in fields and isinstance(fields.get("text"), list | tuple | Mapping)


def kilt_page(fields: Mapping[str, Any], where: str) -> InnerPassage:
    """A page of KILT's knowledge source: one passage, named by its page as its questions name their provenance.

    The first paragraph repeats the title. Headings (`Section::::History.:Youth.`) become lines of their own, and so do
    the items of lists.
    """
    text = fields["text"]
    paragraphs = text.get("paragraph") if isinstance(text, Mapping) else text
    if not isinstance(paragraphs, list | tuple) or not all(isinstance(paragraph, str) for paragraph in paragraphs):
        raise DataError(f"{where}: the text of a KILT page must be a list of paragraphs, got {str(text)[:60]!r}.")
    title = _text(fields, "wikipedia_title", where)
    lines = [paragraph.strip() for paragraph in paragraphs]
    if lines and lines[0] == title.strip():
        lines = lines[1:]
    body = "\n".join(line for line in lines if line)
    body = _KILT_HEADING.sub(lambda match: match[1].replace(".:", ": "), body)
    body = _KILT_BULLET.sub("- ", body)
    id_ = next((fields[key] for key in ("wikipedia_id", "_id", "kilt_id") if fields.get(key) is not None), None)
    if id_ is None or not str(id_).strip():
        raise DataError(f"{where}: a KILT page must have its wikipedia_id; this one, {title!r}, has none.")
    return InnerPassage(_id(id_, where).strip(), title, body, False)


def mapping(value: object, where: str) -> Mapping[str, Any]:
    """The value itself, if it is an object.

    Raises:
        DataError: It is none.
    """
    if isinstance(value, Mapping):
        return value
    raise DataError(f"{where}: every record must be a JSON object, got {type(value).__name__}: {str(value)[:60]!r}.")


def check_unicode(text: str, where: str) -> str:
    r"""The text itself, if UTF-8 can write it.

    Raises:
        DataError: It holds half a surrogate pair, as JSON's escapes can ("\ud83d" without what follows it).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: a text must be whole characters; {text[error.start]!r} at character {error.start + 1} is half "
            "of one. Mend the row."
        ) from error
    return text


def listed(value: object, where: str) -> list[Any]:
    """The value itself, if it is a list.

    Raises:
        DataError: It is none.
    """
    if isinstance(value, list | tuple):
        return list(value)
    raise DataError(f"{where} must be a list, got {type(value).__name__}: {str(value)[:60]!r}.")


def _text(fields: Mapping[str, Any], key: str, where: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise DataError(f"{where}: {key} must be text, got {type(value).__name__}: {str(value)[:60]!r}. Mend the row.")
