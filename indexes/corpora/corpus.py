"""A corpus is a read-only sequence of passages, memory-mapped from Arrow and never held in a Python list.

Rows are streamed from their source through one writer, which checks every row, so a corpus that exists is
valid: it has at least one passage, every passage has a title or a text, and no id appears twice.
"""

import bisect
import json
import operator
import os
import shutil
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import MemoryMappedTable
from tqdm import tqdm

from indexes.corpora.chunk_ids import document_of
from indexes.corpora.passage import Passage, passage_digest
from indexes.corpora.sources import Source, dataset_rows, load_saved_dataset, open_source
from indexes.errors import DataError, ResourceError, UsageError
from indexes.records.delimited import Quoting
from indexes.records.formats import TEXT_FIELDS, BrokenRow, Place, Row, has_content
from indexes.records.tables import BATCH_ROWS
from indexes.records.whole_numbers import restored_value

if TYPE_CHECKING:
    from indexes.corpora.chunking import Chunker

PASSAGE_FEATURES = datasets.Features({name: datasets.Value("string") for name in ("id", "title", "text")})
# Characters that are written at once, whatever the number of rows.
_BATCH_CHARACTERS = 2**24
# Ids that are compared at once where hashes are equal.
_COMPARED = 2**18
_MODULUS = 2**256
_ENTRY = ("source", "error", "content")  # and the line, row or file
_LONGEST_ENTRY = 2**20
_SHOWN = 2000  # characters of a broken row that the quarantine keeps


