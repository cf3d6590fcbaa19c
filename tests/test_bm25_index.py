"""BM25 against its formula, text of other languages, and what a damaged index is told."""

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import Stemmer
from tiny_models import PASSAGES

from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage
from indexes.errors import MismatchError, UsageError
from indexes.vectors.bm25_index import SETTINGS_FILE, BM25Index
from training.questions.loading import load_examples

# Words without stems or stopwords, so that they can be counted by hand; "x" stands for a passage of 1, 2, 4 words.
COUNTED = [Passage("a", "", "red"), Passage("b", "blue", "red"), Passage("c", "", "red red red green")]


def texts(*contents: str) -> list[Passage]:
    return [Passage(str(i), "", text) for i, text in enumerate(contents)]


def plain(passages: list[Passage], **settings: object) -> BM25Index:
    return BM25Index.build(passages, **{"stemmer": None, "stopwords": ()} | settings)


def found(index: BM25Index, question: str, k: int = 3) -> list[int]:
    return [row for row in index.search([question], k)[1][0].tolist() if row >= 0]


def test_scores_are_the_formula() -> None:
    """N = 3, mean length 7/3, k1 = 1.2, b = 0.75; df(red) = 3, df(green) = 1, df(blue) = 1.

    idf(red) = ln(1 + 0.5 / 3.5), idf(green) = idf(blue) = ln(1 + 2.5 / 1.5); a length of 4 gives the norm
    1.2 * (0.25 + 0.75 * 12/7).
    """
    scores, rows = plain(COUNTED, k1=1.2, b=0.75).search(["Red green!", "blue"], 3)
    red, rare = math.log(1 + 0.5 / 3.5), math.log(1 + 2.5 / 1.5)
    norms = [1.2 * (0.25 + 0.75 * length / (7 / 3)) for length in (1, 2, 4)]
    expected = [red * 3 / (3 + norms[2]) + rare / (1 + norms[2]), red / (1 + norms[0]), red / (1 + norms[1])]
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)
    assert rows[0].tolist() == [2, 0, 1]
    np.testing.assert_allclose(scores[1], [rare / (1 + norms[1]), -math.inf, -math.inf], rtol=1e-6)
    assert rows[1].tolist() == [1, -1, -1]
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)


def test_the_ranking_is_that_of_a_plain_implementation() -> None:
    """Every passage's score with the defaults, term by term; the toy passages are ASCII, so cutting is easy."""
    stem = Stemmer.Stemmer("english").stemWord
    bags = [Counter(stem(w) for w in re.findall("[a-z0-9]+", p.contents.lower())) for p in PASSAGES]
    mean = sum(bag.total() for bag in bags) / len(bags)
    index = BM25Index.build(PASSAGES)
    for question in ("rivers flow through France", "William Shakespeare plays", "chemical elements symbol O"):
        expected = []
        for bag in bags:
            score = 0.0
            for term in map(stem, set(question.lower().split()) - {"through", "o"}):
                df = sum(term in other for other in bags)
                norm = 0.9 * (0.6 + 0.4 * bag.total() / mean)
                score += math.log(1 + (12 - df + 0.5) / (df + 0.5)) * bag[term] / (bag[term] + norm)
            expected.append(score)
        scores, rows = (a[0] for a in index.search([question], 12))
        positive = [row for row in np.argsort(-np.array(expected), kind="stable") if expected[row] > 0]
        assert rows[: len(positive)].tolist() == positive
        np.testing.assert_allclose(scores[: len(positive)], [expected[row] for row in positive], rtol=1e-5)
        assert (rows[len(positive) :] == -1).all()


def test_the_defaults_are_anserinis() -> None:
    index = BM25Index.build(COUNTED)
    assert (index.k1, index.b, index.stemmer) == (0.9, 0.4, "english")


def test_a_word_asked_twice_counts_twice() -> None:
    once, twice = plain(COUNTED).search(["green", "green green"], 1)[0][:, 0].tolist()
    assert twice == pytest.approx(2 * once)


def test_equal_scores_are_ordered_by_row() -> None:
    index = plain(texts(*["same words"] * 40, "other", *["same words"] * 40))
    assert found(index, "same", 50) == [*range(40), *range(41, 51)]
    assert found(index, "same", 5) == [0, 1, 2, 3, 4]


