"""From the records of any supported format to passages.

    records of a file -> records with id, title and text (one for each passage) -> `Passage`

Most records are a passage. A page of KILT's knowledge source is one in other fields, and a question's record becomes
the passages that are stored with it (`indexes.records.question_files`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from indexes.corpora.passage import Passage
from indexes.errors import DataError
from indexes.records.field_types import as_object, as_text
from indexes.records.question_files import (
    DPR_FIELDS,
    InnerPassage,
    checked_passage_id,
    is_squad_article,
    is_squad_file,
    passages_inside,
    squad_paragraphs,
)
from indexes.records.record import ID_FIELDS, BrokenRecord, Record, RecordStream
from indexes.records.tables import TableIndex, column_names, table_index

TEXT_FIELDS = ("text", "contents")
FIELDS = (*ID_FIELDS, "title", *TEXT_FIELDS)
# The columns of a table of questions with passages inside, and of KILT's pages.
_QUESTION_COLUMNS = (
    "question",
    "title",
    "context",
    "supporting_facts",
    "paragraphs",
    "passage",
    "answers",
    *DPR_FIELDS,
)
_KILT_COLUMNS = ("wikipedia_id", "kilt_id", "wikipedia_title", "text")
_KILT_HEADING = re.compile(r"^Section::::(.*?)\.?$", re.MULTILINE)
_KILT_BULLET = re.compile(r"^BULLET::::-?[ \t]*", re.MULTILINE)


# ---------------------------------------------------------------------------------------------------------
# Columns of tables
# ---------------------------------------------------------------------------------------------------------


def passage_columns(schema: pa.Schema, name: str) -> tuple[list[str], TableIndex | None]:
    """The columns of a table that passages are read from, and the index of pandas as the id where no column is.

    Raises:
        DataError: No column holds a text, or the index that would be the id is unfit for it.
    """
    names = column_names(schema)
    known = known_columns(names)
    of_passages = set(known) <= set(FIELDS)
    if of_passages:
        check_columns(names, name)
    index = table_index(schema, known, name, needs_id=of_passages)
    return [column for column in known if column in schema.names], index


def known_columns(names: Sequence[str]) -> list[str]:
    """The columns that passages are read from: those of passages, of questions with passages inside, or of KILT."""
    if "wikipedia_title" in names:
        fields: tuple[str, ...] = _KILT_COLUMNS
    elif "question" in names and not set(TEXT_FIELDS) & set(names) and set(_QUESTION_COLUMNS[2:]) & set(names):
        fields = _QUESTION_COLUMNS
    else:
        fields = FIELDS
    return [name for name in names if name in fields]


def check_columns(names: Sequence[str], where: str) -> None:
    """Check that a table of passages has a text, and no field twice.

    Raises:
        DataError: It has none, or a field twice.
    """
    if not any(field in names for field in TEXT_FIELDS):
        raise DataError(
            f'{where}: a table of passages must have the column "text" (or FlashRAG\'s "contents"), got '
            f"{sorted(names)[:50]}. Rename the column that holds the text, or add the header if it is missing."
        )
    repeated = [field for field in FIELDS if list(names).count(field) > 1]
    if repeated:
        raise DataError(f"{where}: a column must appear once, got {repeated} twice. Rename or remove one of them.")


# ---------------------------------------------------------------------------------------------------------
# Questions and pages -> records with id, title and text
# ---------------------------------------------------------------------------------------------------------


def passage_records(records: RecordStream) -> RecordStream:
    """Records of passages as they are; a question's record becomes its passages, each where it is first found.

    About a hundred bytes are kept of each passage that is taken out of a question's record.
    """
    seen: dict[int, int] = {}
    for record in records:
        if isinstance(record, BrokenRecord) or not _stores_passages(record.fields):
            yield record
        elif is_kilt_page(record.fields):
            yield from _one_record_each(record, _kilt_passages)
        else:
            yield from _first_occurrences(_one_record_each(record, _question_passages), seen)


def _stores_passages(fields: Mapping[str, Any]) -> bool:
    # A passage with further fields of those names is still a passage.
    if isinstance(fields.get("text"), str) or fields.get("contents") is not None:
        return False
    if "question" in fields:
        inside = any(fields.get(field) is not None for field in ("context", "paragraphs", *DPR_FIELDS))
        return inside or isinstance(fields.get("passage"), str)
    return is_squad_article(fields) or is_squad_file(fields) or is_kilt_page(fields)


def _question_passages(record: Record) -> list[InnerPassage]:
    fields = record.fields
    if "question" in fields:
        return passages_inside(fields, record.where) or []
    articles = fields["data"] if is_squad_file(fields) else [fields]
    paragraphs = (
        found for article in articles for found in squad_paragraphs(as_object(article, record.where), record.place)
    )
    return [passage for _, passage, _ in paragraphs if passage is not None]


def _kilt_passages(record: Record) -> list[InnerPassage]:
    return [kilt_page(record.fields, record.where)]


def _one_record_each(record: Record, read: Callable[[Record], list[InnerPassage]]) -> RecordStream:
    try:
        passages = read(record)
    except DataError as error:
        yield BrokenRecord(record.place, error, record.content)
        return
    for passage in passages:
        if has_content(passage.title, passage.text):
            yield Record(record.place, {"id": passage.id, "title": passage.title, "text": passage.text})


def _first_occurrences(records: RecordStream, seen: dict[int, int]) -> RecordStream:
    for record in records:
        if isinstance(record, BrokenRecord):
            yield record
            continue
        id_, digest = record.fields["id"], hash((record.fields["title"], record.fields["text"]))
        before = seen.get(hash(id_))
        if before is None:
            seen[hash(id_)] = digest
            yield record
        elif before != digest:
            error = DataError(
                f"{record.place}: a passage that several questions share must be the same for all, got {id_!r} with "
                "another title or text than before. Correct one of them."
            )
            yield BrokenRecord(record.place, error, record.fields["text"])


def is_kilt_page(fields: Mapping[str, Any]) -> bool:
    """Whether a record is a page of KILT's knowledge source, as shipped or as `datasets` exports it."""
    return "wikipedia_title" in fields and isinstance(fields.get("text"), list | tuple | Mapping)