class Corpus:
    """Passages in a fixed order, read from disk when asked for.

    Make one with `from_file`, `from_dataset`, `from_passages` or `load`. Positions count from 0 and are never
    negative: a search index reports a missing result as -1, which must not read the last passage.
    """

    def __init__(
        self, dataset: datasets.Dataset, *, source: str = "", fingerprint: str | None = None, quarantined: int = 0
    ) -> None:
        """Wrap rows that are known to be valid; everybody else uses the constructors named above.

        Args:
            dataset: Rows with the string columns id, title and text.
            source: The name of the file or folder that the passages came from, without its path.
            fingerprint: The fingerprint of the rows, when it is already known.
            quarantined: How many rows of the source were left out.
        """
        self._dataset = dataset
        self._source = source
        self._fingerprint = fingerprint
        self._quarantined = quarantined
        self._id_lookup: tuple[np.ndarray, np.ndarray] | None = None
        self._document_lookup: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        cache_dir: str | Path | None = None,
        progress: bool = False,
        on_error: Literal["raise", "skip"] = "raise",
        quarantine: str | Path | None = None,
        split: str | None = None,
        quoting: Quoting = "auto",
    ) -> "Corpus":
        """Read a corpus from a file, a folder or an address, as its owner ships it.

        Rows: ``.jsonl``, ``.json`` (an array, or lines under that name), ``.csv``, ``.tsv`` (each also with ``.gz``),
        ``.parquet`` and ``.arrow`` hold the fields id, title and text; title or text may be empty. FlashRAG and
        Pyserini rows (id, contents: the first line is the title unless the row has a title), BEIR rows (_id, title,
        text), DPR's ``psgs_w100.tsv`` and the pages of KILT's knowledge source are read as they are, and so is a BEIR
        ``.zip``, in place. The index of a pandas table is the id where no column is; else a row without an id is named
        by its number, counted from 0. Memory does not grow with the text, and by at most 24 bytes for each row.

        Questions: files of HotpotQA, 2WikiMultihopQA, MuSiQue, SQuAD and DPR have their passages inside; each becomes
        one row, with the id that `load_examples` calls gold (see `question_files`). About 100 bytes
        of memory more are needed for each of these.

        Documents: ``.txt``, ``.md``, ``.html``, ``.pdf`` and ``.docx`` are one passage each (the last three need the
        extra ``documents``): the name is the id, and the first heading, HTML's title or the file's name the title.

        Folders: what ``datasets`` saved; BEIR's, of which only ``corpus.jsonl`` is read; shards in ``.jsonl`` or
        ``.parquet``, in the order of their names; or documents, also in folders inside, whose ids are their relative
        paths. Hidden files are left out. A link that leads out of a folder of documents is a broken row and never
        opened.

        Addresses: ``https://``, ``http://`` and ``file://`` name a file; ``hf://datasets/owner/name/path`` one in a
        dataset of the Hugging Face hub, and ``hf://datasets/owner/name`` the dataset, streamed, optionally with
        ``?config=...&split=...`` behind it. Anything else here stays off the network.

        Args:
            path: The file, folder or address; an address must be a string.
            cache_dir: Where the memory-mapped copy is kept while the corpus is in use, and a download while it is
                read (default: the system's temporary folder). The copy is private to this corpus and removed with
                it, so it is never stale.
            progress: Show a progress bar.
            on_error: What happens to a row that is broken (no JSON object, wrong types, neither title nor text, no
                valid Unicode, an id that came before, an unreadable document ...): ``"raise"`` stops, ``"skip"``
                leaves it out. Behind a broken quote of a ``.csv`` or ``.tsv`` rows are left out until three whole ones
                follow in a row, since a line may as well be the middle of a text. What cannot be skipped is raised
                either way: a missing file, a truncated archive, a header that names no text, or a corpus in which no
                row is left.
            quarantine: With ``"skip"``, the file for the rows that are left out: one JSON object a line, with
                "source", "line" (or "row" or "file"), "error" and the first 2,000 characters as "content". It exists
                afterwards only if there are such rows; an earlier one is replaced or removed.
            split: The part of a dataset that has several.
            quoting: What a double quote is in ``.csv`` and ``.tsv``. ``"csv"``: fields may stand in quotes, with those
                inside doubled, and hold delimiters and line ends (RFC 4180, `csv.writer`, DPR). ``"none"``: a character
                like any other, as in MS MARCO's and ColBERT's collections; each line is a row. ``"auto"`` is ``"csv"``
                for commas; for tabs it is what fits the lines from the first quote on, and rows are never joined
                where each of their lines is a whole row by itself.

        Raises:
            DataError: The file is missing or of an unknown kind, has no rows, or has a row that is broken,
                without title and text, or with an id that came before; the message names file, line and reason.
            UsageError: An option has no meaning here, or the quarantine would overwrite another file.
            ResourceError: The extra ``documents`` is missing, a download fails, or the disk is full.
        """
        kept = _quarantine_for(on_error, quarantine, path)
        try:
            with open_source(path, cache_dir=cache_dir, split=split, quoting=quoting) as source:
                return _write_corpus(source, cache_dir, progress=progress, quarantine=kept)
        finally:
            if kept is not None:
                kept.close()

    @classmethod
    def from_dataset(cls, dataset: datasets.Dataset, *, cache_dir: str | Path | None = None) -> "Corpus":
        """Read a corpus from a ``datasets.Dataset`` whose columns are named as the fields of `from_file`."""
        return _write_corpus(Source("", "the dataset", dataset_rows(dataset, "the dataset")), cache_dir)

    @classmethod
    def from_passages(
        cls, passages: Iterable[Passage | Mapping[str, Any]], *, cache_dir: str | Path | None = None
    ) -> "Corpus":
        """Read a corpus from passages, or from mappings with the fields of `from_file`."""
        return _write_corpus(Source("", "the passages", _numbered(passages, "the passages")), cache_dir)

    @classmethod
    def load(cls, folder: str | Path) -> "Corpus":
        """Open a corpus that `save` wrote, memory-mapped.

        Raises:
            DataError: The folder does not hold such a corpus, or its files are damaged.
        """
        folder = Path(folder)
        dataset = load_saved_dataset(folder)
        if dataset.features != PASSAGE_FEATURES:
            raise DataError(
                f"A saved corpus has the columns id, title and text, but {folder} has "
                f"{dataset.column_names}. Read other data with Corpus.from_file."
            )
        return cls(dataset, source=folder.name)

    def save(self, folder: str | Path) -> None:
        """Write the corpus as Arrow; equal corpora become equal files."""
        # `datasets` stores its own fingerprint, which is random unless it is given one.
        info = datasets.DatasetInfo(features=PASSAGE_FEATURES)
        dataset = datasets.Dataset(self._dataset.data, info=info, fingerprint=self.fingerprint[:16])
        with _quiet_datasets():
            dataset.save_to_disk(str(folder))

    def chunked(self, chunker: "Chunker", *, cache_dir: str | Path | None = None) -> "Corpus":
        """Cut every passage with the chunker; see `Chunker.chunk` for the ids of the parts."""
        chunks = (chunk for passage in self for chunk in chunker.chunk(passage))
        return _write_corpus(Source(self._source, "the chunks", _numbered(chunks, "the chunks")), cache_dir)

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
        """64 hex digits that are equal for equal passages, in whatever order and from whatever source.

        The sum of every passage's `passage_digest` modulo 2^256. It distinguishes corpora that differ by accident; it
        is not collision-resistant against chosen passages.
        """
        if self._fingerprint is None:
            self._fingerprint = _hexadecimal(sum(map(passage_digest, self)) % _MODULUS)
        return self._fingerprint

    @property
    def quarantined(self) -> int:
        """How many rows of the source were left out because they are broken."""
        return self._quarantined

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Passage]:
        for batch in self._dataset.iter(batch_size=BATCH_ROWS):
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

    def document_positions(self, id: str) -> list[int]:
        """The position of the passage with this id, else those of the chunks of this document, in order; maybe none.

        The first call reads all ids, once, and keeps 16 bytes per passage.
        """
        if self._document_lookup is None:
            self._document_lookup = self._hashed(document_of)
        hashes, order = self._document_lookup
        # A passage "a#1" is looked for among what may be chunks of "a", and its own chunks "a#1#0" under its name.
        keys = {hash(id), hash(document_of(id))}
        found = sorted({p for key in keys for p in order[slice(*np.searchsorted(hashes, [key, key + 1]))].tolist()})
        ids = {position: passage.id for position, passage in zip(found, self.take(found), strict=True)}
        # A document that is there as a whole is not cut, whatever else is named like a chunk of it.
        whole = [position for position in found if ids[position] == id]
        return whole or [position for position in found if document_of(ids[position]) == id]

    def known_ids(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids that passages of this corpus have; one pass over its ids, however many are asked for."""
        wanted, known = set(ids), set()
        for batch in self._id_batches():
            known.update(wanted.intersection(batch))
        return known

    def _checked(self, position: int) -> int:
        index = operator.index(position)
        if not 0 <= index < len(self):
            raise IndexError(f"A position must be at least 0 and below {len(self)}, but {index} came.")
        return index

    def _lookup(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted hashes of the ids and the positions they belong to: 16 bytes per passage, unlike a dict."""
        if self._id_lookup is None:
            self._id_lookup = self._hashed(lambda id_: id_)
        return self._id_lookup

    def _hashed(self, name: Callable[[str], str]) -> tuple[np.ndarray, np.ndarray]:
        hashes = array("q", (hash(name(id_)) for batch in self._id_batches() for id_ in batch))
        values = np.frombuffer(hashes, dtype=np.int64)
        order = np.argsort(values, kind="stable")
        return values[order], order

    def _id_batches(self) -> Iterator[list[str]]:
        for batch in self._dataset.select_columns("id").iter(batch_size=BATCH_ROWS):
            yield batch["id"]


# ---------------------------------------------------------------------------------------------------------
# The writer: every row goes through here
# ---------------------------------------------------------------------------------------------------------


def _quarantine_for(on_error: str, file: str | Path | None, path: str | Path) -> "_Quarantine | None":
    if on_error not in ("raise", "skip"):
        raise UsageError(f'on_error must be "raise" or "skip", but {on_error!r} came. Choose one of them.')
    if on_error == "raise" and file is not None:
        raise UsageError(
            f'A quarantine needs on_error="skip", but on_error="raise" and quarantine={str(file)!r} came. '
            "Pass both or neither."
        )
    if file is not None and _lies_in(file, path):
        raise UsageError(
            f"A quarantine must lie outside of the corpus that is read, but {str(file)!r} came for {str(path)!r}. "
            "Choose another file."
        )
    return None if on_error == "raise" else _Quarantine(None if file is None else Path(file))


def _lies_in(file: str | Path, path: str | Path) -> bool:
    try:
        # Path.resolve refuses links in a circle, which are not what is asked about here.
        return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(path))
    except ValueError:
        return False


