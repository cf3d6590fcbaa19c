"""The demo experiment on a handful of questions: what each recipe trains, several processes, killed runs."""

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
from indexes.worker_processes import CLAIMS_FOLDER, WorkerProcesses
from rag.experiments.demo_experiment import DEMO_RECIPES, DemoSettings
from rag.experiments.demo_sizes import MODES, _table, run_demo
from rag.experiments.recipes import Variant
from rag.experiments.sweep_results import TrialResult, compare, sweep_pairs
from rag.experiments.sweep_runner import Sweep, default_workers
from rag.pipeline import RAG

TINY = DemoSettings(
    recipes=("no_training", "dro_selfaug"),
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
TRAINED = set(DEMO_RECIPES) - {"no_training"}
SWEEP = TINY.sweep()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """Data of a run in one process with one thread, and the trials that it ran; shared, because tests only read it."""
    threads = torch.get_num_threads()
    done: list[str] = []
    try:
        torch.set_num_threads(1)
        return Sweep(tmp_path_factory.mktemp("demo") / "whole", SWEEP, progress=False, on_trial=done.append).run(), done
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So that every sum is taken in the same order as in `whole`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config_of(name: str) -> Any:
    """How the demo experiment trains a recipe."""
    settings = replace(TINY, recipes=(name,)).sweep()
    return settings.trials()[0].config(settings)


class TestRecipes:
    def test_training_does_not_use_gold_passage_ids(self) -> None:
        for name in TRAINED:
            assert config_of(name).supervised.num_train_epochs == 0

    def test_each_recipe_trains_its_parts(self) -> None:
        trained = {
            name: (config.train_selector, config.train_generator, config.selfaug.alpha)
            for name in TRAINED
            for config in [config_of(name)]
        }
        assert trained == {
            "sft": (False, True, 0.0),
            "rag_sequence": (True, True, 0.0),  # the question's side of the retriever
            "dro_no_selector": (False, True, 0.0),
            "dro_no_generator": (True, False, 0.0),
            "dro": (True, True, 0.0),
            "dro_selfaug": (True, True, 4.0),
        }

    def test_all_see_the_same_questions_for_the_same_rounds(self) -> None:
        configs = [config_of(name) for name in TRAINED]
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
        with pytest.raises(UsageError, match=r"domain must be one of .*, got 'law'"):
            replace(TINY, domain="law")

    def test_an_unknown_recipe_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"recipes must be some of .*, got \['dpo'\]"):
            replace(TINY, recipes=("dpo",))


def result_of(name: str, right: list[float], general: list[float]) -> TrialResult:
    """A trial whose test questions and general tasks are right (1) or wrong (0)."""
    variant = Variant.of(name)
    evaluation = evaluation_of(name, {"exact_match": right})
    return TrialResult(name, name, variant.recipe.name, variant.selfaug, 1, {}, evaluation, general, 0.0, [], 1.0)


def test_differences_are_paired_and_relative_to_the_other() -> None:
    results = [
        result_of("no_training", [1, 0, 0, 0], [1, 1]),
        result_of("dro", [1, 1, 0, 0], [1, 0]),
        result_of("dro_selfaug", [1, 1, 1, 0], [1, 1]),
    ]
    found = {(c.name, c.against, c.metric): c for c in compare(sweep_pairs(results, "dro_selfaug"))}
    assert found["dro", "no_training", "exact_match"].difference == 0.25
    assert found["dro", "no_training", "exact_match"].relative == 1.0
    assert found["dro_selfaug", "dro", "general"].difference == 0.5
    assert found["dro", "no_training", "general"].relative == -0.5
    assert len(found) == 6


def test_nothing_is_relative_to_zero() -> None:
    results = [result_of("no_training", [0, 0], [1, 1]), result_of("dro_selfaug", [1, 0], [1, 1])]
    assert compare(sweep_pairs(results, "dro_selfaug"))[0].relative is None


def test_every_recipe_is_trained_evaluated_and_shown(tmp_path: Path) -> None:
    sizes = {k: v for k, v in vars(TINY).items() if k not in ("mode", "recipes", "seed")}
    result = run_demo(mode="full", output=tmp_path / "demo", seed=5, progress=False, **sizes)
    trials = {trial["name"]: trial for trial in result.data["trials"]}
    assert list(trials) == list(DEMO_RECIPES)
    keys = {"name", "exact_match", "f1", "selector_recall@1", "general", "kl_drift", "seconds", "seed"}
    assert all(keys <= trial.keys() for trial in trials.values())
    assert trials["no_training"]["kl_drift"] == pytest.approx(0.0, abs=1e-6)
    assert trials["dro_no_generator"]["kl_drift"] == pytest.approx(0.0, abs=1e-6)
    assert trials["sft"]["selector_recall@1"] == trials["no_training"]["selector_recall@1"]
    assert result.data["curves"]["sft"][-1]["eval_kl_drift"] > 0.0
    assert result.data["curves"].keys() == TRAINED
    assert [r["round"] for r in result.data["curves"]["dro"]] == [0, 1]
    assert all("eval_general" in r for r in result.data["curves"]["dro"])
    assert json.loads(json.dumps(result.data)) == json.loads(json.dumps(result.data, allow_nan=False))
    assert all(Variant.of(name).label in result.text for name in DEMO_RECIPES)
    page = (tmp_path / "demo/report.html").read_text(encoding="utf-8")
    assert all(Variant.of(name).label in page for name in DEMO_RECIPES)
    answered = result.data["samples"][0]
    again = RAG.from_pretrained(tmp_path / "demo/trials/dro/bundle").answer(answered["question"])
    assert again.text == next(a["text"] for a in answered["answers"] if a["trial"] == "dro")


