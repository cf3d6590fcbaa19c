"""Cut long passages into chunks, measured in tokens of the encoder.

    text -> positions where it may be cut, from best to worst -> chunks that fit, each repeating the end of the last

Plain text is cut between paragraphs, else sentences, else words. Markdown is cut where the Markdown splitter of
semantic-text-splitter would (between sections, list items, blocks), else like plain text. A text without blanks is cut
between two characters.

semantic-text-splitter 0.33 finds the positions but does not make the chunks: it repeats whole pieces of the level it
cuts at or nothing, so that an overlap of 16 tokens between sentences of 17 is empty; it prefers every single newline to
the end of a sentence, also in hard-wrapped text; and it leaves a heading as a chunk of its own where its section is
long.

Positions are characters of the text. Axes: T tokens of a text.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from semantic_text_splitter import MarkdownSplitter, TextSplitter
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from indexes.corpora.documents import MARKDOWN_SUFFIXES
from indexes.corpora.passage import Passage
from indexes.errors import UsageError

TextFormat: TypeAlias = Literal["auto", "text", "markdown"]
TEXT_FORMATS = ("auto", "text", "markdown")

# A longer token is an unknown one: WordPiece makes one unknown token of any word of more than 100 characters
# (tokenizers, `max_input_chars_per_word`). Counted as one token, such a text would always fit.
_LONGEST_TOKEN = 100
_CHARACTERS_PER_TOKEN = 4
# Widths of hard-wrapped text; longer lines are paragraphs of one line.
_WIDEST_WRAP = 132
_NARROWEST_WRAP = 20
# Finding sentences takes time with the square of the text (semantic-text-splitter 0.33: 1.3 s for 100,000 characters).
_WINDOW = 4000
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_LIST_ITEM = re.compile(r"\s*(?:[-*+•‣◦\u2013]|\(?\d{1,3}[.)]|[A-Za-z][.)])\s")
_HEADING = re.compile(r"[ ]{0,3}#{1,6}(?:[ \t].*)?$")
_UNDERLINE = re.compile(r"[ ]{0,3}(?:=+|-+)[ \t]*$")
_FENCE = re.compile(r"[ ]{0,3}(```|~~~)")


class Chunker:
    """Cuts a passage at section, paragraph, sentence or word boundaries, the best ones that fill the chunks well.

    The length of a chunk is what an encoder reads: the prompt before it, the title, the text, and the special tokens
    that the tokenizer adds. So chunks of `Encoder.max_length` tokens are read completely.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | PreTrainedTokenizerFast,
        *,
        max_tokens: int = 128,
        overlap: int = 16,
        text_format: TextFormat = "auto",
        prompt: str = "",
    ) -> None:
        """Prepare a chunker.

        Args:
            tokenizer: Counts the tokens; it is copied, so its truncation setting does not matter.
            max_tokens: Maximum tokens of a chunk with its title, prompt and special tokens. A title that would take
                more than half of what the overlap leaves is shortened in the chunks. Only a single character of more
                tokens than that exceeds it.
            overlap: Maximum tokens of text that a chunk repeats from the one before. At least half of them (rounded
                down) are repeated, from the beginning of a sentence if one begins there, else of a word, else (where
                words are longer, and in scripts without blanks) from any character. It is less only where the text of
                the chunk before is itself shorter than that, or where one character is more than half.
            text_format: "text", "markdown", or "auto": Markdown where the id of a passage is the name of a document
                that is read as Markdown (.md, .html, .docx), else text.
            prompt: What the encoder puts before a passage (`Encoder.passage_prompt`).

        Raises:
            UsageError: A number is out of range, or the tokenizer is not a fast one.
        """
        if max_tokens < 1 or not 0 <= overlap < max_tokens:
            raise UsageError(
                "A chunk must have max_tokens of at least 1 and an overlap from 0 to below max_tokens, got "
                f"max_tokens={max_tokens} and overlap={overlap}. Lower the overlap or raise max_tokens."
            )
        if text_format not in TEXT_FORMATS:
            raise UsageError(f"text_format must be one of {', '.join(TEXT_FORMATS)}, got {text_format!r}. Choose one.")
        self.max_tokens = max_tokens
        self.overlap = overlap
        self.text_format: TextFormat = text_format
        self.prompt = prompt
        self._tokenizer = _unlimited_copy(tokenizer)
        self._sentences = TextSplitter((1, 2**31), trim=False)
        added = self._read("", "")
        if max_tokens - added <= overlap:
            raise UsageError(
                f"A chunk must have room for {added} tokens of prompt and special tokens, for {overlap} that overlap, "
                f"and for something new, got max_tokens={max_tokens}. Raise it, or lower the overlap."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments to make the same chunker again, except the tokenizer; ready for JSON."""
        names = ("max_tokens", "overlap", "text_format", "prompt")
        return {name: getattr(self, name) for name in names}

    def chunk(self, passage: Passage) -> Iterator[Passage]:
        """The chunks of a passage in order, each under its title.

        A passage that fits is returned as it is. Otherwise chunk n has the id ``{id}#{n}``, counted from 0. Without
        the overlap, chunks are the text except for blanks between them.
        """
        if not passage.text.strip() or self._read(passage.title, passage.text) <= self.max_tokens:
            yield passage
            return
        title = self._fitting_title(passage.title)
        cutter = _Cutter(self, title, passage.text, markdown=self._is_markdown(passage))
        texts = [passage.text[start:end].strip() for start, end in cutter.spans()]
        if len(texts) < 2:
            yield Passage(passage.id, title, passage.text)
            return
        for number, text in enumerate(texts):
            yield Passage(f"{passage.id}#{number}", title, text)

    def _is_markdown(self, passage: Passage) -> bool:
        if self.text_format == "auto":
            return PurePath(passage.id).suffix.lower() in MARKDOWN_SUFFIXES
        return self.text_format == "markdown"

    def _fitting_title(self, title: str) -> str:
        """The title, or its first words where all of it would leave less than half of a chunk to the text."""
        room = max((self.max_tokens - self.overlap - self._read("", "")) // 2, 0)
        while title and self._read(title, "") - self._read("", "") > room:
            title = title.rpartition(" ")[0].rstrip() if " " in title else title[: len(title) // 2]
        return title

    def _read(self, title: str, text: str) -> int:
        """Tokens that an encoder reads of such a passage."""
        contents = Passage("", title, text).contents
        return _weight(self._tokenizer.encode(f"{self.prompt}{contents}", add_special_tokens=True))

    def _count(self, text: str) -> int:
        """Tokens of a text without title, prompt and special tokens."""
        return _weight(self._tokenizer.encode(text, add_special_tokens=False))


class _Cutter:
    """The positions where one text may be cut, and the spans between them."""

    def __init__(self, chunker: Chunker, title: str, text: str, *, markdown: bool) -> None:
        self._chunker = chunker
        self._title = title
        self._text = text
        self._room = max(1, chunker.max_tokens - chunker._read(title, ""))
        self._ends_T = _token_ends(chunker._tokenizer.encode(text, add_special_tokens=False))
        self._places = self._find_places(markdown)
        self._words = [match.end() for match in re.finditer(r"\s+", text)]

    def spans(self) -> Iterator[tuple[int, int]]:
        """Start and end of each chunk, both ascending; no chunk ends in blanks."""
        start = end = 0
        last = len(self._text.rstrip())
        while end < last:
            start, end = self._next(start, end, last)
            yield start, end

    def _next(self, start: int, end: int, last: int) -> tuple[int, int]:
        """The span after this one: it begins inside of it or at its end, and ends later."""
        first = self._overlap_start(start, end) if end else 0
        room, new = self._room, self._without_blanks(end)
        while True:
            reach = self._reach(first, room)
            if reach > new:
                chosen = last if reach >= last else self._best_end(first, new, reach)
                excess = self._excess(first, chosen)
                if excess <= 0 or chosen <= self._one_character(new):
                    return first, chosen
                # A part of a text has other tokens by itself than inside the text, so the count is checked and
                # corrected.
                room -= excess
            elif first < end:  # the overlap leaves no room for anything new
                first, room = self._start_within([self._words], self._one_character(first), end), self._room
            else:
                return first, self._one_character(new)

    def _excess(self, start: int, end: int) -> int:
        text = self._text[start:end].strip()
        return self._chunker._read(self._title, text) - self._chunker.max_tokens

    # -- positions -----------------------------------------------------------------------------------------------

    def _tokens_before(self, position: int) -> int:
        """Tokens that end at a position or before it."""
        return int(np.searchsorted(self._ends_T, position, side="right"))

    def _position_after(self, tokens: int) -> int:
        """The position after so many tokens of the text."""
        return int(self._ends_T[min(tokens, len(self._ends_T)) - 1]) if tokens > 0 else 0

    def _reach(self, start: int, room: int) -> int:
        """The last position that `room` tokens after a start reach, never inside a character."""
        reach = self._position_after(self._tokens_before(start) + room)
        while 0 < reach < len(self._text) and _is_joined(self._text[reach - 1], self._text[reach]):
            reach -= 1
        return reach

    def _one_character(self, start: int) -> int:
        """The end of the character that begins here."""
        end = start + 1
        while end < len(self._text) and _is_joined(self._text[end - 1], self._text[end]):
            end += 1
        return end

    def _without_blanks(self, position: int) -> int:
        """The position after the blanks that begin here."""
        while position < len(self._text) and self._text[position].isspace():
            position += 1
        return position

    # -- where a chunk ends --------------------------------------------------------------------------------------

    def _best_end(self, start: int, new: int, reach: int) -> int:
        """The best place from the middle of what fits to its end, else the last blank, else any character.

        It lies after `new`, the position where the text that the last chunk did not have begins.
        """
        half = max(self._reach(start, self._room // 2), new)
        limit = self._without_blanks(reach)  # where the next word begins, if the text that fits ends with a word
        for places in self._places:
            if (found := _last(places, limit)) > half:
                return self._rstripped(found)
        found = self._rstripped(_last(self._words, limit))
        return found if found > new else reach

    def _rstripped(self, end: int) -> int:
        while end > 0 and self._text[end - 1].isspace():
            end -= 1
        return end

    # -- where the next one begins -------------------------------------------------------------------------------

    def _overlap_start(self, start: int, end: int) -> int:
        """Where the overlap begins: at most `overlap` tokens before the end, and at least half of them."""
        overlap = self._chunker.overlap
        if not overlap:
            return end
        total, levels = self._tokens_before(end), [*self._places, self._words]
        earliest = max(self._position_after(total - overlap), self._one_character(start))
        latest = self._without_blanks(self._position_after(total - max(1, overlap // 2)))
        first = self._start_within(levels, earliest, min(latest, end))
        while first < end and self._chunker._count(self._text[first:end].strip()) > overlap:
            first = self._start_within(levels, self._one_character(first), min(latest, end))
        return first

    def _start_within(self, levels: Sequence[Sequence[int]], earliest: int, latest: int) -> int:
        """The first position between two others, of the best level that has one there; else `earliest`."""
        for places in levels:
            number = bisect_left(places, earliest)
            if number < len(places) and places[number] <= latest:
                return places[number]
        while 0 < earliest < len(self._text) and _is_joined(self._text[earliest - 1], self._text[earliest]):
            earliest += 1
        return earliest

    # -- places --------------------------------------------------------------------------------------------------

    def _find_places(self, markdown: bool) -> list[list[int]]:
        """Positions at which something begins, best first: sections of Markdown, paragraphs, sentences."""
        text = self._text
        paragraphs = [match.end() for match in _PARAGRAPH.finditer(text)]
        sentences = list(_sentence_starts(self._chunker._sentences, text, [0, *paragraphs, len(text)]))
        if not markdown:
            return [paragraphs, sorted({*paragraphs, *sentences})]
        headed = _headed(text)
        found = [self._section_starts(), paragraphs, sorted({*paragraphs, *sentences, *_lines_of_blocks(text)})]
        return [sorted({headed.moved(position) for position in places}) for places in found]

    def _section_starts(self) -> list[int]:
        """The lines at which the Markdown splitter would cut without overlap.

        It counts characters and is given no more of a line than fits: positions inside of lines are found otherwise,
        and it takes minutes for 100,000 characters without a blank.
        """
        tokens = max(1, self._room - self._chunker.overlap)
        size = max(1, tokens * len(self._text) // max(1, len(self._ends_T)))
        starts, shown, shortened, position, length = [], {}, [], 0, 0
        for line in self._text.splitlines(keepends=True):
            shown[length] = position
            shortened.append(line if len(line) <= size else f"{line[: size - 1]}\n")
            position, length = position + len(line), length + len(shortened[-1])
        for found, _ in MarkdownSplitter(size, trim=False).chunk_indices("".join(shortened)):
            if shown.get(found):
                starts.append(shown[found])
        return starts


@dataclass(frozen=True)
class _Headings:
    """Where headings begin, and where the text under them begins."""

    starts: Sequence[int]
    ends: Sequence[int]

    def moved(self, position: int) -> int:
        """A position, or the beginning of the heading that a cut there would separate from its text."""
        number = bisect_left(self.ends, position)
        if number < len(self.ends) and self.starts[number] < position <= self.ends[number]:
            return self.starts[number]
        return position


def _headed(text: str) -> _Headings:
    """The headings of Markdown outside of code; consecutive headings count as one that begins with the first."""
    starts: list[int] = []
    ends: list[int] = []
    lines = [(match.start(), match[0].rstrip("\n")) for match in re.finditer(r"[^\n]*\n|[^\n]+$", text)]
    fence = ""
    for number, (start, line) in enumerate(lines):
        if marker := _FENCE.match(line):
            fence = "" if fence == marker[1] else fence or marker[1]
        if fence or not _is_heading(lines, number):
            continue
        under = number + 1
        while under < len(lines) and (not lines[under][1].strip() or _UNDERLINE.match(lines[under][1])):
            under += 1
        end = lines[under][0] if under < len(lines) else len(text)
        if ends and ends[-1] == start:
            ends[-1] = end
        else:
            starts.append(start)
            ends.append(end)
    return _Headings(starts, ends)


def _is_heading(lines: Sequence[tuple[int, str]], number: int) -> bool:
    line = lines[number][1]
    if _HEADING.match(line):
        return True
    if not line.strip() or number + 1 == len(lines) or _LIST_ITEM.match(line):
        return False
    follows_blank = number == 0 or not lines[number - 1][1].strip()
    return follows_blank and _UNDERLINE.match(lines[number + 1][1]) is not None


def _lines_of_blocks(text: str) -> list[int]:
    """Where lines of code, tables and lists begin, which are not wrapped sentences."""
    found, fenced, start = [], False, 0
    for line in text.splitlines(keepends=True):
        if _FENCE.match(line):
            fenced = not fenced
        if start and (fenced or line.lstrip().startswith("|") or _LIST_ITEM.match(line)):
            found.append(start)
        start += len(line)
    return found


def _sentence_starts(splitter: TextSplitter, text: str, borders: Sequence[int]) -> Iterator[int]:
    """Where sentences begin (Unicode, UAX #29), and lines that are not wrapped; `borders` are those of paragraphs."""
    for start, stop in pairwise(borders):
        flowing, kept = _unwrapped(text[start:stop])
        yield from (start + position for position in kept)
        while len(flowing):
            window = flowing[:_WINDOW]
            found = [position for position, _ in splitter.chunk_indices(window)][1:]
            if len(window) == len(flowing):
                yield from (start + position for position in found)
                break
            # The last sentence of a window may continue after it, so the next window begins with it.
            step = found[-1] if found else len(window)
            yield from (start + position for position in found)
            start, flowing = start + step, flowing[step:]


def _unwrapped(paragraph: str) -> tuple[str, list[int]]:
    """A paragraph with blanks instead of newlines, of the same length, and where lines begin that are not wrapped.

    A line is wrapped if the next word would not have fitted into the width of the paragraph.
    """
    lines = paragraph.split("\n")
    width = max(len(line.rstrip()) for line in lines)
    kept, position = [], 0
    for line, following in pairwise(lines):
        position += len(line) + 1
        word = following.split(maxsplit=1)[:1]
        full = len(line.rstrip()) + 1 + (len(word[0]) if word else 0) > 0.8 * width
        wrapped = _NARROWEST_WRAP <= width <= _WIDEST_WRAP and full and not _LIST_ITEM.match(following)
        if not wrapped and following.strip():
            kept.append(position)
    return re.sub(r"[\r\n]", " ", paragraph), kept


def _is_joined(left: str, right: str) -> bool:
    """Whether two code points belong to one character: a letter and its marks, or an emoji and its modifiers."""
    joiners = "\u200d\ufe0e\ufe0f"
    skin = "\U0001f3fb" <= right <= "\U0001f3ff"
    return right in joiners or left == "\u200d" or skin or unicodedata.category(right) in ("Mn", "Me", "Mc")


def _last(places: Sequence[int], limit: int) -> int:
    """The last of these positions up to a limit; -1 when there is none."""
    number = bisect_right(places, limit)
    return places[number - 1] if number else -1


def _weight(encoding: Any) -> int:
    """The number of tokens of a text; an unknown token of a long text counts as several."""
    lengths_T = np.diff(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)).ravel()
    long_T = lengths_T[lengths_T > _LONGEST_TOKEN]
    return len(lengths_T) - len(long_T) + int((-(-long_T // _CHARACTERS_PER_TOKEN)).sum())


def _token_ends(encoding: Any) -> NDArray[np.int64]:
    """Where each token ends, int64 [T], ascending; an unknown token of a long text is split as `_weight` counts it."""
    offsets_T2 = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    starts_T, ends_T = offsets_T2.T
    parts = [ends_T]
    for start, end in offsets_T2[ends_T - starts_T > _LONGEST_TOKEN].tolist():
        parts.append(np.arange(start + _CHARACTERS_PER_TOKEN, end, _CHARACTERS_PER_TOKEN))
    return np.sort(np.concatenate(parts))


def _unlimited_copy(tokenizer: Tokenizer | PreTrainedTokenizerFast) -> Tokenizer:
    backend = tokenizer.backend_tokenizer if isinstance(tokenizer, PreTrainedTokenizerFast) else tokenizer
    if not isinstance(backend, Tokenizer):
        raise UsageError(
            "A chunker needs a tokenizers.Tokenizer or a fast transformers tokenizer, got "
            f"{type(tokenizer).__name__}. Load it with AutoTokenizer.from_pretrained(..., use_fast=True)."
        )
    copy = Tokenizer.from_str(backend.to_str())
    # With truncation every text would seem short enough.
    copy.no_truncation()
    copy.no_padding()
    return copy
