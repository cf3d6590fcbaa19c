"""A new question format in one file: WebQSP, whose records hold one or more parses with their answers.

    python examples/new_question_format.py

The same class in an installed package is found without an import: name its module in the entry points
``dro_rag.plugins``, and ``rag train`` and ``rag evaluate`` read such files as well.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from indexes.records.field_types import as_list
from indexes.records.record import Record
from training import QAExample, load_examples
from training.questions.loading import QUESTION_FORMATS
from training.questions.question_format import QuestionFormat

RECORD = {
    "QuestionId": "WebQTest-7",
    "RawQuestion": "what causes neap tides?",
    "Parses": [{"Answers": [{"EntityName": "Moon"}, {"EntityName": "Sun"}]}, {"Answers": [{"EntityName": "Moon"}]}],
}


@QUESTION_FORMATS.register("webqsp")
class WebQSP(QuestionFormat):
    """WebQSP (Yih et al. 2016): the answers of all parses are golden answers."""

    fields = "WebQSP (QuestionId, RawQuestion, Parses)"

    @classmethod
    def recognises(cls, fields: Mapping[str, Any]) -> bool:
        return {"RawQuestion", "Parses"} <= set(fields)

    def read(self, record: Record) -> QAExample:
        parses = as_list(record.fields["Parses"], f"{record.where}: Parses")  # raises a DataError that names the line
        names = [answer["EntityName"] for parse in parses for answer in parse["Answers"]]
        return QAExample(
            id=record.fields["QuestionId"],
            question=record.fields["RawQuestion"],
            golden_answers=tuple(dict.fromkeys(names)),
        )


if __name__ == "__main__":
    Path("webqsp.jsonl").write_text(json.dumps(RECORD) + "\n", encoding="utf-8")
    print(*load_examples("webqsp.jsonl"), sep="\n")
