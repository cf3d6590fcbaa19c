"""Metrics against numbers by hand, and against a second implementation that shares no code and no method."""

import itertools
import math
import random
import re
from collections.abc import Callable

import pytest

from indexes.errors import UsageError
from rag.metrics import aggregate, answer_recall, exact_match, f1, gold_recall, normalize_answer, ranking_quality

# The reference: one regular expression that finds tokens, and multisets by sorting and walking.


def reference_tokens(text: str) -> list[str]:
    """Delete ASCII marks by a character class, articles by lookaround, then find the runs of non-space."""
    bare = re.sub(r"[!-/:-@\[-`{-~]", "", text.lower())
    return re.findall(r"\S+", re.sub(r"(?<!\w)(?:the|an|a)(?!\w)", " ", bare))


def reference_f1(prediction: str, golden: str) -> float:
    left, right = sorted(reference_tokens(prediction)), sorted(reference_tokens(golden))
    if not left or not right:
        return 1.0 if left == right else 0.0
    shared, i, j = 0, 0, 0
    while i < len(left) and j < len(right):
        if left[i] == right[j]:
            shared, i, j = shared + 1, i + 1, j + 1
        elif left[i] < right[j]:
            i += 1
        else:
            j += 1
    if shared == 0:
        return 0.0
    precision, recall = shared / len(left), shared / len(right)
    return 2 * precision * recall / (precision + recall)


def reference_accepted(goldens: list[str]) -> list[str]:
    """SQuAD 2.0: what normalises to nothing is an answer only where there is no other."""
    return [golden for golden in goldens if reference_tokens(golden)] or [""]


def reference_contains(text: str, answer: str) -> bool:
    tokens, wanted = reference_tokens(text), reference_tokens(answer)
    width = len(wanted)
    return width > 0 and any(tokens[i : i + width] == wanted for i in range(len(tokens) - width + 1))


PIECES = [
    *(
        "a",
        "an",
        "the",
        "The",
        "A",
        "AN",
        "thea",
        "cat",
        "Cat",
        "sat",
        "U.S.",
        "US",
        "a.n",
        "t-he",
        "yes",
        "no",
    ),
    *(
        "",
        " ",
        "  ",
        "\t",
        "\n",
        "\u00a0",
        "\u3000",
        ".",
        ",",
        "'",
        '"',
        "-",
        "_",
        "\\",
        "]",
        "^",
        "`",
        "~",
        "$",
    ),
    *(
        "\u00e9t\u00e9",
        "e\u0301",
        "\u0130",
        "stra\u00dfe",
        "\u2019s",
        "\u2014",
        "\uc11c\uc6b8",
        "\U0001f600",
        "1,000",
        "3.5%",
    ),
]


def nasty_text(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) + rng.choice(["", " ", " ", "-"]) for _ in range(rng.randrange(7)))


@pytest.fixture(scope="module")
def nasty_cases() -> list[tuple[str, list[str]]]:
    rng = random.Random(20)
    return [(nasty_text(rng), [nasty_text(rng) for _ in range(rng.randrange(1, 4))]) for _ in range(2000)]


def test_edge_cases_cover_both_sides_of_every_branch(nasty_cases: list[tuple[str, list[str]]]) -> None:
    """Random text that never matched, or never was empty, would prove nothing."""
    values = [reference_f1(prediction, golden) for prediction, goldens in nasty_cases for golden in goldens]
    assert min(values.count(0.0), values.count(1.0), sum(0 < value < 1 for value in values)) > 100
    assert sum(not reference_tokens(prediction) for prediction, _ in nasty_cases) > 100


def test_normalisation_against_reference(nasty_cases: list[tuple[str, list[str]]]) -> None:
    for prediction, _ in nasty_cases:
        assert normalize_answer(prediction).split(" ") == (reference_tokens(prediction) or [""])


def test_normalisation_is_idempotent_but_for_new_articles(nasty_cases: list[tuple[str, list[str]]]) -> None:
    for prediction, _ in nasty_cases:
        once = normalize_answer(prediction)
        assert normalize_answer(once) == once


def test_exact_match_against_reference(nasty_cases: list[tuple[str, list[str]]]) -> None:
    for prediction, goldens in nasty_cases:
        accepted = reference_accepted(goldens)
        expected = any(reference_tokens(prediction) == reference_tokens(golden) for golden in accepted)
        assert exact_match(prediction, goldens) == float(expected)


def test_f1_against_reference(nasty_cases: list[tuple[str, list[str]]]) -> None:
    for prediction, goldens in nasty_cases:
        expected = max(reference_f1(prediction, golden) for golden in reference_accepted(goldens))
        assert math.isclose(f1(prediction, goldens), expected, abs_tol=1e-12)


