"""`rag plan --measure`: phases really run on a few items, and are set beside the plan's predictions."""

import json
import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import EXAMPLES_FOR_WORKERS, PASSAGES, byte_tokenizer, dro_config, learned, tiny_model

from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import UsageError
from rag.cli import main
from rag.pipeline import RAG
from rag.planning import index_measurement, phase_measurement, training_measurement
from rag.planning.cost_plan import MeasuredPhase, Plan
from rag.planning.flops import ModelShape, QuestionShape
from rag.planning.machine import Machine
from rag.planning.model_sizes import EncoderShape
from rag.planning.phase_measurement import Measured, measure_work
from rag.planning.plan_text import plan_text
from rag.planning.text_sizes import TextSizes
from rag.planning.training_job import TrainingJob
from rag.planning.training_measurement import (
    ANSWERING,
    FIRST_E_STEP,
    LATER_E_STEP,
    M_STEP,
    few_questions,
    measure_training,
    predict_few,
    run_executions,
)
from rag.planning.training_plan import peaks, plan_training
from retriever.selector_config import SelectorConfig

RATES = {"body_rate": 1e11, "head_rate": 5e10, "step_rate": 1e10, "step_head_rate": 5e9}
RATES |= {"attention_rate": 2e10, "elementwise_rate": 1e9, "read_rate": 1e10, "call_seconds": 1e-6}
MACHINE = Machine("cpu", 2, memory=8 * 2**30, available=7 * 2**30, process=2**29, **RATES)
SMALL = {"e_step.num_permutations": 2, "e_step.proposals_per_sample": 2}


def job(**changed: object) -> TrainingJob:
    """Three rounds on 100 questions, 40 for evaluation; changes are of the config."""
    return TrainingJob(
        base="a-model",
        shape=ModelShape(32, 2, 48, 4, 2, 8, vocabulary=261),
        context=4096,
        dtype="float32",
        device="cpu",
        config=dro_config(**{"rounds": 3} | changed),
        selector=SelectorConfig(num_candidates=4, num_selected=2),
        encoder=EncoderShape(dimension=24),
        texts=TextSizes(passages=12, passage_tokens=60, questions=100, eval_questions=40),
        question=QuestionShape(4, 2, 2, prompt=1500, sequence=600, answer=8),
        single_passage_sequence=400,
    )


@pytest.fixture
def rag(index: PassageIndex, encoder: Encoder, tmp_path: Path) -> RAG:
    """A new pipeline on a tiny base."""
    tiny_model().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    return RAG.create(
        index=index,
        encoder=encoder,
        base=tmp_path / "base",
        device="cpu",
        selector=SelectorConfig(num_candidates=4, num_selected=2),
    )


# -- what is measured ------------------------------------------------------------------------------------------------


