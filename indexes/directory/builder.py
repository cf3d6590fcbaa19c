"""Build an index directory from a corpus and an encoder; a build that is killed at any moment continues where it was.

    corpus -> passages.arrow -> shards of vectors -> segments -> index directory
              |________________ .<name>.building ______________|

Every intermediate file is written atomically, in a folder beside the output. What exists is not computed again: a
resumed build reads the same passages, encodes the missing shards, and ends with the same bytes. The folder is renamed
to the output at the end, so that an index appears complete or not at all.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias

import datasets
import torch

from indexes.atomic_files import (
    exclusive_writer_lock,
    move_into_place,
    read_json,
    remove_partial_files,
    remove_replaced,
    translate_os_errors,
    write_directory,
    write_json,
)
from indexes.corpora.chunking import Chunker
from indexes.corpora.corpus import Corpus
from indexes.corpora.passage_files import write_passages
from indexes.directory.manifest import (
    FAISS,
    MANIFEST_FILE,
    MILVUS,
    EncoderRecord,
    FileRecord,
    Manifest,
    SegmentRecord,
    store_fields,
)
from indexes.directory.passage_index import PassageIndex
from indexes.directory.segments import PASSAGES_FILE, open_passages, segment_folder
from indexes.directory.shard_encoding import check_workers, encode_shards
from indexes.directory.shards import ROWS, Shards, evenly_spaced
from indexes.directory.vector_storage import VectorStorage
from indexes.encoder import COSINE, Encoder, Truncation
from indexes.errors import DataError, MismatchError, ResourceError, UsageError
from indexes.host_memory import BM25_PAIR, NARROW_KERNELS, PROCESS_BYTES, format_bytes, host_memory, parse_bytes
from indexes.records.delimited import Quoting
from indexes.vectors.bm25_index import BM25Index
from indexes.vectors.vector_store import StoreConfig, VectorStore
from indexes.vectors.vector_stores import VECTOR_STORES

BM25_FOLDER = "bm25"
QUARANTINE_FILE = "quarantine.jsonl"
LAYOUT_FILE = "layout.json"

_START_OVER = "Start over by overwrite (--overwrite)."
# Passages whose words are counted to estimate those of all.
_SAMPLED = 1000
# Settings that a plan leaves out at these values, so that a build from before these options is resumed and recognised.
_LATER_SETTINGS: dict[str, Any] = {"quoting": "auto", "allow_untested": False, "store": FAISS, "store_options": {}}

logger = logging.getLogger(__name__)

Source: TypeAlias = str | Path | Corpus | datasets.Dataset


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Settings of a build; `build_index` documents them."""

    factory: str = "auto"
    store: str = FAISS
    store_options: Mapping[str, str] = field(default_factory=dict)
    batch_size: int = 256
    chunker: Chunker | None = None
    split: str | None = None
    quoting: Quoting = "auto"
    bm25: bool = False
    max_memory: str | int | None = None
    allow_untested: bool = False
    on_error: Literal["raise", "skip"] = "raise"
    overwrite: bool = False
    resume: bool = False
    distributed: bool = False
    workers: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        """Check what can be checked without the corpus and the encoder."""
        if self.batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, but got {self.batch_size}.")
        if self.workers > 1 and self.distributed:
            raise UsageError(
                f"Processes that a launcher started share the encoding already, but workers is {self.workers}. Leave "
                "workers out, or start one process."
            )

    @property
    def memory_limit(self) -> int | None:
        """`max_memory` in bytes."""
        return None if self.max_memory is None else parse_bytes(self.max_memory)

    def store_config(self, dimension: int, options: Mapping[str, str], factory: str | None = None) -> StoreConfig:
        """What the store is built from; `factory` is what was chosen for "auto"."""
        return StoreConfig(
            dimension=dimension,
            factory=self.factory if factory is None else factory,
            options=options,
            allow_untested=self.allow_untested,
        )