def _refuse_other_files(file: Path) -> None:
    """Whoever mistypes the name of a quarantine must not lose what has that name."""
    with _writing(), file.open("rb") as stream:
        first = stream.readline(_LONGEST_ENTRY)
    try:
        entry = json.loads(first) if first else dict.fromkeys(_ENTRY)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or not entry.keys() >= set(_ENTRY):
        raise UsageError(
            f"A quarantine replaces nothing but an earlier quarantine, but {str(file)!r} is something else. Choose "
            "another file, or remove this one."
        )


class _Quarantine:
    """Rows that are left out, one JSON line each; the file exists only once there is one."""

    def __init__(self, file: Path | None) -> None:
        self.count = 0
        self.first: DataError | None = None
        self._file = file
        self._stream: TextIO | None = None
        if file is not None and os.path.lexists(file):
            _refuse_other_files(file)
            # What an earlier reading left out says nothing about this one.
            with _writing():
                file.unlink()

    def add(self, place: Place, error: DataError, content: str) -> None:
        self.count += 1
        self.first = self.first or error
        if self._file is None:
            return
        number = place.number if isinstance(place.number, int) else _printable(place.number)
        entry = {
            "source": _printable(place.source),
            place.unit: number,
            "error": _printable(str(error)),
            "content": _printable(_shortened(content)),
        }
        with _writing():
            if self._stream is None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._file.open("w", encoding="utf-8")
            self._stream.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def close(self) -> None:
        if self._stream is not None:
            with _writing():
                self._stream.close()


