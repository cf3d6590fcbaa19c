"""The laboratory on a handful of questions: every recipe trains what it says, and a killed run is continued."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_records import evaluation_of

from indexes.errors import UsageError
from rag.experiments.demo_experiment import LABELS, DemoExperiment, DemoSettings, demo_pairs
from rag.experiments.demo_sizes import MODES, _table, run_demo
from rag.experiments.sweep_results import TrialResult, compare
from rag.experiments.sweep_runner import Sweep, default_workers
from rag.experiments.workers import CLAIMS_FOLDER, WorkerProcesses
from rag.pipeline import RAG

TINY = DemoSettings(
    trials=("base", "dro_selfaug"),
    seed=5,
    train_questions=3,
    eval_questions=2,
    test_questions=3,
    rounds=1,
    num_candidates=4,
    num_selected=2,
    num_permutations=2,
    general_tasks=12,
    encyclopedia_questions=2,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """What a run in one process with one thread returns, and the trials that it did: shared, because others only read."""
    threads = torch.get_num_threads()
    done: list[str] = []
    try:
        torch.set_num_threads(1)
        return DemoExperiment(
            tmp_path_factory.mktemp("lab") / "whole", TINY, progress=False, on_trial=done.append
        ).run(), done
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So that every sum is taken in the same order as in `whole`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config_of(name: str, tmp_path: Path) -> Any:
    sweep = DemoExperiment(tmp_path / "lab", replace(TINY, trials=(name,)), progress=False).sweep
    return sweep.config(sweep.trials[0])


class TestRecipes:
    def test_nobody_is_told_which_passages_are_gold(self, tmp_path: Path) -> None:
        for name in LABELS.keys() - {"base"}:
            assert config_of(name, tmp_path).supervised.num_train_epochs == 0

    def test_what_is_trained(self, tmp_path: Path) -> None:
        trained = {
            name: (config.train_selector, config.train_generator, config.selfaug.alpha)
            for name in LABELS.keys() - {"base"}
            for config in [config_of(name, tmp_path)]
        }
        assert trained == {
            "sft": (False, True, 0.0),
            "rag_sequence": (True, True, 0.0),  # the question's side of the retriever
            "dro_no_selector": (False, True, 0.0),
            "dro_no_generator": (True, False, 0.0),
            "dro": (True, True, 0.0),
            "dro_selfaug": (True, True, 4.0),
        }

    def test_all_see_the_same_questions_for_the_same_rounds(self, tmp_path: Path) -> None:
        configs = [config_of(name, tmp_path) for name in LABELS.keys() - {"base"}]
        assert (
            len(
                {
                    (c.rounds, c.supervised.num_train_epochs, c.m_step.learning_rate, c.seed, c.m_step.num_train_epochs)
                    for c in configs
                }
            )
            == 1
        )

    def test_an_unknown_domain_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"domain must be one of .*; 'law' came"):
            replace(TINY, domain="law")

    def test_an_unknown_row_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"trials must name some of .*; \['dpo'\] came"):
            replace(TINY, trials=("dpo",))


class TestCompare:
    def result(self, name: str, right: list[float], general: list[float]) -> TrialResult:
        evaluation = evaluation_of(name, {"exact_match": right})
        return TrialResult(name, name, name, False, 1, {}, evaluation, general, 0.0, [], 1.0)

    def test_differences_are_paired_and_relative_to_the_other(self) -> None:
        results = [
            self.result("base", [1, 0, 0, 0], [1, 1]),
            self.result("dro", [1, 1, 0, 0], [1, 0]),
            self.result("dro_selfaug", [1, 1, 1, 0], [1, 1]),
        ]
        found = {(c.name, c.against, c.metric): c for c in compare(demo_pairs(results))}
        assert found["dro", "base", "exact_match"].difference == 0.25
        assert found["dro", "base", "exact_match"].relative == 1.0
        assert found["dro_selfaug", "dro", "general"].difference == 0.5
        assert found["dro", "base", "general"].relative == -0.5
        assert len(found) == 5

    def test_dro_is_compared_with_every_baseline_and_every_ablation(self) -> None:
        for trials, focus_recipe in (
            (list(LABELS), "dro"),
            ([name for name in LABELS if name != "dro"], "dro_selfaug"),
        ):
            found = compare(demo_pairs([self.result(name, [1, 0], [1, 1]) for name in trials]))
            against = [c.against for c in found if c.metric == "exact_match" and c.name == focus_recipe]
            assert against == ["base", "sft", "rag_sequence", "dro_no_selector", "dro_no_generator"]

    def test_nothing_is_relative_to_zero(self) -> None:
        results = [self.result("base", [0, 0], [1, 1]), self.result("dro_selfaug", [1, 0], [1, 1])]
        assert compare(demo_pairs(results))[0].relative is None


def test_every_row_is_trained_scored_and_shown(tmp_path: Path) -> None:
    sizes = {k: v for k, v in vars(TINY).items() if k not in ("mode", "trials", "seed")}
    result = run_demo(mode="full", output=tmp_path / "lab", seed=5, progress=False, **sizes)
    trials = {trial["name"]: trial for trial in result.data["trials"]}
    assert list(trials) == list(LABELS)
    keys = {"name", "exact_match", "f1", "selector_recall@1", "general", "kl_drift", "seconds", "seed"}
    assert all(keys <= trial.keys() for trial in trials.values())
    assert trials["base"]["kl_drift"] == pytest.approx(0.0, abs=1e-6)
    assert trials["dro_no_generator"]["kl_drift"] == pytest.approx(0.0, abs=1e-6)
    assert trials["sft"]["selector_recall@1"] == trials["base"]["selector_recall@1"]
    assert result.data["curves"]["sft"][-1]["eval_kl_drift"] > 0.0
    assert result.data["curves"].keys() == LABELS.keys() - {"base"}
    assert [r["round"] for r in result.data["curves"]["dro"]] == [0, 1]
    assert all("eval_general" in r for r in result.data["curves"]["dro"])
    assert json.loads(json.dumps(result.data)) == json.loads(json.dumps(result.data, allow_nan=False))
    assert all(label in result.text for label in LABELS.values())
    page = (tmp_path / "lab/report.html").read_text(encoding="utf-8")
    assert all(label in page for label in LABELS.values())
    answered = result.data["samples"][0]
    again = RAG.from_pretrained(tmp_path / "lab/trials/dro/bundle").answer(answered["question"])
    assert again.text == next(a["text"] for a in answered["answers"] if a["trial"] == "dro")


def test_two_processes_do_what_one_does(tmp_path: Path, whole: tuple[dict[str, Any], list[str]]) -> None:
    """Each with the thread that the lone one has, so that every sum is taken in the same order."""
    threads = torch.get_num_threads()
    alone, done_alone = whole
    done: list[str] = []

    def after_the_helper(name: str) -> None:
        """The trials are so small that none would be left when the helper has imported torch."""
        done.append(name)
        end = time.monotonic() + 120
        while not (tmp_path / "two" / CLAIMS_FOLDER / "base").is_file():
            assert time.monotonic() < end, "the helper claims nothing"
            time.sleep(0.1)

    try:
        torch.set_num_threads(2)
        shared = DemoExperiment(tmp_path / "two", TINY, progress=False, on_trial=after_the_helper, workers=2).run()
    finally:
        torch.set_num_threads(threads)
    assert done_alone == ["base", "dro_selfaug"]
    assert done == ["dro_selfaug"]  # the longest first; the helper did the other
    assert [{**trial, "seconds": 0} for trial in shared["trials"]] == [
        {**trial, "seconds": 0} for trial in alone["trials"]
    ]
    assert shared["curves"].keys() == {"dro_selfaug"}


def test_what_a_dead_helper_leaves_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    claim = f"from pathlib import Path; from workers import claim; claim(Path({str(tmp_path / 'lab')!r}), 'base')"
    monkeypatch.setattr(Sweep, "_helpers", lambda sweep: WorkerProcesses(1, f"{claim}; raise SystemExit(1)", []))
    done: list[str] = []

    def after_the_helper(name: str) -> None:
        done.append(name)
        end = time.monotonic() + 120
        while not (tmp_path / "lab" / CLAIMS_FOLDER / "base").is_file():
            assert time.monotonic() < end, "the helper claims nothing"
            time.sleep(0.1)

    found = DemoExperiment(tmp_path / "lab", TINY, progress=False, on_trial=after_the_helper, workers=2).run()
    assert done == ["dro_selfaug", "base"]
    assert [trial["name"] for trial in found["trials"]] == ["base", "dro_selfaug"]
    assert "A helper exited with 1" in caplog.text


def test_workers_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 16)
    monkeypatch.setattr("rag.experiments.sweep_runner.best_device", lambda: "cpu")
    assert DemoExperiment(tmp_path, TINY, workers=None).sweep.workers == 2  # no more than trials
    assert DemoExperiment(tmp_path, TINY).sweep.workers == 1
    assert default_workers() == 16
    monkeypatch.setattr("rag.experiments.sweep_runner.best_device", lambda: "cuda:0")
    assert default_workers() == 1
    with pytest.raises(UsageError, match="workers must be at least 1; 0 came"):
        DemoExperiment(tmp_path, TINY, workers=0)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_is_continued_and_ends_the_same(tmp_path: Path, whole: tuple[dict[str, Any], list[str]]) -> None:
    alone, _ = whole

    class Killed(Exception):
        pass

    def kill(name: str) -> None:
        if name == "dro_selfaug":
            raise Killed

    with pytest.raises(Killed):
        DemoExperiment(tmp_path / "killed", TINY, progress=False, on_trial=kill).run()
    before = (tmp_path / "killed/trials/base/trial.json").stat().st_mtime_ns
    lab = DemoExperiment(tmp_path / "killed", TINY, progress=False)
    again = lab.run()
    assert (tmp_path / "killed/trials/base/trial.json").stat().st_mtime_ns == before
    (tmp_path / "killed/trials/dro_selfaug/trial.json").unlink()  # trained, but not scored
    scored = DemoExperiment(tmp_path / "killed", TINY, progress=False).run()
    for other in (again, scored):
        for one, two in zip(alone["trials"], other["trials"], strict=True):
            assert {**one, "seconds": 0} == {**two, "seconds": 0}


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(
        UsageError, match=r"new or empty folder, or one of its own to continue; .* holds something else"
    ):
        run_demo(output=tmp_path, progress=False)


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    DemoExperiment(tmp_path, TINY, progress=False)
    DemoExperiment(tmp_path, TINY, progress=False)
    with pytest.raises(UsageError, match="holds a run with other settings"):
        DemoExperiment(tmp_path, replace(TINY, seed=6), progress=False)


def test_a_metric_that_was_not_measured_is_a_dash_in_the_table() -> None:
    measured = {"exact_match": 0.25, "intervals": {"exact_match": [0.125, 0.375]}, "seconds": 90.0}
    line = next(line for line in _table([{"label": "base model", **measured}]).splitlines() if "base model" in line)
    cells = [cell.strip() for cell in re.split("[│┃]", line) if cell.strip()]
    assert cells == ["base model", "25.0 [12.5, 37.5]", "-", "-", "-", "-", "-", "-", "90"]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"mode must be one of .*; 'huge' came"):
        run_demo(mode="huge")


def test_modes_differ_only_in_size() -> None:
    assert MODES["full"].trials == tuple(LABELS)
    assert MODES["quick"].train_questions < MODES["default"].train_questions < MODES["full"].train_questions