def build_index(
    corpus: Source,
    encoder: str | Path | Encoder,
    output_dir: str | Path,
    *,
    factory: str = "auto",
    store: str = FAISS,
    store_options: Mapping[str, str] | None = None,
    milvus: str | None = None,
    batch_size: int = 256,
    chunker: Chunker | None = None,
    split: str | None = None,
    quoting: Quoting = "auto",
    bm25: bool = False,
    max_memory: str | int | None = None,
    allow_untested: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    overwrite: bool = False,
    resume: bool = False,
    distributed: bool = False,
    workers: int = 1,
    trust_remote_code: bool = False,
    progress: bool = True,
) -> PassageIndex:
    """Embed a corpus and write an index directory.

    Finished work is kept beside the output, in ``.<name>.building``, until the index is complete and is renamed to the
    output; `resume` continues a killed build. An older index at the output stays untouched until then. The same input
    gives the same bytes (for HNSW, with one thread), interrupted or not.

    Args:
        corpus: Passages, or a file, folder or address that `Corpus.from_file` reads.
        encoder: The encoder, or the folder or Hub id of one.
        output_dir: The directory; it must not exist, be empty, or be an index and `overwrite` be set.
        factory: The kind of index, in the store's own notation: a FAISS factory string such as "IVF1024,Flat", or an
            index type of Milvus such as "HNSW". "auto" lets the store choose: FAISS by the number of passages and the
            memory, Milvus by itself (AUTOINDEX, which is approximate; "FLAT" is exact).
        store: Kind of vector store (`indexes.vectors.vector_stores`): "faiss", "milvus" or one of another package.
        store_options: Where the store keeps the vectors if not in the directory, such as {"uri": "http://host:19530"}.
        milvus: The address of a Milvus server (http://host:19530), or a file of Milvus Lite; short for
            `store="milvus", store_options={"uri": milvus}`.
        batch_size: The most passages that the encoder reads at once; fewer when they are long.
        chunker: Cuts the passages first; passages that are added later are cut in the same way.
        split: Of a dataset that has several, such as "train".
        quoting: Of ``.csv`` and ``.tsv``, as in `Corpus.from_file`.
        bm25: Also build a BM25 index, for hybrid search.
        max_memory: The most memory the process may use, in bytes or as "8GB", and each of several. A kind of index that
            is built in memory is cut into segments that fit. None allows half of the machine's.
        allow_untested: Also build kinds of FAISS index whose results were not measured (`faiss_kinds`).
        on_error: "skip" leaves broken records of the corpus out and lists them in ``quarantine.jsonl`` in the
            directory.
        overwrite: Replace an index at the output, and discard an unfinished one.
        resume: Continue an unfinished build of the same settings; start one if there is none, and do nothing if the
            index is complete.
        distributed: Share the encoding among the processes of `accelerate launch`, all of which call this.
        workers: Processes that share the encoding on the cores of this machine: this one, and further ones that it
            starts. Each has its share of the threads that torch has here, and its own copy of the encoder. It pays from
            some minutes of encoding on, with several shards of 4,096 passages.
        trust_remote_code: Of an encoder that is named: run Python code that comes with it.
        progress: Show progress bars.

    Raises:
        UsageError: The output is taken, the factory is untested or does not work for this corpus, or the memory is
            too little.
        DataError: The corpus is broken.
        ResourceError: The encoder cannot be loaded, or disk or memory is full; `resume` continues when there is more.
    """
    if milvus is not None:
        store, store_options = MILVUS, {"uri": milvus}
    config = BuildConfig(
        factory=factory,
        store=store,
        store_options=store_options or {},
        batch_size=batch_size,
        chunker=chunker,
        split=split,
        quoting=quoting,
        bm25=bm25,
        max_memory=max_memory,
        allow_untested=allow_untested,
        on_error=on_error,
        overwrite=overwrite,
        resume=resume,
        distributed=distributed,
        workers=workers,
        progress=progress,
    )
    output, context = Path(output_dir).resolve(), DistributedContext.of(distributed)
    if not isinstance(encoder, Encoder):
        encoder = Encoder.from_pretrained(encoder, device=context.device, trust_remote_code=trust_remote_code)
    build = Build(output, corpus, encoder, config)
    kept = f"Finished work is kept beside {output}: run the same again with resume (--resume) to continue."
    with exclusive_writer_lock(output) if context.is_main else nullcontext(), translate_os_errors(kept):
        build.run(context)
    # What was built in little memory is not read into a lot of it afterwards.
    return PassageIndex.open(output, mmap=None if max_memory is None else True)


