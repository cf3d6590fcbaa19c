"""Where passages come from: a path or an address becomes numbered rows.

Files are read by suffix (`formats`, `documents`), folders by what they hold, addresses after a
download, and datasets of the Hugging Face hub as a stream.
"""

import http.client
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import pyarrow as pa

from indexes.corpora.documents import DOCUMENT_SUFFIXES, read_document
from indexes.errors import DataError, RAGError, ResourceError, UsageError
from indexes.records.delimited import Quoting, check_quoting
from indexes.records.formats import (
    FIELDS,
    GZIPPED,
    ID_FIELDS,
    READERS,
    BrokenRow,
    Place,
    Row,
    Rows,
    known_columns,
    passage_table,
    read_rows,
)
from indexes.records.question_files import passage_rows
from indexes.records.tables import dataset_table, refuse_cut_stream, unnamed_index
from indexes.records.whole_numbers import restored_rows

_SHARD_SUFFIXES = (".jsonl", ".parquet")
# train-00000-of-00003.parquet, in older repositories with a hash behind the count.
_SHARD_NAME = re.compile(r"(?P<split>.+)-(?P<number>\d{5,})-of-(?P<count>\d{5,})(?:-[0-9a-f]+)?")
_SPLIT_NAMES = ("train", "validation", "valid", "val", "dev", "test")
# What repositories put beside their data.
_ABOUT = ("readme", "license", "licence", "changelog", "citation", "notice")
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://")
_SCHEMES = ("http", "https", "file", "hf")
_TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Source:
    """Rows, and what they are called.

    Attributes:
        name: The name of the file, folder or dataset, without what leads to it.
        where: What errors call the whole.
        rows: Read once, in order.
    """

    name: str
    where: str
    rows: Rows


@contextmanager
def open_source(
    path: str | Path, *, cache_dir: str | Path | None = None, split: str | None = None, quoting: Quoting = "auto"
) -> Iterator[Source]:
    """The rows of a path or an address; see `Corpus.from_file` for what is read how.

    Args:
        path: A file, a folder, or an address that begins with ``https://``, ``http://``, ``file://`` or ``hf://``.
        cache_dir: Where a download is kept while it is read (default: the system's temporary folder).
        split: The part of a dataset that has several.
        quoting: How delimited text is quoted; see `indexes.records.delimited.delimited_records`.

    Raises:
        DataError: It does not exist, is of an unknown kind, or several corpora could be meant.
        UsageError: A split is asked for where there is none, or there is no such quoting.
        ResourceError: A download fails.
    """
    check_quoting(quoting)
    address = _ADDRESS.match(str(path))
    if not address:
        yield _local(Path(path), str(path), split, quoting)
        return
    scheme, url = address["scheme"].lower(), str(path)
    try:
        urlsplit(url)
    except ValueError as error:
        raise DataError(f"An address must be well-formed, but {url!r} is not: {error}. Correct it.") from error
    if scheme == "hf":
        yield _from_hub(url, split, quoting)
    elif scheme == "file":
        yield _local(Path(urllib.request.url2pathname(urlsplit(url).path)), url, split, quoting)
    elif scheme in _SCHEMES:
        with _download_folder(cache_dir) as folder:
            yield _local(_download(url, folder), url, split, quoting)
    else:
        raise DataError(
            f"An address must begin with {', '.join(f'{known}://' for known in _SCHEMES)}, but {url!r} came. Fetch it "
            "with that service's own program and pass the file."
        )


def _local(path: Path, name: str, split: str | None, quoting: Quoting) -> Source:
    if not _exists(path, name):
        raise DataError(f"A corpus file or folder must exist, but {name} does not. Check the path.")
    if path.is_dir():
        return _folder(path, name, split)
    _refuse_split(split, name)
    suffix = _known_suffix(path)
    if suffix in DOCUMENT_SUFFIXES:
        return Source(path.name, name, _single_document(path, name))
    rows = restored_rows(lambda: read_rows(suffix, path, name, quoting))
    return Source(path.name, name, passage_rows(rows))


def _exists(path: Path, name: str) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"A corpus must be reachable, but {name} is not: {error}. Check the path.") from error


