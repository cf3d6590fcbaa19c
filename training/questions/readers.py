"""The built-in question formats: a record of a question file becomes a `QAExample`.

What a file's records are and where they are found comes from `training.questions.question_sources`; which passages
belong to a question, and their ids, from `indexes.records.question_files`.
"""

import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from indexes.errors import DataError
from indexes.records.answer_lists import list_in_text
from indexes.records.field_types import as_list, as_object, as_objects
from indexes.records.question_files import DPR_FIELDS, gold_passages
from indexes.records.record import Record
from indexes.records.whole_numbers import ID_NAMES
from training.questions.answer_aliases import ALIASES_FILE, Aliases
from training.questions.example import QAExample
from training.questions.example_fields import answer_texts, distinct, identifier, question_text
from training.questions.question_format import QuestionFormat

_ID_FIELDS = ("id", "_id", "question_id", "qid")
_ANSWER_FIELDS = ("golden_answers", "answers", "answer", "possible_answers")
_ALIAS_FIELDS = ("answer_aliases", "aliases")
# Each holds several answers, so a text in one of them may be a list that is stored as text.
_LISTS = ("golden_answers", "answers", "possible_answers", *_ALIAS_FIELDS)
NUMBER_NAMES = ID_NAMES | {*_ANSWER_FIELDS, *_ALIAS_FIELDS, "value", "response", "choices", "answerKey", "gold_grades"}
"""Names of the fields whose numbers become texts, or positions, of an example."""
# The value of each field that marks a question as unanswerable.
_UNANSWERABLE = {"unanswerable": True, "is_impossible": True, "answerable": False}
_ALPACA_FIELDS = {"instruction", "output"}


