"""A BM25 index over the words of passages: questions in, row positions out (Robertson and Zaragoza 2009).

The variant is Lucene's (Kamphuis et al. 2020), computed by `bm25s`, which stores the contribution of every word to
every passage when the index is made. For a question q and a passage p of |p| words

    score(q, p) = sum over words t of q:  ln(1 + (N - df_t + 0.5) / (df_t + 0.5))
                                        * tf_tp / (tf_tp + k1 * (1 - b + b * |p| / mean |p|))

Every part is positive, so a passage has a score above 0 if and only if it shares a word with the question.

Axes: N passages, V distinct words, P pairs of a word and a passage that holds it, B questions, k results.
"""

import itertools
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any, overload

import bm25s
import numpy as np
import Stemmer
from bm25s.stopwords import STOPWORDS_EN_PLUS
from numpy.typing import NDArray
from tqdm import tqdm

from indexes.corpora.passage import Passage
from indexes.errors import MismatchError, UsageError
from indexes.word_segmentation import folded, runs

SETTINGS_FILE = "bm25.json"
FORMAT_VERSION = 1
_REBUILD = "Build the BM25 index again."

# What bm25s reads as an index, and refuses or mistakes for another when it is damaged.
_LOAD_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    SyntaxError,
    TokenError,
)


