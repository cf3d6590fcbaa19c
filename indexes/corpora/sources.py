"""Where passages come from: a path or an address becomes a stream of records.

The format of a file or folder is found in `CORPUS_FORMATS`; addresses are downloaded, and datasets of the Hugging Face
hub are streamed.
"""

import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import datasets

from indexes.corpora.corpus_format import CorpusFormat, ReadOptions
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
from indexes.registry import Registry

CORPUS_FORMATS: Registry[type[CorpusFormat]] = Registry(
    "corpus format",
    builtin={
        "jsonl": "indexes.corpora.file_formats:JSONLines",
        "json": "indexes.corpora.file_formats:JSONFile",
        "csv": "indexes.corpora.file_formats:CSV",
        "tsv": "indexes.corpora.file_formats:TSV",
        "parquet": "indexes.corpora.file_formats:Parquet",
        "arrow": "indexes.corpora.file_formats:Arrow",
        "beir_archive": "indexes.corpora.file_formats:BEIRArchive",
        "document": "indexes.corpora.documents:Document",
        "saved_dataset": "indexes.corpora.folders:SavedDataset",
        "shards": "indexes.corpora.folders:ShardFolder",
        "documents": "indexes.corpora.folders:DocumentFolder",
    },
)
"""Formats of corpora by name. Registered ones are asked before the built-in ones, which are asked in this order."""

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
            _check_suffix(file)
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
    corpus_format = _format_of(path)
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


def _format_of(path: Path) -> CorpusFormat:
    for kind in _by_precedence():
        corpus_format = CORPUS_FORMATS.get(kind)()
        if corpus_format.recognises(path):
            return corpus_format
    raise _unknown_suffix(path)


def _by_precedence() -> list[str]:
    """Kinds of other packages and of this process, which may be more special, then the built-in ones."""
    return sorted(CORPUS_FORMATS.kinds(), key=CORPUS_FORMATS.is_builtin)


def _check_suffix(path: Path) -> None:
    if not any(CORPUS_FORMATS.get(kind).has_suffix(path.name) for kind in CORPUS_FORMATS.kinds()):
        raise _unknown_suffix(path)


def _unknown_suffix(path: Path) -> DataError:
    formats = [corpus_format for _, corpus_format in CORPUS_FORMATS.items()]
    known = [
        f"{suffix}{' (also with .gz)' if corpus_format.may_be_gzipped else ''}"
        for corpus_format in formats
        for suffix in corpus_format.suffixes
    ]
    return DataError(
        f"{path.name!r}: the suffix of a corpus file must be one of {', '.join(known)}, or a registered corpus format "
        "must recognise the file, got another one. Rename or convert it."
    )