def _suffix(path: Path) -> str:
    """What says how to read a file; that of the packed file where it is packed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] == ".gz":
        return suffixes[-2] if suffixes[-2] in GZIPPED else ".gz"
    return (suffixes or [""])[-1]


def _known_suffix(path: Path) -> str:
    suffix = _suffix(path)
    if suffix in READERS or suffix in DOCUMENT_SUFFIXES:
        return suffix
    raise DataError(
        f"The suffix of a corpus file says how to read it: {', '.join(READERS)} (text also with .gz), or "
        f"{', '.join(DOCUMENT_SUFFIXES)} for documents, also a folder of them. {path.name!r} is none of them. Rename "
        "or convert it."
    )


def _refuse_split(split: str | None, name: str) -> None:
    if split is not None:
        raise UsageError(
            f"A split names a part of a dataset, but {name} has no parts and split={split!r} came. Leave it out."
        )


# ---------------------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------------------


def _folder(path: Path, name: str, split: str | None) -> Source:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return Source(path.name, name, dataset_rows(load_saved_dataset(path, split), name))
    shards = _shards(path, name)
    if not shards:
        _refuse_split(split, name)
        _refuse_deeper_shards(path, name)
        return Source(path.name, name, _documents(path, name))
    _refuse_mixture(path, shards, name)
    chosen = _beir_corpus(shards, split, name) or _split_shards(shards, split, name)
    return Source(path.name, name, _shard_rows(chosen, name))


def _shards(folder: Path, name: str) -> list[Path]:
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    except OSError as error:
        raise DataError(f"A folder must be readable, but {name} is not: {error}. Check its permissions.") from error
    return [file for file in files if _suffix(file) in _SHARD_SUFFIXES]


def _shard_rows(shards: list[Path], name: str) -> Rows:
    # Questions of several shards share passages.
    yield from passage_rows(row for shard in shards for row in _restored_shard(shard, f"{name}/{shard.name}"))


def _restored_shard(shard: Path, name: str) -> Rows:
    return restored_rows(lambda: READERS[_suffix(shard)](shard, name))


def _refuse_mixture(folder: Path, shards: list[Path], name: str) -> None:
    kinds = {_suffix(shard): shard.name for shard in shards}
    beside = (file for file in _walk(folder) if not isinstance(file, BrokenRow) and not _is_about(file))
    document = next(beside, None)
    if document is not None:
        kinds["document"] = document.relative_to(folder).as_posix()
    if len(kinds) > 1:
        raise DataError(
            f"A folder must hold one kind of corpus, but {name} holds {sorted(kinds.values())}. Pass the file that you "
            "mean, or move the others."
        )


def _refuse_deeper_shards(folder: Path, name: str) -> None:
    """A repository keeps its shards in data/, and its README alone would make a corpus."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(inside for inside in folders if not inside.startswith("."))
        for file in sorted(files):
            if not file.startswith(".") and _suffix(Path(file)) in _SHARD_SUFFIXES:
                raise DataError(
                    f"A folder must hold its shards itself, or only documents, but {name} holds {file} in "
                    f"{Path(parent).relative_to(folder).as_posix()!r}. Pass that folder, or move the file."
                )


def _is_about(file: Path) -> bool:
    return file.stem.lower() in _ABOUT


def _beir_corpus(shards: list[Path], split: str | None, name: str) -> list[Path]:
    """BEIR keeps its questions beside the corpus, in rows that look like passages."""
    questions = [shard for shard in shards if "queries" in shard.name]
    corpus = [shard for shard in shards if shard.name in ("corpus.jsonl", "corpus.jsonl.gz")]
    if not questions and not corpus:
        return []
    _refuse_split(split, name)
    if len(corpus) == 1 and len(corpus) + len(questions) == len(shards):
        return corpus
    raise DataError(
        f"A BEIR folder must hold one corpus.jsonl beside its queries, but {name} holds "
        f"{[shard.name for shard in shards[:10]]}. Pass the file that you mean."
    )


def _split_shards(shards: list[Path], split: str | None, name: str) -> list[Path]:
    splits: dict[str, list[Path]] = {}
    for shard in shards:
        splits.setdefault(_split_of(shard), []).append(shard)
    chosen = _choose_split(splits, split, name)
    _refuse_gaps(splits[chosen], name)
    return splits[chosen]


def _split_of(shard: Path) -> str:
    stem = _stem(shard)
    match = _SHARD_NAME.fullmatch(stem)
    return match["split"] if match else stem if stem in _SPLIT_NAMES else ""


def _stem(shard: Path) -> str:
    return re.sub(r"\.(jsonl(\.gz)?|parquet)$", "", shard.name, flags=re.IGNORECASE)


