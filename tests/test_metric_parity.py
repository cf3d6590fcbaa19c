"""Exact match and F1 against the rules of official scripts: 10,000 spaced and 2,000 unspaced pairs, zero differences.

The rules of SQuAD 1.1's `evaluate-v1.1.py`, SQuAD 2.0's `evaluate-v2.0.py` and KILT's `eval_downstream.py` are written
here anew, with no regular expression, no `Counter` and exact fractions in place of floats, so that they share nothing
with `rag.metrics`. Where the scripts disagree `rag.metrics` follows SQuAD 2.0's, and each disagreement has a test.

Chinese and Japanese are scored by the rule of MLQA's `mlqa_evaluation_v1.py` for Chinese (mixed segmentation), after
NFKC and for kana too; the reference below asks `unicodedata` for the name of each character, one after the other.
"""

import random
import unicodedata
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import groupby

import pytest

from rag.metrics import answer_recall, exact_match, f1

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
        "\uc11c\uc6b8",
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


def test_generated_pairs_cover_the_cases_where_scripts_differ(pairs: list[tuple[str, list[str]]]) -> None:
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


def test_disagreement_an_empty_golden_answer_among_others() -> None:
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
def test_scores_of_hand_made_pairs(prediction: str, golden: str, same: bool) -> None:
    assert exact_match(prediction, [golden]) == float(same)
    assert squad_1(prediction, [golden])[0] == squad_2(prediction, [golden])[0] == int(same)


# -- Chinese and Japanese -----------------------------------------------------------------------------------------

_CHARACTERS = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC ITERATION MARK")


def stands_alone(character: str) -> bool:
    name = unicodedata.name(character, "")
    return name.startswith(_CHARACTERS) and unicodedata.category(character)[0] in "LM"


def is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "P" or ("!" <= character <= "~" and not character.isalnum())


def folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def mixed(text: str) -> list[str]:
    """Fold; then, character by character: marks vanish, blanks end a token, Chinese and Japanese ones are tokens."""
    found: list[str] = []
    before = "blank"
    for c in folded(text):
        if is_mark(c):
            continue
        if c.isspace():
            before = "blank"
        elif stands_alone(c):
            found.append(c)
            before = "alone"
        elif before == "open" or (before == "alone" and unicodedata.combining(c)):
            found[-1] += c
        else:
            found.append(c)
            before = "open"
    return found


def mlqa(prediction: str, goldens: Sequence[str]) -> Scores:
    """As MLQA's script for Chinese, and as SQuAD 2.0's where an answer normalises to nothing."""
    answer = mixed(prediction)
    references = [t for t in map(mixed, goldens) if t] or [[]]
    shared = [overlap(answer, r) if answer and r else Fraction(int(answer == r)) for r in references]
    return max(int(answer == r) for r in references), max(shared)


def found_inside(text: str, answer: str) -> bool:
    """Every part of a text that is cut where a cut may be, tried one after the other."""
    shown, wanted = folded(text), mixed(answer)
    cuts = [i for i in range(len(shown) + 1) if may_cut(shown, i)]
    return bool(wanted) and any(mixed(shown[i:j]) == wanted for i in cuts for j in cuts if i < j)


def may_cut(shown: str, i: int) -> bool:
    before, after = shown[:i], shown[i:]
    if not before or not after:
        return True
    if in_number(before, after):
        return False
    spaced = [c.isalnum() and not stands_alone(c) for c in (before[-1], after[0])]
    return not all(spaced)


def in_number(before: str, after: str) -> bool:
    """Whether the cut is at the mark of "1.5", or of "1,500"."""
    left, right = before.rstrip(".,"), after.lstrip(".,")
    between = before[len(left) :] + after[: len(after) - len(right)]
    if len(between) != 1 or not (left[-1:].isdigit() and right[:1].isdigit()):
        return False
    digits = next((n for n, c in enumerate(right) if not c.isdigit()), len(right))
    return between == "." or digits == 3


