"""Time, memory and disk space of an index build, predicted before its encoder is loaded: `rag plan index`.

    sample of the corpus -> passage_measurements -> index_seconds -> seconds
    shapes and factory string -> index_bytes ----------------------> bytes

Seconds rest on the work itself, done on a few passages and a few thousand random vectors; bytes follow from formulas.
No weights are read: of the encoder only its config and, where available, its tokenizer are needed.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from indexes.host_memory import host_memory, resident_bytes
from indexes.vectors.faiss.faiss_factory import choose_factory
from rag.planning.cost_plan import Change, Fit, Plan, PlannedDisk, PlannedMemory, PlannedPhase
from rag.planning.index_bytes import PeakMemory, build_peaks, disk_space, plan_layout
from rag.planning.index_job import IndexJob, IndexSetting, IndexSpeed, PassageMeasurements, PlannedLayout
from rag.planning.index_seconds import PhaseTime, encoding_speedup, measure_index_speed, phase_times
from rag.planning.machine import USABLE
from rag.planning.passage_measurements import measure_passages

NOT_MODELLED = (
    "starting Python and loading the encoder: seconds",
    "the disk: its speed, waiting for it (fsync), and checksums; samples are written to the system's temporary folder",
    "a corpus whose later passages differ from the sample; broken records left out; parsing PDF and Word files",
    "an old index at the output (--overwrite), which stays on the disk until the new one is done",
    "encoders whose vectors are not as long as their hidden size (a Dense module), or that read no text",
    "training rotations (OPQ, PCA, ITQ); clusters found by a graph (IVF65536_HNSW32) are taken as if all were compared",
    "memory of a GPU, and several of them: no GPU was measured; --milvus: the server's time, memory and disk",
)


@dataclass(frozen=True)
class MachineLimits:
    """What the machine offers a build, in bytes."""

    memory: int
    """Memory that the processes may use."""
    process: int
    """Memory that Python and the libraries take in each process."""
    disk: int | None
    """Free space at the output; None where no output is given."""


def plan_index(job: IndexJob) -> Plan:
    """Predict time, memory and disk space of a build.

    Args:
        job: The build.

    Raises:
        UsageError: The kind of index does not exist, or the chunks are impossible.
        ResourceError: The encoder's config is not available.
    """
    import torch

    from indexes.directory.builder import build_index  # noqa: F401 - what a build loads, so that this process is as large

    limits = machine_limits(job.output)
    measured = measure_passages(job)
    layout = plan_layout(job, measured.passages)
    measurable = layout.segment_rows and not job.milvus
    speed = measure_index_speed(layout.factory, job.shape.dimension) if measurable else IndexSpeed()
    cores = torch.cuda.device_count() if job.device.startswith("cuda") else os.cpu_count() or 1
    faster = encoding_speedup(job, measured.passages, torch.get_num_threads(), cores)
    return assemble_plan(job, measured, layout, phase_times(job, layout, measured, speed, faster), limits, faster)


def machine_limits(output: Path | None) -> MachineLimits:
    """The limits of this machine, and of the disk that `output` is on."""
    available, process = host_memory()[1], resident_bytes()
    free = None if output is None else shutil.disk_usage(_existing_parent(output)).free
    return MachineLimits(int(USABLE * (available + process)), process, free)


def _existing_parent(path: Path) -> Path:
    path = path.expanduser().resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def assemble_plan(
    job: IndexJob,
    measured: PassageMeasurements,
    layout: PlannedLayout,
    times: Mapping[str, PhaseTime],
    limits: MachineLimits,
    faster: float = 1.0,
) -> Plan:
    """The plan from its measurements.

    Args:
        job: The build.
        measured: What was measured on the sample.
        layout: What the builder would decide.
        times: Seconds of each phase.
        limits: Of the machine.
        faster: How many times as fast as one process all of them encode.
    """
    peaks = build_peaks(job, layout, measured, limits.process, free=limits.memory)
    disk = disk_space(job, layout, measured, limits.disk)
    fits = _fits(job, layout, peaks, disk, limits)
    return Plan(
        kind="index",
        setting=IndexSetting.of(job, measured, layout, faster),
        phases=tuple(_planned_phase(name, peak, times.get(name)) for name, peak in peaks.items()),
        memory=_memory(job, peaks, limits),
        disk=disk,
        fits=fits,
        changes=tuple(_changes(job, layout, measured, fits, limits)),
        not_modelled=NOT_MODELLED,
    )


def _planned_phase(name: str, peak: PeakMemory, time: PhaseTime | None) -> PlannedPhase:
    time = time or PhaseTime(0.0, "")
    return PlannedPhase(name=name, seconds=time.seconds, basis=time.basis, peak=peak.allocated, mapped=peak.mapped)


def _memory(job: IndexJob, peaks: Mapping[str, PeakMemory], limits: MachineLimits) -> PlannedMemory:
    worst = max(peaks, key=lambda name: peaks[name].allocated)
    return PlannedMemory(
        always={"process": limits.process, "encoder": job.weight_bytes},
        peak=peaks[worst].allocated,
        peak_phase=worst,
        resident=max(peak.resident for peak in peaks.values()),
    )


# -- what fits -------------------------------------------------------------------------------------------------------


def _fits(
    job: IndexJob,
    layout: PlannedLayout,
    peaks: Mapping[str, PeakMemory],
    disk: PlannedDisk,
    limits: MachineLimits,
) -> tuple[Fit, ...]:
    """Whether the builder would begin at all, and what it would then run out of; only limits that exist are listed."""
    peak = max(peak.allocated for peak in peaks.values())
    found = [
        Fit(limit="builder", fits=not layout.refused, needed=peak, reason=layout.refused),
        Fit(limit="memory", fits=peak <= limits.memory, needed=peak, available=limits.memory),
    ]
    if job.max_memory is not None:
        allowed = job.processes * job.max_memory
        found.append(Fit(limit="max_memory", fits=peak <= allowed, needed=peak, available=allowed))
    if limits.disk is not None:
        found.append(Fit(limit="disk", fits=disk.peak <= limits.disk, needed=disk.peak, available=limits.disk))
    return tuple(found)


def _changes(
    job: IndexJob,
    layout: PlannedLayout,
    measured: PassageMeasurements,
    fits: tuple[Fit, ...],
    limits: MachineLimits,
) -> Iterator[Change]:
    """What would make it fit, each change by itself."""
    broken = [fit.limit for fit in fits if not fit.fits]
    if memory := [limit for limit in broken if limit != "disk"]:
        for name, changed in _alternatives(job, layout, measured, limits):
            other = plan_layout(changed, measured.passages)
            peaks = build_peaks(changed, other, measured, limits.process, free=limits.memory)
            checks = _fits(changed, other, peaks, disk_space(changed, other, measured), limits)
            if all(fit.fits for fit in checks if fit.limit != "disk"):
                peak, detail = checks[0].needed, _segments_text(other)
                yield Change(limit=memory[0], change=name, peak=peak, fits=True, detail=detail)
    if "disk" in broken:
        yield Change(limit="disk", change="another --output_dir", peak=0, fits=True, detail=_segments_text(layout))


def _segments_text(layout: PlannedLayout) -> str:
    return f"{layout.factory} in {layout.segments} segment{'' if layout.segments == 1 else 's'}"


def _alternatives(
    job: IndexJob, layout: PlannedLayout, measured: PassageMeasurements, limits: MachineLimits
) -> Iterator[tuple[str, IndexJob]]:
    """Segments by --max_memory, a smaller kind, fewer processes."""
    share = limits.memory // job.processes
    if job.max_memory is None or share < job.max_memory or layout.refused:
        yield f"--max_memory {share // 10**6}MB", replace(job, max_memory=share // 10**6 * 10**6)
    for factory in _smaller_kinds(job, measured):
        yield f"--factory {factory}", replace(job, factory=factory)
    if job.processes > 1:
        yield "--workers 1", replace(job, processes=1)


def _smaller_kinds(job: IndexJob, measured: PassageMeasurements) -> list[str]:
    """The kinds that `choose_factory` would choose with less and less memory, and exact search."""
    if job.milvus:
        return []
    n, d = measured.passages, job.shape.dimension
    kinds = {choose_factory(n, d, memory=2**power)[0]: None for power in range(40, 20, -1)}
    return [kind for kind in [*kinds, "Flat"] if kind != job.factory]
