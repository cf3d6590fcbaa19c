"""Change an index that is in use: add, delete, update, follow a corpus file, compact.

    new passages -> shards of vectors -> one new segment ---+
    removed rows --------------------> deleted rows --------+-> the next manifest, replaced atomically

Files are only added; the manifest that names them is replaced last. Readers keep the version that they have opened. A
writer that is killed leaves files that no manifest names, which the next one removes. Small segments are merged into
the new one as in a binary counter, so that there are never many, and one is rewritten when half of it is deleted.

Axes: N passages of the index, M of another corpus.
"""

import hashlib
import itertools
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexes.atomic_files import PARTIAL_SUFFIX, exclusive_writer_lock, translate_os_errors, write_file
from indexes.corpora.chunking import Chunker
from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage, passage_digest
from indexes.corpora.passage_files import write_passages
from indexes.directory.builder import BM25_FOLDER, truncation_of, write_bm25
from indexes.directory.manifest import MANIFEST_FILE, FileRecord, Manifest, SegmentRecord
from indexes.directory.passage_index import PassageIndex, load_manifest
from indexes.directory.segments import PASSAGES_FILE, LiveRowMap, open_passages, segment_folder
from indexes.directory.shard_encoding import check_workers, encode_shards
from indexes.directory.shards import ROWS, Shards
from indexes.directory.vector_storage import VectorStorage
from indexes.encoder import Encoder, EncodingBar, Vectors
from indexes.errors import DataError, UsageError
from indexes.records.delimited import Quoting

_MODULUS = 2**256
# What an `IndexWriter` or a build writes beside the manifest, and unfinished files of it.
_PARTIAL = re.escape(PARTIAL_SUFFIX)
_OWN_FILES = re.compile(rf"segments/|{BM25_FOLDER}(-\d{{6,}})?({_PARTIAL})?/|deleted-\d{{6,}}\.npy({_PARTIAL})?$")

logger = logging.getLogger(__name__)
Source: TypeAlias = str | Path | Corpus | Iterable[Passage]


@dataclass(frozen=True)
class Change:
    """What a change did, in passages."""

    version: int
    added: int
    deleted: int
    updated: int
    """How many of the added passages replaced a deleted one with the same id."""
    unchanged: int
    passages: int
    """In the index now."""


