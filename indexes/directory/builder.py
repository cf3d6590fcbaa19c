"""Build an index directory from a corpus and an encoder, losing no work whenever the process dies.

    corpus -> passages.arrow -> shards of vectors -> segments -> index directory
              |________________ .<name>.building ______________|

Everything on the way is a file that appears whole, in a folder beside the output. What is there is not done again: a
resumed build reads the same passages, encodes the shards that are missing, and ends with the same bytes. The folder is
renamed to the output at the end, so an index appears complete or not at all.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import datasets
import torch

from indexes.atomic_files import (
    exclusive_writer_lock,
    move_into_place,
    read_json,
    remove_partial_files,
    remove_replaced,
    translate_os_errors,
    write_folder,
    write_path,
    write_text,
)
from indexes.corpora.chunking import Chunker
from indexes.corpora.corpus import Corpus
from indexes.directory.manifest import MANIFEST_FILE, EncoderRecord, FileRecord, Manifest, SegmentRecord
from indexes.directory.passage_index import PassageIndex
from indexes.directory.segments import PASSAGES_FILE, open_passages, segment_folder, write_passages
from indexes.directory.shards import ROWS, Shards, evenly_spaced
from indexes.directory.vector_storage import FaissFiles, VectorStorage, storage_in
from indexes.encoder import COSINE, Encoder, EncodingBar, Truncation
from indexes.errors import DataError, MismatchError, ResourceError, UsageError
from indexes.host_memory import BM25_PAIR, NARROW_KERNELS, PROCESS_BYTES, host_memory, parse_bytes, words
from indexes.records.delimited import Quoting
from indexes.vectors.bm25_index import BM25Index
from indexes.vectors.faiss.faiss_factory import (
    build_bytes,
    bytes_per_vector,
    choose_factory,
    parse,
    training_points,
    training_sample,
)
from indexes.vectors.faiss.faiss_index import FaissIndex

BM25_FOLDER = "bm25"
QUARANTINE_FILE = "quarantine.jsonl"
LAYOUT_FILE = "layout.json"

_ANEW = "Begin anew by overwrite (--overwrite)."
# Passages whose words are counted to know how many all have.
_SAMPLED = 1000
# What a plan leaves out at these values, so that a build that was begun before there were these options goes on, and a
# finished one is known again.
_NEWER: dict[str, Any] = {"quoting": "auto", "allow_untested": False}

logger = logging.getLogger(__name__)


def build_index(
    corpus: str | Path | Corpus | datasets.Dataset,
    encoder: str | Path | Encoder,
    output_dir: str | Path,
    *,
    factory: str = "auto",
    batch_size: int = 256,
    chunker: Chunker | None = None,
    split: str | None = None,
    quoting: Quoting = "auto",
    bm25: bool = False,
    milvus: str | None = None,
    max_memory: str | int | None = None,
    allow_untested: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    overwrite: bool = False,
    resume: bool = False,
    distributed: bool = False,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> PassageIndex:
    """Embed a corpus and write an index directory.

    What is done is kept beside the output, in ``.<name>.building``, until the index is complete and takes its place; a
    killed build goes on with `resume`. An older index stays untouched until then. The same input gives the same bytes
    (for HNSW, with one thread), interrupted or not.

    Args:
        corpus: Passages, or a file, folder or address that `Corpus.from_file` reads.
        encoder: The encoder, or the folder or hub id of one.
        output_dir: The directory; it must not exist, be empty, or be an index and `overwrite` be set.
        factory: FAISS's description of the index; "auto" chooses by the number of passages and the memory.
        batch_size: The most passages that the encoder reads at once; fewer when they are long.
        chunker: Cuts the passages first; passages that are added later are cut in the same way.
        split: Of a dataset that has several, such as "train".
        quoting: Of ``.csv`` and ``.tsv``, as in `Corpus.from_file`.
        bm25: Also build a BM25 index, for hybrid search.
        milvus: Keep the vectors on this Milvus server (http://host:19530), or in this file of Milvus Lite, in place of
            FAISS files; `factory` is then a Milvus index type, and "auto" leaves it to Milvus (AUTOINDEX), whose search
            is approximate; "FLAT" is exact.
        max_memory: The most memory the process may use, in bytes or as "8GB". A kind of index that is built in memory
            is cut into segments that fit. None allows half of the machine's.
        allow_untested: Also build kinds of FAISS index whose results nobody has compared (`faiss_kinds`).
        on_error: "skip" leaves broken rows of the corpus out and lists them in ``quarantine.jsonl`` in the directory.
        overwrite: Replace an index at the output, and throw away an unfinished one.
        resume: Go on with an unfinished build of the same; begin one if there is none, and be content if it is done.
        distributed: Share out the encoding among the processes of `accelerate launch`, all of which call this.
        trust_remote_code: Of an encoder that is named: run Python code that comes with it.
        progress: Show progress bars.

    Raises:
        UsageError: The output is taken, the factory is untested or does not work for this corpus, or the memory is
            too little.
        DataError: The corpus is broken.
        ResourceError: The encoder cannot be loaded, or disk or memory is full; `resume` goes on when there is more.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, but {batch_size} came.")
    output, team = Path(output_dir).resolve(), Team.of(distributed)
    if not isinstance(encoder, Encoder):
        encoder = Encoder.from_pretrained(encoder, device=team.device, trust_remote_code=trust_remote_code)
    if factory != "auto" and milvus is None:
        # Refuses what FAISS cannot make, before hours of work.
        FaissIndex.empty(encoder.dimension, factory, allow_untested=allow_untested)
        _check_similarity(encoder, factory)
    kept = f"What is done is kept beside {output}: run the same again with resume (--resume) to go on."
    with exclusive_writer_lock(output) if team.is_main else nullcontext(), translate_os_errors(kept):
        build = Build(
            output,
            _plan(
                corpus,
                encoder,
                factory,
                chunker,
                split,
                quoting,
                bm25,
                milvus,
                max_memory,
                allow_untested,
                on_error,
                output,
            ),
        )
        if team.is_main and not build.begin(overwrite=overwrite, resume=resume):
            build.read(corpus, encoder, chunker, progress=progress)
        team.wait()
        if not build.is_finished():
            build.encode(encoder, team, batch_size=batch_size, progress=progress)
            team.wait()
            if team.is_main:
                build.finish(encoder, overwrite=overwrite)
            team.wait()
    # What was built in little memory is not read into a lot of it afterwards.
    return PassageIndex.open(output, mmap=None if max_memory is None else True)


@dataclass(frozen=True)
class Team:
    """The processes that share out the encoding."""

    rank: int = 0
    size: int = 1
    state: Any = None

    @classmethod
    def of(cls, distributed: bool) -> "Team":
        """All processes of `accelerate launch`, or this one."""
        if not distributed:
            return cls()
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        # The first process reads the corpus and builds the index alone, for as long as that takes.
        state = PartialState(cpu=on_cpu, timeout=timedelta(weeks=4))
        return cls(state.process_index, state.num_processes, state)

    @property
    def device(self) -> str | None:
        """Where this process encodes, unless it is told."""
        return None if self.state is None else str(self.state.device)

    @property
    def is_main(self) -> bool:
        """Whether this process does what is not shared out."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.state is not None:
            self.state.wait_for_everyone()


@dataclass(frozen=True)
class Layout:
    """What is decided once the corpus has been read."""

    passages: int
    dimension: int
    factory: str
    segment_rows: int
    """Rows of every segment but the last."""
    fingerprint: str
    source: str
    collection: str
    """Of Milvus; a new one, so that no two indexes share it."""

    def segments(self) -> Iterator[tuple[SegmentRecord, range]]:
        """Each segment and the rows of the corpus that it holds."""
        for number, start in enumerate(range(0, self.passages, self.segment_rows)):
            rows = range(start, min(start + self.segment_rows, self.passages))
            yield SegmentRecord(f"{number:06d}", len(rows)), rows


class Build:
    """One build: the folder beside the output, and what may already be in it."""

    def __init__(self, output: Path, plan: dict[str, Any]) -> None:
        """Where the index goes, and everything that shapes it."""
        self.output = output
        self.plan = plan
        self.work = output.parent / f".{output.name}.building"

    @property
    def plan_digest(self) -> str:
        """By which a finished build is known."""
        return hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()

    def is_finished(self) -> bool:
        """Whether nothing is left to do; true for all processes once the first has looked at what is there."""
        return not self.work.exists()

    def begin(self, *, overwrite: bool, resume: bool) -> bool:
        """Look at what is there; returns whether the passages have been read already."""
        plan, folder = self.work / "plan.json", self.work / "index"
        if resume and plan.is_file():
            self._check_plan(read_json(plan, _ANEW))
            if folder.is_dir():
                _refuse_taken(self.output, overwrite=overwrite)  # now, and not when all is encoded
            else:  # it has been renamed to the output: only this is left to remove
                remove_replaced(self.output)
                shutil.rmtree(self.work)
            return self.is_finished() or (self.work / LAYOUT_FILE).is_file()
        if resume and self._is_output():
            logger.info("%s is complete already.", self.output)
            return True
        _refuse_taken(self.output, overwrite=overwrite)
        if plan.is_file() and not overwrite:
            raise UsageError(
                f"An unfinished build of {self.output} is in {self.work}, and its work is not thrown away unasked. Go "
                "on with it by resume (--resume), or begin anew by overwrite (--overwrite)."
            )
        shutil.rmtree(self.work, ignore_errors=True)
        folder.mkdir(parents=True)
        write_text(plan, json.dumps(self.plan, indent=1, sort_keys=True))
        return False

    def _is_output(self) -> bool:
        file = self.output / MANIFEST_FILE
        if self.work.exists() or not file.is_file():
            return False
        manifest = Manifest.load(file)
        # What a writer has changed since then is not what was asked for.
        return manifest.plan == self.plan_digest and manifest.corpus_fingerprint == manifest.origin

    def _check_plan(self, found: Mapping[str, Any]) -> None:
        begun, asked = _NEWER | dict(found), _NEWER | self.plan
        for name, wanted in asked.items():
            if begun.get(name) != wanted:
                raise MismatchError(
                    f"The unfinished build in {self.work} was begun with {name} = {begun.get(name)!r}, but {wanted!r} "
                    "came. Go on with what it was begun with, or begin anew by overwrite (--overwrite)."
                )

    # -- passages ------------------------------------------------------------------------------------------------

    def read(
        self,
        source: str | Path | Corpus | datasets.Dataset,
        encoder: Encoder,
        chunker: Chunker | None,
        *,
        progress: bool,
    ) -> None:
        """The corpus becomes one file of passages, and the layout of the index is decided."""
        reading = self.work / "reading"
        try:
            corpus = self._open(source, reading, progress=progress)
            if chunker is not None:
                corpus = corpus.chunked(chunker, cache_dir=reading)
            write_passages(self.work / PASSAGES_FILE, corpus)
            layout = self._layout(corpus, encoder)
        except (DataError, UsageError):  # there is nothing yet that would be worth keeping
            shutil.rmtree(self.work, ignore_errors=True)
            raise
        del corpus
        shutil.rmtree(reading, ignore_errors=True)
        write_text(self.work / LAYOUT_FILE, json.dumps(asdict(layout)))

    def _open(self, source: str | Path | Corpus | datasets.Dataset, reading: Path, *, progress: bool) -> Corpus:
        if isinstance(source, Corpus):
            return source
        if isinstance(source, datasets.Dataset):
            return Corpus.from_dataset(source, cache_dir=reading)
        quarantine = self.work / "index" / QUARANTINE_FILE if self.plan["on_error"] == "skip" else None
        (self.work / "index" / QUARANTINE_FILE).unlink(missing_ok=True)  # half of one, if a process died here
        corpus = Corpus.from_file(
            source,
            cache_dir=reading,
            progress=progress,
            on_error=self.plan["on_error"],
            quarantine=quarantine,
            split=self.plan["split"],
            quoting=self.plan.get("quoting", _NEWER["quoting"]),
        )
        if corpus.quarantined:
            logger.warning("%d broken rows were left out; %s lists them.", corpus.quarantined, QUARANTINE_FILE)
        return corpus

    def _layout(self, corpus: Corpus, encoder: Encoder) -> Layout:
        factory, rows = self.plan["factory"], len(corpus)
        if self.plan["milvus"]:
            if factory == "auto":
                logger.info("AUTOINDEX: Milvus chooses an approximate index; FLAT would search exactly.")
            factory = f"Milvus({'AUTOINDEX' if factory == 'auto' else factory})"
        else:
            memory = index_memory(self.plan["max_memory"], encoder)
            if factory == "auto":
                factory, reason = choose_factory(len(corpus), encoder.dimension, memory=memory)
                logger.info("%s: %s.", factory, reason)
            rows = segment_rows(factory, len(corpus), encoder.dimension, memory)
            check_training(factory, len(corpus))
            if self.plan["bm25"] and self.plan["max_memory"] is not None:
                _check_words(corpus, memory)
        _check_space(self.work, factory, len(corpus), encoder.dimension)
        return Layout(
            passages=len(corpus),
            dimension=encoder.dimension,
            factory=factory,
            segment_rows=rows,
            fingerprint=corpus.fingerprint,
            source=corpus.source,
            collection=f"rag_{uuid4().hex}",
        )

    def layout(self) -> Layout:
        """What was decided."""
        return Layout(**read_json(self.work / LAYOUT_FILE, _ANEW))

    def corpus(self) -> Corpus:
        """The passages."""
        layout = self.layout()
        return open_passages([self.work / PASSAGES_FILE], source=layout.source, fingerprint=layout.fingerprint)

    # -- vectors -------------------------------------------------------------------------------------------------

    def shards(self) -> Shards:
        """The vectors."""
        layout = self.layout()
        return Shards(self.work / "vectors", layout.passages, layout.dimension)

    def encode(self, encoder: Encoder, team: Team, *, batch_size: int, progress: bool) -> None:
        """Encode the shards that are missing and are this process's."""
        corpus, shards = self.corpus(), self.shards()
        mine = [number for number in shards.missing() if number % team.size == team.rank]
        encode_shards(corpus, encoder, shards, mine, batch_size=batch_size, progress=progress and team.is_main)

    # -- the directory -------------------------------------------------------------------------------------------

    def finish(self, encoder: Encoder, *, overwrite: bool) -> None:
        """Put passages and vectors into segments, describe them, and rename the folder to the output."""
        layout, folder = self.layout(), self.work / "index"
        milvus = {"uri": uri, "collection": layout.collection} if (uri := self.plan["milvus"]) else {}
        allowed = self.plan.get("allow_untested", _NEWER["allow_untested"])
        storage = storage_in(folder, layout.factory, layout.dimension, milvus, allow_untested=allowed)
        truncation = truncation_of(self.shards(), encoder)
        remove_partial_files(folder)
        segments = []
        train(storage, self.shards(), layout.factory)
        for segment, rows in layout.segments():
            write_segment(folder, storage, segment.name, self.corpus(), self.shards(), rows)
            segments.append(segment)
        if self.plan["bm25"] and not (folder / BM25_FOLDER).is_dir():
            write_bm25(folder / BM25_FOLDER, self.corpus())
        files = {file.relative_to(folder).as_posix(): FileRecord.of(file) for file in files_below(folder)}
        manifest = Manifest(
            passages=layout.passages,
            dimension=layout.dimension,
            factory=layout.factory,
            corpus_fingerprint=layout.fingerprint,
            corpus_source=layout.source,
            encoder=EncoderRecord.of(encoder),
            segments=tuple(segments),
            files=files,
            next_segment=len(segments),
            segment_rows=layout.segment_rows if len(segments) > 1 else 0,
            bm25=BM25_FOLDER if self.plan["bm25"] else "",
            chunking=self.plan["chunking"],
            truncation=truncation,
            milvus=milvus,
            origin=layout.fingerprint,
            plan=self.plan_digest,
            allow_untested=allowed,
        )
        manifest.save(folder / MANIFEST_FILE)
        _refuse_taken(self.output, overwrite=overwrite)
        replaced = _milvus_of(self.output)
        move_into_place(folder, self.output)
        if replaced is not None:
            replaced.keep_only(set())
        shutil.rmtree(self.work, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------
# Steps that a change of a finished index shares
# ---------------------------------------------------------------------------------------------------------


def encode_shards(
    corpus: Corpus, encoder: Encoder, shards: Shards, numbers: list[int], *, batch_size: int, progress: bool
) -> None:
    """Encode these shards of a corpus and keep each as it is done."""
    with EncodingBar(sum(len(shards.rows(number)) for number in numbers), "passage", shown=progress) as bar:
        for number in numbers:
            bar.truncation = Truncation()
            passages = corpus.take(shards.rows(number))
            vectors_nd = encoder.encode_passages(passages, batch_size=batch_size, progress=bar)
            shards.note(number, asdict(bar.truncation))
            shards.write(number, vectors_nd)


def truncation_of(shards: Shards, encoder: Encoder) -> dict[str, int]:
    """What the encoder has not read of the passages of all shards, for the manifest; warns if that is something.

    Empty where it was not counted.
    """
    notes = shards.notes()
    if notes is None:
        return {}
    total = Truncation()
    for counts in notes:
        total.add(counts)
    if total.truncated:
        logger.warning(total.message(encoder))
    return asdict(total)


def train(storage: VectorStorage, shards: Shards, factory: str) -> None:
    """Learn the clusters and codes of kinds that have some, from a sample of all vectors."""
    if not isinstance(storage, FaissFiles) or storage.trained.is_file():
        return
    index = storage.untrained()
    if index.is_trained:
        return
    index.train(shards.sample(training_sample(factory, shards.count)))
    write_path(storage.trained, index.save)


def write_segment(folder: Path, storage: VectorStorage, name: str, corpus: Corpus, shards: Shards, rows: range) -> None:
    """Write the rows of a corpus and its vectors as a segment; what is there already stays."""
    file = segment_folder(folder, name) / PASSAGES_FILE
    storage.write(name, shards.blocks(rows.start, rows.stop))
    if not file.is_file():
        write_passages(file, (p for start in rows[::ROWS] for p in corpus.take(rows[start - rows.start :][:ROWS])))


def write_bm25(folder: Path, corpus: Corpus) -> None:
    """Write a BM25 index as a folder that appears whole."""
    write_folder(folder, BM25Index.build(corpus).save)


def files_below(folder: Path) -> list[Path]:
    """The files of an index directory other than its manifest, sorted."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST_FILE)


# ---------------------------------------------------------------------------------------------------------
# What is asked for, and whether it can be had
# ---------------------------------------------------------------------------------------------------------


def _plan(
    corpus: str | Path | Corpus | datasets.Dataset,
    encoder: Encoder,
    factory: str,
    chunker: Chunker | None,
    split: str | None,
    quoting: Quoting,
    bm25: bool,
    milvus: str | None,
    max_memory: str | int | None,
    allow_untested: bool,
    on_error: str,
    output: Path,
) -> dict[str, Any]:
    """Everything that shapes the bytes of an index, ready for JSON."""
    newer = {"quoting": quoting, "allow_untested": allow_untested}
    return {
        "corpus": _identity(corpus, output),
        "split": split,
        "encoder": encoder.fingerprint,
        "dtype": encoder.dtype,
        "factory": factory,
        "chunking": {} if chunker is None else chunker.settings,
        "bm25": bm25,
        "milvus": str(Path(milvus).resolve()) if milvus and "://" not in milvus else milvus,
        "max_memory": None if max_memory is None else parse_bytes(max_memory),
        "on_error": on_error,
        **{name: value for name, value in newer.items() if value != _NEWER[name]},
    }


def _identity(corpus: str | Path | Corpus | datasets.Dataset, output: Path) -> str:
    """What the same corpus has in common with itself after a crash, without reading its rows.

    Neither the index counts, which may be built inside the folder of its corpus, nor what is hidden, and never read.
    """
    if isinstance(corpus, Corpus):
        return corpus.fingerprint
    if isinstance(corpus, datasets.Dataset):
        return str(corpus._fingerprint)
    if "://" in str(corpus) or not Path(corpus).exists():  # an address, or a path that reading will refuse
        return str(corpus)
    path, digest = Path(corpus), hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        name = file.relative_to(path)
        hidden = any(part.startswith(".") for part in name.parts)
        if file.is_file() and not hidden and not file.resolve().is_relative_to(output):
            digest.update(f"{name}\0{FileRecord.of(file).sha256}\n".encode())
    return digest.hexdigest()


def _check_similarity(encoder: Encoder, factory: str) -> None:
    """An index that scales vectors to unit length would turn a dot product into a cosine."""
    if encoder.similarity != COSINE and "L2norm" in parse(factory).transforms:
        raise UsageError(
            f"An encoder whose similarity is {encoder.similarity!r} needs vectors of their own length, but the factory "
            f'{factory!r} normalises them. Leave L2norm out, or load the encoder with similarity="cosine".'
        )


def index_memory(max_memory: int | None, encoder: Encoder) -> int:
    """`memory_beside` the weights of an encoder that is loaded."""
    tensors = [t for t in encoder.model.state_dict().values() if t.device.type == "cpu"]
    narrow = bool(tensors) and encoder.dtype in ("mixed", "bfloat16")
    return memory_beside(max_memory, sum(t.numel() * t.element_size() for t in tensors), narrow=narrow)


def memory_beside(max_memory: int | None, encoder_bytes: int, *, narrow: bool = False) -> int:
    """Bytes that an index may take while it is built, beside the process and its encoder.

    Args:
        max_memory: The most that the process may use; None allows the index half of the machine's.
        encoder_bytes: Of the encoder's weights, as far as they are not on a GPU.
        narrow: Whether a CPU multiplies them in bfloat16.

    Raises:
        UsageError: They leave nothing.
    """
    if max_memory is None:
        return host_memory()[0] // 2
    others = PROCESS_BYTES + encoder_bytes + NARROW_KERNELS * narrow
    if max_memory <= others:
        raise UsageError(
            f"max_memory must leave room for Python, its libraries and this encoder, about {words(others)}, but it is "
            f"{words(max_memory)}. Allow more."
        )
    return max_memory - others


def segment_rows(factory: str, passages: int, dimension: int, memory: int) -> int:
    """Rows of a segment so that it can be built in so much memory: as few segments as can be, of equal size.

    Raises:
        UsageError: Not even the smallest segment fits.
    """
    if factory == "Flat":  # goes from shards to its file
        return passages
    rows = passages
    for parts in range(1, passages // ROWS + 2):
        rows = -(-passages // parts)
        rows = -(-rows // ROWS) * ROWS if parts > 1 else rows
        if build_bytes(factory, rows, dimension) <= memory:
            return rows
    raise UsageError(
        f"Building {factory!r} needs at least {words(build_bytes(factory, min(rows, ROWS), dimension))} of memory, but "
        f'{words(memory)} are left for it. Allow more (max_memory), or choose a smaller kind such as "Flat".'
    )


def check_training(factory: str, passages: int) -> None:
    """See that there are enough passages to train this kind of index on.

    Raises:
        UsageError: There are not.
    """
    if training_points(factory) > passages:
        raise UsageError(
            f"An index {factory!r} needs at least {training_points(factory)} vectors to train on, but {passages} came. "
            'Use a factory with fewer clusters, or "Flat", which needs no training.'
        )


def _check_words(corpus: Corpus, memory: int) -> None:
    """BM25 weighs all passages at once, so its index cannot be cut into segments."""
    sample = corpus.take(evenly_spaced(len(corpus), _SAMPLED).tolist())
    needed = BM25Index.build(sample).pairs / len(sample) * len(corpus) * BM25_PAIR
    if needed > memory:
        raise UsageError(
            f"A BM25 index of {len(corpus):,} passages like these takes about {words(needed)} of memory, but "
            f"{words(memory)} are left for it. Allow more (max_memory), or build without BM25."
        )


def _check_space(work: Path, factory: str, passages: int, dimension: int) -> None:
    """Say at once what would else be found out after hours."""
    texts = (work / PASSAGES_FILE).stat().st_size
    index = 0 if factory.startswith("Milvus") else bytes_per_vector(factory, dimension) * passages
    needed, free = texts + 4 * passages * dimension + index, shutil.disk_usage(work).free
    if needed > free:
        raise ResourceError(
            f"The build needs another {words(needed)} on the disk of {work}: {words(4 * passages * dimension)} for "
            f"vectors, {words(index)} for the index of them, {words(texts)} for passages; but {words(free)} are free. "
            "Make room, or choose another output."
        )


def _milvus_of(output: Path) -> VectorStorage | None:
    """Where an index that is about to be replaced keeps vectors outside its folder, if it does."""
    file = output / MANIFEST_FILE
    try:
        manifest = Manifest.load(file) if file.is_file() else None
    except MismatchError:  # of another format, or damaged
        return None
    return VectorStorage.of(output, manifest) if manifest is not None and manifest.milvus else None


def _refuse_taken(output: Path, *, overwrite: bool) -> None:
    if os.path.ismount(output):
        raise UsageError(
            f"The output must be a folder that can be renamed, but {output} is the root of a file system. Choose a "
            "folder inside it."
        )
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
