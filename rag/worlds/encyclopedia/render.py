"""Passages and questions from the fact tables, the same for the same seed on every machine.

Every choice (which facts, which phrasing, which split, which order) follows from a hash of the entity's or the
question's id, so that adding a line to a table leaves the rest of the encyclopedia unchanged.
"""

import functools
import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypedDict

from indexes.atomic_files import write_text
from indexes.errors import UsageError
from rag.worlds.encyclopedia.entities import Entity, ascii_spelling, load_aliases, load_entities, without_article
from rag.worlds.encyclopedia.relations import RELATIONS, Relation

Split = Literal["train", "dev"]

_MIN_WORDS, _MAX_WORDS = 20, 70
_MAX_FACTS, _MAX_SENTENCES = 6, 5
# An entity with fewer facts than this always has an introduction: without one its passage would be very short.
_FACTS_WITHOUT_INTRODUCTION = 4
_MAX_ATTEMPTS = 200
_DEV_ONE_IN = 5
# Chosen so that the countries that many chains lead to (the United States, France...) are not all in one split.
_SPLIT_SALT = "split"
# A few countries are the second hop of hundreds of questions: no fact may be asked more often than this.
_MAX_CHAINS_PER_FACT = 12
# A composer of an opera works in music: a second hop that asks for the field needs no first hop.
_OBVIOUS_SECOND_HOPS = {"field"}
_UNITS = {"km": ("kilometers", "kilometres"), "m": ("meters", "metres")}


class PassageRecord(TypedDict):
    """One line of `corpus.jsonl`."""

    id: str
    title: str
    text: str


class QuestionRecord(TypedDict):
    """One line of `train.jsonl` or `dev.jsonl`."""

    id: str
    question: str
    golden_answers: list[str]
    gold_ids: list[str]
    hops: int


def passages(*, seed: int = 0) -> list[PassageRecord]:
    """One passage per entity.

    Args:
        seed: Chooses facts (where an entity has more than six), their order and their phrasings.

    Returns:
        Records whose texts have 20 to 70 words in 2 to 5 sentences that state 2 to 6 facts.
    """
    return [
        PassageRecord(id=entity.id, title=entity.title, text=_passage_text(entity, seed)) for entity in load_entities()
    ]


def questions(split: Split, *, seed: int = 0) -> list[QuestionRecord]:
    """The questions of one split, in a shuffled order that depends only on the seed.

    An entity belongs to one split, and a two-hop question needs both of its entities there: no fact and no
    entity asked about in one split is asked about in the other.

    Args:
        split: Which of the two disjoint sets of questions.
        seed: The seed of the passages that the questions are about; it also chooses phrasings and order.

    Returns:
        Records whose first golden answer stands verbatim in the last gold passage.

    Raises:
        UsageError: The split is neither "train" nor "dev".
    """
    if split not in ("train", "dev"):
        raise UsageError(f'split must be "train" or "dev", but it is {split!r}; choose one of the two.')
    entities = [entity for entity in _unique_entities() if _split(entity) == split]
    records = [*_one_hop_questions(entities, seed), *_two_hop_questions(entities, seed)]
    return sorted(records, key=lambda record: _digest("order", seed, record["id"]))


