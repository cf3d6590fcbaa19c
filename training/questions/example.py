"""A question with what is known about its answer."""

from dataclasses import asdict, dataclass
from typing import Any

from indexes.errors import DataError


@dataclass(frozen=True, slots=True)
class QAExample:
    """A question with its golden answers and gold passages."""

    id: str
    """Unique in its file; seeds the random draws for this question."""
    question: str
    """The question as the file has it."""
    golden_answers: tuple[str, ...] = ()
    """All accepted answers in the order of the file, without empty ones and repetitions; empty when unknown."""
    gold_ids: tuple[str, ...] = ()
    """Ids of the corpus passages that hold the answer; empty when unknown."""
    unanswerable: bool = False
    """The file marks the question as unanswerable (SQuAD 2.0's `is_impossible`, MuSiQue-Full's `answerable: false`)."""
    gold_grades: tuple[int, ...] = ()
    """The relevance grade of each of `gold_ids`, at least 1, where a file has grades as BEIR's do; else empty."""
    ignore_identical_id: bool = False
    """The passage with the id of the question is not retrieved, as in BEIR, where ArguAna's questions are passages."""

    def __post_init__(self) -> None:
        if self.unanswerable and self.golden_answers:
            raise DataError(
                f"An unanswerable question must have no golden answers, got {list(self.golden_answers)[:5]} for "
                f"{self.id!r}. Remove one of the two."
            )
        if self.gold_grades and (len(self.gold_grades) != len(self.gold_ids) or min(self.gold_grades) < 1):
            raise DataError(
                f"Every gold passage must have one grade of at least 1, or none of them a grade, got the grades "
                f"{list(self.gold_grades)[:5]} of {len(self.gold_ids)} gold passages for {self.id!r}. Correct them."
            )

    @property
    def ignored_id(self) -> str | None:
        """The id of the passage, or of the document in chunks, that is not retrieved for this question, if any."""
        return self.id if self.ignore_identical_id else None

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON and for digests; `ignore_identical_id` only where it is true."""
        fields = asdict(self)
        if not self.ignore_identical_id:  # or the digests of all older question files would change
            del fields["ignore_identical_id"]
        return fields
