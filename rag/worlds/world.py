"""An invented world in plain English: passages, questions and distractors, reproducible by seed.

It is a domain (by default the demo encyclopedia) in which every name, word and number is replaced by an invented one. A
fact keeps its relation, its wording and the *shape* of a real value ("6,650 km" may become "2,914 km", "the Nile" may
become "the Brost"). As nothing real is left, a model can answer questions about this world only by reading its
passages, and answering about the encyclopedia is a held-out test of reading.

What makes questions hard, in the order of `Cluster.passages`:

- the passage of the asked entity, which may also state an outdated value ("until 1954 ..., since then ...");
- a second passage of the same entity with its other facts;
- entities of similar names that state the same relation;
- for two-hop questions, the passage of the entity that the first one leads to, and an entity similar to that.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indexes.atomic_files import write_text
from indexes.corpora.passage import Passage
from indexes.errors import UsageError
from rag.worlds.domain import Domain, encyclopedia
from rag.worlds.encyclopedia.entities import Entity
from rag.worlds.encyclopedia.render import (
    choose_phrasing,
    contains_answer,
    for_long_subjects,
    golden_answers,
    joined_values,
    sentences,
)

_ONSETS = "b c d f g h j k l m n p r s t v w z".split()
_CLUSTERS = "bl br ch cl cr dr fl fr gl gr kl kr ph pl pr qu sc sh sk sl sn st str th tr y".split()
_VOWELS = "a e i o u".split()
_DIPHTHONGS = "ai au ea ee ei ia ie io oa ou ue y é ö á".split()
_CODAS = "b ck d f g l ld ll m nd ng nt n n p r r rd rk rn rt s s sh ss st t th x z".split()
EPITHETS = ("New", "Old", "Upper", "Lower", "North", "South", "Great", "Little", "First", "Second", "Saint", "Royal")
_FACTS = (2, 3, 3, 4, 4, 5, 6)
_OUTDATED = (
    "Until {year} it was said that {old}, but since then it is known that {new}.",
    "Before {year} it was held that {old}; since then {new}.",
    "Older books say that {old}. Since {year} it is accepted that {new}.",
    "It was long thought that {old}, while today {new}.",
)
# Words that carry the grammar or the kind of a value, not the fact.
_GRAMMAR = frozenset(
    "of the and for a an in into that to de von van der du la le km m family party sea ocean river mount lake greek "
    "roman word god goddess summer winter olympics".split()
)
_WORD = re.compile(r"[^\W\d_]+|\d+")


@dataclass(frozen=True)
class Question:
    """A question, every accepted answer (the first as the passage spells it) and the ids of its gold passages."""

    question: str
    golden_answers: list[str]
    gold_ids: list[str]

    @property
    def hops(self) -> int:
        """Number of passages that an answer needs."""
        return len(self.gold_ids)


@dataclass(frozen=True)
class Cluster:
    """Entities that are easily confused, their passages, and questions about each of them."""

    passages: list[Passage] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)


# -- names and values ------------------------------------------------------------------------------------------


def syllable(rng: random.Random) -> str:
    """One pronounceable syllable."""
    onset = rng.choice(_ONSETS if rng.random() < 0.75 else _CLUSTERS) if rng.random() < 0.9 else ""
    vowel = rng.choice(_VOWELS if rng.random() < 0.85 else _DIPHTHONGS)
    return onset + vowel + (rng.choice(_CODAS) if rng.random() < 0.4 else "")


def word(rng: random.Random) -> str:
    """One to four syllables and at least two letters, lower case."""
    text = "".join(syllable(rng) for _ in range(rng.choice((1, 2, 2, 2, 3, 3, 4))))
    return text if len(text) > 1 else text + syllable(rng)


def invented(value: str, rng: random.Random) -> str:
    """`value` with its words and numbers replaced by invented ones of the same shape.

    Args:
        value: Any real value, such as "Henry Cavendish" or "8,849 m".
        rng: Source of every choice.
    """
    keep_common = rng.random() < 0.5
    text = _WORD.sub(lambda match: _replaced(match.group(), rng, keep_common), value)
    if text == value and value.lower() != value:  # "La traviata" is a name, though all its words are common
        return _WORD.sub(lambda match: _replaced(match.group(), rng, False), value)
    return text


def _replaced(part: str, rng: random.Random, keep_common: bool) -> str:
    if part.isdigit():
        if len(part) == 4:
            return str(rng.randint(1000, 2024))
        return str(rng.randint(1, 9)) + "".join(str(rng.randint(0, 9)) for _ in part[1:])
    if part.lower() in _GRAMMAR or (part.islower() and (keep_common or len(part) == 1)):
        return part
    if part.isupper():
        return "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in part)
    return word(rng) if part.islower() else word(rng).capitalize()


def similar(name: str, rng: random.Random) -> str:
    """A name that is easily confused with `name`: another epithet, or one word replaced in whole or in part."""
    if rng.random() < 0.45:
        return _with_epithet(name, rng)
    words = [m for m in _WORD.finditer(name) if m.group().lower() not in _GRAMMAR and len(m.group()) > 2]
    if not words:  # no word that can be replaced
        return f"{name} {word(rng).capitalize()}"
    chosen = rng.choice(words)
    text = chosen.group()
    if text.isdigit():
        other = _replaced(text, rng, False)
    else:
        keep = 0 if len(words) > 1 and rng.random() < 0.7 else max(2, len(text) // 2)
        other = text[:keep] + word(rng) if keep else word(rng)
        other = other[0].upper() + other[1:] if text[0].isupper() else other
    return name[: chosen.start()] + other + name[chosen.end() :]


def _with_epithet(name: str, rng: random.Random) -> str:
    """From "the Nile" to "the Upper Nile", from "the Upper Nile" to "the Nile" or "the Little Nile"."""
    article = "the " if name.startswith("the ") else ""
    bare = name.removeprefix("the ")
    first, _, rest = bare.partition(" ")
    old, bare = (first, rest) if first in EPITHETS and rest else ("", bare)
    new = rng.choice([e for e in (*EPITHETS, "", "") if e != old])
    return article + (f"{new} {bare}" if new else bare)


# -- entities and passages -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InventedEntity(Entity):
    """An entity with the domain that its name and values imitate."""

    domain: Domain = field(repr=False)


def invent_entity(
    rng: random.Random,
    table: str,
    *,
    name: str | None = None,
    need: Iterable[str] = (),
    domain: Domain | None = None,
) -> InventedEntity:
    """An entity of `table` with two to six facts (or as many as its table has relations).

    Args:
        rng: Source of every choice.
        table: One of the domain's `kinds`.
        name: Its name; None invents one.
        need: Relations that it must have.
        domain: What it is taken from; None: the demo encyclopedia.
    """
    domain = domain or encyclopedia()
    if name is None:
        real = name = rng.choice(domain.names[table])
        while name == real:
            name = invented(real, rng)
    need = tuple(need)
    others = [r for r in domain.relations_of(table) if r not in need]
    count = min(max(rng.choice(_FACTS), len(need)), len(others) + len(need))
    chosen = [*need, *rng.sample(others, count - len(need))]
    facts = {r: tuple(invented(v, rng) for v in rng.choice(domain.values[table, r])) for r in chosen}
    kind, identity = domain.kinds[table], f"e{rng.getrandbits(48):012x}"
    return InventedEntity(identity, table, name, kind.noun, facts, kind, domain.relations, domain=domain)


def _any_entity(rng: random.Random, domain: Domain) -> InventedEntity:
    return invent_entity(rng, rng.choice(sorted(domain.kinds)), domain=domain)


def describe(
    entity: InventedEntity, relations: Iterable[str], rng: random.Random, *, outdated: str | None = None, part: int = 0
) -> Passage:
    """The passage that states these facts of an entity.

    Args:
        entity: What it is about.
        relations: Which facts.
        rng: Source of every choice.
        outdated: A relation among them whose former value is stated as well.
        part: Number of the passage among those of the entity.
    """
    current = [r for r in relations if r != outdated]
    lines = sentences(entity, current, rng) if current else []
    if outdated is not None:
        lines.insert(rng.randint(min(1, len(lines)), len(lines)), _outdated_sentence(entity, outdated, rng))
    return Passage(f"{entity.id}-{part}", entity.title, " ".join(lines))


def _outdated_sentence(entity: InventedEntity, relation: str, rng: random.Random) -> str:
    former = tuple(invented(v, rng) for v in rng.choice(entity.domain.values[entity.table, relation]))
    old, new = (_clause(entity, relation, v, rng) for v in (former, entity.facts[relation]))
    text = rng.choice(_OUTDATED).format(year=rng.randint(1700, 2020), old=old, new=new)
    return text.replace("..", ".")


def _clause(entity: Entity, relation: str, values: tuple[str, ...], rng: random.Random) -> str:
    template = rng.choice(entity.wording[relation].statements).removesuffix(".")
    if not template.startswith("{"):
        template = template[0].lower() + template[1:]
    return template.format(subject=entity.name, object=joined_values(values))


# -- clusters --------------------------------------------------------------------------------------------------


def invent_cluster(
    rng: random.Random,
    *,
    hops: int = 1,
    similar_names: int = 3,
    outdated: float = 0.15,
    domain: Domain | None = None,
) -> Cluster:
    """A few entities that are easily confused, and questions about all of them.

    Args:
        rng: Source of every choice.
        hops: 1, or 2 for questions that lead through a second entity.
        similar_names: Entities of similar names.
        outdated: Probability that a passage also states a former value.
        domain: What the entities are taken from; None: the demo encyclopedia.

    Raises:
        UsageError: Neither one nor two hops.
    """
    if hops not in (1, 2):
        raise UsageError(f"hops must be 1 or 2, but got {hops}.")
    invent = _one_hop if hops == 1 else _two_hop
    return invent(rng, similar_names, outdated, domain or encyclopedia())


def _one_hop(rng: random.Random, similar_names: int, outdated: float, domain: Domain) -> Cluster:
    cluster = Cluster()
    for entity in _family(_any_entity(rng, domain), similar_names, rng):
        passages, owner = _entity_passages(entity, rng, outdated)
        asked = (_question(entity.described, entity, r, [gold], rng) for r, gold in owner.items())
        cluster.passages.extend(passages)
        cluster.questions.extend(q for q in asked if q)
    return cluster


def _two_hop(rng: random.Random, similar_names: int, outdated: float, domain: Domain) -> Cluster:
    table, relation, target = rng.choice(domain.links)
    half = similar_names // 2
    firsts = _family(invent_entity(rng, table, need=[relation], domain=domain), similar_names - half, rng)
    seconds = _family(invent_entity(rng, target, domain=domain), half, rng)
    cluster = Cluster()
    for first, second in zip(firsts, seconds, strict=False):
        first.facts[relation] = (second.name,)
        passages, owner = _entity_passages(first, rng, outdated)
        more, owner_of_second = _entity_passages(second, rng, outdated)
        cluster.passages.extend([*passages, *more])
        cluster.questions.extend(_chained(first, second, relation, owner[relation], owner_of_second, rng))
    for unlinked in firsts[len(seconds) :]:
        cluster.passages.extend(_entity_passages(unlinked, rng, outdated)[0])
    return cluster


def _chained(
    first: Entity, second: Entity, relation: str, first_gold: str, owner: dict[str, str], rng: random.Random
) -> Iterator[Question]:
    """Questions about `second`, which is named only as the `relation` of `first`."""
    link = first.wording[relation].link
    assert link is not None
    subject = link.format(subject=first.described, kind=second.noun)
    for asked, gold in owner.items():
        if contains_answer([second.title], subject):
            continue
        if question := _question(subject, second, asked, [first_gold, gold], rng, long=True):
            yield question


def _entity_passages(
    entity: InventedEntity, rng: random.Random, outdated: float
) -> tuple[list[Passage], dict[str, str]]:
    """The passages of one entity (its facts may be split over several), and which of them states which fact."""
    relations = list(entity.facts)
    rng.shuffle(relations)
    count = len(relations) // 2 if rng.random() < 0.7 else 1
    parts = [relations[i::count] for i in range(count)] if count > 1 else [relations]
    passages = [
        describe(entity, part, rng, outdated=rng.choice(part) if rng.random() < outdated else None, part=i)
        for i, part in enumerate(parts)
    ]
    return passages, {r: p.id for part, p in zip(parts, passages, strict=True) for r in part}


def _family(first: InventedEntity, similar_names: int, rng: random.Random) -> list[InventedEntity]:
    """Entities of similar names with mostly the same relations and values of their own, in random order.

    All names are derived from the first, so the order must be random: if questions were about the first only, a reader
    could find it without the question, as the one that all others resemble.
    """
    family = [first]
    names = {first.title.casefold()}
    while len(family) <= similar_names:
        name = similar(first.name, rng)
        need = [r for r in first.facts if rng.random() < 0.9]
        entity = invent_entity(rng, first.table, name=name, need=need, domain=first.domain)
        if entity.title.casefold() not in names:
            names.add(entity.title.casefold())
            family.append(entity)
    rng.shuffle(family)
    return family


def _question(
    subject: str, entity: Entity, relation: str, gold_ids: list[str], rng: random.Random, *, long: bool = False
) -> Question | None:
    phrasings = entity.wording[relation].questions
    answers = golden_answers(entity.facts[relation])
    question = choose_phrasing(for_long_subjects(phrasings) if long else phrasings, subject, answers, str(rng.random()))
    return None if question is None else Question(question, answers, gold_ids)


# -- reading items and the world on disk -----------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One question with the passages to read."""

    question: Question
    passages: list[Passage]


