"""Seconds and peak memory of real work, for `rag plan --measure`."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from indexes.host_memory import resident_bytes

T = TypeVar("T")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured(Generic[T]):
    """A result, and what it took."""

    result: T
    seconds: float
    """By the clock."""
    peak: int | None
    """Bytes that the process (or torch on the GPU) had in use at the worst moment; None where it is not known."""


def measure_work(work: Callable[[], T], device: str) -> Measured[T]:
    """Do some work once, and measure it.

    Args:
        work: The work.
        device: Of the model: on a GPU its memory counts, else that of the process.
    """
    import torch

    gc.collect()
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    known = on_gpu or _reset_peak()
    started = time.perf_counter()
    result = work()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    if not known:
        return Measured(result, seconds, None)
    return Measured(result, seconds, torch.cuda.max_memory_allocated(device) if on_gpu else resident_bytes("VmHWM"))


def _reset_peak() -> bool:
    """Begin a new peak of this process's memory; False where the system (or a container) does not allow it."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True
