"""Question files as records: lines, one JSON document, tables, DPR's delimited text, BEIR's folders and archives.

The container of a question file is recognised by its content, never by its name. Everything except the files of one
object (SQuAD) and the judgements of a BEIR split is streamed, so the first questions of a large file cost no more than
those of a small one. A record that is broken comes out as a `BrokenRecord`; what makes the rest of a file unreadable (a
truncated archive, a document that is no JSON) is raised.
"""

import itertools
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import datasets
import pyarrow as pa

from indexes.errors import DataError
from indexes.records.answer_lists import answer_literal
from indexes.records.archives import open_archive
from indexes.records.delimited import BrokenLine, Quoting, check_quoting, delimited_records
from indexes.records.field_types import as_list, as_object
from indexes.records.formats import (
    json_line_records,
    read_arrow,
    read_delimited,
    read_json_array,
    read_json_lines,
    read_parquet,
    text_head,
)
from indexes.records.json_documents import is_json_document
from indexes.records.question_files import is_squad_article, is_squad_file, squad_paragraphs
from indexes.records.record import ID_FIELDS, BrokenRecord, Place, Record, RecordStream, numbered
from indexes.records.saved_datasets import is_saved_dataset, load_saved_dataset, read_dataset, refuse_split
from indexes.records.tables import TableIndex, table_index
from indexes.records.text_lines import plain_or_gzip, read_lines

_ZIP_MAGIC = b"PK\x03\x04"
_PARQUET_MAGIC = b"PAR1"
_ARROW_MAGIC = b"ARROW1"
_ARROW_STREAM_MAGIC = b"\xff\xff\xff\xff"
_WHOLE_NUMBER = re.compile(r"(-?[0-9]{1,9})(?:\.0*)?")  # pandas writes 1.0 where a judgement of the column is missing
# Fields that a format reads by their name; an index of pandas with such a name is no id.
_READ_BY_NAME = (
    *ID_FIELDS,
    *("question", "answer", "answers", "golden_answers", "input", "output", "title", "text", "context"),
    *("prompt", "response", "query_id"),
)
# One of these in the first line of delimited text makes it a header.
_QUESTION_COLUMNS = ("question", "input")
_QRELS_HEADER = ["query-id", "corpus-id", "score"]


def open_records(
    source: str | Path | datasets.Dataset, split: str | None = None, *, quoting: Quoting = "auto"
) -> RecordStream:
    """The records of a question file, folder, archive or dataset, in order and numbered from 0.

    Args:
        source: A path or a dataset.
        split: The split of a BEIR dataset or a saved dataset.
        quoting: How DPR's questions and BEIR's judgements are quoted; see `delimited_records`.

    Raises:
        DataError: The source is missing, empty, or unreadable as a whole.
        UsageError: A split is asked for where there is none, or there is no such quoting.
    """
    check_quoting(quoting)
    if isinstance(source, datasets.Dataset):
        refuse_split(split, "the dataset")
        return _expanded(read_dataset(source, "the dataset", _question_columns))
    path = Path(source)
    if path.is_dir():
        return _folder(path, split, quoting)
    if not path.is_file():
        raise DataError(f"{path}: a question file must exist, got none. Check the path.")
    return _file(path, split, quoting)


def _folder(path: Path, split: str | None, quoting: Quoting) -> RecordStream:
    if is_saved_dataset(path):
        return _expanded(read_dataset(load_saved_dataset(path, split), str(path), _question_columns))
    return numbered(_beir(path, str(path), split, quoting))


def _file(path: Path, split: str | None, quoting: Quoting) -> RecordStream:
    with path.open("rb") as file:
        magic = file.read(len(_ARROW_MAGIC))
    if magic.startswith(_ZIP_MAGIC):
        return numbered(_beir_archive(path, split, quoting))
    if path.name == "queries.jsonl" and split is not None:
        return numbered(_beir(path.parent, str(path.parent), split, quoting))
    refuse_split(split, str(path))
    if magic.startswith(_PARQUET_MAGIC):
        return _expanded(read_parquet(path, str(path), _question_columns))
    if magic == _ARROW_MAGIC or magic.startswith(_ARROW_STREAM_MAGIC):
        return _expanded(read_arrow(path, str(path), _question_columns))
    return _text(path, quoting)


def _question_columns(schema: pa.Schema, name: str) -> tuple[Sequence[str], TableIndex | None]:
    """All columns of a table, with the index of pandas as the id where no column is."""
    return schema.names, table_index(schema, _READ_BY_NAME, name)


