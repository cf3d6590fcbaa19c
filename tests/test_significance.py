"""Bootstrap intervals and paired comparisons, against closed forms."""

import math
import random

import pytest

from indexes.errors import UsageError
from rag.significance import bootstrap_interval, holm, paired_bootstrap


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


def test_pairing_sees_what_unpaired_scores_would_hide() -> None:
    """Every question a little better: certain, however different the questions are from each other."""
    theirs = [random.Random(i).random() for i in range(40)]
    result = paired_bootstrap([t + 0.01 + 0.001 * (i % 3) for i, t in enumerate(theirs)], theirs)
    assert result.p < 0.001


def test_two_equal_pipelines_are_not_told_apart() -> None:
    assert paired_bootstrap([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]).p == 1.0


def test_different_numbers_of_scores_are_refused() -> None:
    with pytest.raises(UsageError, match="two scores per question; 2 and 3 came"):
        paired_bootstrap([1.0, 0.0], [1.0, 0.0, 1.0])


def test_no_score_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one score; none came"):
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
def test_holm_refuses_what_is_no_probability(wrong: float) -> None:
    with pytest.raises(UsageError, match=r"lies in \[0, 1\]"):
        holm([0.5, wrong])
