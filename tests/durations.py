"""How long tests take, kept in durations.json: `pytest --write-durations` measures, and collection reads it.

Measured is processor time, that of awaited child processes included: it stays the same beside other work. A fixture
that several tests share is an entry of its own, so that it counts for all of them and not only for the first.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).with_suffix(".json")
KEPT_SECONDS = 0.2
"""What is faster has no entry: it cannot be slow, and the file stays small."""
SLOW_SECONDS = 0.2
"""With every faster test, `make check` stays under a minute on two cores."""


def read_durations(file: Path = FILE) -> dict[str, dict[str, float]]:
    """Seconds by node id under "tests", and by fixture (file::name) under "fixtures"."""
    return json.loads(file.read_text()) if file.is_file() else {"tests": {}, "fixtures": {}}


def fixture_id(fixture: pytest.FixtureDef[Any]) -> str:
    """Where a fixture is defined, and its name."""
    return f"{fixture.baseid}::{fixture.argname}"


def is_slow(test: str, shared_fixtures: list[str], durations: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether a test, or a fixture that it shares with others, was measured at `SLOW_SECONDS` or more."""
    seconds = [durations["tests"].get(test, 0.0), *(durations["fixtures"].get(f, 0.0) for f in shared_fixtures)]
    return max(seconds) >= SLOW_SECONDS


class DurationWriter:
    """A pytest plugin that measures every test and brings durations.json up to date, with xdist's workers or without.

    Entries of tests that ran are replaced, all others stay: delete the file to be rid of tests that are no more.
    """

    def __init__(self, file: Path = FILE) -> None:
        self.file = file
        self.item: pytest.Item | None = None
        self.tests: dict[str, float] = {}
        self.fixtures: dict[str, float] = {}
        self._inner: list[float] = []  # of each measurement that runs, what measurements inside it took

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        self.item = item
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[Any]:
        with self._measured("" if fixturedef.scope == "function" else fixture_id(fixturedef)):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[Any]:
        with self._measured(""):
            return (yield)

    @contextmanager
    def _measured(self, fixture: str) -> Iterator[None]:
        """Adds a time to the report of the running test, which xdist hands to the controlling process.

        What a fixture takes that is requested inside a test or another fixture counts for that fixture alone.
        """
        before = _processor_seconds()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = _processor_seconds() - before
            own = spent - self._inner.pop()
            if self._inner:
                self._inner[-1] += spent
            if self.item is not None:
                self.item.user_properties.append(("processor_seconds", (fixture, own)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":
            return
        self.tests.setdefault(report.nodeid, 0.0)
        for fixture, seconds in (value for key, value in report.user_properties if key == "processor_seconds"):
            if fixture:  # once for each worker
                self.fixtures[fixture] = max(self.fixtures.get(fixture, 0.0), seconds)
            else:
                self.tests[report.nodeid] += seconds

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(session.config, "workerinput"):
            return  # a worker of xdist: the controlling process has it all
        durations = read_durations(self.file)
        for kind, measured in (("tests", self.tests), ("fixtures", self.fixtures)):
            entries = {name: round(seconds, 2) for name, seconds in (durations[kind] | measured).items()}
            durations[kind] = {name: entries[name] for name in sorted(entries) if entries[name] >= KEPT_SECONDS}
        self.file.write_text(json.dumps(durations, indent=1, ensure_ascii=False) + "\n")


def _processor_seconds() -> float:
    return sum(os.times()[:4])