def reading_item(
    rng: random.Random,
    num_passages: int,
    *,
    hops: int = 1,
    hardness: float = 1.0,
    outdated: float = 0.15,
    domain: Domain | None = None,
) -> Item:
    """One question, its gold passages and distractors, in random order.

    Args:
        rng: Source of every choice.
        num_passages: How many passages; at least `hops`.
        hops: 1 or 2.
        hardness: Share of hard distractors (of the same cluster); the others are about anything.
        outdated: Probability that a passage also states a former value.
        domain: What the passages are about; None: the demo encyclopedia.

    Raises:
        UsageError: Fewer passages than hops.
    """
    if num_passages < hops:
        raise UsageError(f"A question of {hops} hops needs at least {hops} passages; num_passages is {num_passages}.")
    domain = domain or encyclopedia()
    while True:
        cluster = invent_cluster(rng, hops=hops, similar_names=num_passages - hops, outdated=outdated, domain=domain)
        if cluster.questions:
            break
    question = rng.choice(cluster.questions)
    gold = [p for p in cluster.passages if p.id in question.gold_ids]
    hard = [p for p in cluster.passages if p.id not in question.gold_ids]
    rng.shuffle(hard)
    chosen = [
        hard.pop() if hard and rng.random() < hardness else _random_passage(rng, domain)
        for _ in range(num_passages - hops)
    ]
    passages = gold + chosen
    rng.shuffle(passages)
    return Item(question, passages)


