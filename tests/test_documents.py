"""Documents that describe the tree: the map of files, and files and tests that are named in prose."""

import re
from pathlib import Path

import architecture_map
import pytest

ROOT = Path(__file__).parents[1]
PATHS = r"`((?:indexes|generator|retriever|training|rag|tests|benchmarks|examples|docs)/[\w/.]+\.(?:py|md|yaml|sh))`"


def test_the_map_is_that_of_the_tree() -> None:
    text = architecture_map.FILE.read_text(encoding="utf-8")
    assert architecture_map.parts(text)[1] == architecture_map.map_text(), "run: python tests/architecture_map.py"


def test_every_folder_and_file_says_what_it_holds() -> None:
    for package in architecture_map.PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            if file.name != "__main__.py":
                assert len(architecture_map.first_line(file)) > 20, file


@pytest.mark.parametrize(
    "file", sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]), ids=lambda file: file.name
)
def test_documents_name_files_that_exist(file: Path) -> None:
    """The changelog and the log of experiments also name files that have gone."""
    if file.name in ("CHANGELOG.md", "experiments.md"):
        pytest.skip("a record of the past")
    missing = [path for path in re.findall(PATHS, file.read_text(encoding="utf-8")) if not (ROOT / path).exists()]
    assert missing == []


def test_traps_name_tests_that_exist() -> None:
    text = (ROOT / "docs/traps.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", text)
    assert len(named) >= 20
    for file, function in named:
        assert f"def {function}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), function
