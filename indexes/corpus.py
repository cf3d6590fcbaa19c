"""A corpus is a read-only sequence of passages, memory-mapped from Arrow and never held in a Python list.

Rows are streamed from their file through one writer, which checks every row, so a corpus that exists is
valid: it has at least one passage, every text says something, and no id appears twice.
"""

import csv
import gzip
import hashlib
import json
import operator
import shutil
import struct
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.arrow_writer import ArrowWriter
from datasets.table import MemoryMappedTable
from tqdm import tqdm

from indexes.errors import DataError

if TYPE_CHECKING:
    from indexes.chunking import Chunker

_BATCH_ROWS = 1000
_TEXT_FOLDER_SUFFIXES = (".txt", ".md")
_FEATURES = datasets.Features({name: datasets.Value("string") for name in ("id", "title", "text")})

# A row and where it stands in its source: the number that an error message shows.
_Row = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Passage:
    """One unit of retrieval.

    Attributes:
        id: Unique within its corpus.
        title: May be empty.
        text: Never empty in a corpus.
    """

    id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """What an encoder embeds: title, newline, text; only the text when there is no title."""
        return f"{self.title}\n{self.text}" if self.title else self.text


class Corpus:
    """Passages in a fixed order, read from disk when asked for.

    Make one with `from_file`, `from_dataset`, `from_passages` or `load`. Positions count from 0 and are never
    negative: a search index reports a missing result as -1, which must not read the last passage.
    """

    def __init__(self, dataset: datasets.Dataset, *, source: str = "", fingerprint: str | None = None) -> None:
        """Wrap rows that are known to be valid; everybody else uses the constructors named above.

        Args:
            dataset: Rows with the string columns id, title and text.
            source: The name of the file or folder that the passages came from, without its path.
            fingerprint: The fingerprint of the rows, when it is already known.
        """
        self._dataset = dataset
        self._source = source
        self._fingerprint = fingerprint
        self._id_lookup: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def from_file(cls, path: str | Path, *, cache_dir: str | Path | None = None, progress: bool = False) -> "Corpus":
        """Read a corpus from a file or a folder; the suffix says how.

        ``.jsonl``, ``.csv``, ``.tsv`` (each also with ``.gz``) and ``.parquet`` hold rows with the fields
        id, title and text. FlashRAG rows (id, contents: the first line is the title) and BEIR rows (_id,
        title, text) are read as they are, and a row without an id is named by its number, counted from 0. A
        folder is either one that ``datasets`` saved, or ``.txt`` and ``.md`` files, one passage each: the
        relative path is the id, and the first Markdown heading or the file's name the title.

        Args:
            path: The file or folder.
            cache_dir: Where the memory-mapped copy is kept while the corpus is in use (default: the system's
                temporary folder). It is private to this corpus and removed with it, so it is never stale.
            progress: Show a progress bar.

        Raises:
            DataError: The file is missing or of an unknown kind, has no rows, or has a row that is broken,
                without text, or with an id that came before; the message names file, line and reason.
        """
        path = Path(path)
        reader, unit = _reader_for(path)
        return _write_corpus(reader(path), cache_dir, source=path.name, where=str(path), unit=unit, progress=progress)

    @classmethod
    def from_dataset(cls, dataset: datasets.Dataset, *, cache_dir: str | Path | None = None) -> "Corpus":
        """Read a corpus from a ``datasets.Dataset`` whose columns are named as the fields of `from_file`."""
        return _write_corpus(enumerate(dataset), cache_dir, source="", where="the dataset", unit="row")

    @classmethod
    def from_passages(
        cls, passages: Iterable[Passage | Mapping[str, Any]], *, cache_dir: str | Path | None = None
    ) -> "Corpus":
        """Read a corpus from passages, or from mappings with the fields of `from_file`."""
        rows = ((number, _as_row(passage)) for number, passage in enumerate(passages))
        return _write_corpus(rows, cache_dir, source="", where="the passages", unit="row")

    @classmethod
    def load(cls, folder: str | Path) -> "Corpus":
        """Open a corpus that `save` wrote, memory-mapped.

        Raises:
            DataError: The folder does not hold such a corpus, or its files are damaged.
        """
        folder = Path(folder)
        dataset = _load_saved_dataset(folder)
        if dataset.features != _FEATURES:
            raise DataError(
                f"A saved corpus has the columns id, title and text, but {folder} has "
                f"{dataset.column_names}. Read other data with Corpus.from_file."
            )
        return cls(dataset, source=folder.name)

    def save(self, folder: str | Path) -> None:
        """Write the corpus as Arrow; equal corpora become equal files."""
        # `datasets` stores its own fingerprint, which is random unless it is given one.
        info = datasets.DatasetInfo(features=_FEATURES)
        dataset = datasets.Dataset(self._dataset.data, info=info, fingerprint=self.fingerprint[:16])
        with _quiet_datasets():
            dataset.save_to_disk(str(folder))

    def chunked(self, chunker: "Chunker", *, cache_dir: str | Path | None = None) -> "Corpus":
        """Cut every passage with the chunker; see `Chunker.chunk` for the ids of the parts."""
        chunks = (chunk for passage in self for chunk in chunker.chunk(passage))
        rows = ((number, _as_row(chunk)) for number, chunk in enumerate(chunks))
        return _write_corpus(rows, cache_dir, source=self._source, where="the chunks", unit="row")

    @property
    def source(self) -> str:
        """The name of the file or folder that the passages came from; empty when there is none."""
        return self._source

    @property
    def ids(self) -> Sequence[str]:
        """The ids in order, as a lazy column."""
        ids: Sequence[str] = self._dataset["id"]
        return ids

    @property
    def fingerprint(self) -> str:
        """A SHA-256 over all rows in order (hex); equal for equal passages, whatever file they came from."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for passage in self:
                digest.update(_row_bytes(passage.id, passage.title, passage.text))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Passage]:
        for batch in self._dataset.iter(batch_size=_BATCH_ROWS):
            for id_, title, text in zip(batch["id"], batch["title"], batch["text"], strict=True):
                yield Passage(id_, title, text)

    def __getitem__(self, position: int) -> Passage:
        return self.take([position])[0]

    def take(self, positions: Sequence[int]) -> list[Passage]:
        """The passages at these positions, in the order asked for; a position may repeat.

        Raises:
            IndexError: A position is negative or not below the number of passages.
        """
        wanted = [self._checked(position) for position in positions]
        if not wanted:
            return []
        rows = self._dataset[wanted]
        return [Passage(*row) for row in zip(rows["id"], rows["title"], rows["text"], strict=True)]

    def position(self, id: str) -> int:
        """The position of the passage with this id.

        Raises:
            DataError: No passage has this id.
        """
        hashes, order = self._lookup()
        first = int(np.searchsorted(hashes, hash(id)))
        last = int(np.searchsorted(hashes, hash(id), side="right"))
        for position in order[first:last].tolist():
            if self[position].id == id:
                return int(position)
        raise DataError(
            f"No passage has the id {id!r}: the corpus holds {len(self)} passages, the first is "
            f"{self[0].id!r}. Check the spelling and that this is the corpus the id was made for."
        )

    def _checked(self, position: int) -> int:
        index = operator.index(position)
        if not 0 <= index < len(self):
            raise IndexError(f"A position must be at least 0 and below {len(self)}, but {index} came.")
        return index

    def _lookup(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted hashes of the ids and the positions they belong to: 16 bytes per passage, unlike a dict."""
        if self._id_lookup is None:
            hashes = array("q", (hash(id_) for batch in self._id_batches() for id_ in batch))
            self._id_lookup = _sorted_hashes(hashes)
        return self._id_lookup

    def _id_batches(self) -> Iterator[list[str]]:
        for batch in self._dataset.select_columns("id").iter(batch_size=_BATCH_ROWS):
            yield batch["id"]