def _random_passage(rng: random.Random, domain: Domain) -> Passage:
    entity = _any_entity(rng, domain)
    return describe(entity, entity.facts, rng)


def ranking(item: Item) -> list[int]:
    """Positions of the passages, most useful first: gold in reading order, then shared titles, then the rest."""
    gold = item.question.gold_ids
    titles = {p.title for p in item.passages if p.id in gold}

    def key(position: int) -> tuple[int, int]:
        passage = item.passages[position]
        if passage.id in gold:
            return 0, gold.index(passage.id)
        return (1, position) if passage.title in titles else (2, position)

    return sorted(range(len(item.passages)), key=key)


def write_world(
    folder: str | Path,
    *,
    seed: int = 0,
    train_questions: int = 2000,
    dev_questions: int = 300,
    two_hop: float = 0.15,
    similar_names: int = 12,
    domain: Domain | None = None,
) -> dict[str, Path]:
    """Write `corpus.jsonl`, `train.jsonl` and `dev.jsonl` of one world.

    The questions of train and dev are about different clusters, over one corpus.

    Args:
        folder: Where to write; created when missing.
        seed: The world's seed.
        train_questions: Questions to train on.
        dev_questions: Held-out questions.
        two_hop: Share of clusters whose questions need two passages.
        similar_names: Entities of similar names in each cluster.
        domain: What it is about; None: the demo encyclopedia.

    Returns:
        The written files under the keys "corpus", "train" and "dev".

    Raises:
        UsageError: A number of questions is not positive.
    """
    if min(train_questions, dev_questions) < 1:
        raise UsageError(
            f"A world needs questions in both splits, but got train_questions={train_questions} and "
            f"dev_questions={dev_questions}."
        )
    rng = random.Random(seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    corpus: list[dict[str, object]] = []
    records = {"corpus": corpus}
    clusters = _clusters(rng, two_hop, similar_names, domain or encyclopedia())
    for split, count in (("train", train_questions), ("dev", dev_questions)):
        records[split] = []
        for cluster in clusters:
            corpus.extend({"id": p.id, "title": p.title, "text": p.text} for p in cluster.passages)
            records[split] += [
                _record(q, f"{split}-{len(records[split]) + i}") for i, q in enumerate(_sampled_questions(cluster, rng))
            ]
            if len(records[split]) >= count:
                break
        del records[split][count:]
        rng.shuffle(records[split])
    rng.shuffle(corpus)
    return {name: _write(folder / f"{name}.jsonl", lines) for name, lines in records.items()}


def _clusters(rng: random.Random, two_hop: float, similar_names: int, domain: Domain) -> Iterator[Cluster]:
    """Endless clusters that share no title, since a question about a shared one would have two answers."""
    taken: set[str] = set()
    while True:
        hops = 2 if rng.random() < two_hop else 1
        cluster = invent_cluster(rng, hops=hops, similar_names=similar_names, domain=domain)
        titles = {p.title.casefold() for p in cluster.passages}
        if cluster.questions and not titles & taken:
            taken |= titles
            yield cluster


def _sampled_questions(cluster: Cluster, rng: random.Random, most: int = 3) -> list[Question]:
    return rng.sample(cluster.questions, min(most, len(cluster.questions)))


def _record(question: Question, id: str) -> dict[str, object]:
    return {
        "id": id,
        "question": question.question,
        "golden_answers": question.golden_answers,
        "gold_ids": question.gold_ids,
        "hops": question.hops,
    }


def _write(path: Path, records: Sequence[dict[str, object]]) -> Path:
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    return path