@dataclass(frozen=True)
class DistributedContext:
    """The processes that share the encoding, and the number of this one."""

    rank: int = 0
    size: int = 1
    state: Any = None
    """accelerate's `PartialState`; None for a single process."""

    @classmethod
    def of(cls, distributed: bool) -> "DistributedContext":
        """All processes of `accelerate launch`, or this one."""
        if not distributed:
            return cls()
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        # The others wait while the first process reads the corpus and builds the index, for as long as that takes.
        state = PartialState(cpu=on_cpu, timeout=timedelta(weeks=4))
        return cls(state.process_index, state.num_processes, state)

    @property
    def device(self) -> str | None:
        """Where this process encodes if no device is named."""
        return None if self.state is None else str(self.state.device)

    @property
    def is_main(self) -> bool:
        """Whether this process does the work that is not shared."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have arrived here."""
        if self.state is not None:
            self.state.wait_for_everyone()


@dataclass(frozen=True)
class Layout:
    """What is decided once the corpus has been read: the kind of index and its segments."""

    passages: int
    dimension: int
    factory: str
    segment_rows: int
    """Rows of every segment but the last."""
    fingerprint: str
    source: str
    options: dict[str, str]
    """Of the vector store."""

    def segments(self) -> Iterator[tuple[SegmentRecord, range]]:
        """Each segment and the rows of the corpus that it holds."""
        for number, start in enumerate(range(0, self.passages, self.segment_rows)):
            rows = range(start, min(start + self.segment_rows, self.passages))
            yield SegmentRecord(f"{number:06d}", len(rows)), rows


