"""Memory of this machine and its rate of matrix products, measured in a fraction of a second."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from indexes.host_memory import host_memory, resident_bytes
from rag.planning.flops import ModelShape, causal_pairs

CUDA_CONTEXT = 600 * 2**20
"""Bytes that the driver and the libraries take of a GPU before the first tensor."""
USABLE = 0.85
"""Share of the free memory that a plan may use: measured peaks were up to a fifth above the formulas, because an
allocator keeps some freed memory in small pieces."""

ROWS = 512
"""Tokens that are read in one pass."""
STREAMED_BYTES = 2**26
"""What is read to learn the speed of memory: more than the caches of most processors hold for one core."""


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
    attention_rate: float
    """The same for attention over visible pairs."""
    elementwise_rate: float
    """Numbers per second that operations other than products compute."""
    step_rate: float
    """The same for the layers while answers are written, which read all weights for a few rows."""
    step_head_rate: float
    """The same for the output head."""
    read_rate: float
    """Bytes per second at which memory is read."""
    call_seconds: float
    """Of one small operation of torch, which is the time of its call."""


def measure(shape: ModelShape, dtype: str, device: str, *, step_rows: int) -> Machine:
    """Read the machine's memory and time matrix products of a model's sizes.

    Args:
        shape: Of the model.
        dtype: A key of `rag.planning.training_memory.PRECISIONS`.
        device: The device to measure.
        step_rows: Answers that are written at the same time.
    """
    import torch

    H, outer, V = shape.hidden, shape.intermediate, shape.vocabulary
    compute = {"float32": torch.float32, "float16": torch.float16}.get(dtype, torch.bfloat16)
    head = torch.float32 if dtype in ("float32", "mixed") else compute
    mixed = dtype == "mixed"
    weights = shape.body_parameters
    rates = {
        "body_rate": product_rate(H, outer, compute, device, mixed=mixed, weights=weights),
        "head_rate": product_rate(H, min(V, 8192), head, device),
        "attention_rate": _attention_rate(shape, compute, device),
        "elementwise_rate": _elementwise_rate(outer, compute, device),
        "step_rate": product_rate(H, outer, compute, device, mixed=mixed, rows=step_rows, weights=weights),
        "step_head_rate": product_rate(H, V, head, device, rows=step_rows),
        "read_rate": _read_rate(device),
        "call_seconds": _call_seconds(device),
    }
    if device.startswith("cuda"):
        available, total = torch.cuda.mem_get_info(torch.device(device))
        return Machine(device, torch.get_num_threads(), total, available, CUDA_CONTEXT, **rates)
    total, available = host_memory()
    # What this process uses by now the run will use too, so it counts as available.
    process = resident_bytes()
    return Machine(device, torch.get_num_threads(), total, available + process, process, **rates)


def product_rate(
    inner: int,
    outer: int,
    dtype: Any,
    device: str,
    *,
    mixed: bool = False,
    rows: int = ROWS,
    weights: int = 0,
    seconds: float = 0.2,
) -> float:
    """Operations per second of `[rows, inner] @ [inner, outer]`: the fastest of the repetitions within `seconds`.

    Args:
        inner: Inputs of the layer.
        outer: Outputs of the layer.
        dtype: Of its weights.
        device: The device to measure.
        mixed: Multiply as `"mixed"` does, with inputs in float32.
        rows: Rows of the input.
        weights: Of so many weights in turn, up to `STREAMED_BYTES`, as a model that does not fit into the caches has.
        seconds: For the measurement.
    """
    import torch

    layers = _layers(inner, outer, dtype, device, mixed, weights)
    x = torch.full((rows, inner), 0.5, dtype=torch.float32 if mixed else dtype, device=device)

    def multiply() -> None:
        for layer in layers:
            layer(x)

    with torch.no_grad(), torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=mixed):
        return 2 * rows * inner * outer * len(layers) / _typical(multiply, device, seconds)


def _layers(inner: int, outer: int, dtype: Any, device: str, mixed: bool, weights: int) -> list[Any]:
    import torch

    from generator.mixed_precision import AutocastLinear

    count = math.ceil(min(weights, STREAMED_BYTES // dtype.itemsize) / (inner * outer))
    found: list[Any] = []
    for _ in range(max(1, count)):
        layer = torch.nn.Linear(inner, outer, bias=False, dtype=dtype, device=device)
        torch.nn.init.constant_(layer.weight, 0.5)
        found.append(AutocastLinear(layer) if mixed else layer)
    return found


def _attention_rate(shape: ModelShape, dtype: Any, device: str, seconds: float = 0.1) -> float:
    import torch

    states = torch.full((1, shape.heads, ROWS, shape.head_dim), 0.5, dtype=dtype, device=device)
    attend = torch.nn.functional.scaled_dot_product_attention
    taken = _typical(lambda: attend(states, states, states, is_causal=True), device, seconds)
    return 4 * shape.heads * shape.head_dim * causal_pairs([ROWS]) / taken


def _elementwise_rate(width: int, dtype: Any, device: str, seconds: float = 0.1) -> float:
    """By the gate of a feed-forward layer: an activation and a product of two numbers."""
    import torch

    x = torch.full((ROWS, width), 0.5, dtype=dtype, device=device)
    return 2 * x.numel() / _typical(lambda: torch.nn.functional.silu(x) * x, device, seconds)


def _read_rate(device: str, seconds: float = 0.1) -> float:
    import torch

    numbers = torch.ones(STREAMED_BYTES // 4, device=device)
    return STREAMED_BYTES / _typical(numbers.sum, device, seconds)


def _call_seconds(device: str, seconds: float = 0.05) -> float:
    import torch

    x, calls = torch.ones(8, 8, device=device), 200

    def add() -> None:
        for _ in range(calls):
            x + x

    return _typical(add, device, seconds) / calls


def _typical(work: Callable[[], object], device: str, seconds: float) -> float:
    """Seconds of the median repetition."""
    found: list[float] = []
    ends = time.perf_counter() + seconds
    work()  # the first call builds the kernel
    repeats = 20 if device.startswith("cuda") else 1
    while time.perf_counter() < ends or not found:
        _wait(device)
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        _wait(device)
        found.append((time.perf_counter() - started) / repeats)
    return statistics.median(found)


def _wait(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