def test_more_results_than_passages() -> None:
    scores, rows = plain(COUNTED).search(["green"], 7)
    assert rows[0].tolist() == [2, -1, -1, -1, -1, -1, -1]
    assert np.isneginf(scores[0, 1:]).all()


@pytest.mark.parametrize("question", ["unheard of", "?!", ""])
def test_questions_without_known_words_find_nothing(question: str) -> None:
    assert found(plain(COUNTED), question) == []


def test_an_empty_list_of_questions_returns_empty_arrays() -> None:
    scores, rows = plain(COUNTED).search([], 2)
    assert (scores.shape, rows.shape) == ((0, 2), (0, 2))


@pytest.mark.parametrize("passages", [texts("...", "?!"), []])
def test_an_index_without_words_finds_nothing(passages: list[Passage], tmp_path: Path) -> None:
    BM25Index.build(passages).save(tmp_path)
    index = BM25Index.load(tmp_path)
    assert len(index) == len(passages)
    assert found(index, "anything") == []


def test_titles_are_indexed() -> None:
    assert found(BM25Index.build(PASSAGES), "Curie")[0] == 9


def test_stems_and_question_stopwords() -> None:
    index = BM25Index.build(texts("The river flows.", "What does it do?", "The Who"))
    assert found(index, "what is a flowing river") == [0]
    assert found(index, "Who are the Who?") == [2, 0]  # nothing else would remain: all of them are asked for
    assert found(plain(texts("The river flows.")), "flowing") == []


def test_stopwords_are_normalised_like_text() -> None:
    index = plain(COUNTED, stopwords=["RED", "isn't"])
    assert index.stopwords == ("isn", "red", "t")
    assert found(index, "red green") == [2]


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("東京は日本の首都です。", "日本の首都"),
        ("東京は日本の首都です。", "都"),
        ("กรุงเทพเป็นเมืองหลวงของไทย", "เมืองหลวง"),
        ("हिन्दी भारत की भाषा है", "हिन्दी"),
        ("Лилия цветёт весной", "ЛИЛИЯ"),
        ("Der Fluß heißt Donau", "FLUSS"),
        ("\uff26\uff55\uff4c\uff4c width", "full"),
        ("Cafe\u0301", "CAFÉ"),
        ("서울은 한국의 수도", "서울은"),
        ("the answer is x", "x"),
    ],
)
def test_words_of_any_language_are_found(text: str, question: str) -> None:
    assert found(BM25Index.build(texts("another passage", text)), question) == [1]


def test_words_of_indian_scripts_are_not_split() -> None:
    """Vowel signs are marks, not letters: cut at them, this word would be found by every word with an n in it."""
    assert found(BM25Index.build(texts("हिन्दी")), "न") == []


def test_passages_are_read_once_and_not_kept() -> None:
    def stream() -> Iterator[Passage]:
        yield from PASSAGES

    index = BM25Index.build(stream())
    assert len(index) == len(PASSAGES)
    assert found(index, "programming language", 1) == [5]


def test_contributions_add_up_to_the_score() -> None:
    index = BM25Index.build(PASSAGES)
    question = "Which rivers flow, which river flows into the Black Sea?"
    scores, rows = index.search([question], 2)
    assert rows[0].tolist() == [10, 7]
    parts = index.contributions(question, 10)
    assert set(parts) == {"rivers", "river", "flow", "flows", "black", "sea"}
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    assert sum(parts.values()) == pytest.approx(float(scores[0, 0]), rel=1e-6)
    assert set(index.contributions(question, 7)) == {"rivers", "river", "flow", "flows"}
    assert index.contributions(question, 5) == {}


def test_equal_input_gives_equal_bytes_without_pickle(tmp_path: Path) -> None:
    for name in ("one", "two"):
        BM25Index.build(PASSAGES).save(tmp_path / name)
    written = {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()}
    assert written == {file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()}
    assert {Path(name).suffix for name in written} == {".npy", ".json"}
    for name in written:
        if name.endswith(".npy"):
            np.load(tmp_path / "one" / name, allow_pickle=False)


