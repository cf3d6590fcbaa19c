"""A new answer mode: read the selected passages in several orders and return the answer given most often.

    python examples/new_answer_mode.py

Self-consistency (Wang et al. 2023, arXiv 2203.11171) over reading orders instead of sampled reasoning. Registering the
class is all: `RAG` finds it by its kind, bundles record it with its option, and evaluation and training use it. In a
package of your own, name the module as an entry point of the group ``dro_rag.plugins``.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from indexes import Corpus, Encoder, Passage, build_index
from rag import RAG, Answer
from rag.answering.answer_modes import ANSWER_MODES
from rag.answering.permutation_mode import PermutationMode
from retriever import Candidates, SelectorConfig

PASSAGES = [
    Passage("p0", "Hamlet", "Shakespeare wrote the play Hamlet around the year 1600."),
    Passage("p1", "Danube", "The Danube flows from Germany into the Black Sea."),
    Passage("p2", "Faust", "Goethe wrote Faust, a play about a scholar and the devil."),
]


@ANSWER_MODES.register("majority_vote")
class MajorityVote(PermutationMode):
    """Answers from `votes` rotations of the permutation; the first of the commonest answers wins."""

    kind = "majority_vote"

    def __init__(self, *parts: Any, votes: int = 3) -> None:
        super().__init__(*parts)
        self.votes = votes

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"votes": self.votes}

    def answer_from(self, candidates: Sequence[Candidates], *, log_prob: bool = True) -> list[Answer]:
        selected = self.select(candidates)
        ballots = [self.read(candidates, [[*z[i:], *z[:i]] for z in selected], log_prob) for i in range(self.votes)]
        return [self.elected(answers) for answers in zip(*ballots, strict=True)]

    def elected(self, answers: Sequence[Answer]) -> Answer:
        winner = Counter(answer.text.lower() for answer in answers).most_common(1)[0][0]
        return next(answer for answer in answers if answer.text.lower() == winner)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        index = build_index(Corpus.from_passages(PASSAGES), Encoder.from_pretrained("tiny"), Path(folder) / "index")
        config = SelectorConfig(num_candidates=3, num_selected=3)
        rag = RAG.create(index=index, selector=config, answer_mode={"kind": "majority_vote", "votes": 3})
        print(rag.answer("who wrote Hamlet?"))
