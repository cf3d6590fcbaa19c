"""A new question format in one file: WebQSP, whose records hold one or more parses with their answers.

    python examples/new_question_format.py

In a package of your own, name the module as an entry point of the group ``dro_rag.plugins``; then ``rag train`` and
``rag evaluate`` read such files as well.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from indexes.records.field_types import as_list
from indexes.records.record import Record
from training import QUESTION_FORMATS, QAExample, QuestionFormat, load_examples

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
        parses = as_list(record.fields["Parses"], f"{record.where}: Parses")  # its errors name the file and the line
        names = [answer["EntityName"] for parse in parses for answer in parse["Answers"]]
        return QAExample(
            id=record.fields["QuestionId"],
            question=record.fields["RawQuestion"],
            golden_answers=tuple(dict.fromkeys(names)),
        )


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        file = Path(folder) / "webqsp.jsonl"
        file.write_text(json.dumps(RECORD) + "\n", encoding="utf-8")
        print(*load_examples(file), sep="\n")
