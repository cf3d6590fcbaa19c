"""Counts and mean lengths of passages and questions, read from samples of files or given as numbers."""

import itertools
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from indexes.records.delimited import Quoting

if TYPE_CHECKING:
    from indexes.corpora.passage import Passage

CHARACTERS_PER_TOKEN = 4
"""Of English text under the vocabularies of current models; `--passage_tokens` and its like override it."""
DEFAULT_PASSAGE_TOKENS = 130
"""Tokens of a passage where only the number of passages is given: the 100 words of the usual Wikipedia corpora."""
SAMPLE_SIZE = 1000
"""Passages that are read of a corpus."""


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """How many passages and questions there are, and their mean lengths in tokens of the base."""

    passages: int
    passage_tokens: int
    questions: int
    """Training questions."""
    question_tokens: int = 16
    answer_tokens: int = 6
    """End-of-answer token included."""
    eval_questions: int = 0


@dataclass(frozen=True)
class IndexSizes:
    """Of an index that exists."""

    passages: int
    passage_tokens: int
    """Mean tokens of a passage."""
    dimension: int
    """Of its vectors."""


@dataclass(frozen=True)
class QuestionSizes:
    """Of a file of questions."""

    questions: int
    question_tokens: int
    """Mean tokens of a question."""
    answer_tokens: int
    """Mean tokens of the first golden answer, end-of-answer token included."""


def count_passages(corpus: str, *, quoting: Quoting = "auto") -> tuple[int, int]:
    """The number of passages of a corpus and their mean tokens, from a sample.

    Raises:
        DataError: It cannot be read.
    """
    count, sample = sample_passages(corpus, quoting=quoting)
    return count, _mean_tokens(p.contents for p in sample)


def sample_passages(
    corpus: str, *, quoting: Quoting = "auto", on_error: Literal["raise", "skip"] = "raise"
) -> tuple[int, "list[Passage]"]:
    """The number of passages of a corpus, and up to `SAMPLE_SIZE` of them.

    Of a JSONL file only the first lines are read, and the number follows from the size of the file.

    Args:
        corpus: What `Corpus.from_file` reads.
        quoting: As there.
        on_error: As there.

    Raises:
        DataError: It cannot be read.
    """
    from indexes.corpora.corpus import Corpus
    from indexes.directory.shards import evenly_spaced

    path = Path(corpus)
    with tempfile.TemporaryDirectory() as folder:
        if path.suffix != ".jsonl" or not path.is_file():
            found = Corpus.from_file(corpus, cache_dir=folder, quoting=quoting, on_error=on_error)
            return len(found), found.take(evenly_spaced(len(found), SAMPLE_SIZE).tolist())
        with path.open("rb") as file:
            lines = list(itertools.islice(file, SAMPLE_SIZE))
        head = Path(folder) / path.name
        head.write_bytes(b"".join(lines))
        sample = Corpus.from_file(head, cache_dir=folder, on_error=on_error)
        return round(len(sample) * path.stat().st_size / head.stat().st_size), list(sample)


def index_sizes(index: str) -> IndexSizes:
    """Sizes of an index directory, the length of passages from a sample.

    Raises:
        MismatchError: It is no index, or it is damaged.
    """
    from indexes.directory.passage_index import PassageIndex

    opened = PassageIndex.open(index, verify="none")
    sample = opened.corpus.take(list(range(min(len(opened.corpus), SAMPLE_SIZE))))
    tokens = _mean_tokens(p.contents for p in sample)
    return IndexSizes(opened.manifest.passages, tokens, opened.manifest.dimension)


def question_sizes(file: str, limit: int | None = None, *, quoting: Quoting = "auto") -> QuestionSizes:
    """Sizes of a file of questions with golden answers.

    Args:
        file: What `load_examples` reads.
        limit: Read no more questions than this.
        quoting: As in `load_examples`.

    Raises:
        DataError: It cannot be read.
    """
    from training.questions.loading import load_examples

    examples = load_examples(file, require_answers=True, limit=limit, quoting=quoting)
    answers = (example.golden_answers[0] for example in examples)
    return QuestionSizes(len(examples), _mean_tokens(e.question for e in examples), _mean_tokens(answers) + 1)


def _mean_tokens(texts: Iterable[str]) -> int:
    return max(1, round(statistics.fmean(map(len, texts)) / CHARACTERS_PER_TOKEN))


def synthetic_passages(count: int, tokens: int) -> "list[Passage]":
    """Passages of random words whose frequencies follow Zipf's law, four characters for each token.

    Args:
        count: Number of passages; at most `SAMPLE_SIZE` are made.
        tokens: Of each.
    """
    from indexes.corpora.passage import Passage

    generator, characters = np.random.default_rng(0), CHARACTERS_PER_TOKEN * tokens
    weights = 1 / (np.arange(50_000) + 2.7)
    vocabulary = [_word(rank) for rank in range(len(weights))]
    found = []
    for number in range(min(count, SAMPLE_SIZE)):
        ranks = generator.choice(len(weights), size=characters // 3 + 1, p=weights / weights.sum())
        text = " ".join(vocabulary[rank] for rank in ranks.tolist())
        found.append(Passage(str(number), "", text[:characters].strip()))
    return found


def _word(rank: int) -> str:
    """A different word for each rank; frequent words are short, as in text."""
    syllables = []
    while rank >= 0:
        rank, syllable = divmod(rank, 100)
        syllables.append("bcdfghjklmnprstvwxyz"[syllable // 5] + "aeiou"[syllable % 5])
        rank -= 1
    return "".join(syllables)
