"""Question files: the formats of the field read as they are, one `QAExample` per question.

| format | container | a record |
|---|---|---|
| FlashRAG | JSONL(.gz), `datasets.Dataset` | `id, question, golden_answers` and optional `gold_ids` |
| HotpotQA, 2WikiMultihopQA | JSON array | `_id, question, answer, supporting_facts, context` |
| MuSiQue | JSONL | `id, question, answer, answer_aliases, paragraphs` |
| SQuAD 1.1 and 2.0 | one JSON object | `data` > `paragraphs` > `qas` > `id, question, answers` |
| DRO authors | JSON array | `prompt, response, sample_id, query_id, probs`, one record per sampled response |

The container and the format are recognised by content, never by the file's name. `answers` or `answer` may
stand for `golden_answers`; `answer_aliases` and `aliases` are added to them. Supporting facts of HotpotQA are
titles, not passages of a corpus, so they do not become `gold_ids`.
"""

import gzip
import hashlib
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import datasets

from indexes.errors import DataError, UsageError

_GZIP_MAGIC = b"\x1f\x8b"
_ANSWER_FIELDS = ("golden_answers", "answers", "answer")
# The value of each field that says: no answer.
_UNANSWERABLE = {"unanswerable": True, "is_impossible": True, "answerable": False}
_ALIAS_FIELDS = ("answer_aliases", "aliases")
_DRO_FIELDS = ("prompt", "response", "query_id")
_KNOWN_FORMATS = (
    "FlashRAG (id, question, golden_answers), HotpotQA, 2WikiMultihopQA and MuSiQue (question, answer), "
    "SQuAD (data > paragraphs > qas) and the DRO authors' format (prompt, response, query_id)"
)
# A passage may hold a line that starts the same way, so the last such line of the prompt is the question.
_DRO_QUESTION = re.compile(r"^Question:[ \t]*(.*)$", re.MULTILINE)


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

    def __post_init__(self) -> None:
        if self.unanswerable and self.golden_answers:
            raise DataError(
                f"A question without an answer must have no golden answers; {self.id!r} is unanswerable and has "
                f"{list(self.golden_answers)[:5]}. Take one of the two away."
            )


class _Record(NamedTuple):
    where: str  # file and line, or file and record number: the start of every error message
    number: int  # counted from 0: the id of a record that has none
    fields: Mapping[str, Any]


# ----------------------------------------------------------------------------------------------------
# Reading and writing
# ----------------------------------------------------------------------------------------------------


def load_examples(
    path_or_dataset: str | Path | datasets.Dataset, *, require_answers: bool = False, limit: int | None = None
) -> list[QAExample]:
    """Read a question file, whichever of the module's formats it is in, or a `datasets.Dataset`.

    Records without an id are numbered from 0. In the DRO authors' format the records of one `query_id` become
    one example with every response as a golden answer; `probs` and `sample_id` are not read.

    Args:
        path_or_dataset: A file (gzip is recognised by content) or a dataset of question records.
        require_answers: Refuse questions without any golden answer, as training must.
        limit: Keep the first so many questions; what follows them is not checked.

    Raises:
        DataError: A missing or empty file, a broken line, an unknown format, an empty question, an id that
            appears twice, or (with `require_answers`) questions without an answer.
        UsageError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, got {limit}. Leave it out to read every question.")
    name = "the dataset" if isinstance(path_or_dataset, datasets.Dataset) else str(path_or_dataset)
    examples = list(itertools.islice(_examples(_records(path_or_dataset), name), limit))
    if require_answers:
        _check_answers(examples, name)
    return examples


def write_examples(examples: Iterable[QAExample], path: str | Path) -> None:
    """Write JSONL in FlashRAG's fields plus `gold_ids`, gzipped when the name ends in `.gz`.

    The file appears whole or not at all, and the same examples always give the same bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            if path.suffix == ".gz":
                # No name and no time in the header, so that equal content is equal bytes.
                with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                    packed.writelines(map(_json_line, examples))
            else:
                file.writelines(map(_json_line, examples))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def draw_alias(example: QAExample, *, seed: int, round: int) -> str:
    """The golden answer that one round trains on: uniform over the aliases, fixed by (seed, round, id).

    A hash of the three is the draw, so neither the order of the file nor the other questions change it.

    Raises:
        DataError: The example has no golden answer.
    """
    if not example.golden_answers:
        raise DataError(
            f"A training question must have a golden answer; question {example.id!r} has none. "
            "Add one or leave the question out (load_examples(..., require_answers=True) finds them all)."
        )
    # Not Python's hash(): that one is salted anew in every process.
    key = f"{seed}\x1f{round}\x1f{example.id}".encode()
    draw = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    return example.golden_answers[draw % len(example.golden_answers)]


