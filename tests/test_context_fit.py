"""Passages are cut where a prompt is too long, titles as well; a question that does not fit even so is named first.

The tiny models read 4,096 characters, and both prompts hold the question twice.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from tiny_models import PASSAGES, byte_tokenizer, dro_config, tiny_language_model

from generator.configs import AdapterConfig, DecodingConfig
from generator.generator import Generator
from generator.prompts import AnswerPrompt
from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage
from indexes.directory.builder import build_index
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import DataError, UsageError
from rag.cli import main
from rag.evaluation.evaluation import evaluate
from rag.evaluation.evaluation_file import evaluation_file
from rag.experiments.sweep_runner import Sweep
from rag.experiments.sweep_settings import SPLITS, SweepSettings
from rag.forgetting.measurement import measure_model
from rag.forgetting.retention_tasks import RetentionTasks
from rag.pipeline import RAG
from retriever.selector_config import SelectorConfig
from training.config import DROConfig
from training.questions.context_fit import why_too_long
from training.questions.example import QAExample
from training.questions.loading import write_examples
from training.trainer import DROTrainer

SHORT = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare",), ("p0",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
]


def question(characters: int) -> str:
    """One of so many characters, which are as many tokens."""
    return ("who paid the rent late again, " * 200)[: characters - 1] + "?"


TOO_LONG = QAExample("too-long", question(2500), ("the owner",), ("p0",))


@pytest.fixture
def rag(make_rag: Callable[..., RAG]) -> RAG:
    return make_rag()


def listening(rag: RAG) -> RAG:
    """Its selector's language model is heard, so that it reads its prompt."""
    with torch.no_grad():
        rag.selector.prior.gate.fill_(0.7)
    return rag