def _no_rows() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass
class VersionDraft:
    """The next version of an index: what is added, deleted and merged, before any of it is written."""

    index: PassageIndex
    """The version that it follows."""
    added: Corpus | None = None
    """New passages; None for none."""
    deleted: NDArray[np.int64] = field(default_factory=_no_rows)
    """Rows that are deleted, ascending."""
    merge_all: bool = False
    """Rewrite the index as one segment."""
    unchanged: int | None = None
    """Passages that stay as they are; None for all that are not deleted."""
    source: str | None = None
    """The name of the corpus that the index follows now; None for the same."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.num_added or len(self.deleted) or self.merge_all)

    @property
    def num_added(self) -> int:
        """How many passages are added."""
        return 0 if self.added is None else len(self.added)

    @property
    def version(self) -> int:
        """The number of the new version."""
        return self.index.manifest.version + 1

    def rows(self) -> LiveRowMap:
        """The rows of the old segments, those that this version deletes included."""
        counts = [segment.rows for segment in self.index.manifest.segments]
        return LiveRowMap(counts, np.union1d(self.index.vectors.rows.deleted, self.deleted))

    def change(self) -> Change:
        """What the change does, with the number of the old version."""
        stays = len(self.index) - len(self.deleted)
        return Change(
            self.index.manifest.version,
            self.num_added,
            len(self.deleted),
            self._count_updated(),
            stays if self.unchanged is None else self.unchanged,
            stays + self.num_added,
        )

    def _count_updated(self) -> int:
        if self.added is None or not len(self.deleted):
            return 0
        ids = {passage.id for passage in _passages_at(self.index, self.deleted)}
        return sum(passage.id in ids for passage in self.added)

    def fingerprint(self) -> str:
        """That of the new version: the fingerprint of a corpus is a sum over its passages."""
        total = int(self.index.manifest.corpus_fingerprint, 16) + sum(map(passage_digest, self.added or ()))
        total -= sum(map(passage_digest, _passages_at(self.index, self.deleted)))
        return f"{total % _MODULUS:064x}"


class IndexWriter:
    """The one writer of an index directory, for as long as the `with` block lasts.

    Every method publishes one version, which readers see when they open the index again; a method that fails changes
    nothing. Vectors that were encoded before a crash are reused when the same call is repeated.
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
        workers: int = 1,
        trust_remote_code: bool = False,
        progress: bool = True,
    ) -> None:
        """Make a writer for a directory that `build_index` made.

        Args:
            path: The directory.
            encoder: The encoder that built it; None loads the one that the manifest names when it is needed.
            batch_size: The most passages that the encoder reads at once.
            on_error: "skip" leaves broken records of a corpus file out.
            quarantine: The file that then lists them.
            quoting: Of ``.csv`` and ``.tsv``, as in `Corpus.from_file`.
            workers: Processes that share the encoding, as in `build_index`.
            trust_remote_code: Of the encoder that the manifest names: run Python code that comes with it.
            progress: Show progress bars.
        """
        self.path = Path(path).resolve()
        self._encoder = encoder
        self._trust_remote_code = trust_remote_code
        self._batch_size = batch_size
        self._workers = workers
        self._reading_options: dict[str, Any] = {"on_error": on_error, "quarantine": quarantine, "quoting": quoting}
        self._progress = progress
        self._staging = self.path.with_name(f".{self.path.name}.adding")
        self._reading = self.path.with_name(f".{self.path.name}.reading")
        self._lock: AbstractContextManager[None] | None = None

    def __repr__(self) -> str:
        return f"IndexWriter({str(self.path)!r}, {'open' if self._lock is not None else 'closed'})"

    def __enter__(self) -> "IndexWriter":
        """Take the lock.

        Raises:
            UsageError: Another process writes this index.
            MismatchError: It is not an index, it is damaged, or the encoder is another one.
        """
        load_manifest(self.path)  # before the lock creates the folders of a mistyped path
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
        """Release the lock."""
        if self._lock is not None:
            self._lock.__exit__(None, None, None)
            self._lock = None

    # -- changes ---------------------------------------------------------------------------------------------------

    def add(self, corpus: Source) -> Change:
        """Add passages whose ids are new.

        Args:
            corpus: What `Corpus.from_file` reads, or passages. They are cut into chunks as the index's own were.

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
            return self._publish(VersionDraft(index, new))

    def delete(self, ids: Iterable[str]) -> Change:
        """Delete passages; in an index of chunks an id deletes all chunks of that document.

        Raises:
            DataError: An id is not in the index; nothing is deleted then.
            UsageError: No passage would be left, or the ids are one string.
        """
        if isinstance(ids, str):
            raise UsageError(f"ids must be a list, but got the string {ids!r}. Put it into a list: [{ids!r}].")
        index, wanted = self._open(), set(ids)
        found = _rows_of(index, wanted)
        if missing := wanted - found.keys():
            raise DataError(
                f"Only passages of the index can be deleted, but {min(missing)!r} is not one of its {len(index)}. "
                "Check the id."
            )
        return self._publish(VersionDraft(index, deleted=_joined(found.values())))

    def update(self, corpus: Source) -> Change:
        """Add passages, or replace those with the same ids; unchanged passages are not encoded again.

        Args:
            corpus: As in `add`.
        """
        index = self._open()
        with (reading := self._read(corpus, index)) as new:
            fresh = ~_contained(_digests(new), _digests(index.corpus))
            old = _joined(_rows_of(index, reading.ids()).values())
            # A chunk that is unchanged stays; one that its document no longer has is deleted.
            kept = _contained(_digests(index.corpus), _digests(new))[index.vectors.rows.positions(old)]
            added = _selected(new, fresh, self._reading)
            return self._publish(VersionDraft(index, added, old[~kept], unchanged=int((~fresh).sum())))

    def sync(self, corpus: Source) -> Change:
        """Make the index hold exactly the passages of a corpus; only those that differ are encoded.

        Args:
            corpus: As in `add`; passages are the same if id, title and text are.
        """
        index = self._open()
        with self._read(corpus, index) as new:
            new_digests, old_digests = _digests(new), _digests(index.corpus)
            fresh, gone = ~_contained(new_digests, old_digests), ~_contained(old_digests, new_digests)
            rows = index.vectors.rows.rows_at(np.flatnonzero(gone))
            source = new.source or index.manifest.corpus_source
            added = _selected(new, fresh, self._reading)
            return self._publish(VersionDraft(index, added, rows, unchanged=int((~fresh).sum()), source=source))

    def compact(self) -> Change:
        """Rewrite the index as one segment without deleted rows.

        Kinds that keep vectors exactly (Flat, HNSW, IVF Flat) still do; others compress the approximate vectors again.
        """
        index = self._open()
        small = len(index.manifest.segments) == 1 and not len(index.vectors.rows.deleted)
        return self._publish(VersionDraft(index, merge_all=not small))

    def set_search_parameters(self, parameters: str) -> Change:
        """Set the parameters of searches that name none, such as "nprobe=64"; "" for the defaults.

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

    # -- implementation --------------------------------------------------------------------------------------------

    def _open(self, encoder: Encoder | None = None) -> PassageIndex:
        if self._lock is None:
            raise UsageError("An IndexWriter works inside its with block: `with IndexWriter(path) as writer: ...`.")
        return PassageIndex.open(self.path, encoder=encoder, mmap=True)

    def _read(self, corpus: Source, index: PassageIndex) -> "_IncomingCorpus":
        return _IncomingCorpus(self._reading, corpus, self._chunker(index), self._reading_options)

    def _chunker(self, index: PassageIndex) -> Chunker | None:
        chunking = index.manifest.chunking
        return Chunker(self._load_encoder(index).tokenizer, **dict[str, Any](chunking)) if chunking else None

    def _load_encoder(self, index: PassageIndex) -> Encoder:
        if self._encoder is None:
            self._encoder = index.load_encoder(trust_remote_code=self._trust_remote_code)
        return self._encoder

    def _publish(self, draft: VersionDraft) -> Change:
        """Write the next version."""
        if not draft.num_added and len(draft.deleted) == len(draft.index):
            raise UsageError("An index holds at least one passage, but all would be deleted. Delete its folder.")
        change = draft.change()
        if draft.is_empty:
            return change
        with translate_os_errors(f"{self.path} is unchanged; encoded vectors are kept for the same call."):
            manifest = self._write(draft)
            manifest.save(self.path / MANIFEST_FILE)
        shutil.rmtree(self._staging, ignore_errors=True)
        self._remove_unused(manifest)
        return replace(change, version=manifest.version)

    def _write(self, draft: VersionDraft) -> Manifest:
        old, rows = draft.index.manifest, draft.rows()
        self._remove_unused(old)  # files of a writer that was killed
        numbers = list(range(len(old.segments)))
        merged = numbers if draft.merge_all else _to_merge(rows, draft.num_added, old.segment_rows)
        stay = [number for number in numbers if number not in merged]
        moved = np.concatenate([rows.live_in(number) for number in merged] or [_no_rows()])
        shards = None if draft.added is None else self._encode(draft.index, draft.added)
        written = self._write_segments(draft, moved, shards)
        segments = [*(old.segments[number] for number in stay), *written]
        deleted = rows.deleted_in(stay)
        name = f"deleted-{draft.version:06d}.npy" if len(deleted) else ""
        if name:
            write_file(self.path / name, lambda stream: np.save(stream, deleted, allow_pickle=False))
        manifest = replace(
            old,
            version=draft.version,
            passages=sum(s.rows for s in segments) - len(deleted),
            segments=tuple(segments),
            next_segment=old.next_segment + len(written),
            deleted=name,
            bm25=f"{BM25_FOLDER}-{draft.version:06d}" if old.bm25 else "",
            corpus_fingerprint=draft.fingerprint(),
            corpus_source=old.corpus_source if draft.source is None else draft.source,
            truncation=self._truncation(draft.index, shards),
        )
        if manifest.bm25:
            write_bm25(self.path / manifest.bm25, self._corpus(manifest, deleted))
        return replace(manifest, files=self._records(manifest))

    def _truncation(self, index: PassageIndex, shards: Shards | None) -> Mapping[str, int]:
        """The counts of the old version plus those of the added passages; empty where the old ones are unknown."""
        before = index.manifest.truncation
        if shards is None:
            return before
        added = truncation_of(shards, self._load_encoder(index))
        return {name: before[name] + added[name] for name in before} if added else {}

    def _write_segments(
        self, draft: VersionDraft, moved: NDArray[np.int64], shards: Shards | None
    ) -> list[SegmentRecord]:
        """Write the live rows of merged segments and then the new passages, in one segment or several of equal size."""
        index, total = draft.index, len(moved) + draft.num_added
        size = index.manifest.segment_rows or max(total, 1)
        storage = VectorStorage.of(self.path, index.manifest)
        written: list[SegmentRecord] = []
        for start in range(0, total, size):
            record = SegmentRecord(f"{index.manifest.next_segment + len(written):06d}", min(size, total - start))
            old = moved[start : start + size]
            fresh = range(max(start - len(moved), 0), max(start + record.rows - len(moved), 0))
            storage.write(record.name, self._vectors(index, old, shards, fresh))
            passages = itertools.chain(_passages_at(index, old), _passages_in(draft.added, fresh))
            write_passages(segment_folder(self.path, record.name) / PASSAGES_FILE, passages)
            written.append(record)
        return written

    def _vectors(
        self, index: PassageIndex, old: NDArray[np.int64], shards: Shards | None, fresh: range
    ) -> Iterator[Vectors]:
        """The vectors of rows that move, and those of new passages.

        Where a store would lose more of a vector with each move, the passages are encoded again.
        """
        positions = index.vectors.rows.positions(old)
        for start in range(0, len(positions), ROWS):
            block = positions[start : start + ROWS]
            if index.vectors.properties.is_stable:
                yield index.vectors.reconstruct(block)
            else:
                bar = EncodingBar(len(block), "passage", shown=False)  # truncation was counted when they were added
                yield self._load_encoder(index).encode_passages(index.corpus.take(block.tolist()), progress=bar)
        if shards is not None and fresh:
            yield from shards.blocks(fresh.start, fresh.stop)

    def _encode(self, index: PassageIndex, new: Corpus) -> Shards:
        """The vectors of new passages, in a folder named by their digest, so that the same call finds them again."""
        encoder = self._load_encoder(index)
        index.manifest.check_encoder(encoder)
        check_workers(self._workers, encoder)
        order = hashlib.sha256()
        for passage in new:
            order.update(f"{passage_digest(passage):064x}".encode())
        folder = self._staging / order.hexdigest()[:32]
        for other in self._staging.glob("*"):
            if other != folder:
                shutil.rmtree(other)
        shards = Shards(folder, len(new), encoder.dimension)
        encode_shards(
            new,
            encoder,
            shards,
            shards.missing(),
            batch_size=self._batch_size,
            progress=self._progress,
            workers=self._workers,
        )
        return shards

    def _corpus(self, manifest: Manifest, deleted: NDArray[np.int64]) -> Corpus:
        return open_passages([segment_folder(self.path, s.name) / PASSAGES_FILE for s in manifest.segments], deleted)

    def _records(self, manifest: Manifest) -> dict[str, FileRecord]:
        """All files of this version; files that it shares with the previous one are not read again."""
        return {
            name: manifest.files.get(name) or FileRecord.of(self.path / name)
            for file in sorted(self.path.rglob("*"))
            if file.is_file() and _is_referenced(name := file.relative_to(self.path).as_posix(), manifest)
        }

    def _remove_unused(self, new: Manifest) -> None:
        """Delete unreferenced files. Readers that have them open keep them until they are closed."""
        VectorStorage.of(self.path, new).keep_only({segment.name for segment in new.segments})
        for file in self.path.rglob("*"):
            name = file.relative_to(self.path).as_posix()
            if file.is_file() and _is_own_file(name) and not _is_referenced(name, new):
                file.unlink()
        for folder in sorted((f for f in self.path.rglob("*") if f.is_dir()), reverse=True):
            if _is_own_file(f"{folder.relative_to(self.path).as_posix()}/") and not any(folder.iterdir()):
                folder.rmdir()


