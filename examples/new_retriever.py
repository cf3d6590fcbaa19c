"""A new retriever: dense search, with a bonus for passages whose title is named in the question.

    python examples/new_retriever.py

Registering the class is all; a package of your own names its module as an entry point of ``dro_rag.plugins``.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from indexes import Corpus, Encoder, Passage, build_index
from rag import RAG
from retriever import RETRIEVERS, Candidates, Queries, Retriever, SelectorConfig

PASSAGES = [
    Passage("p0", "Hamlet", "Shakespeare wrote the play Hamlet around the year 1600."),
    Passage("p2", "Faust", "Goethe wrote Faust, a play about a scholar and the devil."),
]


@RETRIEVERS.register("title_bonus")
class TitleBonusRetriever(Retriever):
    """Ranks by inner product + `bonus` where the question names the title, among the 10 k nearest passages."""

    kind = "title_bonus"

    def __init__(self, *args: Any, bonus: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bonus = bonus

    @property
    def settings(self) -> dict[str, Any]:
        return {"bonus": self.bonus}

    def rank(self, queries: Queries, k: int, *, explain: bool = False) -> list[Candidates]:
        scores, positions = self.nearest(queries.vectors, 10 * k + queries.max_ignored)
        return [self.with_bonus(queries, i, positions[i], scores[i], k) for i in range(len(queries))]

    def with_bonus(self, queries: Queries, i: int, positions: Any, scores: Any, k: int) -> Candidates:
        found = {int(p): float(s) for p, s in zip(positions, scores, strict=True) if p >= 0}
        kept = [p for p in found if p not in queries.ignored[i]]
        named = {p for p in kept if self.index.corpus.take([p])[0].title in queries.questions[i]}
        total = {p: found[p] + self.bonus * (p in named) for p in kept}
        best = sorted(total, key=lambda position: -total[position])[:k]
        return self.candidates_at(queries, i, best, [total[position] for position in best])

    def score(self, candidates: Candidates) -> torch.Tensor:
        return self.moved_scores(candidates)  # the bonus is a constant, so only inner products change


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        index = build_index(Corpus.from_passages(PASSAGES), Encoder.from_pretrained("tiny"), Path(folder) / "index")
        small, settings = SelectorConfig(num_candidates=2, num_selected=1), {"kind": "title_bonus", "bonus": 0.3}
        RAG.create(index=index, retriever=settings, selector=small).save_pretrained(Path(folder) / "bundle")
        print(again := RAG.from_pretrained(Path(folder) / "bundle").retriever)
        print(again.search("who wrote Faust?", 2).ids)