def test_answer_recall_against_reference(nasty_cases: list[tuple[str, list[str]]]) -> None:
    hits = 0
    for (text, others), (_, goldens) in itertools.pairwise(nasty_cases):
        texts = [text, *others]
        goldens = [*goldens, " ".join(others[-1].split()[1:3])]  # else too few would ever be found
        for k in (1, 2, 5):
            expected = any(reference_contains(entry, golden) for entry in texts[:k] for golden in goldens)
            assert answer_recall(texts, goldens, k) == float(expected)
            hits += expected
    assert 1000 < hits < 5000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("U.S.", "us"),
        ("The  Beatles!", "beatles"),
        ("a an the", ""),
        ("Anna and the theme", "anna and theme"),
        ("rock'n'roll", "rocknroll"),
        ("a-b", "ab"),  # punctuation goes first, so this "a" is no article any more
        ("A.", ""),
        ("x\u00a0y\tz\n", "x y z"),
        ("caf\u00e9 \u2014 bar", "caf\u00e9 \u2014 bar"),
        ("", ""),
    ],
)
def test_normalisation_by_hand(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "goldens", "em", "value"),
    [
        ("US", ["U.S."], 1.0, 1.0),
        ("the Beatles", ["Rolling Stones", "Beatles"], 1.0, 1.0),
        ("", ["a"], 1.0, 1.0),  # both empty after normalisation
        ("", ["a", "cat"], 0.0, 0.0),  # an answer that normalises to nothing is none beside another
        ("", ["cat"], 0.0, 0.0),
        ("cat", [""], 0.0, 0.0),
        ("yes", ["no"], 0.0, 0.0),
        ("yes it is", ["yes"], 0.0, 0.5),  # P 1/3, R 1: 2 * 1/3 / (4/3); HotpotQA's script says 0
        ("cat cat cat", ["cat"], 0.0, 0.5),  # one shared token, not three: P 1/3, R 1
        ("cat cat dog", ["cat cat"], 0.0, 0.8),  # two shared: P 2/3, R 1
        ("b c d e", ["e x y", "c d z w v u"], 0.0, 0.4),  # 2*1/7 = 0.286 and 2*2/10 = 0.4: the best counts
    ],
)
def test_em_and_f1_by_hand(prediction: str, goldens: list[str], em: float, value: float) -> None:
    assert exact_match(prediction, goldens) == em
    assert f1(prediction, goldens) == pytest.approx(value, abs=1e-12)


def test_more_aliases_never_lower_a_score(nasty_cases: list[tuple[str, list[str]]]) -> None:
    """Unless nothing was the answer, and now something is."""
    for prediction, goldens in nasty_cases:
        assert f1(prediction, goldens) >= exact_match(prediction, goldens)
        if any(map(reference_tokens, goldens)):
            assert f1(prediction, [*goldens, "cat"]) >= f1(prediction, goldens)


def test_answer_recall_by_hand() -> None:
    texts = ["The party of Paris.", "She lives in New  York, N.Y.", "Nothing."]
    assert [answer_recall(texts, ["new york"], k) for k in (1, 2, 3, 20)] == [0.0, 1.0, 1.0, 1.0]
    assert answer_recall(texts, ["art"], 3) == 0.0  # inside "party"
    assert answer_recall(texts, ["york new"], 3) == 0.0  # order matters
    assert answer_recall(texts, ["the party of the Paris"], 1) == 1.0  # articles count on neither side
    assert answer_recall(texts, ["The", "..."], 3) == 0.0  # empty after normalisation
    assert answer_recall([], ["x"], 5) == 0.0


def test_gold_recall_by_hand() -> None:
    ranked = ["p5", "p1", "p4", "p9", "p2"]
    gold = ["p1", "p2", "p3"]
    expected = [0.0, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3]
    assert [gold_recall(ranked, gold, k) for k in range(1, 7)] == pytest.approx(expected)
    assert gold_recall(["p1", "p1"], ["p1", "p1"], 2) == 1.0  # a repeated id is one passage
    assert gold_recall([], ["p1"], 3) == 0.0


def test_aggregate_leaves_missing_values_out() -> None:
    rows = [{"em": 1.0, "f1": 0.5}, {"em": 0.0}, {"em": 0.0, "f1": 1.0, "recall@5": 0.25}]
    assert aggregate(rows) == pytest.approx({"em": 1 / 3, "f1": 0.75, "recall@5": 0.25, "n": 3.0})


def test_aggregate_does_not_depend_on_the_order() -> None:
    rng = random.Random(1)
    rows = [{"f1": rng.random() * 10.0 ** rng.randrange(-8, 8)} for _ in range(501)]
    forward = aggregate(rows)
    for _ in range(20):
        rng.shuffle(rows)
        assert aggregate(rows) == forward