@pytest.mark.parametrize("mmap", [False, True])
def test_saved_index_loads_with_equal_scores(tmp_path: Path, mmap: bool) -> None:
    built = BM25Index.build(PASSAGES, k1=1.3, b=0.6, stemmer="german", stopwords=["who"])
    built.save(tmp_path / "new" / "folder")
    loaded = BM25Index.load(tmp_path / "new" / "folder", mmap=mmap)
    assert (loaded.k1, loaded.b, loaded.stemmer, loaded.stopwords) == (1.3, 0.6, "german", ("who",))
    assert len(loaded) == len(PASSAGES)
    questions = ["who wrote Hamlet?", "capital of France", "nothing known"]
    for mine, theirs in zip(built.search(questions, 4), loaded.search(questions, 4), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bm25") / "whole"
    BM25Index.build(PASSAGES).save(folder)
    return folder


FILES = [
    "bm25.json",
    "data.csc.index.npy",
    "indices.csc.index.npy",
    "indptr.csc.index.npy",
    "params.index.json",
    "vocab.index.json",
]


def test_the_damaged_files_are_all_files(saved: Path) -> None:
    assert sorted(file.name for file in saved.iterdir()) == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "other", "pickled"])
@pytest.mark.parametrize("mmap", [False, True])
def test_damaged_files_are_refused(saved: Path, tmp_path: Path, name: str, damage: str, mmap: bool) -> None:
    folder = shutil.copytree(saved, tmp_path / "damaged")
    content = (folder / name).read_bytes()
    if damage == "missing":
        (folder / name).unlink()
    elif damage == "pickled":
        with open(folder / name, "wb") as file:
            np.save(file, np.array([{"an": "object"}]), allow_pickle=True)
    else:
        (folder / name).write_bytes({"empty": b"", "half": content[: len(content) // 2], "other": b"[]"}[damage])
    with pytest.raises(MismatchError, match="Build the BM25 index again"):
        BM25Index.load(folder, mmap=mmap)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("data.csc.index.npy", lambda values: -values),
        ("data.csc.index.npy", lambda values: values * np.nan),
        ("data.csc.index.npy", lambda values: values[:-1]),
        ("indices.csc.index.npy", lambda values: values + len(PASSAGES)),
        ("indices.csc.index.npy", lambda values: values - 1),
        ("indices.csc.index.npy", lambda values: values.astype(np.float32)),
        ("indptr.csc.index.npy", lambda values: values[::-1].copy()),
        ("indptr.csc.index.npy", lambda values: values[:-1]),
    ],
)
def test_files_of_two_indexes_are_refused(saved: Path, tmp_path: Path, name: str, change: object) -> None:
    folder = shutil.copytree(saved, tmp_path / "mixed")
    np.save(folder / name, change(np.load(folder / name)))
    with pytest.raises(MismatchError, match="complete BM25 index"):
        BM25Index.load(folder)


def test_settings_of_another_index_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "mixed")
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    for change in ({"passages": 5}, {"words": 3}, {"stemmer": "klingon"}, {"stopwords": "the"}, {"format_version": 2}):
        (folder / SETTINGS_FILE).write_text(json.dumps(settings | change))
        with pytest.raises(MismatchError, match="Build the BM25 index again"):
            BM25Index.load(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k1": -1.0}, "k1 must be at least 0 and finite"),
        ({"k1": math.nan}, "k1 must be at least 0 and finite"),
        ({"b": 1.5}, "b between 0 and 1"),
        ({"stemmer": "klingon"}, "The stemmer must be one of .*'english'.* or None, but got 'klingon'"),
        ({"stopwords": "the"}, "stopwords must be a list of words, but got 'the'"),
    ],
)
def test_invalid_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BM25Index.build(PASSAGES, **settings)


def test_invalid_searches_are_refused() -> None:
    index = BM25Index.build(PASSAGES)
    with pytest.raises(UsageError, match="k must be at least 1, but got 0"):
        index.search(["river"], 0)
    with pytest.raises(UsageError, match="row must be at least 0 and below 12, but got -1"):
        index.contributions("river", -1)


@pytest.mark.parametrize(("data_set", "reference"), [("2wiki", 0.98), ("nq", 0.88)])
def test_real_questions(data_dir: Path, data_set: str, reference: float) -> None:
    """How often a gold passage is among the first five, and must stay to be."""
    corpus = Corpus.from_file(data_dir / data_set / "corpus.jsonl.gz")
    examples = load_examples(data_dir / data_set / "dev.jsonl.gz")
    ids = corpus.ids[:]
    rows_B5 = BM25Index.build(corpus).search([e.question for e in examples], 5)[1]
    hits = [any(ids[row] in e.gold_ids for row in rows_5) for e, rows_5 in zip(examples, rows_B5, strict=True)]
    assert sum(hits) / len(hits) >= reference
