"""General abilities: at least eight, each with one right answer that an independent solver finds too."""

import random
import re
from collections.abc import Callable

import pytest

from rag.forgetting.general_tasks import ABILITIES, exercise, exercises


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


def test_there_are_at_least_eight() -> None:
    assert len(ABILITIES) >= 8
    assert SOLVERS.keys() == ABILITIES.keys()


@pytest.mark.parametrize("ability", ABILITIES)
def test_the_answer_is_right(ability: str) -> None:
    rng = random.Random(1)
    for _ in range(200):
        task = exercise(rng, ability)
        assert task.answer == SOLVERS[ability](task.prompt)
        assert task.answer == task.answer.strip() != ""


def test_exercises_take_the_abilities_in_turn_and_are_the_same_for_a_seed() -> None:
    some = exercises(30, seed=5)
    assert [e.ability for e in some[:12]] == list(ABILITIES)
    assert some == exercises(30, seed=5) != exercises(30, seed=6)
    assert exercises(12, seed=5) == some[:12]