def _printable(text: str) -> str:
    """A lone surrogate has no bytes in UTF-8, so it is shown as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _shortened(content: str) -> str:
    return content if len(content) <= _SHOWN else f"{content[:_SHOWN]}... ({len(content)} characters)"


class _PassageWriter:
    """Passages to an Arrow stream, in batches of so many rows or characters."""

    def __init__(self, file: Path) -> None:
        with _writing():
            self._sink = pa.OSFile(str(file), "wb")
            self._stream = pa.ipc.new_stream(self._sink, PASSAGE_FEATURES.arrow_schema)
        self._batch: list[Passage] = []
        self._characters = 0

    def write(self, passage: Passage) -> None:
        self._batch.append(passage)
        self._characters += len(passage.title) + len(passage.text)
        if len(self._batch) == BATCH_ROWS or self._characters > _BATCH_CHARACTERS:
            self._flush()

    def close(self) -> None:
        if self._batch:
            self._flush()
        with _writing():
            self._stream.close()
            self._sink.close()

    def _flush(self) -> None:
        columns = {
            "id": [passage.id for passage in self._batch],
            "title": [passage.title for passage in self._batch],
            "text": [passage.text for passage in self._batch],
        }
        with _writing():
            self._stream.write_batch(pa.record_batch(columns, schema=PASSAGE_FEATURES.arrow_schema))
        self._batch, self._characters = [], 0


class _Ledger:
    """What is remembered of the rows that were written: 16 bytes for each."""

    def __init__(self) -> None:
        self.hashes = array("q")
        self.digest = 0
        self._numbers = array("q")
        self._parts: list[tuple[int, Place]] = []  # where another file begins

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, passage: Passage, digest: int, place: Place) -> None:
        number = place.number
        # Each document is a file of its own, and named by its id.
        if isinstance(number, int) and (not self._parts or self._parts[-1][1].source != place.source):
            self._parts.append((len(self), place))
        self._numbers.append(number if isinstance(number, int) else 0)
        self.hashes.append(hash(passage.id))
        self.digest = (self.digest + digest) % _MODULUS

    def place(self, position: int, id: str) -> Place:
        """Where the row at this position came from."""
        part = bisect.bisect_right(self._parts, position, key=lambda part: part[0])
        if not part:
            return Place("the documents", "file", id)
        place = self._parts[part - 1][1]
        return Place(place.source, place.unit, self._numbers[position])


def _write_corpus(
    source: Source,
    cache_dir: str | Path | None,
    *,
    progress: bool = False,
    quarantine: _Quarantine | None = None,
) -> Corpus:
    """Check the rows and stream them into a private Arrow file that is removed with the corpus."""
    with _private_folder(cache_dir) as folder:
        file = folder / "passages.arrow"
        ledger = _write_arrow(file, source, quarantine, progress=progress)
        duplicates = _later_duplicates(file, ledger.hashes)
        if quarantine is None:
            _refuse_duplicates(duplicates, ledger, source.where)
        else:
            file = _without(file, duplicates, ledger, quarantine, source.where)
        fingerprint = _hexadecimal(ledger.digest)
        info = datasets.DatasetInfo(features=PASSAGE_FEATURES)
        dataset = datasets.Dataset(MemoryMappedTable.from_file(str(file)), info=info, fingerprint=fingerprint[:16])
        corpus = Corpus(
            dataset,
            source=source.name,
            fingerprint=fingerprint,
            quarantined=quarantine.count if quarantine else 0,
        )
    weakref.finalize(corpus, shutil.rmtree, folder, ignore_errors=True)
    return corpus


@contextmanager
def _private_folder(parent: str | Path | None) -> Iterator[Path]:
    """A new folder, which is removed if what happens in it fails."""
    with _writing():
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="corpus-", dir=parent))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"A corpus needs writable folders and room for a copy of its passages, but writing failed: {error}. Free "
            "some space, or choose another cache_dir or quarantine."
        ) from error


def _write_arrow(file: Path, source: Source, quarantine: _Quarantine | None, *, progress: bool) -> _Ledger:
    """Write the sound rows; a broken one is raised, or left out where there is a quarantine."""
    ledger = _Ledger()
    writer = _PassageWriter(file)
    for number, row in enumerate(tqdm(source.rows, desc="reading", unit=" passages", disable=not progress)):
        try:
            passage, digest = _checked(row, fallback_id=str(number))
        except DataError as error:
            if quarantine is None:
                raise
            quarantine.add(row.place, error, _content(row))
            continue
        ledger.add(passage, digest, row.place)
        writer.write(passage)
    writer.close()
    _refuse_nothing(len(ledger), source.where, quarantine)
    return ledger


def _refuse_nothing(passages: int, where: str, quarantine: _Quarantine | None) -> None:
    if passages:
        return
    if quarantine is not None and quarantine.count:
        raise DataError(
            f"A corpus needs at least one passage, but all {quarantine.count} rows of {where} are broken. The first: "
            f"{quarantine.first}"
        ) from quarantine.first
    raise DataError(f"A corpus needs at least one passage, but {where} has none. Check that it is the right file.")


def _checked(row: Row | BrokenRow, *, fallback_id: str) -> tuple[Passage, int]:
    if isinstance(row, BrokenRow):
        raise row.error
    passage = _parse_row(row.fields, fallback_id=fallback_id, place=str(row.place))
    try:
        return passage, passage_digest(passage)
    except UnicodeEncodeError as error:
        raise DataError(
            f"Text must be valid Unicode, but {row.place} has a lone surrogate ({error.reason}). Fix the escape."
        ) from error


def _content(row: Row | BrokenRow) -> str:
    if row.content is not None:
        return row.content
    return "" if isinstance(row, BrokenRow) else json.dumps(dict(row.fields), ensure_ascii=False, default=str)


# ---------------------------------------------------------------------------------------------------------
# Ids that appear twice
# ---------------------------------------------------------------------------------------------------------


def _stored_passages(file: Path) -> Iterator[Passage]:
    with pa.memory_map(str(file)) as source:
        for batch in pa.ipc.open_stream(source):
            columns = [batch.column(name).to_pylist() for name in PASSAGE_FEATURES]
            for row in zip(*columns, strict=True):
                yield Passage(*row)


def _later_duplicates(file: Path, hashes: "array[int]") -> Iterator[tuple[int, int, Passage]]:
    """The position of every row whose id came before, that of the first with this id, and the row.

    Sorts the hashes in place. Equal hashes are only a suspicion: for those that repeat the ids are compared, so many
    at a time that no more than a constant number of ids is ever held.
    """
    values = np.frombuffer(hashes, dtype=np.int64)
    values.sort()
    repeated = np.unique(values[1:][values[1:] == values[:-1]])
    for start in range(0, len(repeated), _COMPARED):
        yield from _repeats_among(file, set(repeated[start : start + _COMPARED].tolist()))


def _repeats_among(file: Path, hashes: set[int]) -> Iterator[tuple[int, int, Passage]]:
    first: dict[str, int] = {}
    for position, passage in enumerate(_stored_passages(file)):
        if hash(passage.id) in hashes and first.setdefault(passage.id, position) != position:
            yield position, first[passage.id], passage


def _refuse_duplicates(duplicates: Iterable[tuple[int, int, Passage]], ledger: _Ledger, where: str) -> None:
    earliest = min(duplicates, key=lambda duplicate: duplicate[0], default=None)
    if earliest is not None:
        raise _duplicate_error(earliest, ledger, where)


def _duplicate_error(duplicate: tuple[int, int, Passage], ledger: _Ledger, where: str) -> DataError:
    position, first, passage = duplicate
    one, other = ledger.place(first, passage.id), ledger.place(position, passage.id)
    if one.source == other.source:
        where, places = one.source, f"{one.unit} {one.number} and {other.unit} {other.number}"
    else:
        places = f"{one} and {other}"
    return DataError(
        f"Every passage needs its own id, but {passage.id!r} appears twice in {where}: {places}. Remove or rename one "
        "of them."
    )


def _without(
    file: Path,
    duplicates: Iterable[tuple[int, int, Passage]],
    ledger: _Ledger,
    quarantine: _Quarantine,
    where: str,
) -> Path:
    """The file without the later ones of equal ids, which go to the quarantine; the same file if there are none."""
    dropped: bytearray | None = None
    for position, first, passage in duplicates:
        dropped = dropped or bytearray(len(ledger))
        dropped[position] = True
        error = _duplicate_error((position, first, passage), ledger, where)
        content = json.dumps(_as_row(passage), ensure_ascii=False)
        quarantine.add(ledger.place(position, passage.id), error, content)
        ledger.digest = (ledger.digest - passage_digest(passage)) % _MODULUS
    if dropped is None:
        return file
    kept = file.with_name("kept.arrow")
    writer = _PassageWriter(kept)
    for is_dropped, passage in zip(dropped, _stored_passages(file), strict=True):
        if not is_dropped:
            writer.write(passage)
    writer.close()
    file.unlink()
    return kept


# ---------------------------------------------------------------------------------------------------------
# The fingerprint
# ---------------------------------------------------------------------------------------------------------


def _hexadecimal(digest: int) -> str:
    return f"{digest:064x}"


# ---------------------------------------------------------------------------------------------------------
# From a row to a passage
# ---------------------------------------------------------------------------------------------------------


def _numbered(passages: Iterable[Passage | Mapping[str, Any]], name: str) -> Iterator[Row]:
    for number, passage in enumerate(passages):
        place = Place(name, "row", number)
        row = _as_row(passage)
        if not isinstance(passage, Passage):
            row = {key: restored_value(value, key, str(place)) for key, value in row.items()}
        yield Row(place, row)


def _as_row(passage: Passage | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(passage, Passage):
        return {"id": passage.id, "title": passage.title, "text": passage.text}
    return passage


def _parse_row(row: Mapping[str, Any], *, fallback_id: str, place: str) -> Passage:
    id_ = _row_id(row, fallback_id, place)
    title, text = _string(row, "title", place), _string(row, "text", place)
    if not text.strip():
        if row.get("contents") is not None:
            title, text = _split_contents(_string(row, "contents", place), title)
        # A field of another name may hold the text, so only a row with an empty text of its own is all title.
        elif row.get("text") is None and not (title.strip() and any(field in row for field in TEXT_FIELDS)):
            raise DataError(
                f'A passage needs a "text" (or FlashRAG\'s "contents"), but {place} has only '
                f"{sorted(str(key) for key in row if row[key] is not None)}. Rename the field that holds the text."
            )
    if not has_content(title, text):
        raise DataError(
            f"A passage needs a title or a text, but {place} (id {id_!r}) has neither. Remove the row or fill it."
        )
    return Passage(id_, title, text)


def _row_id(row: Mapping[str, Any], fallback: str, place: str) -> str:
    value = row.get("id")
    value = row.get("_id") if value is None else value
    if value is None:
        return fallback
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
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


def _split_contents(contents: str, given_title: str) -> tuple[str, str]:
    """The title and the text inside the field `contents`, which FlashRAG and Pyserini write as title, newline, text.

    FlashRAG (docs/original_docs, "build corpus", and `PromptTemplate.format_reference`) takes the first line as the
    title and begins contents without a title with a newline; its wiki18_100w.jsonl has the titles in double quotes.
    Pyserini (`JsonlCollectionIterator`) splits at a delimiter, by default a newline, for Mr. TyDi a blank line; of
    a single line, which its JSON collections have too, it is all text. A title in a field of its own is the title,
    and `contents` may repeat it.
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
