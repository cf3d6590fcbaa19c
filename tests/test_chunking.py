"""Chunks fit, overlap, and together are the passage."""

import re
import textwrap
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel, WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing
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
    assert list(Chunker(tokenizer, max_tokens=4, overlap=1).chunk(passage)) == [passage]
    assert len(list(Chunker(tokenizer, max_tokens=3, overlap=1).chunk(passage))) > 1  # the title is a token


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
    with pytest.raises(UsageError, match=f"got max_tokens={max_tokens} and overlap={overlap}"):
        Chunker(tokenizer, max_tokens=max_tokens, overlap=overlap)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"tokenizers\.Tokenizer or a fast transformers tokenizer, got str"):
        Chunker("bert-base-uncased")  # type: ignore[arg-type]


# -- what is guaranteed, for any text and three kinds of tokenizer ---------------------------------------------------


def words_tokenizer() -> Tokenizer:
    """Every word is a token, and so is every punctuation mark; nothing is known."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def bytes_tokenizer() -> Tokenizer:
    """Every byte is a token, so that a letter of an unspaced script is three of them, and a newline is one."""
    tokenizer = Tokenizer(BPE(vocab={c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return tokenizer


def pieces_tokenizer() -> Tokenizer:
    """WordPiece: letters begin and continue words, and a word of more than 100 characters is one unknown token."""
    letters = [*"abcdefghijklmnopqrstuvwxyz.,#", *"港口历史很长。"]
    vocabulary = ["[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)]
    tokenizer = Tokenizer(WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return tokenizer


TOKENIZERS = {"words": words_tokenizer(), "bytes": bytes_tokenizer(), "pieces": pieces_tokenizer()}
WORD = st.sampled_from(["a", "of", "ship", "harbour", "extraordinarily", "港口历史", "x" * 37, "# A", "- b", "e\u0301"])
END = st.sampled_from([" ", " ", " ", ". ", "! ", "。", "\n", "\n\n", ".\n", "\n\n\n"])
ANY_TEXT = st.lists(st.tuples(WORD, END), min_size=1, max_size=150).map(lambda parts: "".join(map("".join, parts)))


def spans_of(text: str, chunks: list[Passage]) -> list[tuple[int, int]]:
    """Where the chunks stand: each begins behind the one before, at its first occurrence that ends behind it too."""
    spans: list[tuple[int, int]] = []
    for chunk in chunks:
        start, (last_start, last_end) = -1, spans[-1] if spans else (-1, -1)
        start = text.index(chunk.text, last_start + 1)
        while start + len(chunk.text) <= last_end:
            start = text.index(chunk.text, start + 1)
        spans.append((start, start + len(chunk.text)))
    return spans


@pytest.mark.parametrize("text_format", ["text", "markdown"])
@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None, database=None)
@given(text=ANY_TEXT, max_tokens=st.integers(48, 90), overlap=st.integers(0, 20), title=st.sampled_from(["", "Title"]))
def test_every_chunk_fits_and_together_they_are_the_text(
    kind: str, text_format: str, text: str, max_tokens: int, overlap: int, title: str
) -> None:
    tokenizer = TOKENIZERS[kind]
    chunker = Chunker(tokenizer, max_tokens=max_tokens, overlap=overlap, text_format=text_format)  # type: ignore[arg-type]
    chunks = list(chunker.chunk(Passage("p", title, text)))
    if len(chunks) == 1:
        assert chunks == [Passage("p", title, text)]
        return
    assert all(len(tokenizer.encode(chunk.contents).ids) <= max_tokens for chunk in chunks)
    # Words of the text in order, without what is repeated: nothing is lost and nothing is made up.
    assert text.strip().startswith(chunks[0].text) and text.rstrip().endswith(chunks[-1].text)
    assert all(chunk.text == chunk.text.strip() != "" for chunk in chunks)
    spans = spans_of(text, chunks)
    for (start, end), (next_start, next_end) in pairwise(spans):
        assert start < next_start and end < next_end
        assert next_start <= end or not text[end:next_start].strip()


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60, deadline=None, database=None)
@given(numbers=st.lists(st.integers(1, 40), min_size=4, max_size=30), overlap=st.integers(2, 24))
def test_at_least_half_of_the_overlap_and_at_most_all_of_it_is_repeated(
    kind: str, numbers: list[int], overlap: int
) -> None:
    """Every word is there once, so that what is repeated cannot be mistaken."""
    tokenizer, words = TOKENIZERS[kind], iter(range(10**6))
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = " ".join(
        " ".join("".join(letters[int(d)] for d in f"{next(words):03d}") for _ in range(number)) + "."
        for number in numbers
    )
    chunks = list(Chunker(tokenizer, max_tokens=80, overlap=overlap).chunk(Passage("p", "", text)))
    for (_, end), (next_start, _) in pairwise(spans_of(text, chunks)):
        shared = text[next_start:end]
        assert overlap // 2 <= count(tokenizer, shared) <= overlap
        assert text[next_start - 1] == " " or kind != "words"  # a word is whole where it fits


@pytest.mark.parametrize(
    ("kind", "piece", "characters"),
    [("words", "x", 4), ("words", "ab", 4), ("bytes", "x", 1), ("bytes", "港口历史", 1 / 3), ("pieces", "Z", 4)],
)
def test_a_text_without_blanks_is_cut_and_repeated(kind: str, piece: str, characters: float) -> None:
    """`characters` of a token; the unknown token of a long word counts one for each four."""
    whole = piece * (100_000 // len(piece))
    tokenizer = TOKENIZERS[kind]
    chunks = [c.text for c in Chunker(tokenizer, max_tokens=64, overlap=12).chunk(Passage("p", "", whole))]
    assert max(map(len, chunks)) <= 64 * characters
    assert max(count(tokenizer, chunk) for chunk in chunks) <= 64
    repeated = (sum(map(len, chunks)) - len(whole)) / (len(chunks) - 1)
    assert 6 * characters - 1 <= repeated <= 12 * characters


def test_sentences_that_are_longer_than_the_overlap_are_repeated_in_part() -> None:
    """semantic-text-splitter 0.33 repeats whole sentences or nothing: of 16 of 128 tokens none of a sentence of 17."""
    text = " ".join(" ".join([f"Ship{i}"] + ["sails"] * 15 + ["home."]) for i in range(60))
    chunks = [c.text for c in Chunker(TOKENIZERS["words"]).chunk(Passage("a", "", text))]
    assert len(chunks) > 5
    for before, after in pairwise(chunks):
        tail = " ".join(before.split()[-7:])  # seven words and the full stop: half of 16 tokens
        assert after.startswith("sails ") and tail in after[: after.index("Ship")]


def test_hard_wrapped_text_is_cut_at_sentences_and_not_at_line_ends() -> None:
    sentences = [
        f"Sentence {i} tells of {'very ' * (i % 5)}old ships and of what they carried home." for i in range(40)
    ]
    wrapped = textwrap.fill(" ".join(sentences), 61)
    chunks = [c.text for c in Chunker(TOKENIZERS["words"], max_tokens=64, overlap=0).chunk(Passage("p", "", wrapped))]
    assert len(chunks) > 5
    assert all(chunk.startswith("Sentence ") and chunk.endswith("home.") for chunk in chunks)
    assert "\n".join(chunks).split() == wrapped.split()


def test_text_that_fits_exactly_is_one_chunk_less() -> None:
    """A chunk may end with the last token that fits, also where a word or a sentence ends with it."""
    text = " ".join(f"one two three four of {i}." for i in range(12))
    chunks = [c.text for c in Chunker(TOKENIZERS["words"], max_tokens=14, overlap=0).chunk(Passage("p", "", text))]
    assert chunks == [f"one two three four of {i}. one two three four of {i + 1}." for i in range(0, 12, 2)]
    words = " ".join(WORDS[:24])
    chunks = [c.text for c in Chunker(TOKENIZERS["words"], max_tokens=8, overlap=0).chunk(Passage("p", "", words))]
    assert chunks == [" ".join(WORDS[i : i + 8]) for i in (0, 8, 16)]


def test_a_list_of_lines_is_cut_between_lines() -> None:
    lines = [f"- item {i} {'of many ' * (i % 4)}things" for i in range(50)]
    chunks = [
        c.text for c in Chunker(TOKENIZERS["words"], max_tokens=40, overlap=0).chunk(Passage("p", "", "\n".join(lines)))
    ]
    assert all(chunk.startswith("- item") and chunk.splitlines()[-1] in lines for chunk in chunks)


def markdown() -> str:
    def section(i: int) -> str:
        body = " ".join(f"Sentence {j} of section {i} says little." for j in range(3 * (i % 6) + 1))
        code = "```\n# no heading\nrun it\n```\n\n" if i % 4 == 2 else ""
        return f"## Part {i}\n\n### Details {i}\n\n{body}\n\n{code}"

    return "".join(map(section, range(24)))


@pytest.mark.parametrize("overlap", [0, 8])
def test_headings_stay_with_their_text(overlap: int) -> None:
    text = markdown()
    chunks = [
        c.text for c in Chunker(TOKENIZERS["words"], max_tokens=56, overlap=overlap).chunk(Passage("a.md", "", text))
    ]
    headings = re.findall(r"^#+ (?:Part|Details) \d+$", text, flags=re.M)
    for heading in headings:
        holding = [chunk for chunk in chunks if re.search(rf"^{heading}$", chunk, flags=re.M)]
        following = [chunk.partition(f"{heading}\n")[2].strip() for chunk in holding]
        assert any(following), heading  # never the last line of all chunks that have it
        number = heading.split()[-1]
        assert any(f"Sentence 0 of section {number} says" in part for part in following), heading
    assert not any(chunk.splitlines()[-1].startswith("#") and "no heading" not in chunk for chunk in chunks)


def test_markdown_is_recognised_by_the_document_name_unless_the_format_is_given() -> None:
    def texts(id_: str, **options: str) -> list[str]:
        chunker = Chunker(TOKENIZERS["words"], max_tokens=56, overlap=0, **options)  # type: ignore[arg-type]
        return [c.text for c in chunker.chunk(Passage(id_, "", markdown()))]

    as_markdown, as_text = texts("x", text_format="markdown"), texts("x", text_format="text")
    assert as_markdown != as_text
    assert texts("guide/intro.md") == texts("a.DOCX") == texts("page.html") == as_markdown
    assert texts("notes.txt") == texts("scan.pdf") == texts("17") == texts("a.md", text_format="text") == as_text
    with pytest.raises(UsageError, match="one of auto, text, markdown, got 'html'"):
        texts("x", text_format="html")


def test_title_prompt_and_special_tokens_count() -> None:
    tokenizer = TOKENIZERS["pieces"]
    passage = Passage("p", "of ships", "the ship sails home. " * 30)
    chunks = list(Chunker(tokenizer, max_tokens=64, overlap=0, prompt="passage, ").chunk(passage))
    sizes = [len(tokenizer.encode(f"passage, {chunk.contents}").ids) for chunk in chunks]
    assert max(sizes) <= 64 and min(sizes[:-1]) >= 40
    assert {chunk.title for chunk in chunks} == {"of ships"}


def test_a_title_that_leaves_no_room_is_shortened() -> None:
    tokenizer = TOKENIZERS["words"]
    passage = Passage("p", "a very long title of ten words in all indeed", " ".join(WORDS))
    chunks = list(Chunker(tokenizer, max_tokens=12, overlap=2).chunk(passage))
    assert {chunk.title for chunk in chunks} == {"a very long title of"}
    assert max(count(tokenizer, chunk.contents) for chunk in chunks) <= 12


def test_no_room_for_a_text_is_refused() -> None:
    with pytest.raises(UsageError, match="room for 9 tokens of prompt and special tokens, for 3 that overlap, "):
        Chunker(TOKENIZERS["pieces"], max_tokens=12, overlap=3, prompt="passage")


def test_real_passages_fit_a_real_tokenizer(data_dir: Path, real_encoder_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_encoder_dir)
    passages = list(islice(Corpus.from_file(data_dir / "2wiki/corpus.jsonl.gz"), 100))
    chunker = Chunker(tokenizer, max_tokens=48, overlap=8)
    chunks = [chunk for passage in passages for chunk in chunker.chunk(passage)]
    assert len(chunks) > len(passages)
    assert max(len(tokenizer.encode(c.text, add_special_tokens=False)) for c in chunks) <= 48
