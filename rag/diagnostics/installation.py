"""Checks of the installation: versions, devices, OpenMP runtimes and thread settings, with advice: `rag doctor`."""

import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from rag.models import CachedModel, cache_folder, models
from rag.text_tables import table

PACKAGES = (
    "dro-rag",
    "torch",
    "transformers",
    "peft",
    "sentence-transformers",
    "faiss-cpu",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "gguf",
)


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Literal["ok", "advice"]
    text: str


@dataclass(frozen=True)
class OpenMPRuntime:
    """An OpenMP library that is loaded."""

    library: str
    """Its name, such as "libgomp"."""
    file: str
    threads: int


@dataclass(frozen=True)
class LoopTimes:
    """Seconds of a loop of short torch operations; NaN where its process failed."""

    idle: float
    """Without another busy process started by the check."""
    busy: float
    """With one other busy process."""


@dataclass(frozen=True, kw_only=True)
class InstallationReport:
    """What `check_installation` found."""

    python: str
    """Version."""
    platform: str
    packages: dict[str, str | None]
    """Versions; None where a package is not installed."""
    devices: tuple[str, ...]
    openmp: tuple[OpenMPRuntime, ...]
    thread_policies: dict[str, LoopTimes]
    """By the names of `thread_policies`; empty where nothing was measured."""
    models: tuple[CachedModel, ...]
    """Models by name, and which are in the cache."""
    model_cache: str
    """The folder of that cache."""
    load: float | None
    """Cores that all processes kept busy over the last minute; None where the system does not say."""
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    def text(self) -> str:
        """The same for people."""
        return "\n".join(
            [
                f"python {self.python} on {self.platform}",
                *(f"  {name} {version or 'not installed'}" for name, version in self.packages.items()),
                "devices",
                *(f"  {device}" for device in self.devices),
                "OpenMP runtimes",
                *(f"  {runtime.file} ({runtime.threads} threads)" for runtime in self.openmp),
                *_policy_lines(self.thread_policies, self.load),
                f"models by name, in {self.model_cache}",
                *(f"  {_model_line(model)}" for model in self.models),
                "findings",
                *(f"  [{finding.level}] {finding.text}" for finding in self.findings),
            ]
        )


def check_installation(*, measure: bool = True) -> InstallationReport:
    """Versions, devices, OpenMP runtimes, and findings with advice.

    Args:
        measure: Also time torch's threads with and without another busy process, which takes about ten seconds.
    """
    import torch  # before faiss: both bring an OpenMP runtime, and the first one that is loaded is shared

    import indexes.vectors.faiss.faiss_index  # noqa: F401  (loads faiss after torch)

    devices, runtimes = _devices(torch), _openmp_runtimes()
    findings = [_check_wait_policy(), _check_runtimes(runtimes), _check_threads(torch), _check_precision(torch)]
    load = os.getloadavg()[0] if sys.platform != "win32" else None
    timings = measure_policies(os.cpu_count() or 1) if measure else {}
    findings += [thread_advice(timings)] if timings else []
    return InstallationReport(
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: _version(name) for name in PACKAGES},
        devices=tuple(devices),
        openmp=tuple(runtimes),
        thread_policies=timings if _is_complete(timings) else {},
        models=tuple(models()),
        model_cache=str(cache_folder()),
        load=load,
        findings=tuple(findings),
    )


def _model_line(found: CachedModel) -> str:
    state = f"{found.bytes / 1e6:.0f} MB" if found.bytes else f"not there (rag models get {found.model.name})"
    return f"{found.model.name}: {found.model.model}, {state}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices(torch: Any) -> list[str]:
    found = [f"cpu ({os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads)"]
    found += [
        f"cuda:{i} {torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB)"
        for i in range(torch.cuda.device_count())
    ]
    return found + (["mps"] if torch.backends.mps.is_available() else [])


def _openmp_runtimes() -> list[OpenMPRuntime]:
    from threadpoolctl import threadpool_info

    return [
        OpenMPRuntime(info["prefix"], os.path.basename(info["filepath"]), info["num_threads"])
        for info in threadpool_info()
        if info["user_api"] == "openmp"
    ]


def _check_wait_policy() -> Finding:
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == "PASSIVE":
        return Finding("ok", "OMP_WAIT_POLICY is PASSIVE: idle OpenMP threads sleep.")
    return Finding(
        "advice",
        f"OMP_WAIT_POLICY is {policy or 'unset'!r}: idle OpenMP threads spin, and with another busy process on the "
        "machine torch and faiss can become many times slower. Set OMP_WAIT_POLICY=PASSIVE (the default of this "
        "package when nothing is set).",
    )


def _check_runtimes(runtimes: Sequence[OpenMPRuntime]) -> Finding:
    if len(runtimes) < 2:
        return Finding("ok", f"{len(runtimes)} OpenMP runtime is loaded.")
    names = ", ".join(runtime.file for runtime in runtimes)
    text = f"{len(runtimes)} OpenMP runtimes are loaded ({names}): import torch before faiss, as this package does."
    if platform.system() == "Darwin":
        text += " On macOS two of them may crash: set faiss.omp_set_num_threads(1) and KMP_DUPLICATE_LIB_OK=TRUE."
        return Finding("advice", text)
    return Finding("ok", text)


def _check_threads(torch: Any) -> Finding:
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    if threads > cores:
        return Finding("advice", f"torch uses {threads} threads on {cores} cores. Set OMP_NUM_THREADS={cores}.")
    return Finding("ok", f"torch uses {threads} threads on {cores} cores.")