def write_encyclopedia(folder: str | Path, *, limit: int | None = None, seed: int = 0) -> dict[str, Path]:
    """Writes `corpus.jsonl`, `train.jsonl` and `dev.jsonl`.

    Args:
        folder: Where to write; created when missing, files of these names are replaced.
        limit: Keeps only this many questions of each split, the first after the shuffle; all passages stay.
        seed: The seed of the passages and questions.

    Returns:
        The written files under the keys "corpus", "train" and "dev".

    Raises:
        UsageError: The limit is not positive.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, but it is {limit}; leave it out to keep every question.")
    contents: dict[str, Sequence[Mapping[str, object]]] = {
        "corpus": passages(seed=seed),
        "train": questions("train", seed=seed)[:limit],
        "dev": questions("dev", seed=seed)[:limit],
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return {name: _write_jsonl(folder / f"{name}.jsonl", records) for name, records in contents.items()}


# Passages


def _passage_text(entity: Entity, seed: int) -> str:
    for attempt in range(_MAX_ATTEMPTS):
        rng = random.Random(_digest("passage", seed, entity.id, attempt))
        text = " ".join(sentences(entity, _stated_relations(entity, seed), rng))
        if _MIN_WORDS <= len(text.split()) <= _MAX_WORDS:
            return text
    raise RuntimeError(
        f"No rendering of {entity.id} has {_MIN_WORDS} to {_MAX_WORDS} words: change its line in the fact table."
    )


def sentences(entity: Entity, relations: Iterable[str], rng: random.Random) -> list[str]:
    """Two to five sentences that state the given facts of an entity, in a random order and wording."""
    relations = list(relations)
    rng.shuffle(relations)
    introduction = entity.kind.introduction
    short = len(relations) < _FACTS_WITHOUT_INTRODUCTION
    opening = [introduction] if introduction is not None and (short or rng.random() < 0.5) else []
    groups = _grouped(relations, _MAX_SENTENCES - len(opening), rng)
    mentions = _mentions(entity, rng)
    opened = [_sentence([template.format(subject=next(mentions))]) for template in opening]
    return opened + [_sentence(_clauses(entity, group, mentions, rng)) for group in groups]


def _grouped(relations: list[str], room: int, rng: random.Random) -> list[list[str]]:
    """Splits facts into at most `room` sentences of one or two facts each, never fewer than two sentences."""
    fewest = max(2, (len(relations) + 1) // 2)
    wanted = rng.randint(fewest, max(fewest, min(room, len(relations))))
    paired = max(0, len(relations) - wanted)
    sizes = [2] * paired + [1] * (len(relations) - 2 * paired)
    rng.shuffle(sizes)
    remaining = iter(relations)
    return [[next(remaining) for _ in range(size)] for size in sizes]


def _mentions(entity: Entity, rng: random.Random) -> Iterator[str]:
    """Yields the name first, then mostly "the river" or the like."""
    yield entity.name
    while True:
        repeat = entity.noun is None or rng.random() < 0.25
        yield entity.name if repeat else f"the {entity.noun}"


def _clauses(entity: Entity, group: list[str], mentions: Iterator[str], rng: random.Random) -> list[str]:
    clauses = []
    for position, relation in enumerate(group):
        template = rng.choice(entity.wording[relation].statements).removesuffix(".")
        if position > 0:
            template = template[0].lower() + template[1:]
        clauses.append(template.format(subject=next(mentions), object=joined_values(entity.facts[relation])))
    return clauses


def _sentence(clauses: list[str]) -> str:
    text = ", and ".join(clauses)
    # "Washington, D.C." brings its own full stop.
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _stated_relations(entity: Entity, seed: int) -> list[str]:
    """The relations that the passage states: all of them, or a choice of six."""
    by_hash = sorted(entity.facts, key=lambda relation: _digest("facts", seed, entity.id, relation))
    return by_hash[:_MAX_FACTS]


def joined_values(values: tuple[str, ...]) -> str:
    """Joins values as a sentence does: "A, B and C"."""
    *rest, last = values
    return f"{', '.join(rest)} and {last}" if rest else last


# Questions


def _one_hop_questions(entities: Iterable[Entity], seed: int) -> Iterator[QuestionRecord]:
    for entity in entities:
        for relation in _stated_relations(entity, seed):
            answers = golden_answers(entity.facts[relation])
            identity = f"{entity.id}-{relation.replace('_', '-')}"
            question = choose_phrasing(RELATIONS[relation].questions, entity.described, answers, f"{seed} {identity}")
            if question is not None:
                yield QuestionRecord(
                    id=identity, question=question, golden_answers=answers, gold_ids=[entity.id], hops=1
                )


def _two_hop_questions(entities: Sequence[Entity], seed: int) -> Iterator[QuestionRecord]:
    by_place = {(entity.table, entity.name): entity for entity in entities}
    by_fact: dict[tuple[str, str], list[QuestionRecord]] = defaultdict(list)
    for first in entities:
        for relation in _stated_relations(first, seed):
            second = _linked_entity(RELATIONS[relation], first.facts[relation], by_place)
            if second is not None:
                for asked, record in _chains(first, relation, second, seed):
                    by_fact[second.id, asked].append(record)
    for records in by_fact.values():
        yield from sorted(records, key=lambda record: _digest("chain", seed, record["id"]))[:_MAX_CHAINS_PER_FACT]


def _linked_entity(
    relation: Relation, values: tuple[str, ...], by_place: Mapping[tuple[str, str], Entity]
) -> Entity | None:
    """The only entity of the target tables whose name is the only value of the fact; None where there is none."""
    found = [by_place[table, values[0]] for table in relation.targets if (table, values[0]) in by_place]
    return found[0] if len(values) == 1 and len(found) == 1 else None


def _chains(first: Entity, relation: str, second: Entity, seed: int) -> Iterator[tuple[str, QuestionRecord]]:
    """Yields each relation asked of the second entity with the question that reaches it through the first."""
    link = RELATIONS[relation].link
    if link is None:
        return
    subject = link.format(subject=first.described, kind=second.noun)
    if contains_answer([second.title], subject):
        return
    for asked in _stated_relations(second, seed):
        answers = golden_answers(second.facts[asked])
        identity = f"{first.id}-{relation}-{asked}".replace("_", "-")
        question = choose_phrasing(
            for_long_subjects(RELATIONS[asked].questions), subject, answers, f"{seed} {identity}"
        )
        if question is not None and asked not in _OBVIOUS_SECOND_HOPS:
            gold_ids = [first.id, second.id]
            yield (
                asked,
                QuestionRecord(id=identity, question=question, golden_answers=answers, gold_ids=gold_ids, hops=2),
            )


def for_long_subjects(phrasings: tuple[str, ...]) -> tuple[str, ...]:
    """Prefers phrasings that end with the subject: a clause in the middle is hard to read."""
    ending = tuple(phrasing for phrasing in phrasings if phrasing.endswith("{subject}?"))
    return ending if len(ending) >= 2 else phrasings


def choose_phrasing(phrasings: tuple[str, ...], subject: str, answers: list[str], key: str) -> str | None:
    """The first phrasing, in the order of the key's hash, that does not contain an answer."""
    for phrasing in sorted(phrasings, key=lambda phrasing: _digest("question", key, phrasing)):
        question = phrasing.format(subject=subject)
        if not contains_answer(answers, question):
            return question
    return None


