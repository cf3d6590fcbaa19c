"""Change an index that is in use: add, delete, update, follow a corpus file, compact.

    passages that are new -> shards of vectors -> one new segment ---+
    rows that are gone ---------------------> tombstones ------------+-> the next manifest, in one step

Files are only added; the manifest that names them is replaced last. Readers keep the version that they have opened,
and a writer that dies leaves files that nobody names, which the next one removes. Small segments are merged into the
new one as in a binary counter, so that there are never many, and one is rewritten when half of it is deleted.

Axes: N passages of the index, M of another corpus.
"""

import hashlib
import itertools
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.atomic_files import exclusive_writer_lock, translate_os_errors, write_file
from indexes.corpora.chunking import Chunker
from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage, passage_digest
from indexes.directory.builder import BM25_FOLDER, encode_shards, truncation_of, write_bm25
from indexes.directory.manifest import MANIFEST_FILE, FileRecord, Manifest, SegmentRecord
from indexes.directory.passage_index import PassageIndex, load_manifest
from indexes.directory.segments import PASSAGES_FILE, Rows, open_passages, segment_folder, write_passages
from indexes.directory.shards import ROWS, Shards
from indexes.directory.vector_storage import VectorStorage
from indexes.encoder import Encoder, EncodingBar, Vectors
from indexes.errors import DataError, UsageError
from indexes.records.delimited import Quoting
from indexes.vectors.faiss.faiss_factory import reencoding_is_stable

_MODULUS = 2**256
# What an `IndexWriter` or a build makes beside the manifest, and the halves of it.
_OURS = re.compile(rf"segments/|{BM25_FOLDER}(-\d{{6,}})?(\.half)?/|deleted-\d{{6,}}\.npy(\.half)?$")

logger = logging.getLogger(__name__)
Source: TypeAlias = str | Path | Corpus | Iterable[Passage]


@dataclass(frozen=True)
class Change:
    """What a change did, in passages."""

    version: int
    added: int
    deleted: int
    updated: int
    """Of the added ones: how many have taken the place of a deleted one with the same id."""
    unchanged: int
    passages: int
    """In the index now."""


