"""Tools to check the pages of reports: an independent parser, and a real browser."""

import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

VOID = {"meta", "link", "input", "br"}


class TreeParser(HTMLParser):
    """HTML as an element tree; unlike in browsers, an end tag that closes another element is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.builder = ET.TreeBuilder()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is there twice: {attrs}"
        self.builder.start(tag, {name: value or "" for name, value in attrs})
        if tag in VOID:
            self.builder.end(tag)
        else:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        self.builder.end(tag)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.builder.data(data)


def parse(page: str) -> ET.Element:
    parser = TreeParser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser.builder.close()


def text(element: ET.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def by_id(tree: ET.Element, id: str) -> ET.Element:
    (found,) = [element for element in tree.iter() if element.get("id") == id]
    return found


def by_class(tree: ET.Element, name: str) -> list[ET.Element]:
    return [element for element in tree.iter() if name in element.get("class", "").split()]


def sections(tree: ET.Element) -> list[str]:
    return [element.get("id", "") for element in tree.iter("section")]


# Loading and running.

LOADING_TAGS = set("script img image iframe frame object embed audio video source track base form use portal".split())
LOADING_ATTRIBUTES = set("src srcset data poster action formaction background ping xlink:href".split())


def loads(tree: ET.Element) -> Iterator[str]:
    """Everything in the page that could fetch or run something."""
    for element in tree.iter():
        if element.tag in LOADING_TAGS:
            yield f"<{element.tag}>"
        for name, value in element.attrib.items():
            link = name == "href" and not (
                value.startswith("#") or (element.tag == "a" and value.startswith("https://arxiv.org/abs/"))
            )
            if name in LOADING_ATTRIBUTES or name.startswith("on") or (link and value != "data:,"):
                yield f"{element.tag} {name}={value}"
        style = element.get("style", "") + (text(element) if element.tag == "style" else "")
        yield from re.findall(r"url\(|@import|@font-face|expression\(", style)


HOSTILE = """'"></p></title></style><script>throw 1</script><img src=x onerror="throw 2">&lt;<!-- """


# Names that select parts of a page, so that hostile ones would select others.
CHOOSING = {
    *(
        "base",
        "no_training",
        "exact_match",
        "f1",
        "general",
        "accuracy",
        "word_perplexity",
        "selector_recall@1",
        "selector_mrr",
    ),
    *("all", "best", "worst", "evaluation", "forgetting", "run", "sweep"),
}


def hostile(value: Any, *, keys: bool = False) -> Any:
    """The same result with markup before every text, and before the keys that are data."""
    if isinstance(value, str):
        return value if value in CHOOSING else HOSTILE + value
    if isinstance(value, list):
        return [hostile(entry) for entry in value]
    if isinstance(value, dict):
        return {
            (HOSTILE + key if keys else key): hostile(entry, keys=key in ("curves", "evaluations", "settings"))
            for key, entry in value.items()
        }
    return value


# Charts.


def number(shown: str) -> float:
    return float(shown.replace("\u2212", "-"))


def ticks(tree: ET.Element, key: str) -> tuple[dict[float, float], dict[float, float]]:
    """The ticks of the x axis and of the y axis, from value to place."""
    found = [e for e in by_class(by_id(tree, f"chart-{key}"), "tick")]
    below = {number(text(e)): float(e.get("x", "")) for e in found if e.get("text-anchor") == "middle"}
    left = {number(text(e)): float(e.get("y", "")) - 4 for e in found if e.get("text-anchor") == "end"}
    return below, left


def placed(axis: dict[float, float], value: float) -> float:
    """The place of a value, from only the first and the last tick."""
    (low, start), (high, end) = min(axis.items()), max(axis.items())
    return start + (end - start) * (value - low) / (high - low)


# In a browser.

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Visit:
    """Console messages of a browser, and the document after loading."""

    messages: list[str]
    dom: str


def visit(browser: str, file: Path, scratch: Path, *more: str) -> Visit:
    """Open a file in a headless browser and collect the messages of its console, whatever their severity.

    A load that the content security policy blocks is a message; a missing local file is none.
    """
    home = scratch / "home"
    home.mkdir(exist_ok=True)
    flags = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --enable-logging=stderr --v=0 --dump-dom"
    done = subprocess.run(
        [browser, *flags.split(), *more, f"--user-data-dir={scratch / 'profile'}", file.resolve().as_uri()],
        env={**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home)},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    # [process:thread:time:INFO:CONSOLE:line] "message", source: where (line); a message may span lines.
    messages = re.findall(r':CONSOLE[:(]\d+\)?\] "(.*?)", source: ', done.stderr, re.DOTALL)
    return Visit(messages, done.stdout)


def find_browser() -> str:
    """A Chromium that starts; on some systems the command only offers to install it."""
    for name in filter(shutil.which, BROWSERS):
        if subprocess.run([name, "--version"], capture_output=True, check=False).returncode == 0:
            return name
    pytest.skip(f"no browser to open the page in: install one of {', '.join(BROWSERS)}")