def contains_answer(answers: Iterable[str], question: str) -> bool:
    """Whether a question contains one of its answers, as whole words."""
    return any(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", question, re.IGNORECASE) for answer in answers)


def golden_answers(values: tuple[str, ...]) -> list[str]:
    """The value as the passage spells it, then its other spellings; any member of a list is right too."""
    spellings = [joined_values(values), joined_values(values[::-1]), *values]
    bare = [without_article(spelling) for spelling in spellings]
    aliases = [alias for spelling in bare for alias in load_aliases().get(spelling, ())]
    measured = [other for spelling in bare for other in _other_measures(spelling)]
    known = [*bare, *aliases, *measured]
    return list(dict.fromkeys([*known, *map(ascii_spelling, known)]))


def _other_measures(value: str) -> list[str]:
    """Other ways to write "6,650 km"."""
    match = re.fullmatch(r"([\d,]+) (km|m)", value)
    if match is None:
        return []
    number, unit = match.groups()
    words = [f"{number} {word}" for word in _UNITS[unit]]
    return [f"{number.replace(',', '')} {unit}", *words, number, number.replace(",", "")]


# Entities, splits and hashes


@functools.cache
def _unique_entities() -> tuple[Entity, ...]:
    """The entities whose name no other entity has: only questions about them are unambiguous."""
    counts = Counter(entity.title.casefold() for entity in load_entities())
    return tuple(entity for entity in load_entities() if counts[entity.title.casefold()] == 1)


def _split(entity: Entity) -> Split:
    return "dev" if _digest(_SPLIT_SALT, entity.id) % _DEV_ONE_IN == 0 else "train"


def _digest(*parts: str | int) -> int:
    """A hash that is the same in every process, unlike `hash`."""
    joined = "\x1f".join(map(str, parts)).encode("utf-8")
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "big")


def _write_jsonl(path: Path, records: Iterable[Mapping[str, object]]) -> Path:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_text(path, "".join(lines))
    return path