# ---------------------------------------------------------------------------------------------------------
# The writer: every row goes through here
# ---------------------------------------------------------------------------------------------------------


def _write_corpus(
    rows: Iterable[_Row],
    cache_dir: str | Path | None,
    *,
    source: str,
    where: str,
    unit: str,
    progress: bool = False,
) -> Corpus:
    """Check the rows and stream them into a private Arrow file that is removed with the corpus."""
    if cache_dir is not None:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="corpus-", dir=cache_dir)
    try:
        file = str(Path(folder) / "passages.arrow")
        numbers, fingerprint = _write_arrow(file, rows, where=where, unit=unit, progress=progress)
        info = datasets.DatasetInfo(features=_FEATURES)
        dataset = datasets.Dataset(MemoryMappedTable.from_file(file), info=info, fingerprint=fingerprint[:16])
        corpus = Corpus(dataset, source=source, fingerprint=fingerprint)
        _refuse_duplicates(corpus, numbers, where=where, unit=unit)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(corpus, shutil.rmtree, folder, ignore_errors=True)
    return corpus


def _write_arrow(file: str, rows: Iterable[_Row], *, where: str, unit: str, progress: bool) -> tuple["array[int]", str]:
    """Write the rows; returns the number of each row in its source and the fingerprint of all."""
    digest = hashlib.sha256()
    numbers = array("q")
    with ArrowWriter(path=file, features=_FEATURES, writer_batch_size=_BATCH_ROWS) as writer:
        for number, row in tqdm(rows, desc="reading", unit=" passages", disable=not progress):
            place = f"{where}, {unit} {number}"
            passage = _parse_row(row, fallback_id=str(len(numbers)), place=place)
            digest.update(_encoded(passage, place))
            writer.write({"id": passage.id, "title": passage.title, "text": passage.text})
            numbers.append(number)
        if not numbers:
            raise DataError(
                f"A corpus needs at least one passage, but {where} has none. Check that it is the right file."
            )
        writer.finalize()
    return numbers, digest.hexdigest()


