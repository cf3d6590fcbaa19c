"""Question files as records, each with its place: lines, one JSON document, tables, DPR's delimited text, BEIR.

What a file holds is recognised by its content, never by its name. Everything but the files of an object (SQuAD) and of
a BEIR split's judgements is streamed, so the first questions of a file of gigabytes cost no more than those of a small
one. A record that is broken comes out as one, so that the caller may leave it out; what makes the rest of a file
unreadable (a truncated archive, a document that is no JSON) is raised.
"""

import gzip
import itertools
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import datasets

from indexes.corpora.sources import load_saved_dataset
from indexes.errors import DataError, UsageError
from indexes.records.answer_lists import answer_literal
from indexes.records.delimited import BrokenLine, Line, Quoting, check_quoting, delimited_records
from indexes.records.formats import ID_FIELDS, BrokenRow, table_rows, unreadable_table
from indexes.records.json_documents import HEAD_BYTES, is_json_document, read_json_document
from indexes.records.question_files import is_squad_article, is_squad_file, listed, mapping, squad_paragraphs
from indexes.records.tables import ArrowTable, dataset_table, indexed_batches, open_arrow, open_parquet, table_index

_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = b"PK\x03\x04"
_PARQUET_MAGIC = b"PAR1"
_ARROW_MAGIC = b"ARROW1"
_ARROW_STREAM_MAGIC = b"\xff\xff\xff\xff"
_WHOLE_NUMBER = re.compile(r"(-?[0-9]{1,9})(?:\.0*)?")  # pandas writes 1.0 where a judgement of the column is missing
# Fields that a format reads by their name; an index of pandas that is called so is no id.
_READ_BY_NAME = (
    *ID_FIELDS,
    *("question", "answer", "answers", "golden_answers", "input", "output", "title", "text", "context"),
    *("prompt", "response", "query_id"),
)
# Columns by which the first line of delimited text is known as a header.
_QUESTION_COLUMNS = ("question", "input")
_QRELS_HEADER = ["query-id", "corpus-id", "score"]


class Record(NamedTuple):
    """The fields at one place of a file."""

    where: str  # file and line, or file and record number: the start of every error message
    number: int  # counted from 0: the id of a record that has none
    fields: Mapping[str, Any]


class BrokenRecord(NamedTuple):
    """A place whose fields cannot be read, and why."""

    error: DataError


Records = Iterator[Record | BrokenRecord]


def open_records(
    source: str | Path | datasets.Dataset, split: str | None = None, *, quoting: Quoting = "auto"
) -> Records:
    """The records of a question file, folder, archive or dataset, in order.

    Args:
        source: Where they are.
        split: The part of BEIR's or of a saved dataset.
        quoting: How DPR's questions and BEIR's judgements are quoted; see `delimited_records`.

    Raises:
        DataError: It is missing, empty, or unreadable as a whole.
        UsageError: A split is asked for where there is none, or there is no such quoting.
    """
    check_quoting(quoting)
    if isinstance(source, datasets.Dataset):
        _refuse_split(split, "the dataset")
        return _table_records(dataset_table(source), "the dataset")
    path = Path(source)
    if path.is_dir():
        return _folder(path, split, quoting)
    if not path.is_file():
        raise DataError(f"A question file must be a JSONL or JSON file; {path} does not exist. Check the path.")
    return _file(path, split, quoting)


def _folder(path: Path, split: str | None, quoting: Quoting) -> Records:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return _table_records(dataset_table(load_saved_dataset(path, split)), str(path))
    return _beir(path, str(path), split, quoting)


def _file(path: Path, split: str | None, quoting: Quoting) -> Records:
    with path.open("rb") as file:
        magic = file.read(len(_ARROW_MAGIC))
    if magic.startswith(_ZIP_MAGIC):
        return _zip(path, split, quoting)
    if path.name == "queries.jsonl" and split is not None:
        return _beir(path.parent, str(path.parent), split, quoting)
    _refuse_split(split, str(path))
    if magic.startswith(_PARQUET_MAGIC):
        return _parquet(path)
    if magic == _ARROW_MAGIC or magic.startswith(_ARROW_STREAM_MAGIC):
        return _arrow(path)
    return _text(path, quoting)


