"""Several processes share out jobs: each is done once, failures are seen, and nobody outlives whoever started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rag.workers import Helpers, claim

DO_JOBS = """
import os, sys
from pathlib import Path
from rag.workers import claim
folder = Path(sys.argv[1])
for job in "abcdefgh":
    if claim(folder, job):
        with (folder / "done").open("a") as file:
            file.write(f"{job} {os.environ['OMP_NUM_THREADS']} {os.environ['TQDM_POSITION']}\\n")
"""


def test_a_job_is_claimed_once(tmp_path: Path) -> None:
    assert [claim(tmp_path, job) for job in ("one", "two", "one")] == [True, True, False]


def test_every_job_is_done_once_and_threads_are_shared(tmp_path: Path) -> None:
    claim(tmp_path, "c")  # of a run that was killed
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        with Helpers(tmp_path, 2, DO_JOBS, [str(tmp_path)]):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)
    lines = [line.split() for line in (tmp_path / "done").read_text().splitlines()]
    assert sorted(job for job, _, _ in lines) == list("abcdefgh")
    assert {threads for _, threads, _ in lines} == {"2"}
    assert {position for _, _, position in lines} <= {"1", "2"}


def test_a_failing_helper_is_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"exit codes are \[3, 0\].*run the same command again"),
        Helpers(tmp_path, 2, "import os, sys; sys.exit(3 * (os.environ['TQDM_POSITION'] == '1'))", []),
    ):
        pass


def test_helpers_end_with_an_error_of_ours(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(KeyError), Helpers(tmp_path, 1, "import time; time.sleep(60)", []):
        raise KeyError
    assert time.monotonic() - started < 30


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX")
def test_helpers_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    helper = (
        "import os, sys, time; from pathlib import Path; from rag.workers import leave_with_parent; "
        "leave_with_parent(); Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
    )
    parent = f"""
import time
from pathlib import Path
from rag.workers import Helpers
with Helpers(Path({str(tmp_path)!r}), 1, {helper!r}, [{str(tmp_path / "pid")!r}]):
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
    raise AssertionError("It did not happen in time.")


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.is_file() and state.read_text().split(")")[1].split()[0] == "Z")
