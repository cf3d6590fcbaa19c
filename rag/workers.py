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


class Helpers:
    """Further processes that do jobs of `folder` while the block runs; its end waits for them.

    Args:
        folder: Where jobs are claimed; claims of an earlier run are forgotten.
        count: How many. With this process they share the threads that torch has here.
        code: What each runs (Python). It begins with `leave_with_parent`.
        arguments: Its `sys.argv[1:]`.

    Raises:
        RuntimeError: One of them failed.
    """

    def __init__(self, folder: Path, count: int, code: str, arguments: Sequence[str]) -> None:
        self.folder, self.count = folder, count
        self.command = [sys.executable, "-c", code, *arguments]
        self.threads = torch.get_num_threads()
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> None:
        shutil.rmtree(self.folder / CLAIMS_FOLDER, ignore_errors=True)
        share = max(1, self.threads // (self.count + 1))
        torch.set_num_threads(share)
        for position in range(1, self.count + 1):
            # Progress bars of tqdm stand below ours.
            environment = {**os.environ, "OMP_NUM_THREADS": str(share), "TQDM_POSITION": str(position)}
            self.processes.append(subprocess.Popen(self.command, stdin=subprocess.PIPE, env=environment))

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        torch.set_num_threads(self.threads)
        if kind is not None:
            for process in self.processes:
                process.kill()
        codes = [process.wait() for process in self.processes]
        for process in self.processes:
            if process.stdin is not None:
                process.stdin.close()
        if kind is None and any(codes):
            raise RuntimeError(
                f"Every helper must end well; their exit codes are {codes}, and what they wrote stands above. What is "
                "finished is kept: run the same command again."
            )


def leave_with_parent() -> None:
    """End this helper as soon as the process that started it is gone, however it went."""

    def wait() -> None:
        # The pipe itself, and not the reader around it: that one holds a lock which the end of Python would wait for.
        while os.read(0, 1):
            pass
        logging.getLogger(__name__).warning("Whoever started this helper is gone; it stops.")
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
