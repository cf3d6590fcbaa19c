"""Bootstrap intervals and paired comparisons, against closed forms."""

import itertools
import math
import random

import pytest
from scipy import stats

from indexes.errors import UsageError
from rag.evaluation.significance import (
    Estimate,
    bootstrap_interval,
    bootstrap_intervals,
    estimate,
    holm,
    paired_bootstrap,
    sign_flip_test,
    smallest_p,
)


def test_the_interval_of_a_proportion_is_the_normal_one() -> None:
    """400 answers, half right: 0.5 +- 1.96 sqrt(0.25 / 400) = 0.5 +- 0.049."""
    low, high = bootstrap_interval([1.0, 0.0] * 200)
    assert low == pytest.approx(0.451, abs=0.006)
    assert high == pytest.approx(0.549, abs=0.006)


def test_equal_scores_have_an_interval_without_width() -> None:
    assert bootstrap_interval([0.25] * 10) == (0.25, 0.25)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [random.Random(i).random() for i in range(50)]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_the_p_value_is_that_of_the_normal_test() -> None:
    """100 questions, 20 won and 10 lost: z = 0.1 / (sqrt(0.3 - 0.01) / 10) = 1.857, two-sided p = 0.063."""
    ours = [1.0] * 20 + [0.0] * 10 + [1.0] * 70
    theirs = [0.0] * 20 + [1.0] * 10 + [1.0] * 70
    result = paired_bootstrap(ours, theirs)
    assert result.difference == pytest.approx(0.1)
    assert result.p == pytest.approx(math.erfc(1.857 / math.sqrt(2)), abs=0.015)
    assert result.interval[0] < 0 < result.interval[1]


def test_pairing_detects_differences_that_unpaired_tests_miss() -> None:
    """Every question a little better: certain, however different the questions are from each other."""
    theirs = [random.Random(i).random() for i in range(40)]
    result = paired_bootstrap([t + 0.01 + 0.001 * (i % 3) for i, t in enumerate(theirs)], theirs)
    assert result.p < 0.001


def test_two_equal_pipelines_do_not_differ() -> None:
    assert paired_bootstrap([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]).p == 1.0


def test_different_numbers_of_scores_are_refused() -> None:
    with pytest.raises(UsageError, match="two scores per question, got 2 and 3"):
        paired_bootstrap([1.0, 0.0], [1.0, 0.0, 1.0])


def test_the_interval_of_one_question_has_no_width() -> None:
    assert bootstrap_interval([0.3]) == (0.3, 0.3)
    assert bootstrap_intervals({"a": [0.3], "b": [0.7]}) == {"a": (0.3, 0.3), "b": (0.7, 0.7)}
    assert paired_bootstrap([1.0], [0.0]).interval == (1.0, 1.0)


@pytest.mark.parametrize("n", range(1, 8))
def test_few_equal_improvements_have_the_p_value_of_a_sign_test(n: int) -> None:
    """Their resamples never vary; 2 / 2^n is what all heads in n tosses, or all tails, come out with."""
    found = paired_bootstrap([1.0] * n + [0.0], [0.0] * n + [0.0])
    assert found.p >= smallest_p(n) == pytest.approx(stats.binomtest(n, n).pvalue)
    assert paired_bootstrap([1.0] * n, [0.0] * n).p == smallest_p(n)


def test_no_score_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one score, got none"):
        bootstrap_interval([])


def test_holm_by_hand() -> None:
    """Sorted: 0.01 x 4 = 0.04; 0.02 x 3 = 0.06; 0.03 x 2 = 0.06; 0.5 x 1."""
    assert holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])


def test_holm_never_falls_while_p_rises() -> None:
    """0.02 x 2 = 0.04 is above 0.03 x 1, which is lifted to it."""
    assert holm([0.03, 0.02]) == pytest.approx([0.04, 0.04])


def test_holm_stops_at_one_and_leaves_a_single_comparison_alone() -> None:
    assert holm([0.9, 0.8, 0.7]) == [1.0, 1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_holm_refuses_values_outside_of_0_and_1(wrong: float) -> None:
    with pytest.raises(UsageError, match=r"must lie in \[0, 1\], got"):
        holm([0.5, wrong])


def test_many_intervals_are_those_of_one_metric_at_a_time() -> None:
    rng = random.Random(3)
    columns = {
        "a": [rng.random() for _ in range(40)],
        "b": [float(rng.random() < 0.3) for _ in range(40)],
        "few": [rng.random() for _ in range(7)],
        "flat": [0.1] * 40,
    }
    found = bootstrap_intervals(columns)
    assert list(found) == list(columns)
    assert found["few"] == bootstrap_interval(columns["few"])
    for name in ("a", "b", "flat"):
        assert found[name] == pytest.approx(bootstrap_interval(columns[name]), abs=1e-12)
    assert bootstrap_intervals({}) == {}


def test_intervals_do_not_depend_on_how_many_are_resampled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [random.Random(i).random() for i in range(50)]
    at_once = bootstrap_interval(values)
    monkeypatch.setattr("rag.evaluation.significance._MOST_AT_ONCE", 700)
    assert bootstrap_interval(values) == at_once


def test_an_estimate_of_nothing_has_no_value() -> None:
    assert estimate([]) == Estimate(None, None, 0)
    assert estimate([0.5, 0.5]) == Estimate(0.5, (0.5, 0.5), 2)


def test_the_sign_flip_test_of_binary_scores_equals_mcnemars() -> None:
    """6 won, 1 lost: 2 P(at most 1 of 7 heads) = 2 (1 + 7) / 2^7."""
    ours, theirs = [1.0] * 6 + [0.0] + [1.0] * 20, [0.0] * 6 + [1.0] + [1.0] * 20
    assert sign_flip_test(ours, theirs) == pytest.approx(2 * 8 / 2**7)
    assert sign_flip_test(theirs, ours) == pytest.approx(2 * 8 / 2**7)


def test_the_sign_flip_test_of_few_questions_tries_every_sign() -> None:
    differences = [0.5, 0.25, -0.125, 0.75, 0.3, 0.0]
    signs = list(itertools.product([1, -1], repeat=5))
    means = [sum(s * d for s, d in zip(sign, differences[:5], strict=True)) for sign in signs]
    observed = sum(differences)
    at_least = sum(m >= observed - 1e-12 for m in means) / len(means)
    assert sign_flip_test(differences, [0.0] * 6) == pytest.approx(2 * at_least)


def test_the_sign_flip_test_of_many_questions_is_near_the_normal_one() -> None:
    rng = random.Random(5)
    differences = [rng.gauss(0.1, 1.0) for _ in range(300)]
    z = sum(differences) / math.sqrt(sum(d * d for d in differences))
    assert sign_flip_test(differences, [0.0] * 300) == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.02)


def test_equal_scores_have_p_one_in_the_sign_flip_test() -> None:
    assert sign_flip_test([1.0, 0.5], [1.0, 0.5]) == 1.0
    with pytest.raises(UsageError, match="at least one question"):
        sign_flip_test([], [])