# ---------------------------------------------------------------------------------------------------------
# Text: lines, one document, DPR's questions
# ---------------------------------------------------------------------------------------------------------


def _text(path: Path, quoting: Quoting) -> RecordStream:
    name, head = str(path), text_head(path)
    if head is None:
        return read_json_lines(path, name)
    if not head.strip("\ufeff \t\r\n"):
        raise DataError(f"{path}: a question file must hold at least one question, got an empty file. Check the path.")
    if _is_dpr_text(head):
        return numbered(_dpr_records(path, quoting))
    if (delimiter := _header_delimiter(head)) is not None:
        return numbered(read_delimited(path, name, delimiter, quoting, _check_header))
    return _expanded(read_json_array(path, name) if is_json_document(head) else read_json_lines(path, name))


def _is_dpr_text(head: str) -> bool:
    """Whether the first line is `question<TAB>['an answer', ...]`, as no JSON begins."""
    line = head.lstrip("\ufeff \t\r\n").partition("\n")[0]
    # The line may be longer than the head, and its question may begin with a quote that is a plain character.
    _, tab, answers = line.rpartition("\t")
    return bool(tab) and answers.lstrip('" ').startswith(("[", "(")) and line[0] not in "[{"


def _header_delimiter(head: str) -> str | None:
    """The comma or tab of a first line that names columns, one of them the question; None of any other line."""
    line = head.lstrip("\ufeff \t\r\n").partition("\n")[0].rstrip("\r")
    for delimiter in ("\t", ","):
        columns = [column.strip('"') for column in line.split(delimiter)]
        if len(columns) > 1 and any(name in columns for name in _QUESTION_COLUMNS):
            return delimiter
    return None


def _check_header(columns: Sequence[str], where: str) -> None:
    repeated = sorted({column for column in columns if list(columns).count(column) > 1})
    if repeated:
        raise DataError(f"{where}: a column must appear once, got {repeated} more often. Rename or remove the others.")


def _dpr_records(path: Path, quoting: Quoting) -> RecordStream:
    lines = read_lines(plain_or_gzip(path), str(path))
    for record in delimited_records(lines, str(path), delimiter="\t", quoting=quoting, fields=2):
        if isinstance(record, BrokenLine):
            yield BrokenRecord(Place(str(path), "line", record.line.number), record.error, record.line.text)
            continue
        place = Place(str(path), "line", record.lines[0].number)
        if record.error:
            yield BrokenRecord(place, record.error, record.content)
        else:
            yield _dpr_record(record.values, place, record.content)


def _dpr_record(values: list[str], place: Place, content: str) -> Record | BrokenRecord:
    try:
        if len(values) != 2:
            raise DataError(
                f"{place}: a line must be a question and its answers, got {len(values)} fields. Correct the line."
            )
        # As in DPR's other files, whose questions have no ids either, and without passages.
        answers = answer_literal(values[1], str(place))
        return Record(place, {"question": values[0], "answers": answers, "positive_ctxs": []}, content)
    except DataError as error:
        return BrokenRecord(place, error, content)


# ---------------------------------------------------------------------------------------------------------
# The questions inside SQuAD's articles
# ---------------------------------------------------------------------------------------------------------


def _expanded(records: RecordStream) -> RecordStream:
    """Records with the questions inside SQuAD's articles taken out, numbered from 0, broken ones as well."""
    return numbered(itertools.chain.from_iterable(map(_questions, records)))


def _questions(record: Record | BrokenRecord) -> RecordStream:
    """The record itself, or the questions inside when it is an article, or a whole file, of SQuAD."""
    if isinstance(record, BrokenRecord):
        yield record
    elif is_squad_file(record.fields):
        for number, entry in enumerate(record.fields["data"]):
            yield from _questions(Record(record.place.within(f"record {number}"), as_object(entry, record.where)))
    elif is_squad_article(record.fields):
        yield from _squad_questions(record)
    else:
        yield record


def _squad_questions(record: Record) -> RecordStream:
    try:
        for place, passage, questions in squad_paragraphs(record.fields, record.place):
            paragraph = {"title": passage.title, "context": passage.text, "paragraph_id": passage.id} if passage else {}
            for number, question in enumerate(as_list(questions, f"{place}: qas")):
                inside = place.within(f"question {number}")
                yield Record(inside, {**paragraph, **as_object(question, str(inside))})
    # The rest of an article after a damaged paragraph is left out with it.
    except DataError as error:
        yield BrokenRecord(record.place, error)


# ---------------------------------------------------------------------------------------------------------
# BEIR: queries.jsonl and qrels/SPLIT.tsv, in a folder or in the archive that is shipped
# ---------------------------------------------------------------------------------------------------------


