"""Two ways of doing the same work, raced fairly: the rival's and ours, in one process, on the same model.

Rules. One thread unless `--threads` says otherwise, idle OpenMP threads sleep. Before any time is taken the results
must be equal (values and, where there are any, gradients), and a control that is wrong on purpose must be detected.
Runs alternate; each pair stands between two runs of a fixed matrix product, and is thrown away when that moved by more
than a tenth. Medians are of the pairs that are left. Peak memory is that of one run in a process of its own. The floor
is what the products need at the rate of a large matrix product, or the bytes at the speed of a copy, both measured in
the same run; tokens of padding are not counted. Memory is handed out as it is by default; with `--keep_memory` what was
freed is kept for the next tensor, so that nobody waits for the system to clear pages: to the advantage of the side that
makes the larger tensors.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from benchmarks.process_memory import M_MMAP_MAX, M_TRIM_THRESHOLD, MEGABYTE, peak_bytes
from benchmarks.real_weights import missing_weights

CANARY_TOLERANCE = 0.1
Run = Callable[[], object]
T = TypeVar("T")


@dataclass
class Case:
    """One path to race on one shape."""

    path: str
    shape: str
    rival: Run
    ours: Run
    check: Callable[[], None]
    """Raises unless both ways agree and the control differs."""
    flops: float = 0.0
    """That ours cannot do without, padding left out."""
    bytes: float = 0.0
    """The same for memory traffic."""
    dtype: torch.dtype = torch.bfloat16
    """Of the products that the floor is made of."""
    target: float | None = None
    """Rival time / our time to reach."""
    bound_by_products: bool = False
    """Products that both ways share take most of the time where they are float32: then there is no target."""
    memory_target: float | None = None
    """Rival memory / our memory to reach."""
    floor_target: float | None = None
    """Share of the floor to reach."""
    long: bool = False
    """Too long to be run more often than it is timed: without peak memory and warm-up."""


@dataclass(frozen=True)
class Row:
    """What a race showed; `null` where it was not measured."""

    path: str
    shape: str
    rival_s: float
    ours_s: float
    ratio: float
    rival_mb: float | None
    ours_mb: float | None
    floor_share: float | None
    target: float | None


@dataclass(frozen=True)
class Make:
    """How to build one case; nothing is built before its turn."""

    build: Callable[["Options"], Case]
    quick: bool = True
    """Whether it belongs to the quick round."""
    with_shape: bool = True
    """Whether it is another case than those before it where `--shape` replaces its own shape."""


@dataclass(frozen=True)
class Options:
    """Of the command line."""

    device: str = "cpu"
    shape: str | None = None
    quick: bool = False
    repeats: int = 5
    memory: bool = True
    keep_memory: bool = False
    precision: str | None = None
    """Of the base, as `LanguageModel.from_pretrained` takes it; None: bfloat16 where it is fast, else float32."""
    weights: str | None = None
    """Where weights of the shape are loaded from (`benchmarks.real_weights`); None: random ones."""
    full: bool = False
    """Prompts as long as n = 20 passages of 120 tokens make them, where a shape has shorter ones by default."""
    threads: int = 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the products: bfloat16 where they are fast in it, else float32; or what `precision` says."""
        if self.precision in (None, "mixed"):
            return torch.bfloat16 if self._has_fast_bfloat16() else torch.float32
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.precision]

    @property
    def gradient_tolerance(self) -> float:
        """Relative error of a gradient that two orders of summation may leave."""
        return 1e-4 if self.dtype == torch.float32 and self.precision != "mixed" else 0.1

    def _has_fast_bfloat16(self) -> bool:
        from indexes.vectors.prefilter import has_fast_bfloat16

        return self.device != "cpu" or has_fast_bfloat16()


# -- clocks ----------------------------------------------------------------------------------------------------


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(run: Run, device: str) -> float:
    """Wall-clock time of one run."""
    gc.collect(0)
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def best_of(run: Run, device: str, times: int = 5) -> float:
    """The shortest of several runs."""
    return min(seconds(run, device) for _ in range(times))


