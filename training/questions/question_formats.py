"""The registry of question formats: what `load_examples`, ``rag train`` and ``rag evaluate`` can read.

Another format is registered with ``@QUESTION_FORMATS.register("name")``; see `training.questions.question_format`.
"""

from indexes.errors import DataError
from indexes.records.record import Record
from indexes.registry import Registry
from training.questions.question_format import QuestionFormat
from training.questions.readers import refuse_alpaca

QUESTION_FORMATS: Registry[type[QuestionFormat]] = Registry(
    "question format",
    builtin={
        "question_records": "training.questions.readers:QuestionRecords",
        "kilt": "training.questions.readers:KILT",
        "beir": "training.questions.readers:BEIR",
        "dro_samples": "training.questions.readers:DROSamples",
    },
)
"""Question formats by name. Registered ones are asked before the built-in ones, which are asked in this order."""


def question_format_of(first: Record) -> type[QuestionFormat]:
    """The format of a file, by its first record.

    Raises:
        DataError: No format recognises it.
    """
    # Formats of other packages and of this process come first, since they may be more special.
    for kind in sorted(QUESTION_FORMATS.kinds(), key=QUESTION_FORMATS.is_builtin):
        question_format = QUESTION_FORMATS.get(kind)
        if question_format.recognises(first.fields):
            return question_format
    refuse_alpaca(first)
    known = ", ".join(question_format.fields for _, question_format in QUESTION_FORMATS.items())
    found = ", ".join(map(str, first.fields)) or "no keys at all"
    raise DataError(
        f"{first.where}: the keys must be those of a known question format, got: {found}. Known: {known}. Rename the "
        "fields, or register a QuestionFormat for them."
    )
