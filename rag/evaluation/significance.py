"""Uncertainty of means: bootstrap intervals over questions, and paired tests of two pipelines.

A pipeline is scored once per question; what varies is the sample of questions. Intervals resample the questions, and a
comparison resamples the *pairs* of scores, because both pipelines answered the same questions.
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
class Estimate:
    """A mean over n values with its 95 % bootstrap interval; both are None without any value."""

    value: float | None
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `values - others` over the same questions."""

    difference: float
    interval: tuple[float, float]
    """95 % percentile bootstrap interval of the difference."""
    p: float
    """Two-sided paired bootstrap p-value of "no difference"; at least 1 / (resamples + 1) and `smallest_p`."""


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
    """`bootstrap_interval` of several metrics; those with the same number of questions share the resampled questions.

    Raises:
        UsageError: A metric without any value.
    """
    intervals: dict[str, tuple[float, float]] = {}
    for size in sorted({len(column) for column in columns.values()}):
        names = [name for name, column in columns.items() if len(column) == size]
        lows, highs, _ = _bootstrap(np.array([columns[name] for name in names], dtype=np.float64), seed)
        intervals |= {n: (float(low), float(high)) for n, low, high in zip(names, lows, highs, strict=True)}
    return {name: intervals[name] for name in columns}


def estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of some values with its interval."""
    if not len(values):
        return Estimate(None, None, 0)
    return Estimate(math.fsum(values) / len(values), bootstrap_interval(values, seed=seed), len(values))


def paired_bootstrap(values: Sequence[float], others: Sequence[float], *, seed: int = 0) -> PairedDifference:
    """Compare two pipelines on the same questions.

    The p-value is that of a two-sided test on the shifted bootstrap distribution (Koehn 2004): how often a mean
    difference at least as far from 0 arises when the differences are centred on 0. Resamples of three questions that
    all differ by the same amount do not vary, which proves nothing, so `smallest_p` is its lower bound.

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
    p = max((extreme + 1) / (len(means) + 1), smallest_p(int(np.count_nonzero(differences))))
    return PairedDifference(observed, (float(low), float(high)), p)


def smallest_p(differing: int) -> float:
    """The smallest two-sided p-value that m differing pairs can give: all in one direction, 2 / 2^m.

    If the assignment of the two scores of a pair were random, this outcome and its mirror image would have that
    probability. Six such pairs are needed to fall below 0.05.

    >>> smallest_p(1), smallest_p(6)
    (1.0, 0.03125)
    """
    return float(min(1.0, 2.0 ** (1 - differing)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for the number of comparisons, in the order given (Holm 1979, step-down).

    The smallest of m is multiplied by m, the next by m - 1 and so on; none falls below the one before it or exceeds 1.
    Rejecting at an adjusted p of at most 0.05 controls the family-wise error rate at 5 % under any dependence, and is
    uniformly more powerful than Bonferroni's correction, which multiplies all of them by m.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]

    Raises:
        UsageError: A value outside of [0, 1].
    """
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise UsageError(f"A p-value must lie in [0, 1], got {wrong[0]}.")
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = floor
    return adjusted


def sign_flip_test(values: Sequence[float], others: Sequence[float], *, seed: int = 0) -> float:
    """Two-sided p-value of Fisher's randomisation test for paired scores.

    Under its hypothesis the two scores of a pair are exchangeable, so each difference may have either sign. Where all
    nonzero differences have the same size, as with scores of 0 and 1, it is McNemar's exact (binomial) test. Otherwise
    all signs are enumerated for up to 13 questions that differ, and 9,999 random ones are drawn for more (the smallest
    p is then 0.0002).

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
            f"A paired comparison needs two scores per question, got {len(values)} and {len(others)}. Score both "
            "pipelines on the same questions."
        )
    if not len(values):
        raise UsageError("A paired comparison needs at least one question, got none.")
    return np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64)


def _bootstrap(values: np.ndarray, seed: int) -> tuple[Any, Any, np.ndarray]:
    """Low and high end of the interval of the mean over the last axis, and the resampled means."""
    if not values.shape[-1]:
        raise UsageError("A bootstrap needs at least one score, got none.")
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