UNSPACED_PIECES = [
    *(
        "\u5317\u4eac",
        "\u5317\u4eac\u5e02",
        "\u4e0a\u6d77",
        "\u6771\u4eac\u90fd",
        "\u4eac\u90fd",
        "\u5927\u5b66",
        "\u4eba\u3005",
        "\u7684",
        "\u662f",
    ),
    *(
        "\u6771\u4eac",
        "\u30bf\u30ef\u30fc",
        "\u3067\u3059",
        "\u3042\u308b",
        "\uff83\uff9e\uff7d",
        "\u30c7\u30b9",
        "\u304b\u3099",
        "\u304c",
        "\uff70",
        "\u30fc",
    ),
    *(
        "\uff11\uff19\uff19\uff17\u5e74",
        "1997\u5e74",
        "15\u5e74",
        "5\u5e74",
        "1.5\u4ebf",
        "\uff11\uff0e\uff15\u4ebf",
        "5\u4ebf",
        "1,500\u4e07",
        "500\u4e07",
        "1998\u3001",
    ),
    *(
        "iPhone",
        "\uff49\uff30\uff48\uff4f\uff4e\uff45",
        "Apple Inc.",
        "U.S.",
        "US",
        "A\u80a1",
        "\u7ef4\u751f\u7d20A",
        "Anna",
        "party",
        "art",
        "1997",
        "15",
        "5",
    ),
    *(
        "\u3002",
        "\uff0c",
        "\u3001",
        "\u300a",
        "\u300b",
        "\u300c",
        "\u300d",
        "\u30fb",
        "\uff01",
        "\uff08",
        "\uff09",
        "\u2026",
        "\u2014",
        "\u201c",
        "-",
        ".",
        ",",
        "\uff05",
        "\uffe5",
    ),
    *("\u3000", " ", "\n", "\u2003"),
]


def unspaced(rng: random.Random, most: int) -> str:
    """Always with a character that stands alone, so that the whole pair is under the rule."""
    pieces = [rng.choice(UNSPACED_PIECES) for _ in range(rng.randrange(most + 1))]
    return "".join([*pieces, rng.choice(UNSPACED_PIECES[:17])])


@pytest.fixture(scope="module")
def unspaced_pairs() -> list[tuple[str, list[str]]]:
    """A prediction and one to three golden answers; half of the predictions are made from a golden answer."""
    rng = random.Random(20181019)
    edits: list[Callable[[str], str]] = [
        lambda t: f"{t}\u3002",
        lambda t: f"\u300c{t}\u300d",
        lambda t: t.replace("1", "\uff11"),
        lambda t: "".join(reversed(t)),
        lambda t: t[:-1],
        lambda t: f"{t}{t}",
        lambda t: " ".join(t),
        str.upper,
    ]
    found = []
    for _ in range(2_000):
        goldens = [unspaced(rng, 4) for _ in range(rng.randrange(1, 4))]
        found.append((rng.choice(edits)(rng.choice(goldens)) if rng.random() < 0.5 else unspaced(rng, 3), goldens))
    return found


def test_generated_chinese_and_japanese_pairs_contain_these_scripts(
    pairs: list[tuple[str, list[str]]], unspaced_pairs: list[tuple[str, list[str]]]
) -> None:
    """No character of the first list is Chinese or Japanese, and every golden answer of the second has one."""
    assert not any(map(stands_alone, "".join(text for prediction, goldens in pairs for text in [prediction, *goldens])))
    assert all(any(map(stands_alone, folded(golden))) for _, goldens in unspaced_pairs for golden in goldens)
    scores = [mlqa(*pair) for pair in unspaced_pairs]
    assert min(sum(s == 1 for s, _ in scores), sum(0 < f < 1 for _, f in scores), sum(f == 0 for _, f in scores)) > 200


def test_zero_differences_from_mlqa_in_chinese_and_japanese(unspaced_pairs: list[tuple[str, list[str]]]) -> None:
    assert [pair for pair in unspaced_pairs if ours(*pair) != as_floats(mlqa(*pair))] == []


def test_zero_differences_in_what_contains_an_answer(unspaced_pairs: list[tuple[str, list[str]]]) -> None:
    """Each golden answer in another's text: what a cut at every allowed place finds is found, and nothing else is."""
    rng = random.Random(7)
    cases = []
    for prediction, goldens in unspaced_pairs:
        text = prediction + goldens[-1]
        at = rng.randrange(len(text))
        part = text[at : at + rng.randrange(1, 6)]
        answer = rng.choice([part, goldens[0], rng.choice(UNSPACED_PIECES)])
        cases += [(text, answer)] if mixed(answer) else []
    expected = [found_inside(text, answer) for text, answer in cases]
    assert min(expected.count(True), expected.count(False)) > 300
    wrong = [case for case, hit in zip(cases, expected, strict=True) if answer_recall([case[0]], [case[1]], 1) != hit]
    assert wrong == []
