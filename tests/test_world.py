"""The invented world: readable, unambiguous, hard on purpose, the same for the same seed, and free of real facts."""

import json
import random
import re
from difflib import SequenceMatcher
from pathlib import Path

import pytest

from indexes.errors import UsageError
from rag.worlds import world
from rag.worlds.domain import Domain, encyclopedia
from rag.worlds.encyclopedia.entities import load_entities
from rag.worlds.unseen_domain import UNSEEN
from rag.worlds.world import (
    describe,
    invent_cluster,
    invent_entity,
    invented,
    ranking,
    reading_item,
    similar,
    write_world,
)


def rows(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_world(tmp_path_factory.mktemp("world"), seed=3, train_questions=150, dev_questions=60)


class TestInvented:
    def test_numbers_keep_their_shape(self) -> None:
        for seed in range(50):
            assert re.fullmatch(r"[1-9],\d{3} km", invented("6,650 km", random.Random(seed)))
            assert 1000 <= int(invented("1766", random.Random(seed))) <= 2024

    def test_names_keep_articles_particles_and_case(self) -> None:
        for seed in range(50):
            assert re.fullmatch(
                r"the [A-ZÉÖÁ][a-zéöá]* of [A-ZÉÖÁ][a-zéöá]*", invented("the Tale of Genji", random.Random(seed))
            )

    def test_no_word_of_a_real_name_is_kept(self) -> None:
        rng = random.Random(0)
        names = [e.name for e in load_entities() if len(e.name) > 6 and e.name[0].isupper()]
        kept = [
            n
            for n in names
            for w in re.findall(r"[A-Z]\w{4,}", n)
            if w in invented(n, rng) and w.lower() not in world._GRAMMAR
        ]
        assert kept == []

    @pytest.mark.parametrize("name", ["Henry Cavendish", "the Nile", "oxygen", "the 1896 Summer Olympics"])
    def test_a_similar_name_shares_a_part_and_differs(self, name: str) -> None:
        for seed in range(30):
            other = similar(name, random.Random(seed))
            shared = set(name.split()) & set(other.split())
            assert other != name
            assert shared or other[:3] == name[:3] or name in other


DOMAINS = pytest.mark.parametrize("domain", [encyclopedia(), UNSEEN], ids=["encyclopedia", "unseen"])


@DOMAINS
class TestDomain:
    def test_every_table_has_two_relations_and_every_relation_is_used(self, domain: Domain) -> None:
        used = {relation for _, relation in domain.values}
        assert used == set(domain.relations)
        assert {table for table, _ in domain.values} == set(domain.names) == set(domain.kinds)
        assert all(len(domain.relations_of(table)) >= 2 and domain.names[table] for table in domain.kinds)

    def test_relations_have_four_statements_and_four_questions(self, domain: Domain) -> None:
        assert len(domain.relations) >= 12
        for name, relation in domain.relations.items():
            assert len(set(relation.statements)) >= 4 and len(set(relation.questions)) >= 4, name
            for statement in relation.statements:
                assert statement.count("{subject}") == statement.count("{object}") == 1, statement
                assert statement.count("{") == 2 and statement.endswith("."), statement
            for question in relation.questions:
                assert question.count("{subject}") == question.count("{") == 1 and question.endswith("?"), question

    def test_links_lead_to_tables_of_the_domain(self, domain: Domain) -> None:
        linked = {name for name, relation in domain.relations.items() if relation.link is not None}
        assert linked == {relation for _, relation, _ in domain.links}
        assert len(linked) >= (12 if domain is encyclopedia() else 1)
        for name in linked:
            targets = domain.relations[name].targets
            assert targets and set(targets) <= domain.kinds.keys()
        for table, relation, target in domain.links:
            assert (table, relation) in domain.values and target in domain.kinds
            link = domain.relations[relation].link
            assert link is not None and link.count("{subject}") == 1


def test_the_unseen_domain_shares_no_relation_and_no_wording_with_the_encyclopedia() -> None:
    """Otherwise the tiny base would have been trained on it."""
    known = encyclopedia()
    assert not known.relations.keys() & UNSEEN.relations.keys()
    assert not known.kinds.keys() & UNSEEN.kinds.keys()
    said = [{w for r in d.relations.values() for w in (*r.statements, *r.questions)} for d in (known, UNSEEN)]
    assert not said[0] & said[1]


class TestItems:
    @DOMAINS
    def test_the_first_answer_is_in_the_last_gold_passage(self, domain: Domain) -> None:
        rng = random.Random(1)
        for i in range(200):
            item = reading_item(rng, 4, hops=1 + i % 2, domain=domain)
            gold = {p.id: p for p in item.passages}[item.question.gold_ids[-1]]
            assert item.question.golden_answers[0].removeprefix("the ") in gold.text

    @DOMAINS
    def test_no_question_contains_its_answer(self, domain: Domain) -> None:
        rng = random.Random(2)
        for i in range(200):
            question = reading_item(rng, 2, hops=1 + i % 2, domain=domain).question
            assert not any(
                re.search(rf"(?<!\w){re.escape(a)}(?!\w)", question.question) for a in question.golden_answers
            )

    @DOMAINS
    def test_two_hop_questions_do_not_name_the_linking_entity(self, domain: Domain) -> None:
        rng = random.Random(3)
        for _ in range(100):
            item = reading_item(rng, 2, hops=2, domain=domain)
            by_id = {p.id: p for p in item.passages}
            first, second = (by_id[i] for i in item.question.gold_ids)
            assert second.title in first.text
            assert second.title not in item.question.question

    @DOMAINS
    def test_hard_distractors_have_similar_titles(self, domain: Domain) -> None:
        rng = random.Random(4)
        alike = 0
        for _ in range(100):
            item = reading_item(rng, 4, hardness=1.0, domain=domain)
            gold = next(p for p in item.passages if p.id == item.question.gold_ids[0])
            words = set(gold.title.lower().split())
            alike += any(
                words & set(p.title.lower().split()) or p.title[:2].lower() == gold.title[:2].lower()
                for p in item.passages
                if p is not gold
            )
        assert alike >= 95

    def test_the_gold_passage_cannot_be_guessed_without_the_question(self) -> None:
        """All names of a family are derived from one: if questions were about that one only, its title would show it.

        A quarter is chance. With questions about the first only, the shortest title was gold in 0.71 of the items.
        """

        def likeness(title: str, others: list[str]) -> float:
            return sum(SequenceMatcher(None, title.casefold(), other.casefold()).ratio() for other in others)

        rng, count = random.Random(1), 300
        items = [reading_item(rng, 4) for _ in range(count)]
        guesses = {
            "shortest title": lambda titles: min(titles, key=len),
            "longest title": lambda titles: max(titles, key=len),
            "most like the others": lambda titles: max(titles, key=lambda t: likeness(t, titles)),
            "least like the others": lambda titles: min(titles, key=lambda t: likeness(t, titles)),
        }
        for name, guess in guesses.items():
            right = 0.0
            for item in items:
                titles = [p.title for p in item.passages]
                right += item.passages[titles.index(guess(titles))].id in item.question.gold_ids
            right /= count
            assert 0.15 < right < 0.4, f"{name}: {right}"

    def test_easy_distractors_are_about_other_entities(self) -> None:
        rng = random.Random(5)
        item = reading_item(rng, 6, hardness=0.0)
        assert len({p.title for p in item.passages}) == 6

    def test_an_outdated_value_is_stated_with_the_current_one(self) -> None:
        rng = random.Random(6)
        for _ in range(50):
            entity = invent_entity(rng, "countries", need=["capital", "currency"])
            text = describe(entity, ["capital", "currency"], rng, outdated="capital").text
            assert entity.facts["capital"][0] in text
            assert re.search(r"Until|Before|Older books|long thought", text)

    def test_facts_of_an_entity_with_two_passages_are_stated_once(self) -> None:
        rng = random.Random(7)
        seen = 0
        for _ in range(100):
            cluster = invent_cluster(rng, similar_names=0, outdated=0.0)
            if len(cluster.passages) == 2:
                seen += 1
                for question in cluster.questions:
                    texts = [p.text for p in cluster.passages if p.id in question.gold_ids]
                    assert len(texts) == 1
        assert seen > 5

    def test_ranking_puts_gold_first_in_reading_order_then_the_same_title(self) -> None:
        rng = random.Random(8)
        for _ in range(50):
            item = reading_item(rng, 5, hops=2)
            order = [item.passages[i] for i in ranking(item)]
            assert [p.id for p in order[:2]] == item.question.gold_ids
            titles = {p.title for p in order[:2]}
            same = [p.title in titles for p in order[2:]]
            assert same == sorted(same, reverse=True)

    def test_too_few_passages_are_refused(self) -> None:
        with pytest.raises(UsageError, match="needs at least 2 passages; num_passages is 1"):
            reading_item(random.Random(0), 1, hops=2)

    def test_three_hops_are_refused(self) -> None:
        with pytest.raises(UsageError, match="hops must be 1 or 2, but got 3"):
            invent_cluster(random.Random(0), hops=3)


class TestWorld:
    def test_files_are_the_same_for_the_same_seed(self, files: dict[str, Path], tmp_path: Path) -> None:
        again = write_world(tmp_path / "again", seed=3, train_questions=150, dev_questions=60)
        other = write_world(tmp_path / "other", seed=4, train_questions=150, dev_questions=60)
        for name, file in files.items():
            assert again[name].read_bytes() == file.read_bytes()
            assert other[name].read_bytes() != file.read_bytes()

    def test_number_of_questions(self, files: dict[str, Path]) -> None:
        assert len(rows(files["train"])) == 150
        assert len(rows(files["dev"])) == 60

    def test_every_gold_passage_is_in_the_corpus_once(self, files: dict[str, Path]) -> None:
        ids = [row["id"] for row in rows(files["corpus"])]
        assert len(ids) == len(set(ids))
        for split in ("train", "dev"):
            for row in rows(files[split]):
                assert set(row["gold_ids"]) <= set(ids)  # type: ignore[arg-type]

    def test_train_and_dev_have_different_gold_passages(self, files: dict[str, Path]) -> None:
        gold = {s: {i for row in rows(files[s]) for i in row["gold_ids"]} for s in ("train", "dev")}  # type: ignore[attr-defined]
        assert not gold["train"] & gold["dev"]

    def test_questions_have_many_openings(self, files: dict[str, Path]) -> None:
        asked = {str(row["question"]).split()[0] for row in rows(files["train"])}
        assert len(asked) >= 8

    def test_questions_of_another_domain_use_its_wording(self, tmp_path: Path) -> None:
        found = write_world(tmp_path, seed=3, train_questions=150, dev_questions=60, domain=UNSEEN)
        questions = [str(row["question"]) for row in rows(found["train"])]
        assert len(questions) == 150
        openings = [question.partition("{subject}")[0] for r in UNSEEN.relations.values() for question in r.questions]
        assert all(any(question.startswith(opening) for opening in openings) for question in questions)
        assert {row["hops"] for row in rows(found["train"])} == {1, 2}

    def test_no_real_name_is_in_the_corpus(self, files: dict[str, Path]) -> None:
        text = files["corpus"].read_text(encoding="utf-8")
        real = [e.name for e in load_entities() if len(e.name) >= 8 and " " in e.name and e.name[0].isupper()]
        assert [name for name in real if name in text] == []

    def test_a_world_without_questions_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match="needs questions in both splits, but got train_questions=0 and dev_questions=5"
        ):
            write_world(tmp_path, train_questions=0, dev_questions=5)
