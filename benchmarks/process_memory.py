"""Peak memory of one run in this process, from what Linux says of it. Imports nothing of the library.

Of a forked process the pages of mapped files (the code of libraries) are mapped again as they are touched; they are
touched before the run, so that only what it allocates is counted.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

MEGABYTE = 2**20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
MADV_POPULATE_READ = 22


def status_bytes(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def allocated_bytes() -> int:
    """Anonymous memory, and the pages of weights that are used in their file."""
    trim()
    found, in_weights = status_bytes("RssAnon"), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            in_weights = line.endswith(".safetensors")
        elif in_weights and first in ("Rss:", "Anonymous:"):  # the latter are among the anonymous ones
            found += (1 if first == "Rss:" else -1) * int(line.split()[1]) * 1024
    return found


def trim() -> None:
    """Give back what malloc keeps of freed memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def peak_bytes(run: Callable[[], object]) -> int:
    """What a run takes at its peak, beyond what is there before it; for a process that does nothing afterwards."""
    # Tensors come from the system and go back to it, so that what counts is what is alive and not what malloc keeps.
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 1 << 16)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    trim()
    _touch_mapped_files()
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    run()
    return status_bytes("VmHWM") - before


def _touch_mapped_files() -> None:
    """Kernels before 5.14 do not know this request, and refuse it."""
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, _, *path = line.split(maxsplit=5)
        if permissions.startswith("r") and path and path[0].startswith("/"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_POPULATE_READ)
