"""The interface of question formats: how the first record of a file is recognised, and how records become questions.

A new format is a subclass in any module, registered under a name of its own:

    @QUESTION_FORMATS.register("trec")
    class TREC(QuestionFormat):
        fields = "TREC (topic, title)"

        @classmethod
        def recognises(cls, fields):
            return {"topic", "title"} <= set(fields)

        def read(self, record):
            return QAExample(id=str(record.fields["topic"]), question=record.fields["title"])

`training.questions.question_formats` holds the registry; ``examples/new_question_format.py`` is a whole one.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from indexes.errors import DataError
from indexes.records.record import Record
from training.questions.example import QAExample


class QuestionFormat(ABC):
    """A format of question files. One instance reads one file.

    Attributes:
        fields: The name of the format and its fields, for the message that lists what is known.
    """

    fields: ClassVar[str]

    def __init__(self, source: Path | None = None) -> None:
        """Prepare to read one file.

        Args:
            source: The file or folder; None for a `datasets.Dataset`.
        """
        self.source = source

    @classmethod
    @abstractmethod
    def recognises(cls, fields: Mapping[str, Any]) -> bool:
        """Whether a file is of this format, by the fields of its first record."""

    @abstractmethod
    def read(self, record: Record) -> QAExample:
        """The question of a record.

        A question with an empty id is named by its content (`content_id`).

        Raises:
            DataError: The record is broken; the message begins with `record.where`.
        """

    def examples(self, records: Iterable[Record], skip: Callable[[DataError], None]) -> Iterator[tuple[str, QAExample]]:
        """The questions of a file, each with the place where it is found.

        Override it where several records are one question.

        Args:
            records: The valid records of the file, the first one included.
            skip: Called with the error of a broken record; raises it, or returns if such records are left out.
        """
        occurrences: Counter[str] = Counter()
        for record in records:
            try:
                example = self.read(record)
            except DataError as error:
                skip(error)
                continue
            if not example.id:
                id_ = content_id(example)
                occurrences[id_] += 1
                # Questions of equal content are numbered, so that their order in the file does not matter.
                example = replace(example, id=id_ if occurrences[id_] == 1 else f"{id_}~{occurrences[id_]}")
            yield record.where, example


def content_id(example: QAExample) -> str:
    """An id for a question without one, from its content, so that the order of its file does not matter."""
    content = json.dumps(
        [example.question, sorted(example.golden_answers), sorted(example.gold_ids)], ensure_ascii=True
    )
    return f"q~{hashlib.blake2b(content.encode(), digest_size=6).hexdigest()}"
