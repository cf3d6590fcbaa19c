"""Each option has the name that it has in Python; an option by its old name is answered with the new one."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from generator.configs import ModelConfig
from indexes import Chunker, Encoder, IndexWriter, build_index
from rag import RAG, DROTrainer, evaluate
from rag.cli import COMMANDS, _parser, main
from rag.commands.option_names import RENAMED, renamed
from training import DROConfig, load_examples
from training import trainer as training_trainer

EVERYWHERE = {"config", "json", "debug", "quiet", "help", "print_config"}
PIPELINE = {"index", "base", "encoder", "retriever", "selector", "decoding", "adapter", "chat", "answer_mode"}
# What a command adds to the names of the functions that it calls.
ADDED: dict[str, set[str]] = {
    "index build": {"chunk_tokens", "chunk_overlap", "chunk_format", "corpus", "encoder"},
    "train": {"max_eval_samples", "quoting", "answerable_only"},
    "ask": {"bundle"},
    "evaluate": {
        "bundle",
        "questions",
        "output",
        "name",
        "label",
        "order_bias",
        "attribution",
        "seed",
        "compare",
        "metrics",
    },
}
CALLED: dict[str, list[Callable[..., Any] | type]] = {
    "index build": [build_index, Encoder.from_pretrained, Chunker],
    "train": [RAG.create, ModelConfig, DROConfig, training_trainer.DROTrainer, DROTrainer.train],
    "ask": [RAG.create, ModelConfig, RAG.from_pretrained, RAG.answer],
    "evaluate": [RAG.create, ModelConfig, RAG.from_pretrained, evaluate, load_examples],
}


def options(name: str) -> set[str]:
    """The options of a command; of nested ones the group."""
    actions = _parser(name)._actions
    return {action.dest.partition(".")[0] for action in actions if action.dest != "==SUPPRESS=="} - EVERYWHERE


def parameters(called: Iterable[Callable[..., Any] | type]) -> set[str]:
    found: set[str] = set()
    for one in called:
        found |= {f.name for f in fields(one)} if is_dataclass(one) else set(inspect.signature(one).parameters)
    return found


@pytest.mark.parametrize("name", CALLED)
def test_options_are_parameters(name: str) -> None:
    unknown = options(name) - parameters(CALLED[name]) - ADDED[name]
    assert unknown == ({"questions"} & unknown if name == "evaluate" else {"question"} & unknown)


def test_every_command_of_a_pipeline_has_the_same_options() -> None:
    for name in ("train", "ask", "evaluate", "inspect prompts", "plan"):
        assert options(name) >= PIPELINE, name


def test_no_old_name_is_an_option() -> None:
    for name in COMMANDS:
        known = options(name)
        for old, new in RENAMED.items():
            assert not (old in known and new in known), (name, old)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "--train", "q.jsonl", "--output_dir", "run"], "--train is now called --train_dataset"),
        (["train", "--dev=q.jsonl"], "--dev is now called --eval_dataset"),
        (["index", "build", "--corpus", "c", "--output", "i"], "--output is now called --output_dir"),
        (["ask", "who?", "--generation.top_p", "1"], "--generation.top_p is now called --decoding.top_p"),
        (["train", "--resume", "true"], "--resume is now called --resume_from_checkpoint"),
        (["evaluate", "--support", "true"], "--support is now called --attribution"),
        (["forgetting", "--window", "64"], "--window is now called --text_window"),
    ],
)
def test_an_old_name_says_the_new_one(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert expected in capsys.readouterr().err


def test_an_old_name_in_yaml_says_the_new_one(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.yaml").write_text("generation:\n  top_p: 0.5\n")
    assert main(["ask", "who?", "--config", str(tmp_path / "old.yaml")]) == 2
    assert "It is now called 'decoding" in capsys.readouterr().err


def test_renamed_only_where_the_command_has_the_new_name() -> None:
    assert renamed("output", ["output_dir"]) == "output_dir"
    assert renamed("output", ["output"]) == renamed("rounds", ["rounds"]) == ""


def test_a_writer_takes_the_options_of_its_commands() -> None:
    shared = {"index", "corpus", "encoder", "trust_remote_code"}
    assert options("index add") - parameters([IndexWriter]) <= shared