class _Judgement(NamedTuple):
    """How relevant a passage is for a question, and where the file says so."""

    grade: int
    where: str


def _beir_archive(path: Path, split: str | None, quoting: Quoting) -> RecordStream:
    with open_archive(path, str(path)) as archive:
        yield from _beir(zipfile.Path(archive), str(path), split, quoting)


def _beir(folder: Path | zipfile.Path, name: str, split: str | None, quoting: Quoting) -> RecordStream:
    """The questions of a split with the ids and grades of the passages that were judged relevant for them."""
    root = _beir_root(folder, name)
    judgements = _judgements(root, name, split, quoting)
    place = f"{name}/queries.jsonl"
    seen: dict[str, dict[str, _Judgement]] = {}
    for record in json_line_records(read_lines(lambda: _open_bytes(root / "queries.jsonl"), place), place):
        if isinstance(record, BrokenRecord):
            yield record
        elif (key := _key(record.fields.get("_id"))) in judgements or key in seen:
            # Kept, so that a second question of one id is yielded and refused as such.
            judged = seen.setdefault(key, judgements.pop(key, {}))
            relevant = {id_: judgement.grade for id_, judgement in judged.items() if judgement.grade > 0}
            gold = {"gold_ids": list(relevant), "gold_grades": list(relevant.values())}
            yield record._replace(fields={**record.fields, **gold})
    for query, judged in judgements.items():
        where = next(iter(judged.values())).where
        error = DataError(f"{where}: every query-id must be in queries.jsonl, got {query!r}. Fetch both files again.")
        yield BrokenRecord(Place(f"{name}/qrels", "record", query), error)


def _open_bytes(path: Path | zipfile.Path) -> BinaryIO:
    return path.open("rb")  # type: ignore[return-value]


def _key(value: object) -> str:
    # Judgements are text, and the id 42.0 of a question is their 42 (`indexes.records.whole_numbers`).
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return "" if whole is None else str(whole)


def _beir_root(folder: Path | zipfile.Path, name: str) -> Path | zipfile.Path:
    inner = [entry for entry in folder.iterdir() if entry.is_dir() and entry.name != "__MACOSX"]
    found = [place for place in [folder, *inner] if (place / "queries.jsonl").is_file()]
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"{name}: a folder or archive of questions must be BEIR's, with one queries.jsonl, got {len(found)}. Pass the "
        "question file itself, or the folder of one of the datasets."
    )


def _judgements(
    root: Path | zipfile.Path, name: str, split: str | None, quoting: Quoting
) -> dict[str, dict[str, _Judgement]]:
    """Every judgement, by question and passage; of repeated pairs the highest grade."""
    folder = root / "qrels"
    splits = (
        sorted(file.name[:-4] for file in folder.iterdir() if file.name.endswith(".tsv")) if folder.is_dir() else []
    )
    if split is None and len(splits) == 1:
        split = splits[0]
    if split is None or split not in splits:
        given = "no split" if split is None else f"split={split!r}"
        raise DataError(
            f"{name}: one of the splits {splits} in the folder qrels must be chosen, got {given}. Pass split=... with "
            "one of them."
        )
    judged: dict[str, dict[str, _Judgement]] = {}
    place = f"{name}/qrels/{split}.tsv"
    for query, passage, judgement in _qrels(folder / f"{split}.tsv", place, quoting):
        of_query = judged.setdefault(query, {})
        of_query[passage] = max(of_query.get(passage, judgement), judgement)
    return judged


def _qrels(file: Path | zipfile.Path, name: str, quoting: Quoting) -> Iterator[tuple[str, str, _Judgement]]:
    lines = read_lines(lambda: _open_bytes(file), name)
    records = delimited_records(lines, name, delimiter="\t", quoting=quoting, fields=len(_QRELS_HEADER))
    for position, record in enumerate(records):
        if isinstance(record, BrokenLine):
            raise record.error
        if record.error:
            raise record.error
        values, where = record.values, f"{name}:{record.lines[0].number}"
        if position == 0:
            if values != _QRELS_HEADER:
                raise DataError(f"{where}: the first line must be {' '.join(_QRELS_HEADER)}, got {values}. Add it.")
            continue
        grade = _WHOLE_NUMBER.fullmatch(values[2].strip()) if len(values) == 3 else None
        if grade is None:
            raise DataError(
                f"{where}: a judgement must be query-id, corpus-id and a whole number, got {values}. Correct the line."
            )
        yield values[0], values[1], _Judgement(int(grade[1]), where)
