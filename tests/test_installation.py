"""`rag doctor`: its advice on threads follows from the measured times."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import astuple

import pytest

from rag.cli import main
from rag.diagnostics.installation import (
    InstallationReport,
    LoopTimes,
    _busy_process,
    _time_loop,
    measure_policies,
    thread_advice,
    thread_policies,
)

SPINNING = LoopTimes(idle=1e-3, busy=15e-3)
SLEEPING = LoopTimes(idle=1.1e-3, busy=1.5e-3)
SINGLE = LoopTimes(idle=1.05e-3, busy=1.4e-3)


def timings(active: LoopTimes, passive: LoopTimes, one: LoopTimes) -> dict[str, LoopTimes]:
    return dict(zip(thread_policies(2), (active, passive, one), strict=True))


def report(policies: dict[str, LoopTimes], load: float) -> InstallationReport:
    return InstallationReport(
        python="3.11",
        platform="Linux",
        packages={},
        devices=(),
        openmp=(),
        thread_policies=policies,
        models=(),
        model_cache="",
        load=load,
        findings=(),
    )


def test_advice_against_spinning_threads_that_are_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """15 ms against 1.5 ms with a busy process."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    found = thread_advice(timings(SPINNING, SLEEPING, SINGLE))
    assert found.level == "advice"
    assert "spinning threads are 10.0 times slower than sleeping ones" in found.text
    assert "keep OMP_WAIT_POLICY=PASSIVE" in found.text
    assert "OMP_NUM_THREADS=1" not in found.text
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert thread_advice(timings(SPINNING, SLEEPING, SINGLE)).level == "ok"


def test_advice_tells_what_spinning_gains_without_a_busy_process() -> None:
    assert "without one they are no faster" in thread_advice(timings(LoopTimes(1.1e-3, 15e-3), SLEEPING, SINGLE)).text
    assert "without one they are 1.1 times as fast" in thread_advice(timings(SPINNING, SLEEPING, SINGLE)).text
    assert (
        "without one they are 2.2 times as fast"
        in thread_advice(timings(LoopTimes(5e-4, 15e-3), SLEEPING, SINGLE)).text
    )


def test_one_thread_is_advised_where_it_is_faster() -> None:
    """Without a busy process 1.1 against 0.5 ms, with one 1.5 against 0.5 ms."""
    both = thread_advice(timings(SPINNING, SLEEPING, LoopTimes(5e-4, 5e-4))).text
    assert "or better OMP_NUM_THREADS=1: 3.0 times faster with a busy process, 2.2 without" in both
    shared = thread_advice(timings(SPINNING, SLEEPING, LoopTimes(2e-3, 5e-4))).text
    assert "OMP_NUM_THREADS=1 is 3.0 times faster still with a busy process, and slower without" in shared


def test_spinning_is_advised_where_it_is_faster_and_costs_nothing() -> None:
    text = thread_advice(timings(LoopTimes(5e-4, 1.5e-3), SLEEPING, SINGLE)).text
    assert "spinning threads are 2.2 times faster" in text
    assert "setting OMP_WAIT_POLICY=ACTIVE is worthwhile" in text


def test_no_advice_where_policies_do_not_differ() -> None:
    found = thread_advice(timings(SLEEPING, SLEEPING, SINGLE))
    assert (found.level, found.text) == ("ok", "It makes no difference here whether idle threads spin or sleep.")


def test_advice_where_timing_failed() -> None:
    found = thread_advice(timings(SPINNING, SLEEPING, LoopTimes(math.nan, 1e-3)))
    assert found.level == "advice"
    assert "could not be timed" in found.text


def test_each_policy_is_timed() -> None:
    seen: list[tuple[str, str, float]] = []

    def run(environment: Mapping[str, str], seconds: float) -> LoopTimes:
        seen.append((environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"], seconds))
        return LoopTimes(len(seen) / 1000, len(seen) / 400)

    found = measure_policies(4, seconds=0.5, run=run)
    assert seen == [("4", "ACTIVE", 0.5), ("4", "PASSIVE", 0.5), ("1", "PASSIVE", 0.5)]
    assert found["all threads, passive"] == LoopTimes(0.002, 0.005)
    assert measure_policies(1, run=run) == {}
    text = report(found, load=0.1).text()
    assert re.search(r"all threads, passive +2\.00 ms +5\.00 ms +2\.5x\n", text)
    assert "cores busy" not in text
    assert "kept 3.2 cores busy" in report(found, load=3.2).text()


def test_the_loop_is_timed_in_its_own_process() -> None:
    """With the environment it was given, and NaN for a process that fails."""
    times = _time_loop({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}, 0.02)
    assert 0 < times.idle < 5
    assert 0 < times.busy < 5
    assert all(math.isnan(seconds) for seconds in astuple(_time_loop({"PYTHONHOME": "/nowhere"}, 0.02)))
    with _busy_process() as process:
        assert process.poll() is None
    assert process.poll() is not None


def test_command_with_and_without_measuring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr("rag.diagnostics.installation._time_loop", lambda environment, seconds: LoopTimes(0.001, 0.001))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "makes no difference here" in out
    assert "one busy process" in out
    monkeypatch.setattr(
        "rag.diagnostics.installation._time_loop", lambda environment, seconds: LoopTimes(math.nan, math.nan)
    )
    assert main(["doctor", "--json"]) == 0
    out = capsys.readouterr().out
    assert "could not be timed" in out
    assert "NaN" not in out
    assert main(["doctor", "--no_measure"]) == 0
    assert "makes no difference here" not in capsys.readouterr().out
