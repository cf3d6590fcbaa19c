"""``id_aliases.json`` of 2WikiMultihopQA: further names of the answers, in the folder of the question file."""

import logging
from collections.abc import Iterator
from pathlib import Path

from indexes.records.formats import read_json_lines
from indexes.records.record import BrokenRecord, Record
from training.questions.example_fields import answer_texts

logger = logging.getLogger(__name__)

ALIASES_FILE = "id_aliases.json"


class Aliases:
    """Further names of the answers, read when the first question could have some."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._names: dict[str, list[str]] | None = None

    def read_for(self, record: Record) -> None:
        """Read the file if it exists, was not read yet, and is needed for this record.

        Raises:
            DataError: The file is broken; it belongs to all questions, so this is no error of one record.
        """
        if self._names is None and self._file is not None and isinstance(record.fields.get("answer_id"), str):
            self._names = dict(_entries(self._file)) if self._file.is_file() else {}
            if self._names:
                logger.info("%d answers have further names in %s.", len(self._names), self._file)

    def of(self, answer_id: object) -> list[str]:
        """Aliases and demonyms of an entity of Wikidata; empty where the file has none or does not exist."""
        return (self._names or {}).get(answer_id, []) if isinstance(answer_id, str) else []


def _entries(file: Path) -> Iterator[tuple[str, list[str]]]:
    for record in read_json_lines(file, str(file)):
        if isinstance(record, BrokenRecord):
            raise record.error
        names = [record.fields.get(field) or [] for field in ("aliases", "demonyms")]
        yield str(record.fields.get("Q_id")), list(answer_texts(names, record.where))