class IndexWriter:
    """The one writer of an index directory, for as long as the `with` block lasts.

    Every method publishes one version, which readers see when they open the index again; a method that fails has
    changed nothing. What was encoded before a crash is used when the same call is made again.
    """

    def __init__(
        self,
        path: str | Path,
        encoder: Encoder | None = None,
        *,
        batch_size: int = 256,
        on_error: Literal["raise", "skip"] = "raise",
        quarantine: str | Path | None = None,
        quoting: Quoting = "auto",
        trust_remote_code: bool = False,
        progress: bool = True,
    ) -> None:
        """A writer for a directory that `build_index` made.

        Args:
            path: The directory.
            encoder: The encoder that built it; None loads the one that the manifest names when it is needed.
            batch_size: The most passages that the encoder reads at once.
            on_error: "skip" leaves broken rows of a corpus file out.
            quarantine: The file that then lists them.
            quoting: Of ``.csv`` and ``.tsv``, as in `Corpus.from_file`.
            trust_remote_code: Of the encoder that the manifest names: run Python code that comes with it.
            progress: Show progress bars.
        """
        self.path = Path(path).resolve()
        self._encoder = encoder
        self._trust_remote_code = trust_remote_code
        self._batch_size = batch_size
        self._reading_options: dict[str, Any] = {"on_error": on_error, "quarantine": quarantine, "quoting": quoting}
        self._progress = progress
        self._staging = self.path.with_name(f".{self.path.name}.adding")
        self._reading = self.path.with_name(f".{self.path.name}.reading")
        self._lock: AbstractContextManager[None] | None = None

    def __enter__(self) -> "IndexWriter":
        """Take the lock.

        Raises:
            UsageError: Another process writes this index.
            MismatchError: It is not an index, it is damaged, or the encoder is another one.
        """
        load_manifest(self.path)  # before the lock makes folders on the way to a path that is mistyped
        self._lock = exclusive_writer_lock(self.path)
        self._lock.__enter__()
        try:
            self._open(self._encoder)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.__exit__(None, None, None)
            self._lock = None

    # -- what can be done ------------------------------------------------------------------------------------------

    def add(self, corpus: Source) -> Change:
        """Add passages whose ids are new.

        Args:
            corpus: What `Corpus.from_file` reads, or passages. They are cut as the index's own were.

        Raises:
            DataError: An id is in the index already, or the corpus is broken.
        """
        index = self._open()
        with (reading := self._read(corpus, index)) as new:
            known = _rows_of(index, reading.ids())
            if known:
                raise DataError(
                    f"Added passages need new ids, but {min(known)!r} is in the index already. Use update to replace "
                    "it."
                )
            return self._publish(index, new, np.empty(0, np.int64))

    def delete(self, ids: Iterable[str]) -> Change:
        """Delete passages; in an index of chunks an id deletes all chunks of that document.

        Raises:
            DataError: An id is not in the index; nothing is deleted then.
            UsageError: No passage would be left, or a text came in place of a list.
        """
        if isinstance(ids, str):
            raise UsageError(f"ids must be a list, but the text {ids!r} came. Put it into a list: [{ids!r}].")
        index, wanted = self._open(), set(ids)
        found = _rows_of(index, wanted)
        if missing := wanted - found.keys():
            raise DataError(
                f"Only passages of the index can be deleted, but {min(missing)!r} is none of its {len(index)}. Check "
                "the id."
            )
        return self._publish(index, None, _joined(found.values()))

    def update(self, corpus: Source) -> Change:
        """Add passages, each in place of the one with its id if there is one; what is the same is not encoded again.

        Args:
            corpus: As in `add`.
        """
        index = self._open()
        with (reading := self._read(corpus, index)) as new:
            fresh = ~_contained(_digests(new), _digests(index.corpus))
            old = _joined(_rows_of(index, reading.ids()).values())
            # A chunk that is the same stays; one that is gone from its document goes.
            kept = _contained(_digests(index.corpus), _digests(new))[index.vectors.rows.positions(old)]
            return self._publish(index, _subset(new, fresh, self._reading), old[~kept], unchanged=int((~fresh).sum()))

    def sync(self, corpus: Source) -> Change:
        """Make the index hold exactly the passages of a corpus: only what differs is encoded.

        Args:
            corpus: As in `add`; passages are the same if id, title and text are.
        """
        index = self._open()
        with self._read(corpus, index) as new:
            theirs, ours = _digests(new), _digests(index.corpus)
            fresh, gone = ~_contained(theirs, ours), ~_contained(ours, theirs)
            rows = index.vectors.rows.of(np.flatnonzero(gone))
            source = new.source or index.manifest.corpus_source
            added = _subset(new, fresh, self._reading)
            return self._publish(index, added, rows, unchanged=int((~fresh).sum()), source=source)

    def compact(self) -> Change:
        """Rewrite the index as one segment without deleted rows.

        Kinds that keep vectors exactly (Flat, HNSW, IVF Flat) still do; others compress again what they had compressed.
        """
        index = self._open()
        small = len(index.manifest.segments) == 1 and not len(index.vectors.rows.deleted)
        return self._publish(index, None, np.empty(0, np.int64), merge_all=not small)

    def set_search_parameters(self, parameters: str) -> Change:
        """Make every search look this hard unless it is told otherwise, such as "nprobe=64"; "" for the defaults.

        Raises:
            UsageError: They are not parameters of this kind of index.
        """
        index = self._open()
        index.vectors.search(np.zeros((1, index.vectors.dimension), np.float32), 1, parameters=parameters or None)
        manifest = index.manifest
        if parameters != manifest.search_parameters:
            manifest = replace(manifest, version=manifest.version + 1, search_parameters=parameters)
            manifest.save(self.path / MANIFEST_FILE)
        return Change(manifest.version, 0, 0, 0, len(index), len(index))

    # -- how it is done --------------------------------------------------------------------------------------------

    def _open(self, encoder: Encoder | None = None) -> PassageIndex:
        if self._lock is None:
            raise UsageError("An IndexWriter works inside its with block: `with IndexWriter(path) as writer: ...`.")
        return PassageIndex.open(self.path, encoder=encoder, mmap=True)

    def _read(self, corpus: Source, index: PassageIndex) -> "_Reading":
        return _Reading(self._reading, corpus, self._chunker(index), self._reading_options)

    def _chunker(self, index: PassageIndex) -> Chunker | None:
        chunking = index.manifest.chunking
        return Chunker(self._load_encoder(index).tokenizer, **dict[str, Any](chunking)) if chunking else None

    def _load_encoder(self, index: PassageIndex) -> Encoder:
        if self._encoder is None:
            self._encoder = index.load_encoder(trust_remote_code=self._trust_remote_code)
        return self._encoder

    def _publish(
        self,
        index: PassageIndex,
        new: Corpus | None,
        deleted: NDArray[np.int64],
        *,
        unchanged: int | None = None,
        merge_all: bool = False,
        source: str | None = None,
    ) -> Change:
        """Write the next version: what is added, what is deleted (rows), and which segments are merged."""
        added = 0 if new is None else len(new)
        if not added and len(deleted) == len(index):
            raise UsageError("An index holds at least one passage, but all would be deleted. Delete its folder.")
        stays = len(index) - len(deleted)
        change = Change(
            index.manifest.version,
            added,
            len(deleted),
            _updated(index, new, deleted),
            stays if unchanged is None else unchanged,
            stays + added,
        )
        if not (added or len(deleted) or merge_all):
            return change
        with translate_os_errors(f"{self.path} is as it was; what was encoded is kept for the same call."):
            manifest = self._write(index, new, deleted, merge_all)
            if source is not None:
                manifest = replace(manifest, corpus_source=source)
            manifest.save(self.path / MANIFEST_FILE)
        shutil.rmtree(self._staging, ignore_errors=True)
        self._remove_unnamed(manifest)
        return replace(change, version=manifest.version)

    def _write(self, index: PassageIndex, new: Corpus | None, deleted: NDArray[np.int64], merge_all: bool) -> Manifest:
        old, version = index.manifest, index.manifest.version + 1
        self._remove_unnamed(old)  # what a writer left that died
        rows = Rows([s.rows for s in old.segments], np.union1d(index.vectors.rows.deleted, deleted))
        added = 0 if new is None else len(new)
        merged = list(range(len(old.segments))) if merge_all else _to_merge(rows, added, old.segment_rows)
        stay = [number for number in range(len(old.segments)) if number not in merged]
        moved = np.concatenate([_live_rows(rows, n) for n in merged] or [np.empty(0, np.int64)])
        shards = None if new is None else self._encode(index, new)
        written = self._write_segments(index, moved, new, shards)
        segments = [*(old.segments[number] for number in stay), *written]
        gone = _deleted_in(rows, stay)
        name = f"deleted-{version:06d}.npy" if len(gone) else ""
        if name:
            write_file(self.path / name, lambda stream: np.save(stream, gone, allow_pickle=False))
        manifest = replace(
            old,
            version=version,
            passages=sum(s.rows for s in segments) - len(gone),
            segments=tuple(segments),
            next_segment=old.next_segment + len(written),
            deleted=name,
            bm25=f"{BM25_FOLDER}-{version:06d}" if old.bm25 else "",
            corpus_fingerprint=_fingerprint(index, new, deleted),
            truncation=self._truncation(index, shards),
        )
        if manifest.bm25:
            write_bm25(self.path / manifest.bm25, self._corpus(manifest, gone))
        return replace(manifest, files=self._records(manifest))

    def _truncation(self, index: PassageIndex, shards: Shards | None) -> Mapping[str, int]:
        """That of the old version and of what is added; nothing where the old one was not counted."""
        before = index.manifest.truncation
        if shards is None:
            return before
        added = truncation_of(shards, self._load_encoder(index))
        return {name: before[name] + added[name] for name in before} if added else {}

    def _write_segments(
        self, index: PassageIndex, moved: NDArray[np.int64], new: Corpus | None, shards: Shards | None
    ) -> list[SegmentRecord]:
        """What is left of merged segments (rows) and then what is new, in one segment or as many as the build made."""
        total = len(moved) + (0 if new is None else len(new))
        size = index.manifest.segment_rows or max(total, 1)
        storage = VectorStorage.of(self.path, index.manifest)
        written: list[SegmentRecord] = []
        for start in range(0, total, size):
            record = SegmentRecord(f"{index.manifest.next_segment + len(written):06d}", min(size, total - start))
            old = moved[start : start + size]
            fresh = range(max(start - len(moved), 0), max(start + record.rows - len(moved), 0))
            storage.write(record.name, self._vectors(index, old, shards, fresh))
            passages = itertools.chain(_at(index, old), _taken(new, fresh))
            write_passages(segment_folder(self.path, record.name) / PASSAGES_FILE, passages)
            written.append(record)
        return written

    def _vectors(
        self, index: PassageIndex, old: NDArray[np.int64], shards: Shards | None, fresh: range
    ) -> Iterator[Vectors]:
        """Those of rows that move, and those of new passages.

        Kinds that would lose with each move what they had kept of a vector have their passages encoded again.
        """
        positions = index.vectors.rows.positions(old)
        for start in range(0, len(positions), ROWS):
            block = positions[start : start + ROWS]
            if reencoding_is_stable(index.manifest.factory):
                yield index.vectors.reconstruct(block)
            else:
                bar = EncodingBar(len(block), "passage", shown=False)  # what is not read was counted when it came in
                yield self._load_encoder(index).encode_passages(index.corpus.take(block.tolist()), progress=bar)
        if shards is not None and fresh:
            yield from shards.blocks(fresh.start, fresh.stop)

    def _encode(self, index: PassageIndex, new: Corpus) -> Shards:
        """The vectors of new passages, in a folder named by what they are: the same call finds them again."""
        encoder = self._load_encoder(index)
        index.manifest.check_encoder(encoder)
        order = hashlib.sha256()
        for passage in new:
            order.update(f"{passage_digest(passage):064x}".encode())
        folder = self._staging / order.hexdigest()[:32]
        for other in self._staging.glob("*"):
            if other != folder:
                shutil.rmtree(other)
        shards = Shards(folder, len(new), encoder.dimension)
        encode_shards(new, encoder, shards, shards.missing(), batch_size=self._batch_size, progress=self._progress)
        return shards

    def _corpus(self, manifest: Manifest, deleted: NDArray[np.int64]) -> Corpus:
        return open_passages([segment_folder(self.path, s.name) / PASSAGES_FILE for s in manifest.segments], deleted)

    def _records(self, manifest: Manifest) -> dict[str, FileRecord]:
        """All files that this version uses; those that it has from the one before are not read again."""
        return {
            name: manifest.files.get(name) or FileRecord.of(self.path / name)
            for file in sorted(self.path.rglob("*"))
            if file.is_file() and _is_named(name := file.relative_to(self.path).as_posix(), manifest)
        }

    def _remove_unnamed(self, new: Manifest) -> None:
        """Remove what no version needs any more; who has it open keeps it until he closes it."""
        VectorStorage.of(self.path, new).keep_only({segment.name for segment in new.segments})
        for file in self.path.rglob("*"):
            name = file.relative_to(self.path).as_posix()
            if file.is_file() and _is_ours(name) and not _is_named(name, new):
                file.unlink()
        for folder in sorted((f for f in self.path.rglob("*") if f.is_dir()), reverse=True):
            if _is_ours(f"{folder.relative_to(self.path).as_posix()}/") and not any(folder.iterdir()):
                folder.rmdir()


