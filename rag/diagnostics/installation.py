"""What this installation is made of, and what would go wrong with it: `rag doctor`."""

import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

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
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: str
    """`"ok"` or `"advice"`."""
    text: str


def diagnose(*, measure: bool = True) -> dict[str, Any]:
    """Versions, devices, OpenMP runtimes, and findings with what to do about each.

    Args:
        measure: Also time how torch's threads get on with other busy processes, which takes about ten seconds.
    """
    import torch  # first: torch and faiss bring an OpenMP runtime each, and the first one in is shared

    import indexes.vectors.faiss.faiss_index  # noqa: F401  (loads faiss after torch)

    devices = _devices(torch)
    runtimes = _openmp_runtimes()
    findings = [_wait_policy(), _runtimes(runtimes), _threads(torch), _precision(torch)]
    load = os.getloadavg()[0] if sys.platform != "win32" else None
    timings = measure_policies(os.cpu_count() or 1) if measure else {}
    findings += [advice(timings)] if timings else []
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": devices,
        "openmp": runtimes,
        "thread_policies": timings if _is_whole(timings) else {},
        "load": load,
        "findings": [{"level": f.level, "text": f.text} for f in findings],
    }


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


def _openmp_runtimes() -> list[dict[str, Any]]:
    from threadpoolctl import threadpool_info

    return [
        {
            "library": info["prefix"],
            "file": os.path.basename(info["filepath"]),
            "threads": info["num_threads"],
        }
        for info in threadpool_info()
        if info["user_api"] == "openmp"
    ]


def _wait_policy() -> Finding:
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    if policy.upper() == "PASSIVE":
        return Finding("ok", "OMP_WAIT_POLICY is PASSIVE: idle OpenMP threads sleep.")
    return Finding(
        "advice",
        f"OMP_WAIT_POLICY is {policy or 'unset'!r}: idle OpenMP threads spin, and with another busy process on the "
        "machine torch and faiss can become many times slower. Set OMP_WAIT_POLICY=PASSIVE (the default of this "
        "package when nothing is set).",
    )


def _runtimes(runtimes: list[dict[str, Any]]) -> Finding:
    if len(runtimes) < 2:
        return Finding("ok", f"{len(runtimes)} OpenMP runtime is loaded.")
    names = ", ".join(r["file"] for r in runtimes)
    text = f"{len(runtimes)} OpenMP runtimes are loaded ({names}): import torch before faiss, as this package does."
    if platform.system() == "Darwin":
        text += " On macOS two of them may crash: set faiss.omp_set_num_threads(1) and KMP_DUPLICATE_LIB_OK=TRUE."
        return Finding("advice", text)
    return Finding("ok", text)


def _threads(torch: Any) -> Finding:
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    if threads > cores:
        return Finding("advice", f"torch uses {threads} threads on {cores} cores. Set OMP_NUM_THREADS={cores}.")
    return Finding("ok", f"torch uses {threads} threads on {cores} cores.")


def _precision(torch: Any) -> Finding:
    if torch.cuda.is_available():
        kind = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        return Finding("ok", f"The base model will be loaded in {kind} on the GPU.")
    return Finding("ok", "No GPU: the base model will be loaded in float32 on the CPU.")


# -- threads that wait -----------------------------------------------------------------------------------------------

Timings = Mapping[str, Mapping[str, float]]
"""Seconds of one loop by policy and by `"alone"` or `"busy"`."""

# Short operations, hence many parallel regions with a wait at the end of each: what a small model is made of.
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


def policies(cores: int) -> dict[str, dict[str, str]]:
    """Ways to run torch on so many cores, as environments: OpenMP reads them once, when it is loaded."""
    every = str(cores)
    return {
        "all threads, active": {"OMP_NUM_THREADS": every, "OMP_WAIT_POLICY": "ACTIVE"},
        "all threads, passive": {"OMP_NUM_THREADS": every, "OMP_WAIT_POLICY": "PASSIVE"},
        "one thread": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    }