# ---------------------------------------------------------------------------------------------------------
# Incoming passages
# ---------------------------------------------------------------------------------------------------------


class _IncomingCorpus:
    """A corpus that is read for one change, and its temporary folder."""

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
        """Ids of the passages before they are cut into chunks: "a#1" may be the id of a passage."""
        return frozenset(passage.id for passage in self._uncut or ())

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> Corpus:
        if isinstance(self._source, Corpus):
            return self._source
        if isinstance(self._source, str | Path):
            corpus = Corpus.from_file(self._source, cache_dir=self.folder, **self._options)
            if corpus.quarantined:
                logger.warning("%d broken records of %s were left out.", corpus.quarantined, self._source)
            return corpus
        if isinstance(self._source, Passage | Mapping):
            raise UsageError(
                f"Passages must be in a list, but got a {type(self._source).__name__}. Put it into a list."
            )
        return Corpus.from_passages(self._source, cache_dir=self.folder)


def _selected(corpus: Corpus, wanted_M: NDArray[np.bool_], folder: Path) -> Corpus | None:
    """The passages of a corpus that are marked; None if there are none."""
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
    # Runs of equal digests: a left digest is contained if its run has a right one.
    new_run = np.any(np.diff(both_2[:, order], axis=1) != 0, axis=0)
    runs = np.concatenate([[0], np.cumsum(new_run)])[: len(order)]
    holds_right = np.bincount(runs, weights=is_right) > 0 if len(order) else np.empty(0, dtype=bool)
    contained = np.zeros(len(left_N2), dtype=bool)
    contained[order[~is_right]] = holds_right[runs[~is_right]]
    return contained


