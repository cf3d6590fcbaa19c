"""Exact match and F1 against the rules of three official scripts: 10,000 nasty pairs, zero differences.

The rules of SQuAD 1.1's `evaluate-v1.1.py`, SQuAD 2.0's `evaluate-v2.0.py` and KILT's `eval_downstream.py` are written
here anew, with no regular expression, no `Counter` and exact fractions in place of floats, so that they share nothing
with `rag.metrics`. Where the scripts disagree `rag.metrics` follows SQuAD 2.0's, and each disagreement has a test.
"""

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import groupby

import pytest

from rag.metrics import exact_match, f1

ARTICLES = ("a", "an", "the")
Scores = tuple[int, Fraction]


def tokens(text: str) -> list[str]:
    """Lower case; ASCII marks vanish; runs of word characters that are an article become a space; split at space."""
    kept = [c for c in text.lower() if not ("!" <= c <= "~" and not c.isalnum())]
    runs = ["".join(run) for _, run in groupby(kept, key=str.isalnum)]
    joined = "".join(" " if run in ARTICLES else run for run in runs)
    return ["".join(run) for blank, run in groupby(joined, key=str.isspace) if not blank]


def overlap(prediction: Sequence[str], golden: Sequence[str]) -> Fraction:
    """Harmonic mean of precision and recall, by crossing out."""
    rest, shared = list(golden), 0
    for token in prediction:
        if token in rest:
            rest.remove(token)
            shared += 1
    if not shared:
        return Fraction(0)
    precision, recall = Fraction(shared, len(prediction)), Fraction(shared, len(golden))
    return 2 * precision * recall / (precision + recall)


def squad_1(prediction: str, goldens: Sequence[str]) -> Scores:
    """The best over all golden answers; two empty answers match exactly, and share no token."""
    answer = tokens(prediction)
    references = [tokens(golden) for golden in goldens]
    return max(int(answer == r) for r in references), max(overlap(answer, r) for r in references)


def squad_2(prediction: str, goldens: Sequence[str]) -> Scores:
    """Golden answers that normalise to nothing are dropped; if none is left, nothing is the answer, with an F1 of 1."""
    answer = tokens(prediction)
    references = [t for t in map(tokens, goldens) if t] or [[]]
    same = [int(answer == r) for r in references]
    shared = [overlap(answer, r) if answer and r else Fraction(int(answer == r)) for r in references]
    return max(same), max(shared)


def kilt(prediction: str, goldens: Sequence[str]) -> Scores | None:
    """As version 1.1, over the golden answers that are not blank; a blank prediction is refused."""
    visible = [golden.strip() for golden in goldens if golden.strip()]
    return squad_1(prediction.strip(), visible) if prediction.strip() and visible else None


PIECES = [
    *("U.S.", "US", "U. S.", "u.s", "N.Y.", "Ph.D.", "AC/DC", "rock'n'roll", "O'Neill", "e-mail"),
    *(
        "a",
        "A",
        "an",
        "An",
        "the",
        "THE",
        "The",
        "theme",
        "Anna",
        "than",
        "b-a",
        "a-b",
        "the_end",
        "_the_",
        "a1",
        "a.n.",
    ),
    *(
        "\u2019s",
        "\u201cthe\u201d",
        "\u2014",
        "\u2013a\u2013",
        "\u00bfqu\u00e9?",
        "\u3002",
        "\u00ab",
        "\u2026",
        "the\u2019",
    ),
    *("\u00a0", "\u2003", "\u3000", "\u200b", "\ufeff", "\u2028", "\x1f", "\t", "\n", "\r", " ", "", "", ""),
    *(
        "e\u0301",
        "\u00e9",
        "a\u0301",
        "n\u0303",
        "the\u0301",
        "\u0301",
        "\u0130",
        "\u00df",
        "\ufb01",
        "\u00aa",
        "\u00c5",
    ),
    *(
        "cat",
        "cat cat",
        "sat",
        "cat sat cat",
        "dog",
        "New York",
        "new  york",
        "yes",
        "no",
        "\u4eac\u90fd",
        "\U0001f600",
    ),
    *("1,000", "1000", "3.5%", "$12", "12", "1/2", "\u00bd", "\u0661", "II", "1990s", "-1", "+1", "2\u00b2"),
    *(".", ",", "'", '"', "-", "_", "\\", "[", "]", "^", "`", "~", "$", "!?", "()", "<b>", "&amp;"),
]
SEPARATORS = ["", " ", " ", " ", "  ", "\u00a0", "-", "\n"]


def nasty(rng: random.Random, most: int) -> str:
    return "".join(rng.choice(PIECES) + rng.choice(SEPARATORS) for _ in range(rng.randrange(most + 1)))