def measure_policies(
    cores: int, *, seconds: float = 0.5, run: Callable[[Mapping[str, str], float], tuple[float, float]] | None = None
) -> dict[str, dict[str, float]]:
    """Seconds of a loop of short torch operations, alone and beside one busy process.

    One busy process is enough to keep a thread waiting at every barrier, and is what a desktop or a shared machine has.

    Args:
        cores: Of the machine; on a single one there is nothing to choose, and nothing is measured.
        seconds: How long each is timed.
        run: Times the loop in an environment, alone and beside a busy process (given by tests).
    """
    if cores < 2:
        return {}
    timed = run or _time_loop
    found = {name: timed(environment, seconds) for name, environment in policies(cores).items()}
    return {name: {"alone": alone, "busy": busy} for name, (alone, busy) in found.items()}


def _time_loop(environment: Mapping[str, str], seconds: float) -> tuple[float, float]:
    """NaN where the process failed: that is no reason to say nothing of the rest."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    command = [sys.executable, "-c", _LOOP]
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(
        command, env={**kept, **environment}, stdin=pipe, stdout=pipe, stderr=quiet, text=True
    ) as process:
        try:
            alone = _asked(process, seconds)
            with _busy():
                return alone, _asked(process, seconds)
        except (ValueError, OSError):
            return math.nan, math.nan
        finally:
            process.kill()


def _asked(process: "subprocess.Popen[str]", seconds: float) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


@contextmanager
def _busy() -> Iterator["subprocess.Popen[bytes]"]:
    """One other process that keeps a core busy."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


WORTH_A_WORD = 1.2
"""Times faster from which a difference is no noise."""


def advice(timings: Timings) -> Finding:
    """What the numbers say."""
    active, passive, one = timings.values()
    if not _is_whole(timings):
        return Finding("advice", "Threads could not be timed: a process that only multiplies matrices failed.")
    spinning = active["busy"] / passive["busy"]
    if spinning > WORTH_A_WORD:
        text = (
            f"Beside one busy process spinning threads are {spinning:.1f} times slower than sleeping ones; alone they "
            f"are {_gain(passive['alone'] / active['alone'])}: keep OMP_WAIT_POLICY=PASSIVE{_or_one(passive, one)}."
        )
        is_set = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
        return Finding("ok" if is_set else "advice", text)
    if passive["alone"] > WORTH_A_WORD * active["alone"]:
        return Finding(
            "ok",
            f"Spinning threads are {passive['alone'] / active['alone']:.1f} times faster alone and lose nothing beside "
            "a busy process: OMP_WAIT_POLICY=ACTIVE is worth setting here.",
        )
    return Finding("ok", f"It makes no difference here whether idle threads spin or sleep{_or_one(passive, one)}.")


def _is_whole(timings: Timings) -> bool:
    return not any(math.isnan(seconds) for found in timings.values() for seconds in found.values())


def _gain(times: float) -> str:
    return f"{times:.1f} times as fast" if times >= 1.05 else "no faster"


def _or_one(passive: Mapping[str, float], one: Mapping[str, float]) -> str:
    """What one thread would do, where that is better."""
    alone, busy = (passive[where] / one[where] for where in ("alone", "busy"))
    if busy <= WORTH_A_WORD:
        return ""
    if alone >= 1:
        return f", or better OMP_NUM_THREADS=1, {alone:.1f} times faster alone and {busy:.1f} times beside it"
    return f"; OMP_NUM_THREADS=1 is {busy:.1f} times faster again while the machine is shared, and slower alone"


def _policy_lines(timings: Timings, load: float | None) -> list[str]:
    """A table in milliseconds, with how many times slower each is beside a busy process."""
    if not timings:
        return []
    header = f"  {'short operations':<24}{'alone':>12}{'beside one':>12}{'slower':>9}"
    rows = [
        f"  {name:<24}{1e3 * t['alone']:>9.2f} ms{1e3 * t['busy']:>9.2f} ms{t['busy'] / t['alone']:>8.1f}x"
        for name, t in timings.items()
    ]
    others = f"  other processes kept {load:.1f} cores busy, so that alone was not alone"
    return ["threads", header, *rows, *([others] if load is not None and load > 0.7 else [])]


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"python {report['python']} on {report['platform']}"]
    lines += [f"  {name} {found or 'not installed'}" for name, found in report["packages"].items()]
    lines += ["devices", *(f"  {d}" for d in report["devices"])]
    lines += ["OpenMP runtimes", *(f"  {r['file']} ({r['threads']} threads)" for r in report["openmp"])]
    lines += _policy_lines(report["thread_policies"], report["load"])
    lines += ["findings", *(f"  [{f['level']}] {f['text']}" for f in report["findings"])]
    return "\n".join(lines)
