"""Zip archives, as BEIR ships its datasets: read in place, never extracted."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from indexes.errors import DataError
from indexes.records.text_lines import Opener


@contextmanager
def open_archive(path: Path, name: str) -> Iterator[zipfile.ZipFile]:
    """An archive, open while its members are read.

    Raises:
        DataError: It is no readable archive, or encrypted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            encrypted = next((member.filename for member in archive.infolist() if member.flag_bits & 0x1), None)
            if encrypted is not None:
                raise DataError(
                    f"{name}: an archive must be readable without a password, got the encrypted member {encrypted!r}. "
                    "Unpack it and pass the folder."
                )
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"{name}: an archive must be readable, got {type(error).__name__}: {error}. Fetch it again, or unpack it "
            "and pass the folder."
        ) from error


def member_opener(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Opener:
    """Opens the uncompressed bytes of one member."""

    @contextmanager
    def open_member() -> Iterator[BinaryIO]:
        # ZipExtFile.readline is written in Python and slow.
        with archive.open(member) as stream, io.BufferedReader(stream, 2**16) as buffered:  # type: ignore[type-var]
            yield buffered

    return open_member
