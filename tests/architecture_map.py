"""The map of files in docs/architecture.md, written from the first lines of docstrings.

python tests/architecture_map.py    # writes the map again
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs/architecture.md"
PACKAGES = ("indexes", "generator", "retriever", "training", "rag")
BEGIN, END = "<!-- map: begin -->\n", "<!-- map: end -->\n"


def first_line(file: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def section(folder: Path) -> str:
    """A table of one folder: what it is for, then a line for each file."""
    name = folder.relative_to(ROOT).as_posix()
    lines = [f"### {name}/", "", first_line(folder / "__init__.py"), "", "| file | what it holds |", "|---|---|"]
    files = sorted(file for file in folder.glob("*.py") if file.name not in ("__init__.py", "__main__.py"))
    lines += [f"| `{file.name}` | {first_line(file).replace('|', chr(92) + '|')} |" for file in files]
    return "\n".join(lines if files else lines[:3]) + "\n\n"


def map_text() -> str:
    """All folders of the five packages, each package before its subfolders."""
    folders = (folder for package in PACKAGES for folder in sorted({f.parent for f in (ROOT / package).rglob("*.py")}))
    return "".join(section(folder) for folder in folders)


def parts(text: str) -> tuple[str, str, str]:
    """The document before, inside and behind the markers of the map."""
    found = re.fullmatch(rf"(.*{BEGIN})(.*)({END}.*)", text, re.DOTALL)
    if found is None:
        raise SystemExit(f"{FILE} must hold {BEGIN!r} and {END!r}")
    return found[1], found[2], found[3]


if __name__ == "__main__":
    before, _, behind = parts(FILE.read_text(encoding="utf-8"))
    FILE.write_text(before + map_text() + behind, encoding="utf-8")
