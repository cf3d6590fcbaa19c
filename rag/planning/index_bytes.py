"""Memory and disk space of an index build, by formula from the builder's layout and the sizes of passages.

Axes: N passages of the index, d dimensions, L tokens of a passage.
"""

from dataclasses import dataclass

from indexes.directory.shards import ROWS
from indexes.errors import UsageError
from indexes.host_memory import BM25_PAIR, NARROW_KERNELS
from indexes.vectors.faiss.faiss_factory import (
    build_bytes,
    bytes_per_vector,
    choose_factory,
    fixed_bytes,
    parse,
    training_points,
    training_sample,
)
from rag.planning.cost_plan import PlannedDisk
from rag.planning.index_job import FLOAT_BYTES, WEIGHT_BYTES, IndexJob, PassageMeasurements, PlannedLayout

TOKEN_BYTES = 205
"""Of each token, padding included, of the texts that are tokenised at once: its ids, masks and what the tokenizer
records for it; malloc keeps it (all-MiniLM-L6-v2, 4,096 texts of 256 tokens: 215 MB)."""
ACTIVATION_COPIES = 6
"""Times a batch's activations that malloc keeps after batches of many shapes on a CPU (all-MiniLM-L6-v2)."""
READER_BYTES = 24
"""What reading keeps in memory for each passage."""


@dataclass(frozen=True)
class PeakMemory:
    """Memory at the worst moment of a phase, all processes together, in bytes."""

    allocated: int
    mapped: int
    """Pages of mapped files: resident, but the system can drop them when memory is short."""

    @property
    def resident(self) -> int:
        """Both."""
        return self.allocated + self.mapped