def _choose_split(splits: Iterable[str], split: str | None, name: str) -> str:
    known = sorted(splits)
    if split is None and len(known) == 1:
        return known[0]
    if split is not None and split in known:
        return split
    came = f"split={split!r} came" if split is not None else "none was chosen"
    raise DataError(
        f"A corpus must be one part of a dataset, but {name} holds the splits {known} and {came}. Pass split=... with "
        "one of them."
    )


def _refuse_gaps(shards: list[Path], name: str) -> None:
    """Every shard says how many there are; a missing one would be a corpus that is silently smaller."""
    matches = [match for shard in shards if (match := _SHARD_NAME.fullmatch(_stem(shard)))]
    found = {(int(match["number"]), int(match["count"])) for match in matches}
    counts = {count for _, count in found}
    if matches and (len(counts) > 1 or len(found) < len(shards) or {n for n, _ in found} != set(range(max(counts)))):
        raise DataError(
            f"A dataset must have all its shards, each once, but {name} holds {len(shards)} files of "
            f"{' or '.join(map(str, sorted(counts)))}: {[shard.name for shard in shards[:10]]}. Fetch what is missing."
        )


def _documents(folder: Path, name: str) -> Rows:
    for file in _walk(folder, name):
        if isinstance(file, BrokenRow):
            yield file
            continue
        relative = file.relative_to(folder).as_posix()
        yield _document(file, Place(name, "file", relative), relative)


def _single_document(path: Path, name: str) -> Rows:
    yield _document(path, Place(name, "file", path.name), path.name)


def _document(path: Path, place: Place, id_: str) -> Row | BrokenRow:
    try:
        title, text = read_document(path, str(place))
    except DataError as error:
        return BrokenRow(place, error)
    return Row(place, {"id": id_, "title": title, "text": text})


def _walk(folder: Path, name: str = "") -> Iterator[Path | BrokenRow]:
    """The documents of a folder in the order of their paths, hidden ones left out, one directory held at a time.

    A link to a directory inside the folder is not followed, since its files are read where they are; a link that
    leads out of the folder is broken, and never opened.
    """
    root = folder.resolve()
    open_folders = [_listing(folder)]
    while open_folders:
        file = next(open_folders[-1], None)
        if file is None:
            open_folders.pop()
        elif file.is_symlink() and (file.suffix.lower() in DOCUMENT_SUFFIXES or file.is_dir()):
            yield from _link(file, root, Place(name, "file", file.relative_to(folder).as_posix()))
        elif file.is_dir():
            try:
                open_folders.append(_listing(file))
            except OSError as cause:
                place = Place(name, "file", file.relative_to(folder).as_posix())
                yield BrokenRow(place, DataError(f"A folder must be readable, but {place} is not: {cause}. Check it."))
        elif file.suffix.lower() in DOCUMENT_SUFFIXES and file.is_file():
            yield file


def _listing(folder: Path) -> Iterator[Path]:
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return (folder / name for name in names)


def _link(file: Path, root: Path, place: Place) -> Iterator[Path | BrokenRow]:
    # Path.resolve refuses links in a circle instead of saying that they lead nowhere.
    target = Path(os.path.realpath(file))
    if not target.is_relative_to(root) or not target.exists():
        yield BrokenRow(
            place,
            DataError(
                f"The documents of a folder must lie inside it, but {place} is a link that leads out of it or nowhere. "
                "Replace the link by the file, or pass the other folder itself."
            ),
        )
    elif target.is_file():
        yield file


# ---------------------------------------------------------------------------------------------------------
# Datasets
# ---------------------------------------------------------------------------------------------------------


def load_saved_dataset(folder: Path, split: str | None = None) -> datasets.Dataset:
    """A dataset that ``save_to_disk`` wrote.

    Raises:
        DataError: The folder holds none or a damaged one, or several splits and none is chosen.
    """
    try:
        dataset = datasets.load_from_disk(str(folder))
        for part in dataset.values() if isinstance(dataset, datasets.DatasetDict) else [dataset]:
            for file in part.cache_files:
                refuse_cut_stream(Path(file["filename"]))
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"A folder saved by datasets was expected, but {folder} cannot be read: {error}. Save it again."
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        return dataset[_choose_split(dataset, split, str(folder))]
    _refuse_split(split, str(folder))
    return dataset


def dataset_rows(dataset: datasets.Dataset, name: str) -> Rows:
    """The rows of a dataset in order, whatever format it is set to."""
    return passage_rows(restored_rows(lambda: _dataset_rows(dataset, name)))


