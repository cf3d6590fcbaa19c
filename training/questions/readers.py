"""A record of a question file becomes a `QAExample`: one small reader for each format, one table of them.

The first record of a file decides which format it has. What a record is called and where it stands comes from
`indexes.records.containers`; where its passages stand, and what their ids are, from `indexes.records.question_files`.
"""

import hashlib
import json
import logging
import math
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from indexes.errors import DataError
from indexes.records.answer_lists import written_list
from indexes.records.containers import Record, numbered_lines
from indexes.records.formats import DPR_FIELDS
from indexes.records.question_files import check_unicode, gold_passages, listed, mapping, records
from indexes.records.whole_numbers import ID_NAMES
from training.questions.example import QAExample

logger = logging.getLogger(__name__)

ALIASES_FILE = "id_aliases.json"  # beside the files of 2WikiMultihopQA
_ID_FIELDS = ("id", "_id", "question_id", "qid")
_ANSWER_FIELDS = ("golden_answers", "answers", "answer", "possible_answers")
_ALIAS_FIELDS = ("answer_aliases", "aliases")
# Each holds several answers, so that a text in them may be a list that is written out.
_LISTS = ("golden_answers", "answers", "possible_answers", *_ALIAS_FIELDS)
NUMBER_NAMES = ID_NAMES | {*_ANSWER_FIELDS, *_ALIAS_FIELDS, "value", "response", "choices", "answerKey", "gold_grades"}
"""Names of the fields whose numbers become texts, or positions, of an example."""
# What stands for an answer that is true or false: both ways of saying it are right.
_YES, _NO = ("yes", "true"), ("no", "false")
# `datasets` writes it for the hidden answers of TriviaQA's test questions (mandarjoshi/trivia_qa, trivia_qa.py).
_HIDDEN_ANSWER = "<unk>"
# The value of each field that says: no answer.
_UNANSWERABLE = {"unanswerable": True, "is_impossible": True, "answerable": False}


class Reader(NamedTuple):
    """How a format is recognised by the fields of its first record, and read."""

    name: str
    fields: str
    matches: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Record, "Aliases"], QAExample]


