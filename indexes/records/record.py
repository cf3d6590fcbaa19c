"""Records: the raw entries of files, folders and datasets, each with its place, before anything is made of them."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from indexes.errors import DataError

ID_FIELDS = ("id", "_id")
"""Fields that hold the id of a record; files of BEIR and HotpotQA have the second."""


class Place(NamedTuple):
    """Where a record is found.

    Attributes:
        source: The file, folder, address or dataset.
        unit: What `number` counts: lines from 1, records of a table or an array from 0; a file is named by its path.
        number: The line, the record, or the path.
        inside: What leads from there to a record that stands inside another one ("paragraph 0, question 1").
    """

    source: str
    unit: Literal["line", "record", "file"]
    number: int | str
    inside: str = ""

    def __str__(self) -> str:
        """How messages begin: ``file:line``, ``source, record 3``, or the path of the file."""
        if self.unit == "line":
            place = f"{self.source}:{self.number}"
        elif self.unit == "record":
            place = f"{self.source}, record {self.number}"
        else:
            # The source is the folder, or the file itself.
            place = self.source if self.source.endswith(str(self.number)) else f"{self.source}/{self.number}"
        return f"{place}, {self.inside}" if self.inside else place

    def within(self, inside: str) -> "Place":
        """The place of a record inside the one that stands here."""
        return self._replace(inside=f"{self.inside}, {inside}" if self.inside else inside)


class Record(NamedTuple):
    """The fields found at one place.

    Attributes:
        place: Where the record is found.
        fields: Names and values.
        content: Its text as the file has it, where it is text.
        position: Its number in the stream, from 0 (see `numbered`): the id of a record that has none.
    """

    place: Place
    fields: Mapping[str, Any]
    content: str | None = None
    position: int = 0

    @property
    def where(self) -> str:
        """The place as messages begin with it."""
        return str(self.place)


class BrokenRecord(NamedTuple):
    """A place whose fields cannot be read, and why. It is part of the stream, so that the caller may leave it out."""

    place: Place
    error: DataError
    content: str | None = None


RecordStream: TypeAlias = Iterator[Record | BrokenRecord]


def numbered(records: RecordStream) -> RecordStream:
    """The records with their positions in the stream; broken ones are counted as well."""
    for position, record in enumerate(records):
        yield record if isinstance(record, BrokenRecord) else record._replace(position=position)
