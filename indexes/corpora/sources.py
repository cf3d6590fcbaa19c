"""Where passages come from: a path or an address becomes a stream of records.

The format of a file or folder is found in `indexes.corpora.corpus_formats`; addresses are downloaded, and datasets of
the Hugging Face hub are streamed.
"""

import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import datasets

from indexes.corpora.corpus_format import ReadOptions
from indexes.corpora.corpus_formats import check_suffix, corpus_format_of
from indexes.corpora.passage_records import passage_columns, passage_records
from indexes.corpora.remote_sources import (
    download,
    download_folder,
    download_name,
    fetch_hub_file,
    parse_hub_address,
    stream_hub_dataset,
)
from indexes.errors import DataError
from indexes.records.delimited import check_quoting
from indexes.records.record import RecordStream, numbered
from indexes.records.saved_datasets import read_dataset, refuse_split
from indexes.records.whole_numbers import restore_whole_numbers

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
_SCHEMES = ("http", "https", "file", "hf")


@dataclass(frozen=True)
class Source:
    """The records of a corpus, and its names.

    Attributes:
        name: The name of the file, folder or dataset, without its path.
        where: How errors call the whole.
        records: Records with the fields id, title and text, read once, in order.
    """

    name: str
    where: str
    records: RecordStream


@contextmanager
def open_source(
    path: str | Path, options: ReadOptions | None = None, *, cache_dir: str | Path | None = None
) -> Iterator[Source]:
    """The records of a path or an address; see `Corpus.from_file` for what is read how.

    Args:
        path: A file, a folder, or an address that begins with ``https://``, ``http://``, ``file://`` or ``hf://``.
        options: How it is read.
        cache_dir: Where a download is kept while it is read (default: the system's temporary folder).

    Raises:
        DataError: It does not exist, is of an unknown kind, or several corpora could be meant.
        UsageError: A split is asked for where there is none, or there is no such quoting.
        ResourceError: A download fails.
    """
    options = options or ReadOptions()
    check_quoting(options.quoting)
    address = _ADDRESS.match(str(path))
    if not address:
        yield _local(Path(path), str(path), options)
        return
    scheme, url = address["scheme"].lower(), str(path)
    try:
        urlsplit(url)
    except ValueError as error:
        raise DataError(f"{url!r}: an address must be well-formed, got: {error}. Correct it.") from error
    if scheme == "hf":
        yield _on_hub(url, options)
    elif scheme == "file":
        yield _local(Path(urllib.request.url2pathname(urlsplit(url).path)), url, options)
    elif scheme in _SCHEMES:
        with download_folder(cache_dir) as folder:
            file = folder / download_name(url)
            check_suffix(file)
            download(url, file)
            yield _local(file, url, options)
    else:
        raise DataError(
            f"An address must begin with {', '.join(f'{known}://' for known in _SCHEMES)}, got {url!r}. Fetch it with "
            "that service's own program and pass the file."
        )


def dataset_source(dataset: datasets.Dataset, name: str) -> Source:
    """The records of a `datasets.Dataset`."""
    records = restore_whole_numbers(lambda: read_dataset(dataset, name, passage_columns))
    return Source("", name, numbered(passage_records(records)))


def _local(path: Path, name: str, options: ReadOptions) -> Source:
    if not _exists(path, name):
        raise DataError(f"{name}: a corpus must be an existing file or folder, got none. Check the path.")
    corpus_format = corpus_format_of(path)
    if not corpus_format.has_splits:
        refuse_split(options.split, name)
    records = restore_whole_numbers(lambda: corpus_format.records(path, name, options))
    return Source(path.name, name, numbered(passage_records(records)))


def _on_hub(url: str, options: ReadOptions) -> Source:
    address = parse_hub_address(url, options.split)
    if address.path:
        return _local(fetch_hub_file(address), url, options)
    records = restore_whole_numbers(lambda: stream_hub_dataset(address))
    return Source(address.repository.partition("/")[2], url, numbered(passage_records(records)))


def _exists(path: Path, name: str) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"{name}: a corpus must be accessible, got: {error}. Check the path.") from error