@pytest.mark.parametrize("metric", [exact_match, f1])
def test_scores_need_a_list_of_golden_answers(metric: Callable[[str, list[str]], float]) -> None:
    with pytest.raises(UsageError, match="golden_answers must hold at least one entry"):
        metric("x", [])
    with pytest.raises(UsageError, match="golden_answers must be a list of texts, got the text 'Paris'"):
        metric("x", "Paris")  # type: ignore[arg-type]


def test_recalls_refuse_what_cannot_be_scored() -> None:
    for k in (0, -1):
        with pytest.raises(UsageError, match=f"k must be at least 1, got {k}"):
            answer_recall(["x"], ["x"], k)
        with pytest.raises(UsageError, match=f"k must be at least 1, got {k}"):
            gold_recall(["x"], ["x"], k)
    with pytest.raises(UsageError, match="gold_ids must hold at least one entry"):
        gold_recall(["x"], [], 1)
    with pytest.raises(UsageError, match="golden_answers must hold at least one entry"):
        answer_recall(["x"], [], 1)
    with pytest.raises(UsageError, match="passages_texts must be a list of texts"):
        answer_recall("a text", ["x"], 1)
    with pytest.raises(UsageError, match="ranked_ids must be a list of texts"):
        gold_recall("p1", ["p1"], 1)


def reference_ndcg(ranked: list[str], gold: list[str], k: int) -> float:
    """By the definition: gains of 1 discounted by log2(rank + 1), over those of the gold passages in front."""
    gains = [1 / math.log2(rank + 1) for rank, id in enumerate(ranked[:k], 1) if id in gold]
    best = [1 / math.log2(rank + 1) for rank in range(1, min(k, len(gold)) + 1)]
    return sum(gains) / sum(best)


def test_ranking_quality_against_its_definition() -> None:
    rng = random.Random(7)
    for _ in range(200):
        ranked = [f"p{i}" for i in rng.sample(range(30), rng.randrange(1, 21))]
        gold = [f"p{i}" for i in rng.sample(range(30), rng.randrange(1, 5))]
        found = ranking_quality(ranked, gold, (1, 3, 20))
        for k in (1, 3, 20):
            assert found[f"ndcg@{k}"] == pytest.approx(reference_ndcg(ranked, gold, k), abs=1e-12)
        ranks = [rank for rank, id in enumerate(ranked, 1) if id in gold]
        assert found["mrr"] == pytest.approx(1 / ranks[0] if ranks else 0.0)
    assert list(found) == ["ndcg@1", "ndcg@3", "ndcg@20", "mrr"]


def test_ranking_quality_takes_any_id_and_no_ranking() -> None:
    assert ranking_quality(["x y", "\u00e9\t"], ["\u00e9\t"], [3])["mrr"] == 0.5
    assert ranking_quality([], ["p1"], [1]) == {"ndcg@1": 0.0, "mrr": 0.0}
    with pytest.raises(UsageError, match="gold_ids must hold at least one entry"):
        ranking_quality(["p1"], [], [1])
    with pytest.raises(UsageError, match="k must be at least 1, got 0"):
        ranking_quality(["p1"], ["p1"], [0])


def test_grades_are_gains() -> None:
    """Grade 1 before grade 3: (1 / log2 2 + 3 / log2 3) / (3 / log2 2 + 1 / log2 3)."""
    log3 = math.log2(3)
    found = ranking_quality(["low", "high"], ["high", "low"], [1, 2], [3, 1])
    assert found == pytest.approx({"ndcg@1": 1 / 3, "ndcg@2": (1 + 3 / log3) / (3 + 1 / log3), "mrr": 1.0})
    assert ranking_quality(["low"], ["high", "low"], [2], [3, 1])["ndcg@2"] == pytest.approx(1 / (3 + 1 / log3))


def test_a_document_and_its_chunks_count_at_their_first_rank() -> None:
    """An index may hold a document whole and in chunks: only the first of them is relevant."""
    found = ranking_quality(["p1#0", "x", "p1", "p1#1", "p2"], ["p1", "p2"], [3, 5])
    assert found["ndcg@3"] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert found["ndcg@5"] == pytest.approx((1 + 1 / math.log2(6)) / (1 + 1 / math.log2(3)))
    assert found["mrr"] == 1.0


def test_chunks_stand_for_their_document_once() -> None:
    """Chunks of a at ranks 1 and 2, of b at 4: recall 1/2, 1/2, 1; DCG 1 + 1 / log2 5 of an ideal 1 + 1 / log2 3."""
    ranked = ["a#2", "a#0", "x", "b#7"]
    assert [gold_recall(ranked, ["a", "b"], k) for k in (1, 2, 4)] == [0.5, 0.5, 1.0]
    found = ranking_quality(ranked, ["a", "b"], [4])
    assert found["ndcg@4"] == pytest.approx((1 + 1 / math.log2(5)) / (1 + 1 / math.log2(3)))
    assert ranking_quality(ranked, ["b"], [4])["mrr"] == 0.25
