"""Docstrings name what is there: every field of a documented dataclass has an entry of its own."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLASSES = [
    pytest.param(node, id=f"{file.relative_to(ROOT).as_posix()}:{node.name}")
    for package in ("indexes", "generator", "retriever", "training", "rag")
    for file in sorted((ROOT / package).rglob("*.py"))
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    if isinstance(node, ast.ClassDef)
    and "Attributes:\n" in (ast.get_docstring(node) or "")
    and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
]


def fields_of(node: ast.ClassDef) -> list[str]:
    """The annotated names of a class body that are not private."""
    targets = [entry.target for entry in node.body if isinstance(entry, ast.AnnAssign)]
    return [target.id for target in targets if isinstance(target, ast.Name) and not target.id.startswith("_")]


def entries_of(docstring: str) -> list[str]:
    """The names that the section "Attributes" explains: those that begin a line at its first indentation."""
    section = docstring.partition("Attributes:\n")[2].partition("\n\n")[0]
    return re.findall(r"^ {4}(\w+):", section, flags=re.MULTILINE)


@pytest.mark.parametrize("node", CLASSES)
def test_every_field_has_an_entry_of_its_own(node: ast.ClassDef) -> None:
    """`revision` of EncoderRecord stood in the line of `name`, where no reader and no tool finds it."""
    assert sorted(entries_of(ast.get_docstring(node) or "")) == sorted(fields_of(node))


def test_classes_were_found() -> None:
    assert "indexes/directory/manifest.py:EncoderRecord" in [parameter.id for parameter in CLASSES]
