"""Chunks fit, overlap, and together are the passage."""

from itertools import islice, pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from indexes import Chunker, Corpus, Passage, UsageError

WORDS = [f"w{i}" for i in range(97)]
# Sentences of nine words and their full stop, so that there are borders to cut at.
TEXT = " ".join(word + ("." if i % 9 == 8 else "") for i, word in enumerate(WORDS))
LONG = Passage("doc", "Title", TEXT)


@pytest.fixture
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(["[UNK]", ".", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize(("max_tokens", "overlap"), [(25, 0), (25, 12), (7, 3)])
def test_chunks_fit_cover_the_text_in_order_and_overlap(tokenizer: Tokenizer, max_tokens: int, overlap: int) -> None:
    chunks = list(Chunker(tokenizer, max_tokens=max_tokens, overlap=overlap).chunk(LONG))
    assert [c.id for c in chunks] == [f"doc#{n}" for n in range(len(chunks))]
    assert {c.title for c in chunks} == {"Title"}
    assert max(count(tokenizer, c.text) for c in chunks) <= max_tokens
    spans = [(TEXT.index(c.text), TEXT.index(c.text) + len(c.text)) for c in chunks]
    assert (spans[0][0], spans[-1][1]) == (0, len(TEXT))
    for (start, end), (next_start, next_end) in pairwise(spans):
        assert start < next_start and end < next_end
        if overlap:
            shared = TEXT[next_start:end]
            assert 0 < count(tokenizer, shared) <= overlap
        else:
            assert TEXT[end:next_start].strip() == "" and next_start > end


def test_a_passage_that_fits_is_returned_as_it_is(tokenizer: Tokenizer) -> None:
    passage = Passage("short", "T", "  w1 w2 w3 ")
    assert list(Chunker(tokenizer, max_tokens=3, overlap=1).chunk(passage)) == [passage]


def test_the_tokenizers_truncation_neither_matters_nor_changes(tokenizer: Tokenizer) -> None:
    expected = list(Chunker(tokenizer, max_tokens=20, overlap=5).chunk(LONG))
    tokenizer.enable_truncation(max_length=10)
    assert list(Chunker(tokenizer, max_tokens=20, overlap=5).chunk(LONG)) == expected
    assert tokenizer.truncation["max_length"] == 10


def test_a_fast_transformers_tokenizer_counts_the_same(tokenizer: Tokenizer) -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    settings = {"max_tokens": 20, "overlap": 5}
    assert list(Chunker(fast, **settings).chunk(LONG)) == list(Chunker(tokenizer, **settings).chunk(LONG))


def test_a_chunked_corpus_keeps_order_and_source(tokenizer: Tokenizer) -> None:
    corpus = Corpus.from_passages([Passage("x", "", "w1 w2"), LONG, Passage("y", "", "w3")])
    chunked = corpus.chunked(Chunker(tokenizer, max_tokens=60, overlap=0))
    assert list(chunked.ids) == ["x", "doc#0", "doc#1", "y"]


@pytest.mark.parametrize(("max_tokens", "overlap"), [(16, 16), (16, 17), (0, 0), (16, -1)])
def test_an_overlap_that_leaves_nothing_new_is_refused(tokenizer: Tokenizer, max_tokens: int, overlap: int) -> None:
    with pytest.raises(UsageError, match=f"max_tokens={max_tokens} and overlap={overlap} came"):
        Chunker(tokenizer, max_tokens=max_tokens, overlap=overlap)


def test_something_that_is_no_fast_tokenizer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"tokenizers\.Tokenizer or a fast transformers tokenizer, but str"):
        Chunker("bert-base-uncased")  # type: ignore[arg-type]


def test_real_passages_fit_a_real_tokenizer(data_dir: Path, real_encoder_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_encoder_dir)
    passages = list(islice(Corpus.from_file(data_dir / "2wiki/corpus.jsonl.gz"), 100))
    chunker = Chunker(tokenizer, max_tokens=48, overlap=8)
    chunks = [chunk for passage in passages for chunk in chunker.chunk(passage)]
    assert len(chunks) > len(passages)
    assert max(len(tokenizer.encode(c.text, add_special_tokens=False)) for c in chunks) <= 48
