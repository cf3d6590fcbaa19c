"""Structural rules: import direction, no import circles, no pickle, no `utils` modules, no file name twice.

The rules are read from the syntax trees, so imports inside functions and under TYPE_CHECKING count as well, and so do
the modules that a package or a registry imports on first use by their names.
"""

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("indexes", "generator", "retriever", "training", "rag")  # each may import itself and those before it
OUTSIDE = ("tests", "benchmarks", "examples")  # not shipped, so nothing that is shipped may need them
FOLDERS = (
    "indexes.tiny_encoder",
    "indexes.records",
    "indexes.corpora",
    "indexes.vectors",
    "indexes.directory",
    "training.questions",
    "rag.tiny_base",
    "rag.models",
    "rag.worlds",
    "rag.answering",
    "rag.evaluation",
    "rag.forgetting",
    "rag.planning",
    "rag.report",
    "rag.experiments",
    "rag.diagnostics",
    "rag.commands",
)
"""Each may import those before it; the modules that stand directly in a package may come in between."""
PICKLING = ("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
LOADERS = ("indexes/registry.py", "indexes/lazy_exports.py", "rag/cli.py", "rag/deferred_imports.py")
NAMELESS = ("utils", "util", "common", "types", "helpers", "misc")


@cache
def syntax_tree(path: Path) -> ast.Module:
    """Parsed once for all rules: no test changes a file that another one reads."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module that is imported, also lazily by its name in a string."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                yield node.lineno, module
            case ast.Call(func=ast.Name(id="Registry"), keywords=keywords):
                for keyword in keywords:
                    if isinstance(keyword.value, ast.Dict):
                        yield from (
                            (value.lineno, value.value.partition(":")[0])
                            for value in keyword.value.values
                            if isinstance(value, ast.Constant) and isinstance(value.value, str)
                        )
            case (
                ast.Assign(targets=[ast.Name(id="_EXPORTS")], value=ast.Dict(values=values))
                | ast.AnnAssign(target=ast.Name(id="_EXPORTS"), value=ast.Dict(values=values))
            ):
                yield from (
                    (value.lineno, value.value)
                    for value in values
                    if isinstance(value, ast.Constant) and isinstance(value.value, str)
                )


def hidden_imports(tree: ast.AST) -> Iterator[int]:
    """Lines that import a module by a name that cannot be read here: neither a string nor an entry of `_EXPORTS`.

    Else a package whose table of lazy imports has another name would be exempt from the rules.
    """
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"), args=args
            ):
                match args:
                    case [ast.Constant(value=str()) | ast.Subscript(value=ast.Name(id="_EXPORTS")), *_]:
                        pass
                    case _:
                        yield node.lineno
            case ast.Call(func=ast.Name(id="lazy_exports"), args=args):
                match args:
                    case [_, ast.Name(id="_EXPORTS")]:
                        pass
                    case _:
                        yield node.lineno
            case (
                ast.Assign(targets=[ast.Name(id="_EXPORTS")], value=value)
                | ast.AnnAssign(target=ast.Name(id="_EXPORTS"), value=value)
                | ast.AugAssign(target=ast.Name(id="_EXPORTS"), value=value)
            ):
                texts = isinstance(value, ast.Dict) and all(isinstance(v, ast.Constant) for v in value.values)
                if not texts or isinstance(node, ast.AugAssign):
                    yield node.lineno


def violations(root: Path) -> list[str]:
    """One line per broken rule, each opening with the offending file."""
    found: list[str] = []
    for rank, package in enumerate(PACKAGES):
        forbidden = (*PACKAGES[rank + 1 :], *OUTSIDE)
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            module = path.parent.name if path.name == "__init__.py" else path.stem
            if module in NAMELESS:
                found.append(f"{name}: a module must be named after what it holds, not {module!r}")
            tree = syntax_tree(path)
            # Both import what tables name that are read above: `_EXPORTS` and `Registry(builtin={...})`.
            for line in hidden_imports(tree) if name not in LOADERS else ():
                found.append(f"{name}:{line}: a module that is imported on first use must be named in _EXPORTS")
            for line, imported in imported_modules(tree):
                top = imported.partition(".")[0]
                if top in forbidden:
                    found.append(f"{name}:{line}: {package} must not import {imported}")
                if top in PICKLING:
                    found.append(f"{name}:{line}: nothing is pickled here, yet {imported} is imported")
    return found


def import_graph(root: Path) -> dict[str, set[str]]:
    """Every module of the five packages with the modules that it imports, by their full names."""
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
    }
    graph = {}
    for module, path in files.items():
        tree = syntax_tree(path)
        names = [name for _, name in imported_modules(tree)]
        names += [
            other for folder in listed_folders(tree, module, names) for other in files if other.startswith(folder)
        ]
        found = {_longest_known(name, files) for name in names}
        graph[module] = found - {"", module}
    return graph


def listed_folders(tree: ast.AST, module: str, imported: Sequence[str]) -> Iterator[str]:
    """Folders, as "package.", whose modules are found by `iter_modules(__path__)` or `iter_modules(name.__path__)`."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="iter_modules"), args=[ast.Name(id="__path__")]):
                yield f"{module}."
            case ast.Call(func=ast.Name(id="iter_modules"), args=[ast.Attribute(value=ast.Name(id=folder))]):
                yield from (f"{name}." for name in imported if name.rpartition(".")[2] == folder)


def _longest_known(name: str, files: Mapping[str, Path]) -> str:
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """One line per circle that a depth-first walk closes: "a -> b -> a"."""
    found: list[str] = []
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> None:
        if node in path:
            found.append(" -> ".join([*path[path.index(node) :], node]))
        elif node not in done:
            for other in sorted(graph[node]):
                walk(other, [*path, node])
            done.add(node)

    for node in sorted(graph):
        walk(node, [])
    return found


def folder_of(module: str, graph: Mapping[str, set[str]]) -> str:
    """The folder that a module stands in; a module directly in a package stands for itself."""
    parts = module.split(".")
    folder = ".".join(parts[:2])
    return folder if len(parts) > 1 and any(other.startswith(folder + ".") for other in graph) else module


def folder_graph(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Imports between folders, as `folder_of` names them."""
    folders: dict[str, set[str]] = {folder_of(module, graph): set() for module in graph}
    for module, imported in graph.items():
        source = folder_of(module, graph)
        folders[source] |= {folder_of(other, graph) for other in imported} - {source}
    return folders


def upward_imports(graph: Mapping[str, set[str]]) -> list[str]:
    """Imports of a folder that comes later in `FOLDERS`."""
    rank = {folder: place for place, folder in enumerate(FOLDERS)}
    return [
        f"{module} -> {other}"
        for module, imported in sorted(graph.items())
        for other in sorted(imported)
        if rank.get(folder_of(module, graph), len(FOLDERS)) < rank.get(folder_of(other, graph), -1)
    ]


def test_imports_follow_the_rules() -> None:
    assert violations(ROOT) == []


def test_imports_are_acyclic(capsys: pytest.CaptureFixture[str]) -> None:
    graph = import_graph(ROOT)
    found = circles(graph)
    with capsys.disabled():
        print(f"\n{len(graph)} modules, {sum(map(len, graph.values()))} imports, {len(found)} circles")
    assert len(graph) > 100
    assert found == []


def test_folders_import_downwards_only(capsys: pytest.CaptureFixture[str]) -> None:
    graph = import_graph(ROOT)
    upward = upward_imports(graph)
    with capsys.disabled():
        print(f"\n{len(FOLDERS)} folders, {len(upward)} upward imports")
    subfolders = {path.parent for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in subfolders} == set(FOLDERS)
    assert upward == []
    assert circles(folder_graph(graph)) == []


def test_no_file_name_exists_twice() -> None:
    """Whoever opens a file by its name gets the right one."""
    names = Counter(
        path.name
        for folder in (*PACKAGES, *OUTSIDE)
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_all_five_packages_exist() -> None:
    """A checker that looks at empty folders would always be content."""
    for package in PACKAGES:
        assert len(list((ROOT / package).glob("*.py"))) > 1, package


TOY = {
    "indexes/__init__.py": "",
    "indexes/corpus.py": "import json\nfrom indexes import errors\nfrom .errors import DataError\n",
    "indexes/errors.py": "class DataError(Exception):\n    pass\n",
    "generator/prompts.py": "from indexes.corpus import Passage\n",
    "retriever/dense.py": "def search():\n    import generator.prompts\n",
    "training/trainer.py": "import retriever.dense, indexes\n",
    "rag/__init__.py": "_EXPORTS = {'RAG': 'rag.pipeline'}\n",
    "rag/pipeline.py": "from training import trainer\nfrom rag.metrics import f1\n",
    "rag/metrics.py": "import ragged, generators\n",
}


def toy_tree(root: Path, name: str = "rag/metrics.py", source: str = "") -> Path:
    for path, text in {**TOY, name: source}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_a_valid_toy_tree_passes(tmp_path: Path) -> None:
    root = toy_tree(tmp_path, "rag/metrics.py", TOY["rag/metrics.py"])
    assert violations(root) == []
    assert circles(import_graph(root)) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("indexes/errors.py", "def f():\n    from indexes.corpus import read\n", "indexes.corpus -> indexes.errors"),
        (
            "indexes/errors.py",
            "KINDS = Registry('corpus', builtin={'own': 'indexes.corpus:Corpus'})\n",
            "indexes.corpus -> indexes.errors",
        ),
    ],
)
def test_a_circle_is_found(tmp_path: Path, path: str, source: str, expected: str) -> None:
    assert circles(import_graph(toy_tree(tmp_path, path, source))) == [f"{expected} -> indexes.corpus"]


def test_an_upward_import_is_found() -> None:
    graph: dict[str, set[str]] = {"rag.evaluation.a": {"rag.report.b"}, "rag.report.b": set(), "rag.report": set()}
    assert upward_imports(graph) == ["rag.evaluation.a -> rag.report.b"]


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        (
            "indexes/corpus.py",
            "import generator\n",
            "indexes/corpus.py:1: indexes must not import generator",
        ),
        (
            "generator/prompts.py",
            "def f():\n    from retriever.dense import search\n",
            "generator/prompts.py:2: generator must not import retriever.dense.search",
        ),
        (
            "retriever/dense.py",
            "class A:\n    def f(self):\n        import training.trainer as t\n",
            "retriever/dense.py:3: retriever must not import training.trainer",
        ),
        (
            "training/deep/down.py",
            "import os\nif os:\n    from rag import RAG\n",
            "training/deep/down.py:3: training must not import rag.RAG",
        ),
        (
            "training/trainer.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rag.pipeline import RAG\n",
            "training/trainer.py:3: training must not import rag.pipeline.RAG",
        ),
        (
            "training/__init__.py",
            "_EXPORTS = {\n    'DROTrainer': 'training.trainer',\n    'RAG': 'rag.pipeline',\n}\n",
            "training/__init__.py:3: training must not import rag.pipeline",
        ),
        (
            "training/__init__.py",
            "_EXPORTS: dict[str, str] = {'RAG': 'rag.pipeline'}\n",
            "training/__init__.py:1: training must not import rag.pipeline",
        ),
        (
            "indexes/__init__.py",
            "LAZY = {'RAG': 'rag.pipeline'}\ndef __getattr__(name):\n    return import_module(LAZY[name])\n",
            "indexes/__init__.py:3: a module that is imported on first use must be named in _EXPORTS",
        ),
        (
            "indexes/__init__.py",
            "LAZY = {'RAG': 'rag.pipeline'}\n__getattr__, __dir__ = lazy_exports(__name__, LAZY)\n",
            "indexes/__init__.py:2: a module that is imported on first use must be named in _EXPORTS",
        ),
        (
            "indexes/__init__.py",
            "MORE = {'RAG': 'rag.pipeline'}\n_EXPORTS = {'Corpus': 'indexes.corpus', **MORE}\n",
            "indexes/__init__.py:2: a module that is imported on first use must be named in _EXPORTS",
        ),
        (
            "indexes/corpus.py",
            "import importlib\nm = importlib.import_module('rag.cli')\n",
            "indexes/corpus.py:2: indexes must not import rag.cli",
        ),
        ("rag/cli.py", "from tests import conftest\n", "rag/cli.py:1: rag must not import tests.conftest"),
        (
            "rag/cli.py",
            "def f():\n    import pickle\n",
            "rag/cli.py:2: nothing is pickled here, yet pickle is imported",
        ),
        (
            "indexes/utils.py",
            "",
            "indexes/utils.py: a module must be named after what it holds, not 'utils'",
        ),
        (
            "rag/common/__init__.py",
            "",
            "rag/common/__init__.py: a module must be named after what it holds, not 'common'",
        ),
    ],
)
def test_the_checker_names_the_offending_file(tmp_path: Path, path: str, source: str, expected: str) -> None:
    assert violations(toy_tree(tmp_path, path, source)) == [expected]


# The libraries are imported once, and each package in a fork of that process: the first of ours that it imports. Prints
# for each which of the five were loaded on the way, or why it could not be imported.
IMPORT_ALONE = """
import importlib, json, os, pkgutil, sys, traceback
import accelerate, datasets, faiss, peft, sentence_transformers, torch, transformers

packages = sys.argv[1:]

def loaded():
    return sorted(set(packages) & {name.partition(".")[0] for name in sys.modules})

assert loaded() == []
for package in packages:
    if os.fork() == 0:
        try:
            found = importlib.import_module(package)
            for module in pkgutil.walk_packages(found.__path__, package + "."):
                if not module.name.endswith("__main__"):
                    importlib.import_module(module.name)
            print(json.dumps([package, loaded()]), flush=True)
        except BaseException:
            print(json.dumps([package, traceback.format_exc()]), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def loaded_with() -> dict[str, list[str] | str]:
    """Which of the packages are loaded when one is imported with every module in it, or the error."""
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALONE, *PACKAGES],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return dict(json.loads(line) for line in result.stdout.splitlines())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX")
@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_importable_alone(package: str, loaded_with: dict[str, list[str] | str]) -> None:
    """The first import of a process is this package; a cycle that another import order hides shows here."""
    loaded = loaded_with[package]
    assert isinstance(loaded, list), loaded
    assert package in loaded
    assert set(loaded) <= set(PACKAGES[: PACKAGES.index(package) + 1])
