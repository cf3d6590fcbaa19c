"""Several processes share jobs: each job runs once, failures are logged, and no worker outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from indexes.worker_processes import WorkerProcesses, claim, clear_claims

DO_JOBS = """
import os, sys
from pathlib import Path
from indexes.worker_processes import claim
folder = Path(sys.argv[1])
for job in "abcdefgh":
    if claim(folder, job):
        with (folder / "done").open("a") as file:
            file.write(f"{job} {os.environ['OMP_NUM_THREADS']} {os.environ['TQDM_POSITION']}\\n")
"""


def test_a_job_is_claimed_once(tmp_path: Path) -> None:
    assert [claim(tmp_path, job) for job in ("one", "two", "one")] == [True, True, False]
    clear_claims(tmp_path)
    assert claim(tmp_path, "one")


def test_every_job_is_done_once_and_threads_are_shared(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        with WorkerProcesses(2, DO_JOBS, [str(tmp_path)]):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)
    lines = [line.split() for line in (tmp_path / "done").read_text().splitlines()]
    assert sorted(job for job, _, _ in lines) == list("abcdefgh")
    assert {threads for _, threads, _ in lines} == {"2"}
    assert {position for _, _, position in lines} <= {"1", "2"}


def test_a_failing_worker_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with WorkerProcesses(
        3,
        "import os; p = os.environ['TQDM_POSITION']; os.kill(os.getpid(), 9) if p == '3' else os._exit(int(p) - 1)",
        [],
    ):
        pass
    assert [r.getMessage() for r in caplog.records] == [
        "A worker process exited with 1; this process runs the jobs that it left.",
        "A worker process was ended by signal 9 (9: perhaps out of memory); this process runs the jobs that it left.",
    ]


def test_a_worker_imports_from_the_paths_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not modules of the same name in the working directory."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    for name in ("json", "rag", "random"):
        (tmp_path / "here" / f"{name}.py").write_text("raise RuntimeError('imported from the working directory')")
    (tmp_path / "there" / "mine.py").write_text("from pathlib import Path; Path('found').touch()")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "there"))
    with WorkerProcesses(1, "import json, random, indexes.worker_processes, mine", []):
        pass
    assert (tmp_path / "here" / "found").is_file()


def test_an_error_in_the_block_kills_the_workers() -> None:
    started = time.monotonic()
    with pytest.raises(KeyError), WorkerProcesses(1, "import time; time.sleep(60)", []):
        raise KeyError
    assert time.monotonic() - started < 30


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_workers_exit_when_their_parent_is_killed(tmp_path: Path) -> None:
    helper = (
        "import os, sys, time; from pathlib import Path; from indexes.worker_processes import exit_with_parent; "
        "exit_with_parent(); Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
    )
    parent = f"""
import time
from indexes.worker_processes import WorkerProcesses
with WorkerProcesses(1, {helper!r}, [{str(tmp_path / "pid")!r}]):
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", parent])
    pid = int(_wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _wait_for(lambda: not _runs(pid))


def _wait_for(found: object, seconds: float = 50.0) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():  # type: ignore[operator]
            return str(value)
        time.sleep(0.05)
    raise AssertionError("The condition was not met in time.")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.is_file() and state.read_text().split(")")[1].split()[0] == "Z")