def _json_line(example: QAExample) -> bytes:
    fields: dict[str, Any] = {
        "id": example.id,
        "question": example.question,
        "golden_answers": list(example.golden_answers),
        "gold_ids": list(example.gold_ids),
    }
    if example.unanswerable:
        fields["unanswerable"] = True
    return (json.dumps(fields, ensure_ascii=False) + "\n").encode()


def _check_answers(examples: list[QAExample], name: str) -> None:
    missing = [example.id for example in examples if not example.golden_answers]
    if missing:
        raise DataError(
            f"Every question must have a golden answer here; in {name} {len(missing)} of {len(examples)} "
            f"have none, first {missing[0]!r}. Add their answers (field golden_answers) or take them out."
        )


# ----------------------------------------------------------------------------------------------------
# Containers: JSONL, a JSON array, a JSON object, a dataset -> records with their place in the file
# ----------------------------------------------------------------------------------------------------


def _records(source: str | Path | datasets.Dataset) -> Iterator[_Record]:
    if isinstance(source, datasets.Dataset):
        for number, fields in enumerate(source):
            yield _Record(f"the dataset, row {number}", number, fields)
        return
    path = Path(source)
    first_line = next((text for _, text in _lines(path) if text.strip()), None)
    if first_line is None:
        raise DataError(f"{path}: a question file must hold at least one question; this one is empty. Check the path.")
    yield from _document_records(path) if _is_document(first_line) else _line_records(path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Every line with its number from 1; plain or gzipped."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number}: a question file must be UTF-8; byte {error.start + 1} of this line is not "
            f"({error.reason}). Convert the file."
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: the gzip stream must be whole; it breaks after line {number} ({error}). "
            "Copy or download the file again."
        ) from error


def _open(path: Path) -> IO[bytes]:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"A question file must be a JSONL or JSON file; {path} {found}. Check the path.")
    with path.open("rb") as file:
        packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    return cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb")


def _is_document(first_line: str) -> bool:
    """Whether the file is one JSON value, and not one object per line."""
    text = first_line.strip()
    if text.startswith("[") or text == "{":
        return True
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        # `{"version": "1.1", "data": [` and on over many lines, or a broken row: only SQuAD's keys tell.
        return re.match(r'\{\s*"(version|data)"\s*:', text) is not None
    return isinstance(value, dict) and isinstance(value.get("data"), list)


def _line_records(path: Path) -> Iterator[_Record]:
    filled = ((line_number, text) for line_number, text in _lines(path) if text.strip())
    for number, (line_number, text) in enumerate(filled):
        where = f"{path}:{line_number}"
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{where}: every line must be one JSON object; this one breaks at column {error.colno} "
                f"({error.msg}). Mend or delete the line."
            ) from error
        yield _Record(where, number, _mapping(fields, where))


def _document_records(path: Path) -> Iterator[_Record]:
    try:
        document = json.loads("".join(text for _, text in _lines(path)))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: the file must be one JSON array or object; it breaks at column "
            f"{error.colno} ({error.msg}). Mend that place, or copy the file again."
        ) from error
    if isinstance(document, dict):
        document = document.get("data", [document])
    if not isinstance(document, list) or not document:
        raise DataError(f"{path}: a question file must hold a list of at least one question; it has none.")
    questions = itertools.chain.from_iterable(
        _questions(_mapping(entry, f"{path}, record {position}"), f"{path}, record {position}")
        for position, entry in enumerate(document)
    )
    for number, (where, fields) in enumerate(questions):
        yield _Record(where, number, fields)


