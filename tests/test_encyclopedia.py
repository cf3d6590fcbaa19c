"""The demo encyclopedia: facts checked by hand, answers that stand in their passages, splits that share nothing."""

import csv
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import rag.worlds.encyclopedia
from indexes.errors import UsageError
from rag.worlds.encyclopedia import RELATIONS, PassageRecord, QuestionRecord, passages, questions, write_encyclopedia
from rag.worlds.encyclopedia.entities import KINDS, ascii_spelling, load_aliases, load_entities
from rag.worlds.encyclopedia.render import sentences

FOLDER = Path(rag.worlds.encyclopedia.__file__).parent

# Written from memory and an atlas, not from the tables. One-hop question id -> the first golden answer.
FACTS = {
    "element-gold-symbol": "Au",
    "element-iron-atomic-number": "26",
    "element-neon-category": "noble gas",
    "element-polonium-discoverer": "Marie Curie and Pierre Curie",
    "element-germanium-named-after": "Germany",
    "element-bromine-periodic-group": "17",
    "country-japan-capital": "Tokyo",
    "country-kenya-currency": "Kenyan shilling",
    "country-brazil-official-language": "Portuguese",
    "country-turkey-largest-city": "Istanbul",
    "country-peru-continent": "South America",
    "country-india-independence-year": "1947",
    "state-oregon-capital": "Salem",
    "state-alaska-admission-year": "1959",
    "state-texas-nickname": "Lone Star State",
    "planet-uranus-discoverer": "William Herschel",
    "moon-titan-orbits": "Saturn",
    "moon-triton-discovery-year": "1846",
    "invention-telephone-inventor": "Alexander Graham Bell",
    "invention-laser-invention-year": "1960",
    "language-cplusplus-designer": "Bjarne Stroustrup",
    "language-python-appeared-year": "1991",
    "book-moby-dick-author": "Herman Melville",
    "book-candide-original-language": "French",
    "painting-guernica-painter": "Pablo Picasso",
    "painting-the-night-watch-museum": "Rijksmuseum",
    "opera-aida-premiere-city": "Cairo",
    "person-albert-einstein-birth-year": "1879",
    "person-emmy-noether-field": "mathematics",
    "president-john-f-kennedy-birth-state": "Massachusetts",
    "river-danube-mouth": "Black Sea",
    "mountain-k2-height": "8,611 m",
    "landmark-brooklyn-bridge-completion-year": "1883",
    "olympics-1964-summer-olympics-host-city": "Tokyo",
    "instrument-violin-string-count": "four",
}

# Two-hop question id -> the first golden answer and the passage between.
CHAINS = {
    "invention-safety-pin-invention-country-capital": ("Washington, D.C.", "country-united-states"),
    "president-abraham-lincoln-birth-state-capital": ("Frankfort", "state-kentucky"),
    "book-hamlet-author-birth-city": ("Stratford-upon-Avon", "person-william-shakespeare"),
    "planet-pluto-discoverer-death-year": ("1997", "person-clyde-tombaugh"),
    "painting-oath-of-the-horatii-museum-city": ("Paris", "museum-louvre"),
}


@pytest.fixture(scope="module")
def corpus() -> dict[str, PassageRecord]:
    rows = passages()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[QuestionRecord]]:
    return {"train": questions("train"), "dev": questions("dev")}


@pytest.fixture(scope="module")
def by_id(splits: dict[str, list[QuestionRecord]]) -> dict[str, QuestionRecord]:
    rows = [row for split in splits.values() for row in split]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def contains_words(text: str, words: str) -> bool:
    """Whether the words stand in the text as whole tokens, in any case: independent of the module's own check."""
    tokens, wanted = (re.findall(r"\w+", part.casefold()) for part in (text, words))
    spans = (tokens[start : start + len(wanted)] for start in range(len(tokens)))
    return bool(wanted) and wanted in spans