class QuestionRecords(QuestionFormat):
    """Records with a field `question`: most formats, which differ in the names of the answers and the passages."""

    fields = (
        "FlashRAG (id, question, golden_answers), HotpotQA, 2WikiMultihopQA and MuSiQue (question, answer), "
        "SQuAD (data > paragraphs > qas), DPR (question, answers, positive_ctxs)"
    )

    def __init__(self, source: Path | None = None) -> None:
        """See `QuestionFormat`."""
        super().__init__(source)
        self._aliases = Aliases(None if source is None else source.parent / ALIASES_FILE)

    @classmethod
    def recognises(cls, fields: Mapping[str, Any]) -> bool:
        """See `QuestionFormat.recognises`."""
        return "question" in fields or "question_stem" in fields

    def read(self, record: Record) -> QAExample:
        """See `QuestionFormat.read`."""
        where, fields = record.where, _with_question(record.fields)
        unanswerable = _is_unanswerable(fields, where)
        id_ = _record_id(record, unanswerable)
        gold_ids, grades = _gold(fields, unanswerable, where)
        return QAExample(
            id=id_,
            question=question_text(fields.get("question"), id_ or record.position, where),
            # MuSiQue-Full keeps the answer of the answerable twin in the record of an unanswerable question.
            golden_answers=() if unanswerable else distinct(self._answers(fields, where)),
            gold_ids=gold_ids,
            unanswerable=unanswerable,
            gold_grades=grades,
            ignore_identical_id=fields.get("ignore_identical_id") is True,
        )

    def examples(self, records: Iterable[Record], skip: Callable[[DataError], None]) -> Iterator[tuple[str, QAExample]]:
        """See `QuestionFormat.examples`; a broken file of aliases is raised, never skipped."""
        return super().examples(self._with_aliases(records), skip)

    def _with_aliases(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            self._aliases.read_for(record)
            yield record

    def _answers(self, fields: Mapping[str, Any], where: str) -> Iterator[str]:
        yield from answer_texts(_given_answers(fields, where), where)
        for key in _ALIAS_FIELDS:
            yield from answer_texts(_field(fields, key, where), where)
        yield from self._aliases.of(fields.get("answer_id"))


def _with_question(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """OpenBookQA calls its questions stems; its own files and those of ARC keep stem and choices in one object."""
    inner = fields.get("question")
    if isinstance(inner, Mapping) and "stem" in inner:
        return {**fields, "question": inner["stem"], "choices": inner.get("choices")}
    return fields if inner is not None else {**fields, "question": fields.get("question_stem")}


def _record_id(record: Record, unanswerable: bool) -> str:
    """The id; empty where DPR gives none, whose questions are then named by their content (`content_id`)."""
    fields = record.fields
    given = next((fields[key] for key in _ID_FIELDS if fields.get(key) is not None), None)
    if given is None and any(field in fields for field in DPR_FIELDS):
        return ""
    id_ = identifier(record.position if given is None else given, record.where)
    # MuSiQue-Full asks every question twice under one id, once with a supporting paragraph taken away.
    return f"{id_}~unanswerable" if unanswerable and {"answerable", "paragraphs"} <= set(fields) else id_


def _given_answers(fields: Mapping[str, Any], where: str) -> object:
    """The first field of answers that has a value, or the choices that it names."""
    name = next((key for key in _ANSWER_FIELDS if fields.get(key) is not None), None)
    given = () if name is None else _field(fields, name, where)
    if not fields.get("choices"):
        return given
    options, labels = _options(fields["choices"], where)
    return (
        _labelled(fields.get("answerKey"), options, labels, where)
        if name is None
        else _chosen(given, options, labels, where)
    )


def _field(fields: Mapping[str, Any], key: str, where: str) -> object:
    value = fields.get(key)
    if value is None:
        return ()
    written = list_in_text(value, f"{where}: {key}") if key in _LISTS and isinstance(value, str) else None
    return value if written is None else written


def _options(choices: object, where: str) -> tuple[list[Any], list[str]]:
    """The choices and their labels: letters, where the record has none.

    ARC, OpenBookQA, QASC and CommonsenseQA have objects of text and label, exported as one object of two lists.
    """
    if not isinstance(choices, Mapping) and not all(
        isinstance(c, Mapping) for c in as_list(choices, f"{where}: choices")
    ):
        options = as_list(choices, f"{where}: choices")
        return options, list(string.ascii_uppercase[: len(options)])
    entries = as_objects(choices, ("text", "label"), f"{where}: choices")
    return [entry.get("text") for entry in entries], [str(entry.get("label")) for entry in entries]


def _chosen(given: object, options: list[Any], labels: list[str], where: str) -> object:
    """FlashRAG's multiple-choice questions, and MMLU's, give their golden answers as positions, counted from 0.

    Copies of MMLU give them as letters; a text that is itself a choice is that choice.
    """
    positions: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    if all(isinstance(p, str) and p in labels and p not in options for p in positions):
        return [options[labels.index(p)] for p in positions]
    if not all(isinstance(position, int) and not isinstance(position, bool) for position in positions):
        return given
    if not all(0 <= position < len(options) for position in positions):
        raise DataError(
            f"{where}: golden_answers must be positions in {len(options)} choices, got {given!r}. Correct it."
        )
    return [options[position] for position in positions]


def _labelled(key: object, options: list[Any], labels: list[str], where: str) -> object:
    """The choice of this label: a letter, or a number counted from 1 (ARC has both); none where it is hidden."""
    if key is None or key == "":
        return ()
    if str(key) in labels:
        return options[labels.index(str(key))]
    raise DataError(
        f"{where}: answerKey must be the label of a choice, one of {labels}, got {key!r}. Correct the record."
    )


def _is_unanswerable(fields: Mapping[str, Any], where: str) -> bool:
    for field, meaning in _UNANSWERABLE.items():
        value = fields.get(field)
        if isinstance(value, bool):
            return value is meaning
        if value is not None:
            raise DataError(f"{where}: {field} must be true or false, got {value!r}. Correct the record.")
    return False


def _gold(fields: Mapping[str, Any], unanswerable: bool, where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    given = as_list(fields.get("gold_ids") or [], f"{where}: gold_ids")
    if not given and not unanswerable:  # no passage holds an answer that does not exist
        return distinct(gold_passages(fields, where)), ()
    ids = distinct(identifier(gold, where) for gold in given)
    grades = as_list(fields.get("gold_grades") or [], f"{where}: gold_grades")
    if not all(isinstance(grade, int) and not isinstance(grade, bool) for grade in grades):
        raise DataError(f"{where}: gold_grades must be whole numbers, got {grades[:5]}. Correct the record.")
    return ids, tuple(grades)


class KILT(QuestionFormat):
    """KILT's tasks; the gold ids are those of pages."""

    fields = "KILT (id, input, output)"

    @classmethod
    def recognises(cls, fields: Mapping[str, Any]) -> bool:
        """See `QuestionFormat.recognises`."""
        return not is_alpaca(fields) and ("input" in fields or {"id", "output"} <= set(fields))

    def read(self, record: Record) -> QAExample:
        """See `QuestionFormat.read`."""
        where, fields = record.where, record.fields
        id_ = identifier(record.position if fields.get("id") is None else fields["id"], where)
        if not fields.get("input"):
            raise DataError(
                f"{where}: every question must be text, got a KILT record without input, {id_!r}. KILT ships TriviaQA "
                "without its questions: add them with KILT's script get_triviaqa_input.py."
            )
        place = f"{where}: output"
        outputs = [as_object(output, place) for output in as_list(fields.get("output") or [], place)]
        return QAExample(
            id=id_,
            question=question_text(fields["input"], id_, where),
            golden_answers=distinct(answer_texts([output.get("answer") or "" for output in outputs], where)),
            gold_ids=distinct(page for output in outputs for page in _pages(output, where)),
        )


def _pages(output: Mapping[str, Any], where: str) -> Iterator[str]:
    for entry in as_list(output.get("provenance") or [], f"{where}: provenance"):
        page = as_object(entry, f"{where}: provenance").get("wikipedia_id")
        # Exports fill missing values with empty texts.
        if page is not None and page != "":
            yield identifier(page, where).strip()


class BEIR(QuestionFormat):
    """The queries of a BEIR dataset, with the ids and grades of relevant passages where a split is read."""

    fields = "BEIR's queries.jsonl (_id, text)"

    @classmethod
    def recognises(cls, fields: Mapping[str, Any]) -> bool:
        """See `QuestionFormat.recognises`."""
        return {"_id", "text"} <= set(fields)

    def read(self, record: Record) -> QAExample:
        """See `QuestionFormat.read`."""
        where, fields = record.where, record.fields
        id_ = identifier(fields["_id"], where)
        if fields.get("title"):
            raise DataError(
                f"{where}: a question of BEIR must have no title, got one for {id_!r}: this is a corpus. Pass the "
                "folder, or its queries.jsonl."
            )
        gold_ids, grades = _gold(fields, False, where)
        question = question_text(fields.get("text"), id_, where)
        # beir 2.2: EvaluateRetrieval.evaluate(ignore_identical_ids=True) is the default for all of its datasets.
        return QAExample(id_, question, gold_ids=gold_ids, gold_grades=grades, ignore_identical_id=True)


# ---------------------------------------------------------------------------------------------------------
# The DRO authors' format: one record for each sampled response
# ---------------------------------------------------------------------------------------------------------

_DRO_FIELDS = ("prompt", "response", "query_id")
# A passage may hold a line that starts the same way, so the last such line of the prompt is the question.
_DRO_QUESTION = re.compile(r"^Question:[ \t]*(.*)$", re.MULTILINE)


class DROSamples(QuestionFormat):
    """The DRO authors' training file: the records of one `query_id` are one question, each response is an answer."""

    fields = "the DRO authors' format (prompt, response, query_id)"

    @classmethod
    def recognises(cls, fields: Mapping[str, Any]) -> bool:
        """See `QuestionFormat.recognises`."""
        return all(key in fields for key in _DRO_FIELDS)

    def read(self, record: Record) -> QAExample:
        """The question of one record, with its response as the only golden answer."""
        fields, where = record.fields, record.where
        missing = [key for key in _DRO_FIELDS if key not in fields]
        if missing:
            raise DataError(
                f"{where}: a record must have {', '.join(_DRO_FIELDS)}, got none of the name {missing[0]}. Add it."
            )
        id_ = identifier(fields["query_id"], where)
        prompt = fields["prompt"]
        lines = _DRO_QUESTION.findall(prompt) if isinstance(prompt, str) else []
        if not lines:
            raise DataError(
                f"{where}: the prompt must end with a line 'Question: ...', got none. Put the question there, or use "
                "FlashRAG's fields (id, question, golden_answers)."
            )
        question = question_text(lines[-1], id_, where)
        return QAExample(id_, question, distinct(answer_texts(fields["response"], where)))

    def examples(self, records: Iterable[Record], skip: Callable[[DataError], None]) -> Iterator[tuple[str, QAExample]]:
        """One example per `query_id`, in the order of their first records."""
        groups: dict[str, tuple[str, QAExample]] = {}
        for record in records:
            try:
                sample = self.read(record)
                where, example = groups.get(sample.id, (record.where, sample))
                if sample.question != example.question:
                    raise DataError(
                        f"{record.where}: the records of one query_id must ask one question, got {sample.question!r} "
                        f"here and {example.question!r} at {where} for {sample.id!r}. Give them different ids."
                    )
            except DataError as error:
                skip(error)
                continue
            answers = distinct((*example.golden_answers, *sample.golden_answers))
            groups[sample.id] = where, replace(example, golden_answers=answers)
        yield from groups.values()


# ---------------------------------------------------------------------------------------------------------
# A format that is not one of questions
# ---------------------------------------------------------------------------------------------------------


def is_alpaca(fields: Mapping[str, Any]) -> bool:
    """Whether a record is one of Alpaca's format, for instruction tuning."""
    return set(fields) >= _ALPACA_FIELDS and "question" not in fields


def refuse_alpaca(record: Record) -> None:
    """Refuse a record of Alpaca's format, whose fields look like KILT's.

    Raises:
        DataError: The record is one.
    """
    if is_alpaca(record.fields):
        raise DataError(
            f"{record.where}: a question file must hold questions, got a record of Alpaca's format (instruction, "
            "input, output), for instruction tuning. If its instructions are questions, rename instruction to question "
            "and output to golden_answers, append input to the question, and leave input out."
        )
