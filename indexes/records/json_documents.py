"""JSON files that are one document, element by element: an array of gigabytes is never held whole.

Every element of a top-level array is decoded by `json` itself as soon as its text is there, so what is valid is what
`json` finds valid, and memory is that of the largest element. An object, as SQuAD ships its 40 MB, is read whole.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from indexes.errors import DataError

HEAD_BYTES = 2**16  # what is examined to distinguish a document from lines
_CHUNK = 2**20  # bytes
_BLANKS = re.compile(r"[ \t\r\n]*")
# A first line that is no JSON by itself may begin a document or be a broken record; only SQuAD's keys distinguish them.
_SQUAD_HEAD = re.compile(r'\{\s*"(version|data)"\s*:')
# An error within so many characters before the end of the text read so far may be about a token that is cut there.
_LONGEST_TOKEN = 64
_ENDS = tuple(",] \t\r\n")  # what may follow an element
_DECODER = json.JSONDecoder()


def is_json_document(head: str) -> bool:
    """Whether a file is one JSON value, and not one object per line; `head` is how its text begins."""
    text = head.lstrip("\ufeff \t\r\n")
    line, newline, _ = text.partition("\n")
    if line.startswith("[") or line.strip() == "{":
        return True
    if not newline and len(head) >= HEAD_BYTES // 4:  # the line continues after the head
        return _SQUAD_HEAD.match(line) is not None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return _SQUAD_HEAD.match(line) is not None
    return isinstance(value, dict) and isinstance(value.get("data"), list)


def read_json_document(stream: BinaryIO, name: str) -> Iterator[Any]:
    """The elements of the array in a file; of an object those of its `data`, or the object itself.

    Raises:
        DataError: The file is not UTF-8, is truncated, is not JSON from some place on, or has no element.
    """
    window = _Window(_decoded(stream, name), name)
    elements = window.elements() if window.next() == "[" else iter(_inside(window.rest(), name))
    first = next(elements, _NOTHING)
    if first is _NOTHING:
        raise _empty(name)
    yield first
    yield from elements


_NOTHING = object()


def _inside(document: Any, name: str) -> list[Any]:
    if isinstance(document, dict):
        document = document.get("data", [document])
    if isinstance(document, list):
        return document
    raise _empty(name)


def _empty(name: str) -> DataError:
    return DataError(f"{name}: a JSON file must hold at least one question or passage, got none. Check the file.")


class _Window:
    """The text of a file from the current element on, and the place where it begins."""

    def __init__(self, chunks: Iterator[str], name: str) -> None:
        self._chunks = chunks
        self._name = name
        self._text = ""
        self._position = 0
        self._line = 1  # of the first character of the text
        self._column = 1

    def next(self) -> str:
        """The next character that is not blank, without taking it; empty at the end."""
        while True:
            blanks = _BLANKS.match(self._text, self._position)
            self._position = blanks.end() if blanks else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_on():
                return ""

    def elements(self) -> Iterator[Any]:
        """The elements of the array that the text begins with; nothing may follow it."""
        self._take("[")
        more = self.next() != "]"
        while more:
            yield self._value()
            more = self.next() != "]"
            if more:
                self._take(",")
        self._take("]")
        if self.next():
            raise self._error("Extra data", self._position)

    def rest(self) -> Any:
        """The whole remaining text as one value."""
        while self._read_on():
            pass
        try:
            return _DECODER.decode(self._text)
        except json.JSONDecodeError as error:
            raise self._error(error.msg, error.pos) from error
        except (ValueError, RecursionError) as error:
            raise self._error(str(error), self._position) from error

    def _take(self, character: str) -> None:
        if self.next() != character:
            raise self._error(f"Expecting {character!r}", self._position)
        self._position += 1

    def _value(self) -> Any:
        self.next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
                # A number may continue after the text read so far ("1" of "1.5", or "1." of it).
                if end <= len(self._text) - _LONGEST_TOKEN or self._text[end : end + 1] in _ENDS or not self._read_on():
                    self._position = end
                    return value
            except json.JSONDecodeError as error:
                if not self._is_cut(error) or not self._read_on():
                    raise self._error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self._error(str(error), self._position) from error

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_TOKEN

    def _read_on(self) -> bool:
        """Drop what was taken and at least double what is left, so that no element is parsed many times.

        At the end of the file nothing changes: places in the text stay what they are.
        """
        chunk = next(self._chunks, "")
        if not chunk:
            return False
        self._line, self._column = self._place(self._position)
        parts = [self._text[self._position :]]
        wanted, self._position = max(len(parts[0]), 1), 0
        while chunk:
            parts.append(chunk)
            wanted -= len(chunk)
            chunk = next(self._chunks, "") if wanted > 0 else ""
        self._text = "".join(parts)
        return True

    def _place(self, position: int) -> tuple[int, int]:
        newlines = self._text.count("\n", 0, position)
        if not newlines:
            return self._line, self._column + position
        return self._line + newlines, position - self._text.rindex("\n", 0, position)

    def _error(self, reason: str, position: int) -> DataError:
        line, column = self._place(position)
        return DataError(
            f"{self._name}:{line}: the file must be one JSON array or object, got broken JSON at column {column} "
            f"({reason}). Correct that place, or copy the file again."
        )


def _decoded(stream: BinaryIO, name: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    for raw in _chunks(stream, name):
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            raise DataError(
                f"{name}:{line}: a JSON file must be UTF-8, got {error.reason}. Convert the file."
            ) from error
        line += text.count("\n")
        if text:
            yield text


def _chunks(stream: BinaryIO, name: str) -> Iterable[bytes]:
    try:
        while raw := stream.read(_CHUNK):
            yield raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{name}: compressed data must be complete, got data that break off ({error}). Copy or download the file "
            "again."
        ) from error
    except OSError as error:
        raise DataError(f"{name}: a file must be readable, got an error: {error}. Check the file.") from error
    yield b""
