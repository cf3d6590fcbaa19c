"""Build an index directory from a corpus and an encoder, and open one.

A directory holds ``index.faiss`` (vectors; the id of a vector is the position of its passage), ``passages/``
(Arrow) and ``manifest.json``. It appears complete or not at all.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np

from indexes.chunking import Chunker
from indexes.corpus import Corpus, Passage
from indexes.encoder import Encoder, EncodingBar, Vectors
from indexes.errors import DataError, MismatchError, UsageError
from indexes.faiss_index import FaissIndex, choose_factory
from indexes.manifest import EncoderRecord, FileRecord, Manifest

VECTORS_FILE = "index.faiss"
PASSAGES_FOLDER = "passages"
MANIFEST_FILE = "manifest.json"

# The encoder sorts what it gets by length; among so many passages every batch finds others of its own length.
_WINDOW = 4096
# k-means is well fed with this many points per centroid; more only takes longer.
_TRAINING_FACTOR = 64
_LOWEST_COSINE = 0.999


class PassageIndex:
    """An open index: passages, their vectors, and the manifest that ties them together.

    Attributes:
        corpus: The passages; the position of a passage is the id of its vector.
        vectors: The searchable vectors.
        manifest: What was built, from what, with which encoder.
        path: The directory.
    """

    def __init__(self, path: Path, corpus: Corpus, vectors: FaissIndex, manifest: Manifest) -> None:
        """Tie parts together that are known to belong; everybody else uses `open` or `build_index`."""
        self.path = path
        self.corpus = corpus
        self.vectors = vectors
        self.manifest = manifest

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoder: Encoder | None = None,
        verify: Literal["none", "sizes", "checksums"] = "sizes",
        mmap: bool = False,
    ) -> "PassageIndex":
        """Open an index directory.

        Args:
            path: The directory.
            encoder: Refuse the index unless this encoder made its vectors.
            verify: Compare nothing, the sizes (instant) or the checksums (reads every byte) of the files.
            mmap: Leave the vectors on disk where FAISS can; passages always stay there.

        Raises:
            MismatchError: It is not an index, its files are damaged, or the encoder is another one.
        """
        if verify not in ("none", "sizes", "checksums"):
            raise UsageError(f"verify must be 'none', 'sizes' or 'checksums', but {verify!r} came.")
        path = Path(path)
        if not (path / MANIFEST_FILE).is_file():
            raise MismatchError(
                f"An index is a directory with a {MANIFEST_FILE}, but {path} "
                f"{'has none' if path.is_dir() else 'is no directory'}. Check the path, or build the index."
            )
        manifest = Manifest.load(path / MANIFEST_FILE)
        if verify != "none":
            manifest.verify_files(path, checksums=verify == "checksums")
        if encoder is not None:
            manifest.check_encoder(encoder)
        vectors = FaissIndex.load(path / VECTORS_FILE, mmap=mmap, factory=manifest.factory)
        corpus = _load_passages(path / PASSAGES_FOLDER)
        _check_counts(path, corpus, vectors, manifest)
        return cls(path, corpus, vectors, manifest)

    def __len__(self) -> int:
        return len(self.corpus)

    def load_encoder(self, *, device: str | None = None) -> Encoder:
        """Load the encoder that the manifest names, with the same prompts, and check that it is the one.

        Raises:
            ResourceError: It cannot be loaded from where it was.
            MismatchError: What is there now is another encoder.
        """
        record = self.manifest.encoder
        encoder = Encoder.from_pretrained(
            record.name,
            question_prompt=record.question_prompt,
            passage_prompt=record.passage_prompt,
            device=device,
            dtype=record.dtype,
            revision=record.revision,
            max_length=record.max_length,
        )
        self.manifest.check_encoder(encoder)
        return encoder

    def info(self) -> dict[str, Any]:
        """What the index is, ready for JSON."""
        record = self.manifest.encoder
        return {
            "passages": self.manifest.passages,
            "dimension": self.manifest.dimension,
            "metric": self.manifest.metric,
            "factory": self.manifest.factory,
            "bytes_on_disk": sum(file.stat().st_size for file in _files_below(self.path)),
            "corpus_source": self.manifest.corpus_source,
            "corpus_fingerprint": self.manifest.corpus_fingerprint,
            "encoder": record.name,
            "encoder_fingerprint": record.fingerprint,
            "question_prompt": record.question_prompt,
            "passage_prompt": record.passage_prompt,
            "max_length": record.max_length,
            "created_by": self.manifest.created_by,
            "libraries": dict(self.manifest.libraries),
        }

    def verify(
        self, *, encoder: Encoder | None = None, corpus: Corpus | None = None, sample: int = 64
    ) -> dict[str, Any]:
        """Check everything that can be checked; slower than opening, since it reads every byte.

        Args:
            encoder: Also check that this encoder made the vectors, and encode some passages again.
            corpus: Also check that these are the passages.
            sample: How many evenly spaced passages are encoded again, for kinds that keep vectors exactly.

        Returns:
            What was checked: counts, and the lowest cosine between stored and new vectors (None if not done).

        Raises:
            MismatchError: The first thing that does not hold.
        """
        self.manifest.verify_files(self.path, checksums=True)
        _check_counts(self.path, self.corpus, self.vectors, self.manifest)
        self.manifest.check_corpus(self.corpus)
        if corpus is not None:
            self.manifest.check_corpus(corpus)
        cosines: list[float] = []
        if encoder is not None:
            self.manifest.check_encoder(encoder)
            if _keeps_vectors(self.manifest.factory):
                cosines = self._recomputed_cosines(encoder, sample)
        return {
            "files": len(self.manifest.files),
            "passages": len(self),
            "encoder_checked": encoder is not None,
            "corpus_checked": corpus is not None,
            "sampled": len(cosines),
            "lowest_cosine": min(cosines, default=None),
        }

    def _recomputed_cosines(self, encoder: Encoder, sample: int) -> list[float]:
        positions = _evenly_spaced(len(self), sample)
        stored = self.vectors.reconstruct(positions)
        passages = self.corpus.take(positions)
        cosines: list[float] = (stored * encoder.encode_passages(passages)).sum(axis=1).tolist()
        for passage, cosine in zip(passages, cosines, strict=True):
            if not cosine >= _LOWEST_COSINE:
                raise MismatchError(
                    f"The stored vector of passage {passage.id!r} must be what the encoder gives (cosine at "
                    f"least {_LOWEST_COSINE}), but the cosine is {cosine:.4f}. Build the index again."
                )
        return cosines


def build_index(
    corpus: str | Path | Corpus | datasets.Dataset,
    encoder: str | Path | Encoder,
    output: str | Path,
    *,
    factory: str = "auto",
    batch_size: int = 256,
    chunker: Chunker | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> PassageIndex:
    """Embed a corpus and write an index directory.

    The directory is prepared beside the output and renamed at the end, so an interrupted build leaves nothing
    behind and an older index untouched. The same input gives the same bytes (for HNSW, with one thread).

    Args:
        corpus: Passages, or a file or folder that `Corpus.from_file` reads.
        encoder: The encoder, or the folder or hub id of one.
        output: The directory; it must not exist, be empty, or be an index and `overwrite` be set.
        factory: FAISS's description of the index; "auto" chooses by the number of passages.
        batch_size: The most passages that the encoder reads at once; fewer when they are long.
        chunker: Cuts the passages first.
        overwrite: Replace an index at the output.
        progress: Show progress bars.

    Raises:
        UsageError: The output is taken, or the factory does not work for this corpus.
        DataError: The corpus is broken.
        ResourceError: The encoder cannot be loaded.
    """
    output = Path(output).resolve()
    _refuse_taken(output, overwrite=overwrite)
    if not isinstance(encoder, Encoder):
        encoder = Encoder.from_pretrained(encoder)
    with _partial_folder(output) as partial:
        work = partial / "work"
        passages = _open_corpus(corpus, work, progress=progress)
        if chunker is not None:
            passages = passages.chunked(chunker, cache_dir=work)
        if factory == "auto":
            factory, _ = choose_factory(len(passages), encoder.dimension)
        vectors = _embed(passages, encoder, factory, batch_size=batch_size, progress=progress)
        vectors.save(partial / VECTORS_FILE)
        passages.save(partial / PASSAGES_FOLDER)
        shutil.rmtree(work, ignore_errors=True)
        _describe(partial, passages, encoder, vectors).save(partial / MANIFEST_FILE)
        _publish(partial, output)
    return PassageIndex.open(output)


def _open_corpus(corpus: str | Path | Corpus | datasets.Dataset, work: Path, *, progress: bool) -> Corpus:
    if isinstance(corpus, Corpus):
        return corpus
    if isinstance(corpus, datasets.Dataset):
        return Corpus.from_dataset(corpus, cache_dir=work)
    return Corpus.from_file(corpus, cache_dir=work, progress=progress)


# ---------------------------------------------------------------------------------------------------------
# Vectors
# ---------------------------------------------------------------------------------------------------------


def _embed(corpus: Corpus, encoder: Encoder, factory: str, *, batch_size: int, progress: bool) -> FaissIndex:
    """Encode the corpus straight into an index; at no time are all vectors held outside it."""
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, but {batch_size} came.")
    vectors = FaissIndex.empty(encoder.dimension, factory)
    if not vectors.is_trained:
        vectors.train(_training_sample(corpus, encoder, vectors.training_points, batch_size=batch_size))
    with EncodingBar(len(corpus), "passage", shown=progress) as bar:
        for window in _windows(corpus, _WINDOW):
            vectors.add(encoder.encode_passages(window, batch_size=batch_size, progress=bar))
    return vectors


def _training_sample(corpus: Corpus, encoder: Encoder, points: int, *, batch_size: int) -> Vectors:
    positions = _evenly_spaced(len(corpus), max(points, 1) * _TRAINING_FACTOR)
    sample_nd = np.empty((len(positions), encoder.dimension), dtype=np.float32)
    for start in range(0, len(positions), _WINDOW):
        window = corpus.take(positions[start : start + _WINDOW])
        sample_nd[start : start + len(window)] = encoder.encode_passages(window, batch_size=batch_size)
    return sample_nd


def _windows(corpus: Corpus, size: int) -> Iterator[list[Passage]]:
    passages = iter(corpus)
    while window := list(islice(passages, size)):
        yield window


def _evenly_spaced(total: int, count: int) -> list[int]:
    """At most `count` different positions from first to last."""
    if count < 1:
        return []
    positions: list[int] = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int)).tolist()
    return positions


def _keeps_vectors(factory: str) -> bool:
    parts = factory.split(",")
    return parts[-1] == "Flat" or (len(parts) == 1 and parts[0].startswith("HNSW"))


# ---------------------------------------------------------------------------------------------------------
# The directory
# ---------------------------------------------------------------------------------------------------------


def _describe(folder: Path, corpus: Corpus, encoder: Encoder, vectors: FaissIndex) -> Manifest:
    return Manifest(
        passages=len(corpus),
        dimension=vectors.dimension,
        factory=vectors.factory,
        corpus_fingerprint=corpus.fingerprint,
        corpus_source=corpus.source,
        encoder=EncoderRecord.of(encoder),
        files={file.relative_to(folder).as_posix(): FileRecord.of(file) for file in _files_below(folder)},
    )


def _files_below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _load_passages(folder: Path) -> Corpus:
    try:
        return Corpus.load(folder)
    except DataError as error:
        raise MismatchError(f"The passages of an index must be readable, but: {error}") from error


def _check_counts(path: Path, corpus: Corpus, vectors: FaissIndex, manifest: Manifest) -> None:
    found = {"passages": len(corpus), "vectors": len(vectors), "dimension": vectors.dimension}
    expected = {"passages": manifest.passages, "vectors": manifest.passages, "dimension": manifest.dimension}
    for name, count in expected.items():
        if found[name] != count:
            raise MismatchError(
                f"{path} must have {name} = {count} as its manifest says, but {found[name]} was found. "
                "Build the index again."
            )


def _refuse_taken(output: Path, *, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST_FILE).is_file():
        raise UsageError(
            f"The output must be a new or empty folder, but {output} already holds something that is not an "
            "index. Choose another output."
        )
    if not overwrite:
        raise UsageError(
            f"The output must be a new or empty folder, but {output} already holds an index. Choose another "
            "output, or ask to overwrite it."
        )


@contextmanager
def _partial_folder(output: Path) -> Iterator[Path]:
    """A folder beside the output that is gone afterwards, unless it has been renamed."""
    partial = output.parent / f".{output.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, output: Path) -> None:
    """Put the finished folder in place of what was there, by renaming."""
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    old = output.parent / f".{output.name}.old-{os.getpid()}"
    replaced = output.exists()
    if replaced:
        os.replace(output, old)
    try:
        os.replace(partial, output)
    except OSError:
        if replaced:
            os.replace(old, output)
        raise
    _sync(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Ask the system to write a file or folder to the disk; Windows cannot do it for folders."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