class BM25Index:
    """Words of passages, searched by BM25; a passage is known by its row, counted from 0 in the order of the corpus.

    Make one with `build` or `load`.
    """

    def __init__(self, bm25: bm25s.BM25, *, stemmer: str | None, stopwords: Sequence[str]) -> None:
        """Wrap an index of bm25s; everybody else uses the constructors named above."""
        self._bm25 = bm25
        self._analyzer = _Analyzer(stemmer, stopwords)

    @classmethod
    def build(
        cls,
        passages: Iterable[Passage],
        *,
        k1: float = 0.9,
        b: float = 0.4,
        stemmer: str | None = "english",
        stopwords: Sequence[str] = STOPWORDS_EN_PLUS,
        progress: bool = False,
    ) -> "BM25Index":
        """Read the contents of passages, each once; of a passage only the numbers of its words are kept.

        Text is folded (Unicode NFKC, without case) and cut into runs of letters, marks and digits; scripts without
        spaces (Chinese, Japanese, Thai, ...) into single characters and pairs of neighbours. No word of a passage is
        left out, so text of any language is found; what is made for one language, stemming and stopwords, is an option.

        Args:
            passages: In the order that gives them their rows.
            k1: How slowly further occurrences of a word in a passage stop counting; 0 counts none.
            b: How much long passages are held back, from 0 to 1. The defaults for k1 and b are Anserini's.
            stemmer: A Snowball algorithm by name ("english", "german", ...), which makes "rivers" find "river"; None
                takes words as they are.
            stopwords: Words that questions are searched without, as long as others remain; NLTK's English list by
                default. Short texts hold few of them, so "what" and "did" are rarer there than they mean.
            progress: Show progress bars.

        Raises:
            UsageError: k1 is negative or not finite, b is not within 0 and 1, or the stemmer is unknown.
        """
        if not (0 <= k1 < float("inf") and 0 <= b <= 1):
            raise UsageError(f"k1 must be at least 0 and finite, b between 0 and 1, but got k1={k1}, b={b}.")
        analyzer = _Analyzer(stemmer, stopwords)
        tokens, vocabulary = _read(passages, analyzer, progress=progress)
        bm25 = bm25s.BM25(k1=float(k1), b=float(b), method="lucene", backend="numpy", csc_backend="scipy")
        bm25.nonoccurrence_array = None
        bm25.vocab_dict = vocabulary
        if vocabulary:
            bm25.scores = bm25.build_index_from_ids(range(len(vocabulary)), tokens, show_progress=progress)
        else:  # the mean length of no words is undefined
            bm25.scores = _without_words(len(tokens))
        return cls(bm25, stemmer=analyzer.stemmer, stopwords=analyzer.stopwords)

    @classmethod
    def load(cls, folder: str | Path, *, mmap: bool = False) -> "BM25Index":
        """Read an index that `save` wrote.

        Args:
            folder: Where it was written.
            mmap: Leave the contributions on disk; only the vocabulary is read. Rows are then not checked one by one.

        Raises:
            MismatchError: A file is missing, damaged, or does not belong to the others.
        """
        folder = Path(folder)
        settings = _read_settings(folder / SETTINGS_FILE)
        try:
            bm25 = bm25s.BM25.load(folder, mmap=mmap, allow_pickle=False, show_progress=False)
            _check(bm25, settings, rows=not mmap)
            return cls(bm25, stemmer=settings["stemmer"], stopwords=settings["stopwords"])
        except (*_LOAD_ERRORS, UsageError) as error:
            raise MismatchError(
                f"{folder} must hold a complete BM25 index, but it is damaged ({type(error).__name__}: {error}). "
                f"{_REBUILD}"
            ) from error

    def save(self, folder: str | Path) -> None:
        """Write arrays (npy) and vocabulary and settings (JSON) into a folder, which is made if it is missing.

        The same passages and settings give the same bytes.
        """
        folder = Path(folder)
        self._bm25.save(folder, show_progress=False, allow_pickle=False)
        settings = {
            "format_version": FORMAT_VERSION,
            "passages": len(self),
            "words": len(self._bm25.vocab_dict),
            "stemmer": self.stemmer,
            "stopwords": list(self.stopwords),
        }
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @property
    def k1(self) -> float:
        """How slowly further occurrences of a word stop counting."""
        return float(self._bm25.k1)

    @property
    def b(self) -> float:
        """How much long passages are held back."""
        return float(self._bm25.b)

    @property
    def stemmer(self) -> str | None:
        """The Snowball algorithm that words go through."""
        return self._analyzer.stemmer

    @property
    def stopwords(self) -> tuple[str, ...]:
        """Words that questions are searched without, folded and sorted."""
        return self._analyzer.stopwords

    @property
    def pairs(self) -> int:
        """How many pairs of a passage and one of its terms there are: what a BM25 index holds."""
        return len(self._bm25.scores["data"])

    def __len__(self) -> int:
        return int(self._bm25.scores["num_docs"])

    def search(self, questions: Sequence[str], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k passages with the highest scores for each question, best first; equal scores are ordered by row.

        A word that stands in a question twice counts twice. All N passages are scored, for one question at a time.

        Args:
            questions: B texts.
            k: How many results per question.

        Returns:
            Scores, float32 [B, k], and rows, int64 [B, k]. A passage that shares no word with the question is no
            result: where fewer than k are found, the rest has the row -1 and the score -inf.

        Raises:
            UsageError: k is below 1.
        """
        if k < 1:
            raise UsageError(f"k must be at least 1, but got {k}.")
        scores_Bk = np.full((len(questions), k), -np.inf, dtype=np.float32)
        rows_Bk = np.full((len(questions), k), -1, dtype=np.int64)
        for i, question in enumerate(questions):
            scores_N = self._scores(question)
            best = _best_first(scores_N, k)
            scores_Bk[i, : len(best)], rows_Bk[i, : len(best)] = scores_N[best], best
        return scores_Bk, rows_Bk

    def contributions(self, question: str, row: int) -> dict[str, float]:
        """What each word of a question adds to the score of one passage, greatest first; words that add 0 are left out.

        Args:
            question: The text.
            row: Of the passage.

        Raises:
            UsageError: There is no such row.
        """
        if not 0 <= row < len(self):
            raise UsageError(f"row must be at least 0 and below {len(self)}, but got {row}.")
        added: dict[str, float] = {}
        words = self._analyzer.question_words(question)
        for word, term in zip(words, self._analyzer.terms(words), strict=True):
            value = self._contribution(term, row)
            if value:
                added[word] = added.get(word, 0.0) + value
        return dict(sorted(added.items(), key=lambda item: -item[1]))

    def _contribution(self, term: str, row: int) -> float:
        column = self._bm25.vocab_dict.get(term)
        if column is None:
            return 0.0
        scores = self._bm25.scores
        first, last = scores["indptr"][column : column + 2]
        at = first + int(np.searchsorted(scores["indices"][first:last], row))
        return float(scores["data"][at]) if at < last and scores["indices"][at] == row else 0.0

    def _scores(self, question: str) -> NDArray[np.float32]:
        """Of all passages: float32 [N]."""
        terms = self._analyzer.terms(self._analyzer.question_words(question))
        known = self._bm25.get_tokens_ids(terms)
        if not known:
            return np.zeros(len(self), dtype=np.float32)
        scores_N: NDArray[np.float32] = self._bm25.get_scores_from_ids(known)
        return scores_N


class _Analyzer:
    """Text to words (folded, cut), and words to terms (stemmed)."""

    def __init__(self, stemmer: str | None, stopwords: Sequence[str]) -> None:
        if stemmer is not None and stemmer not in Stemmer.algorithms():
            raise UsageError(f"The stemmer must be one of {sorted(Stemmer.algorithms())} or None, but got {stemmer!r}.")
        if isinstance(stopwords, str) or not all(isinstance(word, str) for word in stopwords):
            raise UsageError(f"stopwords must be a list of words, but got {stopwords!r}.")
        self.stemmer = stemmer
        self._stopwords = frozenset(word for entry in stopwords for word in self.words(entry))
        self.stopwords = tuple(sorted(self._stopwords))

    def words(self, text: str) -> list[str]:
        """In their order, as often as they occur."""
        pieces = (_characters_and_pairs(unspaced) if unspaced else (word,) for unspaced, word in runs(folded(text)))
        return list(itertools.chain.from_iterable(pieces))

    def question_words(self, text: str) -> list[str]:
        """Without stopwords; with them where nothing else would remain ("Who are The Who?")."""
        words = self.words(text)
        return [word for word in words if word not in self._stopwords] or words

    def terms(self, words: Sequence[str]) -> list[str]:
        """One for each word. A stemmer may only be used by one thread at a time, so every call makes its own."""
        if self.stemmer is None:
            return list(words)
        stems: list[str] = Stemmer.Stemmer(self.stemmer).stemWords(words)
        return stems


def _characters_and_pairs(run: str) -> Iterator[str]:
    """Pairs of neighbours stand for words of unknown bounds, as Lucene's CJKAnalyzer has them; one alone may be one."""
    yield from run
    yield from map("".join, itertools.pairwise(run))


class _Tokens(Sequence["array[int]"]):
    """The word numbers of all passages behind each other, four bytes each.

    It stands in for the list of lists of bm25s, which would take twice as much and an object for every passage.
    """

    def __init__(self) -> None:
        self._numbers = array("i")
        self._ends = array("q", [0])

    def append(self, numbers: Iterable[int]) -> None:
        """One more passage."""
        self._numbers.extend(numbers)
        self._ends.append(len(self._numbers))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, row: int) -> "array[int]": ...
    @overload
    def __getitem__(self, row: slice) -> "list[array[int]]": ...
    def __getitem__(self, row: int | slice) -> "array[int] | list[array[int]]":
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(f"row must be at least 0 and below {len(self)}, but got {row}.")
        return self._numbers[self._ends[row] : self._ends[row + 1]]


