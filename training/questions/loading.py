"""Question files: the formats of the field read as their owners ship them, one `QAExample` per question.

| format | container | a record | gold ids |
|---|---|---|---|
| FlashRAG | JSONL | `id, question, golden_answers`, of multiple choice also `choices` | `gold_ids`, if given |
| KILT | JSONL | `id, input, output` > `answer, provenance` | pages: `wikipedia_id` of the provenance |
| BEIR | folder or zip | `queries.jsonl`: `_id, text`; `qrels/SPLIT.tsv` | judged above 0, with grades |
| SQuAD 1.1, 2.0 | one JSON object | `data` > `paragraphs` > `qas` > `id, question, answers` | its paragraph |
| HotpotQA, 2WikiMultihopQA | JSON array | `_id, question, answer, supporting_facts, context` | supporting paragraphs |
| MuSiQue | JSONL | `id, question, answer, answer_aliases, paragraphs` | `is_supporting` |
| DPR, for training | JSON array | `question, answers, positive_ctxs` | `positive_ctxs` |
| DPR, for testing | delimited text | `question<TAB>['answer', ...]` | none |
| PopQA | rows | `id, question, possible_answers`, a JSON list as text | none |
| TriviaQA | rows | `question_id, question, answer` > `value, aliases` | none |
| BoolQ, StrategyQA | rows | `question, answer`, true or false; BoolQ also `passage` | its passage |
| ARC, OpenBookQA, CommonsenseQA | rows | `question` or `question_stem`, `choices` > `text, label`, `answerKey` | none |
| MMLU | rows | `question, choices, answer`, a position from 0 | none |
| DRO authors | JSON array | `prompt, response, sample_id, query_id, probs`, one record per sampled response | none |

All may be gzipped, and rows exported by `datasets` (Parquet, Arrow, JSONL, a saved folder, a `Dataset`) are read like
the files they were made from. Container and format are recognised by content, never by a file's name. `answers` or
`answer` may stand for `golden_answers`; `answer_aliases` and `aliases` are added to them, and so are the names that
`id_aliases.json` beside a file of 2WikiMultihopQA has for its `answer_id`. A record's own `gold_ids` win over what
its format says. The ids of passages that stand inside question files are those of `question_files`, so a
corpus read from the same file holds them. Whole numbers that a missing neighbour made floats are whole numbers again
(`indexes.records.whole_numbers`). docs/formats.md tells the odd parts.
"""

import gzip
import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import datasets

from indexes.atomic_files import write_file
from indexes.errors import DataError, UsageError
from indexes.records.containers import BrokenRecord, Record, Records, open_records
from indexes.records.delimited import Quoting
from indexes.records.whole_numbers import WholeNumbers
from training.questions.example import QAExample
from training.questions.readers import (
    ALIASES_FILE,
    DRO_FIELDS,
    NUMBER_NAMES,
    READERS,
    Aliases,
    Reader,
    content_id,
    dro_query,
)

logger = logging.getLogger(__name__)

_KNOWN_FORMATS = ", ".join(reader.fields for reader in READERS) + (
    " and the DRO authors' format (prompt, response, query_id)"
)
_ALPACA_FIELDS = {"instruction", "output"}
_SHOWN = 20  # broken records that are logged one by one


class QuestionFile(NamedTuple):
    """What a file holds, and why some of it was left out."""

    examples: list[QAExample]
    skipped: list[DataError]


# ----------------------------------------------------------------------------------------------------
# Reading and writing
# ----------------------------------------------------------------------------------------------------


