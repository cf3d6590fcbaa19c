"""`rag doctor` and threads that wait: its advice follows what was timed, whatever that was."""

import math
import os
from collections.abc import Mapping

import pytest

from rag.cli import main
from rag.diagnostics.installation import _busy, _time_loop, advice, measure_policies, policies, render

SPUN = {"alone": 1e-3, "busy": 15e-3}
SLEPT = {"alone": 1.1e-3, "busy": 1.5e-3}
SINGLE = {"alone": 1.05e-3, "busy": 1.4e-3}


def timings(active: dict[str, float], passive: dict[str, float], one: dict[str, float]) -> dict[str, dict[str, float]]:
    return dict(zip(policies(2), (active, passive, one), strict=True))


def test_spinning_threads_are_named_when_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """15 ms against 1.5 ms beside a busy process."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    found = advice(timings(SPUN, SLEPT, SINGLE))
    assert found.level == "advice"
    assert "spinning threads are 10.0 times slower than sleeping ones" in found.text
    assert "keep OMP_WAIT_POLICY=PASSIVE" in found.text
    assert "OMP_NUM_THREADS=1" not in found.text
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert advice(timings(SPUN, SLEPT, SINGLE)).level == "ok"


def test_what_spinning_gains_alone_is_said_too() -> None:
    assert "alone they are no faster" in advice(timings({"alone": 1.1e-3, "busy": 15e-3}, SLEPT, SINGLE)).text
    assert "alone they are 1.1 times as fast" in advice(timings(SPUN, SLEPT, SINGLE)).text
    assert "alone they are 2.2 times as fast" in advice(timings({"alone": 5e-4, "busy": 15e-3}, SLEPT, SINGLE)).text


def test_one_thread_is_advised_where_it_is_faster() -> None:
    """Alone 1.1 against 0.5 ms, beside a busy process 1.5 against 0.5 ms."""
    both = advice(timings(SPUN, SLEPT, {"alone": 5e-4, "busy": 5e-4})).text
    assert "or better OMP_NUM_THREADS=1, 2.2 times faster alone and 3.0 times beside" in both
    shared = advice(timings(SPUN, SLEPT, {"alone": 2e-3, "busy": 5e-4})).text
    assert "OMP_NUM_THREADS=1 is 3.0 times faster again while the machine is shared, and slower alone" in shared


def test_spinning_is_advised_where_it_is_faster_and_costs_nothing() -> None:
    text = advice(timings({"alone": 5e-4, "busy": 1.5e-3}, SLEPT, SINGLE)).text
    assert "2.2 times faster alone" in text
    assert "OMP_WAIT_POLICY=ACTIVE is worth" in text


def test_no_difference_is_no_advice() -> None:
    found = advice(timings(SLEPT, SLEPT, SINGLE))
    assert (found.level, found.text) == ("ok", "It makes no difference here whether idle threads spin or sleep.")


def test_a_timing_that_failed_is_no_advice() -> None:
    found = advice(timings(SPUN, SLEPT, {"alone": math.nan, "busy": 1e-3}))
    assert found.level == "advice"
    assert "could not be timed" in found.text


def test_each_policy_is_timed_alone_and_beside_a_busy_process() -> None:
    seen: list[tuple[str, str, float]] = []

    def run(environment: Mapping[str, str], seconds: float) -> tuple[float, float]:
        seen.append((environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"], seconds))
        return len(seen) / 1000, len(seen) / 400

    found = measure_policies(4, seconds=0.5, run=run)
    assert seen == [("4", "ACTIVE", 0.5), ("4", "PASSIVE", 0.5), ("1", "PASSIVE", 0.5)]
    assert found["all threads, passive"] == {"alone": 0.002, "busy": 0.005}
    assert measure_policies(1, run=run) == {}
    report = {"python": "", "platform": "", "packages": {}, "devices": [], "openmp": [], "findings": []}
    text = render(report | {"thread_policies": found, "load": 0.1})
    assert "all threads, passive         2.00 ms     5.00 ms     2.5x" in text
    assert "alone was not alone" not in text
    assert "kept 3.2 cores busy" in render(report | {"thread_policies": found, "load": 3.2})


def test_a_loop_is_really_timed() -> None:
    """With the environment it was given, and NaN for a process that fails."""
    alone, busy = _time_loop({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}, 0.02)
    assert 0 < alone < 5
    assert 0 < busy < 5
    assert all(math.isnan(seconds) for seconds in _time_loop({"PYTHONHOME": "/nowhere"}, 0.02))
    with _busy() as process:
        assert process.poll() is None
    assert process.poll() is not None


def test_the_command_measures_unless_told_not_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr("rag.diagnostics.installation._time_loop", lambda environment, seconds: (0.001, 0.001))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "makes no difference here" in out
    assert "beside one" in out
    monkeypatch.setattr("rag.diagnostics.installation._time_loop", lambda environment, seconds: (math.nan, math.nan))
    assert main(["doctor", "--json"]) == 0
    out = capsys.readouterr().out
    assert "could not be timed" in out
    assert "NaN" not in out
    assert main(["doctor", "--no_measure"]) == 0
    assert "makes no difference here" not in capsys.readouterr().out