def test_every_phase_runs_on_the_questions_given(rag: RAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers, posteriors of two rounds, and an M-step that moves the adapters, each with seconds and peak of its own.

    The times are not those of the work, so that each shows in its place.
    """
    results: list[Any] = []

    def measured(work: Any, device: str) -> Measured[Any]:
        results.append(work())
        return Measured(results[-1], float(len(results)), 1000 * len(results))

    monkeypatch.setattr(training_measurement, "measure_work", measured)
    before = learned(rag)
    config = dro_config(rounds=3, **{name.replace(".", "__"): value for name, value in SMALL.items()})
    planned = replace(job(), config=config)
    found = measure_training(planned, rag, EXAMPLES_FOR_WORKERS, tmp_path / "m_step", MACHINE)
    answers, first, later, _ = results
    questions = [example.question for example in EXAMPLES_FOR_WORKERS]
    assert [answer.question for answer in answers] == questions
    assert [p.example.question for p in first] == [p.example.question for p in later] == questions
    moved = {name for name, value in learned(rag).items() if not torch.equal(value, before[name])}
    assert any("selector" in name for name in moved)
    assert any("generator" in name for name in moved)
    assert [(p.name, p.items, p.seconds, p.peak) for p in found] == [
        (FIRST_E_STEP, 2, 2.0, 2000),
        (LATER_E_STEP, 2, 3.0, 3000),
        (M_STEP, 2, 4.0, 4000),
        (ANSWERING, 2, 1.0, 1000),
    ]


def test_the_selector_reads_its_prompts_while_it_is_measured(
    rag: RAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a new selector the language model has weight 0: answering would read no ranking prompt, as none after it."""
    read: list[int] = []
    model = rag.generator.language_model

    def measured(work: Any, device: str) -> Measured[Any]:
        before = model.tokens_read
        result = work()
        read.append(model.tokens_read - before)
        return Measured(result, 1.0, None)

    untrained = model.tokens_read
    rag.answer([example.question for example in EXAMPLES_FOR_WORKERS])
    untrained = model.tokens_read - untrained
    monkeypatch.setattr(training_measurement, "measure_work", measured)
    measure_training(replace(job(), config=dro_config()), rag, EXAMPLES_FOR_WORKERS, tmp_path / "m_step", MACHINE)
    assert read[0] > untrained


def test_no_question_is_no_measurement(rag: RAG, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs training questions that fit"):
        measure_training(job(), rag, [], tmp_path, MACHINE)


def test_predictions_for_a_few_questions_are_those_of_the_plan() -> None:
    """Five of 100 questions: a twentieth of each phase, in batches of five instead of eight."""
    planned = job(m_step__num_train_epochs=2)
    plan, few = plan_training(planned, MACHINE), predict_few(few_questions(planned, 5), MACHINE)
    e_step = [phase for phase in plan.phases if phase.name.startswith("E:")]
    m_step = [phase for phase in plan.phases if phase.name.startswith("M:")]
    assert few[FIRST_E_STEP][0] == pytest.approx(sum(phase.seconds for phase in e_step) / 20)
    assert few[M_STEP][0] == pytest.approx(2 * sum(phase.seconds for phase in m_step) / 20)
    texts = replace(planned.texts, eval_questions=5)
    assert few[ANSWERING][0] == plan_training(replace(planned, texts=texts), MACHINE).phase("evaluation").seconds
    assert few[M_STEP][1] == max(phase.peak for phase in m_step)
    assert few[FIRST_E_STEP][1] < max(phase.peak for phase in e_step)
    smaller = peaks(replace(planned, config=planned.config.with_settings({"e_step.batch_size": 5})), MACHINE.process)
    assert few[FIRST_E_STEP][1] == max(smaller[phase.name] for phase in e_step)


def test_the_whole_run_from_what_was_measured() -> None:
    """Of 100 questions in three rounds, and 40 evaluated four times; 0.5 s for 2 questions is 25 s for 100."""
    assert run_executions(job()) == {FIRST_E_STEP: 100, LATER_E_STEP: 200, M_STEP: 300, ANSWERING: 160}
    phase = MeasuredPhase(
        name=M_STEP, items=2, seconds=0.5, predicted_seconds=0.4, run_items=300, peak=None, predicted_peak=7
    )
    assert (phase.run_seconds, phase.predicted_run_seconds) == (75.0, pytest.approx(60.0))
    plan = plan_training(job(), MACHINE)
    assert plan.measured_seconds is None
    measured = replace(plan, measured=(phase,))
    assert measured.measured_seconds == pytest.approx(plan.seconds + 15)
    assert Plan.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured
    text = plan_text(measured)
    (row,) = (line for line in text.splitlines() if line.startswith(M_STEP))
    assert row.split() == ["M-step", "2", "0.4", "s", "0.5", "s", "0.80", "60.0", "s", "75.0", "s", "7", "B", "-"]
    assert "with the real model" not in plan_text(plan)


# -- memory and time of real work --------------------------------------------------------------------------------------


def touch(size: int) -> str:
    """Use so much memory for a moment."""
    with mmap.mmap(-1, size) as held:
        for start in range(0, size, 4096):
            held[start] = 1
    return "done"


def test_the_peak_of_work_is_its_own() -> None:
    """64 MB more than nothing, and what came before is not remembered."""
    large = measure_work(lambda: touch(2**26), "cpu")
    nothing = measure_work(lambda: "done", "cpu")
    assert (large.result, nothing.result) == ("done", "done")
    assert large.seconds > 0
    if large.peak is None or nothing.peak is None:
        pytest.skip("this system has no peak memory that can be set back")
    assert large.peak - nothing.peak > 0.9 * 2**26


def test_an_unknown_peak_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(phase_measurement, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    assert measure_work(lambda: 1, "cpu").peak is None


# -- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, rag: RAG) -> list[str]:
    """Options for a corpus, questions and the base."""
    corpus, train = tmp_path / "corpus.jsonl", tmp_path / "train.jsonl"
    corpus.write_text("".join(json.dumps({"id": p.id, "title": p.title, "text": p.text}) + "\n" for p in PASSAGES))
    train.write_text(
        "".join(
            json.dumps({"id": e.id, "question": e.question, "golden_answers": list(e.golden_answers)}) + "\n"
            for e in EXAMPLES_FOR_WORKERS
        )
    )
    sizes = ["--selector.num_candidates", "4", "--selector.num_selected", "2", "--decoding.max_new_tokens", "4"]
    settings = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    base = ["--base", str(tmp_path / "base"), "--device", "cpu", "--rounds", "2"]
    return ["--corpus", str(corpus), "--train_dataset", str(train), *base, *sizes, *settings]


def test_a_plan_with_measurements_beside_predictions(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", *files, "--measure", "--measured_questions", "1"]
    assert main([*words, "--json"]) == 0
    plan = Plan.from_dict(json.loads(capsys.readouterr().out))
    assert [(p.name, p.items, p.run_items) for p in plan.measured] == [
        (FIRST_E_STEP, 1, 2),
        (LATER_E_STEP, 1, 2),
        (M_STEP, 1, 4),
        (ANSWERING, 1, 0),
    ]
    assert all(p.seconds > 0 and p.predicted_seconds > 0 for p in plan.measured)
    assert all(p.peak is None or p.peak > 2**26 for p in plan.measured)


def test_a_build_with_the_encoder_measured(
    tmp_path: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine of twelve passages, whose share of the predicted time and of the work of two processes is by hand."""
    lengths: list[int] = []
    encode = Encoder.encode_passages

    def counted(self: Encoder, passages: Any, **settings: Any) -> Any:
        lengths.append(len(passages))
        return encode(self, passages, **settings)

    monkeypatch.setattr(Encoder, "encode_passages", counted)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": p.id, "title": p.title, "text": p.text}) + "\n" for p in PASSAGES))
    words = ["plan", "index", "--corpus", str(corpus), "--encoder", encoder.name, "--device", "cpu", "--measure"]
    assert main([*words, "--measured_passages", "9", "--json"]) == 0
    plan = Plan.from_dict(json.loads(capsys.readouterr().out))
    (found,) = plan.measured
    assert lengths == [index_measurement.WARM_UP, 9]
    assert (found.name, found.items, found.run_items) == ("encode", 9, 12)
    assert found.predicted_run_seconds == pytest.approx(plan.phase("encode").seconds)
    assert found.predicted_peak == plan.phase("encode").peak
    assert plan.measured_seconds == pytest.approx(plan.seconds - plan.phase("encode").seconds + found.seconds * 12 / 9)
    assert main(words) == 0
    assert "with the real model" in capsys.readouterr().out
    assert lengths[-1] == 12  # no more than there are


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "--passages", "9", "--train_questions", "3", "--measure"], "needs --train_dataset FILE, and --index"),
        (["plan", "--passages", "9", "--train_questions", "3", "--measured_questions", "0"], "at least 1, got 0"),
        (["plan", "index", "--passages", "9", "--measured_passages", "0"], "at least 1, got 0"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