def load_examples(
    path_or_dataset: str | Path | datasets.Dataset,
    *,
    require_answers: bool = False,
    allow_unanswerable: bool = False,
    limit: int | None = None,
    split: str | None = None,
    quoting: Quoting = "auto",
    on_error: Literal["raise", "skip"] = "raise",
    ignore_identical_ids: bool | None = None,
) -> list[QAExample]:
    """Read a question file, whichever of the module's formats it is in, or a `datasets.Dataset`.

    Records without an id are numbered from 0; those of DPR, which never has any, are named by what they say. In the
    DRO authors' format the records of one `query_id` become one example with every response as a golden answer;
    `probs` and `sample_id` are not read. MuSiQue-Full asks every question twice under one id: the one without an
    answer has `~unanswerable` behind it.

    Args:
        path_or_dataset: A file (gzip is recognised by content), BEIR's folder or zip, a folder saved by `datasets`, or
            a dataset of question records.
        require_answers: Refuse questions without any golden answer, as training must. One that is unanswerable has
            none.
        allow_unanswerable: With `require_answers`, let those pass whose file says that there is no answer, as an
            evaluation does: it is known what is right.
        limit: Keep the first so many questions; what follows them is not checked, and of JSON arrays and lines not
            even read.
        split: The part of BEIR's (`qrels/SPLIT.tsv`) or of a saved dataset; needed where there are several.
        quoting: What a double quote is in DPR's delimited text and BEIR's judgements: `"csv"`, `"none"`, or `"auto"` by
            content, as in `Corpus.from_file`.
        on_error: What happens to a record that is broken: `"raise"` stops, `"skip"` leaves it out with a warning
            (the first twenty one by one, then their number). A file that breaks as a whole (a JSON document that is
            none, a truncated archive) is raised either way.
        ignore_identical_ids: Whether a question must not find the passage with its own id, as in data sets whose
            questions are passages of the corpus. None is as the file says: BEIR's do (its own evaluation ignores
            them), others only where `write_examples` wrote them so.

    Raises:
        DataError: A missing or empty file, a broken line, an unknown format, an empty question, an id that
            appears twice, or (with `require_answers`) questions without an answer.
        UsageError: `limit` is below 1, a split is asked for where there is none, or there is no such quoting.
    """
    examples = read_questions(
        path_or_dataset,
        limit=limit,
        split=split,
        quoting=quoting,
        on_error=on_error,
        ignore_identical_ids=ignore_identical_ids,
    ).examples
    if require_answers:
        _check_answers(examples, _name(path_or_dataset), allow_unanswerable)
    return examples


def read_questions(
    path_or_dataset: str | Path | datasets.Dataset,
    *,
    limit: int | None = None,
    split: str | None = None,
    quoting: Quoting = "auto",
    on_error: Literal["raise", "skip"] = "raise",
    ignore_identical_ids: bool | None = None,
) -> QuestionFile:
    """`load_examples` with what was left out, for whoever reports it."""
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, got {limit}. Leave it out to read every question.")
    if on_error not in ("raise", "skip"):
        raise UsageError(f'on_error must be "raise" or "skip", got {on_error!r}. Choose one of them.')
    name = _name(path_or_dataset)
    skipped = _Skipped(name, on_error == "skip")
    aliases = Aliases(None if isinstance(path_or_dataset, datasets.Dataset) else _beside(Path(path_or_dataset)))
    records = _restored(lambda: open_records(path_or_dataset, split, quoting=quoting))
    found = _examples(records, name, aliases, skipped)
    examples = list(itertools.islice(found, limit))
    skipped.report(len(examples))
    return QuestionFile(ignoring_identical_ids(examples, ignore_identical_ids), skipped.errors)


def ignoring_identical_ids(examples: Sequence[QAExample], ignore: bool | None) -> list[QAExample]:
    """The questions, each ignoring the passage with its own id or not; as they are for None."""
    if ignore is None:
        return list(examples)
    return [replace(example, ignore_identical_id=ignore) for example in examples]


def _name(source: str | Path | datasets.Dataset) -> str:
    return "the dataset" if isinstance(source, datasets.Dataset) else str(source)


def _beside(path: Path) -> Path:
    return path.parent / ALIASES_FILE


def write_examples(examples: Iterable[QAExample], path: str | Path) -> None:
    """Write JSONL in FlashRAG's fields plus `gold_ids`, gzipped when the name ends in `.gz`.

    The file appears whole or not at all, and the same examples always give the same bytes.
    """
    path = Path(path)

    def write(file: IO[bytes]) -> None:
        if path.suffix == ".gz":
            # No name and no time in the header, so that equal content is equal bytes.
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                packed.writelines(map(_json_line, examples))
        else:
            file.writelines(map(_json_line, examples))

    write_file(path, write)


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
    if example.gold_grades:
        fields["gold_grades"] = list(example.gold_grades)
    if example.ignore_identical_id:
        fields["ignore_identical_id"] = True
    return (json.dumps(fields, ensure_ascii=False) + "\n").encode()


def _check_answers(examples: list[QAExample], name: str, allow_unanswerable: bool) -> None:
    missing = [e for e in examples if not e.golden_answers and not (allow_unanswerable and e.unanswerable)]
    if not missing:
        return
    said = sum(example.unanswerable for example in missing)
    unanswerable = f" ({said} because the file says that there is no answer)" if said else ""
    raise DataError(
        f"Every question must have a golden answer here; in {name} {len(missing)} of {len(examples)} "
        f"have none{unanswerable}, first {missing[0].id!r}. Add their answers (field golden_answers) or take them out."
    )


