"""How far an inner product that was computed in a fast way can be from the exact one (`prefilter`).

With q', x' for a query and a vector as they are multiplied, the difference is at most

    |q - q'| max|x| + |q'| max|x - x'|      by Cauchy-Schwarz, for the rounding of the factors to bfloat16
    + 2^-8 |score|                          for the rounding of the product to bfloat16
    + d 2^-22 |q| max|x|                    for float32 sums over d dimensions, in any order, with a margin

Axes: B queries, n vectors of a block, x scores, d dimensions.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Half the distance of neighbouring bfloat16 numbers, relative to them; and relative to what was rounded, which may
# exceed the score by half a step.
_HALF_STEP = 2.0**-8
_ROUNDING = _HALF_STEP * (1 + 2 * _HALF_STEP)
_SUM_ERROR = 2.0**-22


class Extent(NamedTuple):
    """What the bound has to know of the vectors."""

    norm: float = 0.0
    """max|x|"""
    loss: float = 0.0
    """max|x - x'|"""

    def including(self, exact_nd: Tensor, factors_nd: Tensor) -> "Extent":
        """The extent of these vectors as well, which are multiplied as `factors_nd`."""
        norm = max(self.norm, float(exact_nd.norm(dim=1).max()))
        same = factors_nd.dtype == exact_nd.dtype
        return Extent(norm, self.loss if same else max(self.loss, float((exact_nd - factors_nd).norm(dim=1).max())))


class ScoreBound(NamedTuple):
    """The largest difference between exact and approximate scores."""

    errors_B: NDArray[np.float32]
    """Of sums of products of rounded factors, for each query."""
    rounding: float
    """Of the rounding of such a sum, relative to it."""

    @classmethod
    def of(cls, exact_Bd: Tensor, factors_Bd: Tensor, extent: Extent) -> "ScoreBound":
        """The bound for queries that are multiplied as `factors_Bd`."""
        lost_B = (exact_Bd - factors_Bd).norm(dim=1)
        products_B = lost_B * extent.norm + factors_Bd.float().norm(dim=1) * extent.loss
        sums_B = exact_Bd.shape[1] * _SUM_ERROR * (exact_Bd.norm(dim=1) + lost_B) * extent.norm
        return cls((products_B + sums_B).numpy(), _ROUNDING if factors_Bd.dtype == torch.bfloat16 else 0.0)

    def highest(self, scores_Bx: NDArray[np.float32]) -> NDArray[np.float32]:
        """The highest exact scores that these approximate ones can stand for."""
        return scores_Bx + self.slack(scores_Bx)

    def lowest(self, scores_Bx: NDArray[np.float32]) -> NDArray[np.float32]:
        """The lowest exact scores that these approximate ones can stand for."""
        return scores_Bx - self.slack(scores_Bx)

    def slack(self, scores_Bx: NDArray[np.float32]) -> NDArray[np.float32]:
        """The largest differences, float32 [B, x]; of scores of -inf, which stand for none, that of 0."""
        sizes_Bx: NDArray[np.float32] = np.where(np.isneginf(scores_Bx), np.float32(0), np.abs(scores_Bx))
        slack_Bx: NDArray[np.float32] = self.errors_B[:, None] + np.float32(self.rounding) * sizes_Bx
        return slack_Bx