@pytest.fixture
def between(rag: RAG) -> QAExample:
    """A question that fits the generator's prompt of two passages and not the selector's of five."""
    model, selector = rag.generator.language_model, rag.selector
    bare = selector.prompt.least_tokens(model.tokenizer, "?", selector.identifiers, 5)
    room = model.context_length - 2 * (1 + len(selector.separator_ids)) + 2 - bare
    example = QAExample("between", question(room // 2 + 30), ("the owner",))
    assert rag.generator.why_too_long(example.question, 2) is None
    assert selector.why_too_long(example.question, learning=True) is not None
    return example


def refuse(*args: object, **kwargs: object) -> NoReturn:
    raise AssertionError("nothing may be asked before all questions are known to fit")


# -- prompts ---------------------------------------------------------------------------------------------------


def test_a_title_is_cut_like_a_text() -> None:
    """Pyserini's `contents` have no title line, and what stands in the first line may be a paragraph."""
    tokenizer = byte_tokenizer()
    passages = [Passage("a", "T" * 900, "short one"), Passage("b", "a title", "X" * 900), Passage("c", "Z" * 300, "")]
    ids = AnswerPrompt().encode(tokenizer, "where is it?", passages, max_tokens=900)
    text = tokenizer.decode(ids)
    assert 880 < len(ids) <= 900  # the room is used
    assert text.count("where is it?") == 2
    assert "Text: short one\n" in text and "Title: a title Text: " in text  # what is short stays whole
    counts = [text.count(letter) - AnswerPrompt().render("", []).count(letter) for letter in "TXZ"]
    assert max(counts) - min(counts) <= 6 and min(counts) > 30


def test_titles_that_are_short_are_never_cut() -> None:
    """The cut is where it always was: only texts give way."""
    tokenizer = byte_tokenizer()
    passages = [Passage("a", "Harbour", "x" * 900), Passage("b", "The old wall", "y" * 500)]
    frame = AnswerPrompt().least_tokens(tokenizer, "where?", 2)
    ids = AnswerPrompt().encode(tokenizer, "where?", passages, max_tokens=frame + 219)
    text = tokenizer.decode(ids)
    assert (
        "Title: Harbour Text: " + "x" * 100 + "\n" in text and "Title: The old wall Text: " + "y" * 100 + "\n" in text
    )


@pytest.mark.parametrize("chat", [True, False])
def test_the_reported_need_is_the_smallest_context_that_fits(chat: bool) -> None:
    tokenizer = byte_tokenizer(chat=chat)
    passages = [Passage("a", "t" * 300, "x" * 300), Passage("b", "u" * 200, "y" * 9)]
    needed = AnswerPrompt().least_tokens(tokenizer, "where<|end|>?", 2)
    for more in range(9):
        assert (
            len(AnswerPrompt().encode(tokenizer, "where<|end|>?", passages, max_tokens=needed + more)) <= needed + more
        )
    with pytest.raises(DataError, match="must fit into"):
        AnswerPrompt().encode(tokenizer, "where<|end|>?", passages, max_tokens=needed - 1)


def test_answers_from_passages_with_a_paragraph_as_title(base: Path, encoder: Encoder, tmp_path: Path) -> None:
    rows = [{"id": p.id, "contents": f"{p.text * 30}\n{p.text}"} for p in PASSAGES]
    (tmp_path / "pyserini.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = Corpus.from_file(tmp_path / "pyserini.jsonl")
    index = build_index(corpus, encoder, tmp_path / "index", progress=False)
    rag = RAG.create(
        index=index,
        base=base,
        selector=SelectorConfig(num_candidates=5, num_selected=2),
        decoding=DecodingConfig(max_new_tokens=3),
        adapter=AdapterConfig(r=3),
        device="cpu",
    )
    answer = listening(rag).answer("who wrote Hamlet?")
    assert len(answer.passages) == 2
    ids = rag.generator.prompt_ids(answer.question, answer.passages)
    text = str(rag.generator.language_model.tokenizer.decode(ids))
    assert all(p.text in text for p in answer.passages)  # the titles gave way, not the short texts


# -- evaluation ------------------------------------------------------------------------------------------------


def test_an_evaluation_names_unfit_questions_before_answering(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rag.retriever, "search", refuse)
    with pytest.raises(DataError, match=r"1 of 3 questions that do not, first 'too-long': its answer prompt.*on_error"):
        evaluate(rag, [SHORT[0], TOO_LONG, SHORT[1]], progress=False)
    with pytest.raises(DataError, match=r"1 of 1 questions that do not"):
        evaluate(rag, [TOO_LONG], on_error="skip", progress=False)


def test_an_evaluation_leaves_out_what_does_not_fit(rag: RAG, caplog: pytest.LogCaptureFixture) -> None:
    found = evaluate(rag, [SHORT[0], TOO_LONG, SHORT[1]], on_error="skip", progress=False)
    alone = evaluate(rag, SHORT, progress=False)
    assert (found.metrics, found.scores) == (alone.metrics, alone.scores)
    assert (found.skipped, list(found.too_long)) == (1, ["too-long"])
    assert "Left out 1 of 3 questions" in caplog.text and "'too-long'" in caplog.text
    assert evaluation_file(rag, found, name="x").dataset.too_long == ["too-long"]
    assert "too_long" not in evaluation_file(rag, alone, name="x").to_dict()["dataset"]


def test_an_unused_ranking_prompt_may_exceed_the_context(rag: RAG, between: QAExample) -> None:
    """A selector whose gate is closed ranks as the retriever does, whatever the length of its prompt."""
    assert evaluate(rag, [between], progress=False).metrics["n"] == 1
    with pytest.raises(DataError, match="'between': its ranking prompt with 5 passages must fit into"):
        evaluate(listening(rag), [between], progress=False)
    assert evaluate(rag, [*SHORT, between], on_error="skip", progress=False).skipped == 1


@pytest.mark.parametrize("answer_mode", ["rag_sequence", "rag_token"])
def test_marginalising_modes_leave_out_the_same_questions(answer_mode: str, base: Path, index: PassageIndex) -> None:
    rag = RAG.create(
        index=index,
        base=base,
        selector=SelectorConfig(num_candidates=2, num_selected=1, use_language_model=False),
        decoding=DecodingConfig(max_new_tokens=3),
        adapter=AdapterConfig(r=3),
        device="cpu",
        answer_mode=answer_mode,
    )
    found = evaluate(rag, [TOO_LONG, *SHORT], on_error="skip", progress=False)
    assert (list(found.too_long), found.metrics["n"]) == (["too-long"], 2)


# -- answering -------------------------------------------------------------------------------------------------


def test_one_question_that_cannot_be_asked_is_an_error(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rag.retriever, "search", refuse)
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError, match=r"this one does not: its answer prompt with 2 passages must fit into 4093"):
            rag.answer(TOO_LONG.question, on_error=on_error)
    with pytest.raises(DataError, match=r"visible character.*it is empty"):
        rag.answer(" ")
    with pytest.raises(DataError, match="this one does not"):
        next(rag.stream(TOO_LONG.question))


def test_a_batch_with_one_unfit_question_answers_the_others(
    rag: RAG, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    questions = [SHORT[0].question, TOO_LONG.question, " ", SHORT[1].question]
    first, long, empty, last = rag.answer(questions, on_error="skip")
    assert (long, empty) == (None, None)
    assert [first, last] == rag.answer([e.question for e in SHORT])
    assert "2 of 4 do not (number 2, 3)" in caplog.text
    assert rag.answer([" "], on_error="skip") == [None]
    monkeypatch.setattr(rag.retriever, "search", refuse)
    with pytest.raises(DataError, match=r"2 of 4 do not \(number 2, 3\): its answer prompt.*on_error"):
        rag.answer(questions)
    with pytest.raises(UsageError, match='on_error must be "raise" or "skip", got'):
        rag.answer(questions, on_error="ignore")


# -- training --------------------------------------------------------------------------------------------------


def config(**changes: object) -> DROConfig:
    defaults = {
        "rounds": 1,
        "e_step.num_permutations": 2,
        "e_step.proposals_per_sample": 1,
        "supervised.num_train_epochs": 0,
        "m_step.learning_rate": 1e-3,
    }
    return dro_config(**defaults | changes)


def test_training_leaves_out_what_does_not_fit(
    rag: RAG, between: QAExample, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also a question whose ranking prompt will be read only when the gate has opened."""
    examples = [SHORT[0], TOO_LONG, between, SHORT[1]]
    trainer = DROTrainer(
        rag,
        config(),
        train_dataset=examples,
        eval_dataset=examples,
        output_dir=tmp_path / "run",
        compute_metrics=evaluate,
        progress=False,
    )
    assert [e.id for e in trainer.train_examples] == ["q1", "q2"]
    assert trainer.eval_examples is not None and [e.id for e in trainer.eval_examples] == ["q1", "q2"]
    assert {split: list(ids) for split, ids in trainer.left_out.items()} == {
        "train": ["too-long", "between"],
        "eval": ["too-long", "between"],
    }
    assert "Left out 2 of 4 evaluation questions" in caplog.text and "'too-long', 'between'" in caplog.text
    assert [row["eval_n"] for row in trainer.train().history] == [2, 2]


def test_a_selector_that_does_not_learn_keeps_what_it_does_not_read(
    rag: RAG, between: QAExample, tmp_path: Path
) -> None:
    settings = config(train_selector=False)
    trainer = DROTrainer(
        rag,
        settings,
        train_dataset=[between, *SHORT],
        eval_dataset=[between],
        output_dir=tmp_path / "run",
        compute_metrics=evaluate,
        progress=False,
    )
    assert [e.id for e in trainer.train_examples] == ["between", "q1", "q2"]
    assert trainer.left_out == {"train": {}, "eval": {}}
    assert [row["eval_n"] for row in trainer.train().history] == [1, 1]


def test_training_without_a_fitting_question_is_refused_before_the_first_round(
    rag: RAG, between: QAExample, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"evaluation questions must fit .*none of 1 does.*its ranking prompt"):
        DROTrainer(
            rag,
            config(),
            train_dataset=SHORT,
            eval_dataset=[between],
            output_dir=tmp_path / "run",
            compute_metrics=evaluate,
            progress=False,
        )
    with pytest.raises(DataError, match=r"training questions must fit.*none of 2 does"):
        DROTrainer(
            rag,
            config(),
            train_dataset=[between, TOO_LONG],
            eval_dataset=SHORT,
            output_dir=tmp_path / "run",
            compute_metrics=evaluate,
            progress=False,
        )
    assert not (tmp_path / "run").exists()


def test_questions_with_equal_ids_are_distinguished(rag: RAG, tmp_path: Path) -> None:
    twin = replace(SHORT[0], id=TOO_LONG.id)
    trainer = DROTrainer(rag, config(), train_dataset=[TOO_LONG, twin], output_dir=tmp_path / "run", progress=False)
    assert trainer.train_examples == [twin]


def test_all_trials_of_a_sweep_use_the_same_questions(
    base: Path, index: PassageIndex, rag: RAG, between: QAExample, tmp_path: Path
) -> None:
    for split in SPLITS:
        write_examples([SHORT[0], between, SHORT[1], TOO_LONG], tmp_path / f"{split}.jsonl")
    settings = SweepSettings(
        recipes=("no_training",),
        index=str(index.path),
        **{f"{split}_dataset": str(tmp_path / f"{split}.jsonl") for split in SPLITS},
        base=str(base),
        device="cpu",
        selector=SelectorConfig(num_candidates=5, num_selected=2),
        decoding=DecodingConfig(max_new_tokens=3),
        adapter=AdapterConfig(r=3),
        general_tasks=0,
        answerable_only=False,
    )
    data = Sweep(tmp_path / "sweep", settings, progress=False).run()
    assert data["failed"] == []
    assert data["too_long"] == {split: ["between", "too-long"] for split in SPLITS}
    assert data["trials"][0]["name"] == "no_training" and data["dataset"]["n"] == 2
    again = Sweep(tmp_path / "sweep", settings, progress=False).run()
    assert again["too_long"] == data["too_long"]


# -- retention tasks -------------------------------------------------------------------------------------------


def test_retention_tasks_that_do_not_fit_are_found_first_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    generator = Generator(tiny_language_model(context=60))

    def write(name: str, rows: Sequence[dict[str, str]]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    files: dict[str, Any] = {
        "answers": (write("a.jsonl", [{"prompt": "say y", "answer": "y"}, {"prompt": "x" * 90, "answer": "y"}]),),
        "pairs": (write("p.jsonl", [{"good": "a", "bad": "b"}, {"good": "a", "bad": "b" * 90}]),),
        "drift": (write("d.jsonl", [{"prompt": "say y"}, {"prompt": "x" * 90}]),),
        "max_new_tokens": 3,
    }
    scores = measure_model(generator, "base", RetentionTasks(**files, on_error="skip"), progress=False).scores
    assert {(score.task, len(score.items)) for score in scores} == {("a", 1), ("p", 1), ("d", 1)}
    assert caplog.text.count("Left out 1 of 2 records") >= 3
    monkeypatch.setattr(generator.language_model, "hidden", refuse)
    for kind in ("answers", "pairs", "drift"):
        # The file that is measured last is looked at before the first is measured.
        short = {"answers": (write("s.jsonl", [{"prompt": "say y", "answer": "y"}]),)}
        with pytest.raises(DataError, match="--on_error skip"):
            measure_model(
                generator, "base", RetentionTasks(**{**short, kind: files[kind]}, max_new_tokens=3), progress=False
            )
    only_long = RetentionTasks(drift=(write("l.jsonl", [{"prompt": "x" * 90}]),), on_error="skip")
    with pytest.raises(DataError, match="must leave"):
        measure_model(generator, "base", only_long, progress=False)
    with pytest.raises(UsageError, match="on_error must be"):
        RetentionTasks(drift=("d.jsonl",), on_error="ignore")


# -- the command line ------------------------------------------------------------------------------------------


def run(words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_commands_leave_out_or_refuse_what_does_not_fit(
    rag: RAG, between: QAExample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = listening(rag).save_pretrained(tmp_path / "tuned")
    write_examples([SHORT[0], TOO_LONG, between], tmp_path / "q.jsonl")
    evaluation = ["evaluate", "--bundle", bundle, "--questions", tmp_path / "q.jsonl", "--device", "cpu", "--quiet"]
    code, _, err = run(evaluation, capsys)
    assert code == 3 and "2 of 3 questions that do not, first 'too-long'" in err
    code, out, err = run([*evaluation, "--on_error", "skip", "--json"], capsys)
    dataset = json.loads(out)["dataset"]
    assert (code, dataset["n"], dataset["skipped"], dataset["too_long"]) == (0, 1, 2, ["between", "too-long"])
    ask = ["ask", "--bundle", bundle, "--device", "cpu", SHORT[0].question, TOO_LONG.question]
    code, _, err = run(ask, capsys)
    assert code == 3 and "1 of 2 do not (number 2)" in err
    code, out, _ = run([*ask, "--on_error", "skip", "--json"], capsys)
    first, second = json.loads(out)["answers"]
    assert (code, first["question"], second) == (0, SHORT[0].question, None)
    code, out, _ = run([*ask, "--on_error", "skip"], capsys)
    assert code == 0 and "(left out: it is empty or does not fit the model's context)" in out
    batch = ["inspect", "batch", "--bundle", bundle, "--device", "cpu", "--questions", tmp_path / "q.jsonl"]
    small = {"e_step.num_permutations": 2, "e_step.proposals_per_sample": 1, "m_step.per_device_train_batch_size": 3}
    code, out, _ = run([*batch, *(f"--{name}={value}" for name, value in small.items()), "--json"], capsys)
    assert code == 0 and {sequence["question"] for sequence in json.loads(out)["sequences"]} == {SHORT[0].question}


def test_only_the_question_decides_whether_it_fits(rag: RAG) -> None:
    """Whatever is retrieved can be cut to nothing, so nothing has to be retrieved to know."""
    fits = [n for n in range(1500, 2100, 20) if why_too_long(question(n), rag.selector, rag.generator) is None]
    assert fits == list(range(1500, fits[-1] + 1, 20))
    assert rag.answer(question(fits[-1])).question == question(fits[-1])
    with pytest.raises(DataError):
        rag.answer(question(fits[-1] + 20))
