"""Memory of this machine and its rate of matrix products, measured in a fraction of a second."""

import math
import time
from dataclasses import dataclass
from typing import Any

from indexes.host_memory import host_memory, resident_bytes

CUDA_CONTEXT = 600 * 2**20
"""Bytes that the driver and the libraries take of a GPU before the first tensor."""
USABLE = 0.85
"""Share of the free memory that a plan may use: measured peaks were up to a fifth above the formulas, because an
allocator keeps some freed memory in small pieces."""


@dataclass(frozen=True)
class Machine:
    """The machine that a run takes place on."""

    device: str
    threads: int
    memory: int
    """Bytes of the device's memory."""
    available: int
    """Bytes of it that are free, those of this process included."""
    process: int
    """Bytes that are used before the base is loaded."""
    body_rate: float
    """Operations per second of matrix products of the layers' sizes."""
    head_rate: float
    """The same for the output head."""


def measure(hidden: int, intermediate: int, vocabulary: int, dtype: str, device: str) -> Machine:
    """Read the machine's memory and time matrix products of a model's sizes.

    Args:
        hidden: Hidden size of the model.
        intermediate: Size of its feed-forward layers.
        vocabulary: Size of its vocabulary.
        dtype: A key of `rag.planning.training_memory.PRECISIONS`.
        device: The device to measure.
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
    # What this process uses by now the run will use too, so it counts as available.
    process = resident_bytes()
    return Machine(device, torch.get_num_threads(), total, available + process, process, body_rate, head_rate)


def gemm_rate(inner: int, outer: int, dtype: Any, device: str, *, rows: int = 512, seconds: float = 0.2) -> float:
    """Operations per second of `[rows, inner] @ [inner, outer]`: the fastest of the repetitions within `seconds`."""
    import torch

    left = torch.full((rows, inner), 0.5, dtype=dtype, device=device)
    right = torch.full((inner, outer), 0.5, dtype=dtype, device=device)
    best, ends = math.inf, time.perf_counter() + seconds
    left @ right  # the first call builds the kernel
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