def _refuse_duplicates(corpus: Corpus, numbers: "array[int]", *, where: str, unit: str) -> None:
    hashes, order = corpus._lookup()
    suspects = np.flatnonzero(hashes[1:] == hashes[:-1])
    # Equal hashes are only a suspicion, and a run of three is two neighbouring pairs: compare the ids.
    seen: dict[str, int] = {}
    for position in sorted({int(order[i]) for s in suspects.tolist() for i in (s, s + 1)}):
        id_ = corpus[position].id
        if id_ in seen:
            raise DataError(
                f"Every passage needs its own id, but {id_!r} appears twice in {where}: "
                f"{unit} {numbers[seen[id_]]} and {unit} {numbers[position]}. Remove or rename one of them."
            )
        seen[id_] = position


def _sorted_hashes(hashes: "array[int]") -> tuple[np.ndarray, np.ndarray]:
    values = np.frombuffer(hashes, dtype=np.int64)
    order = np.argsort(values, kind="stable")
    return values[order], order


def _row_bytes(*fields: str) -> bytes:
    """The fields with their lengths in front, so that moving a character between fields shows."""
    encoded = [field.encode() for field in fields]
    return struct.pack(f"<{len(encoded)}Q", *map(len, encoded)) + b"".join(encoded)


def _encoded(passage: Passage, place: str) -> bytes:
    try:
        return _row_bytes(passage.id, passage.title, passage.text)
    except UnicodeEncodeError as error:
        raise DataError(
            f"Text must be valid Unicode, but {place} has a lone surrogate ({error.reason}). Fix the escape."
        ) from error


# ---------------------------------------------------------------------------------------------------------
# From a row to a passage
# ---------------------------------------------------------------------------------------------------------


def _as_row(passage: Passage | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(passage, Passage):
        return {"id": passage.id, "title": passage.title, "text": passage.text}
    return passage


def _parse_row(row: Mapping[str, Any], *, fallback_id: str, place: str) -> Passage:
    id_ = _row_id(row, fallback_id, place)
    if row.get("text") is not None:
        title, text = _string(row, "title", place), _string(row, "text", place)
    elif row.get("contents") is not None:
        title, text = _split_contents(_string(row, "contents", place))
    else:
        raise DataError(
            f'A passage needs a "text" (or FlashRAG\'s "contents"), but {place} has only '
            f"{sorted(key for key in row if row[key] is not None)}. Rename the field that holds the text."
        )
    if not text.strip():
        raise DataError(
            f"A passage needs some text, but {place} (id {id_!r}) has an empty one. Remove the row or fill it."
        )
    return Passage(id_, title, text)


def _row_id(row: Mapping[str, Any], fallback: str, place: str) -> str:
    value = row.get("id")
    value = row.get("_id") if value is None else value
    if value is None:
        return fallback
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(
            f"An id must be a non-empty string or an integer, but {place} has {value!r}. "
            "Correct it, or leave the field out to number the rows."
        )
    return str(value)


def _string(row: Mapping[str, Any], key: str, place: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f'"{key}" must be a string, but {place} has {type(value).__name__}. Convert it first.')
    return value


def _split_contents(contents: str) -> tuple[str, str]:
    """FlashRAG joins title and text with a newline and puts the title in double quotes."""
    first, newline, rest = contents.partition("\n")
    if not newline or not rest.strip():
        return "", contents.strip()
    title = first.strip()
    if len(title) >= 2 and title[0] == title[-1] == '"':
        title = title[1:-1]
    return title, rest


# ---------------------------------------------------------------------------------------------------------
# Readers: a path becomes numbered rows
# ---------------------------------------------------------------------------------------------------------


def _reader_for(path: Path) -> tuple[Callable[[Path], Iterator[_Row]], str]:
    """How to read the path, and what its numbers count."""
    if not path.exists():
        raise DataError(f"A corpus file or folder must exist, but {path} does not. Check the path.")
    if path.is_dir():
        saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
        return (_read_saved_dataset, "row") if saved else (_read_text_folder, "file")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffix = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]
    if suffix in _READERS and not (suffix == ".parquet" and suffixes[-1] == ".gz"):
        return _READERS[suffix]
    raise DataError(
        f"The suffix of a corpus file says how to read it: {', '.join(_READERS)} (text also with .gz), or a "
        f"folder of {' and '.join(_TEXT_FOLDER_SUFFIXES)} files. {path.name!r} is none of them. Rename or "
        "convert it."
    )


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, counted from 1; undecodable or truncated input is named by its line."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"A corpus must be UTF-8, but {path}, line {number} is not ({error.reason} at byte "
            f"{error.start}). Convert the file, for instance with iconv."
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"A .gz file must be complete, but {path} breaks off after line {number} ({error}). Fetch it again."
        ) from error


