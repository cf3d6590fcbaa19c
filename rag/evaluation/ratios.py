"""Ratios of two sums over items, with intervals and paired tests: accuracies, perplexities, bits per byte.

    value = f(sum of numerators / sum of denominators)

With denominators of 1 and f the identity it is a mean. A perplexity is exp(nats / words): long documents weigh more
than short ones, so items are resampled *with* their denominators (the bootstrap of a ratio, Efron and Tibshirani 1993,
chapter 10), and two models are compared on the same resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rag.evaluation.significance import RESAMPLES, bootstrap_interval, paired_bootstrap, smallest_p

_RESAMPLES_AT_A_TIME = 256


@dataclass(frozen=True)
class Ratio:
    """Numerators and denominators of the same items; `is_exponential` for perplexities."""

    numerators: Sequence[float]
    denominators: Sequence[float]
    is_exponential: bool = False

    @property
    def is_mean(self) -> bool:
        """Whether every item weighs the same."""
        return not self.is_exponential and all(d == 1 for d in self.denominators)

    @property
    def value(self) -> float:
        """The ratio over all items; infinite where a perplexity exceeds a float, as for long texts without spaces."""
        sums = np.asarray([[np.sum(self.numerators)], [np.sum(self.denominators)]], dtype=np.float64)
        return float(self._finish(sums[0] / sums[1])[0])

    def interval(self, *, seed: int = 0) -> tuple[float, float] | None:
        """95 % percentile bootstrap interval over items; None for a single item, which cannot vary, or if infinite."""
        if len(self.numerators) < 2:
            return None
        if self.is_mean:
            return bootstrap_interval(self.numerators, seed=seed)
        numerators, denominators = resampled_sums([self.numerators, self.denominators], seed)
        return _middle(self._finish(numerators / denominators))

    def against(self, other: "Ratio", *, seed: int = 0) -> tuple[float, tuple[float, float] | None, float | None]:
        """Paired difference of the values (self - other), its interval, and p of "no difference".

        The test is on the ratio before exp: for perplexities on the log of their quotient, which is far closer to
        symmetric than their difference; `smallest_p` is its lower bound. Interval and p are None for a single item, and
        the interval where it is not finite.
        """
        if len(self.numerators) < 2:
            return self.value - other.value, None, None
        if self.is_mean and other.is_mean:
            found = paired_bootstrap(self.numerators, other.numerators, seed=seed)
            return found.difference, found.interval, found.p
        return self._against(other, seed)

    def _against(self, other: "Ratio", seed: int) -> tuple[float, tuple[float, float] | None, float]:
        columns = [self.numerators, self.denominators, other.numerators, other.denominators]
        a, b, c, d = resampled_sums(columns, seed)
        observed = np.sum(self.numerators) / np.sum(self.denominators)
        observed = observed - np.sum(other.numerators) / np.sum(other.denominators)
        extreme = int((np.abs(a / b - c / d - observed) >= abs(observed) - 1e-12).sum())
        pairs = zip(self.numerators, self.denominators, other.numerators, other.denominators, strict=True)
        differing = sum((one, size) != (two, other_size) for one, size, two, other_size in pairs)
        with np.errstate(invalid="ignore"):  # inf - inf
            interval = _middle(self._finish(a / b) - self._finish(c / d))
        return self.value - other.value, interval, max((extreme + 1) / (len(a) + 1), smallest_p(differing))

    def _finish(self, ratios: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.exp(ratios) if self.is_exponential else ratios


def resampled_sums(columns: Sequence[Sequence[float]], seed: int) -> np.ndarray:
    """Sums of each column over items drawn with replacement, the same draws for all: `[columns, resamples]`."""
    values = np.asarray(columns, dtype=np.float64)
    rng = np.random.default_rng(seed)
    n = values.shape[1]
    sizes = [min(_RESAMPLES_AT_A_TIME, RESAMPLES - start) for start in range(0, RESAMPLES, _RESAMPLES_AT_A_TIME)]
    return np.concatenate([values[:, rng.integers(n, size=(size, n))].sum(-1) for size in sizes], axis=1)


def _middle(values: np.ndarray) -> tuple[float, float] | None:
    if not np.isfinite(values).all():
        return None
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