def product_rate(dtype: torch.dtype, device: str) -> float:
    """Operations per second of a large matrix product."""
    size = 8192 if device.startswith("cuda") else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / best_of(lambda: a @ b, device)


def copy_rate(device: str) -> float:
    """Bytes read and written per second by a large copy."""
    source = torch.zeros((1 << 30 if device.startswith("cuda") else 1 << 27) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / best_of(lambda: target.copy_(source), device)


class Canary:
    """A fixed piece of work: when it takes longer than it did, the machine was busy with something else."""

    def __init__(self, device: str) -> None:
        size = 4096 if device.startswith("cuda") else 512
        self.device = device
        self.a, self.b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)

    def __call__(self) -> float:
        return best_of(lambda: self.a @ self.b, self.device, times=9)


# -- a race ----------------------------------------------------------------------------------------------------


def keep_freed_memory() -> None:
    """For the next tensor: the system clears every page that it hands out."""
    if platform.system() == "Linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def race(case: Case, options: Options) -> tuple[list[tuple[float, float]], int]:
    """Times of both ways in the pairs that count, and how many pairs were run."""
    canary = Canary(options.device)
    kept: list[tuple[float, float]] = []
    disturbed: list[tuple[float, float]] = []
    limit = options.repeats * (2 if options.quick else 4)
    before = canary()
    for tried in range(1, limit + 1):
        order = [case.rival, case.ours] if tried % 2 else [case.ours, case.rival]
        times = [seconds(run, options.device) for run in order]
        after = canary()
        moved = abs(after - before) / min(after, before) > CANARY_TOLERANCE
        (disturbed if moved else kept).append((times[0], times[1]) if tried % 2 else (times[1], times[0]))
        before = after
        if len(kept) == options.repeats:
            return kept, tried
    missing = options.repeats - len(kept)
    print(f"{case.path}, {case.shape}: the machine was busy; {missing} disturbed pairs are counted.", file=sys.stderr)
    return kept + disturbed[:missing], limit


@dataclass(frozen=True)
class Targets:
    """To reach, besides the ratio of times."""

    memory: float | None = None
    """Rival memory / our memory."""
    floor: float | None = None
    """Share of the floor."""


def measure(make: Make, options: Options) -> tuple[Row, Targets]:
    """Build a case, see that both ways agree, race them; also what it is to reach besides the ratio of times."""
    case = make.build(options)
    gc.collect()
    gc.freeze()  # so that what is there now is not looked through between two runs
    memory = [None, None]
    if options.memory and not case.long:
        # First of all: autograd cannot be used in a forked process once it was used in this one.
        memory = [peak_memory(run, options.device) for run in (case.rival, case.ours)]
    case.check()
    if not (options.quick or case.long):
        for run in (case.rival, case.ours):
            run()
    if options.keep_memory:
        keep_freed_memory()
    pairs, _ = race(case, options)
    rival, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    floor = 0.0
    if case.flops or case.bytes:
        floor = max(case.flops / product_rate(case.dtype, options.device), case.bytes / copy_rate(options.device))
    row = Row(
        path=case.path,
        shape=case.shape,
        rival_s=rival,
        ours_s=ours,
        ratio=rival / ours,
        rival_mb=memory[0],
        ours_mb=memory[1],
        floor_share=floor / ours if floor else None,
        target=None if case.bound_by_products and case.dtype == torch.float32 else case.target,
    )
    return row, Targets(case.memory_target, case.floor_target)


# -- memory ----------------------------------------------------------------------------------------------------


def peak_memory(run: Run, device: str) -> float | None:
    """Megabytes that one run takes at its peak, beyond what is there before it; None where it cannot be told."""
    if device.startswith("cuda"):
        run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / MEGABYTE
    if platform.system() != "Linux":
        return None
    return _in_fork(lambda: _peak_of(run))


def _peak_of(run: Run) -> float:
    torch.set_num_threads(1)  # OpenMP's other threads are not copied by a fork, and would be waited for
    return peak_bytes(run) / MEGABYTE