def changed(rng: random.Random, text: str) -> str:
    """A text that is the same answer more often than not."""
    edits: list[Callable[[str], str]] = [
        str.upper,
        str.title,
        str.swapcase,
        lambda t: f"the {t}",
        lambda t: f"{t}.",
        lambda t: t.replace(".", ""),
        lambda t: t.replace(" ", "\u00a0"),
        lambda t: " ".join(reversed(t.split())),
        lambda t: f"{t} cat",
        lambda t: f"{t} {t}",
        lambda t: " ".join(t.split()[:-1]),
    ]
    return rng.choice(edits)(text)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, list[str]]]:
    """A prediction and one to three golden answers; half of the predictions are made from a golden answer."""
    rng = random.Random(20250503)
    found = []
    for _ in range(10_000):
        goldens = [nasty(rng, 6) for _ in range(rng.randrange(1, 4))]
        found.append((changed(rng, rng.choice(goldens)) if rng.random() < 0.5 else nasty(rng, 4), goldens))
    return found


def ours(prediction: str, goldens: Sequence[str]) -> tuple[float, float]:
    return exact_match(prediction, goldens), f1(prediction, goldens)


def as_floats(scores: Scores) -> tuple[float, float]:
    """The nearest floats: no tolerance is needed."""
    return float(scores[0]), float(scores[1])


def test_the_pairs_provoke(pairs: list[tuple[str, list[str]]]) -> None:
    """Pairs that never matched, never were empty or never divided the scripts would prove nothing."""
    scores = [squad_2(*pair) for pair in pairs]
    assert sum(same for same, _ in scores) > 1000
    assert sum(0 < shared < 1 for _, shared in scores) > 1000
    assert sum(shared == 0 for _, shared in scores) > 1000
    assert sum(not tokens(prediction) for prediction, _ in pairs) > 500
    assert sum(squad_1(*pair) != squad_2(*pair) for pair in pairs) > 100
    assert len({c for prediction, goldens in pairs for c in "".join([prediction, *goldens])}) > 90


def test_zero_differences_from_squad_2(pairs: list[tuple[str, list[str]]]) -> None:
    assert [pair for pair in pairs if ours(*pair) != as_floats(squad_2(*pair))] == []


def test_zero_differences_from_squad_1_where_the_scripts_agree(pairs: list[tuple[str, list[str]]]) -> None:
    """They disagree on nothing but golden answers that normalise to nothing."""
    clear = [pair for pair in pairs if all(map(tokens, pair[1]))]
    assert len(clear) > 4000
    assert [pair for pair in clear if ours(*pair) != as_floats(squad_1(*pair))] == []


def test_zero_differences_from_kilt_where_the_scripts_agree(pairs: list[tuple[str, list[str]]]) -> None:
    """KILT refuses blank predictions and leaves out blank golden answers; what is neither is scored as here."""
    clear = [
        p for p in pairs if p[0].strip() and any(map(tokens, p[1])) and all(tokens(g) or not g.strip() for g in p[1])
    ]
    assert len(clear) > 4000
    assert [pair for pair in clear if ours(*pair) != as_floats(kilt(*pair) or (-1, Fraction(-1)))] == []


def test_disagreement_both_empty() -> None:
    """F1 of two answers that normalise to nothing: 0 in SQuAD 1.1 and KILT, 1 in SQuAD 2.0 and here."""
    assert squad_1("the", ["a"]) == kilt("the", ["a"]) == (1, 0)
    assert squad_2("the", ["a"]) == ours("the", ["a"]) == (1, 1)


def test_disagreement_an_empty_golden_answer_beside_another() -> None:
    """SQuAD 2.0 drops it, so that no answer is wrong where there is one; version 1.1 and KILT take it."""
    assert squad_1("...", ["A", "vitamin A"]) == kilt("...", ["A", "vitamin A"]) == (1, 0)
    assert squad_2("...", ["A", "vitamin A"]) == ours("...", ["A", "vitamin A"]) == (0, 0)


def test_disagreement_a_blank_prediction() -> None:
    """KILT's script stops at it; SQuAD's score it: right where nothing is the answer, else wrong."""
    assert kilt("  ", ["cat"]) is None
    assert squad_1("  ", ["cat"]) == squad_2("  ", ["cat"]) == ours("  ", ["cat"]) == (0, 0)
    assert squad_2("", [""]) == ours("", [""]) == (1, 1)


@pytest.mark.parametrize(
    ("prediction", "golden", "same"),
    [
        ("US", "U.S.", True),
        ("the U.S.", "us", True),
        ("U. S.", "US", False),  # the space stays
        ("theme", "me", False),
        ("caf\u00e9", "cafe\u0301", False),  # no script composes characters
        ("\u201cHamlet\u201d", "Hamlet", False),  # marks outside ASCII stay
        ("New\u00a0York", "new york", True),
        ("1,000", "1000", True),
        ("the_end", "theend", True),  # "_" is punctuation and goes before articles are looked for
        ("a\u0301", "\u0301", True),  # a combining mark is no word character, so the "a" before it stands alone
    ],
)
def test_by_hand(prediction: str, golden: str, same: bool) -> None:
    assert exact_match(prediction, [golden]) == float(same)
    assert squad_1(prediction, [golden])[0] == squad_2(prediction, [golden])[0] == int(same)