def _rows_of(index: PassageIndex, ids: Set[str]) -> dict[str, NDArray[np.int64]]:
    """The rows of these passages, or of the chunks of these documents; ids that are not in the index are left out."""
    exact: dict[str, list[int]] = {}
    chunks: dict[str, list[int]] = {}
    for position, passage in enumerate(index.corpus):
        if passage.id in ids:
            exact.setdefault(passage.id, []).append(position)
        elif (document := _document(passage.id, index.manifest)) in ids:
            chunks.setdefault(document, []).append(position)
    # A document that is in the index as a whole is not cut, whatever else has an id like one of its chunks.
    return {id_: index.vectors.rows.rows_at(np.array(rows, dtype=np.int64)) for id_, rows in (chunks | exact).items()}


def _document(id_: str, manifest: Manifest) -> str:
    """The id of the document that a chunk belongs to, see `Chunker.chunk`."""
    return re.sub(r"#\d+$", "", id_) if manifest.chunking else id_


def _passages_at(index: PassageIndex, rows: NDArray[np.int64]) -> Iterator[Passage]:
    """The passages at these rows, read in blocks."""
    positions = index.vectors.rows.positions(rows)
    for start in range(0, len(positions), ROWS):
        yield from index.corpus.take(positions[start : start + ROWS].tolist())


