"""How sure a number is: bootstrap intervals over questions, and paired comparisons of two pipelines.

A pipeline is scored once per question; what varies is which questions happened to be asked. Intervals resample the
questions, and a comparison resamples the *pairs*, as both pipelines answered the same ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from indexes.errors import UsageError

RESAMPLES = 5000
FLIPS = 9999
_MOST_AT_ONCE = 2**22  # scores that are resampled in one array: 32 MiB


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `values - others` over the same questions."""

    difference: float
    interval: tuple[float, float]
    """95 % percentile bootstrap interval of the difference."""
    p: float
    """Two-sided paired bootstrap p-value of "no difference"; never below 1 / (resamples + 1) or `surest_p`."""


def bootstrap_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: One score per question.
        seed: Of the resampling.

    Raises:
        UsageError: No value at all.
    """
    result = _bootstrap(np.asarray(values, dtype=np.float64), seed)
    return float(result[0]), float(result[1])


def bootstrap_intervals(columns: Mapping[str, Sequence[float]], *, seed: int = 0) -> dict[str, tuple[float, float]]:
    """The same interval for several metrics at once; those of as many questions share the resampled questions.

    Raises:
        UsageError: A metric without any value.
    """
    intervals: dict[str, tuple[float, float]] = {}
    for size in sorted({len(column) for column in columns.values()}):
        names = [name for name, column in columns.items() if len(column) == size]
        lows, highs, _ = _bootstrap(np.array([columns[name] for name in names], dtype=np.float64), seed)
        intervals |= {n: (float(low), float(high)) for n, low, high in zip(names, lows, highs, strict=True)}
    return {name: intervals[name] for name in columns}


def estimate(values: Sequence[float], *, seed: int = 0) -> dict[str, Any]:
    """A mean as files hold it: `value`, `interval` and `n`; the first two are None where there is no value."""
    if not len(values):
        return {"value": None, "interval": None, "n": 0}
    mean = math.fsum(values) / len(values)
    return {"value": mean, "interval": list(bootstrap_interval(values, seed=seed)), "n": len(values)}


def paired_bootstrap(values: Sequence[float], others: Sequence[float], *, seed: int = 0) -> PairedDifference:
    """Compare two pipelines on the same questions.

    The p-value is that of a two-sided test on the shifted bootstrap distribution (Koehn 2004): how often a mean
    difference at least as far from 0 arises when the differences are centred on 0. Resamples of three questions that
    all differ by the same amount never vary, which is no certainty, so `surest_p` is its lower bound.

    Args:
        values: One score per question.
        others: Scores of the other pipeline, in the same order of questions.
        seed: Of the resampling.

    Raises:
        UsageError: No value, or not the same number of both.
    """
    differences = _differences(values, others)
    low, high, means = _bootstrap(differences, seed)
    observed = float(differences.mean())
    extreme = int((np.abs(means - observed) >= abs(observed) - 1e-12).sum())
    p = max((extreme + 1) / (len(means) + 1), surest_p(int(np.count_nonzero(differences))))
    return PairedDifference(observed, (float(low), float(high)), p)


def surest_p(differing: int) -> float:
    """The smallest two-sided p-value that so many pairs which differ can give: all in one direction, 2 / 2^m.

    Were it chance which of the two got which score of a pair, this and its mirror image would come out so often. It
    takes six such pairs to fall below 0.05.

    >>> surest_p(1), surest_p(6)
    (1.0, 0.03125)
    """
    return float(min(1.0, 2.0 ** (1 - differing)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for how many comparisons were made, in the order given (Holm 1979, step-down).

    The smallest of m is multiplied by m, the next by m - 1 and so on; none falls below the one before it or exceeds 1.
    Calling what is then at most 0.05 a difference is wrong about one or more of them with a probability of 5 % at most,
    however the comparisons depend on each other. Never weaker than Bonferroni's, which multiplies all of them by m.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Raises:
        UsageError: Something that is no probability.
    """
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise UsageError(f"A p-value lies in [0, 1]; {wrong[0]} came.")
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = floor
    return adjusted


def sign_flip_test(values: Sequence[float], others: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p-value of "which pipeline got which score of a pair is chance" (Fisher's randomisation test).

    Under that hypothesis each difference might as well have the other sign. Where all that differ do so by the same
    amount, as with scores of 0 and 1, that is McNemar's exact test, a binomial one. Else all signs are tried for up to
    13 questions that differ, and 9,999 random ones for more (the smallest p is then 0.0002).

    Args:
        values: One score per question.
        others: Scores of the other pipeline, in the same order of questions.
        seed: Of the random signs.

    Raises:
        UsageError: No value, or not the same number of both.
    """
    differences = _differences(values, others)
    differences = differences[differences != 0]  # a difference of 0 has no sign to flip
    if not len(differences):
        return 1.0
    if np.ptp(np.abs(differences)) == 0:
        return float(stats.binomtest(int((differences > 0).sum()), len(differences)).pvalue)
    result = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=FLIPS,
        batch=max(1, _MOST_AT_ONCE // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _differences(values: Sequence[float], others: Sequence[float]) -> np.ndarray:
    if len(values) != len(others):
        raise UsageError(
            f"A paired comparison needs two scores per question; {len(values)} and {len(others)} came. Score both "
            "pipelines on the same questions."
        )
    if not len(values):
        raise UsageError("A paired comparison needs at least one question; none came.")
    return np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64)


def _bootstrap(values: np.ndarray, seed: int) -> tuple[Any, Any, np.ndarray]:
    """Low and high end of the interval of the mean over the last axis, and the resampled means."""
    if not values.shape[-1]:
        raise UsageError("A bootstrap needs at least one score; none came.")
    if values.shape[-1] == 1 or np.ptp(values) == 0:  # nothing to resample: every mean is the same
        constant = values[..., 0]
        return constant, constant, np.repeat(constant[..., None], RESAMPLES, axis=-1)
    result = stats.bootstrap(
        (values,),
        np.mean,
        axis=-1,
        n_resamples=RESAMPLES,
        batch=max(1, _MOST_AT_ONCE // values.size),
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return result.confidence_interval.low, result.confidence_interval.high, result.bootstrap_distribution
