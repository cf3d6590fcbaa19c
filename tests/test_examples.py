"""Every ``examples/new_*.py`` runs as a script, and adds to the library in at most 60 lines.

A script whose docstring shows arguments ("python examples/new_chart.py RUN_FOLDER") needs the files of a training run,
and is run by the tests of its feature.
"""

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from indexes import Corpus, Passage
from indexes.registry import Registry
from training import QAExample, load_examples

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("new_*.py"))
LONGEST = 60  # lines


def command(path: Path) -> str | None:
    """How the docstring of a script says to run it, from its path on."""
    docstring = path.read_text(encoding="utf-8").partition('"""\n\n')[0]
    found = re.search(r"^    python (examples/.+)$", docstring, re.MULTILINE)
    return found[1] if found else None


RUNNABLE = [path for path in EXAMPLES if command(path) == f"examples/{path.name}"]


@pytest.fixture
def registrations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kinds that a script registers; they are removed from their registries after the test."""
    register = Registry.register
    added: list[tuple[Registry[Any], str]] = []

    def recording(registry: Registry[Any], kind: str, entry: Any = None) -> Any:
        if sys._getframe(1).f_globals["__name__"] == "__main__":
            added.append((registry, kind))
            kinds.append(kind)
        return register(registry, kind, entry)

    kinds: list[str] = []
    monkeypatch.setattr(Registry, "register", recording)
    yield kinds
    for registry, kind in added:
        registry._registered.pop(kind, None)


@pytest.fixture
def run_example(
    registrations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Runs a script by its path in an empty folder and returns what it prints."""

    def run(path: Path) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(path)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


def example(name: str) -> Path:
    return next(path for path in EXAMPLES if path.name == name)


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_an_example_runs_and_registers_what_it_adds(path: Path, run_example: Any, registrations: list[str]) -> None:
    assert run_example(path).strip()
    assert registrations


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_begins_with_how_to_run_it(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
    assert (command(path) or "").startswith(f"examples/{path.name}")


def test_the_corpus_format_is_read_by_suffix_gzipped_and_with_broken_records(run_example: Any, tmp_path: Path) -> None:
    run_example(example("new_corpus_format.py"))
    file = tmp_path / "some.nbib"
    file.write_text("PMID- 7\nTI  - A title\n\nTI  - without id\n\nPMID- 8\nAB  - two\n      lines\n")
    corpus = Corpus.from_file(file, on_error="skip", quarantine=tmp_path / "quarantine.jsonl")
    assert list(corpus) == [Passage("7", "A title", ""), Passage("8", "", "two lines")]
    assert f"{file}:4: an article must have a PMID" in (tmp_path / "quarantine.jsonl").read_text()


def test_the_question_format_is_recognised_and_its_errors_name_the_line(run_example: Any, tmp_path: Path) -> None:
    run_example(example("new_question_format.py"))
    file = tmp_path / "questions.jsonl"
    file.write_text(
        '{"QuestionId": "a", "RawQuestion": "q?", "Parses": []}\n{"RawQuestion": "q?", "Parses": {}}\n',
        encoding="utf-8",
    )
    assert load_examples(file, limit=1) == [QAExample("a", "q?")]
    with pytest.raises(ValueError, match=r"questions\.jsonl:2: Parses must be a list, got dict"):
        load_examples(file)
