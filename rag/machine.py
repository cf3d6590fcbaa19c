"""What this machine has and how fast it multiplies, asked and measured in a fraction of a second."""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CUDA_CONTEXT = 600 * 2**20
"""Bytes that the driver and the libraries take of a GPU before the first tensor."""


@dataclass(frozen=True)
class Machine:
    """What there is to run on."""

    device: str
    threads: int
    memory: int
    """Bytes of the device's memory."""
    available: int
    """Bytes of it that nobody uses."""
    process: int
    """Bytes that are used before the base is loaded."""
    body_rate: float
    """Operations per second of matrix products as the layers make them."""
    head_rate: float
    """The same of the output head."""


def measure(hidden: int, intermediate: int, vocabulary: int, dtype: str, device: str) -> Machine:
    """Ask the system for its memory and time a few matrix products of a model's sizes.

    Args:
        hidden: Size of the model.
        intermediate: Of its feed-forward layers.
        vocabulary: Of its head.
        dtype: A key of `training.memory.PRECISIONS`.
        device: Where.
    """
    import torch

    compute = {"float32": torch.float32, "float16": torch.float16}.get(dtype, torch.bfloat16)
    head = torch.float32 if dtype in ("float32", "mixed") else compute
    body_rate = gemm_rate(hidden, intermediate, compute, device)
    head_rate = gemm_rate(hidden, min(vocabulary, 8192), head, device)
    if device.startswith("cuda"):
        available, total = torch.cuda.mem_get_info(torch.device(device))
        return Machine(device, torch.get_num_threads(), total, available, CUDA_CONTEXT, body_rate, head_rate)
    total, available = host_memory()
    # What this process holds by now is what the run will hold too: it is theirs, and no less available to them.
    process = resident_bytes()
    return Machine(device, torch.get_num_threads(), total, available + process, process, body_rate, head_rate)


def gemm_rate(inner: int, outer: int, dtype: Any, device: str, *, rows: int = 512, seconds: float = 0.2) -> float:
    """Operations per second of `[rows, inner] @ [inner, outer]`: the best of what fits into so many seconds."""
    import torch

    left = torch.full((rows, inner), 0.5, dtype=dtype, device=device)
    right = torch.full((inner, outer), 0.5, dtype=dtype, device=device)
    best, ends = math.inf, time.perf_counter() + seconds
    left @ right  # the first one builds its kernel
    repeats = 20 if device.startswith("cuda") else 1
    while time.perf_counter() < ends or math.isinf(best):
        _wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            left @ right
        _wait(device)
        best = min(best, (time.perf_counter() - started) / repeats)
    return 2 * rows * inner * outer / best


def _wait(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def host_memory() -> tuple[int, int]:
    """Bytes of memory that this process may have in all, and how much of it is free."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    fields = _fields(Path("/proc/meminfo"))
    available = fields.get("MemAvailable", total)
    if limit is None:
        return total, available
    return min(total, limit), min(available, limit - (used or 0))


def resident_bytes(field: str = "VmRSS") -> int:
    """Memory of this process now, or with `"VmHWM"` at its peak."""
    fields = _fields(Path("/proc/self/status"))
    if field in fields:
        return fields[field]
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _fields(file: Path) -> dict[str, int]:
    """`Name:  123 kB` lines as bytes; nothing where there is no such file."""
    if not file.is_file():
        return {}
    lines = (line.split() for line in file.read_text().splitlines() if line.endswith(" kB"))
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines}


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such limit, or "max"
        return None
