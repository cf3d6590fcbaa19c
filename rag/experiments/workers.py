"""Several processes that share out a list of jobs: each job is claimed in a folder, and the first to ask does it."""

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

CLAIMS_FOLDER = "claims"


def claim(folder: Path, job: str) -> bool:
    """Whether a job is ours to do: only the first process to ask gets it."""
    file = folder / CLAIMS_FOLDER / job
    file.parent.mkdir(exist_ok=True)
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def forget_claims(folder: Path) -> None:
    """All jobs can be claimed again."""
    shutil.rmtree(folder / CLAIMS_FOLDER, ignore_errors=True)


class Helpers:
    """Further processes that do jobs while the block runs; its end waits for them, an error in the block ends them.

    A helper that fails is logged and no more than that: whoever started it does what is left.

    Args:
        count: How many. With this process they share the threads that torch has here.
        code: What each runs (Python). It begins with `leave_with_parent`.
        arguments: Its `sys.argv[1:]`.
    """

    def __init__(self, count: int, code: str, arguments: Sequence[str]) -> None:
        self.count = count
        # Modules come from where ours came from; of itself `-c` would look into the working directory first.
        self.command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}", *arguments]
        self.threads = torch.get_num_threads()
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> None:
        share = max(1, self.threads // (self.count + 1))
        torch.set_num_threads(share)
        for position in range(1, self.count + 1):
            # Progress bars of tqdm stand below ours, and those of loading weights are left out.
            environment = {"OMP_NUM_THREADS": str(share), "TQDM_POSITION": str(position)}
            environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C is for us, and we end them
            )
            self.processes.append(process)

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        torch.set_num_threads(self.threads)
        if kind is not None:
            for process in self.processes:
                process.kill()
        for process in self.processes:
            code = process.wait()
            if process.stdin is not None:
                process.stdin.close()
            if kind is None and code:
                how = (
                    f"was ended by signal {-code} (9: perhaps for want of memory)"
                    if code < 0
                    else f"exited with {code}"
                )
                logger.warning("A helper %s; what it left undone is done without it.", how)


def leave_with_parent() -> None:
    """End this helper as soon as the process that started it is gone, however it went."""

    def wait() -> None:
        # The pipe itself, and not the reader around it: that one holds a lock which the end of Python would wait for.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
