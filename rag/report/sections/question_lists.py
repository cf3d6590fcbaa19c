"""Questions with candidates in the retriever's order, what was read in which order, and what was cited.

A candidate's text is on the page once per question, however many trials read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from indexes.corpora.chunk_ids import gold_document
from rag.report.report_data import AnsweredQuestion, Attribution, GivenAnswer, RetrievedPassage

SHOWN = 10  # of either list
PASSAGE_CHARACTERS = 1200


@dataclass(frozen=True)
class QuestionList:
    """Questions below a heading.

    Attributes:
        heading: "Best", "Worst", or empty.
        questions: Those that are shown.
        total: How many there are.
    """

    heading: str
    questions: Sequence["QuestionView"]
    total: int


@dataclass(frozen=True)
class ListedCandidate:
    """A line in the table of candidates.

    Attributes:
        rank: In the retriever's order, from 0; None for a passage that was read and is no candidate.
        passage: With its text where a trial read it.
        is_gold: It belongs to a gold document.
        is_cited: The only answer cites it.
        position: Its place among what the only answer's generator read, from 1.
        readers: How many trials read it.
        citing: How many trials cite it.
        attribution: What leaving it out does to the only answer.
    """

    rank: int | None
    passage: RetrievedPassage
    is_gold: bool
    is_cited: bool
    position: int | None
    readers: int
    citing: int
    attribution: Attribution | None


@dataclass(frozen=True)
class Chip:
    """A passage that was read, by its rank in the retriever's order."""

    rank: str
    id: str
    is_gold: bool
    is_cited: bool

    @property
    def words(self) -> list[str]:
        """What is special about it."""
        return ["gold"] * self.is_gold + ["cited"] * self.is_cited


@dataclass(frozen=True)
class QuestionView:
    """A question as it is shown.

    Attributes:
        question: The question and its answers.
    """

    question: AnsweredQuestion

    passage_characters = PASSAGE_CHARACTERS

    @property
    def answers(self) -> Sequence[GivenAnswer]:
        """Those of all trials."""
        return self.question.answers

    @property
    def only_answer(self) -> GivenAnswer | None:
        """The answer, if there is exactly one."""
        return self.answers[0] if len(self.answers) == 1 else None

    @cached_property
    def candidates(self) -> list[ListedCandidate]:
        """Candidates in the retriever's order, then what was read and is no candidate."""
        ranked = list(enumerate(self._with_text(candidate) for candidate in self.question.candidates))
        known = {candidate.id for candidate in self.question.candidates}
        others = [passage for id, passage in self._passages_read.items() if id not in known]
        return [self._listed(*entry) for entry in [*ranked, *((None, passage) for passage in others)]]

    @property
    def has_attributions(self) -> bool:
        """Whether the table of candidates has a column for them."""
        return self.only_answer is not None and bool(self.only_answer.attributions)

    @property
    def missing_gold(self) -> list[str]:
        """Gold documents that are not among the candidates."""
        found = {gold_document(entry.passage.id, self.question.gold_ids) for entry in self.candidates}
        return [id for id in sorted(set(self.question.gold_ids)) if id not in found]

    def chips(self, answer: GivenAnswer) -> list[Chip]:
        """The permutation, a chip for each passage read."""
        read = [passage.id for passage in answer.passages]
        ranks = answer.permutation
        if len(ranks) < len(read):  # unknown: the places among the candidates
            ids = [candidate.id for candidate in self.question.candidates]
            ranks = [str(ids.index(id)) if id in ids else "?" for id in read]
        ids = [*read, *[""] * (len(ranks) - len(read))]
        return [
            Chip(rank, id, is_gold=self.is_gold(id), is_cited=id in answer.citations)
            for rank, id in zip(ranks, ids, strict=True)
        ]

    def is_gold(self, id: str) -> bool:
        """Whether a passage belongs to a gold document."""
        return gold_document(id, self.question.gold_ids) is not None

    @cached_property
    def _passages_read(self) -> dict[str, RetrievedPassage]:
        return {passage.id: passage for answer in self.answers for passage in answer.passages}

    def _with_text(self, candidate: RetrievedPassage) -> RetrievedPassage:
        read = self._passages_read.get(candidate.id, candidate)
        return RetrievedPassage(
            candidate.id, candidate.title or read.title, candidate.text or read.text, candidate.score
        )

    def _listed(self, rank: int | None, passage: RetrievedPassage) -> ListedCandidate:
        only = self.only_answer
        read_by_only = [found.id for found in only.passages] if only else []
        return ListedCandidate(
            rank=rank,
            passage=passage,
            is_gold=self.is_gold(passage.id),
            is_cited=only is not None and passage.id in only.citations,
            position=read_by_only.index(passage.id) + 1 if passage.id in read_by_only else None,
            readers=sum(passage.id in [found.id for found in answer.passages] for answer in self.answers),
            citing=sum(passage.id in answer.citations for answer in self.answers),
            attribution=only.attributions.get(passage.id) if only else None,
        )


def question_lists(questions: Sequence[AnsweredQuestion]) -> list[QuestionList]:
    """The best and the worst questions; without such a distinction all are the best."""
    if all(question.listed_as is None for question in questions):
        kinds: dict[str, Sequence[AnsweredQuestion]] = {"Best": questions}
    else:
        kinds = {
            heading: [q for q in questions if q.listed_as in (None, heading.lower())] for heading in ("Best", "Worst")
        }
    return [
        QuestionList(heading, [QuestionView(question) for question in found[:SHOWN]], len(found))
        for heading, found in kinds.items()
        if found
    ]


def best_and_worst(records: Sequence[AnsweredQuestion]) -> list[QuestionList]:
    """The ten best and the ten worst questions of one evaluation; no question is in both lists.

    By F1 (else by exact match), then by log p of the answer; of equals, the smaller id comes first in both lists.
    """
    by_id = sorted(records, key=lambda record: record.id)
    best = sorted(by_id, key=_score, reverse=True)[: min(SHOWN, (len(records) + 1) // 2)]  # sorted is stable
    best_ids = {id(record) for record in best}
    worst = [record for record in sorted(by_id, key=_score) if id(record) not in best_ids][:SHOWN]
    return [
        QuestionList(heading, [QuestionView(record) for record in found], len(found))
        for heading, found in (("Best", best), ("Worst", worst))
        if found
    ]


def _score(record: AnsweredQuestion) -> tuple[float, float]:
    answer = record.answers[0]
    score = next((value for value in (answer.f1, answer.exact_match) if value is not None), -1.0)
    return score, float("-inf") if answer.log_prob is None else answer.log_prob
