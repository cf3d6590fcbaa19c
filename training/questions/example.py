"""A question with what is known about its answer."""

from dataclasses import asdict, dataclass
from typing import Any

from indexes.errors import DataError


@dataclass(frozen=True, slots=True)
class QAExample:
    """One question with everything that is known about its answer."""

    id: str
    """Unique in its file; the seed of whatever is drawn for this question."""
    question: str
    """The question as the file has it."""
    golden_answers: tuple[str, ...] = ()
    """All accepted answers in the file's order, without blanks and repetitions; empty when unknown."""
    gold_ids: tuple[str, ...] = ()
    """Ids of the corpus passages that hold the answer; empty when unknown."""
    unanswerable: bool = False
    """The file says that there is no answer (SQuAD 2.0's `is_impossible`, MuSiQue-Full's `answerable: false`)."""
    gold_grades: tuple[int, ...] = ()
    """How relevant each of `gold_ids` is, 1 and more, where a file grades them as BEIR's do; else empty."""
    ignore_identical_id: bool = False
    """The passage with the question's own id is not searched for, as in BEIR, whose ArguAna asks with its passages."""

    def __post_init__(self) -> None:
        if self.unanswerable and self.golden_answers:
            raise DataError(
                f"A question without an answer must have no golden answers; {self.id!r} is unanswerable and has "
                f"{list(self.golden_answers)[:5]}. Take one of the two away."
            )
        if self.gold_grades and (len(self.gold_grades) != len(self.gold_ids) or min(self.gold_grades) < 1):
            raise DataError(
                f"Every gold passage must have one grade of at least 1, or none any; {self.id!r} has "
                f"{len(self.gold_ids)} gold passages and the grades {list(self.gold_grades)[:5]}. Mend them."
            )

    @property
    def ignored_id(self) -> str | None:
        """The id of the passage, or of the document in chunks, that this question must not find; None: it may all."""
        return self.id if self.ignore_identical_id else None

    def to_dict(self) -> dict[str, Any]:
        """All that is known, ready for JSON and for digests; what is not ignored is not mentioned."""
        fields = asdict(self)
        if not self.ignore_identical_id:  # as before there was this field, or every digest of questions would change
            del fields["ignore_identical_id"]
        return fields
