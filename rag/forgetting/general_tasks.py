"""General tasks that have nothing to do with retrieval: what fine-tuning may destroy and SelfAug must keep.

Each kind is a family of small tasks with one right answer, asked as an ordinary chat turn. Their words are invented, so
that none can be answered from memory. A task is scored by exact match of the stripped text.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from rag.worlds.world import syllable

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class GeneralTask:
    """A prompt with its one right answer."""

    kind: str
    """One of `KINDS`."""
    prompt: str
    answer: str


def _word(rng: random.Random) -> str:
    text = syllable(rng) + (syllable(rng) if rng.random() < 0.6 else "")
    return text if len(text) > 1 else text + syllable(rng)


def _words(rng: random.Random, fewest: int, most: int) -> list[str]:
    return [_word(rng) for _ in range(rng.randint(fewest, most))]


def _copy(rng: random.Random) -> tuple[str, str]:
    text = " ".join(_words(rng, 2, 4))
    return f"Repeat exactly: {text}", text


def _uppercase(rng: random.Random) -> tuple[str, str]:
    letters = " ".join(rng.choices(LETTERS, k=rng.randint(3, 6)))
    return f"Write in capital letters: {letters}", letters.upper()


def _reverse(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 2, 4)
    return f"Reverse the order of the words: {' '.join(words)}", " ".join(words[::-1])


def _last(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 3, 6)
    return f"What is the last word of: {' '.join(words)}", words[-1]


def _sort(rng: random.Random) -> tuple[str, str]:
    digits = rng.sample("0123456789", rng.randint(3, 5))
    return f"Sort from small to large: {' '.join(digits)}", " ".join(sorted(digits))


def _count(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 1, 6)
    return f"How many words are here: {', '.join(words)}", str(len(words))


def _add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    return f"Calculate: {a} + {b}", str(a + b)


def _format(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 2, 4)
    opening, closing = rng.choice([("(", ")"), ("[", "]"), ("<", ">"), ("{", "}")])
    return (
        f"Put each word in {opening}{closing}: {' '.join(words)}",
        " ".join(f"{opening}{w}{closing}" for w in words),
    )


def _pattern(rng: random.Random) -> tuple[str, str]:
    unit = _words(rng, 2, 3)
    shown = unit * 2 + unit[: rng.randint(0, len(unit) - 1)]
    return f"Continue the pattern with one word: {' '.join(shown)}", unit[len(shown) % len(unit)]


def _cipher(rng: random.Random) -> tuple[str, str]:
    letters = rng.choices(LETTERS, k=rng.randint(3, 5))
    moved = [LETTERS[(LETTERS.index(letter) + 1) % 26] for letter in letters]
    return f"Replace each letter by the next one: {' '.join(letters)}", " ".join(moved)


def _compare(rng: random.Random) -> tuple[str, str]:
    a, b = rng.sample(range(1, 100), 2)
    return f"Which number is larger, {a} or {b}?", str(max(a, b))


def _contains(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 3, 5)
    asked = rng.choice(words) if rng.random() < 0.5 else _word(rng)
    return f'Answer yes or no. Is "{asked}" in this list: {", ".join(words)}?', "yes" if asked in words else "no"


KINDS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "copy": _copy,
    "uppercase": _uppercase,
    "reverse": _reverse,
    "last word": _last,
    "sort": _sort,
    "count": _count,
    "add": _add,
    "format": _format,
    "pattern": _pattern,
    "cipher": _cipher,
    "compare": _compare,
    "contains": _contains,
}


def draw_general_task(rng: random.Random, kind: str | None = None) -> GeneralTask:
    """A random task of a kind, or of a random one."""
    name = rng.choice(list(KINDS)) if kind is None else kind
    return GeneralTask(name, *KINDS[name](rng))


def make_general_tasks(count: int, *, seed: int = 0) -> list[GeneralTask]:
    """`count` tasks, the kinds in turn; the same tasks for the same seed."""
    rng = random.Random(seed)
    names = list(KINDS)
    return [draw_general_task(rng, names[i % len(names)]) for i in range(count)]
