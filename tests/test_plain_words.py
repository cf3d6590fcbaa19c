"""Plain words: names, docstrings and messages of the five packages use the terms of docs/glossary.md.

The words below were once used here in a sense of their own. Each has a plain or an established replacement, and no use
that a reader of the papers or of Hugging Face's libraries would expect.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("indexes", "generator", "retriever", "training", "rag")
IN_NAMES = {
    "abilities": "general tasks",
    "ability": "general task",
    "anew": "again",
    "defuse": "escape",
    "durable": "atomic",
    "exercise": "general task",
    "exercises": "general tasks",
    "guidance": "the term of the sampler",
    "halves": "partial files",
    "harbour": "unseen domain",
    "heard": "what the language model scored",
    "lab": "demo experiment",
    "laboratory": "demo experiment",
    "ledger": "provenance",
    "mend": "repair",
    "oversampling": "proposals per sample",
    "ours": "focus recipe",
    "pocket": "tiny",
    "standings": "results",
    "timeless": "without timings",
    "told": "given",
    "unheard": "skipped",
    "unfit": "unsupported",
    "vanilla": "no training",
    "watched": "evaluated",
}
"""Words inside names (between underscores or capitals), each with what to say."""
IN_TEXT = {
    "anew": "again, from the start",
    "came": "got",
    "defused": "escaped",
    "harbour": "unseen domain",
    "heard": "scored",
    "laboratory": "demo experiment",
    "mended": "fixed",
    "nobody": "no process, no user, nothing",
    "pocket": "tiny",
    "somebody": "another process, a user",
    "standings": "results",
    "told apart": "distinguished",
    "unheard": "skipped",
    "vanilla": "no training",
    "whoever": "the caller, the reader",
}
"""Words in docstrings and in the messages of errors and logs."""


class Text(NamedTuple):
    """One name, docstring or message, and where it stands."""

    place: str
    kind: str
    text: str


def texts(root: Path) -> Iterator[Text]:
    """All names that the five packages define, with their docstrings and messages."""
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            name = file.relative_to(root).as_posix()
            yield Text(name, "name", file.stem)
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                yield from (Text(f"{name}:{getattr(node, 'lineno', 1)}", kind, text) for kind, text in _texts_of(node))


def _texts_of(node: ast.AST) -> Iterator[tuple[str, str]]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield "name", name
        case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            yield "name", name
        case ast.Expr(value=ast.Constant(value=str(text))):
            yield "docstring", text  # of a module, a class, a function, or below an attribute
        case ast.Raise(exc=ast.Call() as call):
            yield "message", _literals(call)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"))):
            yield "message", _literals(node)


def _literals(call: ast.AST) -> str:
    parts = (part.value for part in ast.walk(call) if isinstance(part, ast.Constant))
    return " ".join(part for part in parts if isinstance(part, str))


def words_of(name: str) -> list[str]:
    """The words of an identifier: "fitPrior_weights" has three."""
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)


def banned(found: Text) -> list[str]:
    """One line for each banned word in a text."""
    if found.kind == "name":
        hits = [(word, IN_NAMES[word]) for word in map(str.lower, words_of(found.text)) if word in IN_NAMES]
    else:
        hits = [
            (word, better) for word, better in IN_TEXT.items() if re.search(rf"\b{word}\b", found.text, re.IGNORECASE)
        ]
    return [f"{found.place}: {found.kind} {found.text[:60]!r} says {word!r}; say {better!r}" for word, better in hits]


def test_no_banned_word_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    read = list(texts(ROOT))
    counts = {
        kind: sum(text.kind == kind and bool(text.text) for text in read) for kind in ("name", "docstring", "message")
    }
    with capsys.disabled():
        print(f"\n{counts['name']} names, {counts['docstring']} docstrings and {counts['message']} messages read")
    assert all(count > 500 for count in counts.values())
    assert [line for text in read for line in banned(text)] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def _is_unheard():\n    pass\n", ["name '_is_unheard' says 'unheard'"]),
        ("class PocketEncoder:\n    pass\n", ["name 'PocketEncoder' says 'pocket'"]),
        ("def f(lab_folder):\n    pass\n", ["name 'lab_folder' says 'lab'"]),
        ('"""Whoever reads this."""\n', ["docstring 'Whoever reads this.' says 'whoever'"]),
        ("raise ValueError(f'Two were needed, {3} came.')\n", ["message 'Two were needed,   came.' says 'came'"]),
        ("logger.warning('nobody did it')\n", ["message 'nobody did it' says 'nobody'"]),
        ("label = 'it became collaborative'\ndef labels():\n    pass\n", []),
    ],
)
def test_banned_words_are_found(tmp_path: Path, source: str, expected: list[str]) -> None:
    (tmp_path / "rag").mkdir()
    (tmp_path / "rag/module.py").write_text(source)
    found = [line.partition(": ")[2].partition(";")[0] for text in texts(tmp_path) for line in banned(text)]
    assert found == expected


def test_the_glossary_has_one_entry_for_each_term() -> None:
    rows = re.findall(r"^\| \*\*(.+?)\*\* \|", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 40
    assert len(rows) == len(set(rows))