class Aliases:
    """2WikiMultihopQA's further names of an answer, read when the first question could have some."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._names: dict[str, list[str]] | None = None

    def read_for(self, record: Record) -> None:
        """Read the file if it is there, not yet read, and of use for this record.

        Raises:
            DataError: The file is broken; it belongs to all questions, so none of them can do without.
        """
        if self._names is None and self._file is not None and isinstance(record.fields.get("answer_id"), str):
            self._names = dict(_alias_rows(self._file)) if self._file.is_file() else {}
            if self._names:
                logger.info("%d answers have further names in %s.", len(self._names), self._file)

    def of(self, answer_id: object) -> list[str]:
        """Aliases and demonyms of an entity of Wikidata; none where the file has none or is not there."""
        return (self._names or {}).get(answer_id, []) if isinstance(answer_id, str) else []


def _alias_rows(file: Path) -> Iterator[tuple[str, list[str]]]:
    with file.open("rb") as stream:
        for number, line in numbered_lines(stream, str(file)):
            if line.strip():
                where = f"{file}:{number}"
                try:
                    row = mapping(json.loads(line), where)
                except json.JSONDecodeError as error:
                    raise DataError(f"{where}: every line must be one JSON object ({error}). Mend it.") from error
                names = [row.get(field) or [] for field in ("aliases", "demonyms")]
                yield str(row.get("Q_id")), list(_texts(names, where))


# ---------------------------------------------------------------------------------------------------------
# The readers
# ---------------------------------------------------------------------------------------------------------


def _question(record: Record, aliases: Aliases) -> QAExample:
    """FlashRAG, SQuAD, HotpotQA, 2WikiMultihopQA, MuSiQue and DPR differ in names and in where passages stand."""
    where, fields = record.where, _with_question(record.fields)
    unanswerable = _is_unanswerable(fields, where)
    id_ = _record_id(record, unanswerable)
    gold_ids, grades = _gold(fields, unanswerable, where)
    return QAExample(
        id=id_,
        question=question_text(fields.get("question"), id_ or record.number, where),
        # What MuSiQue-Full keeps as the answer of such a question is the one of its answerable twin.
        golden_answers=() if unanswerable else _distinct(_answers(fields, aliases, where)),
        gold_ids=gold_ids,
        unanswerable=unanswerable,
        gold_grades=grades,
        ignore_identical_id=fields.get("ignore_identical_id") is True,
    )


def _with_question(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """OpenBookQA calls its questions stems; its own files, and those of ARC, keep the choices beside the stem."""
    inner = fields.get("question")
    if isinstance(inner, Mapping) and "stem" in inner:
        return {**fields, "question": inner["stem"], "choices": inner.get("choices")}
    return fields if inner is not None else {**fields, "question": fields.get("question_stem")}


def _record_id(record: Record, unanswerable: bool) -> str:
    """The id; empty where DPR gives none, whose questions are then named by what they say (`content_id`)."""
    fields = record.fields
    given = next((fields[key] for key in _ID_FIELDS if fields.get(key) is not None), None)
    if given is None and any(field in fields for field in DPR_FIELDS):
        return ""
    id_ = identifier(record.number if given is None else given, record.where)
    # MuSiQue-Full asks every question twice under one id, once with a supporting paragraph taken away.
    return f"{id_}~unanswerable" if unanswerable and {"answerable", "paragraphs"} <= set(fields) else id_


def _answers(fields: Mapping[str, Any], aliases: Aliases, where: str) -> Iterator[str]:
    yield from _texts(_given_answers(fields, where), where)
    for key in _ALIAS_FIELDS:
        yield from _texts(_field(fields, key, where), where)
    yield from aliases.of(fields.get("answer_id"))


def _given_answers(fields: Mapping[str, Any], where: str) -> object:
    """The first field of answers that says something, or what it names among the choices."""
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
    written = written_list(value, f"{where}: {key}") if key in _LISTS and isinstance(value, str) else None
    return value if written is None else written


def _options(choices: object, where: str) -> tuple[list[Any], list[str]]:
    """The choices, and what their question calls them: letters, where it does not say.

    ARC, OpenBookQA, QASC and CommonsenseQA have objects of text and label, exported as one object of two lists.
    """
    if not isinstance(choices, Mapping) and not all(
        isinstance(c, Mapping) for c in listed(choices, f"{where}: choices")
    ):
        options = listed(choices, f"{where}: choices")
        return options, list(string.ascii_uppercase[: len(options)])
    entries = records(choices, ("text", "label"), f"{where}: choices")
    return [entry.get("text") for entry in entries], [str(entry.get("label")) for entry in entries]


def _chosen(given: object, options: list[Any], labels: list[str], where: str) -> object:
    """FlashRAG's multiple-choice questions, and MMLU's, name their golden answers by position, counted from 0.

    Copies of MMLU name them by letter; a text that is a choice itself is that choice.
    """
    positions: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
    if all(isinstance(p, str) and p in labels and p not in options for p in positions):
        return [options[labels.index(p)] for p in positions]
    if not all(isinstance(position, int) and not isinstance(position, bool) for position in positions):
        return given
    if not all(0 <= position < len(options) for position in positions):
        raise DataError(f"{where}: golden_answers must be positions in {len(options)} choices, got {given!r}. Mend it.")
    return [options[position] for position in positions]


def _labelled(key: object, options: list[Any], labels: list[str], where: str) -> object:
    """The choice of this label: a letter, or a number counted from 1 (ARC has both); none where it is hidden."""
    if key is None or key == "":
        return ()
    if str(key) in labels:
        return options[labels.index(str(key))]
    raise DataError(f"{where}: answerKey must be the label of a choice, one of {labels}, got {key!r}. Mend the row.")


def _is_unanswerable(fields: Mapping[str, Any], where: str) -> bool:
    for field, meaning in _UNANSWERABLE.items():
        value = fields.get(field)
        if isinstance(value, bool):
            return value is meaning
        if value is not None:
            raise DataError(f"{where}: {field} must be true or false, got {value!r}. Mend the row.")
    return False


def _gold(fields: Mapping[str, Any], unanswerable: bool, where: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    given = listed(fields.get("gold_ids") or [], f"{where}: gold_ids")
    if not given and not unanswerable:  # no passage holds an answer that there is not
        return _distinct(gold_passages(fields, where)), ()
    ids = _distinct(identifier(gold, where) for gold in given)
    grades = listed(fields.get("gold_grades") or [], f"{where}: gold_grades")
    if not all(isinstance(grade, int) and not isinstance(grade, bool) for grade in grades):
        raise DataError(f"{where}: gold_grades must be whole numbers, got {grades[:5]}. Mend the row.")
    return ids, tuple(grades)


def _kilt(record: Record, aliases: Aliases) -> QAExample:
    where, fields = record.where, record.fields
    id_ = identifier(record.number if fields.get("id") is None else fields["id"], where)
    if not fields.get("input"):
        raise DataError(
            f"{where}: every question must be text; the KILT record {id_!r} has no input. KILT ships TriviaQA without "
            "its questions: add them with KILT's script get_triviaqa_input.py."
        )
    outputs = [mapping(output, f"{where}: output") for output in listed(fields.get("output") or [], f"{where}: output")]
    return QAExample(
        id=id_,
        question=question_text(fields["input"], id_, where),
        golden_answers=_distinct(_texts([output.get("answer") or "" for output in outputs], where)),
        gold_ids=_distinct(page for output in outputs for page in _pages(output, where)),
    )


def _pages(output: Mapping[str, Any], where: str) -> Iterator[str]:
    for entry in listed(output.get("provenance") or [], f"{where}: provenance"):
        page = mapping(entry, f"{where}: provenance").get("wikipedia_id")
        # Exports fill what is not there with empty texts.
        if page is not None and page != "":
            yield identifier(page, where).strip()


def _beir(record: Record, aliases: Aliases) -> QAExample:
    where, fields = record.where, record.fields
    id_ = identifier(fields["_id"], where)
    if fields.get("title"):
        raise DataError(
            f"{where}: a question of BEIR has no title, but {id_!r} has: this is a corpus. Pass the folder, or its "
            "queries.jsonl."
        )
    gold_ids, grades = _gold(fields, False, where)
    question = question_text(fields.get("text"), id_, where)
    # beir 2.2: EvaluateRetrieval.evaluate(ignore_identical_ids=True) is the default for every one of its data sets.
    return QAExample(id_, question, gold_ids=gold_ids, gold_grades=grades, ignore_identical_id=True)


READERS = (
    Reader(
        "FlashRAG, SQuAD, HotpotQA, 2WikiMultihopQA, MuSiQue, DPR",
        "FlashRAG (id, question, golden_answers), HotpotQA, 2WikiMultihopQA and MuSiQue (question, answer), "
        "SQuAD (data > paragraphs > qas), DPR (question, answers, positive_ctxs)",
        lambda fields: "question" in fields or "question_stem" in fields,
        _question,
    ),
    Reader(
        "KILT", "KILT (id, input, output)", lambda fields: "input" in fields or {"id", "output"} <= set(fields), _kilt
    ),
    Reader("BEIR", "BEIR's queries.jsonl (_id, text)", lambda fields: {"_id", "text"} <= set(fields), _beir),
)


def content_id(example: QAExample) -> str:
    """An id for a question without one, from what it says, so that the order of its file does not matter."""
    said = json.dumps([example.question, sorted(example.golden_answers), sorted(example.gold_ids)], ensure_ascii=True)
    return f"q~{hashlib.blake2b(said.encode(), digest_size=6).hexdigest()}"


# ---------------------------------------------------------------------------------------------------------
# The DRO authors' format: one record for each sampled response
# ---------------------------------------------------------------------------------------------------------

DRO_FIELDS = ("prompt", "response", "query_id")
# A passage may hold a line that starts the same way, so the last such line of the prompt is the question.
_DRO_QUESTION = re.compile(r"^Question:[ \t]*(.*)$", re.MULTILINE)


def dro_query(record: Record) -> tuple[str, str, tuple[str, ...]]:
    """The id, the question and the response of one record.

    Raises:
        DataError: One of them is missing.
    """
    missing = [key for key in DRO_FIELDS if key not in record.fields]
    if missing:
        raise DataError(f"{record.where}: a record must have {', '.join(DRO_FIELDS)}; {missing[0]} is missing.")
    id_ = identifier(record.fields["query_id"], record.where)
    prompt = record.fields["prompt"]
    lines = _DRO_QUESTION.findall(prompt) if isinstance(prompt, str) else []
    if not lines:
        raise DataError(
            f"{record.where}: the prompt must end with a line 'Question: ...'; none was found. "
            "Put the question there, or use FlashRAG's fields (id, question, golden_answers)."
        )
    question = question_text(lines[-1], id_, record.where)
    return id_, question, tuple(_texts(record.fields["response"], record.where))


# ---------------------------------------------------------------------------------------------------------
# Values
# ---------------------------------------------------------------------------------------------------------


def question_text(value: object, id_: str | int, where: str) -> str:
    """The question, as the file has it.

    Raises:
        DataError: It is no text, or says nothing.
    """
    if isinstance(value, str) and value.strip():
        return check_unicode(value, where)
    found = "is empty" if value is None or isinstance(value, str) else f"is {type(value).__name__}: {value!r}"
    raise DataError(f"{where}: every question must be text; the question with id {id_!r} {found}. Fill or delete it.")


def identifier(value: object, where: str) -> str:
    """An id as text.

    Raises:
        DataError: It is neither text nor an integer.
    """
    # bool is an int to Python, but True is nobody's id.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip():
        return check_unicode(value, where)
    raise DataError(
        f"{where}: an id must be text or an integer, got {value!r}. Leave the field out to number the rows."
    )


def _texts(value: object, where: str) -> Iterator[str]:
    """Every answer inside a text, a number, true or false, a list, or an object of SQuAD or TriviaQA."""
    if isinstance(value, str):
        yield check_unicode(value.strip(), where)
    elif isinstance(value, bool):
        yield from _YES if value else _NO
    elif isinstance(value, int | float) and math.isfinite(value):
        yield str(value)
    elif isinstance(value, Mapping) and "text" in value:
        yield from _texts(value["text"], where)
    elif isinstance(value, Mapping) and "aliases" in value:
        yield from _of_trivia_qa(value, where)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry, where)
    else:
        raise DataError(f"{where}: an answer must be text or a list of texts, got {value!r}. Mend the row.")


def _of_trivia_qa(answer: Mapping[str, Any], where: str) -> Iterator[str]:
    """TriviaQA's answer and its aliases; `normalized_aliases` are the same in another writing, which nobody wants."""
    aliases = list(_texts(answer["aliases"] or (), where))
    value = answer.get("value")
    if value != _HIDDEN_ANSWER or aliases:
        yield from _texts(() if value is None else value, where)
    yield from aliases


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))
