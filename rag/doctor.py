"""What this installation is made of, and what would go wrong with it: `rag doctor`."""

import os
import platform
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


def diagnose() -> dict[str, Any]:
    """Versions, devices, OpenMP runtimes, and findings with what to do about each."""
    import torch  # first: torch and faiss bring an OpenMP runtime each, and the first one in is shared

    import indexes.faiss_index  # noqa: F401  (loads faiss after torch)

    devices = _devices(torch)
    runtimes = _openmp_runtimes()
    findings = [_wait_policy(), _runtimes(runtimes), _threads(torch), _precision(torch)]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": devices,
        "openmp": runtimes,
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


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"python {report['python']} on {report['platform']}"]
    lines += [f"  {name} {found or 'not installed'}" for name, found in report["packages"].items()]
    lines += ["devices", *(f"  {d}" for d in report["devices"])]
    lines += ["OpenMP runtimes", *(f"  {r['file']} ({r['threads']} threads)" for r in report["openmp"])]
    lines += ["findings", *(f"  [{f['level']}] {f['text']}" for f in report["findings"])]
    return "\n".join(lines)
