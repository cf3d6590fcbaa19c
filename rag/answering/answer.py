"""`Answer`: the text of an answer with its citations, the passages it was generated from and its log-probability."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from indexes.corpora.passage import Passage
from rag.metrics import answer_recall


@dataclass(frozen=True)
class Answer:
    """An answer with its evidence."""

    question: str
    text: str
    citations: list[str]
    """Ids of the passages read that contain the answer; empty when none does."""
    passages: list[Passage]
    """What the generator read, in the order of the permutation."""
    permutation: list[int]
    """Ranks that the retriever had given those passages (0 is its best)."""
    log_prob: float | None
    """log p(text | question, passages) in nats, including the end-of-answer token. For a reasoning model it is scored
    directly after the prompt, without the reasoning in between. None where it was not requested."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


def citations(text: str, passages: Sequence[Passage]) -> list[str]:
    """Ids of the passages that contain the text of an answer; none for an empty answer."""
    if not text.strip():
        return []
    return [p.id for p in passages if answer_recall([p.contents], [text], 1)]
