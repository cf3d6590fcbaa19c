"""`Answer`: the text of an answer with its citations, the candidates it was selected from and its log-probability."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from indexes.corpora.passage import Passage
from rag.metrics import answer_recall
from retriever.candidates import Candidates


@dataclass(frozen=True)
class ScoredPassage:
    """A candidate passage with the retriever's score."""

    passage: Passage
    score: float
    """Higher is better; its scale is the retriever's (an inner product, BM25, a fused rank)."""


@dataclass(frozen=True, repr=False)
class Answer:
    """An answer with its evidence."""

    question: str
    text: str
    citations: list[str]
    """Ids of the passages read that contain the answer; empty when none does."""
    candidates: list[ScoredPassage]
    """What the retriever found, best first, with its scores."""
    permutation: list[int]
    """The candidates that the generator read, in reading order: indices into `candidates`, 0 being the retriever's
    best."""
    log_prob: float | None
    """log p(text | question, passages) in nats, including the end-of-answer token. For a reasoning model it is scored
    directly after the prompt, without the reasoning in between. None where it was not requested."""

    @classmethod
    def from_candidates(
        cls, candidates: Candidates, permutation: Sequence[int], text: str, log_prob: float | None
    ) -> "Answer":
        """The answer that was generated from a permutation of candidates, with its citations."""
        scored = [
            ScoredPassage(passage, score)
            for passage, score in zip(candidates.passages, candidates.scores.tolist(), strict=True)
        ]
        passages = [candidates.passages[i] for i in permutation]
        return cls(candidates.question, text, citations(text, passages), scored, list(permutation), log_prob)

    @property
    def passages(self) -> list[Passage]:
        """What the generator read, in the order of the permutation."""
        return [self.candidates[i].passage for i in self.permutation]

    def __repr__(self) -> str:
        ids = [passage.id for passage in self.passages]
        log_prob = "None" if self.log_prob is None else f"{self.log_prob:.2f}"
        return (
            f"Answer(question={self.question!r}, text={self.text!r}, passages={ids}, citations={self.citations}, "
            f"log_prob={log_prob})"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary, which `from_dict` reads; `passages` is in it for readers' convenience."""
        return {**asdict(self), "passages": [asdict(passage) for passage in self.passages]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Answer":
        """The answer that `to_dict` made."""
        scored = [ScoredPassage(Passage(**one["passage"]), one["score"]) for one in data["candidates"]]
        kept = {name: value for name, value in data.items() if name not in ("passages", "candidates")}
        return cls(**kept, candidates=scored)


def citations(text: str, passages: Sequence[Passage]) -> list[str]:
    """Ids of the passages that contain the text of an answer; none for an empty answer."""
    if not text.strip():
        return []
    return [p.id for p in passages if answer_recall([p.contents], [text], 1)]
