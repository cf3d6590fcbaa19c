"""The dense retriever: nearest vectors, with a question side that can learn."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from retriever.candidates import Candidates, Explanation
from retriever.retriever import Queries, Retriever


class DenseRetriever(Retriever):
    """Question -> the k passages with the highest inner product; its arguments are those of `Retriever`."""

    kind: ClassVar[str] = "dense"

    def rank(self, queries: Queries, k: int, *, explain: bool = False) -> list[Candidates]:
        """The nearest vectors; arguments and result as `Retriever.rank`."""
        scores_BD, ids_BD = self.nearest(queries.vectors, k + queries.max_ignored)
        exact = self.index.vectors.properties.scores == "exact"
        found = []
        for i, (scores_D, ids_D) in enumerate(zip(scores_BD, ids_BD, strict=True)):
            # FAISS pads short results with -1, which a list would read as its last passage.
            kept = np.flatnonzero((ids_D >= 0) & ~np.isin(ids_D, queries.ignored[i]))[:k]
            one = self.candidates_at(queries, i, ids_D[kept].tolist(), scores_D[kept].tolist())
            if exact:
                one = replace(one, dense_scores=None)
            if explain:
                ranks = enumerate(one.scores.tolist(), 1)
                one = replace(one, explanations=[Explanation(dense_rank=r, dense_score=s) for r, s in ranks])
            found.append(one)
        return found

    def score(self, candidates: Candidates) -> Tensor:
        """Scores `[n]` of given candidates under the current question adapter, with gradient to it.

        They are inner products q' . d where the index scores by them. Where it does not (`faiss_kinds`), they
        are the scores of the search plus (q' - q'_0) . d, where q' is the adapted question now, q'_0 as it was
        searched with, and d what the index gives back of a vector.
        """
        return (
            self.moved_scores(candidates) if candidates.dense_scores is not None else self._inner_products(candidates)
        )
