"""General tasks: at least eight kinds, each with one right answer that an independent solver finds too."""

import random
import re
from collections.abc import Callable

import pytest

from rag.forgetting.general_tasks import KINDS, draw_general_task, make_general_tasks


def after(text: str) -> str:
    return text.split(": ", 1)[1]


SOLVERS: dict[str, Callable[[str], str]] = {
    "copy": after,
    "uppercase": lambda t: after(t).upper(),
    "reverse": lambda t: " ".join(reversed(after(t).split())),
    "last word": lambda t: after(t).rsplit(" ", 1)[-1],
    "sort": lambda t: " ".join(sorted(after(t).split(), key=int)),
    "count": lambda t: str(after(t).count(",") + 1),
    "add": lambda t: str(sum(map(int, after(t).split(" + ")))),
    "format": lambda t: " ".join(f"{t.split(' in ')[1][0]}{w}{t.split(' in ')[1][1]}" for w in after(t).split()),
    "cipher": lambda t: " ".join("a" if c == "z" else chr(ord(c) + 1) for c in after(t).split()),
    "compare": lambda t: max(re.findall(r"\d+", t), key=int),
    "contains": lambda t: "yes" if t.split('"')[1] in after(t).rstrip("?").split(", ") else "no",
}


def next_of_pattern(text: str) -> str:
    words = after(text).split()
    period = next(p for p in (2, 3) if all(words[i] == words[i - p] for i in range(p, len(words))))
    return words[len(words) - period]


SOLVERS["pattern"] = next_of_pattern


def test_at_least_eight_kinds_exist() -> None:
    assert len(KINDS) >= 8
    assert SOLVERS.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_answers_equal_an_independent_solution(kind: str) -> None:
    rng = random.Random(1)
    for _ in range(200):
        task = draw_general_task(rng, kind)
        assert task.answer == SOLVERS[kind](task.prompt)
        assert task.answer == task.answer.strip() != ""


def test_tasks_alternate_kinds_and_depend_only_on_the_seed() -> None:
    some = make_general_tasks(30, seed=5)
    assert [task.kind for task in some[:12]] == list(KINDS)
    assert some == make_general_tasks(30, seed=5) != make_general_tasks(30, seed=6)
    assert make_general_tasks(12, seed=5) == some[:12]
