"""Sweeps on a handful of questions: each trial in its folder; killed, failed and continued ones; one comparison."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from evaluation_records import evaluation_of
from tiny_models import EXAMPLES_FOR_WORKERS

from generator.configs import AdapterConfig, ChatConfig, DecodingConfig
from indexes.atomic_files import exclusive_writer_lock
from indexes.directory.passage_index import PassageIndex
from indexes.errors import DataError, RAGError, UsageError
from rag.cli import main
from rag.evaluation.evaluation_file import read_evaluation
from rag.experiments.recipes import BUILTIN_RECIPES, RECIPES
from rag.experiments.sweep_file import SweepFile
from rag.experiments.sweep_options import WorldSettings
from rag.experiments.sweep_results import (
    TrialResult,
    TrialScores,
    cells,
    compare,
    extremes,
    retriever_recall,
    sweep_pairs,
)
from rag.experiments.sweep_runner import Sweep
from rag.experiments.sweep_settings import SweepSettings
from rag.experiments.trial_store import SETTINGS_FILE, TrialStore
from rag.pipeline import RAG
from retriever.selector_config import SelectorConfig
from training import DROTrainer, QAExample

DATASETS = ("train_dataset", "eval_dataset", "test_dataset")


@pytest.fixture
def settings(base: Path, index: PassageIndex, tmp_path: Path) -> SweepSettings:
    """Three trials over the toy passages and a tiny model."""
    trials = [{"question": e.question, "golden_answers": e.golden_answers, "gold_ids": e.gold_ids} for e in EXAMPLES]
    for split, chosen in (("train", trials[:2]), ("eval", trials[:1]), ("test", trials)):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in chosen))
    return SweepSettings(
        recipes=("no_training", "rag_token", "dro"),
        index=str(index.path),
        **{f"{split}_dataset": str(tmp_path / f"{split}.jsonl") for split in ("train", "eval", "test")},
        base=str(base),
        device="cpu",
        selector=SelectorConfig(num_candidates=4, num_selected=2),
        documents=2,
        decoding=DecodingConfig(max_new_tokens=3),
        adapter=AdapterConfig(r=2, lora_alpha=4),
        training={
            "rounds": 1,
            "e_step.num_permutations": 2,
            "e_step.proposals_per_sample": 1,
            "m_step.learning_rate": 1e-3,
        },
        general_tasks=0,
        answerable_only=False,
    )


EXAMPLES = [
    *EXAMPLES_FOR_WORKERS,
    QAExample("q3", "which river flows into the Black Sea?", ("the Danube",), ("p10",)),
]


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that is a result, by path."""
    names = ("sweep.json", "trials/*/evaluation.json", "trials/*/forgetting.json", "questions/*.jsonl")
    return {str(f.relative_to(folder)): f.read_bytes() for name in names for f in sorted(folder.glob(name))}


def test_trials_are_trained_scored_and_compared(settings: SweepSettings, tmp_path: Path) -> None:
    data = Sweep(tmp_path / "sweep", settings, progress=False).run()
    assert [trial["name"] for trial in data["trials"]] == ["no_training", "rag_token", "dro"]
    assert data["failed"] == []
    written = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert (written["kind"], written["format_version"]) == ("sweep", 1)
    assert SweepFile.from_dict(written).to_dict() == written
    without_samples = {key: value for key, value in written.items() if key != "samples"}
    with pytest.raises(DataError, match=r"must have the keys \['samples'\]"):
        SweepFile.from_dict(without_samples)
    assert "seconds" not in written["trials"][0] and data["trials"][0]["seconds"] > 0
    assert set(written["curves"]) == {"rag_token", "dro"}
    assert [record["round"] for record in data["curves"]["dro"]] == [0, 1]
    against = [(c["name"], c["against"]) for c in written["comparisons"] if c["metric"] == "exact_match"]
    assert against == [("dro", "no_training"), ("dro", "rag_token"), ("rag_token", "no_training")]
    evaluation = read_evaluation(tmp_path / "sweep/trials/rag_token/evaluation.json")
    assert evaluation.pipeline.answer_mode == "rag_token"
    assert evaluation.pipeline.selector["num_candidates"] == 2
    assert written["evaluations"]["rag_token"] == {k: v for k, v in evaluation.to_dict().items() if k != "records"}
    assert {q["list"] for q in written["questions"]} == {"best", "worst"}
    assert [a["trial"] for a in written["questions"][0]["answers"]] == ["no_training", "rag_token", "dro"]
    assert (tmp_path / "sweep/report.html").is_file()
    bundle = RAG.from_pretrained(tmp_path / "sweep/trials/rag_token/bundle", device="cpu")
    assert bundle.answer(EXAMPLES[0].question).text == evaluation.records[0].prediction