def _questions(entry: Mapping[str, Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The entry itself, or the questions inside when it is an article of SQuAD."""
    if "paragraphs" not in entry or "question" in entry:  # MuSiQue's records have both
        yield where, entry
        return
    for p, paragraph in enumerate(_list(entry["paragraphs"], f"{where}: paragraphs")):
        place = f"{where}, paragraph {p}"
        gold = _mapping(paragraph, place).get("id")
        for q, question in enumerate(_list(paragraph.get("qas"), f"{place}: qas")):
            fields = _mapping(question, f"{place}, question {q}")
            # Files as SQuAD ships them have no paragraph ids; files that were given some keep them as gold.
            yield f"{place}, question {q}", fields if gold is None else {"gold_ids": [gold], **fields}


# ----------------------------------------------------------------------------------------------------
# Records -> examples
# ----------------------------------------------------------------------------------------------------


def _examples(records: Iterator[_Record], name: str) -> Iterator[QAExample]:
    first = next(records, None)
    if first is None:
        raise DataError(f"A question file must hold at least one question; {name} has none.")
    records = itertools.chain([first], records)
    if "question" in first.fields:
        return _unique((record.where, _question_example(record)) for record in records)
    if all(key in first.fields for key in _DRO_FIELDS):
        return _unique(_dro_examples(records))
    found = ", ".join(map(str, first.fields)) or "no keys at all"
    raise DataError(
        f"{first.where}: the keys must be those of a known question format, got: {found}. "
        f"Known: {_KNOWN_FORMATS}. Rename the fields."
    )


def _unique(examples: Iterable[tuple[str, QAExample]]) -> Iterator[QAExample]:
    places: dict[str, str] = {}
    for where, example in examples:
        if example.id in places:
            raise DataError(
                f"{where}: every question must have an id of its own; {example.id!r} came before at "
                f"{places[example.id]}. Rename or delete one of the two."
            )
        places[example.id] = where
        yield example


def _question_example(record: _Record) -> QAExample:
    """FlashRAG, HotpotQA, 2WikiMultihopQA, MuSiQue and one question of SQuAD differ in names only."""
    where, fields = record.where, record.fields
    id_ = _id(next((fields[key] for key in ("id", "_id") if fields.get(key) is not None), record.number), where)
    answers = next((fields[key] for key in _ANSWER_FIELDS if fields.get(key) is not None), ())
    aliases = [fields[key] for key in _ALIAS_FIELDS if fields.get(key) is not None]
    gold_ids = _list(fields.get("gold_ids") or [], f"{where}: gold_ids")
    unanswerable = _is_unanswerable(fields, where)
    return QAExample(
        id=id_,
        question=_question_text(fields.get("question"), id_, where),
        # What MuSiQue-Full keeps as the answer of such a question is the one of its answerable twin.
        golden_answers=() if unanswerable else _distinct(_texts([answers, *aliases], where)),
        gold_ids=_distinct(_id(gold, where) for gold in gold_ids),
        unanswerable=unanswerable,
    )


def _is_unanswerable(fields: Mapping[str, Any], where: str) -> bool:
    for field, meaning in _UNANSWERABLE.items():
        value = fields.get(field)
        if isinstance(value, bool):
            return value is meaning
        if value is not None:
            raise DataError(f"{where}: {field} must be true or false, got {value!r}. Mend the row.")
    return False


def _dro_examples(records: Iterable[_Record]) -> Iterator[tuple[str, QAExample]]:
    """One example per `query_id`, placed where its first record stands."""
    groups: dict[str, list[_Record]] = {}
    for record in records:
        missing = [key for key in _DRO_FIELDS if key not in record.fields]
        if missing:
            raise DataError(f"{record.where}: a record must have {', '.join(_DRO_FIELDS)}; {missing[0]} is missing.")
        groups.setdefault(_id(record.fields["query_id"], record.where), []).append(record)
    for id_, group in groups.items():
        question = _dro_question(group[0], id_)
        for record in group[1:]:
            if (other := _dro_question(record, id_)) != question:
                raise DataError(
                    f"{record.where}: the records of one query_id must ask one question; {id_!r} asks "
                    f"{other!r} here and {question!r} at {group[0].where}. Give them different ids."
                )
        responses = _texts([record.fields["response"] for record in group], group[0].where)
        yield group[0].where, QAExample(id=id_, question=question, golden_answers=_distinct(responses))


def _dro_question(record: _Record, id_: str) -> str:
    prompt = record.fields["prompt"]
    lines = _DRO_QUESTION.findall(prompt) if isinstance(prompt, str) else []
    if not lines:
        raise DataError(
            f"{record.where}: the prompt must end with a line 'Question: ...'; none was found. "
            "Put the question there, or use FlashRAG's fields (id, question, golden_answers)."
        )
    return _question_text(lines[-1], id_, record.where)


def _question_text(value: object, id_: str, where: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    found = "is empty" if value is None or isinstance(value, str) else f"is {type(value).__name__}: {value!r}"
    raise DataError(f"{where}: every question must be text; the question with id {id_!r} {found}. Fill or delete it.")


def _id(value: object, where: str) -> str:
    # bool is an int to Python, but True is nobody's id.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value
    raise DataError(
        f"{where}: an id must be text or an integer, got {value!r}. Leave the field out to number the rows."
    )


def _texts(value: object, where: str) -> Iterator[str]:
    """Every answer inside a text, a number, a list, or SQuAD's {"text": ..., "answer_start": ...}."""
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, Mapping) and "text" in value:
        yield from _texts(value["text"], where)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry, where)
    else:
        raise DataError(f"{where}: an answer must be text or a list of texts, got {value!r}. Mend the row.")


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise DataError(f"{where}: every record must be a JSON object, got {type(value).__name__}: {str(value)[:60]!r}.")


def _list(value: object, where: str) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    raise DataError(f"{where} must be a list, got {type(value).__name__}: {str(value)[:60]!r}.")