def _dataset_rows(dataset: datasets.Dataset, name: str) -> Rows:
    try:
        yield from passage_table(dataset_table(dataset), name)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"A dataset must be readable, but {name} is not: {error}. Save it again.") from error


def _from_hub(url: str, split: str | None, quoting: Quoting) -> Source:
    """``hf://datasets/owner/name`` is a dataset, and with a path behind it a file of one."""
    parts = urlsplit(url)
    kind, owner, name, *path = [unquote(part) for part in (parts.netloc + parts.path).split("/") if part] + [""] * 3
    inside = [part for part in path if part]
    if kind != "datasets" or not owner or not name:
        raise DataError(
            f"An address on the hub must be hf://datasets/owner/name, with a path behind it for one file, but {url!r} "
            "came. Correct it."
        )
    repository, _, revision = name.partition("@")
    if inside:
        return _hub_file(f"{owner}/{repository}", revision or None, inside, url, split, quoting)
    asked = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    if set(asked) - {"config", "split"} or (split is not None and asked.get("split", split) != split):
        raise UsageError(
            f"An address of a dataset may say config=... and split=..., the latter as the argument does, but {url!r} "
            f"and split={split!r} came. Correct one of them."
        )
    config, part = asked.get("config"), split or asked.get("split")
    rows = restored_rows(lambda: _hub_rows(f"{owner}/{repository}", config, revision or None, part, url))
    return Source(repository, url, passage_rows(rows))


def _hub_file(
    repository: str, revision: str | None, path: list[str], url: str, split: str | None, quoting: Quoting
) -> Source:
    from huggingface_hub import hf_hub_download

    with _hub(url):
        file = hf_hub_download(repository, "/".join(path), repo_type="dataset", revision=revision)
    return _local(Path(file), url, split, quoting)


def _hub_rows(repository: str, config: str | None, revision: str | None, split: str | None, url: str) -> Rows:
    with _hub(url):
        dataset = datasets.load_dataset(repository, config, split=split, revision=revision, streaming=True)
        if isinstance(dataset, datasets.IterableDatasetDict):
            dataset = dataset[_choose_split(dataset, split, url)]
        rows = iter(dataset)
    number = 0
    while True:
        with _hub(url):
            fields = next(rows, None)
        if fields is None:
            return
        known = known_columns(list(fields))
        label = unnamed_index(fields, url) if set(known) <= set(FIELDS) and not set(known) & set(ID_FIELDS) else None
        index = {} if label is None else {ID_FIELDS[0]: fields[label]}
        yield Row(Place(url, "row", number), {**index, **{key: fields[key] for key in known}} or fields)
        number += 1


# ---------------------------------------------------------------------------------------------------------
# The network
# ---------------------------------------------------------------------------------------------------------


@contextmanager
def _network(url: str) -> Iterator[None]:
    # The library says which of its HTTP clients it uses, and nothing else does.
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        yield
    except (OSError, httpx.HTTPError, http.client.HTTPException) as error:
        raise ResourceError(
            f"An address must be reachable, but {url} is not: {error}. Check its spelling and the connection, or "
            "download it yourself and pass the file."
        ) from error


@contextmanager
def _hub(url: str) -> Iterator[None]:
    try:
        with _network(url):
            yield
    except RAGError:
        raise
    # A config or split that does not exist, or files that their library cannot read.
    except (ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"A dataset must have the config and split asked for and be readable, but {url} is not: {error}. Look at "
            "its page, and add ?config=...&split=... to the address."
        ) from error


@contextmanager
def _download_folder(parent: str | Path | None) -> Iterator[Path]:
    try:
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="download-", dir=parent)
    except OSError as error:
        raise ResourceError(
            f"A download needs a writable folder, but there is none: {error}. Choose another cache_dir."
        ) from error
    with folder as path:
        yield Path(path)


def _download(url: str, folder: Path) -> Path:
    """Fetch a file whole; its name, which says how to read it, is the last part of the address."""
    # What an address says must not lead out of the folder on any system.
    path = folder / re.sub(r"[^\w .+-]", "_", PurePosixPath(unquote(urlsplit(url).path)).name)[-100:]
    _known_suffix(path)
    with _network(url), urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file, 2**20)
        promised = answer.headers.get("Content-Length")
        # A connection that is closed early reads like the end of the file.
        if promised is not None and promised != str(file.tell()):
            raise ConnectionError(f"{file.tell()} of {promised} bytes came")
    return path
