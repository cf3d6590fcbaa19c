"""Seconds of an index build, from measurements on a sample of passages and on random vectors.

Axes: N passages of the index, d dimensions.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexes.directory.shards import ROWS
from indexes.vectors.faiss.faiss_factory import (
    code_training_points,
    parse,
    stored_dimension,
    training_sample,
)
from indexes.vectors.faiss.faiss_kinds import CLUSTERING_ROUNDS, MAX_POINTS_PER_LIST
from rag.planning.index_job import IndexJob, IndexSpeed, PassageMeasurements, PlannedLayout
from rag.planning.passage_measurements import fastest_seconds

PROBE_VECTORS = 4096
"""Random vectors that are put into an index of the kind, to measure what one costs: a block of a build."""


@dataclass(frozen=True)
class PhaseTime:
    """Predicted seconds of one phase."""

    seconds: float
    basis: str
    """What they rest on."""


def phase_times(
    job: IndexJob, layout: PlannedLayout, measured: PassageMeasurements, speed: IndexSpeed, encoding_speedup: float
) -> dict[str, PhaseTime]:
    """Seconds of each phase by its name.

    Args:
        job: The build.
        layout: What the builder would decide.
        measured: What was measured on the sample.
        speed: What was measured on random vectors.
        encoding_speedup: How many times as fast as one process all of them encode.
    """
    n = measured.passages
    sample = f"{measured.sampled:,} sampled passages"
    reading = n * (measured.read_seconds + measured.write_seconds)
    encoding = n * (measured.tokenise_seconds + measured.layers_seconds) / encoding_speedup
    layers = f", {job.shape.layers} layers of random weights" if job.shape.layers else ""
    phases = {
        "read": PhaseTime(reading, f"reading {sample}"),
        "encode": PhaseTime(encoding, f"tokenising {sample}{layers}"),
    }
    if layout.segment_rows:
        phases |= _vector_times(job, layout, measured, speed, sample)
    if measured.words is not None:
        phases["bm25"] = PhaseTime(n * measured.words.seconds, f"indexing {sample}")
    return phases


def _vector_times(
    job: IndexJob, layout: PlannedLayout, measured: PassageMeasurements, speed: IndexSpeed, sample: str
) -> dict[str, PhaseTime]:
    n, writing = measured.passages, f"writing {sample}"
    if job.milvus or layout.factory == "Flat":
        return {"segments": PhaseTime(n * measured.segment_seconds, writing)}
    train, add = index_seconds(layout.factory, n, layout.segment_rows, job.shape.dimension, speed)
    vectors = f"{PROBE_VECTORS:,} random vectors in an index of the kind"
    segments = PhaseTime(add + n * measured.segment_seconds, f"{writing}; {vectors}")
    return {"train": PhaseTime(train, vectors), "segments": segments} if train else {"segments": segments}


def index_seconds(
    factory: str, passages: int, segment_rows: int, dimension: int, speed: IndexSpeed
) -> tuple[float, float]:
    """Seconds of training once, and of adding all vectors to segments of `segment_rows` vectors."""
    parts, inner = parse(factory), stored_dimension(factory, dimension)
    sample = training_sample(factory, passages)
    train = speed.train_seconds * code_training_points(factory, sample)
    add = speed.add_seconds * passages * (graph_growth(segment_rows) if parts.neighbours else 1)
    if parts.lists:
        compared = 2 * parts.lists * inner / speed.coarse_rate
        train += CLUSTERING_ROUNDS * compared * min(sample, MAX_POINTS_PER_LIST * parts.lists)
        add += compared * passages
    return train if sample else 0.0, add


def graph_growth(vectors: int) -> float:
    """Cost of adding a vector to a graph of this many, over that in a graph of `PROBE_VECTORS`.

    Each doubling adds half of the first cost. Measured: 2.4 times at 8 times as many vectors
    (`python -m benchmarks.index_plan_accuracy --graph 32768`).
    """
    doublings = math.log2(vectors / PROBE_VECTORS)
    return 1 + doublings / 2 if doublings > 0 else float(2 ** (doublings / 2))


def encoding_speedup(job: IndexJob, passages: int, threads: int, cores: int) -> float:
    """How many times as fast as one process several encode: whole shards and the machine's cores or GPUs are shared.

    Args:
        job: Number of processes and device.
        passages: N.
        threads: Of this process, whose rates were measured.
        cores: Of the machine; GPUs where encoding takes place on them.
    """
    shards = -(-passages // ROWS)
    useful = min(job.processes, cores if job.device.startswith("cuda") else max(1.0, cores / threads))
    return min(useful, shards / math.ceil(shards / job.processes))


# -- random vectors --------------------------------------------------------------------------------------------------


def measure_index_speed(factory: str, dimension: int) -> IndexSpeed:
    """Put random vectors into an index of a kind, with a single cluster where it has clusters.

    Args:
        factory: FAISS's description of the index; "Flat" is written without FAISS and costs nothing here.
        dimension: d.
    """
    if factory == "Flat":
        return IndexSpeed()
    parts, inner = parse(factory), stored_dimension(factory, dimension)
    graph = f"HNSW{parts.neighbours}," if parts.neighbours else ""
    train, add = _time_index(f"IVF1,{parts.code}" if parts.lists else f"{graph}{parts.code}", inner)
    if parts.refine:
        more = _time_index(parts.refine, dimension)
        train, add = train + more[0], add + more[1]
    rate = _coarse_rate(inner, min(parts.lists, PROBE_VECTORS)) if parts.lists else math.inf
    return IndexSpeed(train_seconds=train, add_seconds=add, coarse_rate=rate)


def _time_index(factory: str, dimension: int) -> tuple[float, float]:
    """Seconds of training on, and of adding, one vector."""
    from indexes.vectors.faiss.faiss_index import FaissIndex
    from indexes.vectors.faiss.faiss_training import new_faiss_index

    vectors_nd = _clustered_vectors(PROBE_VECTORS, dimension)
    # The whole factory was checked before; one part of it may be a kind that is not allowed by itself.
    index = FaissIndex(new_faiss_index(dimension, factory), factory)
    started = time.process_time()
    index.train(vectors_nd)
    trained = time.process_time()
    index.add(vectors_nd)
    return (trained - started) / PROBE_VECTORS, (time.process_time() - trained) / PROBE_VECTORS


def _coarse_rate(dimension: int, lists: int) -> float:
    from indexes.vectors.faiss.faiss_index import FaissIndex

    centroids = FaissIndex.build(_clustered_vectors(lists, dimension))
    vectors_nd = _clustered_vectors(PROBE_VECTORS, dimension, seed=1)
    seconds = fastest_seconds(
        lambda: centroids.search(vectors_nd, 1, prefilter=False, batch_size=PROBE_VECTORS), repeats=5
    )
    return 2 * PROBE_VECTORS * lists * dimension / seconds


def _clustered_vectors(count: int, dimension: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors around centres, as those of texts are: float32 [n, d]."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(1, count // 4), dimension), dtype=np.float32)
    noise = generator.standard_normal((count, dimension), dtype=np.float32)
    vectors_nd = centres[generator.integers(0, len(centres), count)] + 0.5 * noise
    unit_nd: NDArray[np.float32] = vectors_nd / np.linalg.norm(vectors_nd, axis=1, keepdims=True)
    return unit_nd
