"""Questions that are passages of the corpus, under the same id: such a question would retrieve itself first.

ArguAna's are, and Quora's. BEIR (Thakur et al. 2021, arXiv 2104.08663) ignores identical ids: its exact search
retrieves one passage more and leaves the question's own out, and `EvaluateRetrieval.evaluate` takes it out of any other
run, where one of the k is then lacking. Here every retriever returns k others.
"""

from collections.abc import Sequence
from typing import NamedTuple

from indexes.corpora.corpus import Corpus
from indexes.directory.passage_index import PassageIndex
from retriever.candidates import Candidates
from retriever.retriever import Retriever
from training.questions.example import QAExample


class IdenticalIds(NamedTuple):
    """How many of the questions that ignore the passage with their own id have one in an index.

    Attributes:
        ignoring: Questions that ignore it.
        found: Those of them for which the index has such a passage.
        gold: Those of them for which it is a gold passage, which then is never retrieved.
    """

    ignoring: int
    found: int
    gold: int

    def __str__(self) -> str:
        gold = f" For {self.gold} of them it is a gold passage, which counts as not found." if self.gold else ""
        return (
            f"The passage with the id of the question itself is ignored, as in BEIR: {self.found} of {self.ignoring} "
            f"questions have one.{gold}"
        )


def identical_ids(examples: Sequence[QAExample], passages: PassageIndex | Corpus) -> IdenticalIds:
    """Count the questions whose own passage, or the document with their id, is in the index and is ignored."""
    corpus = passages if isinstance(passages, Corpus) else passages.corpus
    ignoring = [example for example in examples if example.ignore_identical_id]
    found = [example for example in ignoring if corpus.document_positions(example.id)]
    return IdenticalIds(len(ignoring), len(found), sum(example.id in example.gold_ids for example in found))


def retrieve(retriever: Retriever, examples: Sequence[QAExample], k: int, *, explain: bool = False) -> list[Candidates]:
    """The k best candidates of each question, without those that it ignores; `explain` as in `Retriever.search`."""
    questions = [example.question for example in examples]
    ignored = [example.ignored_id for example in examples]
    return retriever.search(questions, k, ignored_ids=ignored if any(ignored) else (), explain=explain)
