"""The fact tables: one TSV file per kind of entity, one line per entity, one column per relation.

The first column is the name as it stands inside a sentence ("the Nile", "oxygen"). An empty cell means that
the value is left out; several values in one cell are separated by ";". `aliases.tsv` maps a value to other
spellings that also count as correct answers.
"""

import csv
import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources

from rag.worlds.encyclopedia.relations import RELATIONS, Relation


@dataclass(frozen=True, slots=True)
class Kind:
    """Wording for the entities of one table: ids, nouns and introductions."""

    prefix: str
    """Start of every id, as in "element-oxygen"."""

    noun: str | None = None
    """What a later sentence calls the entity ("the element"); None where it repeats the name."""

    introduction: str | None = None
    """A statement of what the entity is, before or among its facts; None where the facts make it clear."""

    described: str = "{name}"
    """The entity's name in a question, with its kind where the bare name would mislead."""


KINDS: dict[str, Kind] = {
    "elements": Kind("element", "element", "{subject} is a chemical element"),
    "countries": Kind("country", "country", "{subject} is a country"),
    "us_states": Kind("state", "state", "{subject} is one of the fifty states of the United States"),
    "planets": Kind("planet", "body", "{subject} is a body of the solar system that moves around the Sun"),
    "moons": Kind("moon", "moon", "{subject} is a natural moon in the solar system", "the moon {name}"),
    "inventions": Kind("invention", introduction="The history of {subject} is well recorded"),
    "languages": Kind("language", "language", "{subject} is a programming language", "the programming language {name}"),
    "books": Kind("book", "work", "{subject} is a well-known work of literature"),
    "paintings": Kind("painting", "work", "{subject} is a famous painting that is often reproduced"),
    "museums": Kind("museum", "museum", "{subject} is a museum that is open to the public"),
    "operas": Kind("opera", "opera", "{subject} is an opera that is still performed", "the opera {name}"),
    "people": Kind("person"),
    "presidents": Kind("president", "president", "{subject} is in the list of presidents of the United States"),
    "rivers": Kind("river", "river", "{subject} is a river"),
    "mountains": Kind("mountain", "mountain", "{subject} is a mountain"),
    "landmarks": Kind("landmark", "landmark", "{subject} is a landmark that attracts many visitors"),
    "olympics": Kind("olympics", "event", "{subject} brought together athletes from many nations"),
    "instruments": Kind("instrument", "instrument", "{subject} is a musical instrument"),
}

_PROFESSIONS = {
    "architecture": "architect",
    "astronomy": "astronomer",
    "biochemistry": "biochemist",
    "biology": "biologist",
    "business": "entrepreneur",
    "chemistry": "chemist",
    "computer science": "computer scientist",
    "engineering": "engineer",
    "journalism": "journalist",
    "literature": "writer",
    "mathematics": "mathematician",
    "medicine": "physician",
    "music": "composer",
    "painting": "painter",
    "physics": "physicist",
}

# Letters that have no accent to strip but an accepted ASCII spelling.
_ASCII_LETTERS = str.maketrans({"ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "đ": "d", "œ": "oe", "Ż": "Z"})


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity with its facts, from a fact table or invented."""

    id: str
    table: str
    name: str
    noun: str | None
    facts: dict[str, tuple[str, ...]]
    """Relation name to its values; relations without a value are absent."""

    kind: Kind = field(repr=False)
    """Wording for its table."""

    wording: Mapping[str, Relation] = field(repr=False)
    """Statements and questions for its facts, by relation name."""

    @property
    def title(self) -> str:
        """The name without its article, as the title of a passage."""
        bare = without_article(self.name)
        return bare[0].upper() + bare[1:]

    @property
    def described(self) -> str:
        """The name as a question mentions it."""
        return self.kind.described.format(name=self.name)


def without_article(name: str) -> str:
    """The name without a leading lower-case "the"; "The Hobbit" is unchanged."""
    return name.removeprefix("the ")


def ascii_spelling(text: str) -> str:
    """A text without accents: "São Paulo" becomes "Sao Paulo"."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_ASCII_LETTERS))
    return decomposed.encode("ascii", "ignore").decode("ascii")


@functools.cache
def load_entities() -> tuple[Entity, ...]:
    """All entities, in the order of `KINDS` and of the lines of each table."""
    return tuple(_entity(table, cells) for table in KINDS for cells in _read_table(table))


@functools.cache
def load_aliases() -> dict[str, tuple[str, ...]]:
    """Other accepted spellings by value."""
    return {cells["name"]: _values(cells["aliases"]) for cells in _read_table("aliases")}


def _read_table(table: str) -> Iterator[dict[str, str]]:
    text = resources.files("rag.worlds.encyclopedia").joinpath(f"{table}.tsv").read_text(encoding="utf-8")
    # QUOTE_NONE: a quotation mark in a name is a character like any other.
    yield from csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)


def _entity(table: str, cells: dict[str, str]) -> Entity:
    kind, name = KINDS[table], cells["name"]
    facts = {relation: _values(cell) for relation, cell in cells.items() if relation != "name" and cell}
    noun = _PROFESSIONS[facts["field"][0]] if "field" in facts else kind.noun
    identity = f"{kind.prefix}-{_slug(name)}"
    return Entity(id=identity, table=table, name=name, noun=noun, facts=facts, kind=kind, wording=RELATIONS)


def _values(cell: str) -> tuple[str, ...]:
    return tuple(cell.split(";"))


def _slug(name: str) -> str:
    spelled = ascii_spelling(without_article(name)).replace("+", "plus").replace("#", "sharp").lower()
    return re.sub(r"[^a-z0-9]+", "-", spelled.replace("'", "")).strip("-")
