"""Atomic files and folders: written beside their place, synced to the disk, and renamed; one writer at a time.

A file under its own name is always whole, whenever the process or the machine dies.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from indexes.errors import MismatchError, ResourceError, UsageError

_HALF = ".half"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What libraries say that throw other errors: FAISS, PyTorch and Arrow.
_FULL_WORDS = ("no space left", "disk quota exceeded", "file too large", "write error")
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "bad_alloc", "cannot allocate memory", "malloc of size")


def write_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file that appears whole: `write` gets a stream, and the name is given when the bytes are on the disk.

    A symbolic link stays and what it points to is replaced. A device or a pipe, such as /dev/stdout, is written to.
    """
    if not _is_replaceable(path):
        with path.open("wb") as stream:
            write(stream)
        return
    path = path.resolve()
    half = _half(path)
    try:
        with half.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        _name(half, path)
    except Exception:
        half.unlink(missing_ok=True)
        raise


def write_path(path: Path, write: Callable[[Path], object]) -> None:
    """The same for libraries that open the file themselves."""
    half = _half(path)
    write(half)
    sync(half)
    _name(half, path)


def write_text(path: Path, text: str) -> None:
    """The same for text, in UTF-8 and with plain newlines."""
    write_file(path, lambda stream: stream.write(text.encode()))


def read_json(file: Path, then: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        file: Written by `write_text`, so that only a disk or a person can have damaged it.
        then: What the user can do about a damaged one: the end of the message.

    Raises:
        MismatchError: It is missing, cannot be read, is not JSON, or holds something other than an object.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MismatchError(
            f"{file} must hold a JSON object, but it is damaged ({_first_line(error)}). {then}"
        ) from error
    if not isinstance(data, dict):
        raise MismatchError(f"{file} must hold a JSON object, but it holds a {type(data).__name__}. {then}")
    return data


def remove_partial_files(folder: Path) -> None:
    """Remove what a process that died had not finished writing."""
    for half in list(folder.rglob(f"*{_HALF}")):
        shutil.rmtree(half) if half.is_dir() else half.unlink()


def write_folder(path: Path, write: Callable[[Path], object]) -> None:
    """The same for a folder that is not there yet."""
    half = _half(path)
    shutil.rmtree(half, ignore_errors=True)
    write(half)
    sync_below(half)
    _name(half, path)


def _is_replaceable(path: Path) -> bool:
    return (path.is_file() or not path.exists()) and not path.absolute().is_relative_to("/dev")


def _half(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}{_HALF}")


def _name(half: Path, path: Path) -> None:
    os.replace(half, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Ask the system to write a file or folder to the disk; Windows cannot do it for folders."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_below(folder: Path) -> None:
    """`sync` all files and folders of a folder and itself."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def move_into_place(folder: Path, place: Path) -> None:
    """Rename a finished folder to its place, and what stood there away; a failure puts that back."""
    sync_below(folder)
    old = _replaced(place)
    if place.exists():
        remove_replaced(place)
        os.replace(place, old)
    try:
        os.replace(folder, place)
    except OSError:
        if old.exists():
            os.replace(old, place)
        raise
    sync(place.parent)
    remove_replaced(place)


def replace_folder(place: Path, write: Callable[[Path], object]) -> None:
    """Write a folder and put it in the place of what may stand there.

    Who dies on the way leaves the folder that was there before, the new one, or, between two renamings, a place that
    is empty for everybody but `standing_folder` and `restore_replaced`.
    """
    restore_replaced(place)
    half = _half(place)
    shutil.rmtree(half, ignore_errors=True)
    try:
        write(half)
        move_into_place(half, place)
    except Exception:
        shutil.rmtree(half, ignore_errors=True)
        raise


def standing_folder(place: Path) -> Path:
    """Where to read what `move_into_place` puts in a place: there, or where a process that died has moved it."""
    return _replaced(place) if _is_moved_away(place) else place


def restore_replaced(place: Path) -> None:
    """Put back what `move_into_place` was about to replace when its process died; for the one writer of the place."""
    if _is_moved_away(place):
        os.replace(_replaced(place), place)


def _is_moved_away(place: Path) -> bool:
    return not place.exists() and _replaced(place).is_dir()


def remove_replaced(place: Path) -> None:
    """Remove what `move_into_place` has replaced, if a process that died has left it."""
    shutil.rmtree(_replaced(place), ignore_errors=True)


def _replaced(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


@contextmanager
def exclusive_writer_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that is being written; readers need none.

    Raises:
        UsageError: Another process holds it, or nothing can be written beside it.
    """
    # Not at the top: who only writes files, such as a report, needs no third-party package.
    from filelock import FileLock, Timeout

    lock = FileLock(folder.parent / f".{folder.name}.lock", timeout=0)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"One process writes {folder} at a time, but another one is at it now. Wait for it, or stop it."
        ) from error
    except OSError as error:
        raise UsageError(
            f"An index needs a folder around it in which files can be made, but for {folder} that fails ({error}). "
            "Choose another place, or make that one writable."
        ) from error
    try:
        yield
    finally:
        # While it is held: who waits for it notices that its file is gone, and makes a new one.
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


@contextmanager
def translate_os_errors(kept: str) -> Iterator[None]:
    """Turn the many ways in which libraries say "disk full" and "out of memory" into a `ResourceError`.

    Args:
        kept: What the user can do with what is there already: the end of the message.
    """
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        if isinstance(error, ResourceError) or not (lacking := _lacking(error)):
            raise
        raise ResourceError(f"{lacking} ({_first_line(error)}). {kept}") from error


def _lacking(error: Exception) -> str:
    text = str(error).lower()
    if getattr(error, "errno", None) in _FULL or any(words in text for words in _FULL_WORDS):
        return "Writing needs free space, but the disk is full"
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS):
        return (
            "Encoding and indexing need memory, but there is none left: lower the batch size, set a maximum of memory, "
            "or choose a smaller kind of index"
        )
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