def _check_precision(torch: Any) -> Finding:
    if torch.cuda.is_available():
        kind = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        return Finding("ok", f"The base model will be loaded in {kind} on the GPU.")
    return Finding("ok", "No GPU: the base model will be loaded in float32 on the CPU.")


# -- waiting threads -------------------------------------------------------------------------------------------------

Timings = Mapping[str, LoopTimes]
"""By the names of `thread_policies`."""

# Short operations, hence many parallel regions with a wait at the end of each, as in a small model.
_LOOP = """
import sys, time
import torch
x, y = torch.ones(256, 256), torch.ones(192, 192)
def work():
    for _ in range(20):
        y @ y
        (x * 1.5 + 0.5).tanh()
for line in sys.stdin:
    work()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < float(line):
        work()
        count += 1
    print((time.perf_counter() - started) / count, flush=True)
"""
_BUSY = "while True: pass"


def thread_policies(cores: int) -> dict[str, dict[str, str]]:
    """Environments in which torch can run on this many cores; OpenMP reads them once, when it is loaded."""
    every = str(cores)
    return {
        "all threads, active": {"OMP_NUM_THREADS": every, "OMP_WAIT_POLICY": "ACTIVE"},
        "all threads, passive": {"OMP_NUM_THREADS": every, "OMP_WAIT_POLICY": "PASSIVE"},
        "one thread": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    }


def measure_policies(
    cores: int, *, seconds: float = 0.5, run: Callable[[Mapping[str, str], float], LoopTimes] | None = None
) -> dict[str, LoopTimes]:
    """Time a loop of short torch operations under each thread policy, with and without another busy process.

    One busy process is enough to delay a thread at every barrier, and is usual on a desktop or a shared machine.

    Args:
        cores: Of the machine; with a single one there is nothing to choose, and nothing is measured.
        seconds: Duration of each measurement.
        run: Times the loop in an environment for this many seconds (for tests).
    """
    if cores < 2:
        return {}
    timed = run or _time_loop
    return {name: timed(environment, seconds) for name, environment in thread_policies(cores).items()}


def _time_loop(environment: Mapping[str, str], seconds: float) -> LoopTimes:
    """NaN where the process failed, so that the rest of the report is still printed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    command = [sys.executable, "-c", _LOOP]
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(
        command, env={**kept, **environment}, stdin=pipe, stdout=pipe, stderr=quiet, text=True
    ) as process:
        try:
            idle = _timed(process, seconds)
            with _busy_process():
                return LoopTimes(idle, _timed(process, seconds))
        except (ValueError, OSError):
            return LoopTimes(math.nan, math.nan)
        finally:
            process.kill()


def _timed(process: "subprocess.Popen[str]", seconds: float) -> float:
    """Seconds of one loop in a process that runs `_LOOP`."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


@contextmanager
def _busy_process() -> Iterator["subprocess.Popen[bytes]"]:
    """One other process that keeps a core busy."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


NOTABLE_RATIO = 1.2
"""Ratio of two times from which their difference is taken for more than noise."""


def thread_advice(timings: Timings) -> Finding:
    """Which thread policy to use, from the times of all three."""
    if not _is_complete(timings):
        return Finding("advice", "Threads could not be timed: a process that only multiplies matrices failed.")
    active, passive, one = timings.values()
    if (slower := active.busy / passive.busy) > NOTABLE_RATIO:
        is_set = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
        return Finding(
            "ok" if is_set else "advice",
            f"With another busy process, spinning threads are {slower:.1f} times slower than sleeping ones; without "
            f"one they are {_gain(passive.idle / active.idle)}: keep OMP_WAIT_POLICY=PASSIVE"
            f"{_single_thread(passive, one)}.",
        )
    if passive.idle > NOTABLE_RATIO * active.idle:
        return Finding(
            "ok",
            f"Without another busy process, spinning threads are {passive.idle / active.idle:.1f} times faster, and "
            "with one they lose nothing: setting OMP_WAIT_POLICY=ACTIVE is worthwhile here.",
        )
    text = f"It makes no difference here whether idle threads spin or sleep{_single_thread(passive, one)}."
    return Finding("ok", text)


def _is_complete(timings: Timings) -> bool:
    return not any(math.isnan(seconds) for times in timings.values() for seconds in astuple(times))


def _gain(times: float) -> str:
    return f"{times:.1f} times as fast" if times >= 1.05 else "no faster"


def _single_thread(passive: LoopTimes, one: LoopTimes) -> str:
    """What a single thread gains, where it is faster."""
    idle, busy = passive.idle / one.idle, passive.busy / one.busy
    if busy <= NOTABLE_RATIO:
        return ""
    if idle >= 1:
        return f", or better OMP_NUM_THREADS=1: {busy:.1f} times faster with a busy process, {idle:.1f} without"
    return f"; OMP_NUM_THREADS=1 is {busy:.1f} times faster still with a busy process, and slower without"


def _policy_lines(timings: Timings, load: float | None) -> list[str]:
    """A table in milliseconds, with the slowdown by another busy process."""
    if not timings:
        return []
    cells = [
        [name, f"{1e3 * times.idle:.2f} ms", f"{1e3 * times.busy:.2f} ms", f"{times.busy / times.idle:.1f}x"]
        for name, times in timings.items()
    ]
    lines = table(["short operations", "idle machine", "one busy process", "slower"], cells).splitlines()
    others = f"  other processes kept {load:.1f} cores busy, which the times include"
    return ["threads", *(f"  {line}" for line in lines), *([others] if load is not None and load > 0.7 else [])]