def _read_jsonl(path: Path) -> Iterator[_Row]:
    for number, line in _read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(
                f"Every line must be one JSON object, but {path}, line {number} is broken: {error}. "
                "Correct or remove the line."
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"Every line must be one JSON object, but {path}, line {number} is a {type(row).__name__}. "
                'Write {"id": ..., "title": ..., "text": ...}.'
            )
        yield number, row


def _read_csv(path: Path) -> Iterator[_Row]:
    yield from _read_delimited(path, ",")


def _read_tsv(path: Path) -> Iterator[_Row]:
    yield from _read_delimited(path, "\t")


def _read_delimited(path: Path, delimiter: str) -> Iterator[_Row]:
    # strict: an unclosed quote is an error, where the default silently swallows the rows that follow it.
    lines = (line for _, line in _read_lines(path))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        for values in reader:
            if values:
                yield reader.line_num, _named(values, header, f"{path}, line {reader.line_num}")
    except csv.Error as error:
        raise DataError(
            f"Fields with quotes, delimiters or newlines must be quoted, but {path}, line {reader.line_num} "
            f"is broken: {error}. Correct the line, or convert the file to JSONL."
        ) from error


def _named(values: list[str], header: list[str], place: str) -> dict[str, str | None]:
    if len(values) != len(header):
        raise DataError(
            f"Every row must have the {len(header)} fields of the header {header}, but {place} has "
            f"{len(values)}. Correct the row, or add the header line if it is missing."
        )
    # An empty id cell is a missing id.
    return {
        key: None if key in ("id", "_id") and not value else value for key, value in zip(header, values, strict=True)
    }


def _read_parquet(path: Path) -> Iterator[_Row]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            known = [name for name in file.schema_arrow.names if name in _FIELDS]
            # Without any known column the rows still come, so that the error can name the columns.
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=known or None):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"A .parquet file must be readable, but {path} is not: {error}. Write or fetch it again."
        ) from error


def _read_saved_dataset(path: Path) -> Iterator[_Row]:
    yield from enumerate(_load_saved_dataset(path))


def _load_saved_dataset(folder: Path) -> datasets.Dataset:
    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise DataError(
            f"A folder saved by datasets was expected, but {folder} cannot be read: {error}. Save it again."
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        raise DataError(
            f"A corpus is one dataset, but {folder} holds the splits {sorted(dataset)}. Pass one of its folders."
        )
    return dataset


def _read_text_folder(path: Path) -> Iterator[_Row]:
    """One passage per file in the order of the paths; hidden files and folders are left out."""
    files = sorted(
        file.relative_to(path)
        for file in path.rglob("*")
        if file.suffix.lower() in _TEXT_FOLDER_SUFFIXES and file.is_file()
    )
    visible = [file for file in files if not any(part.startswith(".") for part in file.parts)]
    for number, file in enumerate(visible, start=1):
        text = "".join(line for _, line in _read_lines(path / file)).replace("\r\n", "\n")
        title, text = _split_markdown(text) if file.suffix.lower() == ".md" else ("", text)
        yield number, {"id": file.as_posix(), "title": title or file.stem, "text": text.strip()}


def _split_markdown(markdown: str) -> tuple[str, str]:
    """The first heading and the rest; a heading in the middle is the title and also stays where it is."""
    fenced = False
    lines = markdown.split("\n")
    for number, line in enumerate(lines):
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        hashes, _, heading = line.strip().partition(" ")
        if not fenced and 0 < len(hashes) <= 6 and set(hashes) == {"#"} and heading.strip():
            rest = "\n".join(lines[number + 1 :])
            leads = not "".join(lines[:number]).strip() and bool(rest.strip())
            return heading.strip().rstrip("#").strip(), rest if leads else markdown
    return "", markdown


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Silence the progress bars of `datasets`, which has one switch for the whole process."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


_FIELDS = ("id", "_id", "title", "text", "contents")
_READERS: dict[str, tuple[Callable[[Path], Iterator[_Row]], str]] = {
    ".jsonl": (_read_jsonl, "line"),
    ".csv": (_read_csv, "line"),
    ".tsv": (_read_tsv, "line"),
    ".parquet": (_read_parquet, "row"),
}
