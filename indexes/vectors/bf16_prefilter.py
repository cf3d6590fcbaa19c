"""Exact search in two passes: bfloat16 products find candidates, and a bound proves that none was missed.

    x is left out  =>  q.x <= (lowest bfloat16 score that was kept) + error = ceiling

so k candidates whose exact scores lie above the ceiling are the k best of all vectors. With q', x' for
the rounded vectors, the error is at most

    |q - q'| max|x| + |q'| max|x - x'|      by Cauchy-Schwarz, for the rounding of the factors
    + 2^-8 |score|                          for the rounding of the product
    + d 2^-22 |q| max|x|                    for float32 sums over d dimensions, in any order, with a margin

Axes: N vectors, B queries, c candidates, n vectors of a block, d dimensions.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Scores that are computed at once: 16 MiB in bfloat16, so that they are still in the cache when the best are picked.
_SCORES = 2**23
# Vectors whose rounding error is measured at once.
_ROWS = 8192
# Half the distance of neighbouring bfloat16 numbers, relative to them.
_HALF_STEP = 2.0**-8
_SUM_ERROR = 2.0**-22


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 (AVX-512 BF16 or AMX), so that bfloat16 products beat float32 ones."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


class Bf16Prefilter:
    """A bfloat16 copy of N vectors, 2 d bytes each, with a bound of its error."""

    def __init__(self, vectors_Nd: NDArray[np.float32]) -> None:
        """Copy float32 vectors [N, d], N > 0."""
        self._rounded_Nd = torch.empty(vectors_Nd.shape, dtype=torch.bfloat16)
        self._largest_norm = self._largest_error = 0.0
        for start in range(0, len(vectors_Nd), _ROWS):
            exact_nd = torch.from_numpy(vectors_Nd[start : start + _ROWS])
            rounded_nd = self._rounded_Nd[start : start + len(exact_nd)].copy_(exact_nd)
            self._largest_norm = max(self._largest_norm, float(exact_nd.norm(dim=1).max()))
            self._largest_error = max(self._largest_error, float((exact_nd - rounded_nd).norm(dim=1).max()))

    def __len__(self) -> int:
        return len(self._rounded_Nd)

    def candidates(self, queries_Bd: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Vectors that may be among the best of each query, and how high all others can score.

        Args:
            queries_Bd: float32 [B, d].
            count: c, at most N.

        Returns:
            Positions, int64 [B, c], in no order; and ceilings, float32 [B]: no other vector scores higher.
        """
        exact_Bd = torch.from_numpy(queries_Bd)
        rounded_Bd = exact_Bd.bfloat16()
        scores_Bc, positions_Bc = self._best(rounded_Bd, count)
        lowest_B = scores_Bc.amin(1)
        ceilings_B = lowest_B + self._error(exact_Bd, rounded_Bd.float(), lowest_B)
        return positions_Bc.numpy(), ceilings_B.numpy()

    def _best(self, queries_Bd: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` highest bfloat16 scores of each query, as float32, and their positions."""
        size = min(len(self), max(1, _SCORES // len(queries_Bd)))
        buffer = torch.empty(len(queries_Bd) * size, dtype=torch.bfloat16)  # allocated once, since fresh memory is slow
        scores: list[Tensor] = []
        positions: list[Tensor] = []
        for start in range(0, len(self), size):
            block_nd = self._rounded_Nd[start : start + size]
            block_Bn = buffer[: len(queries_Bd) * len(block_nd)].view(len(queries_Bd), len(block_nd))
            scores_Bn = torch.mm(queries_Bd, block_nd.T, out=block_Bn)
            best_Bc, columns_Bc = scores_Bn.topk(min(count, len(block_nd)), sorted=False)
            scores.append(best_Bc)
            positions.append(columns_Bc + start)
        best_Bc, columns_Bc = torch.cat(scores, 1).topk(count, sorted=False)
        return best_Bc.float(), torch.cat(positions, 1).gather(1, columns_Bc)

    def _error(self, exact_Bd: Tensor, rounded_Bd: Tensor, scores_B: Tensor) -> Tensor:
        """The most by which an exact score can exceed a bfloat16 score of `scores_B` or below."""
        lost_B = (exact_Bd - rounded_Bd).norm(dim=1)
        products_B = lost_B * self._largest_norm + rounded_Bd.norm(dim=1) * self._largest_error
        sums_B = exact_Bd.shape[1] * _SUM_ERROR * (exact_Bd.norm(dim=1) + lost_B) * self._largest_norm
        # The step is relative to what was rounded, which may exceed the score by half a step.
        errors_B: Tensor = products_B + sums_B + scores_B.abs() * _HALF_STEP * (1 + 2 * _HALF_STEP)
        return errors_B