class Build:
    """One build: the folder beside the output, and the files that may already be in it."""

    def __init__(self, output: Path, source: Source, encoder: Encoder, config: BuildConfig) -> None:
        """Check the settings and the kind of index, before any work.

        Raises:
            UsageError: There is no such store or kind of index, or it cannot be used with this encoder.
        """
        self.output = output
        self.source = source
        self.encoder = encoder
        self.config = config
        self.work = output.parent / f".{output.name}.building"
        self.store: type[VectorStore] = VECTOR_STORES.get(config.store)
        store_config = config.store_config(encoder.dimension, config.store_options)
        check_workers(config.workers, encoder)
        self.store.check(store_config, keeps_lengths=encoder.similarity != COSINE)
        self.plan = _plan(source, encoder, output, config)

    def run(self, context: DistributedContext) -> None:
        """Do what is not done yet: read the corpus, encode it, and put the directory together."""
        if context.is_main and not self.begin():
            self.read()
        context.wait()
        if not self.is_finished():
            self.encode(context)
            context.wait()
            if context.is_main:
                self.finish()
            context.wait()

    @property
    def plan_digest(self) -> str:
        """The digest of the settings, by which a finished build is recognised."""
        return hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()

    def is_finished(self) -> bool:
        """Whether nothing is left to do; the same in all processes after `begin` of the first."""
        return not self.work.exists()

    def begin(self) -> bool:
        """Continue an unfinished build or start one; returns whether the passages have been read already."""
        plan, folder, overwrite = self.work / "plan.json", self.work / "index", self.config.overwrite
        if self.config.resume and plan.is_file():
            self._check_plan(read_json(plan, _START_OVER))
            if folder.is_dir():
                _refuse_taken(self.output, overwrite=overwrite)  # now, and not after hours of encoding
            else:  # it has been renamed to the output, and only this is left to remove
                remove_replaced(self.output)
                shutil.rmtree(self.work)
            return self.is_finished() or (self.work / LAYOUT_FILE).is_file()
        if self.config.resume and self._is_output():
            logger.info("%s is complete already.", self.output)
            return True
        _refuse_taken(self.output, overwrite=overwrite)
        if plan.is_file() and not overwrite:
            raise UsageError(
                f"An unfinished build of {self.output} is in {self.work}, and its work is only discarded on request. "
                "Continue it by resume (--resume), or start over by overwrite (--overwrite)."
            )
        shutil.rmtree(self.work, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(plan, self.plan)
        return False

    def _is_output(self) -> bool:
        file = self.output / MANIFEST_FILE
        if self.work.exists() or not file.is_file():
            return False
        manifest = Manifest.load(file)
        # An index that a writer has changed since then is another one.
        return manifest.plan == self.plan_digest and manifest.corpus_fingerprint == manifest.origin

    def _check_plan(self, found: Mapping[str, Any]) -> None:
        begun, asked = _LATER_SETTINGS | dict(found), _LATER_SETTINGS | self.plan
        for name, wanted in asked.items():
            if begun.get(name) != wanted:
                raise MismatchError(
                    f"The unfinished build in {self.work} was started with {name} = {begun.get(name)!r}, but got "
                    f"{wanted!r}. Continue with the value it was started with, or start over by overwrite "
                    "(--overwrite)."
                )

    # -- passages ------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Write the corpus to one file of passages, and decide the layout of the index."""
        reading = self.work / "reading"
        try:
            corpus = self._open(reading)
            if self.config.chunker is not None:
                corpus = corpus.chunked(self.config.chunker, cache_dir=reading)
            write_passages(self.work / PASSAGES_FILE, corpus)
            layout = self._layout(corpus)
        except (DataError, UsageError):  # no work is worth keeping yet
            shutil.rmtree(self.work, ignore_errors=True)
            raise
        del corpus
        shutil.rmtree(reading, ignore_errors=True)
        write_json(self.work / LAYOUT_FILE, asdict(layout))

    def _open(self, reading: Path) -> Corpus:
        if isinstance(self.source, Corpus):
            return self.source
        if isinstance(self.source, datasets.Dataset):
            return Corpus.from_dataset(self.source, cache_dir=reading)
        quarantine = self.work / "index" / QUARANTINE_FILE
        quarantine.unlink(missing_ok=True)  # an incomplete one, if a process was killed here
        corpus = Corpus.from_file(
            self.source,
            cache_dir=reading,
            progress=self.config.progress,
            on_error=self.config.on_error,
            quarantine=quarantine if self.config.on_error == "skip" else None,
            split=self.config.split,
            quoting=self.config.quoting,
        )
        if corpus.quarantined:
            logger.warning("%d broken records were left out; %s lists them.", corpus.quarantined, QUARANTINE_FILE)
        return corpus

    def _layout(self, corpus: Corpus) -> Layout:
        passages, dimension, memory = len(corpus), self.encoder.dimension, None
        if self.store.uses_host_memory:
            memory = index_memory(self.config.memory_limit, self.encoder)
        factory = self.config.factory
        if factory == "auto":
            factory, reason = self.store.choose_factory(passages, dimension, memory=memory)
            logger.info("%s: %s.", factory, reason)
        options = self.store.new_options(self.config.store_options)
        config = self.config.store_config(dimension, options, self.store.factory_name(factory))
        rows = segment_rows(self.store, config, passages, memory)
        check_training(self.store, config, passages)
        if self.config.bm25 and self.config.max_memory is not None and memory is not None:
            _check_words(corpus, memory)
        _check_space(self.work, self.store, config, passages)
        return Layout(
            passages=passages,
            dimension=dimension,
            factory=config.factory,
            segment_rows=rows,
            fingerprint=corpus.fingerprint,
            source=corpus.source,
            options=options,
        )

    def layout(self) -> Layout:
        """The layout that was decided when the corpus was read."""
        return Layout(**read_json(self.work / LAYOUT_FILE, _START_OVER))

    def corpus(self) -> Corpus:
        """The passages."""
        layout = self.layout()
        return open_passages([self.work / PASSAGES_FILE], source=layout.source, fingerprint=layout.fingerprint)

    # -- vectors -------------------------------------------------------------------------------------------------

    def shards(self) -> Shards:
        """The vectors."""
        layout = self.layout()
        return Shards(self.work / "vectors", layout.passages, layout.dimension)

    def encode(self, context: DistributedContext) -> None:
        """Encode the missing shards that are this process's share."""
        corpus, shards = self.corpus(), self.shards()
        mine = [number for number in shards.missing() if number % context.size == context.rank]
        show = self.config.progress and context.is_main
        encode_shards(
            corpus,
            self.encoder,
            shards,
            mine,
            batch_size=self.config.batch_size,
            progress=show,
            workers=self.config.workers,
            file=self.work / PASSAGES_FILE,
        )

    # -- the directory -------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Put passages and vectors into segments, write the manifest, and rename the folder to the output."""
        layout, folder = self.layout(), self.work / "index"
        config = self.config.store_config(layout.dimension, layout.options, layout.factory)
        storage = VectorStorage(folder, self.store, config)
        truncation = truncation_of(self.shards(), self.encoder)
        remove_partial_files(folder)
        segments = []
        storage.train(self.shards())
        for segment, rows in layout.segments():
            write_segment(folder, storage, segment.name, self.corpus(), self.shards(), rows)
            segments.append(segment)
        if self.config.bm25 and not (folder / BM25_FOLDER).is_dir():
            write_bm25(folder / BM25_FOLDER, self.corpus())
        files = {file.relative_to(folder).as_posix(): FileRecord.of(file) for file in files_below(folder)}
        manifest = Manifest(
            passages=layout.passages,
            dimension=layout.dimension,
            factory=layout.factory,
            corpus_fingerprint=layout.fingerprint,
            corpus_source=layout.source,
            encoder=EncoderRecord.of(self.encoder),
            segments=tuple(segments),
            files=files,
            next_segment=len(segments),
            segment_rows=layout.segment_rows if len(segments) > 1 else 0,
            bm25=BM25_FOLDER if self.config.bm25 else "",
            chunking=self.plan["chunking"],
            truncation=truncation,
            origin=layout.fingerprint,
            plan=self.plan_digest,
            allow_untested=self.config.allow_untested,
            **store_fields(self.config.store, layout.options),
        )
        manifest.save(folder / MANIFEST_FILE)
        _refuse_taken(self.output, overwrite=self.config.overwrite)
        replaced = _storage_of(self.output)
        move_into_place(folder, self.output)
        if replaced is not None:
            replaced.keep_only(set())
        shutil.rmtree(self.work, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------
# Steps that a change of a finished index shares
# ---------------------------------------------------------------------------------------------------------


def truncation_of(shards: Shards, encoder: Encoder) -> dict[str, int]:
    """How much of the passages of all shards the encoder truncated, for the manifest; warns if it is not nothing.

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


def write_segment(folder: Path, storage: VectorStorage, name: str, corpus: Corpus, shards: Shards, rows: range) -> None:
    """Write the rows of a corpus and their vectors as a segment; files that exist stay."""
    file = segment_folder(folder, name) / PASSAGES_FILE
    storage.write(name, shards.blocks(rows.start, rows.stop))
    if not file.is_file():
        write_passages(file, (p for start in rows[::ROWS] for p in corpus.take(rows[start - rows.start :][:ROWS])))


def write_bm25(folder: Path, corpus: Corpus) -> None:
    """Write a BM25 index as a folder, atomically."""
    write_directory(folder, BM25Index.build(corpus).save)


def files_below(folder: Path) -> list[Path]:
    """The files of an index directory other than its manifest, sorted."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST_FILE)


# ---------------------------------------------------------------------------------------------------------
# Checks of the settings
# ---------------------------------------------------------------------------------------------------------


def _plan(source: Source, encoder: Encoder, output: Path, config: BuildConfig) -> dict[str, Any]:
    """All settings that shape the bytes of an index, ready for JSON."""
    uri = config.store_options.get("uri") if config.store == MILVUS else None
    later = {
        "quoting": config.quoting,
        "allow_untested": config.allow_untested,
        "store": FAISS if uri else config.store,  # Milvus is recorded by its address
        "store_options": {} if uri else dict(config.store_options),
    }
    return {
        "corpus": _identity(source, output),
        "split": config.split,
        "encoder": encoder.fingerprint,
        "dtype": encoder.dtype,
        "factory": config.factory,
        "chunking": {} if config.chunker is None else config.chunker.settings,
        "bm25": config.bm25,
        "milvus": str(Path(uri).resolve()) if uri and "://" not in uri else uri,
        "max_memory": config.memory_limit,
        "on_error": config.on_error,
        **{name: value for name, value in later.items() if value != _LATER_SETTINGS[name]},
    }


def _identity(corpus: Source, output: Path) -> str:
    """A digest by which the same corpus is recognised after a crash, without parsing it.

    It leaves out the index, which may be built inside the folder of its corpus, and hidden files, which are not read.
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


def index_memory(max_memory: int | None, encoder: Encoder) -> int:
    """`memory_beside` the weights of an encoder that is loaded."""
    tensors = [t for t in encoder.model.state_dict().values() if t.device.type == "cpu"]
    narrow = bool(tensors) and encoder.dtype in ("mixed", "bfloat16")
    return memory_beside(max_memory, sum(t.numel() * t.element_size() for t in tensors), narrow=narrow)


def memory_beside(max_memory: int | None, encoder_bytes: int, *, narrow: bool = False) -> int:
    """Bytes that an index may take while it is built, besides the process and its encoder.

    Args:
        max_memory: The most that the process may use; None allows the index half of the machine's.
        encoder_bytes: Of the encoder's weights, unless they are on a GPU.
        narrow: Whether a CPU multiplies them in bfloat16.

    Raises:
        UsageError: They leave nothing.
    """
    if max_memory is None:
        return host_memory()[0] // 2
    others = PROCESS_BYTES + encoder_bytes + NARROW_KERNELS * narrow
    if max_memory <= others:
        raise UsageError(
            f"max_memory must leave room for Python, its libraries and this encoder, about {format_bytes(others)}, "
            f"but it is {format_bytes(max_memory)}. Allow more."
        )
    return max_memory - others


def segment_rows(store: type[VectorStore], config: StoreConfig, passages: int, memory: int | None) -> int:
    """Rows of a segment such that building it takes at most `memory`: as few segments as possible, of equal size.

    Raises:
        UsageError: Not even the smallest segment fits.
    """
    rows = passages
    for parts in range(1, passages // ROWS + 2):
        rows = -(-passages // parts)
        rows = -(-rows // ROWS) * ROWS if parts > 1 else rows
        if memory is None or store.build_bytes(config, rows) <= memory:
            return rows
    assert memory is not None
    raise UsageError(
        f"Building {config.factory!r} needs at least {format_bytes(store.build_bytes(config, min(rows, ROWS)))} of "
        f"memory, but {format_bytes(memory)} are left for it. Allow more (max_memory), or choose a smaller kind such "
        'as "Flat".'
    )


def check_training(store: type[VectorStore], config: StoreConfig, passages: int) -> None:
    """Check that there are enough passages to train this kind of index on.

    Raises:
        UsageError: There are not.
    """
    if (points := store.min_training_vectors(config)) > passages:
        raise UsageError(
            f"An index {config.factory!r} needs at least {points} vectors to train on, but got {passages}. "
            'Use a factory with fewer clusters, or "Flat", which needs no training.'
        )


def _check_words(corpus: Corpus, memory: int) -> None:
    """Refuse a BM25 index that does not fit: it weighs all passages at once, so it cannot be cut into segments."""
    sample = corpus.take(evenly_spaced(len(corpus), _SAMPLED).tolist())
    needed = BM25Index.build(sample).pairs / len(sample) * len(corpus) * BM25_PAIR
    if needed > memory:
        raise UsageError(
            f"A BM25 index of {len(corpus):,} passages like these takes about {format_bytes(needed)} of memory, but "
            f"{format_bytes(memory)} are left for it. Allow more (max_memory), or build without BM25."
        )


def _check_space(work: Path, store: type[VectorStore], config: StoreConfig, passages: int) -> None:
    """Refuse a disk that is too full, before hours of encoding."""
    texts = (work / PASSAGES_FILE).stat().st_size
    shards, index = 4 * passages * config.dimension, store.disk_bytes(config, passages)
    needed, free = texts + shards + index, shutil.disk_usage(work).free
    if needed > free:
        raise ResourceError(
            f"The build needs another {format_bytes(needed)} on the disk of {work}: {format_bytes(shards)} for "
            f"vectors, {format_bytes(index)} for the index of them, {format_bytes(texts)} for passages; but "
            f"{format_bytes(free)} are free. Make room, or choose another output."
        )


def _storage_of(output: Path) -> VectorStorage | None:
    """Where an index that is about to be replaced keeps its vectors; None if there is none, or it cannot be read."""
    file = output / MANIFEST_FILE
    try:
        return VectorStorage.of(output, Manifest.load(file)) if file.is_file() else None
    except (MismatchError, UsageError):  # of another format, damaged, or in a store that is not installed
        return None


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
