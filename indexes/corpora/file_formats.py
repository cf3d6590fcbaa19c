"""The built-in formats of corpus files: JSON lines and documents, delimited text, Parquet, Arrow, BEIR's archive."""

import zipfile
from pathlib import Path, PurePosixPath

from indexes.corpora.corpus_format import CorpusFormat, ReadOptions
from indexes.corpora.passage_records import FIELDS, check_columns, passage_columns
from indexes.errors import DataError
from indexes.records.archives import member_opener, open_archive
from indexes.records.formats import (
    json_line_records,
    read_arrow,
    read_delimited,
    read_json,
    read_json_lines,
    read_parquet,
)
from indexes.records.record import ID_FIELDS, RecordStream
from indexes.records.text_lines import read_lines

# An empty cell of these columns is an empty text; an empty id is a missing one.
_TEXTS = tuple(field for field in FIELDS if field not in ID_FIELDS)


class JSONLines(CorpusFormat):
    """One JSON object on each line."""

    suffixes = (".jsonl",)
    may_be_gzipped = True

    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        """See `CorpusFormat.records`."""
        return read_json_lines(path, name)


class JSONFile(CorpusFormat):
    """A JSON array, SQuAD's object, or lines under that name, as KILT's knowledge source is shipped."""

    suffixes = (".json",)
    may_be_gzipped = True

    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        """See `CorpusFormat.records`."""
        return read_json(path, name)


class CSV(CorpusFormat):
    """Comma-separated values under a header line."""

    suffixes = (".csv",)
    may_be_gzipped = True

    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        """See `CorpusFormat.records`."""
        return read_delimited(path, name, ",", options.quoting, check_columns, _TEXTS)


class TSV(CorpusFormat):
    """Tab-separated values under a header line, quoted as DPR's ``psgs_w100.tsv`` is, or not at all."""

    suffixes = (".tsv",)
    may_be_gzipped = True

    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        """See `CorpusFormat.records`."""
        return read_delimited(path, name, "\t", options.quoting, check_columns, _TEXTS)


class Parquet(CorpusFormat):
    """A Parquet file."""

    suffixes = (".parquet",)

    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        """See `CorpusFormat.records`."""
        return read_parquet(path, name, passage_columns)


class Arrow(CorpusFormat):
    """An Arrow file (also Feather's) or an Arrow stream."""

    suffixes = (".arrow",)

    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        """See `CorpusFormat.records`."""
        return read_arrow(path, name, passage_columns)


class BEIRArchive(CorpusFormat):
    """A zip archive with one ``corpus.jsonl``, streamed from where it is: nothing is ever extracted."""

    suffixes = (".zip",)

    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        """See `CorpusFormat.records`."""
        with open_archive(path, name) as archive:
            member = _corpus_member(archive, name)
            inside = f"{name}/{member.filename}"
            yield from json_line_records(read_lines(member_opener(archive, member), inside), inside)


def _corpus_member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    paths = [(member, PurePosixPath(member.filename)) for member in archive.infolist() if not member.is_dir()]
    found = [member for member, path in paths if path.name == "corpus.jsonl" and "__MACOSX" not in path.parts]
    if len(found) != 1:
        raise DataError(
            f"{name}: a BEIR archive must hold one corpus.jsonl, got {len(found)} "
            f"({[member.filename for member in found[:5]]}). Unpack it and pass the folder or file that you mean."
        )
    return found[0]