def kilt_page(fields: Mapping[str, Any], where: str) -> InnerPassage:
    """A page of KILT's knowledge source: one passage, whose id is the page's, as in the provenance of KILT's questions.

    The first paragraph repeats the title and is left out. Headings (`Section::::History.:Youth.`) and the items of
    lists become lines of their own.
    """
    text = fields["text"]
    paragraphs = text.get("paragraph") if isinstance(text, Mapping) else text
    if not isinstance(paragraphs, list | tuple) or not all(isinstance(paragraph, str) for paragraph in paragraphs):
        raise DataError(
            f"{where}: the text of a KILT page must be a list of paragraphs, got {str(text)[:60]!r}. Correct it."
        )
    title = as_text(fields, "wikipedia_title", where)
    lines = [paragraph.strip() for paragraph in paragraphs]
    if lines and lines[0] == title.strip():
        lines = lines[1:]
    body = "\n".join(line for line in lines if line)
    body = _KILT_HEADING.sub(lambda match: match[1].replace(".:", ": "), body)
    body = _KILT_BULLET.sub("- ", body)
    id_ = next((fields[key] for key in ("wikipedia_id", "_id", "kilt_id") if fields.get(key) is not None), None)
    if id_ is None or not str(id_).strip():
        raise DataError(f"{where}: a KILT page must have a wikipedia_id, got none for {title!r}. Add it.")
    return InnerPassage(checked_passage_id(id_, where).strip(), title, body, False)


# ---------------------------------------------------------------------------------------------------------
# A record -> a passage
# ---------------------------------------------------------------------------------------------------------


def parse_passage(record: Record) -> Passage:
    """The passage of a record with the fields of `Corpus.from_file`.

    Raises:
        DataError: A field has the wrong type, or there is neither a title nor a text.
    """
    fields, where = record.fields, record.where
    id_ = _id(fields, str(record.position), where)
    title, text = _string(fields, "title", where), _string(fields, "text", where)
    if not text.strip():
        if fields.get("contents") is not None:
            title, text = _split_contents(_string(fields, "contents", where), title)
        # A field of another name may hold the text, so a title without a text needs a "text" that is empty.
        elif fields.get("text") is None and not (title.strip() and any(field in fields for field in TEXT_FIELDS)):
            raise DataError(
                f'{where}: a passage must have a "text" (or FlashRAG\'s "contents"), got only '
                f"{sorted(str(key) for key in fields if fields[key] is not None)}. Rename the field with the text."
            )
    if not has_content(title, text):
        raise DataError(
            f"{where}: a passage must have a title or a text, got neither (id {id_!r}). Remove or fill the record."
        )
    return Passage(id_, title, text)


def has_content(title: str, text: str) -> bool:
    """What every passage must have, whatever its format: a title or a text that is not blank.

    BEIR embeds title and text as one string, so a document without a text (in TREC-COVID those without an abstract)
    is found by its title.
    """
    return bool(title.strip() or text.strip())


def _id(fields: Mapping[str, Any], fallback: str, where: str) -> str:
    value = next((fields[key] for key in ID_FIELDS if fields.get(key) is not None), None)
    if value is None:
        return fallback
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(
            f"{where}: an id must be a non-empty string or an integer, got {value!r}. Correct it, or leave the field "
            "out to number the records."
        )
    return str(value)


def _string(fields: Mapping[str, Any], key: str, where: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f'{where}: "{key}" must be a string, got {type(value).__name__}. Convert it first.')
    return value


def _split_contents(contents: str, given_title: str) -> tuple[str, str]:
    """The title and the text inside the field `contents`, which FlashRAG and Pyserini write as title, newline, text.

    FlashRAG (docs/original_docs, "build corpus", and `PromptTemplate.format_reference`) takes the first line as the
    title and begins contents without a title with a newline; its wiki18_100w.jsonl has the titles in double quotes.
    Pyserini (`JsonlCollectionIterator`) splits at a delimiter, by default a newline, for Mr. TyDi a blank line; a
    single line, which its JSON collections have too, is all text. A title in a field of its own is the title, and
    `contents` may repeat it.
    """
    first, newline, rest = contents.partition("\n")
    title = _without_quotes(first.strip())
    if given_title.strip():
        repeated = title == _without_quotes(given_title.strip())
        return given_title, rest.lstrip("\r\n") if repeated else contents
    if not newline or not rest.strip():
        return "", contents.strip()
    return title, rest.lstrip("\r\n")


def _without_quotes(title: str) -> str:
    return title[1:-1] if len(title) >= 2 and title[0] == title[-1] == '"' else title
