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
| PopQA | records | `id, question, possible_answers`, a JSON list as text | none |
| TriviaQA | records | `question_id, question, answer` > `value, aliases` | none |
| BoolQ, StrategyQA | records | `question, answer`, true or false; BoolQ also `passage` | its passage |
| ARC, OpenBookQA, CommonsenseQA | records | `question` or `question_stem`, `choices`, `answerKey` | none |
| MMLU | records | `question, choices, answer`, a position from 0 | none |
| DRO authors | JSON array | `prompt, response, sample_id, query_id, probs`, one record per sampled response | none |

All may be gzipped, and records exported by `datasets` (Parquet, Arrow, JSONL, a saved folder, a `Dataset`) are read
like the files they were made from. Container and format are recognised by content, never by a file's name. `answers` or
`answer` may stand for `golden_answers`; `answer_aliases` and `aliases` are added to them, and so are the names that
`id_aliases.json` of 2WikiMultihopQA has for the `answer_id`. A record's own `gold_ids` win over what
its format says. The ids of passages inside question files are those of `indexes.records.question_files`,
so a corpus read from the same file has them. Whole numbers that a table keeps as floats are restored
(`indexes.records.whole_numbers`). docs/formats.md has the details, and `QUESTION_FORMATS` takes further formats.
"""

import gzip
import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import datasets

from indexes.atomic_files import write_file
from indexes.errors import DataError, UsageError, check_on_error
from indexes.records.delimited import Quoting
from indexes.records.record import BrokenRecord, Record, RecordStream
from indexes.records.whole_numbers import restore_whole_numbers
from training.questions.example import QAExample
from training.questions.question_formats import question_format_of
from training.questions.question_sources import open_records
from training.questions.readers import NUMBER_NAMES

logger = logging.getLogger(__name__)

_SHOWN = 20  # broken records that are logged one by one


class QuestionFile(NamedTuple):
    """The questions of a file, and the errors of the records that were left out."""

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
    """Read a question file in any of the formats above, or a `datasets.Dataset`.

    Records without an id are numbered from 0; those of DPR, which has none, are named by their content. In the
    DRO authors' format the records of one `query_id` become one example with every response as a golden answer;
    `probs` and `sample_id` are not read. MuSiQue-Full asks every question twice under one id: the id of the one without
    an answer is followed by `~unanswerable`.

    Args:
        path_or_dataset: A file (gzip is recognised by content), BEIR's folder or zip, a folder saved by `datasets`, or
            a dataset of question records.
        require_answers: Refuse questions without any golden answer, as training must; an unanswerable question has
            none.
        allow_unanswerable: With `require_answers`, accept questions that the file marks as unanswerable, as an
            evaluation does, for which the right behaviour is known.
        limit: Keep this many questions from the beginning; the rest is not checked, and of JSON arrays and lines not
            read.
        split: The split of a BEIR dataset (`qrels/SPLIT.tsv`) or of a saved dataset; needed where there are several.
        quoting: Whether double quotes enclose fields in DPR's delimited text and BEIR's judgements: `"csv"`, `"none"`,
            or `"auto"` by content, as in `Corpus.from_file`.
        on_error: What happens to a broken record: `"raise"` stops, `"skip"` leaves it out with a warning (the first
            twenty one by one, then their number). A file that cannot be read as a whole (invalid JSON documents,
            truncated archives) is raised either way.
        ignore_identical_ids: Whether the passage with the id of the question is not retrieved for it, as in datasets
            whose questions are passages of the corpus. None is as the file says: true in BEIR's files (as in BEIR's own
            evaluation), in others only where `write_examples` wrote it.

    Raises:
        DataError: A missing or empty file, a broken record, an unknown format, an empty question, an id that
            occurs twice, or (with `require_answers`) questions without an answer.
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
    """As `load_examples`, and the errors of the records that were left out."""
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, got {limit}. Leave it out to read every question.")
    check_on_error(on_error)
    name = _name(path_or_dataset)
    skipped = _Skipped(name, on_error == "skip")
    source = None if isinstance(path_or_dataset, datasets.Dataset) else Path(path_or_dataset)
    records = restore_whole_numbers(lambda: open_records(path_or_dataset, split, quoting=quoting), NUMBER_NAMES)
    found = _examples(records, source, name, skipped)
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


def write_examples(examples: Iterable[QAExample], path: str | Path) -> None:
    """Write JSONL in FlashRAG's fields plus `gold_ids`, gzipped when the name ends in `.gz`.

    The file is replaced atomically, and the same examples always give the same bytes.
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
    """The golden answer that one round trains on: uniform over the golden answers, fixed by (seed, round, id).

    The draw is a hash of the three, so it depends neither on the order of the file nor on the other questions.

    Raises:
        DataError: The example has no golden answer.
    """
    if not example.golden_answers:
        raise DataError(
            f"A training question must have a golden answer, got none for question {example.id!r}. Add one or leave "
            "the question out (load_examples(..., require_answers=True) finds them all)."
        )
    # Not Python's hash(), which has another salt in every process.
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
    marked = sum(example.unanswerable for example in missing)
    unanswerable = f" ({marked} of them marked as unanswerable)" if marked else ""
    raise DataError(
        f"{name}: every question must have a golden answer, got none for {len(missing)} of "
        f"{len(examples)}{unanswerable}, first {missing[0].id!r}. Add golden_answers or remove them."
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
                f"{self._name}: a question file must hold at least one question, got {len(self.errors)} broken records "
                f"and no other. The first: {self.errors[0]}"
            ) from self.errors[0]
        if len(self.errors) > _SHOWN:
            logger.warning("Left out: %d records of %s in all.", len(self.errors), self._name)


# ----------------------------------------------------------------------------------------------------
# Records -> examples
# ----------------------------------------------------------------------------------------------------


def _examples(records: RecordStream, source: Path | None, name: str, skipped: _Skipped) -> Iterator[QAExample]:
    valid = _valid(records, skipped)
    first = next(valid, None)
    if first is None:
        if skipped.errors:
            return iter(())
        raise DataError(f"{name}: a question file must hold at least one question, got none. Check the file.")
    question_format = question_format_of(first)(source)
    return _unique(question_format.examples(itertools.chain([first], valid), skipped.add), skipped)


def _valid(records: RecordStream, skipped: _Skipped) -> Iterator[Record]:
    for record in records:
        if isinstance(record, BrokenRecord):
            skipped.add(record.error)
        else:
            yield record


def _unique(examples: Iterable[tuple[str, QAExample]], skipped: _Skipped) -> Iterator[QAExample]:
    places: dict[str, str] = {}
    for where, example in examples:
        if example.id in places:
            skipped.add(
                DataError(
                    f"{where}: every question must have an id of its own, got {example.id!r}, which is also the id at "
                    f"{places[example.id]}. Rename or delete one of the two."
                )
            )
            continue
        places[example.id] = where
        yield example
