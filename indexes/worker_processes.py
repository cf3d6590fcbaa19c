"""Several processes that share a list of jobs: the first process to claim a job, by creating its file, runs it."""

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
    """Whether this process got the job: only the first process that asks gets it."""
    file = folder / CLAIMS_FOLDER / job
    file.parent.mkdir(exist_ok=True)
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def clear_claims(folder: Path) -> None:
    """Remove all claims, so that every job can be claimed again."""
    shutil.rmtree(folder / CLAIMS_FOLDER, ignore_errors=True)


class WorkerProcesses:
    """Further processes that run jobs during a `with` block; its end waits for them, an error in it kills them.

    A worker that fails is logged at the end of the block; the process that started it runs the jobs that are left. A
    block that calls `failure` can treat it as an error instead.

    Args:
        count: Number of processes. They and this process share the threads that torch has here.
        code: Python code that each runs; it should first call `exit_with_parent`.
        arguments: Its `sys.argv[1:]`.
    """

    def __init__(self, count: int, code: str, arguments: Sequence[str]) -> None:
        self.count = count
        # Modules come from where this process got them; by default `-c` would look into the working directory first.
        self.command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}", *arguments]
        self.threads = torch.get_num_threads()
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "WorkerProcesses":
        share = max(1, self.threads // (self.count + 1))
        torch.set_num_threads(share)
        for position in range(1, self.count + 1):
            # Progress bars of tqdm are drawn below those of this process, and those of loading weights are left out.
            environment = {"OMP_NUM_THREADS": str(share), "TQDM_POSITION": str(position)}
            # Tokenizers have threads of their own (RAYON_NUM_THREADS).
            environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "RAYON_NUM_THREADS": str(share)}
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C reaches this process only, which ends the workers
            )
            self.processes.append(process)
        return self

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
                logger.warning("A worker process %s; this process runs the jobs that it left.", _how(code))

    def stop(self) -> None:
        """Kill all workers: there is nothing left to do."""
        for process in self.processes:
            process.kill()
            process.communicate()
        self.processes.clear()

    def are_running(self) -> bool:
        """Whether a worker has not ended yet."""
        return any(process.poll() is None for process in self.processes)

    def failure(self) -> str:
        """How the first worker failed that has ended in an error: "exited with 1"; empty if none has."""
        return next((_how(code) for process in self.processes if (code := process.poll())), "")


def _how(code: int) -> str:
    return f"was ended by signal {-code} (9: perhaps out of memory)" if code < 0 else f"exited with {code}"


def exit_with_parent() -> None:
    """Exit this worker process as soon as the process that started it has ended, for whatever reason."""

    def wait() -> None:
        # Reads the pipe and not sys.stdin, whose lock would block the shutdown of Python.
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
