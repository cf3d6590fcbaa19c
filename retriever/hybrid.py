"""Lexical retrieval: BM25, and its fusion with the dense ranking (reciprocal rank fusion).

Encoders miss names, numbers and rare words; BM25 misses synonyms. Their scores have no common scale, so their ranks are
added: Cormack, Clarke and Büttcher (SIGIR 2009).

Legend: B questions, n candidates, d embedding dimension, D depth of a ranking.
"""

import itertools
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from indexes.corpora.passage import Passage
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import COSINE, Encoder
from indexes.errors import MismatchError, UsageError
from indexes.vectors.bm25_index import BM25Index
from retriever.candidates import Candidates, Explanation
from retriever.question_adapter import QuestionAdapter
from retriever.retriever import Queries, Retriever


class LexicalRetriever(Retriever):
    """The base of retrievers with a BM25 index.

    Args:
        index: An opened index directory.
        encoder: The encoder that built it (checked by fingerprint).
        bm25: BM25 index of the same passages in the same order.
        adapter: The question adapter; a fresh one changes nothing.

    Raises:
        MismatchError: `encoder` is not the one that built `index`, or `bm25` has another number of passages.
    """

    def __init__(
        self, index: PassageIndex, encoder: Encoder, bm25: BM25Index, *, adapter: QuestionAdapter | None = None
    ) -> None:
        super().__init__(index, encoder, adapter=adapter)
        if len(bm25) != len(index):
            raise MismatchError(
                f"The BM25 index must hold the {len(index)} passages of {index.path}, got {len(bm25)}. "
                "Build it from that index."
            )
        self.bm25 = bm25

    def _take(self, index: PassageIndex) -> None:
        # Even where the passages are the same their order may not be, and BM25 knows them by their position.
        self.bm25 = index.load_bm25()
        super()._take(index)

    @classmethod
    def from_settings(cls, index: PassageIndex, encoder: Encoder, settings: Mapping[str, Any]) -> Self:
        """As `Retriever.from_settings`, with the BM25 index that belongs to `index`."""
        return cls(index, encoder, index.load_bm25(), **settings)

    def with_terms(self, candidates: Candidates) -> Candidates:
        """The same candidates, their explanations with what each word of the question adds to the BM25 score.

        A passage that is not in the BM25 ranking, because its rank is too low, gets its score here.
        """
        explained = []
        for passage, explanation in zip(candidates.passages, candidates.explanations or [], strict=True):
            terms = self.bm25.contributions(candidates.question, self.index.corpus.position(passage.id))
            score = sum(terms.values()) if explanation.bm25_score is None else explanation.bm25_score
            explained.append(replace(explanation, bm25_score=score, terms=terms))
        return replace(candidates, explanations=explained)


class BM25Retriever(LexicalRetriever):
    """Question -> the k passages with the highest BM25 score: what a retriever without an encoder finds.

    Passages that share no word with the question follow with a score of 0, in the order of the index, so that a
    selector gets its k. The encoder is there for the vectors that candidates carry; nothing here can learn.
    """

    kind: ClassVar[str] = "bm25"

    def rank(self, queries: Queries, k: int, *, explain: bool = False) -> list[Candidates]:
        """By BM25 scores; arguments and result as `Retriever.rank`."""
        rankings = _rankings(*self.bm25.search(queries.questions, k + queries.max_ignored), k, queries.ignored)
        found = []
        for i, ranking in enumerate(rankings):
            positions = self._filled_up(ranking, k, queries.ignored[i])
            one = self.candidates_at(queries, i, positions, [ranking.get(p, 0.0) for p in positions])
            found.append(self._explained(one, ranking, positions) if explain else one)
        return found

    def _explained(self, candidates: Candidates, ranking: dict[int, float], positions: Sequence[int]) -> Candidates:
        ranks, dense_n = _ranks(ranking), candidates.dense_scores
        assert dense_n is not None
        explanations = [
            Explanation(dense_score=score, bm25_rank=ranks.get(p), bm25_score=ranking.get(p, 0.0))
            for p, score in zip(positions, dense_n.tolist(), strict=True)
        ]
        return self.with_terms(replace(candidates, explanations=explanations))

    def _filled_up(self, ranking: dict[int, float], k: int, ignored: Collection[int]) -> list[int]:
        others = (p for p in range(len(self.index)) if p not in ranking and p not in ignored)
        return [*ranking, *itertools.islice(others, k - len(ranking))]

    def score(self, candidates: Candidates) -> Tensor:
        """Their BM25 scores `[n]`: the same whatever the question adapter does, so its gradient is 0."""
        # A sum that is 0 and hangs on the adapter: training asks every retriever for a graph to go back through.
        nothing = 0.0 * self.adapter.up.sum()
        return candidates.scores.to(nothing.device) + nothing


