"""Atomic replacement of files and directories: written beside their place, synced to the disk, and renamed.

    write_file, write_path, write_text, write_json                   a file
    write_directory, replace_directory, move_into_place             a directory

A file under its own name is always complete, whenever the process or the machine dies.
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

PARTIAL_SUFFIX = ".tmp"
"""Of the name of a file or directory that is being written."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# From the messages of libraries that raise other errors: FAISS, PyTorch and Arrow.
_FULL_WORDS = ("no space left", "disk quota exceeded", "file too large", "write error")
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "bad_alloc", "cannot allocate memory", "malloc of size")


def write_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file atomically.

    A symbolic link stays, and the file it points to is replaced. A device or a pipe, such as /dev/stdout, is written
    to.

    Args:
        path: The file; missing parent folders are created.
        write: Is passed a binary stream.
    """
    if not _is_replaceable(path):
        with path.open("wb") as stream:
            write(stream)
        return
    path = path.resolve()
    partial = _partial(path)
    try:
        with partial.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        _rename(partial, path)
    except Exception:
        partial.unlink(missing_ok=True)
        raise


def write_path(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically with a library that opens it itself: `write` is passed the path to write to."""
    partial = _partial(path)
    write(partial)
    sync(partial)
    _rename(partial, path)


def write_text(path: Path, text: str) -> None:
    """Write text atomically, in UTF-8 and with plain newlines."""
    write_file(path, lambda stream: stream.write(text.encode()))


def write_json(path: Path, data: Any, *, indent: int | None = 1) -> None:
    """Write a value as JSON, atomically; the same data are always the same bytes, in whichever order their keys are.

    Raises:
        TypeError: The value holds something that JSON cannot.
        ValueError: It holds a NaN or an infinity, which JSON has no number for.
    """
    write_text(path, json.dumps(data, ensure_ascii=False, allow_nan=False, indent=indent, sort_keys=True) + "\n")


def read_json(file: Path, then: str) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        file: Written atomically, so that only the disk or a person can have damaged it.
        then: What the user can do about a damaged file: the end of the message.

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
    """Remove the files and directories that a killed process had not finished writing."""
    for partial in list(folder.rglob(f"*{PARTIAL_SUFFIX}")):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def write_directory(path: Path, write: Callable[[Path], object]) -> None:
    """Write a directory that does not exist yet, atomically: `write` is passed the path to create.

    What a killed process left of it is removed first, and what an error leaves at once.
    """

    def put(partial: Path) -> None:
        sync_below(partial)
        _rename(partial, path)

    _write_beside(path, write, put)


def _write_beside(place: Path, write: Callable[[Path], object], put: Callable[[Path], object]) -> None:
    """Write a directory beside its place and put it there; what was left or is left of it unfinished is removed."""
    partial = _partial(place)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write(partial)
        let_others_read_weights(partial)
        put(partial)
    except BaseException:  # an interrupt too: a half download may have many megabytes
        shutil.rmtree(partial, ignore_errors=True)
        raise


def let_others_read_weights(folder: Path) -> None:
    """Give files of weights the permissions that any new file has here.

    `save_file` of safetensors 0.8.0 makes them readable for their owner alone, whatever the umask: a bundle or a cache
    of models that several users share could not be opened by the others.
    """
    weights = [path for path in folder.rglob("*.safetensors") if path.is_file()]
    if not weights:
        return
    new = folder / f"permissions{PARTIAL_SUFFIX}"
    new.touch()
    permissions = new.stat().st_mode & 0o777
    new.unlink()
    for path in weights:
        path.chmod(path.stat().st_mode & 0o777 | permissions)


def _is_replaceable(path: Path) -> bool:
    return (path.is_file() or not path.exists()) and not path.absolute().is_relative_to("/dev")


def _partial(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}{PARTIAL_SUFFIX}")


def _rename(partial: Path, path: Path) -> None:
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Ask the system to write a file or directory to the disk; Windows cannot do it for directories."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_below(folder: Path) -> None:
    """`sync` all files and directories below a directory, and itself."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def move_into_place(folder: Path, place: Path) -> None:
    """Rename a complete directory to its place, replacing another one; a failure puts the old one back."""
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


def replace_directory(place: Path, write: Callable[[Path], object]) -> None:
    """Write a directory and put it in the place of one that may exist: `write` is passed the path to create.

    A process that is killed leaves the old directory, the new one, or, between two renames, no directory in that place;
    `readable_directory` and `restore_replaced` then find the old one.
    """
    restore_replaced(place)
    _write_beside(place, write, lambda partial: move_into_place(partial, place))


def readable_directory(place: Path) -> Path:
    """Where to read a directory that `move_into_place` replaces: in its place, or where a killed process moved it."""
    return _replaced(place) if _is_moved_away(place) else place


def restore_replaced(place: Path) -> None:
    """Put back a directory that `move_into_place` was replacing when its process was killed; only its writer may."""
    if _is_moved_away(place):
        os.replace(_replaced(place), place)


def _is_moved_away(place: Path) -> bool:
    return not place.exists() and _replaced(place).is_dir()


def remove_replaced(place: Path) -> None:
    """Remove the directory that `move_into_place` has replaced, if a killed process has left it."""
    shutil.rmtree(_replaced(place), ignore_errors=True)


def _replaced(place: Path) -> Path:
    return place.with_name(f".{place.name}.old")


@contextmanager
def exclusive_writer_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a directory that is being written; readers need none.

    Args:
        folder: The directory.
        wait: Wait for another process that holds it, instead of an error.

    Raises:
        UsageError: Another process holds it, or no file can be written beside the directory.
    """
    # Imported here, so that writing files needs no third-party package.
    from filelock import FileLock, Timeout

    lock = FileLock(folder.parent / f".{folder.name}.lock", timeout=-1 if wait else 0)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"Only one process can write {folder} at a time, but another one is writing it. Wait for it, or stop it."
        ) from error
    except OSError as error:
        raise UsageError(
            f"The folder around {folder} must be writable, but creating a file there fails ({error}). Choose another "
            "place, or make that one writable."
        ) from error
    try:
        yield
    finally:
        # Removed while it is held: a process that waits notices that the file is gone and creates a new one.
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


@contextmanager
def translate_os_errors(kept: str) -> Iterator[None]:
    """Raise the errors by which libraries report a full disk or a lack of memory as a `ResourceError`.

    Args:
        kept: What becomes of the work that is done: the end of the message.
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
