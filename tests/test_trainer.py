"""Rounds: reproducible, resumable, honest about the best one; and what the run directory refuses."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kills import survives
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import PASSAGES, dro_config, learned
from transformers import PrinterCallback, TrainerCallback

from generator.configs import ChatConfig
from indexes.errors import DataError, MismatchError, UsageError
from rag.evaluation.evaluation import evaluate
from rag.pipeline import RAG
from training.checkpoint import load_learned
from training.config import DROConfig
from training.questions.example import QAExample
from training.questions.loading import write_examples
from training.round_callback import RoundCallback, TrainingState
from training.run_folder import RunFolder
from training.trainer import DROTrainer
from training.warm_up import target_permutation, warm_up_posteriors

EXAMPLES = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare", "William Shakespeare"), ("p0",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
    QAExample("q3", "who designed Python?", ("Guido",), ("p5",)),
]


def settings(**changes: object) -> DROConfig:
    defaults = {
        "rounds": 2,
        "e_step.num_permutations": 3,
        "m_step.learning_rate": 5e-3,
        "m_step.gradient_accumulation_steps": 2,
    }
    return dro_config(**defaults | changes)


class Watching(TrainerCallback):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.steps: list[int] = []
        self.epochs: list[float] = []
        self.evaluations: list[dict[str, float]] = []

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.events.append("on_train_begin")

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.events.append("on_train_end")

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.events.append("on_step_end")
        self.steps.append(state.global_step)
        self.epochs.append(state.epoch)

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:
        self.evaluations.append(metrics)


def train(
    rag: RAG,
    config: DROConfig,
    output_dir: Path,
    dev: Sequence[QAExample] | None = EXAMPLES[:2],
    *,
    resume: bool = False,
    compute_metrics: Callable[..., Any] = evaluate,
) -> DROTrainer:
    trainer = DROTrainer(
        rag,
        config,
        train_dataset=EXAMPLES,
        eval_dataset=dev,
        output_dir=output_dir,
        compute_metrics=compute_metrics,
        progress=False,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def whole(make_rag: Callable[[], RAG], tmp_path_factory: pytest.TempPathFactory) -> tuple[RAG, DROTrainer]:
    """A pipeline after two rounds and its trainer, for tests that only read them."""
    rag = make_rag()
    return rag, train(rag, settings(), tmp_path_factory.mktemp("trainer") / "whole")


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in history]


def test_equal_seeds_give_equal_runs(
    whole: tuple[RAG, DROTrainer], make_rag: Callable[[], RAG], tmp_path: Path
) -> None:
    one, first = whole
    two, other = make_rag(), make_rag()
    second = train(two, settings(), tmp_path / "b")
    third = train(other, settings(seed=7), tmp_path / "c")
    assert without_seconds(first.history) == without_seconds(second.history)
    assert all(torch.equal(a, b) for a, b in zip(learned(one).values(), learned(two).values(), strict=True))
    assert without_seconds(first.history) != without_seconds(third.history)
    lines = [json.loads(line) for line in (first.output_dir / "metrics.jsonl").read_text().splitlines()]
    assert lines == first.history
    assert {"ess", "distinct_permutations", "log_marginal", "selector_loss", "generator_loss", "selfaug_kl"} <= set(
        lines[1]
    )
    assert {"prior_gate", "prior_strength"} <= set(lines[1])
    assert {"eval_exact_match", "eval_f1", "eval_selector_recall@1", "eval_retriever_recall@1"} <= set(lines[0])


@pytest.mark.parametrize("killed_in", ["_estimate", "_maximize", "_scores"])
def test_a_killed_run_resumes_to_the_same_weights(
    killed_in: str,
    whole: tuple[RAG, DROTrainer],
    make_rag: Callable[[], RAG],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained, reference = whole
    broken, resumed = make_rag(), make_rag()
    trainer = DROTrainer(
        broken,
        settings(),
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES[:2],
        output_dir=tmp_path / "run",
        compute_metrics=evaluate,
        progress=False,
    )
    real = getattr(trainer, killed_in)

    def until_round_2(*args: object) -> object:
        if trainer.history and trainer.history[-1]["round"] == 1:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(trainer, killed_in, until_round_2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    metrics = tmp_path / "run/metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"round": 2, "cut o')  # what a kill in the middle of a write leaves
    again = train(resumed, settings(), tmp_path / "run", resume=True)
    assert without_seconds(again.history) == without_seconds(reference.history)
    assert all(torch.equal(a, b) for a, b in zip(learned(trained).values(), learned(resumed).values(), strict=True))


def test_a_run_killed_while_writing_continues_from_a_complete_round(
    make_rag: Callable[[], RAG], tmp_path: Path
) -> None:
    """Its checkpoint and its line appear one after the other, each whole."""
    rag = make_rag()
    trainer = DROTrainer(rag, settings(), train_dataset=EXAMPLES, output_dir=tmp_path / "begun", progress=False)
    trainer._begin()
    begun = list(trainer.history)
    found = []
    for step in range(1, 200):
        trainer.folder = RunFolder(tmp_path / str(step))
        shutil.copytree(tmp_path / "begun", trainer.output_dir)
        trainer.state.log_history = list(begun)
        ended = survives(lambda: trainer._finish_round(1, {"ess": 2.0}, trainer._now()), step)
        rounds = [record["round"] for record in trainer._finished_rounds()]
        trainer._load_round(rounds[-1])
        assert not (trainer.output_dir / f"round-{len(rounds)}").exists()
        found.append(rounds)
        if ended:
            break
    assert found[0] == [0] and found[-1] == [0, 1] and ended
    assert all(rounds in ([0], [0, 1]) for rounds in found) and len(found) > 10


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", '{"config": ', r"run\.json must hold a JSON object, but it is damaged .*train again"),
        ("run.json", "[]", r"run\.json must hold a JSON object, but it holds a list"),
        ("run.json", '{"config": 3}', "must keep its settings"),
        ("metrics.jsonl", '{"round": 0}\n{"rou\n{"round": 2}\n', "line 2 is damaged .* train again from round 1"),
        ("metrics.jsonl", "[0]\n", 'an object with a "round", but line 1 is not'),
    ],
    ids=["cut run file", "run file of a list", "settings of another kind", "damaged round", "no round"],
)
def test_resume_names_a_damaged_file(
    make_rag: Callable[[], RAG], tmp_path: Path, file: str, content: str, message: str
) -> None:
    DROTrainer(make_rag(), settings(), train_dataset=EXAMPLES, output_dir=tmp_path / "run", progress=False)._begin()
    (tmp_path / "run" / file).write_text(content)
    resumed = DROTrainer(make_rag(), settings(), train_dataset=EXAMPLES, output_dir=tmp_path / "run", progress=False)
    with pytest.raises(MismatchError, match=message):
        resumed.train(resume_from_checkpoint=True)


def test_resume_refuses_other_settings(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    train(make_rag(), settings(rounds=1, supervised__num_train_epochs=0), tmp_path / "run", None)
    with pytest.raises(MismatchError, match=r"other values of \['e_step.num_permutations'\]"):
        train(
            make_rag(),
            settings(supervised__num_train_epochs=0, e_step__num_permutations=4),
            tmp_path / "run",
            None,
            resume=True,
        )


def test_the_best_round_is_kept(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    rag = make_rag()
    scores = iter([0.2, 0.9, 0.4, 0.9])
    seen: list[dict[str, torch.Tensor]] = []

    def evaluate(rag: RAG, examples: Sequence[QAExample], *, progress: bool = True) -> SimpleNamespace:
        seen.append(learned(rag))
        return SimpleNamespace(metrics={"f1": next(scores)}, intervals={})

    trainer = train(rag, settings(rounds=3), tmp_path / "run", compute_metrics=evaluate)
    assert trainer.state.best_round == 1
    assert all(torch.equal(a, b) for a, b in zip(learned(rag).values(), seen[1].values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(learned(rag).values(), seen[3].values(), strict=True))


def test_records_hold_the_intervals_of_the_evaluation_metrics(
    whole: tuple[RAG, DROTrainer], make_rag: Callable[[], RAG], tmp_path: Path
) -> None:
    """They choose no round, and survive a killed run as they were."""
    _, trainer = whole
    record = trainer.history[-1]
    assert {f"eval_{name}" for name in record["eval_intervals"]} <= set(record)
    low, high = record["eval_intervals"]["f1"]
    assert low <= record["eval_f1"] <= high
    lines = (trainer.output_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == trainer.history
    with pytest.raises(UsageError, match="must be one of") as error:
        train(make_rag(), settings(rounds=1, metric_for_best_model="intervals"), tmp_path / "other")
    assert "'intervals'," not in str(error.value)


def test_early_stopping_ends_training_after_rounds_without_gain(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    """Best at round 1, patience 2: rounds 2 and 3 run, 4 and 5 do not."""
    rag = make_rag()
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9, 0.9])

    def evaluate(rag: RAG, examples: Sequence[QAExample], *, progress: bool = True) -> SimpleNamespace:
        return SimpleNamespace(metrics={"f1": next(scores)}, intervals={})

    config = settings(rounds=5, e_step__num_permutations=1, early_stopping_patience=2)
    trainer = train(rag, config, tmp_path / "run", compute_metrics=evaluate)
    assert [row["round"] for row in trainer.history] == [0, 1, 2, 3]


def test_ablations_train_only_one_model(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    for frozen in ("selector", "generator"):
        rag = make_rag()
        before = learned(rag)
        train(
            rag,
            settings(rounds=1, supervised__num_train_epochs=0, **{f"train_{frozen}": False}),
            tmp_path / frozen,
            None,
        )
        changed = {n for n, t in learned(rag).items() if not torch.equal(t, before[n])}
        mine = {n for n in changed if f".{frozen}." in n or (frozen == "selector" and n.startswith(("prior", "quest")))}
        assert changed
        assert not mine


def test_training_logs_reach_tensorboard(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    """One run over warm-up and rounds: steps go on, each round brings its own numbers, and so does a resumed run."""
    watching = Watching()
    options = {
        "report_to": "tensorboard",
        "logging_steps": 1,
        "supervised.num_train_epochs": 1,
        "m_step.gradient_accumulation_steps": 1,
    }
    first = DROTrainer(
        make_rag(),
        settings(rounds=1, **options),
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES[:2],
        output_dir=tmp_path / "run",
        compute_metrics=evaluate,
        callbacks=[watching],
        progress=False,
    )
    first.train()
    assert watching.events[0] == "on_train_begin" and watching.events[-1] == "on_train_end"
    assert watching.events.count("on_train_begin") == watching.events.count("on_train_end") == 1
    assert watching.steps == list(range(1, 2 * len(EXAMPLES) + 1))
    assert [metrics["eval_f1"] for metrics in watching.evaluations] == [r["eval_f1"] for r in first.history]
    trainer = DROTrainer(
        make_rag(),
        settings(rounds=2, **options),
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES[:2],
        output_dir=tmp_path / "run",
        callbacks=[watching],
        compute_metrics=evaluate,
        progress=False,
    )
    trainer.train(resume_from_checkpoint=True)
    epochs = [pytest.approx((step + 1) / len(EXAMPLES)) for step in range(3 * len(EXAMPLES))]
    assert watching.epochs == epochs, "they go on where the steps do, also in a run that was resumed"
    ends = [record["global_step"] for record in trainer.history]
    assert ends == [len(EXAMPLES), 2 * len(EXAMPLES), 3 * len(EXAMPLES)]

    files = list((tmp_path / "run/logs").rglob("events.out.tfevents.*"))
    assert {file.parent for file in files} == {tmp_path / "run/logs"}, "one folder is one run for TensorBoard"
    events = EventAccumulator(str(tmp_path / "run/logs")).Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert [step for step, _ in found["train/learning_rate"]] == list(range(1, 3 * len(EXAMPLES) + 1))
    for tag, name in (("eval/f1", "eval_f1"), ("train/round", "round")):
        assert found[tag] == [(r["global_step"], pytest.approx(r[name])) for r in trainer.history]
    for name in ("ess", "log_marginal", "prior_gate"):
        assert found[f"train/{name}"] == [(r["global_step"], pytest.approx(r[name])) for r in trainer.history[1:]]


def test_gradient_checkpointing_changes_no_weight(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    plain, saving = make_rag(), make_rag()
    start = learned(plain)
    train(plain, settings(rounds=1), tmp_path / "a", None)
    train(saving, settings(rounds=1, m_step__gradient_checkpointing=True), tmp_path / "b", None)
    # Prompt and replies are read in one row instead of two, and where a gradient is almost 0, Adam makes whole steps of
    # the rounding that this leaves. So what was learned is compared as a whole.
    found = learned(saving)
    learned_by = {
        role: [torch.cat([(w[n] - start[n]).flatten() for n in start if role in n]) for w in (learned(plain), found)]
        for role in ("selector", "generator", "prior", "question")
    }
    for one, other in learned_by.values():
        assert one.norm() > 1e-3
        assert (one - other).norm() < 0.02 * one.norm()


def test_learning_raises_the_likelihood_of_the_answers(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    trainer = train(
        make_rag(), settings(rounds=4, m_step__learning_rate=2e-2, selfaug__alpha=0.0), tmp_path / "run", None
    )
    values = [row["log_marginal"] for row in trainer.history[1:]]
    assert values[-1] > values[0] + 1.0


def test_warm_up_targets(make_rag: Callable[[], RAG]) -> None:
    """Gold first (in its own order), then by score; without gold ids the retriever's order."""
    rag = make_rag()
    found = rag.retriever.search(EXAMPLES[0].question, 5).reordered([3, 0, 4, 1, 2])
    by_score = [1, 3, 4, 0, 2]
    assert target_permutation(found, (), 3).tolist() == by_score[:3]
    gold = found.ids[2], "not retrieved", found.ids[0]
    assert target_permutation(found, gold, 4).tolist() == [2, 0, 1, 3]
    # Two chunks of one gold document: the one at place 4, which scores higher, stands for both.
    chunks = [replace(p, id=id) for p, id in zip(found.passages, ["doc#0", "x", "y", "z", "doc#1"], strict=True)]
    assert target_permutation(replace(found, passages=chunks), ["doc"], 3).tolist() == [4, 1, 3]
    config = settings(supervised__target="gold")
    with pytest.raises(DataError, match="'q9'"):
        warm_up_posteriors([QAExample("q9", "q?", ("a",))], rag.retriever, rag.selector, config)
    only = warm_up_posteriors(
        EXAMPLES, rag.retriever, rag.selector, config.with_settings({"supervised.target": "retriever"})
    )
    for posterior in only:
        best = posterior.candidates.scores.argsort(descending=True)[:2]
        assert posterior.permutations.z[0].tolist() == best.tolist()


