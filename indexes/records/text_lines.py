"""Lines of text files: plain or gzipped, numbered, of bounded length, decoded as UTF-8.

A line that is no text comes out with the reason, so that the caller may leave it out; a compressed file that breaks off
is an error, since it is unknown what is missing.
"""

import gzip
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from indexes.errors import DataError
from indexes.records.record import Place

# A line is held in memory whole, and an archive of kilobytes can unpack to one of gigabytes.
LONGEST_LINE = 64 * 2**20
_GZIP_MAGIC = b"\x1f\x8b"

Opener: TypeAlias = Callable[[], AbstractContextManager[BinaryIO]]


class Line(NamedTuple):
    """A line with its end and its number, from 1; one that is no text has the reason, and a replacement."""

    number: int
    text: str
    error: DataError | None = None


def is_gzip(path: Path) -> bool:
    """Whether a file is gzipped, by its first bytes, whatever its name: browsers unpack ``.gz`` files on the way.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


def plain_or_gzip(path: Path) -> Opener:
    """Opens the bytes of a file, uncompressed where it is gzipped."""

    def open_file() -> AbstractContextManager[BinaryIO]:
        return gzip.open(path, "rb") if is_gzip(path) else path.open("rb")  # type: ignore[return-value]

    return open_file


def read_lines(open_stream: Opener, name: str) -> Iterator[Line]:
    """The lines of a stream with their ends.

    Args:
        open_stream: Opens the uncompressed bytes.
        name: How errors call the file.

    Raises:
        DataError: The compressed data are damaged or incomplete, or the file cannot be read.
    """
    number = 0
    try:
        with open_stream() as stream:
            while raw := stream.readline(LONGEST_LINE + 1):
                number += 1
                yield _line(raw, stream, Place(name, "line", number))
    # BadGzipFile is an OSError, so the order matters.
    except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{name}: compressed data must be complete, got data that break off after line {number} ({error}). Copy or "
            "download the file again."
        ) from error
    except OSError as error:
        raise DataError(f"{name}: a file must be readable, got an error after line {number}: {error}.") from error


def _line(raw: bytes, stream: BinaryIO, place: Place) -> Line:
    number = int(place.number)
    if len(raw) > LONGEST_LINE and not raw.endswith(b"\n"):
        return _shortened(raw, stream, place)
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as cause:
        error = DataError(
            f"{place}: text must be UTF-8, got {cause.reason} at byte {cause.start + 1}. Convert the file, for "
            "instance with iconv."
        )
        # A replacement character never swallows ASCII, so quotes and delimiters stay where they are.
        return Line(number, raw.decode(errors="replace"), error)
    if "\0" in text:
        error = DataError(
            f"{place}: text must be UTF-8, got a NUL byte: this is another encoding such as UTF-16, or damaged. "
            "Convert the file or fetch it again."
        )
        return Line(number, text, error)
    return Line(number, text)


def _shortened(raw: bytes, stream: BinaryIO, place: Place) -> Line:
    """The beginning of a line that is too long, whose rest is skipped."""
    quotes = raw.count(b'"')
    while (rest := stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
        quotes += rest.count(b'"')
    quotes += rest.count(b'"')
    error = DataError(f"{place}: a line must have at most {LONGEST_LINE} bytes, got more. Cut the passage.")
    text = raw[:10_000].decode(errors="replace")
    # A quote that is closed in the part that was cut must not swallow the lines that follow.
    unclosed = (quotes - text.count('"')) % 2
    return Line(int(place.number), f'{text}"\n' if unclosed else f"{text}\n", error)