# ---------------------------------------------------------------------------------------------------------
# Passages that come in
# ---------------------------------------------------------------------------------------------------------


class _Reading:
    """A corpus that is read for one change, and the folder it is kept in meanwhile."""

    def __init__(self, folder: Path, source: Source, chunker: Chunker | None, options: Mapping[str, Any]) -> None:
        self.folder = folder
        self._options = options
        self._source = source
        self._chunker = chunker
        self._uncut: Corpus | None = None

    def __enter__(self) -> Corpus:
        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            self._uncut = corpus = self._open()
            return corpus if self._chunker is None else corpus.chunked(self._chunker, cache_dir=self.folder)
        except BaseException:
            self.__exit__()
            raise

    def ids(self) -> Set[str]:
        """Of the passages as they came, before they were cut: "a#1" may be a name of its own."""
        return frozenset(passage.id for passage in self._uncut or ())

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> Corpus:
        if isinstance(self._source, Corpus):
            return self._source
        if isinstance(self._source, str | Path):
            corpus = Corpus.from_file(self._source, cache_dir=self.folder, **self._options)
            if corpus.quarantined:
                logger.warning("%d broken rows of %s were left out.", corpus.quarantined, self._source)
            return corpus
        if isinstance(self._source, Passage | Mapping):
            raise UsageError(
                f"Passages must come in a list, but a {type(self._source).__name__} came. Put it into one."
            )
        return Corpus.from_passages(self._source, cache_dir=self.folder)