def test_output_dir_must_be_new_empty_or_a_run_to_continue(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    def trainer(folder: Path) -> DROTrainer:
        return DROTrainer(make_rag(), settings(), train_dataset=EXAMPLES, output_dir=folder, progress=False)

    with pytest.raises(UsageError, match="holds something else"):
        trainer(tmp_path).train()
    with pytest.raises(UsageError, match=r"holds no run\.json"):
        trainer(tmp_path / "new").train(resume_from_checkpoint=True)
    with pytest.raises(UsageError, match="is a file"):
        trainer(tmp_path / "notes.txt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(UsageError, match="continue it with resume_from_checkpoint"):
        trainer(tmp_path / "run").train()


def test_training_questions_need_answers(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 1 have none"):
        DROTrainer(make_rag(), settings(), train_dataset=[QAExample("q", "who?")], output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_evaluation_metric_is_refused(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    """Found at round 0, and the run goes on under the right name."""
    with pytest.raises(UsageError, match=r"must be one of \['exact_match'"):
        train(make_rag(), settings(rounds=1, metric_for_best_model="bleu"), tmp_path / "run")
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 1
    assert len(train(make_rag(), settings(rounds=1), tmp_path / "run", resume=True).history) == 2


def test_eval_questions_without_a_function_that_scores_them_are_refused(
    make_rag: Callable[[], RAG], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"got compute_metrics=None. Pass compute_metrics=rag.evaluate"):
        DROTrainer(
            make_rag(), settings(), train_dataset=EXAMPLES, eval_dataset=EXAMPLES[:2], output_dir=tmp_path / "run"
        )


def test_settings_that_transformers_refuses_are_errors_before_training(
    make_rag: Callable[[], RAG], tmp_path: Path
) -> None:
    for bad in ({"m_step.lr_scheduler_type": "liner"}, {"training_arguments": {"no_such_thing": 1}}):
        with pytest.raises(UsageError, match="TrainingArguments must accept"):
            DROTrainer(make_rag(), settings(**bad), train_dataset=EXAMPLES, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_resume_refuses_another_pipeline_or_other_data(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    train(
        make_rag(),
        settings(rounds=1, supervised__num_train_epochs=0, e_step__num_permutations=1),
        tmp_path / "run",
        None,
    )
    again = settings(supervised__num_train_epochs=0, e_step__num_permutations=1)
    with pytest.raises(MismatchError, match=r"other values of \['train_examples'\]"):
        DROTrainer(make_rag(), again, train_dataset=EXAMPLES[::-1], output_dir=tmp_path / "run", progress=False).train(
            resume_from_checkpoint=True
        )
    other = make_rag()
    other.selector.config = replace(other.selector.config, decoding="single_pass")
    with pytest.raises(MismatchError, match=r"other values of \['selector'\]"):
        DROTrainer(other, again, train_dataset=EXAMPLES, output_dir=tmp_path / "run", progress=False).train(
            resume_from_checkpoint=True
        )


def test_resume_refuses_a_base_with_other_settings(
    make_rag: Callable[[], RAG], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(
        make_rag(),
        settings(rounds=1, supervised__num_train_epochs=0, e_step__num_permutations=1),
        tmp_path / "run",
        None,
    )
    again = settings(rounds=1, supervised__num_train_epochs=0, e_step__num_permutations=1)
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    model = make_rag().generator.language_model
    assert (written["chat"], written["context_length"]) == (asdict(ChatConfig()), model.context_length)
    other = make_rag()
    other.generator.language_model.chat.config = ChatConfig(system_message="Be short.")
    with pytest.raises(MismatchError, match=r"other values of \['chat'\]"):
        train(other, again, tmp_path / "run", None, resume=True)
    for name, value in (("context_length", model.context_length - 1), ("revision", "v2"), ("mixed", True)):
        other = make_rag()
        trainer = DROTrainer(other, again, train_dataset=EXAMPLES, output_dir=tmp_path / "run", progress=False)
        with monkeypatch.context() as patched:
            patched.setattr(other.generator.language_model, name, value)
            refused = {"mixed": "dtype"}.get(name, name)
            with pytest.raises(MismatchError, match=rf"other values of \['{refused}'\]"):
                trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1; got 0"),
        ({"e_step.proposal_temperature": 0.0}, "proposal_temperature must be positive"),
        ({"e_step.candidate_order": "best"}, r"one of \['shuffled', 'retriever'\]; got 'best'"),
        ({"e_step.likelihood_exponent": 0.0}, "likelihood_exponent must be positive"),
        ({"m_step.warmup_steps": -1}, "warmup_steps must be at least 0; got -1"),
        ({"train_selector": False, "train_generator": False}, "both are false"),
        ({"m_step.tokens_per_optimizer_step": 0}, "at least 1 or None"),
        ({"early_stopping_patience": 0}, "at least 1 or None"),
    ],
)
def test_config_is_checked(bad: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings(**bad)


def test_one_passage_of_the_toy_corpus_mentions_berlin() -> None:
    assert [p.id for p in PASSAGES if "Berlin" in p.contents] == ["p4"]


def test_a_ranking_prompt_that_does_not_fit_is_refused_before_the_first_round(
    make_rag: Callable[[], RAG], tmp_path: Path
) -> None:
    """The gate is closed at first, so no E-step would read it."""
    rag = make_rag()
    rag.selector.prompt = replace(rag.selector.prompt, template="Rank. " * 4000 + rag.selector.prompt.template)
    with pytest.raises(DataError, match="must fit into"):
        DROTrainer(rag, settings(), train_dataset=EXAMPLES, output_dir=tmp_path / "run", progress=False)


def test_answers_longer_than_the_context_are_left_out(
    make_rag: Callable[[], RAG], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Found before the first round; another answer of the same question stays."""
    rag = make_rag()
    long = "x" * (rag.generator.language_model.context_length + 1)
    almost = "y" * (rag.generator.language_model.context_length - 20)  # alone it fits, with the instructions not
    examples = [
        QAExample("long", "who wrote Hamlet?", (long, almost)),
        QAExample("either", "who wrote Hamlet?", (long, "Shakespeare")),
        EXAMPLES[1],
    ]
    trainer = DROTrainer(
        rag,
        settings(rounds=1, supervised__num_train_epochs=0),
        train_dataset=examples,
        output_dir=tmp_path / "run",
        progress=False,
    )
    assert [(e.id, e.golden_answers) for e in trainer.train_examples] == [
        ("either", ("Shakespeare",)),
        (EXAMPLES[1].id, EXAMPLES[1].golden_answers),
    ]
    assert "Left out 1 of 3 training questions" in caplog.text and "'long'" in caplog.text
    with pytest.raises(DataError, match="none of 1 does"):
        DROTrainer(rag, settings(), train_dataset=examples[:1], output_dir=tmp_path / "other", progress=False)
    with pytest.raises(DataError, match="An answer must be shorter than the"):
        rag.generator.log_prob("who?", rag.retriever.search("who?", 2).passages, long)


def test_evaluation_questions_may_be_unanswerable_and_training_questions_not(
    make_rag: Callable[[], RAG], tmp_path: Path
) -> None:
    """Nothing can be learned from a question whose answer is none, but it is known what is right."""
    none = QAExample("q9", "who designed the moon?", unanswerable=True)
    file = tmp_path / "dev.jsonl"
    write_examples([*EXAMPLES[:1], none], file)
    for dev in ([*EXAMPLES[:1], none], file):
        trainer = DROTrainer(
            make_rag(),
            settings(),
            train_dataset=EXAMPLES,
            eval_dataset=dev,
            output_dir=tmp_path / "run",
            compute_metrics=evaluate,
            progress=False,
        )
        assert trainer.eval_examples is not None
        assert [e.unanswerable for e in trainer.eval_examples] == [False, True]
    assert {"eval_exact_match_answerable", "eval_exact_match_unanswerable"} <= set(trainer.evaluate())
    for train in ([*EXAMPLES, none], file):
        with pytest.raises(DataError, match="golden answer"):
            DROTrainer(make_rag(), settings(), train_dataset=train, output_dir=tmp_path / "other", progress=False)


def test_gold_ids_of_another_corpus_give_no_recall(
    make_rag: Callable[[], RAG], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = [replace(e, gold_ids=("elsewhere",)) for e in EXAMPLES]
    trainer = DROTrainer(
        make_rag(),
        settings(),
        train_dataset=EXAMPLES,
        eval_dataset=foreign,
        output_dir=tmp_path / "run",
        compute_metrics=evaluate,
        progress=False,
    )
    assert not any("_recall@" in name and "answer" not in name for name in trainer.evaluate())
    assert "Gold ids must be ids of passages in the index" in caplog.text


class Recorder(RoundCallback):
    """Remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.metrics: dict[str, dict[str, Any]] = {}

    def on_round_begin(self, state: TrainingState) -> None:
        self.calls.append(("round_begin", state.round))

    def on_e_step_end(self, state: TrainingState, posteriors: Sequence[Any], metrics: Mapping[str, float]) -> None:
        assert [p.example.id for p in posteriors] == [e.id for e in EXAMPLES]
        self.calls.append(("e_step_end", state.round))
        self.metrics["e_step"] = dict(metrics)

    def on_m_step_end(self, state: TrainingState, metrics: Mapping[str, float]) -> None:
        self.calls.append(("m_step_end", state.round))
        self.metrics["m_step"] = dict(metrics)

    def on_round_end(self, state: TrainingState, metrics: Mapping[str, Any]) -> None:
        assert state.log_history[-1] == metrics
        self.calls.append(("round_end", state.round))
        self.metrics["round"] = dict(metrics)


def test_state_output_and_round_callbacks_tell_of_each_round(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    """Also with plain numbers from compute_metrics, the weights on demand, and a run continued after a given round."""
    scores = iter([0.1, 0.5, 0.3, 0.3])
    recorder, rag = Recorder(), make_rag()
    arguments: dict[str, Any] = {
        "train_dataset": EXAMPLES,
        "eval_dataset": EXAMPLES[:2],
        "output_dir": tmp_path / "run",
        "compute_metrics": lambda rag, examples, progress: {"f1": next(scores)},
        "progress": False,
    }
    short = settings(supervised__num_train_epochs=0, e_step__num_permutations=1)
    trainer = DROTrainer(rag, short, callbacks=[recorder], **arguments)
    assert repr(trainer).startswith("DROTrainer(train=3 questions, eval=2, round=0 of 2, best_round=None, output_dir=")
    output = trainer.train()
    each = ["round_begin", "e_step_end", "m_step_end", "round_end"]
    assert recorder.calls == [("round_end", 0), *((name, 1) for name in each), *((name, 2) for name in each)]
    assert recorder.metrics["round"].items() >= (recorder.metrics["e_step"] | recorder.metrics["m_step"]).items()
    assert {"ess", "log_marginal"} <= recorder.metrics["e_step"].keys()
    assert {"selector_loss", "generator_loss", "prior_gate"} <= recorder.metrics["m_step"].keys()
    assert (output.best_round, output.metrics["eval_f1"], output.history) == (1, 0.5, trainer.history)
    state = trainer.state
    assert (state.round, state.best_round, state.best_metric, state.global_step) == (2, 1, 0.5, output.global_step)
    assert trainer.evaluate() == {"eval_f1": 0.3}

    folder = trainer.save_model(tmp_path / "weights")
    other = make_rag()
    load_learned(other.selector, folder)
    assert all(torch.equal(a, b) for a, b in zip(learned(rag).values(), learned(other).values(), strict=True))

    scores = iter([0.2])
    again = DROTrainer(make_rag(), short, **arguments)
    continued = again.train(resume_from_checkpoint=tmp_path / "run" / "round-1")
    assert [record["eval_f1"] for record in continued.history] == [0.1, 0.5, 0.2]
    assert continued.history[1] == output.history[1]
    for wrong, message in (
        ("round-7", "has rounds 0 to 2; got round 7"),
        ("elsewhere", "or a folder round-N in output_dir"),
    ):
        with pytest.raises(UsageError, match=message):
            DROTrainer(make_rag(), short, **arguments).train(resume_from_checkpoint=tmp_path / "run" / wrong)


def test_callbacks_may_be_classes_and_nothing_else_is_accepted(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    rag = make_rag()
    arguments: dict[str, Any] = {"train_dataset": EXAMPLES, "output_dir": tmp_path / "run", "progress": False}
    trainer = DROTrainer(rag, settings(), callbacks=[Recorder, PrinterCallback], **arguments)
    assert [type(callback) for callback in trainer.round_callbacks] == [Recorder]
    assert [type(callback) for callback in trainer.run_callbacks.callbacks] == [PrinterCallback]
    with pytest.raises(
        UsageError, match=r"must be RoundCallbacks or transformers\.TrainerCallbacks, got \['function'\]"
    ):
        DROTrainer(rag, settings(), callbacks=[print_state], **arguments)  # type: ignore[list-item]


def print_state(state: object) -> None:
    print(state)


def test_evaluation_needs_questions(make_rag: Callable[[], RAG], tmp_path: Path) -> None:
    trainer = DROTrainer(make_rag(), settings(), train_dataset=EXAMPLES, output_dir=tmp_path / "run", progress=False)
    with pytest.raises(UsageError, match=r"Pass eval_dataset and compute_metrics=rag\.evaluate"):
        trainer.evaluate()