def _refuse_split(split: str | None, name: str) -> None:
    if split is not None:
        raise UsageError(
            f"A split names a part of a dataset, but {name} has no parts and split={split!r} came. Leave it out."
        )


# ---------------------------------------------------------------------------------------------------------
# Text: lines, one document, DPR's questions
# ---------------------------------------------------------------------------------------------------------


def _text(path: Path, quoting: Quoting) -> Records:
    head = _head(path)
    if not head.strip("\ufeff \t\r\n"):
        raise DataError(f"{path}: a question file must hold at least one question; this one is empty. Check the path.")
    if _is_dpr_text(head):
        return _dpr_records(path, quoting)
    if (delimiter := _header_delimiter(head)) is not None:
        return _delimited_records(path, delimiter, quoting)
    return _numbered(_document_records(path) if is_json_document(head) else _line_records(path))


def _head(path: Path) -> str:
    """How the text of a file begins, from the first line on that is not blank."""
    try:
        with _open(path) as file:
            while not (head := file.read(HEAD_BYTES)).strip() and head:
                pass
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return "{"  # a broken archive; whoever reads its lines says which of them is the last
    return head.decode("utf-8-sig", errors="ignore")


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    return cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Every line with its number from 1; plain or gzipped."""
    with _open(path) as file:
        yield from numbered_lines(file, str(path))


def numbered_lines(file: Iterable[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Every line of a stream with its number from 1.

    Raises:
        DataError: A line is no UTF-8, or the stream breaks off.
    """
    number = 0
    try:
        for number, line in enumerate(file, start=1):
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}:{number}: a question file must be UTF-8; byte {error.start + 1} of this line is not "
            f"({error.reason}). Convert the file."
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{name}: the gzip stream must be whole; it breaks after line {number} ({error}). "
            "Copy or download the file again."
        ) from error


def _line_records(path: Path) -> Records:
    return _json_lines(_lines(path), str(path))


def _json_lines(lines: Iterable[tuple[int, str]], name: str) -> Records:
    for line_number, text in lines:
        if not text.strip():
            continue
        where = f"{name}:{line_number}"
        try:
            yield Record(where, 0, mapping(json.loads(text), where))
        except json.JSONDecodeError as error:
            yield BrokenRecord(
                DataError(
                    f"{where}: every line must be one JSON object; this one breaks at column {error.colno} "
                    f"({error.msg}). Mend or delete the line."
                )
            )
        except (ValueError, RecursionError) as error:
            reason = error if isinstance(error, DataError) else DataError(f"{where}: a line must be JSON; {error}.")
            yield BrokenRecord(reason)


def _document_records(path: Path) -> Records:
    with _open(path) as file:
        for position, entry in enumerate(read_json_document(cast(BinaryIO, file), str(path))):
            where = f"{path}, record {position}"
            try:
                yield Record(where, 0, mapping(entry, where))
            except DataError as error:
                yield BrokenRecord(error)


def _numbered(records: Records) -> Records:
    """Records with the questions inside SQuAD's articles taken out, numbered from 0, broken ones as well."""
    questions = itertools.chain.from_iterable(map(_questions, records))
    for number, record in enumerate(questions):
        yield record._replace(number=number) if isinstance(record, Record) else record


def _questions(record: Record | BrokenRecord) -> Records:
    """The record itself, or the questions inside when it is an article, or a whole file, of SQuAD."""
    if isinstance(record, BrokenRecord):
        yield record
    elif is_squad_file(record.fields):
        for number, entry in enumerate(record.fields["data"]):
            yield from _questions(Record(f"{record.where}, record {number}", 0, mapping(entry, record.where)))
    elif is_squad_article(record.fields):
        yield from _squad(record)
    else:
        yield record


def _squad(record: Record) -> Records:
    try:
        for place, passage, questions in squad_paragraphs(record.fields, record.where):
            about = {"title": passage.title, "context": passage.text, "paragraph_id": passage.id} if passage else {}
            for number, question in enumerate(listed(questions, f"{place}: qas")):
                where = f"{place}, question {number}"
                yield Record(where, 0, {**about, **mapping(question, where)})
    # What follows a damaged paragraph in its article is left out with it.
    except DataError as error:
        yield BrokenRecord(error)


