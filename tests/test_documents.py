"""Documents that describe the tree: the map of files, and files and tests that are named in prose."""

import ast
import re
from pathlib import Path

import architecture_map
import pytest
from test_plain_words import IN_TEXT

ROOT = Path(__file__).parents[1]
PATHS = r"`((?:indexes|generator|retriever|training|rag|tests|benchmarks|examples|docs)/[\w/.]+\.(?:py|md|yaml|sh))`"
DOCUMENTS = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), ROOT / "benchmarks/README.md"])


def test_the_map_is_that_of_the_tree() -> None:
    text = architecture_map.FILE.read_text(encoding="utf-8")
    assert architecture_map.parts(text)[1] == architecture_map.map_text(), "run: python tests/architecture_map.py"


def test_every_folder_and_file_says_what_it_holds() -> None:
    for package in architecture_map.PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            if file.name != "__main__.py":
                assert len(architecture_map.first_line(file)) > 20, file


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_documents_name_files_that_exist(file: Path) -> None:
    """The changelog and the log of experiments also name files that have gone."""
    if file.name in ("CHANGELOG.md", "experiments.md"):
        pytest.skip("a record of the past")
    missing = [path for path in re.findall(PATHS, file.read_text(encoding="utf-8")) if not (ROOT / path).exists()]
    assert missing == []


def defined_names(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """Names that a module or a class defines or imports at its top level, each with its statement."""
    names: dict[str, ast.stmt] = {}
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names[name] = node
            case ast.Assign(targets=targets):
                names |= {target.id: node for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names[name] = node
            case ast.Import() | ast.ImportFrom():
                names |= {alias.asname or alias.name: node for alias in node.names}
            case ast.If():  # imports for the type checker
                names |= defined_names(node.body)
    return names


def exists(dotted: str, root: Path) -> bool:
    """Whether a dotted name is a package, a module, or a name that a module or a class defines."""
    parts = dotted.split(".")
    folder = root
    while parts and (folder / parts[0]).is_dir():
        folder /= parts.pop(0)
    if parts and (folder / f"{parts[0]}.py").is_file():
        file = folder / f"{parts.pop(0)}.py"
    else:
        file = folder / "__init__.py"
    if not file.is_file():
        return False
    names = defined_names(ast.parse(file.read_text(encoding="utf-8")).body)
    for position, part in enumerate(parts):
        if part not in names:
            return False
        node = names[part]
        if position + 1 < len(parts):
            if not isinstance(node, ast.ClassDef):
                return False
            names = defined_names(node.body)
    return True


@pytest.mark.parametrize(("name", "least"), [("objective.md", 30), ("traps.md", 0), ("decisions.md", 5)])
def test_dotted_names_in_documents_are_defined(name: str, least: int) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join(architecture_map.PACKAGES)})(?:\.\w+)+)(?:\([^`]*\))?`", text)
    named = [dotted for dotted in named if not dotted.endswith((".py", ".md", ".yaml", ".json"))]
    assert len(named) >= least
    assert [dotted for dotted in named if not exists(dotted, ROOT)] == []


@pytest.mark.parametrize(
    ("dotted", "expected"),
    [
        ("pack", True),
        ("pack.module", True),
        ("pack.module.function", True),
        ("pack.module.CONSTANT", True),
        ("pack.module.Class.method", True),
        ("pack.module.Class.field", True),
        ("pack.exported", True),
        ("pack.gone", False),
        ("pack.module.gone", False),
        ("pack.module.Class.gone", False),
        ("pack.module.function.name", False),
        ("gone.module", False),
    ],
)
def test_names_are_resolved_without_imports(tmp_path: Path, dotted: str, expected: bool) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").write_text("from pack.module import function as exported\n")
    (tmp_path / "pack/module.py").write_text(
        "CONSTANT = 1\ndef function(): ...\nclass Class:\n    field: int = 0\n    def method(self): ...\n"
    )
    assert exists(dotted, tmp_path) == expected


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.name)
def test_documents_use_the_terms_of_the_glossary(file: Path) -> None:
    """The changelog and the glossary also name the terms of before."""
    if file.name in ("CHANGELOG.md", "glossary.md"):
        pytest.skip("it names replaced terms")
    lines = file.read_text(encoding="utf-8").splitlines()
    pattern = rf"\b(?:{'|'.join(IN_TEXT)})\b"
    assert [f"{n}: {line}" for n, line in enumerate(lines, 1) if re.search(pattern, line, re.IGNORECASE)] == []


def test_test_names_use_plain_words() -> None:
    names = [
        (file.name, node.name)
        for file in sorted((ROOT / "tests").glob("test_*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert len(names) > 1000
    banned = {word.replace(" ", "_") for word in IN_TEXT}
    assert [name for name in names if any(f"_{word}_" in f"{name[1]}_" for word in banned)] == []


def test_traps_name_tests_that_exist() -> None:
    text = (ROOT / "docs/traps.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)\.py::(\w+)`", text)
    assert len(named) >= 70
    missing = []
    for file, name in named:
        tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        if name not in defined:
            missing.append(f"{file}.py::{name}")
    assert missing == []
