"""What is shipped, with which versions: pyproject.toml, constraints.txt and a wheel that is really built."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from setuptools import find_namespace_packages

ROOT = Path(__file__).parents[1]
PACKAGES = ("indexes", "generator", "retriever", "training", "rag")
# Where the name that is imported is not the name that is installed.
DISTRIBUTIONS = {
    "bs4": "beautifulsoup4",
    "faiss": "faiss-cpu",
    "grpc": "grpcio",
    "Stemmer": "pystemmer",
    "yaml": "pyyaml",
}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    matches = [re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line) for line in lines if line[:1] not in ("#", "")]
    assert all(matches), "every line must be name==version, canonical and without a local part such as +cpu"
    names = [match[1] for match in matches if match]
    assert names == sorted(set(names)), "sorted, each once"
    return {match[1]: Version(match[2]) for match in matches if match}


def requirements(pyproject: dict[str, Any], *extras: str) -> dict[str, Requirement]:
    """The ranges of the project and of the extras, by canonical name, without the project's own name."""
    project = pyproject["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines.extend(project["optional-dependencies"][extra])
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(entry.name): entry for entry in parsed if entry.name != project["name"]}


def third_party_imports() -> Iterator[tuple[str, str]]:
    """File and installed name of everything that the five packages import from elsewhere."""
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module]
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - set(PACKAGES):
                yield path.relative_to(ROOT).as_posix(), canonicalize_name(DISTRIBUTIONS.get(top, top))


@pytest.fixture(scope="module")
def shipped(pyproject: dict[str, Any]) -> list[str]:
    """The packages that setuptools finds."""
    patterns = pyproject["tool"]["setuptools"]["packages"]["find"]["include"]
    return find_namespace_packages(str(ROOT), include=patterns)


def test_exactly_the_five_packages_are_shipped(shipped: list[str]) -> None:
    assert {name.partition(".")[0] for name in shipped} == set(PACKAGES)
    assert len(shipped) == len(set(shipped))


def test_every_folder_with_code_is_shipped(shipped: list[str]) -> None:
    folders = {path.parent.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert sorted({".".join(folder.parts) for folder in folders} - set(shipped)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_ships_its_types(pyproject: dict[str, Any], package: str) -> None:
    assert (ROOT / package / "py.typed").read_bytes() == b""
    assert "py.typed" in pyproject["tool"]["setuptools"]["package-data"][package]


def test_name_version_script(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    assert (project["name"], project["version"], project["requires-python"]) == ("dro-rag", "0.1.0", ">=3.11")
    assert project["scripts"] == {"rag": "rag.cli:main"}


@pytest.mark.parametrize(
    ("name", "admitted", "refused"),
    [
        ("torch", ["2.11.0", "2.12.1", "2.13.0", "2.13.0+cpu"], ["2.10.0", "2.14.0", "3.0"]),
        ("transformers", ["5.17.0", "5.23.0"], ["4.57.0", "5.16.0", "6.0"]),
        ("peft", ["0.21.0", "0.21.2"], ["0.20.0", "1.0"]),
        ("sentence-transformers", ["6.2.0"], ["5.9.0", "7.0"]),
        ("faiss-cpu", ["1.15.1"], ["1.14.0", "2.0"]),
        ("datasets", ["5.2.0"], ["5.1.0", "6.0"]),
        ("accelerate", ["1.15.0"], ["1.14.0", "2.0"]),
        ("jsonargparse", ["4.53.0"], ["4.52.0", "5.0"]),
    ],
)
def test_version_ranges(pyproject: dict[str, Any], name: str, admitted: list[str], refused: list[str]) -> None:
    specifier = requirements(pyproject)[name].specifier
    assert [version for version in admitted if version not in specifier] == []
    assert [version for version in refused if version in specifier] == []


def test_every_requirement_has_a_pin_in_its_range(pyproject: dict[str, Any], pins: dict[str, Version]) -> None:
    for name, requirement in requirements(pyproject, "dev", "documents", "gguf", "milvus", "tensorboard").items():
        assert name in pins, f"{name} is required by pyproject.toml and not pinned by constraints.txt"
        assert pins[name] in requirement.specifier, f"{name}=={pins[name]} is outside {requirement.specifier}"


def test_torch_is_pinned_without_a_build(pins: dict[str, Version]) -> None:
    assert str(pins["torch"]) == "2.13.0"


def test_optional_dependencies_are_not_required(pyproject: dict[str, Any]) -> None:
    assert not {"tensorboard", "bitsandbytes", "pypdf", "pytest"} & set(requirements(pyproject))
    marker = requirements(pyproject, "quantization")["bitsandbytes"].marker
    assert marker is not None
    assert [marker.evaluate({"sys_platform": system}) for system in ("linux", "darwin", "win32")] == [
        True,
        False,
        False,
    ]


def test_every_import_is_declared(pyproject: dict[str, Any]) -> None:
    """A library that only comes along with another one is gone when that one drops it."""
    declared = set(requirements(pyproject, "documents", "gguf", "harness", "milvus", "tensorboard", "quantization"))
    assert sorted({f"{path} imports {name}" for path, name in third_party_imports() if name not in declared}) == []


def test_the_import_scan_finds_imports() -> None:
    assert {"torch", "faiss-cpu", "datasets", "transformers"} <= {name for _, name in third_party_imports()}


def test_wheel_holds_the_packages_their_data_and_nothing_else(tmp_path: Path) -> None:
    """Built from a copy, because a build leaves folders beside the source."""
    source = tmp_path / "source"
    for package in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run(
        [*pip, "--wheel-dir", str(tmp_path), str(source)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("dro_rag-0.1.0-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, "dro_rag-0.1.0.dist-info"}
    shipped = [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".css", ".jinja", ".py", ".tsv", ".typed")
    ]
    assert sorted(set(shipped) - names) == []


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("test", "/pytest"),
        ("check", "/pytest"),
        ("check", "/mypy"),
        ("demo", "/rag demo"),
        ("lint", "/ruff check"),
        ("lint", "/mypy"),
    ],
)
def test_make_targets_name_their_command(target: str, command: str) -> None:
    """`make -n` prints what would run, so each target is alone enough to see its install and its command."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    arguments = ["make", "-n", "-B", target]
    out = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert command in out
    assert "-m venv" in out
    assert out.index("-c constraints.txt") < out.index("-e ") < out.index(command)