def _is_dpr_text(head: str) -> bool:
    """Whether the first line is `question<TAB>['an answer', ...]`, as no JSON begins."""
    line = head.lstrip("\ufeff \t\r\n").partition("\n")[0]
    # The line may be longer than the head, and its question begin with a quote that is none of csv's.
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


def _delimited_records(path: Path, delimiter: str, quoting: Quoting) -> Records:
    """Rows under a header, as pandas writes them; an empty cell is a missing value."""
    lines = (Line(number, text) for number, text in _lines(path))
    records = delimited_records(lines, str(path), delimiter=delimiter, quoting=quoting)
    first = next(records)
    if isinstance(first, BrokenLine):
        raise first.error
    header = first.values
    if header[0] == "" and not any(name in header for name in ID_FIELDS):
        header = [ID_FIELDS[0], *header[1:]]  # to_csv of pandas leaves the name of an index empty where it has none
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{path}: a column must appear once; {twice} appear more often. Rename or remove the others.")
    for number, record in enumerate(records):
        if isinstance(record, BrokenLine):
            yield BrokenRecord(record.error)
            continue
        where = f"{path}:{record.lines[0].number}"
        if len(record.values) == len(header):
            cells = {name: value or None for name, value in zip(header, record.values, strict=True)}
            yield Record(where, number, cells)
        else:
            yield BrokenRecord(
                DataError(
                    f"{where}: a row must have the {len(header)} fields of the header {header[:20]}, got "
                    f"{len(record.values)}. Correct the row, or pass quoting='csv' or 'none' (--quoting) if its quotes "
                    "are taken for what they are not."
                )
            )


def _dpr_records(path: Path, quoting: Quoting) -> Records:
    lines = (Line(number, text) for number, text in _lines(path))
    records = delimited_records(lines, str(path), delimiter="\t", quoting=quoting, fields=2)
    for number, record in enumerate(records):
        if isinstance(record, BrokenLine):
            yield BrokenRecord(record.error)
        else:
            yield _dpr_record(record.values, f"{path}:{record.lines[0].number}", number)


def _dpr_record(row: list[str], where: str, number: int) -> Record | BrokenRecord:
    try:
        if len(row) != 2:
            raise DataError(f"{where}: a row must be a question and its answers; this one has {len(row)} fields.")
        # Like DPR's other files, whose questions have no ids either, and without the passages.
        return Record(
            where, number, {"question": row[0], "answers": answer_literal(row[1], where), "positive_ctxs": []}
        )
    except DataError as error:
        return BrokenRecord(error)


# ---------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------


def _table_records(table: ArrowTable, name: str) -> Records:
    """The rows of a table, with the index of pandas as the id where no column is."""
    index = table_index(table.schema, _READ_BY_NAME, ID_FIELDS, name)
    rows = table_rows(indexed_batches(table, table.schema.names, index, name), name)
    return _numbered(
        BrokenRecord(row.error) if isinstance(row, BrokenRow) else Record(str(row.place), 0, row.fields) for row in rows
    )


def _parquet(path: Path) -> Records:
    with unreadable_table("Parquet", str(path)), open_parquet(path) as table:
        yield from _table_records(table, str(path))


def _arrow(path: Path) -> Records:
    with unreadable_table("Arrow", str(path)), open_arrow(path) as table:
        yield from _table_records(table, str(path))


# ---------------------------------------------------------------------------------------------------------
# BEIR: queries.jsonl beside qrels/SPLIT.tsv, in a folder or in the archive that is shipped
# ---------------------------------------------------------------------------------------------------------


def _zip(path: Path, split: str | None, quoting: Quoting) -> Records:
    def records() -> Records:
        try:
            with zipfile.ZipFile(path) as archive:
                yield from _beir(zipfile.Path(archive), str(path), split, quoting)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
            raise DataError(
                f"{path}: an archive must be readable; this one is not ({error}). Fetch it again, or unpack it and "
                "pass the folder."
            ) from error

    return records()