class _Skipped:
    """Broken records: raised, or counted and logged."""

    def __init__(self, name: str, skip: bool) -> None:
        self.errors: list[DataError] = []
        self._name = name
        self._skip = skip

    def add(self, error: DataError) -> None:
        if not self._skip:
            raise error
        self.errors.append(error)
        if len(self.errors) <= _SHOWN:
            logger.warning("Left out: %s", error)

    def report(self, kept: int) -> None:
        if self.errors and not kept:
            raise DataError(
                f"A question file must hold at least one question, but all {len(self.errors)} records of {self._name} "
                f"are broken. The first: {self.errors[0]}"
            ) from self.errors[0]
        if len(self.errors) > _SHOWN:
            logger.warning("Left out: %d records of %s in all.", len(self.errors), self._name)


# ----------------------------------------------------------------------------------------------------
# Records -> examples
# ----------------------------------------------------------------------------------------------------


def _restored(read: Callable[[], Records]) -> Records:
    """The records with whole numbers where floats stand for them; see `indexes.records.whole_numbers`."""
    numbers = WholeNumbers(lambda: (r.fields for r in read() if isinstance(r, Record)), NUMBER_NAMES)
    for record in read():
        if isinstance(record, BrokenRecord):
            yield record
            continue
        try:
            yield record._replace(fields=numbers.restored(record.fields, record.where))
        except DataError as error:
            yield BrokenRecord(error)


def _examples(records: Records, name: str, aliases: Aliases, skipped: _Skipped) -> Iterator[QAExample]:
    sound = _sound(records, skipped)
    first = next(sound, None)
    if first is None:
        if skipped.errors:
            return iter(())
        raise DataError(f"A question file must hold at least one question; {name} has none.")
    sound = itertools.chain([first], sound)
    is_alpaca = _ALPACA_FIELDS <= set(first.fields) and "question" not in first.fields
    reader = None if is_alpaca else next((reader for reader in READERS if reader.matches(first.fields)), None)
    if reader is not None:
        return _unique(_read(reader, sound, aliases, skipped), skipped)
    if all(key in first.fields for key in DRO_FIELDS):
        return _unique(_dro_examples(sound, skipped), skipped)
    if is_alpaca:
        raise DataError(
            f"{first.where}: a question file must hold questions; this is a row of Alpaca's format (instruction, "
            "input, output), for instruction tuning. If its instructions are questions, rename instruction to "
            "question and output to golden_answers, put what stands in input behind the question, and leave input out."
        )
    found = ", ".join(map(str, first.fields)) or "no keys at all"
    raise DataError(
        f"{first.where}: the keys must be those of a known question format, got: {found}. "
        f"Known: {_KNOWN_FORMATS}. Rename the fields."
    )


def _sound(records: Records, skipped: _Skipped) -> Iterator[Record]:
    for record in records:
        if isinstance(record, BrokenRecord):
            skipped.add(record.error)
        else:
            yield record


def _read(
    reader: Reader, records: Iterable[Record], aliases: Aliases, skipped: _Skipped
) -> Iterator[tuple[str, QAExample]]:
    nameless: Counter[str] = Counter()
    for record in records:
        aliases.read_for(record)
        try:
            example = reader.read(record, aliases)
        except DataError as error:
            skipped.add(error)
            continue
        if not example.id:
            id_ = content_id(example)
            nameless[id_] += 1
            # Questions that say the same are told apart by their number, whichever of them comes first.
            example = replace(example, id=id_ if nameless[id_] == 1 else f"{id_}~{nameless[id_]}")
        yield record.where, example


def _unique(examples: Iterable[tuple[str, QAExample]], skipped: _Skipped) -> Iterator[QAExample]:
    places: dict[str, str] = {}
    for where, example in examples:
        if example.id in places:
            skipped.add(
                DataError(
                    f"{where}: every question must have an id of its own; {example.id!r} came before at "
                    f"{places[example.id]}. Rename or delete one of the two."
                )
            )
            continue
        places[example.id] = where
        yield example


def _dro_examples(records: Iterable[Record], skipped: _Skipped) -> Iterator[tuple[str, QAExample]]:
    """One example per `query_id`, placed where its first record stands."""
    groups: dict[str, tuple[str, QAExample]] = {}
    for record in records:
        try:
            id_, question, responses = dro_query(record)
            where, example = groups.get(id_, (record.where, QAExample(id_, question)))
            if question != example.question:
                raise DataError(
                    f"{record.where}: the records of one query_id must ask one question; {id_!r} asks "
                    f"{question!r} here and {example.question!r} at {where}. Give them different ids."
                )
        except DataError as error:
            skipped.add(error)
            continue
        answers = dict.fromkeys(text for text in (*example.golden_answers, *responses) if text)
        groups[id_] = where, replace(example, golden_answers=tuple(answers))
    yield from groups.values()
