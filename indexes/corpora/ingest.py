"""Writing a corpus: records are checked and streamed into an Arrow file, and repeated ids are found.

    records -> passages, each checked -> Arrow file -> without the later passages of repeated ids

Every passage of a corpus goes through here.
"""

import bisect
import json
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from indexes.corpora.passage import FINGERPRINT_MODULUS, Passage, hexadecimal, passage_digest
from indexes.corpora.passage_files import PASSAGE_FEATURES
from indexes.corpora.passage_records import parse_passage
from indexes.corpora.passage_table import PassageTable, mapped_batches
from indexes.corpora.quarantine import Quarantine, writing_errors
from indexes.corpora.sources import Source
from indexes.errors import DataError
from indexes.records.record import BrokenRecord, Place, Record, RecordStream
from indexes.records.tables import BATCH_SIZE
from indexes.records.whole_numbers import restored_value

# Characters that are written at once, whatever the number of passages.
_BATCH_CHARACTERS = 2**24
# Hashes that occur more than once are checked so many at a time.
_HASHES_PER_PASS = 2**18


class Ingested(NamedTuple):
    """A corpus on disk.

    Attributes:
        table: The passages, memory-mapped.
        fingerprint: See `indexes.corpora.corpus.Corpus.fingerprint`.
        folder: The private folder of the files, which belongs to the corpus.
        quarantined: How many records were left out.
    """

    table: PassageTable
    fingerprint: str
    folder: Path
    quarantined: int


def ingest(
    source: Source, cache_dir: str | Path | None, *, progress: bool = False, quarantine: Quarantine | None = None
) -> Ingested:
    """Check the records and stream them into an Arrow file in a folder of its own.

    Args:
        source: The records.
        cache_dir: Where the folder is made; None is the system's temporary folder.
        progress: Show a progress bar.
        quarantine: Takes the broken records; without one the first broken record is raised.

    Raises:
        DataError: A record is broken and there is no quarantine, or no record is left.
        ResourceError: Writing fails.
    """
    with _private_folder(cache_dir) as folder:
        file = folder / "passages.arrow"
        provenance = _write_arrow(file, source, quarantine, progress=progress)
        duplicates = _later_duplicates(file, provenance.hashes)
        if quarantine is None:
            _refuse_duplicates(duplicates, provenance, source.where)
        else:
            file = _without_duplicates(file, duplicates, provenance, quarantine, source.where)
        fingerprint = hexadecimal(provenance.digest)
        return Ingested(PassageTable(mapped_batches(file)), fingerprint, folder, quarantine.count if quarantine else 0)


def given_passages(passages: Iterable[Passage | Mapping[str, Any]], name: str) -> RecordStream:
    """Passages, or mappings with their fields, as records."""
    for position, passage in enumerate(passages):
        place = Place(name, "record", position)
        fields = passage_fields(passage) if isinstance(passage, Passage) else _restored(passage, str(place))
        yield Record(place, fields, position=position)


def _restored(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {key: restored_value(value, key, where) for key, value in fields.items()}


def passage_fields(passage: Passage) -> dict[str, str]:
    """The fields of a passage, as a record of a corpus file has them."""
    return {"id": passage.id, "title": passage.title, "text": passage.text}


class RecordProvenance:
    """Where each written passage was read, the hash of its id, and the digest of all: 16 bytes per passage.

    Attributes:
        hashes: Hashes of the ids, in the order of the passages.
        digest: Sum of the digests of the passages modulo 2^256.
    """

    def __init__(self) -> None:
        self.hashes = array("q")
        self.digest = 0
        self._numbers = array("q")
        self._files: list[tuple[int, Place]] = []  # the position at which each file begins

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, passage: Passage, digest: int, place: Place) -> None:
        """Add the next passage."""
        number = place.number
        # A document is a file of its own, whose name is the id.
        if isinstance(number, int) and (not self._files or self._files[-1][1].source != place.source):
            self._files.append((len(self), place))
        self._numbers.append(number if isinstance(number, int) else 0)
        self.hashes.append(hash(passage.id))
        self.digest = (self.digest + digest) % FINGERPRINT_MODULUS

    def place(self, position: int, id: str) -> Place:
        """Where the passage at a position was read."""
        number = bisect.bisect_right(self._files, position, key=lambda entry: entry[0])
        if not number:
            return Place("the documents", "file", id)
        place = self._files[number - 1][1]
        return Place(place.source, place.unit, self._numbers[position])


class _PassageWriter:
    """Writes passages to an Arrow stream, in batches of bounded size."""

    def __init__(self, file: Path) -> None:
        with writing_errors():
            self._sink = pa.OSFile(str(file), "wb")
            self._stream = pa.ipc.new_stream(self._sink, PASSAGE_FEATURES.arrow_schema)
        self._batch: list[Passage] = []
        self._characters = 0

    def write(self, passage: Passage) -> None:
        self._batch.append(passage)
        self._characters += len(passage.title) + len(passage.text)
        if len(self._batch) == BATCH_SIZE or self._characters > _BATCH_CHARACTERS:
            self._flush()

    def close(self) -> None:
        if self._batch:
            self._flush()
        with writing_errors():
            self._stream.close()
            self._sink.close()

    def _flush(self) -> None:
        columns = {
            "id": [passage.id for passage in self._batch],
            "title": [passage.title for passage in self._batch],
            "text": [passage.text for passage in self._batch],
        }
        with writing_errors():
            self._stream.write_batch(pa.record_batch(columns, schema=PASSAGE_FEATURES.arrow_schema))
        self._batch, self._characters = [], 0