def _passages_in(corpus: Corpus | None, rows: range) -> Iterator[Passage]:
    """The passages in these rows of a corpus, read in blocks."""
    for start in range(0, len(rows), ROWS):
        if corpus is not None:
            yield from corpus.take(rows[start : start + ROWS])


# ---------------------------------------------------------------------------------------------------------
# Rows and segments
# ---------------------------------------------------------------------------------------------------------


def _joined(rows: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.sort(np.concatenate([_no_rows(), *rows]))


def _to_merge(rows: LiveRowMap, new: int, most: int) -> list[int]:
    """The segments that are merged into the next one: those half deleted, and from the end those not much larger.

    Args:
        rows: Of the segments.
        new: Rows that are added.
        most: Rows that a segment may have; 0 for no limit.
    """
    count = len(rows.starts) - 1
    merged = {n for n in range(count) if 2 * rows.count_deleted(n) > rows.count(n)}
    size = new + sum(rows.count_live(n) for n in merged)
    for number in reversed([n for n in range(count) if n not in merged]):
        if not size or rows.count_live(number) > 2 * size or (most and size + rows.count_live(number) > most):
            break
        merged.add(number)
        size += rows.count_live(number)
    return sorted(merged)


# ---------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------


def _is_referenced(name: str, manifest: Manifest) -> bool:
    """Whether a version references this file; unknown file names return False."""
    first, *others = name.split("/")
    if first == "segments":
        return others[0] in {segment.name for segment in manifest.segments}
    if _is_own_file(name):
        return first in (manifest.bm25, manifest.deleted)
    return name in manifest.files


def _is_own_file(name: str) -> bool:
    """Whether the name is one that only an `IndexWriter` or a build uses."""
    return _OWN_FILES.match(name) is not None
