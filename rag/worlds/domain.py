"""The domain of an invented world: kinds of entities, their relations, and real values whose shape it imitates."""

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rag.worlds.encyclopedia.entities import KINDS, Kind, load_entities
from rag.worlds.encyclopedia.relations import RELATIONS, Relation


@dataclass(frozen=True, eq=False)
class Domain:
    """Kinds of entities by table, with their relations, names and values."""

    kinds: Mapping[str, Kind]
    """Wording for the entities of each table."""

    relations: Mapping[str, Relation]
    """Statements and questions for each relation."""

    names: Mapping[str, Sequence[str]]
    """Real names by table, as written inside a sentence."""

    values: Mapping[tuple[str, str], Sequence[tuple[str, ...]]]
    """Real values by table and relation: they define which table has which relation."""

    def relations_of(self, table: str) -> tuple[str, ...]:
        """The relations that entities of this table may have, sorted."""
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