def plan_layout(job: IndexJob, passages: int) -> PlannedLayout:
    """Kind of index and segments, by the builder's own functions; its refusal becomes part of the result.

    Args:
        job: The build.
        passages: N.

    Raises:
        UsageError: FAISS cannot make such an index at all.
    """
    from indexes.directory.builder import check_training, memory_beside, segment_rows
    from indexes.vectors.faiss.faiss_index import FaissIndex
    from indexes.vectors.vector_store import StoreConfig

    if job.milvus:
        name = "AUTOINDEX" if job.factory == "auto" else job.factory
        return PlannedLayout(
            factory=f"Milvus({name})", reason="Milvus decides", segment_rows=passages, segments=1, memory=None
        )
    d, factory, reason, memory = job.shape.dimension, job.factory, "as given", None
    if factory != "auto":
        FaissIndex.empty(d, factory, allow_untested=job.allow_untested)
    try:
        memory = memory_beside(job.max_memory, job.weight_bytes, narrow=job.is_narrow)
        if factory == "auto":
            factory, reason = choose_factory(passages, d, memory=memory)
        config = StoreConfig(dimension=d, factory=factory, allow_untested=job.allow_untested)
        rows = segment_rows(FaissIndex, config, passages, memory)
        check_training(FaissIndex, config, passages)
    except UsageError as error:
        return PlannedLayout(
            factory=factory, reason=reason, segment_rows=0, segments=0, memory=memory, refused=str(error)
        )
    return PlannedLayout(
        factory=factory, reason=reason, segment_rows=rows, segments=-(-passages // rows), memory=memory
    )


# -- memory ----------------------------------------------------------------------------------------------------------


def build_peaks(
    job: IndexJob, layout: PlannedLayout, measured: PassageMeasurements, process: int, *, free: int
) -> dict[str, PeakMemory]:
    """Memory of each phase by its name.

    Args:
        job: The build.
        layout: What the builder would decide.
        measured: Sizes of passages.
        process: Bytes of Python and the libraries.
        free: Free bytes of memory: vectors of more than half of them stay on the disk when the index is opened.
    """
    n, d = measured.passages, job.shape.dimension
    # All processes exist from the first to the last moment, and wait while one of them reads or builds.
    idle = job.processes * (process + job.weight_bytes)
    passages, block = int(n * measured.arrow_bytes), 2 * ROWS * d * FLOAT_BYTES
    found = {"read": PeakMemory(idle + n * READER_BYTES, int(n * measured.source_bytes))}
    idle += job.processes * _kept_bytes(job, measured)
    found["encode"] = PeakMemory(idle + job.processes * (_encoding_bytes(job, measured) + block), passages)
    if not layout.segment_rows:
        return found
    if job.milvus:
        return found | {"segments": PeakMemory(idle + block, passages)} | _bm25_peak(measured, idle, passages)
    if sample := training_sample(layout.factory, n):
        copies = 2 + len(parse(layout.factory).transforms)
        training = fixed_bytes(layout.factory, d) + copies * sample * d * FLOAT_BYTES
        found["train"] = PeakMemory(idle + training, 0)
    segment = 0 if layout.factory == "Flat" else build_bytes(layout.factory, layout.segment_rows, d)
    found["segments"] = PeakMemory(idle + block + segment, int(layout.segment_rows * measured.arrow_bytes))
    return found | _bm25_peak(measured, idle, passages) | {"open": _open_peak(layout, n, d, idle, free)}


def _encoding_bytes(job: IndexJob, measured: PassageMeasurements) -> int:
    """Of one process besides the weights and what its tokenizer keeps: on a CPU the activations of a batch."""
    from indexes.encoder import batch_tokens

    if not job.shape.layers or not job.device.startswith("cpu"):
        return 0
    sequences = min(job.batch_size, max(1, batch_tokens("cpu") // measured.longest))
    copies = job.shape.parameters * (WEIGHT_BYTES[job.dtype] - min(FLOAT_BYTES, WEIGHT_BYTES[job.dtype]))
    return copies + ACTIVATION_COPIES * job.shape.bytes(measured.longest, sequences)


def _kept_bytes(job: IndexJob, measured: PassageMeasurements) -> int:
    """What each process keeps from encoding on, until it ends."""
    from indexes.encoder import window_texts

    if not job.shape.layers:
        return 0
    texts = min(window_texts(measured.longest), measured.passages, ROWS)
    kernels = NARROW_KERNELS if job.is_narrow else 0
    return TOKEN_BYTES * measured.longest * texts + kernels


def _bm25_peak(measured: PassageMeasurements, idle: int, passages: int) -> dict[str, PeakMemory]:
    if measured.words is None:
        return {}
    return {"bm25": PeakMemory(idle + int(BM25_PAIR * measured.words.pairs * measured.passages), passages)}


def _open_peak(layout: PlannedLayout, passages: int, dimension: int, idle: int, free: int) -> PeakMemory:
    vectors = vector_bytes(layout, passages, dimension)
    on_disk = vectors > free // 2
    return PeakMemory(idle + (0 if on_disk else vectors), vectors if on_disk else 0)


# -- disk ------------------------------------------------------------------------------------------------------------


def disk_space(
    job: IndexJob, layout: PlannedLayout, measured: PassageMeasurements, free: int | None = None
) -> PlannedDisk:
    """Files of passages, vectors and BM25, and the temporary shards of vectors.

    Args:
        job: The build.
        layout: What the builder would decide.
        measured: Sizes of passages.
        free: Free bytes at the output.
    """
    n, d = measured.passages, job.shape.dimension
    passages, reading = int(n * measured.arrow_bytes), int(n * measured.source_bytes)
    vectors = 0 if job.milvus or not layout.segment_rows else vector_bytes(layout, n, d)
    parts = {"passages": passages, "vectors": vectors, "bm25": bm25_bytes(measured)}
    shards = n * d * FLOAT_BYTES
    # At first two copies of the passages; at last the shards, the passages once more, and the finished index.
    peak = max(reading + passages, passages + shards + sum(parts.values()))
    return PlannedDisk(parts=parts, temporary=shards, peak=peak, free=free)


def vector_bytes(layout: PlannedLayout, passages: int, dimension: int) -> int:
    """The vector files of all segments, and of what was trained once for them."""
    fixed = fixed_bytes(layout.factory, dimension)
    copies = layout.segments + bool(training_points(layout.factory))
    return round(bytes_per_vector(layout.factory, dimension) * passages) + copies * fixed


def bm25_bytes(measured: PassageMeasurements) -> int:
    """The BM25 index: 8 bytes for each pair of a passage and a word, and a vocabulary that grows by Heaps' law."""
    if measured.words is None:
        return 0
    n, w = measured.passages, measured.words
    grown = w.vocabulary * (n / measured.sampled) ** w.growth
    return int(8 * w.pairs * n + w.word_bytes * grown)