@contextmanager
def _private_folder(parent: str | Path | None) -> Iterator[Path]:
    """A new folder, which is removed if an error is raised."""
    with writing_errors():
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="corpus-", dir=parent))
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_arrow(file: Path, source: Source, quarantine: Quarantine | None, *, progress: bool) -> RecordProvenance:
    """Write the valid records; a broken one is raised, or left out where there is a quarantine."""
    provenance = RecordProvenance()
    writer = _PassageWriter(file)
    for record in tqdm(source.records, desc="reading", unit=" passages", disable=not progress):
        try:
            passage, digest = _checked(record)
        except DataError as error:
            if quarantine is None:
                raise
            quarantine.add(record.place, error, _content(record))
            continue
        provenance.add(passage, digest, record.place)
        writer.write(passage)
    writer.close()
    _refuse_empty(len(provenance), source.where, quarantine)
    return provenance


def _refuse_empty(passages: int, where: str, quarantine: Quarantine | None) -> None:
    if passages:
        return
    if quarantine is not None and quarantine.count:
        raise DataError(
            f"{where}: a corpus must have at least one passage, got {quarantine.count} broken records and no other. "
            f"The first: {quarantine.first}"
        ) from quarantine.first
    raise DataError(f"{where}: a corpus must have at least one passage, got none. Check that it is the right file.")


def _checked(record: Record | BrokenRecord) -> tuple[Passage, int]:
    if isinstance(record, BrokenRecord):
        raise record.error
    passage = parse_passage(record)
    try:
        return passage, passage_digest(passage)
    except UnicodeEncodeError as error:
        raise DataError(
            f"{record.place}: text must be valid Unicode, got a lone surrogate ({error.reason}). Correct the escape."
        ) from error


def _content(record: Record | BrokenRecord) -> str:
    if record.content is not None:
        return record.content
    return "" if isinstance(record, BrokenRecord) else json.dumps(dict(record.fields), ensure_ascii=False, default=str)


# ---------------------------------------------------------------------------------------------------------
# Repeated ids
# ---------------------------------------------------------------------------------------------------------


class _Duplicate(NamedTuple):
    """A passage whose id occurred before.

    Attributes:
        position: Its position.
        first: The position of the first passage with this id.
        passage: The passage.
    """

    position: int
    first: int
    passage: Passage


def _stored_passages(file: Path) -> Iterator[Passage]:
    with pa.memory_map(str(file)) as source:
        for batch in pa.ipc.open_stream(source):
            columns = [batch.column(name).to_pylist() for name in PASSAGE_FEATURES]
            for fields in zip(*columns, strict=True):
                yield Passage(*fields)


def _later_duplicates(file: Path, hashes: "array[int]") -> Iterator[_Duplicate]:
    """Every passage whose id occurred before.

    Sorts the hashes in place. Equal hashes need not mean equal ids: the ids of repeated hashes are compared, a bounded
    number of hashes at a time, so that the memory for the ids is bounded.
    """
    values = np.frombuffer(hashes, dtype=np.int64)
    values.sort()
    repeated = np.unique(values[1:][values[1:] == values[:-1]])
    for start in range(0, len(repeated), _HASHES_PER_PASS):
        yield from _repeats_among(file, set(repeated[start : start + _HASHES_PER_PASS].tolist()))


def _repeats_among(file: Path, hashes: set[int]) -> Iterator[_Duplicate]:
    first: dict[str, int] = {}
    for position, passage in enumerate(_stored_passages(file)):
        if hash(passage.id) in hashes and first.setdefault(passage.id, position) != position:
            yield _Duplicate(position, first[passage.id], passage)


def _refuse_duplicates(duplicates: Iterable[_Duplicate], provenance: RecordProvenance, where: str) -> None:
    earliest = min(duplicates, key=lambda duplicate: duplicate.position, default=None)
    if earliest is not None:
        raise _duplicate_error(earliest, provenance, where)


def _duplicate_error(duplicate: _Duplicate, provenance: RecordProvenance, where: str) -> DataError:
    id_ = duplicate.passage.id
    one, other = provenance.place(duplicate.first, id_), provenance.place(duplicate.position, id_)
    if one.source == other.source:
        where, places = one.source, f"{one.unit} {one.number} and {other.unit} {other.number}"
    else:
        places = f"{one} and {other}"
    return DataError(
        f"{where}: every passage must have its own id, got {id_!r} twice: {places}. Remove or rename one of them."
    )


def _without_duplicates(
    file: Path,
    duplicates: Iterable[_Duplicate],
    provenance: RecordProvenance,
    quarantine: Quarantine,
    where: str,
) -> Path:
    """The file without the later passages of repeated ids, which are quarantined; the same file if there are none."""
    dropped: bytearray | None = None
    for duplicate in duplicates:
        position, _, passage = duplicate
        dropped = dropped or bytearray(len(provenance))
        dropped[position] = True
        error = _duplicate_error(duplicate, provenance, where)
        content = json.dumps(passage_fields(passage), ensure_ascii=False)
        quarantine.add(provenance.place(position, passage.id), error, content)
        provenance.digest = (provenance.digest - passage_digest(passage)) % FINGERPRINT_MODULUS
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
