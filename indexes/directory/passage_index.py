"""An open index: one version of a directory, which readers keep while a writer publishes the next one.

A directory holds ``manifest.json``, ``segments/<number>/`` with the vectors and the passages of each segment, the rows
that are deleted, and optionally a BM25 index. All files but the manifest are written once and never changed.
"""

import logging
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage
from indexes.directory.manifest import MANIFEST_FILE, Manifest
from indexes.directory.segments import PASSAGES_FILE, Segments, open_passages, segment_folder
from indexes.directory.shards import evenly_spaced
from indexes.directory.vector_storage import VectorStorage
from indexes.encoder import COSINE, Encoder, EncodingBar
from indexes.errors import DataError, MismatchError, UsageError

if TYPE_CHECKING:
    from indexes.vectors.bm25_index import BM25Index

_LOWEST_COSINE = 0.999
_TINY = np.finfo(np.float32).tiny

logger = logging.getLogger(__name__)


class PassageIndex:
    """An open index: passages, their vectors, and the manifest that ties them together.

    It stays at the version that was opened: later changes of a writer are seen by `newest` or by opening again.

    Attributes:
        corpus: The passages; the position of a passage is the id of its vector.
        vectors: The searchable vectors.
        manifest: What was built, from what, with which encoder.
        path: The directory.
    """

    def __init__(self, path: Path, corpus: Corpus, vectors: Segments, manifest: Manifest) -> None:
        """Combine parts that are known to belong together; use `open` or `build_index` instead."""
        self.path = path.absolute()  # still valid when the process changes its working directory
        self.corpus = corpus
        self.vectors = vectors
        self.manifest = manifest
        self._bm25: BM25Index | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoder: Encoder | None = None,
        verify: Literal["none", "sizes", "checksums"] = "sizes",
        mmap: bool | None = None,
    ) -> "PassageIndex":
        """Open an index directory.

        Args:
            path: The directory.
            encoder: Refuse the index unless this encoder made its vectors.
            verify: Compare nothing, the sizes (instant) or the checksums (reads every byte) of the files.
            mmap: Leave the vectors on disk where the store can; passages always stay there. None does so when they
                would fill more than half of the free memory.

        Raises:
            MismatchError: It is not an index, its files are damaged, or the encoder is another one.
        """
        if verify not in ("none", "sizes", "checksums"):
            raise UsageError(f"verify must be 'none', 'sizes' or 'checksums', but got {verify!r}.")
        path = Path(path)
        manifest = load_manifest(path)
        while True:
            try:
                return cls._open(path, manifest, encoder, verify, mmap)
            except (MismatchError, OSError):  # a file may be removed while the directory is read
                # A writer may have published the next version and removed files of this one since it was read.
                newest = load_manifest(path)
                if newest == manifest:
                    raise
                manifest = newest

    @classmethod
    def _open(
        cls, path: Path, manifest: Manifest, encoder: Encoder | None, verify: str, mmap: bool | None
    ) -> "PassageIndex":
        if verify != "none":
            manifest.verify_files(path, checksums=verify == "checksums")
        if encoder is not None:
            manifest.check_encoder(encoder)
        deleted = load_deleted(path, manifest)
        parts = VectorStorage.of(path, manifest).open(manifest.segments, mmap=mmap)
        vectors = Segments(parts, deleted, parameters=manifest.search_parameters)
        corpus = _open_corpus(path, manifest, deleted)
        _check_counts(path, corpus, vectors, manifest)
        return cls(path, corpus, vectors, manifest)

    def __len__(self) -> int:
        return len(self.corpus)

    def __repr__(self) -> str:
        manifest = self.manifest
        return (
            f"PassageIndex({str(self.path)!r}, {len(self):,} passages, {manifest.factory!r}, "
            f"encoder={manifest.encoder.name!r}, version={manifest.version})"
        )

    def newest(self) -> "PassageIndex":
        """The newest version of the directory: this object when nothing has changed, else another one.

        Raises:
            MismatchError: What is there now cannot be opened.
        """
        if load_manifest(self.path).version == self.manifest.version:
            return self
        return PassageIndex.open(self.path)

    def load_encoder(
        self,
        encoder: str | Path | Encoder | None = None,
        *,
        device: str | None = None,
        trust_remote_code: bool = False,
        check: bool = True,
    ) -> Encoder:
        """Load the encoder of this index, with the recorded prompts, dtype and length limit.

        Args:
            encoder: Another place to load it from (a folder or Hub id), or the encoder itself; None takes the name that
                the manifest records.
            device: Such as "cpu"; None takes the best there is.
            trust_remote_code: Run Python code that comes with it; what the manifest records does not allow that.
            check: Compare its fingerprint with that of the encoder that built the index.

        Raises:
            ResourceError: It cannot be loaded, or has code of its own that may not run.
            MismatchError: It is another encoder.
        """
        if not isinstance(encoder, Encoder):
            encoder = self.manifest.encoder.load(encoder, device=device, trust_remote_code=trust_remote_code)
        if check:
            self.manifest.check_encoder(encoder)
        return encoder

    def load_bm25(self) -> "BM25Index":
        """The BM25 index of the same passages: read from the directory, or built in memory at the first call."""
        from indexes.vectors.bm25_index import BM25Index  # and scipy, which a search by vectors does without

        if self._bm25 is None:
            self._bm25 = self._stored_bm25()
        if self._bm25 is None:
            logger.info("Reading the words of %d passages for BM25.", len(self))
            self._bm25 = BM25Index.build(self.corpus)
        return self._bm25

    def _stored_bm25(self) -> "BM25Index | None":
        from indexes.vectors.bm25_index import BM25Index

        if not self.manifest.bm25:
            return None
        try:
            return BM25Index.load(self.path / self.manifest.bm25)
        except MismatchError:
            if load_manifest(self.path).version == self.manifest.version:
                raise
            return None  # a writer has removed it; the passages of this version are still open

    def exact_results(self, reference: "PassageIndex", queries_Bd: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """The results of exact search in another index of the same passages: positions in this one, int64 [B, k].

        Raises:
            MismatchError: The other index holds other passages or vectors of another encoder.
            UsageError: It does not search exactly.
        """
        if not reference.vectors.properties.is_exhaustive:
            raise UsageError(
                f'The reference must be searched exactly ("Flat", or FLAT in Milvus), but {reference.path} is '
                f"{reference.manifest.factory!r}. Build an index of the same corpus with --factory Flat."
            )
        self.manifest.check_corpus(reference.corpus)
        if reference.manifest.encoder.fingerprint != self.manifest.encoder.fingerprint:
            raise MismatchError(
                f"The reference must come from the same encoder, but {reference.path} was built with "
                f"{reference.manifest.encoder.name!r}. Build it with {self.manifest.encoder.name!r}."
            )
        _, theirs_Bk = reference.vectors.search(queries_Bd, k)
        theirs = np.unique(theirs_Bk[theirs_Bk >= 0]).tolist()
        own = [self.corpus.position(passage.id) for passage in reference.corpus.take(theirs)]
        translated = dict(zip(theirs, own, strict=True))
        return np.array([[translated.get(p, -1) for p in row] for row in theirs_Bk.tolist()], dtype=np.int64)

    def info(self) -> dict[str, Any]:
        """A description of the index, ready for JSON."""
        manifest, record = self.manifest, self.manifest.encoder
        lost = manifest.truncation
        return {
            "passages": manifest.passages,
            "dimension": manifest.dimension,
            "metric": manifest.metric,
            "factory": manifest.factory,
            "search_parameters": manifest.search_parameters,
            "version": manifest.version,
            "segments": [segment.rows for segment in manifest.segments],
            "deleted": len(self.vectors.rows.deleted),
            "bm25": bool(manifest.bm25),
            "bytes_on_disk": sum(entry.bytes for entry in manifest.files.values())
            + (self.path / MANIFEST_FILE).stat().st_size,
            "corpus_source": manifest.corpus_source,
            "corpus_fingerprint": manifest.corpus_fingerprint,
            "encoder": record.name,
            "encoder_fingerprint": record.fingerprint,
            "question_prompt": record.question_prompt,
            "passage_prompt": record.passage_prompt,
            "max_length": record.max_length,
            "similarity": record.similarity,
            "truncated_passages": lost.get("truncated"),
            "truncated_share": lost["truncated"] / max(lost["passages"], 1) if lost else None,
            "tokens": lost.get("tokens"),
            "tokens_lost": lost.get("lost"),
            "created_by": manifest.created_by,
            "libraries": dict(manifest.libraries),
        }

    def verify(
        self, *, encoder: Encoder | None = None, corpus: Corpus | None = None, sample: int = 64
    ) -> dict[str, Any]:
        """Check all files, passages and vectors; slower than opening, since it reads every byte.

        Args:
            encoder: Also check that this encoder made the vectors, and encode some passages again.
            corpus: Also check that these are the passages, in any order.
            sample: How many evenly spaced passages are encoded again, for kinds that keep vectors exactly.

        Returns:
            What was checked: counts, and the lowest cosine between stored and new vectors (None if not done).

        Raises:
            MismatchError: A check fails; the message names it.
        """
        self._check_listed()
        if (version := load_manifest(self.path).version) != self.manifest.version:
            raise MismatchError(
                f"The newest version of {self.path} can be verified, which is {version}, but version "
                f"{self.manifest.version} is open. Open it again."
            )
        self.manifest.verify_files(self.path, checksums=True)
        _check_counts(self.path, self.corpus, self.vectors, self.manifest)
        # Computed from the passages themselves: the fingerprint of `self.corpus` is that of the manifest.
        self.manifest.check_corpus(_open_corpus(self.path, self.manifest, self.vectors.rows.deleted, trusting=False))
        self._check_ids()
        if self.manifest.bm25 and len(self.load_bm25()) != len(self):
            raise MismatchError(f"The BM25 index must hold {len(self)} passages, but it has {len(self.load_bm25())}.")
        if corpus is not None:
            self.manifest.check_corpus(corpus)
        cosines: list[float] = []
        if encoder is not None:
            self.manifest.check_encoder(encoder)
            if self.vectors.properties.stores_exact_vectors:
                cosines = self._recomputed_cosines(encoder, sample)
        return {
            "files": len(self.manifest.files),
            "passages": len(self),
            "encoder_checked": encoder is not None,
            "corpus_checked": corpus is not None,
            "sampled": len(cosines),
            "lowest_cosine": min(cosines, default=None),
        }

    def _check_listed(self) -> None:
        """Check that the manifest lists every file, so that all checksums are compared."""
        names = {PASSAGES_FILE, *VectorStorage.of(self.path, self.manifest).file_names}
        used = {f"segments/{segment.name}/{name}" for segment in self.manifest.segments for name in names}
        if missing := sorted({*used, *filter(None, [self.manifest.deleted])} - self.manifest.files.keys()):
            raise MismatchError(
                f"A manifest must list every file of its index, but that of {self.path} leaves out {missing[0]!r}. "
                "Build it again."
            )

    def _check_ids(self) -> None:
        """Check that no id occurs twice, in all segments together."""
        hashes = np.fromiter((hash(passage.id) for passage in self.corpus), dtype=np.int64, count=len(self))
        order = np.argsort(hashes, kind="stable")
        same = np.flatnonzero(np.diff(hashes[order]) == 0)
        for first, second in zip(order[same].tolist(), order[same + 1].tolist(), strict=True):
            if self.corpus[first].id == self.corpus[second].id:
                raise MismatchError(
                    f"Every passage needs its own id, but {self.corpus[first].id!r} is there twice. Build it again."
                )

    def _recomputed_cosines(self, encoder: Encoder, sample: int) -> list[float]:
        positions = evenly_spaced(len(self), sample).tolist()
        stored = self.vectors.reconstruct(positions)
        passages = self.corpus.take(positions)
        bar = EncodingBar(len(passages), "passage", shown=False)  # the build has warned of what is truncated
        given = encoder.encode_passages(passages, progress=bar)
        lengths_2n = np.linalg.norm([stored, given], axis=2)
        if encoder.similarity != COSINE:
            self._check_lengths(passages, *lengths_2n)
            stored, given = np.stack([stored, given]) / np.maximum(lengths_2n, _TINY)[..., None]
        cosines: list[float] = (stored * given).sum(axis=1).tolist()
        for passage, cosine in zip(passages, cosines, strict=True):
            if not cosine >= _LOWEST_COSINE:
                raise MismatchError(
                    f"The stored vector of passage {passage.id!r} must be what the encoder gives (cosine at "
                    f"least {_LOWEST_COSINE}), but the cosine is {cosine:.4f}. Build the index again."
                )
        return cosines

    def _check_lengths(
        self, passages: list[Passage], stored_n: NDArray[np.float32], given_n: NDArray[np.float32]
    ) -> None:
        """Compare lengths, which are part of the similarity where it is the dot product."""
        for passage, length, wanted in zip(passages, stored_n.tolist(), given_n.tolist(), strict=True):
            if not abs(length - wanted) <= (1 - _LOWEST_COSINE) * wanted:
                raise MismatchError(
                    f"The stored vector of passage {passage.id!r} must be as long as what the encoder gives, "
                    f"{wanted:.4g}, but its length is {length:.4g}. Build the index again."
                )


def load_manifest(path: Path) -> Manifest:
    """The manifest of an index directory.

    Raises:
        MismatchError: There is none, or it is broken.
    """
    if not (path / MANIFEST_FILE).is_file():
        raise MismatchError(
            f"An index is a directory with a {MANIFEST_FILE}, but {path} "
            f"{'has none' if path.is_dir() else 'is no directory'}. Check the path, or build the index."
        )
    return Manifest.load(path / MANIFEST_FILE)


def load_deleted(path: Path, manifest: Manifest) -> NDArray[np.int64]:
    """The rows of an index that are deleted, ascending.

    Raises:
        MismatchError: The file is damaged.
    """
    if not manifest.deleted:
        return np.empty(0, dtype=np.int64)
    try:
        deleted: NDArray[np.int64] = np.load(path / manifest.deleted, allow_pickle=False)
    except (OSError, ValueError, SyntaxError, TokenError) as error:  # numpy reads the header of a file as Python
        raise MismatchError(f"{manifest.deleted} of {path} must be readable, but: {error}. Build it again.") from error
    rows = sum(segment.rows for segment in manifest.segments)
    ascending = deleted.ndim == 1 and deleted.dtype == np.int64 and bool((np.diff(deleted) > 0).all())
    if not ascending or (len(deleted) and not 0 <= deleted[0] <= deleted[-1] < rows):
        raise MismatchError(
            f"{manifest.deleted} of {path} must hold ascending rows below {rows}, but it does not. Build it again."
        )
    return deleted


def _open_corpus(path: Path, manifest: Manifest, deleted: NDArray[np.int64], *, trusting: bool = True) -> Corpus:
    try:
        return open_passages(
            [segment_folder(path, segment.name) / PASSAGES_FILE for segment in manifest.segments],
            deleted,
            source=manifest.corpus_source,
            fingerprint=manifest.corpus_fingerprint if trusting else None,
        )
    except DataError as error:
        raise MismatchError(f"The passages of an index must be readable, but: {error}") from error


def _check_counts(path: Path, corpus: Corpus, vectors: Segments, manifest: Manifest) -> None:
    found = {"passages": len(corpus), "vectors": len(vectors), "dimension": vectors.dimension}
    expected = {"passages": manifest.passages, "vectors": manifest.passages, "dimension": manifest.dimension}
    found |= {f"rows of segment {s.name}": len(p) for s, p in zip(manifest.segments, vectors.parts, strict=True)}
    expected |= {f"rows of segment {s.name}": s.rows for s in manifest.segments}
    for name, count in expected.items():
        if found[name] != count:
            raise MismatchError(
                f"{path} must have {name} = {count} as its manifest says, but it has {found[name]}. "
                "Build the index again."
            )
