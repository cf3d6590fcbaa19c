"""Fractions of sums and their bootstrap, against scipy's and against closed forms."""

import math

import numpy as np
import pytest
from scipy import stats

from rag.evaluation.ratios import Ratio
from rag.evaluation.significance import smallest_p

RNG = np.random.default_rng(5)
SIZES = RNG.integers(3, 60, size=150).astype(float)
NATS = SIZES * RNG.normal(2.0, 0.4, size=150)
OTHER = NATS - SIZES * RNG.normal(0.1, 0.2, size=150)


def test_values_by_hand() -> None:
    """(2 + 10) nats over (1 + 5) words are 2 nats a word; the mean of the rows' own values would be 2 too by chance,
    so the second pair is uneven: (2 + 6) / (1 + 5) is 8/6, and not (2 + 1.2) / 2."""
    assert Ratio([2, 10], [1, 5], True).value == pytest.approx(math.exp(2))
    assert Ratio([2, 6], [1, 5]).value == pytest.approx(8 / 6)
    assert Ratio([1, 0, 0, 1], [1, 1, 1, 1]).value == 0.5


@pytest.mark.parametrize("is_exponential", [False, True])
def test_the_interval_equals_scipys(is_exponential: bool) -> None:
    """Other draws of the same bootstrap: both ends agree but for the noise of 5,000 resamples."""

    def statistic(nats: np.ndarray, sizes: np.ndarray, axis: int) -> np.ndarray:
        found = nats.sum(axis) / sizes.sum(axis)
        return np.exp(found) if is_exponential else found

    reference = stats.bootstrap(
        (NATS, SIZES), statistic, paired=True, n_resamples=20000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    found = Ratio(list(NATS), list(SIZES), is_exponential).interval()
    width = reference.high - reference.low
    assert found == pytest.approx((reference.low, reference.high), abs=0.06 * width)


def test_the_difference_of_two_perplexities() -> None:
    """Its standard error by the delta method (Cochran, ratio estimator): p of z and the bootstrap's p are near."""
    a, b = Ratio(list(NATS), list(SIZES), True), Ratio(list(OTHER), list(SIZES), True)
    difference, interval, p = a.against(b)
    assert difference == pytest.approx(a.value - b.value)
    assert interval is not None and interval[0] < difference < interval[1]
    shift = (NATS - OTHER).sum() / SIZES.sum()
    residuals = (NATS - OTHER) - shift * SIZES
    error = math.sqrt(len(SIZES) * residuals.var(ddof=1)) / SIZES.sum()
    assert p == pytest.approx(2 * stats.norm.sf(shift / error), abs=0.01)
    assert math.exp(shift) == pytest.approx(a.value / b.value)


def test_no_difference_has_p_one_and_no_width() -> None:
    a = Ratio(list(NATS), list(SIZES), True)
    assert a.against(a) == (0.0, (0.0, 0.0), 1.0)
    mean = Ratio([1.0, 0.0, 1.0], [1.0] * 3)
    assert mean.against(mean) == (0.0, (0.0, 0.0), 1.0)


def test_a_single_item_has_no_interval() -> None:
    assert Ratio([2.0], [4.0]).interval() is None
    assert Ratio([2.0], [4.0]).against(Ratio([1.0], [4.0])) == (0.25, None, None)


def test_two_equal_improvements_are_not_significant() -> None:
    """Their resamples never vary: one nat a word less in each."""
    ours, theirs = Ratio([2.0, 4.0], [1.0, 2.0], True), Ratio([3.0, 6.0], [1.0, 2.0], True)
    assert ours.against(theirs)[2] == smallest_p(2) == 0.5
    assert Ratio([1.0, 1.0, 0.0], [1.0] * 3).against(Ratio([0.0, 0.0, 0.0], [1.0] * 3))[2] >= 0.5


def test_a_perplexity_that_no_float_holds_is_infinite() -> None:
    """A text without blanks is one word of a thousand nats; the log of a quotient of two of them is a number."""
    ours, theirs = Ratio([1500.0, 1600.0], [1.0, 1.0], True), Ratio([1510.0, 1620.0], [1.0, 1.0], True)
    assert ours.value == math.inf
    assert ours.interval() is None
    difference, interval, p = ours.against(theirs)
    assert math.isnan(difference) and interval is None and p == 0.5


def test_equal_scores_have_no_difference() -> None:
    a, b = Ratio(list(NATS), list(SIZES)), Ratio(list(OTHER), list(SIZES))
    assert a.interval() == a.interval()
    assert a.against(b) == a.against(b)