def _subset(corpus: Corpus, wanted_M: NDArray[np.bool_], folder: Path) -> Corpus | None:
    if wanted_M.all() or not wanted_M.any():
        return corpus if wanted_M.any() else None
    passages = (passage for passage, wanted in zip(corpus, wanted_M, strict=True) if wanted)
    return Corpus.from_passages(passages, cache_dir=folder)


def _digests(corpus: Corpus) -> NDArray[np.uint64]:
    """128 bits of the SHA-256 of each passage, uint64 [N, 2]."""
    digests_N2 = np.empty((len(corpus), 2), dtype=np.uint64)
    for position, passage in enumerate(corpus):
        digest = passage_digest(passage)
        digests_N2[position] = digest >> 192, digest >> 128 & 0xFFFF_FFFF_FFFF_FFFF
    return digests_N2


def _contained(left_N2: NDArray[np.uint64], right_M2: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the left digests are among the right ones: bool [N]."""
    both_2 = np.concatenate([left_N2, right_M2]).T
    order = np.lexsort(both_2)
    is_right = order >= len(left_N2)
    # Runs of equal digests: a left one is contained if its run holds a right one.
    new_run = np.any(np.diff(both_2[:, order], axis=1) != 0, axis=0)
    runs = np.concatenate([[0], np.cumsum(new_run)])[: len(order)]
    holds_right = np.bincount(runs, weights=is_right) > 0 if len(order) else np.empty(0, dtype=bool)
    contained = np.zeros(len(left_N2), dtype=bool)
    contained[order[~is_right]] = holds_right[runs[~is_right]]
    return contained


def _rows_of(index: PassageIndex, ids: Set[str]) -> dict[str, NDArray[np.int64]]:
    """The rows of these passages, or of the chunks of these documents; nothing for an id that is not there."""
    exact: dict[str, list[int]] = {}
    chunks: dict[str, list[int]] = {}
    for position, passage in enumerate(index.corpus):
        if passage.id in ids:
            exact.setdefault(passage.id, []).append(position)
        elif (document := _document(passage.id, index.manifest)) in ids:
            chunks.setdefault(document, []).append(position)
    # A document that is there as a whole is not cut, whatever else is named like a chunk of it.
    return {id_: index.vectors.rows.of(np.array(rows, dtype=np.int64)) for id_, rows in (chunks | exact).items()}


def _document(id_: str, manifest: Manifest) -> str:
    """The id of the document that a chunk is of, see `Chunker.chunk`."""
    return re.sub(r"#\d+$", "", id_) if manifest.chunking else id_


def _updated(index: PassageIndex, new: Corpus | None, deleted: NDArray[np.int64]) -> int:
    if new is None or not len(deleted):
        return 0
    ids = {passage.id for passage in _at(index, deleted)}
    return sum(passage.id in ids for passage in new)


def _at(index: PassageIndex, rows: NDArray[np.int64]) -> Iterator[Passage]:
    """The passages at these rows, some at a time."""
    positions = index.vectors.rows.positions(rows)
    for start in range(0, len(positions), ROWS):
        yield from index.corpus.take(positions[start : start + ROWS].tolist())


def _taken(corpus: Corpus | None, rows: range) -> Iterator[Passage]:
    """The passages in these rows of a corpus, some at a time."""
    for start in range(0, len(rows), ROWS):
        if corpus is not None:
            yield from corpus.take(rows[start : start + ROWS])


def _fingerprint(index: PassageIndex, new: Corpus | None, deleted: NDArray[np.int64]) -> str:
    """The fingerprint of a corpus is a sum over its passages, so it follows what comes and what goes."""
    total = int(index.manifest.corpus_fingerprint, 16) + sum(map(passage_digest, new or ()))
    total -= sum(map(passage_digest, _at(index, deleted)))
    return f"{total % _MODULUS:064x}"


# ---------------------------------------------------------------------------------------------------------
# Rows and segments
# ---------------------------------------------------------------------------------------------------------


def _joined(rows: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.sort(np.concatenate([np.empty(0, np.int64), *rows]))


def _live(rows: Rows, segment: int) -> int:
    return int(np.diff(rows.starts)[segment]) - rows.deleted_of(segment)


def _live_rows(rows: Rows, segment: int) -> NDArray[np.int64]:
    all_n = np.arange(rows.starts[segment], rows.starts[segment + 1])
    return all_n[~rows.are_deleted(all_n)]


def _deleted_in(rows: Rows, segments: Sequence[int]) -> NDArray[np.int64]:
    """The deleted rows of these segments, counted as if there were no others."""
    found, start = [np.empty(0, np.int64)], 0
    for segment in segments:
        first, last = rows.starts[segment : segment + 2]
        here = rows.deleted[np.searchsorted(rows.deleted, first) : np.searchsorted(rows.deleted, last)]
        found.append(here - first + start)
        start += int(last - first)
    return np.concatenate(found)


def _to_merge(rows: Rows, new: int, most: int) -> list[int]:
    """The segments that go into the next one: those half deleted, and from the end those not much larger than it.

    Args:
        rows: Of the segments.
        new: Rows that are added.
        most: Rows that a segment may have; 0 for as many as there are.
    """
    count = len(rows.starts) - 1
    merged = {n for n in range(count) if 2 * rows.deleted_of(n) > np.diff(rows.starts)[n]}
    size = new + sum(_live(rows, n) for n in merged)
    for number in reversed([n for n in range(count) if n not in merged]):
        if not size or _live(rows, number) > 2 * size or (most and size + _live(rows, number) > most):
            break
        merged.add(number)
        size += _live(rows, number)
    return sorted(merged)


# ---------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------


def _is_named(name: str, manifest: Manifest) -> bool:
    """Whether a version uses a file; what is not ours is not asked."""
    first, *others = name.split("/")
    if first == "segments":
        return others[0] in {segment.name for segment in manifest.segments}
    if _is_ours(name):
        return first in (manifest.bm25, manifest.deleted)
    return name in manifest.files


def _is_ours(name: str) -> bool:
    """Whether only an `IndexWriter` or a build can have made the file."""
    return _OURS.match(name) is not None
