"""How sure a number is: bootstrap intervals over questions, and paired comparisons of two pipelines.

A pipeline is scored once per question; what varies is which questions happened to be asked. Both functions
resample the questions, and a comparison resamples the *pairs*, as both pipelines answered the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from indexes.errors import UsageError

RESAMPLES = 5000


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `values - others` over the same questions."""

    difference: float
    interval: tuple[float, float]
    """95 % percentile bootstrap interval of the difference."""
    p: float
    """Two-sided paired bootstrap p-value of "no difference"; never below 1 / (resamples + 1)."""


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


def paired_bootstrap(values: Sequence[float], others: Sequence[float], *, seed: int = 0) -> PairedDifference:
    """Compare two pipelines on the same questions.

    The p-value is that of a two-sided test on the shifted bootstrap distribution (Koehn 2004): how often a mean
    difference at least as far from 0 arises when the differences are centred on 0.

    Args:
        values: One score per question.
        others: Scores of the other pipeline, in the same order of questions.
        seed: Of the resampling.

    Raises:
        UsageError: No value, or not the same number of both.
    """
    if len(values) != len(others):
        raise UsageError(
            f"A paired comparison needs two scores per question; {len(values)} and {len(others)} came. Score both "
            "pipelines on the same questions."
        )
    differences = np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    low, high, means = _bootstrap(differences, seed)
    observed = float(differences.mean())
    extreme = int((np.abs(means - observed) >= abs(observed) - 1e-12).sum())
    return PairedDifference(observed, (float(low), float(high)), (extreme + 1) / (len(means) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for how many comparisons were made, in the order given (Holm 1979, step-down).

    The smallest of m is multiplied by m, the next by m - 1 and so on; none falls below the one before it or exceeds 1.
    Refusing what is at most 0.05 then calls any true "no difference" a difference with probability 5 % at most,
    however the comparisons depend on each other. Never weaker than Bonferroni's, which multiplies
    all of them by m.

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


def _bootstrap(values: np.ndarray, seed: int) -> tuple[float, float, np.ndarray]:
    """Low and high end of the interval, and the resampled means."""
    if not len(values):
        raise UsageError("A bootstrap needs at least one score; none came.")
    if np.ptp(values) == 0:  # nothing to resample: every mean is the same
        return float(values[0]), float(values[0]), np.full(RESAMPLES, values.mean())
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(seed)
    )
    return result.confidence_interval.low, result.confidence_interval.high, result.bootstrap_distribution
