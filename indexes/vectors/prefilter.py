"""Exact search by matrix products: vectors are scored block by block, and a bound proves that none was missed.

    x is left out  =>  q.x <= (highest score that was left out) + error = ceiling

so k candidates whose exact scores lie above the ceiling are the k best of all vectors (`score_bound` has the error).
The products are those of float32, or of vectors rounded to bfloat16 where the CPU multiplies them faster.

The vectors may lie in a file that is mapped: a block is read once for all queries, and besides the candidates only what
belongs to one block is in memory (`SEARCH_BYTES`).

Axes: N vectors, B queries, c candidates, k results, n vectors of a block, d dimensions.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexes.host_memory import SEARCH_BYTES
from indexes.vectors.running_best import RunningBest
from indexes.vectors.score_bound import Extent, ScoreBound

# All scores of the first block are sorted, so it is small. Of a block as long as all before it about as many scores
# matter as are kept.
_FIRST_BLOCK = 1024
_FIRST_SCORES = 2**17
_LARGEST_BLOCK = 8192


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 (AVX-512 BF16 or AMX), so that bfloat16 products beat float32 ones."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


class Candidates(NamedTuple):
    """Vectors that may be among the best of each query, best first, and what is known of all others."""

    scores_Bc: NDArray[np.float32]
    """Approximate; -inf where there are fewer than c."""
    rows_Bc: NDArray[np.int64]
    """-1 where there are fewer than c."""
    ceilings_B: NDArray[np.float32]
    """No exact score of another vector is higher."""
    bound: ScoreBound


class Prefilter:
    """Finds candidates among N float32 vectors where they are, or with a bfloat16 copy of them, 2 d bytes each."""

    def __init__(self, vectors_Nd: NDArray[np.float32]) -> None:
        """Search in float32 vectors [N, d], N > 0, which are not copied: they must stay, and stay as they are."""
        self._vectors_Nd = torch.from_numpy(vectors_Nd)
        self._copy_Nd: Tensor | None = None
        # For products in float32 and in bfloat16, found when all vectors are read for the first time.
        self._extents: dict[torch.dtype, Extent] = {}

    def __len__(self) -> int:
        return len(self._vectors_Nd)

    def copy(self) -> None:
        """Keep a bfloat16 copy: searches in bfloat16 then read half of the bytes and convert nothing."""
        if self._copy_Nd is None:
            copy_Nd, extent = torch.empty(self._vectors_Nd.shape, dtype=torch.bfloat16), Extent()
            for start in range(0, len(self), _LARGEST_BLOCK):
                block_nd = self._vectors_Nd[start : start + _LARGEST_BLOCK]
                extent = extent.including(block_nd, copy_Nd[start : start + len(block_nd)].copy_(block_nd))
            self._learn(torch.bfloat16, extent)
            self._copy_Nd = copy_Nd

    def candidates(
        self,
        queries_Bd: NDArray[np.float32],
        k: int,
        count: int,
        *,
        bfloat16: bool = False,
        least_B: NDArray[np.float32] | None = None,
    ) -> Candidates:
        """Candidates for the k best vectors of each query.

        Args:
            queries_Bd: float32 [B, d].
            k: How many of the best are wanted.
            count: c, at least k: the most candidates of a query.
            bfloat16: Multiply in bfloat16 instead of float32.
            least_B: float32 [B]: the k best have at least these exact scores.
        """
        exact_Bd = torch.from_numpy(queries_Bd if queries_Bd.flags.writeable else queries_Bd.copy())
        dtype = torch.bfloat16 if bfloat16 or _rounds_float32() else torch.float32
        factors_Bd = exact_Bd.to(dtype)
        extent = self._extents.get(dtype)
        bound = None if extent is None else ScoreBound.of(exact_Bd, factors_Bd, extent)
        best = RunningBest(len(exact_Bd), count, k, bound)
        if bound is not None and least_B is not None:
            best.floors_B = least_B - 2 * bound.slack(least_B[:, None])[:, 0]
        found = self._score(factors_Bd, best, 2 * count, measure=extent is None)
        if bound is None:
            self._learn(dtype, found)
            bound = ScoreBound.of(exact_Bd, factors_Bd, found)
        return Candidates(best.scores_Bc, best.rows_Bc, bound.highest(best.floors_B[:, None])[:, 0], bound)

    def _score(self, factors_Bd: Tensor, best: RunningBest, first: int, *, measure: bool) -> Extent:
        """Score all vectors block by block, and measure them if they were not measured yet."""
        source_Nd = self._vectors_Nd if factors_Bd.dtype == torch.float32 or self._copy_Nd is None else self._copy_Nd
        buffers = _Buffers(factors_Bd, source_Nd)
        first = max(first, _FIRST_BLOCK, _FIRST_SCORES // len(factors_Bd))
        extent, start = Extent(), 0
        while start < len(self):
            stop = min(start + min(buffers.vectors, max(start, first)), len(self))
            block_nd = buffers.converted(source_Nd[start:stop])
            if measure:
                extent = extent.including(self._vectors_Nd[start:stop], block_nd)
            best.add(buffers.products(block_nd), start)
            start = stop
        return extent

    def _learn(self, dtype: torch.dtype, extent: Extent) -> None:
        self._extents[dtype] = extent
        self._extents.setdefault(torch.float32, Extent(extent.norm))


class _Buffers:
    """The memory of a search by blocks, allocated once, since fresh memory is slow."""

    def __init__(self, factors_Bd: Tensor, source_Nd: Tensor) -> None:
        """Memory for blocks of as many vectors of a source as `SEARCH_BYTES` allow, and for their scores."""
        (queries, dimension), dtype = factors_Bd.shape, factors_Bd.dtype
        narrow = dtype == torch.bfloat16
        # Of a block: scores, in bfloat16 first, their comparison, and vectors, which the first search also subtracts.
        vector_bytes = queries * (7 if narrow else 5) + dimension * (10 if narrow else 4)
        self.vectors = max(1, min(_LARGEST_BLOCK, SEARCH_BYTES // vector_bytes, len(source_Nd)))
        self._factors_Bd = factors_Bd
        self._scores = torch.empty(queries * self.vectors)
        self._narrow_scores = torch.empty(queries * self.vectors if narrow else 0, dtype=dtype)
        self._block_nd = torch.empty((0 if source_Nd.dtype == dtype else self.vectors, dimension), dtype=dtype)

    def converted(self, block_nd: Tensor) -> Tensor:
        """A block in the dtype of the products."""
        if block_nd.dtype == self._factors_Bd.dtype:
            return block_nd
        return self._block_nd[: len(block_nd)].copy_(block_nd)

    def products(self, block_nd: Tensor) -> NDArray[np.float32]:
        """The products of all queries with a block, float32 [B, n], until the next call."""
        shape = len(self._factors_Bd), len(block_nd)
        scores_Bn = self._scores[: shape[0] * shape[1]].view(shape)
        if block_nd.dtype == torch.float32:
            torch.mm(self._factors_Bd, block_nd.T, out=scores_Bn)
        else:
            narrow_Bn = self._narrow_scores[: shape[0] * shape[1]].view(shape)
            scores_Bn.copy_(torch.mm(self._factors_Bd, block_nd.T, out=narrow_Bn))
        products_Bn: NDArray[np.float32] = scores_Bn.numpy()
        return products_Bn


def _rounds_float32() -> bool:
    """Whether torch was allowed to multiply float32 matrices in bfloat16 (`torch.set_float32_matmul_precision`)."""
    products: Any = torch.backends.mkldnn  # torch's stub lacks `matmul`
    return products.matmul.fp32_precision not in ("none", "ieee")
