"""Marks follow from what a test uses, and from what it took when it was measured."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import durations
import pages
import pytest
import test_em
import test_metrics
import test_milvus_index
import test_packaging
import test_workers
from marks import kinds

from rag.cli import main
from training.trainer import DROTrainer

pytest_plugins = ("pytester",)

SCRIPT = "import multiprocessing"


def starts() -> None:
    subprocess.run(["true"], check=True)


def starts_through_a_helper() -> None:
    starts()


def starts_by_a_script() -> None:
    exec(SCRIPT)


class Holder:
    def method(self) -> None:
        starts()


def starts_in_a_class() -> None:
    Holder().method()


def starts_in_a_module() -> None:
    test_workers.test_an_error_in_the_block_kills_the_workers()


def trains_in_a_function() -> None:
    def inner() -> None:
        DROTrainer(*())

    inner()


def needs_milvus() -> None:
    import pymilvus  # noqa: F401


def trains_by_the_command() -> None:
    main(["train", "--index", "x"])


def searches_by_the_command() -> None:
    main(["search", "--index", "train of thought"])


def names_a_split() -> dict[str, str]:
    return {"split": "train"}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (starts, {"process"}),
        (starts_through_a_helper, {"process"}),
        (starts_by_a_script, {"process"}),
        (starts_in_a_class, {"process"}),
        (starts_in_a_module, {"process"}),
        (trains_in_a_function, {"training"}),
        (needs_milvus, {"milvus"}),
        (trains_by_the_command, {"training"}),
        (searches_by_the_command, set()),
        (names_a_split, set()),
    ],
)
def test_kinds_follow_from_the_code(function: Callable[..., object], expected: set[str]) -> None:
    assert kinds(function) == expected


def test_kinds_follow_from_fixtures_and_parameters() -> None:
    assert kinds(names_a_split, [starts]) == {"process"}
    assert kinds(names_a_split, [pages.find_browser]) == {"process", "browser"}
    assert kinds(searches_by_the_command, parameters=[["sweep", "--config"]]) == {"training"}
    assert kinds(names_a_split, parameters=["sweep"]) == set()


def test_kinds_of_tests_of_the_suite() -> None:
    assert kinds(test_metrics.test_em_and_f1_by_hand) == set()
    assert kinds(test_workers.test_a_job_is_claimed_once) == set()
    assert kinds(test_workers.test_every_job_is_done_once_and_threads_are_shared) == {"process"}
    assert kinds(test_packaging.test_version_ranges) == set()
    assert kinds(test_packaging.test_make_targets_name_their_command) == {"process"}
    assert kinds(test_em.test_exact_em_never_lowers_the_likelihood_and_sampling_approximates_it, [test_em.run]) == {
        "training"
    }
    assert "milvus" in kinds(test_milvus_index.test_results_are_those_of_faiss)


def test_a_test_is_slow_by_itself_or_by_a_fixture_that_it_shares() -> None:
    measured = {"tests": {"a.py::t": durations.SLOW_SECONDS, "a.py::u": 0.1}, "fixtures": {"a.py::f": 9.0}}
    assert durations.is_slow("a.py::t", [], measured)
    assert not durations.is_slow("a.py::u", ["a.py::g"], measured)
    assert durations.is_slow("a.py::u", ["a.py::g", "a.py::f"], measured)
    assert not durations.is_slow("a.py::new", [], measured)


MEASURED = """
import durations
import pytest

def work(seconds):
    durations._processor_seconds.now += seconds

@pytest.fixture(scope="module")
def shared():
    work(0.5)

@pytest.fixture
def own():
    work(0.3)

def test_fast(shared):
    pass

@pytest.mark.parametrize("way", ["code", "fixture"])
def test_slow(way, request):
    work(0.2) if way == "code" else request.getfixturevalue("own")
"""


def test_durations_of_tests_that_ran_are_replaced(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        """Processor time that the tests themselves advance, since a real one depends on the machine."""

        now = 0.0

        def __call__(self) -> float:
            return self.now

    monkeypatch.setattr(durations, "_processor_seconds", Clock())
    file = tmp_path / "durations.json"
    before = {"tests": {"test_one.py::test_fast": 3.0, "test_two.py::test_other": 4.0}, "fixtures": {}}
    file.write_text(json.dumps(before))
    pytester.makepyfile(test_one=MEASURED)
    result = pytester.inline_run("-q", "-p", "no:cacheprovider", plugins=[durations.DurationWriter(file)])
    assert result.ret == 0
    written = durations.read_durations(file)
    assert written["tests"] == {
        "test_one.py::test_slow[code]": 0.2,
        "test_one.py::test_slow[fixture]": 0.3,
        "test_two.py::test_other": 4.0,
    }
    assert written["fixtures"] == {"test_one.py::shared": 0.5}


def test_a_report_with_broken_text_can_be_sent_by_a_worker(request: pytest.FixtureRequest) -> None:
    report = pytest.TestReport(
        "a.py::t", ("a.py", 1, "t"), {}, "failed", "not \udc80", "call", sections=[("stdout", "\ud800")]
    )
    data = request.config.hook.pytest_report_to_serializable(config=request.config, report=report)
    assert data["longrepr"] == "not \\udc80"
    assert data["sections"] == [("stdout", "\\ud800")]
    assert data["nodeid"] == "a.py::t"
