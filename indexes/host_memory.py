"""Memory of the machine and of this process, and one way to write bytes and seconds for people."""

import os
import re
from pathlib import Path

from indexes.errors import UsageError

NARROW_KERNELS = 250 * 10**6
"""Bytes that a CPU's bfloat16 products hold, since one kernel is kept for each shape of a batch (all-MiniLM-L6-v2 in
mixed)."""
BM25_PAIR = 29
"""Bytes of memory for each pair of a passage and a word of it while a BM25 index is built (20,000 and 40,000 of the
synthetic passages of benchmarks/index_plan_accuracy.py)."""
PROCESS_BYTES = 900 * 10**6
"""Resident in a process that builds an index, besides the index and the encoder's weights: Python, its libraries, a
batch of activations, a shard of vectors, and what malloc keeps (`index_memory`, `index_plan_accuracy`)."""
SEARCH_BYTES = 32 * 2**20
"""Bytes that an exact search by blocks works in, besides its candidates: scores of a block for all queries, and the
block in bfloat16. Larger blocks were not faster."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}I": 2 ** (10 * power) for power, unit in enumerate(("K", "M", "G", "T"), start=1)}


def host_memory() -> tuple[int, int]:
    """Bytes of memory that this process may use in all, and how many of them are free."""
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


def parse_bytes(size: str | int) -> int:
    """Bytes from a number or from text such as "2GB", "512MiB" or "1.5 G".

    Raises:
        UsageError: It is neither, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", str(size).upper())
    if not found or not float(found[1]) or found[2] == "I":
        raise UsageError(f'A size must be a number of bytes or such as "2GB" or "512MiB", but got {size!r}.')
    return int(float(found[1]) * _UNITS[found[2]])


def format_bytes(size: float) -> str:
    """A number of bytes for people, in decimal units: "1.5 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def format_seconds(seconds: float) -> str:
    """A duration for people: "12.0 ms", "3.5 s", "12 min" or "2.0 h"."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def _fields(file: Path) -> dict[str, int]:
    """The `Name:  123 kB` lines of a file in bytes; nothing where there is no such file."""
    if not file.is_file():
        return {}
    lines = (line.split() for line in file.read_text().splitlines() if line.endswith(" kB"))
    return {parts[0].rstrip(":"): 1024 * int(parts[1]) for parts in lines}


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such limit, or "max"
        return None