def _read(passages: Iterable[Passage], analyzer: _Analyzer, *, progress: bool) -> tuple[_Tokens, dict[str, int]]:
    """Word numbers of every passage, and the vocabulary: terms numbered in the order in which they first appear."""
    tokens = _Tokens()
    vocabulary: dict[str, int] = {}
    for passage in tqdm(passages, desc="reading words", unit=" passages", disable=not progress):
        terms = analyzer.terms(analyzer.words(passage.contents))
        tokens.append(vocabulary.setdefault(term, len(vocabulary)) for term in terms)
    return tokens, vocabulary


def _without_words(passages: int) -> dict[str, Any]:
    return {
        "data": np.empty(0, dtype=np.float32),
        "indices": np.empty(0, dtype=np.int32),
        "indptr": np.zeros(1, dtype=np.int32),
        "num_docs": passages,
    }


def _best_first(scores_N: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """At most k rows with a score, best first, equal ones by row (bm25s leaves open which of them it takes)."""
    rows = np.flatnonzero(scores_N)
    if len(rows) > k:
        kth = np.partition(scores_N[rows], -k)[-k]
        rows = rows[scores_N[rows] >= kth]
    return rows[np.argsort(-scores_N[rows], kind="stable")[:k]]


def _read_settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise MismatchError(f"A BM25 index is a folder with {SETTINGS_FILE}, but {file} is missing. {_REBUILD}")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MismatchError(f"{file} must be JSON, but it is damaged ({error}). {_REBUILD}") from error
    expected = {"format_version", "passages", "words", "stemmer", "stopwords"}
    if not isinstance(settings, dict) or set(settings) != expected:
        raise MismatchError(f"{file} must hold exactly {sorted(expected)}, but it is damaged. {_REBUILD}")
    if settings["format_version"] != FORMAT_VERSION:
        raise MismatchError(
            f"{file} must have format_version {FORMAT_VERSION}, but it has {settings['format_version']!r}. {_REBUILD}"
        )
    return settings


def _check(bm25: bm25s.BM25, settings: dict[str, Any], *, rows: bool) -> None:
    """Refuse parts that do not belong together; bm25s would count wrong or fall at some later question.

    Raises:
        ValueError: What does not hold.
    """
    data_P, rows_P, bounds = (bm25.scores[name] for name in ("data", "indices", "indptr"))
    arrays = {"data": (data_P, np.floating), "indices": (rows_P, np.integer), "indptr": (bounds, np.integer)}
    for name, (values, kind) in arrays.items():
        if not isinstance(values, np.ndarray) or values.ndim != 1 or not np.issubdtype(values.dtype, kind):
            raise ValueError(f"{name} is no list of numbers of its kind")
    if not bm25.scores["num_docs"] == settings["passages"]:
        raise ValueError(f"{settings['passages']} passages in one file, {bm25.scores['num_docs']} in another")
    numbers = sorted(bm25.vocab_dict.values())
    if numbers != list(range(settings["words"])) or len(bounds) != len(numbers) + 1:
        raise ValueError(f"{settings['words']} words must be numbered from 0 and have bounds")
    if bounds[0] != 0 or bounds[-1] != len(data_P) or len(data_P) != len(rows_P) or (np.diff(bounds) < 0).any():
        raise ValueError("the bounds of the words do not fit the contributions")
    if rows and len(rows_P):
        if rows_P.min() < 0 or rows_P.max() >= settings["passages"]:
            raise ValueError(f"a row is not below {settings['passages']}")
        if not (np.isfinite(data_P).all() and data_P.min() > 0):
            raise ValueError("a contribution is not positive and finite")