def test_a_sweep_is_reproducible_to_the_byte_also_after_a_kill(
    settings: SweepSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Sweep(tmp_path / "whole", settings, progress=False).run()

    class Killed(BaseException):
        pass

    def kill(trainer: DROTrainer, posteriors: Any, round: int) -> dict[str, float]:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(DROTrainer, "_maximize", kill)
        Sweep(tmp_path / "killed", settings, progress=False).run()
    assert (tmp_path / "killed/trials/no_training/trial.json").is_file()
    assert not (tmp_path / "killed/trials/rag_token/trial.json").exists()
    before = (tmp_path / "killed/trials/no_training/trial.json").stat().st_mtime_ns
    started: list[str] = []
    Sweep(tmp_path / "killed", settings, progress=False, on_trial=started.append).run()
    assert started == ["rag_token", "dro"]
    assert (tmp_path / "killed/trials/no_training/trial.json").stat().st_mtime_ns == before
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "killed")


def test_other_trials_run_after_a_failed_one_which_is_tried_again(
    settings: SweepSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, recipes=("no_training", "sft"))

    def fail(trainer: DROTrainer, resume_from_checkpoint: bool = False) -> None:
        raise ValueError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(DROTrainer, "train", fail)
        data = Sweep(tmp_path / "sweep", settings, progress=False).run()
    assert [trial["name"] for trial in data["trials"]] == ["no_training"]
    assert data["failed"] == [{"name": "sft", "label": "supervised LoRA on top K", "error": "ValueError: no memory"}]
    assert "in fail" in json.loads((tmp_path / "sweep/trials/sft/failed.json").read_text())["traceback"]
    again = Sweep(tmp_path / "sweep", settings, progress=False).run()
    assert [trial["name"] for trial in again["trials"]] == ["no_training", "sft"]
    assert again["failed"] == []


def test_a_trial_of_another_seed_or_cell_is_refused(settings: SweepSettings, tmp_path: Path) -> None:
    settings = replace(settings, recipes=("sft",), seeds=(1,), grid={"m_step.learning_rate": [1e-3]})
    Sweep(tmp_path / "sweep", settings, progress=False).run()
    for change, name in (
        ({"seeds": (2,)}, "seed"),
        ({"grid": {"m_step.learning_rate": [2e-3]}}, "m_step.learning_rate"),
    ):
        with pytest.raises(
            UsageError, match=rf"trials/sft was trained with {{'{name}': .*}}, but now the sweep sets {{'{name}': "
        ):
            Sweep(tmp_path / "sweep", replace(settings, **change))
    with pytest.raises(UsageError, match="'rounds': 1"):
        Sweep(tmp_path / "sweep", replace(settings, grid={"rounds": [2]}))
    done = tmp_path / "sweep/trials/sft/trial.json"
    done.write_text(json.dumps({k: v for k, v in json.loads(done.read_text()).items() if k != "training"}))
    with pytest.raises(UsageError, match="'seed': 1"):  # the trainer wrote it too
        Sweep(tmp_path / "sweep", replace(settings, seeds=(2,)))
    assert Sweep(tmp_path / "sweep", settings, progress=False).run()["trials"][0]["seed"] == 1
    (tmp_path / "sweep/trials/sft/run/run.json").write_text("{")  # cut off: no evidence
    Sweep(tmp_path / "sweep", replace(settings, seeds=(2,)))