def _beir(folder: Path | zipfile.Path, name: str, split: str | None, quoting: Quoting) -> Records:
    """The questions of a split with the ids and grades of what was judged relevant for them."""
    root = _beir_root(folder, name)
    judgements = _judgements(root, name, split, quoting)
    place = f"{name}/queries.jsonl"
    number = 0
    asked: dict[str, dict[str, tuple[int, str]]] = {}
    with (root / "queries.jsonl").open("rb") as stream:
        for record in _json_lines(numbered_lines(stream, place), place):
            if isinstance(record, BrokenRecord):
                yield record
            elif (key := _key(record.fields.get("_id"))) in judgements or key in asked:
                # Kept, so that a second question of one id comes out and is refused as such.
                judged = asked.setdefault(key, judgements.pop(key, {}))
                relevant = {id_: grade for id_, (grade, _) in judged.items() if grade > 0}
                judged_fields = {"gold_ids": list(relevant), "gold_grades": list(relevant.values())}
                yield Record(record.where, number, {**record.fields, **judged_fields})
                number += 1
    for query, judged in judgements.items():
        where = next(iter(judged.values()))[1]
        yield BrokenRecord(
            DataError(f"{where}: every query-id must stand in queries.jsonl; {query!r} does not. Fetch both again.")
        )


def _key(value: object) -> str:
    # Judgements are text, and a question's 42.0 is their 42 (`indexes.records.whole_numbers`).
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return "" if whole is None else str(whole)


def _beir_root(folder: Path | zipfile.Path, name: str) -> Path | zipfile.Path:
    inner = [entry for entry in folder.iterdir() if entry.is_dir() and entry.name != "__MACOSX"]
    found = [place for place in [folder, *inner] if (place / "queries.jsonl").is_file()]
    if len(found) == 1:
        return found[0]
    seen = "is a folder without any" if not found else f"holds {len(found)}"
    raise DataError(
        f"A folder or archive of questions must be BEIR's, with one queries.jsonl; {name} {seen}. Pass the question "
        "file itself, or the folder of one of the datasets."
    )


def _judgements(
    root: Path | zipfile.Path, name: str, split: str | None, quoting: Quoting
) -> dict[str, dict[str, tuple[int, str]]]:
    """Grade and place of every judged passage, by question and passage; of equal pairs the highest grade."""
    folder = root / "qrels"
    splits = (
        sorted(file.name[:-4] for file in folder.iterdir() if file.name.endswith(".tsv")) if folder.is_dir() else []
    )
    if split is None and len(splits) == 1:
        split = splits[0]
    if split is None or split not in splits:
        came = "none was chosen" if split is None else f"split={split!r} came"
        raise DataError(
            f"The questions of a BEIR dataset belong to splits; {name} has {splits} in its folder qrels and {came}. "
            "Pass split=... with one of them."
        )
    judged: dict[str, dict[str, tuple[int, str]]] = {}
    place = f"{name}/qrels/{split}.tsv"
    with (folder / f"{split}.tsv").open("rb") as stream:
        for query, passage, grade, where in _qrels(stream, place, quoting):
            of_query = judged.setdefault(query, {})
            of_query[passage] = max(of_query.get(passage, (grade, where)), (grade, where))
    return judged


def _qrels(stream: IO[bytes], name: str, quoting: Quoting) -> Iterator[tuple[str, str, int, str]]:
    lines = (Line(number, text) for number, text in numbered_lines(stream, name))
    records = delimited_records(lines, name, delimiter="\t", quoting=quoting, fields=len(_QRELS_HEADER))
    for position, record in enumerate(records):
        if isinstance(record, BrokenLine):
            raise record.error
        row, where = record.values, f"{name}:{record.lines[0].number}"
        if position == 0:
            if row != _QRELS_HEADER:
                raise DataError(f"{where}: the first line must be {' '.join(_QRELS_HEADER)}, got {row}. Add it.")
            continue
        grade = _WHOLE_NUMBER.fullmatch(row[2].strip()) if len(row) == 3 else None
        if grade is None:
            raise DataError(f"{where}: a judgement must be query-id, corpus-id and a whole number, got {row}. Mend it.")
        yield row[0], row[1], int(grade[1]), where