def test_two_processes_give_the_results_of_one(tmp_path: Path, whole: tuple[dict[str, Any], list[str]]) -> None:
    """Each with the thread that the single one has, so that every sum is taken in the same order."""
    threads = torch.get_num_threads()
    alone, done_alone = whole
    done: list[str] = []

    def after_the_worker(name: str) -> None:
        """The trials are so small that none would be left when the worker has imported torch."""
        done.append(name)
        end = time.monotonic() + 120
        while not (tmp_path / "two" / CLAIMS_FOLDER / "no_training").is_file():
            assert time.monotonic() < end, "the worker claims nothing"
            time.sleep(0.1)

    try:
        torch.set_num_threads(2)
        shared = Sweep(tmp_path / "two", SWEEP, progress=False, on_trial=after_the_worker, workers=2).run()
    finally:
        torch.set_num_threads(threads)
    assert done_alone == ["no_training", "dro_selfaug"]
    assert done == ["dro_selfaug"]  # the longest first; the worker did the other
    assert [{**trial, "seconds": 0} for trial in shared["trials"]] == [
        {**trial, "seconds": 0} for trial in alone["trials"]
    ]
    assert shared["curves"].keys() == {"dro_selfaug"}


def test_the_trials_of_a_dead_worker_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "demo"
    code = f"""
from pathlib import Path
from indexes.worker_processes import claim
claim(Path({str(folder)!r}), "no_training")
raise SystemExit(1)
"""
    monkeypatch.setattr(Sweep, "_worker_processes", lambda sweep: WorkerProcesses(1, code, []))
    done: list[str] = []

    def after_the_worker(name: str) -> None:
        done.append(name)
        end = time.monotonic() + 120
        while not (tmp_path / "demo" / CLAIMS_FOLDER / "no_training").is_file():
            assert time.monotonic() < end, "the worker claims nothing"
            time.sleep(0.1)

    found = Sweep(tmp_path / "demo", SWEEP, progress=False, on_trial=after_the_worker, workers=2).run()
    assert done == ["dro_selfaug", "no_training"]
    assert [trial["name"] for trial in found["trials"]] == ["no_training", "dro_selfaug"]
    assert "A worker process exited with 1" in caplog.text


def test_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 16)
    monkeypatch.setattr("rag.experiments.sweep_runner.best_device", lambda: "cpu")
    assert Sweep(tmp_path, SWEEP, workers=None).workers == 2  # no more than trials
    assert Sweep(tmp_path, SWEEP).workers == 1
    assert default_workers() == 16
    monkeypatch.setattr("rag.experiments.sweep_runner.best_device", lambda: "cuda:0")
    assert default_workers() == 1
    with pytest.raises(UsageError, match="workers must be at least 1, got 0"):
        Sweep(tmp_path, SWEEP, workers=0)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_is_continued_and_ends_the_same(tmp_path: Path, whole: tuple[dict[str, Any], list[str]]) -> None:
    alone, _ = whole

    class Killed(Exception):
        pass

    def kill(name: str) -> None:
        if name == "dro_selfaug":
            raise Killed

    with pytest.raises(Killed):
        Sweep(tmp_path / "killed", SWEEP, progress=False, on_trial=kill).run()
    before = (tmp_path / "killed/trials/no_training/trial.json").stat().st_mtime_ns
    again = Sweep(tmp_path / "killed", SWEEP, progress=False).run()
    assert (tmp_path / "killed/trials/no_training/trial.json").stat().st_mtime_ns == before
    (tmp_path / "killed/trials/dro_selfaug/trial.json").unlink()  # trained, but not scored
    scored = Sweep(tmp_path / "killed", SWEEP, progress=False).run()
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
    Sweep(tmp_path, SWEEP, progress=False)
    Sweep(tmp_path, SWEEP, progress=False)
    with pytest.raises(UsageError, match="holds a run with other settings"):
        Sweep(tmp_path, replace(TINY, seed=6).sweep(), progress=False)


def test_a_metric_that_was_not_measured_is_a_dash_in_the_table() -> None:
    measured = {"exact_match": 0.25, "intervals": {"exact_match": [0.125, 0.375]}, "seconds": 90.0}
    line = next(line for line in _table([{"label": "base model", **measured}]).splitlines() if "base model" in line)
    cells = [cell.strip() for cell in re.split("[│┃]", line) if cell.strip()]
    assert cells == ["base model", "25.0 [12.5, 37.5]", "-", "-", "-", "-", "-", "-", "90"]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match=r"mode must be one of .*, got 'huge'"):
        run_demo(mode="huge")


def test_modes_differ_only_in_size() -> None:
    assert MODES["full"].recipes == DEMO_RECIPES
    assert MODES["quick"].train_questions < MODES["default"].train_questions < MODES["full"].train_questions