def _in_fork(work: Callable[[], Any]) -> Any:
    """What `work` returns, done in a copy of this process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def send() -> None:
        sender.send(work())

    process = context.Process(target=send)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"A measurement ended with exit code {process.exitcode}.") from None
    finally:
        process.join()


# -- the command line ------------------------------------------------------------------------------------------


def parse(description: str, arguments: Sequence[str] | None = None) -> tuple[Options, bool]:
    """Options of a benchmark, and whether JSON is wanted."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--shape", help='only cases of this shape: "tiny", "smollm2", "qwen2.5-0.5b", "qwen2.5-7b", "tiny-base"'
    )
    parser.add_argument("--weights", help="real weights: a Hugging Face folder, a .gguf file, or a model by name")
    parser.add_argument("--full", action="store_true", help="prompts of n = 20 passages of 120 tokens")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "mixed"], help="of the base")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print a list of rows instead of the table")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases, three pairs instead of five")
    parser.add_argument("--repeats", type=int, help="pairs that count")
    parser.add_argument("--no_memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--keep_memory", action="store_true", help="keep freed memory instead of giving it back")
    args = parser.parse_args(arguments)
    options = Options(
        device=args.device,
        shape=args.shape,
        quick=args.quick,
        repeats=args.repeats or (3 if args.quick else 5),
        memory=not args.no_memory,
        keep_memory=args.keep_memory,
        precision=args.dtype,
        weights=args.weights,
        full=args.full,
        threads=args.threads,
    )
    return options, args.json


def main(description: str, makes: Sequence[Make], arguments: Sequence[str] | None = None) -> int:
    """Race every case that the command line asks for; each in a process of its own, so that none warms another up."""
    options, as_json = parse(description, arguments)
    if options.weights and (reason := missing_weights(options.weights)):
        print(f"Skipped: {reason}", file=sys.stderr)
        return 0
    rows = []
    if not as_json:
        print(alone(lambda: header(options), options))
    for make in makes:
        if (options.quick and not make.quick) or (options.shape and not make.with_shape):
            continue
        row, targets = alone(partial(measure, make, options), options)
        rows.append(asdict(row))
        if not as_json:
            print(line(row, targets), flush=True)
    if as_json:
        print(json.dumps(rows, indent=1))
    return 0


def alone(work: Callable[[], T], options: Options) -> T:
    """What `work` returns, done with the threads asked for, on a CPU in a process of its own."""

    def run() -> T:
        torch.set_num_threads(options.threads)
        return work()

    return run() if options.device != "cpu" or platform.system() != "Linux" else _in_fork(run)


def header(options: Options) -> str:
    """What was measured on, and the head of the table."""
    threads = f"{torch.get_num_threads()} thread(s)" if options.device == "cpu" else torch.cuda.get_device_name()
    rates = {str(d).removeprefix("torch."): product_rate(d, options.device) for d in (torch.float32, torch.bfloat16)}
    speeds = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s {name}" for name, rate in rates.items())
    return "\n".join(
        [
            f"{threads}; matrix products {speeds}; copies {copy_rate(options.device) / 1e9:.0f} GB/s",
            "",
            "| path | shape | rival s | ours s | ratio | to reach | rival MB | ours MB | ratio | of floor |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
    )


def line(row: Row, targets: Targets) -> str:
    """One row of the table."""
    memory = ["", "", ""]
    if row.rival_mb is not None and row.ours_mb is not None:
        ratio = f"{row.rival_mb / row.ours_mb:.1f}x" if row.ours_mb > 0 else ""
        wanted = f" ({targets.memory:g}x)" if targets.memory else ""
        memory = [f"{row.rival_mb:,.0f}", f"{row.ours_mb:,.0f}", ratio + wanted]
    share = "" if row.floor_share is None else f"{row.floor_share:.0%}"
    share += f" ({targets.floor:.0%})" if share and targets.floor else ""
    reach = "" if row.target is None else f"{row.target:g}x"
    cells = [row.path, row.shape, f"{row.rival_s:.3f}", f"{row.ours_s:.3f}", f"{row.ratio:.2f}x", reach, *memory, share]
    return "| " + " | ".join(cells) + " |"
