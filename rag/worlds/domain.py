"""What an invented world is about: kinds of things, their relations, and real values whose shape it imitates."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rag.worlds.encyclopedia.entities import KINDS, Kind, load_entities
from rag.worlds.encyclopedia.relations import RELATIONS, Relation


@dataclass(frozen=True, eq=False)
class Domain:
    """Kinds of things by table, and what is known about them."""

    kinds: Mapping[str, Kind]
    """How the things of each table are spoken of."""

    relations: Mapping[str, Relation]
    """How each relation is said and asked."""

    names: Mapping[str, Sequence[str]]
    """Real names by table, as they stand inside a sentence."""

    values: Mapping[tuple[str, str], Sequence[tuple[str, ...]]]
    """Real values by table and relation: which table has which relation is read from here."""

    def relations_of(self, table: str) -> tuple[str, ...]:
        """The relations that things of this table may have, sorted."""
        return self._relations_by_table[table]

    @functools.cached_property
    def _relations_by_table(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[str]] = defaultdict(list)
        for table, relation in sorted(self.values):
            found[table].append(relation)
        return {table: tuple(relations) for table, relations in found.items()}

    @functools.cached_property
    def links(self) -> tuple[tuple[str, str, str], ...]:
        """(first table, relation, second table) of every chain of two hops."""
        return tuple(
            (table, relation, target)
            for table, relation in sorted(self.values)
            for target in self.relations[relation].targets
            if self.relations[relation].link is not None
        )


@functools.cache
def encyclopedia() -> Domain:
    """The domain of the demo encyclopedia: every name and value of its tables."""
    names: dict[str, list[str]] = defaultdict(list)
    values: dict[tuple[str, str], list[tuple[str, ...]]] = defaultdict(list)
    for entity in load_entities():
        names[entity.table].append(entity.name)
        for relation, value in entity.facts.items():
            values[entity.table, relation].append(value)
    return Domain(KINDS, RELATIONS, dict(names), dict(values))