class TestTables:
    def test_every_column_is_a_relation_and_every_relation_a_column(self) -> None:
        used = {relation for entity in load_entities() for relation in entity.facts}
        assert used == set(RELATIONS)

    def test_every_file_is_read_and_every_line_has_all_its_cells(self) -> None:
        assert {path.stem for path in FOLDER.glob("*.tsv")} == {*KINDS, "aliases"}
        for path in FOLDER.glob("*.tsv"):
            header, *rows = csv.reader(path.read_text("utf-8").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
            assert {len(row) for row in rows} == {len(header)}, path.name
            assert all(cell == cell.strip() for row in rows for cell in row), path.name
            names = [row[0] for row in rows]
            assert len(set(names)) == len(names), path.name

    def test_every_entity_has_at_least_two_facts(self) -> None:
        assert [entity.id for entity in load_entities() if len(entity.facts) < 2] == []

    def test_years_and_measures_are_well_formed(self) -> None:
        for entity in load_entities():
            for relation, values in entity.facts.items():
                if relation.endswith("_year"):
                    assert re.fullmatch(r"1\d{3}|20[0-2]\d|537", values[0]), (entity.id, relation)
                elif relation in {"length", "height"}:
                    assert re.fullmatch(r"(\d,)?\d{3} (km|m)", values[0]), (entity.id, relation)

    def test_no_person_died_before_birth(self) -> None:
        lives = [e.facts for e in load_entities() if {"birth_year", "death_year"} <= e.facts.keys()]
        ages = [int(facts["death_year"][0]) - int(facts["birth_year"][0]) for facts in lives]
        assert len(ages) > 150 and min(ages) >= 20 and max(ages) <= 105

    def test_elements_are_numbered_without_a_gap_and_symbols_differ(self) -> None:
        elements = [entity.facts for entity in load_entities() if entity.table == "elements"]
        assert [int(facts["atomic_number"][0]) for facts in elements] == list(range(1, 119))
        assert len({facts["symbol"][0] for facts in elements}) == 118

    def test_every_alias_belongs_to_a_value_that_occurs(self) -> None:
        values = {value.removeprefix("the ") for e in load_entities() for cell in e.facts.values() for value in cell}
        assert sorted(load_aliases().keys() - values) == []

    def test_size_of_the_tables(self) -> None:
        assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 250_000

    def test_ascii_spelling(self) -> None:
        assert ascii_spelling("São Paulo, Kraków, złoty, Ørsted") == "Sao Paulo, Krakow, zloty, Orsted"


class TestPassages:
    def test_counts_and_lengths(self, corpus: dict[str, PassageRecord]) -> None:
        assert 1_200 <= len(corpus) <= 1_400
        assert all(20 <= len(row["text"].split()) <= 70 for row in corpus.values())

    def test_has_two_to_five_sentences(self) -> None:
        counts = {len(sentences(e, e.facts, random.Random(n))) for n, e in enumerate(load_entities())}
        assert counts <= {2, 3, 4, 5} and len(counts) == 4

    def test_names_its_entity_and_leaves_no_placeholder(self, corpus: dict[str, PassageRecord]) -> None:
        for row in corpus.values():
            assert row["title"].casefold() in row["text"].casefold()
            assert not re.search(r"[{}]|the None|\.\.|  ", row["text"])

    def test_text_of_one_passage(self) -> None:
        entity = next(entity for entity in load_entities() if entity.id == "moon-titan")
        text = " ".join(sentences(entity, entity.facts, random.Random(1)))
        facts = {"Saturn", "Christiaan Huygens", "1655"}
        assert text.startswith("Titan is a natural moon") and all(fact in text for fact in facts)

    def test_ids_are_slugs_of_the_names(self, corpus: dict[str, PassageRecord]) -> None:
        assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", passage_id) for passage_id in corpus)
        titles = {
            "element-oxygen": "Oxygen",
            "language-csharp": "C#",
            "river-nile": "Nile",
            "book-the-trial": "The Trial",
        }
        assert {passage_id: corpus[passage_id]["title"] for passage_id in titles} == titles


class TestQuestions:
    def test_counts(self, splits: dict[str, list[QuestionRecord]]) -> None:
        hops = {name: Counter(row["hops"] for row in rows) for name, rows in splits.items()}
        assert hops["train"].total() >= 1_500 and hops["train"][2] >= 300
        assert hops["dev"].total() >= 300 and hops["dev"][2] >= 80
        assert hops["train"].keys() == hops["dev"].keys() == {1, 2}

    def test_first_answer_is_verbatim_in_the_last_gold_passage(
        self, by_id: dict[str, QuestionRecord], corpus: dict[str, PassageRecord]
    ) -> None:
        for row in by_id.values():
            text = corpus[row["gold_ids"][-1]]["text"]
            assert re.search(rf"(?<!\w){re.escape(row['golden_answers'][0])}(?!\w)", text), row["id"]

    def test_golden_answers_are_distinct_and_not_empty(self, by_id: dict[str, QuestionRecord]) -> None:
        for row in by_id.values():
            assert row["golden_answers"] and all(answer.strip() for answer in row["golden_answers"])
            assert len(set(row["golden_answers"])) == len(row["golden_answers"])

    def test_no_question_contains_its_answer(self, by_id: dict[str, QuestionRecord]) -> None:
        leaks = [
            row["id"]
            for row in by_id.values()
            for answer in row["golden_answers"]
            if contains_words(row["question"], answer)
        ]
        assert leaks == []

    def test_one_hop_question_names_its_subject(
        self, by_id: dict[str, QuestionRecord], corpus: dict[str, PassageRecord]
    ) -> None:
        for row in by_id.values():
            assert contains_words(row["question"], corpus[row["gold_ids"][0]]["title"]) or row["hops"] == 2
            assert len(row["gold_ids"]) == row["hops"] and row["question"].endswith("?")

    def test_second_hop_is_reached_only_through_the_first_passage(
        self, by_id: dict[str, QuestionRecord], corpus: dict[str, PassageRecord]
    ) -> None:
        for row in by_id.values():
            if row["hops"] == 2:
                first, second = (corpus[passage_id] for passage_id in row["gold_ids"])
                assert second["title"] in first["text"], row["id"]
                assert contains_words(row["question"], first["title"]), row["id"]
                assert not contains_words(row["question"], second["title"]), row["id"]

    def test_first_hop_has_one_object(self, by_id: dict[str, QuestionRecord]) -> None:
        # "The country crossed by the Rio Grande" would be two countries.
        entities = {entity.id: entity for entity in load_entities()}
        for row in by_id.values():
            if row["hops"] == 2:
                first, second = (entities[passage_id] for passage_id in row["gold_ids"])
                assert (second.name,) in first.facts.values(), row["id"]

    def test_a_passage_states_at_most_six_facts(self, by_id: dict[str, QuestionRecord]) -> None:
        asked = Counter(row["gold_ids"][0] for row in by_id.values() if row["hops"] == 1)
        assert max(asked.values()) == 6

    def test_no_subject_shares_its_name(
        self, by_id: dict[str, QuestionRecord], corpus: dict[str, PassageRecord]
    ) -> None:
        titles = Counter(row["title"].casefold() for row in corpus.values())
        assert titles["mercury"] == titles["georgia"] == 2
        asked = {passage_id for row in by_id.values() for passage_id in row["gold_ids"]}
        assert [passage_id for passage_id in asked if titles[corpus[passage_id]["title"].casefold()] > 1] == []

    def test_splits_share_no_entity_and_no_fact(self, splits: dict[str, list[QuestionRecord]]) -> None:
        entities = {name: {e for row in rows for e in row["gold_ids"]} for name, rows in splits.items()}
        assert not entities["train"] & entities["dev"]
        share = len(entities["dev"]) / (len(entities["train"]) + len(entities["dev"]))
        assert 0.15 < share < 0.25

    def test_no_country_dominates_the_second_hop(self, splits: dict[str, list[QuestionRecord]]) -> None:
        for rows in splits.values():
            asked = Counter((row["gold_ids"][1], tuple(row["golden_answers"])) for row in rows if row["hops"] == 2)
            assert max(asked.values()) <= 12

    @pytest.mark.parametrize("question_id", FACTS)
    def test_known_facts(self, by_id: dict[str, QuestionRecord], question_id: str) -> None:
        row = by_id[question_id]
        assert (row["golden_answers"][0], row["hops"]) == (FACTS[question_id], 1)

    @pytest.mark.parametrize("question_id", CHAINS)
    def test_known_two_hop_questions(self, by_id: dict[str, QuestionRecord], question_id: str) -> None:
        answer, second = CHAINS[question_id]
        row = by_id[question_id]
        assert (row["golden_answers"][0], row["gold_ids"][1], row["hops"]) == (answer, second, 2)

    def test_aliases(self, by_id: dict[str, QuestionRecord]) -> None:
        assert {"United States", "USA", "US"} <= set(by_id["invention-laser-invention-country"]["golden_answers"])
        length = by_id["river-danube-length"]["golden_answers"]
        assert length == ["2,850 km", "2850 km", "2,850 kilometers", "2,850 kilometres", "2,850", "2850"]
        languages = by_id["country-canada-official-language"]["golden_answers"]
        assert languages == ["English and French", "French and English", "English", "French"]
        assert by_id["country-iceland-capital"]["golden_answers"] == ["Reykjavík", "Reykjavik"]


class TestDeterminism:
    def test_another_process_writes_the_same(self, tmp_path: Path) -> None:
        here = write_encyclopedia(tmp_path / "here")
        code = (
            f"from rag.worlds.encyclopedia import write_encyclopedia; write_encyclopedia({str(tmp_path / 'there')!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=FOLDER.parents[1])
        for name, path in here.items():
            assert path.read_bytes() == (tmp_path / "there" / f"{name}.jsonl").read_bytes()

    def test_seed_changes_the_wording_and_keeps_the_split(self, splits: dict[str, list[QuestionRecord]]) -> None:
        same = sum(a["text"] == b["text"] for a, b in zip(passages(), passages(seed=1), strict=True))
        assert same < 100
        train, dev = ({row["gold_ids"][0] for row in questions(name, seed=1)} for name in ("train", "dev"))
        assert not train & {row["gold_ids"][0] for row in splits["dev"]}
        assert not dev & {row["gold_ids"][0] for row in splits["train"]}

    def test_answers_are_in_passages_of_the_same_seed(self) -> None:
        texts = {row["id"]: row["text"] for row in passages(seed=3)}
        for row in questions("dev", seed=3):
            assert row["golden_answers"][0] in texts[row["gold_ids"][-1]], row["id"]

    def test_global_random_state_is_unchanged(self) -> None:
        before = random.getstate()
        passages()
        questions("dev")
        assert random.getstate() == before


class TestWrite:
    def test_files_contain_the_records(self, tmp_path: Path) -> None:
        files = write_encyclopedia(tmp_path / "new" / "folder")
        rows = {
            name: [json.loads(line) for line in path.read_text("utf-8").splitlines()] for name, path in files.items()
        }
        assert rows == {"corpus": passages(), "train": questions("train"), "dev": questions("dev")}
        assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {path.name for path in files.values()}

    def test_limit_keeps_the_first_questions_and_every_passage(self, tmp_path: Path) -> None:
        files = write_encyclopedia(tmp_path, limit=40)
        lines = {name: path.read_text("utf-8").splitlines() for name, path in files.items()}
        assert len(lines["corpus"]) == len(passages())
        assert [json.loads(line) for line in lines["train"]] == questions("train")[:40]
        kinds = {json.loads(line)["gold_ids"][0].split("-")[0] for line in lines["dev"]}
        hops = {json.loads(line)["hops"] for line in lines["dev"]}
        assert len(lines["dev"]) == 40 and len(kinds) >= 5 and hops == {1, 2}

    def test_limit_must_be_positive(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"limit must be at least 1, but it is 0; leave it out"):
            write_encyclopedia(tmp_path, limit=0)
        assert list(tmp_path.iterdir()) == []

    def test_unknown_split(self) -> None:
        with pytest.raises(UsageError, match=r'split must be "train" or "dev", but it is \'test\''):
            questions("test")  # type: ignore[arg-type]
