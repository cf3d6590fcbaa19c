"""A corpus is a read-only sequence of passages, memory-mapped from Arrow and never held in a Python list.

Records are streamed from their source through one writer (`indexes.corpora.ingest`), which checks every one of them, so
a corpus that exists is valid: it has at least one passage, every passage has a title or a text, and no id occurs
twice.
"""

import operator
import shutil
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from indexes.corpora.chunk_ids import document_of
from indexes.corpora.corpus_format import ReadOptions
from indexes.corpora.passage import FINGERPRINT_MODULUS, Passage, hexadecimal, passage_digest
from indexes.corpora.passage_table import COLUMNS, PASSAGE_SCHEMA, PassageTable
from indexes.corpora.quarantine import Quarantine, quarantine_for
from indexes.errors import DataError
from indexes.records.delimited import Quoting

# What makes a corpus is imported where one is made: it needs `datasets` and pandas, which take longer than a search.
if TYPE_CHECKING:
    import datasets

    from indexes.corpora.chunking import Chunker
    from indexes.corpora.sources import Source


class Corpus:
    """Passages in a fixed order, read from disk when asked for.

    Make one with `from_file`, `from_dataset`, `from_passages` or `load`. Positions count from 0 and are never
    negative: a search index reports a missing result as -1, which must not read the last passage.
    """

    def __init__(
        self, table: PassageTable, *, source: str = "", fingerprint: str | None = None, quarantined: int = 0
    ) -> None:
        """Wrap passages that are known to be valid; use the constructors named above for all others.

        Args:
            table: The passages.
            source: The name of the file or folder that the passages were read from, without its path.
            fingerprint: The fingerprint of the passages, when it is already known.
            quarantined: How many records of the source were left out.
        """
        self._table = table
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
        """Read a corpus from a file, a folder or an address, in any of the formats of docs/formats.md.

        Among them are JSON lines, JSON, CSV, TSV, Parquet and Arrow with the fields id, title and text; FlashRAG's,
        Pyserini's, BEIR's, DPR's and KILT's corpora; the passages inside question files (HotpotQA, SQuAD ...);
        documents (text, Markdown, HTML, PDF, Word) and folders of them; saved datasets; ``https://`` addresses; and
        datasets of the Hugging Face hub as ``hf://datasets/owner/name``. Further formats can be registered
        (`indexes.corpora.corpus_formats`). Memory does not grow with the text, and by at most 24 bytes for each passage
        (100 more for each that comes out of a question file).

        Args:
            path: The file, folder or address; an address must be a string.
            cache_dir: Where the memory-mapped copy is kept while the corpus is in use, and a download while it is
                read (default: the system's temporary folder). The copy is private to this corpus and removed with
                it, so it is never out of date.
            progress: Show a progress bar.
            on_error: What happens to a broken record (no JSON object, wrong types, neither title nor text, invalid
                Unicode, a repeated id, an unreadable document ...): ``"raise"`` stops, ``"skip"`` leaves it out. What
                cannot be skipped is raised either way: a missing file, a truncated archive, a header without a text, or
                a corpus in which no record is left.
            quarantine: With ``"skip"``, the file for the records that are left out: one JSON object a line, with
                "source", "line" (or "record" or "file"), "error" and the first 2,000 characters as "content". It exists
                afterwards only if there are such records; an earlier one is replaced or removed.
            split: The part of a dataset that has several.
            quoting: Whether double quotes in ``.csv`` and ``.tsv`` enclose fields (``"csv"``, RFC 4180), are characters
                like any other (``"none"``, MS MARCO's and ColBERT's collections), or what the lines show (``"auto"``).

        Raises:
            DataError: The file is missing or of an unknown kind, has no records, or has a broken one; the message
                names file, line and reason.
            UsageError: An option has no meaning here, or the quarantine would overwrite another file.
            ResourceError: The extra ``documents`` is missing, a download fails, or the disk is full.
        """
        from indexes.corpora.sources import open_source

        kept = quarantine_for(on_error, quarantine, path)
        try:
            with open_source(path, ReadOptions(split, quoting), cache_dir=cache_dir) as source:
                return cls._ingested(source, cache_dir, progress=progress, quarantine=kept)
        finally:
            if kept is not None:
                kept.close()

    @classmethod
    def from_dataset(cls, dataset: "datasets.Dataset", *, cache_dir: str | Path | None = None) -> "Corpus":
        """Read a corpus from a ``datasets.Dataset`` whose columns are named as the fields of `from_file`."""
        from indexes.corpora.sources import dataset_source

        return cls._ingested(dataset_source(dataset, "the dataset"), cache_dir)

    @classmethod
    def from_passages(
        cls, passages: Iterable[Passage | Mapping[str, Any]], *, cache_dir: str | Path | None = None
    ) -> "Corpus":
        """Read a corpus from passages, or from mappings with the fields of `from_file`."""
        return cls._of_passages(passages, "", "the passages", cache_dir)

    @classmethod
    def _of_passages(
        cls,
        passages: Iterable[Passage | Mapping[str, Any]],
        source: str,
        name: str,
        cache_dir: str | Path | None,
    ) -> "Corpus":
        from indexes.corpora.ingest import given_passages
        from indexes.corpora.sources import Source

        return cls._ingested(Source(source, name, given_passages(passages, name)), cache_dir)

    @classmethod
    def _ingested(
        cls,
        source: "Source",
        cache_dir: str | Path | None,
        *,
        progress: bool = False,
        quarantine: Quarantine | None = None,
    ) -> "Corpus":
        from indexes.corpora.ingest import ingest

        found = ingest(source, cache_dir, progress=progress, quarantine=quarantine)
        corpus = cls(found.table, source=source.name, fingerprint=found.fingerprint, quarantined=found.quarantined)
        weakref.finalize(corpus, shutil.rmtree, found.folder, ignore_errors=True)
        return corpus

    @classmethod
    def load(cls, folder: str | Path) -> "Corpus":
        """Open a corpus that `save` wrote, memory-mapped.

        Raises:
            DataError: The folder does not hold such a corpus, or its files are damaged.
        """
        from indexes.records.saved_datasets import load_saved_dataset

        folder = Path(folder)
        dataset = load_saved_dataset(folder)
        types = {field.name: field.type for field in dataset.features.arrow_schema}
        if types != {field.name: field.type for field in PASSAGE_SCHEMA}:
            raise DataError(
                f"{folder}: a saved corpus must have the columns id, title and text, got {dataset.column_names}. Read "
                "other data with Corpus.from_file."
            )
        stored = dataset.data.table.select(list(COLUMNS)).replace_schema_metadata(None)
        return cls(PassageTable(stored.to_batches()), source=folder.name)

    def save(self, folder: str | Path) -> None:
        """Write the corpus as Arrow; equal corpora become equal files."""
        from indexes.corpora.passage_files import save_table

        save_table(self._table, folder, self.fingerprint)

    def chunked(self, chunker: "Chunker", *, cache_dir: str | Path | None = None) -> "Corpus":
        """Cut every passage with the chunker; see `Chunker.chunk` for the ids of the parts."""
        chunks = (chunk for passage in self for chunk in chunker.chunk(passage))
        return self._of_passages(chunks, self._source, "the chunks", cache_dir)

    def __repr__(self) -> str:
        return f"Corpus({len(self)} passages, source={self._source!r})"

    @property
    def source(self) -> str:
        """The name of the file or folder that the passages were read from; empty when there is none."""
        return self._source

    @property
    def ids(self) -> Sequence[str]:
        """The ids in order, as a lazy column."""
        return self._table.ids

    @property
    def fingerprint(self) -> str:
        """64 hex digits that are equal for equal passages, in any order and from any source.

        The sum of every passage's `passage_digest` modulo 2^256. It distinguishes corpora that differ by accident; it
        is not collision-resistant against chosen passages.
        """
        if self._fingerprint is None:
            self._fingerprint = hexadecimal(sum(map(passage_digest, self)) % FINGERPRINT_MODULUS)
        return self._fingerprint

    @property
    def quarantined(self) -> int:
        """How many records of the source were left out because they are broken."""
        return self._quarantined

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Passage]:
        for batch in self._table.batches():
            yield from batch

    def __getitem__(self, position: int) -> Passage:
        return self.take([position])[0]

    def take(self, positions: Sequence[int]) -> list[Passage]:
        """The passages at these positions, in the order asked for; a position may repeat.

        Raises:
            IndexError: A position is negative or not below the number of passages.
        """
        return self._table.take([self._checked(position) for position in positions])

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
            f"An id must belong to a passage of the corpus, got {id!r}: the corpus holds {len(self)} passages, the "
            f"first is {self[0].id!r}. Check the spelling and that this is the right corpus."
        )

    def document_positions(self, id: str) -> list[int]:
        """The position of the passage with this id, else those of the chunks of this document, in order; may be empty.

        The first call reads all ids, once, and keeps 16 bytes per passage.
        """
        if self._document_lookup is None:
            self._document_lookup = self._hashed(document_of)
        hashes, order = self._document_lookup
        # A passage "a#1" is stored among the possible chunks of "a", and its own chunks "a#1#0" under "a#1".
        keys = {hash(id), hash(document_of(id))}
        found = sorted({p for key in keys for p in order[slice(*np.searchsorted(hashes, [key, key + 1]))].tolist()})
        ids = {position: passage.id for position, passage in zip(found, self.take(found), strict=True)}
        # A document that is a passage as a whole has no chunks, even if other ids look like its chunks.
        whole = [position for position in found if ids[position] == id]
        return whole or [position for position in found if document_of(ids[position]) == id]

    def known_ids(self, ids: Iterable[str]) -> set[str]:
        """The given ids that passages of this corpus have, found in one pass over its ids."""
        wanted, known = set(ids), set()
        for batch in self._table.ids.batches():
            known.update(wanted.intersection(batch))
        return known

    def _checked(self, position: int) -> int:
        index = operator.index(position)
        if not 0 <= index < len(self):
            raise IndexError(f"A position must be at least 0 and below {len(self)}, got {index}.")
        return index

    def _lookup(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted hashes of the ids and the positions they belong to: 16 bytes per passage, unlike a dict."""
        if self._id_lookup is None:
            self._id_lookup = self._hashed(lambda id_: id_)
        return self._id_lookup

    def _hashed(self, name: Callable[[str], str]) -> tuple[np.ndarray, np.ndarray]:
        hashes = array("q", (hash(name(id_)) for batch in self._table.ids.batches() for id_ in batch))
        values = np.frombuffer(hashes, dtype=np.int64)
        order = np.argsort(values, kind="stable")
        return values[order], order
