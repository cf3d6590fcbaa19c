"""The quarantine: a file for the broken records that ``on_error="skip"`` leaves out of a corpus."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from indexes.errors import DataError, ResourceError, UsageError, check_on_error
from indexes.records.record import Place

_ENTRY = ("source", "error", "content")  # and the line, record or file
_LONGEST_ENTRY = 2**20
_SHOWN = 2000  # characters of a broken record that are kept


class Quarantine:
    """Broken records, one JSON line each; the file is made when the first one is added.

    Attributes:
        count: How many records were added.
        first: Why the first one is broken.
    """

    def __init__(self, file: Path | None) -> None:
        self.count = 0
        self.first: DataError | None = None
        self._file = file
        self._stream: TextIO | None = None
        if file is not None and os.path.lexists(file):
            _refuse_other_files(file)
            # The entries of an earlier reading do not belong to this one.
            with writing_errors():
                file.unlink()

    def add(self, place: Place, error: DataError, content: str) -> None:
        """Write one broken record.

        Args:
            place: Where it is found.
            error: Why it is broken.
            content: Its text; the first 2,000 characters are kept.

        Raises:
            ResourceError: Writing fails.
        """
        self.count += 1
        self.first = self.first or error
        if self._file is None:
            return
        number = place.number if isinstance(place.number, int) else _printable(place.number)
        entry = {
            "source": _printable(place.source),
            place.unit: number,
            "error": _printable(str(error)),
            "content": _printable(_shortened(content)),
        }
        with writing_errors():
            if self._stream is None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._file.open("w", encoding="utf-8")
            self._stream.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._stream is not None:
            with writing_errors():
                self._stream.close()


def quarantine_for(on_error: str, file: str | Path | None, path: str | Path) -> Quarantine | None:
    """The quarantine of a reading; None where broken records are raised.

    Args:
        on_error: "raise" or "skip".
        file: Where the records that are left out are written; None to only count them.
        path: The corpus that is read.

    Raises:
        UsageError: The arguments contradict each other, or the file would overwrite something else.
    """
    check_on_error(on_error)
    if on_error == "raise" and file is not None:
        raise UsageError(
            f'A quarantine needs on_error="skip", got on_error="raise" and quarantine={str(file)!r}. Pass both or '
            "neither."
        )
    if file is not None and _lies_in(file, path):
        raise UsageError(
            f"A quarantine must lie outside of the corpus that is read, got {str(file)!r} for {str(path)!r}. Choose "
            "another file."
        )
    return None if on_error == "raise" else Quarantine(None if file is None else Path(file))


@contextmanager
def writing_errors() -> Iterator[None]:
    """Turns errors of writing into a `ResourceError`."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"A corpus needs writable folders and space for a copy of its passages, got: {error}. Free some space, or "
            "choose another cache_dir or quarantine."
        ) from error


def _lies_in(file: str | Path, path: str | Path) -> bool:
    try:
        # Path.resolve raises for circular links, which do not matter here.
        return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(path))
    except ValueError:
        return False


def _refuse_other_files(file: Path) -> None:
    """A mistyped name must not overwrite a file that is no quarantine."""
    with writing_errors(), file.open("rb") as stream:
        first = stream.readline(_LONGEST_ENTRY)
    try:
        entry = json.loads(first) if first else dict.fromkeys(_ENTRY)
    except ValueError:
        entry = None
    if not isinstance(entry, dict) or not entry.keys() >= set(_ENTRY):
        raise UsageError(
            f"A quarantine must replace nothing but an earlier quarantine, got {str(file)!r}, another file. Choose "
            "another name, or remove this file."
        )


def _printable(text: str) -> str:
    """A lone surrogate cannot be encoded in UTF-8, so it is written as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _shortened(content: str) -> str:
    return content if len(content) <= _SHOWN else f"{content[:_SHOWN]}... ({len(content)} characters)"
