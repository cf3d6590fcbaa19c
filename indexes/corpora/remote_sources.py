"""Corpora on the network: downloads, and datasets of the Hugging Face hub as a stream."""

import http.client
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import pyarrow as pa

from indexes.corpora.passage_records import FIELDS, known_columns
from indexes.errors import DataError, RAGError, ResourceError, UsageError
from indexes.records.record import ID_FIELDS, Place, Record, RecordStream
from indexes.records.saved_datasets import choose_split
from indexes.records.tables import unnamed_index

_TIMEOUT = 60  # seconds without a byte


class HubAddress(NamedTuple):
    """The parts of ``hf://datasets/owner/name@revision/path?config=...&split=...``.

    Attributes:
        url: The whole address.
        repository: ``owner/name``.
        revision: A branch, tag or commit.
        path: The path of a file in the repository; empty for the dataset itself.
        config: The configuration of the dataset.
        split: Its split.
    """

    url: str
    repository: str
    revision: str | None
    path: str
    config: str | None
    split: str | None


def parse_hub_address(url: str, split: str | None) -> HubAddress:
    """The parts of an address on the hub.

    Raises:
        DataError: It names no dataset.
        UsageError: Its query has other keys than config and split, or another split than the one given.
    """
    parts = urlsplit(url)
    kind, owner, name, *path = [unquote(part) for part in (parts.netloc + parts.path).split("/") if part] + [""] * 3
    if kind != "datasets" or not owner or not name:
        raise DataError(
            f"{url}: an address on the hub must be hf://datasets/owner/name, followed by a path for one file, got "
            f"{url!r}. Correct it."
        )
    repository, _, revision = name.partition("@")
    inside = "/".join(part for part in path if part)
    if inside:
        return HubAddress(url, f"{owner}/{repository}", revision or None, inside, None, split)
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    if set(query) - {"config", "split"} or (split is not None and query.get("split", split) != split):
        raise UsageError(
            f"{url}: the query of an address must be config=... and split=..., the latter equal to the argument, got "
            f"split={split!r} as the argument. Correct one of them."
        )
    return HubAddress(
        url, f"{owner}/{repository}", revision or None, "", query.get("config"), split or query.get("split")
    )


def fetch_hub_file(address: HubAddress) -> Path:
    """One file of a repository, in the cache of `huggingface_hub`."""
    from huggingface_hub import hf_hub_download

    with _hub_errors(address.url):
        return Path(hf_hub_download(address.repository, address.path, repo_type="dataset", revision=address.revision))


def stream_hub_dataset(address: HubAddress) -> RecordStream:
    """The records of a dataset of the hub, streamed."""
    split, url = address.split, address.url
    with _hub_errors(url):
        dataset = datasets.load_dataset(
            address.repository, address.config, split=split, revision=address.revision, streaming=True
        )
        if isinstance(dataset, datasets.IterableDatasetDict):
            dataset = dataset[choose_split(dataset, split, url)]
        entries = iter(dataset)
    number = 0
    while True:
        with _hub_errors(url):
            fields = next(entries, None)
        if fields is None:
            return
        known = known_columns(list(fields))
        label = unnamed_index(fields, url) if set(known) <= set(FIELDS) and not set(known) & set(ID_FIELDS) else None
        index = {} if label is None else {ID_FIELDS[0]: fields[label]}
        yield Record(Place(url, "record", number), {**index, **{key: fields[key] for key in known}} or fields)
        number += 1


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    # huggingface_hub says which of its HTTP clients it uses, and nothing else does.
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        yield
    except (OSError, httpx.HTTPError, http.client.HTTPException) as error:
        raise ResourceError(
            f"{url}: an address must be reachable, got: {error}. Check its spelling and the connection, or download it "
            "yourself and pass the file."
        ) from error


@contextmanager
def _hub_errors(url: str) -> Iterator[None]:
    try:
        with _network_errors(url):
            yield
    except RAGError:
        raise
    # A config or split that does not exist, or files that `datasets` cannot read.
    except (ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{url}: a dataset must have the config and split asked for and be readable, got: {error}. Look at its "
            "page, and add ?config=...&split=... to the address."
        ) from error


@contextmanager
def download_folder(parent: str | Path | None) -> Iterator[Path]:
    """A temporary folder for a download.

    Raises:
        ResourceError: It cannot be made.
    """
    try:
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="download-", dir=parent)
    except OSError as error:
        raise ResourceError(f"A download needs a writable folder, got: {error}. Choose another cache_dir.") from error
    with folder as path:
        yield Path(path)


def download_name(url: str) -> str:
    """The name of the file that a download becomes: the last part of the address, whose suffix says how to read it."""
    # What an address says must not lead out of the folder on any system.
    return re.sub(r"[^\w .+-]", "_", PurePosixPath(unquote(urlsplit(url).path)).name)[-100:]


def download(url: str, path: Path) -> None:
    """Fetch a file completely.

    Raises:
        ResourceError: The address cannot be reached, or the connection breaks off.
    """
    with _network_errors(url), urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file, 2**20)
        expected = answer.headers.get("Content-Length")
        # A connection that is closed early reads like the end of the file.
        if expected is not None and expected != str(file.tell()):
            raise ConnectionError(f"{file.tell()} of {expected} bytes")
