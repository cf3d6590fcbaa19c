"""The best scores of each query among vectors that are scored block by block.

A score matters only if it is among the c best so far, and not so far below the k-th that no error of both could make
up for it. There are few such scores in a block, so that it takes one comparison for each score, and not a selection.

Axes: B queries, c kept scores, k results, n vectors of a block, b queries with scores that matter, w such scores.
"""

import numpy as np
from numpy.typing import NDArray

from indexes.vectors.score_bound import ScoreBound

# From this share of a block on, selecting from the whole block is faster than collecting single scores.
_MANY = 1 / 8
# Scores of a block that are selected from at once: it takes eight bytes for each.
_SELECTED_FROM = 2**18


class RunningBest:
    """The c highest scores of each of B queries so far, and the rows that they belong to.

    Attributes:
        scores_Bc: float32, falling; -inf where there are fewer than c.
        rows_Bc: int64; -1 where there are fewer than c.
        floors_B: float32: no score that was left out is higher. It may be raised from outside, to leave out more.
    """

    def __init__(self, queries: int, count: int, k: int, bound: ScoreBound | None) -> None:
        """Keep `count` scores for each of so many queries, at least those that can be one of the k best exact scores.

        Without a bound the `count` best are kept.
        """
        self.scores_Bc = np.full((queries, count), -np.inf, dtype=np.float32)
        self.rows_Bc = np.full((queries, count), -1, dtype=np.int64)
        self.floors_B = np.full(queries, -np.inf, dtype=np.float32)
        self._flags = np.empty(0, dtype=np.bool_)
        self._k = k
        self._bound = bound

    def add(self, scores_Bn: NDArray[np.float32], start: int) -> None:
        """Take in the scores of the next vectors, the first of which has the row `start`."""
        hits = np.flatnonzero(self._are_higher(scores_Bn))
        if not hits.size:
            return
        queries, columns = np.divmod(hits, scores_Bn.shape[1])
        counts_B = np.bincount(queries, minlength=len(scores_Bn))
        if counts_B.max() > scores_Bn.shape[1] * _MANY:
            self._select(scores_Bn, start)
            return
        # The hits of a query follow one another: they fill the beginning of its row.
        hit_b = np.flatnonzero(counts_B)
        counts_b = counts_B[hit_b]
        places = np.arange(len(hits)) - np.repeat(np.cumsum(counts_b) - counts_b, counts_b)
        cells = np.repeat(np.arange(len(hit_b)) * counts_b.max(), counts_b) + places
        found_bw = np.full((len(hit_b), counts_b.max()), -np.inf, dtype=np.float32)
        rows_bw = np.full(found_bw.shape, -1, dtype=np.int64)
        found_bw.reshape(-1)[cells] = scores_Bn.reshape(-1)[hits]
        rows_bw.reshape(-1)[cells] = columns + start
        self._merge(hit_b, found_bw, rows_bw)

    def _are_higher(self, scores_Bn: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which scores are higher than the floors; in memory that is used again, since fresh memory is slow."""
        if len(self._flags) < scores_Bn.size:
            self._flags = np.empty(scores_Bn.size, dtype=np.bool_)
        flags_Bn = self._flags[: scores_Bn.size].reshape(scores_Bn.shape)
        return np.greater(scores_Bn, self.floors_B[:, None], out=flags_Bn)

    def _select(self, scores_Bn: NDArray[np.float32], start: int) -> None:
        """Take in the best of a whole block, for some queries at a time."""
        size = scores_Bn.shape[1]
        count, step = min(self.scores_Bc.shape[1], size), max(1, _SELECTED_FROM // size)
        for first in range(0, len(scores_Bn), step):
            scores_bn = scores_Bn[first : first + step]
            columns_bw = np.argpartition(scores_bn, size - count, axis=1)[:, size - count :]
            found_bw = np.take_along_axis(scores_bn, columns_bw, axis=1)
            self._merge(np.arange(first, first + len(scores_bn)), found_bw, columns_bw + start)

    def _merge(self, queries_b: NDArray[np.int64], scores_bw: NDArray[np.float32], rows_bw: NDArray[np.int64]) -> None:
        """Keep the best of what these queries have and of further scores."""
        scores = np.concatenate([self.scores_Bc[queries_b], scores_bw], axis=1)
        rows = np.concatenate([self.rows_Bc[queries_b], rows_bw], axis=1)
        best_bc = np.argsort(-scores, axis=1)[:, : self.scores_Bc.shape[1]]
        self.scores_Bc[queries_b] = np.take_along_axis(scores, best_bc, axis=1)
        self.rows_Bc[queries_b] = np.take_along_axis(rows, best_bc, axis=1)
        np.maximum(self.floors_B, self.scores_Bc[:, -1], out=self.floors_B)
        if self._bound is not None:
            kth_B1 = self.scores_Bc[:, self._k - 1 : self._k]
            np.maximum(self.floors_B, (kth_B1 - 2 * self._bound.slack(kth_B1))[:, 0], out=self.floors_B)