def test_one_process_at_a_time_opens_a_sweep(settings: SweepSettings, tmp_path: Path) -> None:
    with exclusive_writer_lock(tmp_path / "sweep"), pytest.raises(UsageError, match="another one is writing it"):
        Sweep(tmp_path / "sweep", settings, progress=False).run()
    assert not (tmp_path / "sweep/questions").exists()


def test_a_sweep_whose_trials_all_fail_is_an_error(
    settings: SweepSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(trainer: DROTrainer, resume_from_checkpoint: bool = False) -> None:
        raise ValueError("no memory")

    monkeypatch.setattr(DROTrainer, "train", fail)
    with pytest.raises(RAGError, match="Every trial of the sweep failed; the first: ValueError: no memory"):
        Sweep(tmp_path / "sweep", replace(settings, recipes=("sft",)), progress=False).run()


def test_the_command_runs_a_sweep_from_a_config_file(
    settings: SweepSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text(
        json.dumps(
            {
                **{name: getattr(settings, name) for name in ("index", *DATASETS, "base", "device")},
                **settings.training,
                "recipes": ["no_training", "sft"],
                "selector": {"num_candidates": 4, "num_selected": 2},
                "decoding": {"max_new_tokens": 3},
                "general_tasks": 0,
                "answerable_only": False,
                "workers": 1,
            }
        )
    )

    def fail(trainer: DROTrainer, resume_from_checkpoint: bool = False) -> None:
        raise ValueError("no memory")

    command = ["sweep", "--config", str(tmp_path / "sweep.yaml"), "--output_dir", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(DROTrainer, "train", fail)
        assert main(command) == 1
    assert "FAILED sft: ValueError: no memory" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [trial["name"] for trial in data["trials"]] == ["no_training", "sft"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "sft - no_training" in text and "report:" in text


class TestSettings:
    def test_a_trial_for_each_recipe_seed_and_cell(self, settings: SweepSettings) -> None:
        grid = {"m_step.learning_rate": [0.1, 0.2], "rounds": [1]}
        some = replace(settings, recipes=("no_training", "dro"), with_selfaug=True, seeds=(1, 2), grid=grid)
        names = [trial.name for trial in some.trials()]
        assert names == [
            "no_training",
            *(
                f"{recipe}-seed={seed}-m_step.learning_rate={rate}"
                for seed in (1, 2)
                for rate in (0.1, 0.2)
                for recipe in ("dro", "dro_selfaug")
            ),
        ]

    def test_a_recipe_that_is_named_twice_has_one_trial(self, settings: SweepSettings) -> None:
        some = replace(settings, recipes=("no_training", "no_training", "dro_selfaug", "dro"), with_selfaug=True)
        assert [trial.name for trial in some.trials()] == ["no_training", "dro_selfaug", "dro"]

    def test_settings_are_equal_after_writing_and_reading(self, settings: SweepSettings) -> None:
        some = replace(settings, seeds=(1, 2), grid={"rounds": [1, 2]})
        assert SweepSettings.from_json(json.loads(json.dumps(some.to_json()))) == some

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"recipes": ("dpo",)}, r"The recipe must be one of .*, got 'dpo'"),
            ({"recipes": ("replug_selfaug",)}, "the generator of 'replug' stays the base model"),
            ({"recipes": ()}, "needs at least one of its recipes, got none"),
            ({"index": None}, "either a world, or an index with train_dataset, eval_dataset and test_dataset"),
            (
                {"world": WorldSettings()},
                "either a world, or an index with train_dataset, eval_dataset and test_dataset",
            ),
            (
                {"training": {"learning_rates": 1}},
                "no training setting. Did you mean 'm_step.learning_rate'",
            ),
            ({"grid": {"seed": [1]}}, r"grid must name settings that every trial may share; got \['seed'\]"),
            ({"grid": {"rounds": []}}, r"needs values to try; \['rounds'\] has none"),
            ({"grid": {"rounds": [1, 0]}}, "rounds must be at least 1; got 0"),
            ({"with_selfaug": True, "training": {"selfaug.alpha": 0.0}}, "needs selfaug.alpha above 0"),
            (
                {"focus_recipe": "dro_selfaug"},
                r"focus_recipe must be one of the recipes of the sweep, \['no_training', 'rag_token', 'dro'\]",
            ),
            ({"documents": 0}, "documents must be at least 1, got 0"),
        ],
    )
    def test_invalid_settings_are_refused(self, settings: SweepSettings, change: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            replace(settings, **change)

    def test_an_unknown_domain_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"domain must be one of .*, got 'law'"):
            WorldSettings(domain="law")

    def test_a_folder_of_something_else_is_refused(self, settings: SweepSettings, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/mine.txt").write_text("mine")
        with pytest.raises(UsageError, match="holds something else"):
            Sweep(tmp_path / "mine", settings)
        Sweep(tmp_path / "sweep", settings)
        Sweep(tmp_path / "sweep", replace(settings, seeds=(1, 2)))  # more trials of the same sweep
        assert json.loads((tmp_path / "sweep" / SETTINGS_FILE).read_text())["seeds"] == [1, 2]
        with pytest.raises(UsageError, match=r"other settings, namely other values of \['documents'\]"):
            Sweep(tmp_path / "sweep", replace(settings, documents=3))


def result(name: str, right: list[float]) -> TrialResult:
    """A trial whose only questions are right or wrong."""
    selfaug = name.endswith("_selfaug")
    return TrialResult(
        name=name,
        label=name,
        recipe=name.removesuffix("_selfaug"),
        selfaug=selfaug,
        seed=1,
        changes={},
        evaluation=evaluation_of(name, {"exact_match": right, "f1": right}),
        general=[1.0, 0.0],
        kl_drift=0.0,
        curve=[],
        seconds=1.0,
    )


def test_scores_are_equal_after_writing_and_reading() -> None:
    scores = replace(result("dro_selfaug", [1.0, 0.0]), changes={"rounds": 2}).scores()
    assert (scores.recipe, scores.selfaug, scores.metrics["exact_match"]) == ("dro", True, 0.5)
    data = json.loads(json.dumps(scores.to_dict()))
    assert data["general"] == 0.5 and data["kl_drift"] == 0.0
    assert TrialScores.from_dict({**data, "seconds": 3.0}) == scores
    unmeasured = replace(scores, kl_drift=None)
    assert "kl_drift" not in unmeasured.to_dict()
    assert TrialScores.from_dict(unmeasured.to_dict()) == unmeasured


def test_a_trial_store_reads_what_it_wrote(settings: SweepSettings, tmp_path: Path) -> None:
    store, (trial, *others) = TrialStore(tmp_path / "store"), settings.trials()
    store.open(settings, [trial, *others])
    assert store.settings() == settings
    assert store.failure(trial).error == "no process ran it"
    store.save_failure(trial, ValueError("no memory"), "a traceback")
    assert store.has_failed(trial) and not store.is_done(trial)
    assert store.failure(trial).to_dict() == {
        "name": "no_training",
        "label": "base model, retrieved top K",
        "error": "ValueError: no memory",
    }
    store.forget_failure(trial)
    assert not store.has_failed(trial)
    store.finish(trial, seconds=2.0, curve=[{"round": 0, "ess": float("nan")}], config=None)
    assert store.is_done(trial)
    assert json.loads(store.file(trial, "trial.json").read_text()) == {
        "name": "no_training",
        "seconds": 2.0,
        "curve": [{"round": 0}],
        "training": None,
    }


class TestComparisons:
    def test_the_focus_recipe_is_compared_with_all_others(self) -> None:
        names = ("no_training", "sft", "sft_selfaug", "dro", "dro_selfaug")
        found = compare(sweep_pairs([result(name, [1.0, 0.0]) for name in names], "dro_selfaug"))
        pairs = [(c.name, c.against) for c in found if c.metric == "f1"]
        assert pairs == [
            *[("dro_selfaug", other) for other in names[:-1]],
            ("sft_selfaug", "sft"),
            *[(name, "no_training") for name in names[1:-1]],
        ]
        assert {c.metric for c in found} == {"exact_match", "f1", "general"}

    def test_p_values_are_adjusted_within_a_metric(self) -> None:
        right = {"no_training": [0.0] * 12, "sft": [1.0] * 6 + [0.0] * 6, "dro": [1.0] * 12}
        found = compare(sweep_pairs([result(name, scores) for name, scores in right.items()], "dro"))
        p = {(c.name, c.against): (c.p, c.p_adjusted) for c in found if c.metric == "f1"}
        assert p["dro", "no_training"][1] == pytest.approx(3 * p["dro", "no_training"][0])  # the smallest of three
        assert max(p.values())[0] == pytest.approx(max(p.values())[1], rel=1.0)
        assert all(plain <= adjusted <= 1 for plain, adjusted in p.values())

    def test_only_trials_of_one_cell_are_compared(self) -> None:
        trials = [
            result("no_training", [0.0, 1.0]),
            replace(result("dro", [0.0, 1.0]), name="dro-1"),
            replace(result("sft", [0.0, 1.0]), name="sft-1"),
            replace(result("dro", [0.0, 1.0]), name="dro-2", seed=2),
        ]
        assert [[r.name for r in cell] for cell in cells(trials)] == [
            ["no_training", "dro-1", "sft-1"],
            ["no_training", "dro-2"],
        ]
        pairs = {(one.name, other.name) for one, other, _ in sweep_pairs(trials, "dro")}
        assert pairs == {
            ("dro-1", "no_training"),
            ("dro-1", "sft-1"),
            ("sft-1", "no_training"),
            ("dro-2", "no_training"),
        }

    def test_the_questions_that_gained_and_lost_most(self) -> None:
        base = result("no_training", [0.0, 1.0, 0.0, 1.0])
        dro = result("dro", [1.0, 0.0, 0.0, 1.0])
        found = [(q["list"], q["id"]) for q in extremes([base, dro], "dro")]
        assert found == [("best", "q000"), ("best", "q003"), ("worst", "q001"), ("worst", "q002")]

    def test_of_equals_the_smaller_id_comes_first_in_both_lists(self) -> None:
        base, dro = result("no_training", [0.0] * 30), result("dro", [0.0] * 30)
        found = [(q["list"], q["id"]) for q in extremes([base, dro], "dro")]
        best, worst = ([int(id[1:]) for kind, id in found if kind == which] for which in ("best", "worst"))
        assert (best, worst) == (list(range(10)), list(range(10, 20)))

    def test_the_recall_of_the_retriever_is_from_an_untrained_one(self) -> None:
        def found(name: str, recall: float) -> TrialResult:
            trial = result(name, [0.0])
            return replace(trial, evaluation=replace(trial.evaluation, metrics={"retriever_recall@1": recall}))

        base, sft, dro = found("no_training", 0.1), found("sft", 0.1), found("dro", 0.9)
        unknown = {"retriever_recall@3": None, "retriever_recall@5": None}
        assert retriever_recall([dro, base]) == {"retriever_recall@1": 0.1, **unknown}
        assert retriever_recall([dro, sft]) == {"retriever_recall@1": 0.1, **unknown}
        assert retriever_recall([dro]) == {"retriever_recall@1": None, **unknown}


@pytest.mark.slow
def test_every_recipe_on_a_world(tmp_path: Path) -> None:
    settings = SweepSettings(
        with_selfaug=True,
        world=WorldSettings(seed=5, train_questions=3, eval_questions=2, test_questions=3),
        selector=SelectorConfig(num_candidates=4, num_selected=2, identifiers="numbers"),
        decoding=DecodingConfig(max_new_tokens=24),
        training={"rounds": 1, "e_step.num_permutations": 2, "m_step.learning_rate": 2e-3},
        general_tasks=12,
    )
    data = Sweep(tmp_path / "sweep", settings, progress=False).run()
    assert data["failed"] == []
    with_selfaug = [f"{name}_selfaug" for name, recipe in RECIPES.items() if recipe.trains_generator]
    assert [trial["name"] for trial in data["trials"]] == [*BUILTIN_RECIPES, *with_selfaug]
    # After the round, and not as kept: two evaluation questions may well prefer the start.
    drift = {name: records[-1]["eval_kl_drift"] for name, records in data["curves"].items()}
    assert [name for name, kl in drift.items() if abs(kl) < 1e-6] == ["replug", "dro_no_generator"]
    assert asdict(settings.selector)["num_candidates"] == 4


def test_settings_of_the_chat_template_apply_to_every_trial(settings: SweepSettings, tmp_path: Path) -> None:
    chat = ChatConfig(system_message="Be short.", date="2025-01-02")
    given = replace(settings, recipes=("no_training",), chat=chat)
    assert SweepSettings.from_json(given.to_json()) == given
    sweep = Sweep(tmp_path / "sweep", given, progress=False)
    data = sweep.run()
    assert data["evaluations"]["no_training"]["pipeline"]["chat"] == asdict(chat)
    bundle = RAG.from_pretrained(tmp_path / "sweep/trials/no_training/bundle", device="cpu")
    assert bundle.generator.language_model.chat.config == chat
    with pytest.raises(UsageError, match=r"other values of \['chat'\]"):
        Sweep(tmp_path / "sweep", replace(given, chat=ChatConfig()), progress=False)


def test_a_sweep_continues_although_settings_were_added_since(settings: SweepSettings, tmp_path: Path) -> None:
    """Its file lacks the settings that were added later, at the top or inside a group."""
    (tmp_path / "text.txt").write_text("Some words.")
    settings = replace(settings, retention={"text": [str(tmp_path / "text.txt")]})
    Sweep(tmp_path / "sweep", settings, progress=False)
    file = tmp_path / "sweep" / SETTINGS_FILE
    newer = ("chat", "context_length", "trust_remote_code", "ignore_identical_ids", "quoting")
    older = {key: value for key, value in json.loads(file.read_text()).items() if key not in newer}
    file.write_text(json.dumps(older))
    assert SweepSettings.from_json(older) == settings
    Sweep(tmp_path / "sweep", settings, progress=False)
    file.write_text(json.dumps(older))
    skipping = {**settings.retention, "on_error": "skip"}
    with pytest.raises(UsageError, match=r"other values of \['retention'\]"):
        Sweep(tmp_path / "sweep", replace(settings, retention=skipping), progress=False)
    with pytest.raises(UsageError, match=r"Retention tasks must be among .*got 'txt'\. Did you mean 'text'\?"):
        replace(settings, retention={"txt": ["a.txt"]})


@pytest.mark.parametrize(("quoting", "asked"), [("csv", "who wrote Hamlet?"), ("none", '"who wrote Hamlet?"')])
def test_a_sweep_reads_questions_with_the_given_quoting(
    quoting: Any, asked: str, settings: SweepSettings, tmp_path: Path
) -> None:
    files = {f"{split}_dataset": str(tmp_path / f"{split}.tsv") for split in ("train", "eval", "test")}
    for file in files.values():
        Path(file).write_text("\"who wrote Hamlet?\"\t['Shakespeare']\n")
    given = replace(settings, recipes=("no_training",), quoting=quoting, **files)
    assert SweepSettings.from_json(given.to_json()) == given
    questions = Sweep(tmp_path / "sweep", given, progress=False).questions.load()
    assert {split: [e.question for e in found] for split, found in questions.items()} == {
        s: [asked] for s in ("train", "eval", "test")
    }