class HybridRetriever(LexicalRetriever):
    """Question -> the k passages that stand highest in the dense and the BM25 ranking together.

    A passage at rank r_dense of one ranking and r_bm25 of the other has the fused score

        (w_dense / (rrf_k + r_dense) + w_bm25 / (rrf_k + r_bm25)) * (rrf_k + 1) / (w_dense + w_bm25)

    so first in both is 1, and where a passage is missing from a ranking its part is 0. Ties go to the dense ranking.
    Passages with the same title and text, up to case, spaces and Unicode's compatible forms, are found once, the
    best of them; the rankings are read deeper where k passages would otherwise be lacking.

    Ranks have no slope, so the question adapter learns through the dense scores: `score` is the fused score of the
    search plus (q' - q'_0) . d, where q' is the adapted question now and q'_0 as it was searched with. That equals
    `scores` until the adapter changes, and its gradient is that of a dense retriever; the next search turns what was
    learned into ranks. Where the similarity is the dot product, the difference is divided by |q| and by the mean |d| of
    the candidates: fused scores are at most 1, while dot products have the scale of the encoder's vectors.

    Args:
        index: An opened index directory.
        encoder: The encoder that built it (checked by fingerprint).
        bm25: BM25 index of the same passages in the same order.
        adapter: The question adapter; a fresh one changes nothing.
        depth: How far both rankings are read; k where that is more.
        rrf_k: The larger, the less the first ranks stand out. The paper's 60 found less on all data sets tried
            (benchmarks/README.md).
        weights: Of the dense and of the BM25 ranking.

    Raises:
        MismatchError: `encoder` is not the one that built `index`, or `bm25` has another number of passages.
        UsageError: A depth below 1, a negative rrf_k or weight, or no positive weight.
    """

    kind: ClassVar[str] = "hybrid"

    def __init__(
        self,
        index: PassageIndex,
        encoder: Encoder,
        bm25: BM25Index,
        *,
        adapter: QuestionAdapter | None = None,
        depth: int = 100,
        rrf_k: float = 10,
        weights: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__(index, encoder, bm25, adapter=adapter)
        if depth < 1 or rrf_k < 0 or len(weights) != 2 or min(weights) < 0 or sum(weights) <= 0:
            raise UsageError(
                "depth must be at least 1, rrf_k at least 0, and weights two numbers of at least 0, not both 0, "
                f"got depth={depth}, rrf_k={rrf_k}, weights={tuple(weights)}."
            )
        self.depth = depth
        self.rrf_k = rrf_k
        self.weights = (float(weights[0]), float(weights[1]))

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of the constructor, ready for JSON."""
        return {"depth": self.depth, "rrf_k": self.rrf_k, "weights": list(self.weights)}

    def rank(self, queries: Queries, k: int, *, explain: bool = False) -> list[Candidates]:
        """By fused ranks; arguments and result as `Retriever.rank`."""
        depth = max(self.depth, k)
        dense, words = self._rankings(queries, depth)
        found = []
        for i in range(len(queries)):
            one = self._fused(queries, i, dense[i], words[i], k, explain)
            deeper = depth
            while len(one) < k and deeper < len(self.index):
                deeper = min(2 * deeper, len(self.index))
                rankings = self._rankings(queries.take([i]), deeper)
                one = self._fused(queries, i, rankings[0][0], rankings[1][0], k, explain)
            found.append(one)
        return found

    def _rankings(self, queries: Queries, depth: int) -> tuple[list[dict[int, float]], list[dict[int, float]]]:
        """Per question the scores of the first passages by position, best first: dense, and BM25."""
        wanted = depth + queries.max_ignored
        dense = self.nearest(queries.vectors, wanted)
        words = self.bm25.search(queries.questions, wanted)
        return _rankings(*dense, depth, queries.ignored), _rankings(*words, depth, queries.ignored)

    def _fused(
        self, queries: Queries, i: int, dense: dict[int, float], words: dict[int, float], k: int, explain: bool
    ) -> Candidates:
        fused = reciprocal_rank_fusion([list(dense), list(words)], rrf_k=self.rrf_k, weights=self.weights)
        positions = self._distinct(list(fused), k)
        one = self.candidates_at(queries, i, positions, [fused[p] for p in positions])
        if not explain:
            return one
        assert one.dense_scores is not None
        dense_ranks, word_ranks = _ranks(dense), _ranks(words)
        explanations = [
            Explanation(dense_ranks.get(p), dense.get(p, score), word_ranks.get(p), words.get(p), fused[p])
            for p, score in zip(positions, one.dense_scores.tolist(), strict=True)
        ]
        return self.with_terms(replace(one, explanations=explanations))

    def _distinct(self, positions: Sequence[int], k: int) -> list[int]:
        """The first k positions whose passages say different things; no more passages are read than that takes."""
        kept: dict[str, int] = {}
        start = 0
        while len(kept) < k and start < len(positions):
            following = positions[start : start + k - len(kept)]
            for position, passage in zip(following, self.index.corpus.take(following), strict=True):
                kept.setdefault(_folded(passage), position)
            start += len(following)
        return list(kept.values())

    def score(self, candidates: Candidates) -> Tensor:
        """Fused scores `[n]` under the current question adapter, with gradient to it through the dense scores.

        Candidates that a `DenseRetriever` found get their dense scores.
        """
        return self.moved_scores(candidates, self._dense_scale(candidates))

    def _dense_scale(self, candidates: Candidates) -> float:
        """What dense scores are divided by to be comparable with fused ones: 1 where they are cosines, or not fused."""
        if self.encoder.similarity == COSINE or candidates.dense_scores is None:
            return 1.0
        lengths_n = candidates.passage_vectors.norm(dim=-1)
        scale = float(candidates.question_vector.norm() * lengths_n.mean())
        return scale or 1.0  # zero vectors score 0 whatever the scale


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[int]], *, rrf_k: float = 60, weights: Sequence[float] | None = None
) -> dict[int, float]:
    """Sum over the rankings of weight / (rrf_k + rank), ranks from 1, scaled so that first in all of them is 1.

    Args:
        rankings: Each without repetitions, best first.
        rrf_k: The larger, the less the first ranks stand out.
        weights: One for each ranking; all 1 by default.

    Returns:
        The score of everything that stands in a ranking, best first; of equal ones first what an earlier ranking holds,
        in that ranking's order.
    """
    weights = [1.0] * len(rankings) if weights is None else weights
    scores: dict[int, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + weight / (rrf_k + rank)
    scale = (rrf_k + 1) / sum(weights)
    return {item: scale * score for item, score in sorted(scores.items(), key=lambda pair: -pair[1])}


def _rankings(
    scores_BD: NDArray[np.float32], positions_BD: NDArray[np.int64], depth: int, ignored: Sequence[Collection[int]]
) -> list[dict[int, float]]:
    """Per question the scores of the first `depth` passages by position that it does not ignore."""
    found = []
    for scores_D, positions_D, without in zip(scores_BD, positions_BD, ignored, strict=True):
        pairs = zip(positions_D.tolist(), scores_D.tolist(), strict=True)
        kept = ((position, score) for position, score in pairs if position >= 0 and position not in without)
        found.append(dict(itertools.islice(kept, depth)))
    return found


def _ranks(ranking: dict[int, float]) -> dict[int, int]:
    return {position: rank for rank, position in enumerate(ranking, 1)}


def _folded(passage: Passage) -> str:
    return " ".join(unicodedata.normalize("NFKC", passage.contents).casefold().split())
