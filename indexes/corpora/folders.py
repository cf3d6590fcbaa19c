"""The built-in formats of corpus folders: saved datasets, shards (also BEIR's folder), and documents."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from indexes.corpora.corpus_format import CorpusFormat, ReadOptions
from indexes.corpora.documents import DOCUMENT_SUFFIXES, document_record
from indexes.corpora.file_formats import JSONLines, Parquet
from indexes.corpora.passage_records import passage_columns
from indexes.errors import DataError
from indexes.records.record import BrokenRecord, Place, RecordStream
from indexes.records.saved_datasets import (
    choose_split,
    is_saved_dataset,
    load_saved_dataset,
    read_dataset,
    refuse_split,
)
from indexes.records.whole_numbers import restore_whole_numbers

_SHARD_FORMATS: tuple[type[CorpusFormat], ...] = (JSONLines, Parquet)
# train-00000-of-00003.parquet, in older repositories with a hash after the count.
_SHARD_NAME = re.compile(r"(?P<split>.+)-(?P<number>\d{5,})-of-(?P<count>\d{5,})(?:-[0-9a-f]+)?")
_SPLIT_NAMES = ("train", "validation", "valid", "val", "dev", "test")
# Documents that repositories keep with their data.
_REPOSITORY_FILES = ("readme", "license", "licence", "changelog", "citation", "notice")


class SavedDataset(CorpusFormat):
    """A folder that ``Dataset.save_to_disk`` wrote."""

    has_splits = True

    def recognises(self, path: Path) -> bool:
        """See `CorpusFormat.recognises`."""
        return path.is_dir() and is_saved_dataset(path)

    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        """See `CorpusFormat.records`."""
        return read_dataset(load_saved_dataset(path, options.split), name, passage_columns)


class ShardFolder(CorpusFormat):
    """A folder of ``.jsonl`` or ``.parquet`` files, read in the order of their names, of BEIR's only the corpus."""

    has_splits = True

    def recognises(self, path: Path) -> bool:
        """See `CorpusFormat.recognises`."""
        return path.is_dir() and bool(_shards(path, str(path)))

    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        """See `CorpusFormat.records`."""
        shards = _shards(path, name)
        _refuse_mixture(path, shards, name)
        chosen = _beir_corpus(shards, options.split, name) or _shards_of_split(shards, options.split, name)
        return (record for shard in chosen for record in _shard_records(shard, f"{name}/{shard.name}", options))


class DocumentFolder(CorpusFormat):
    """A folder of documents, also in folders inside; their relative paths are the ids."""

    def recognises(self, path: Path) -> bool:
        """See `CorpusFormat.recognises`."""
        return path.is_dir()

    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        """See `CorpusFormat.records`."""
        _refuse_nested_shards(path, name)
        return _documents(path, name)


# ---------------------------------------------------------------------------------------------------------
# Shards
# ---------------------------------------------------------------------------------------------------------


def _shards(folder: Path, name: str) -> list[Path]:
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    except OSError as error:
        raise DataError(f"{name}: a folder must be readable, got: {error}. Check its permissions.") from error
    return [file for file in files if _shard_format(file.name)]


def _shard_format(file_name: str) -> type[CorpusFormat] | None:
    return next((kind for kind in _SHARD_FORMATS if kind.has_suffix(file_name)), None)


def _shard_records(shard: Path, name: str, options: ReadOptions) -> RecordStream:
    kind = _shard_format(shard.name)
    assert kind is not None
    return restore_whole_numbers(lambda: kind().records(shard, name, options))


def _refuse_mixture(folder: Path, shards: list[Path], name: str) -> None:
    kinds: dict[object, str] = {_shard_format(shard.name): shard.name for shard in shards}
    documents = (file for file in _walk(folder) if isinstance(file, Path) and not _describes_repository(file))
    document = next(documents, None)
    if document is not None:
        kinds["document"] = document.relative_to(folder).as_posix()
    if len(kinds) > 1:
        raise DataError(
            f"{name}: a folder must hold one kind of corpus, got {sorted(kinds.values())}. Pass the file that you "
            "mean, or move the others."
        )


def _refuse_nested_shards(folder: Path, name: str) -> None:
    """A repository keeps its shards in data/, and its README by itself would make a corpus."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(inside for inside in folders if not inside.startswith("."))
        for file in sorted(files):
            if not file.startswith(".") and _shard_format(file):
                raise DataError(
                    f"{name}: a folder must hold its shards itself, or only documents, got {file} in "
                    f"{Path(parent).relative_to(folder).as_posix()!r}. Pass that folder, or move the file."
                )


def _describes_repository(file: Path) -> bool:
    return file.stem.lower() in _REPOSITORY_FILES


def _beir_corpus(shards: list[Path], split: str | None, name: str) -> list[Path]:
    """BEIR keeps its questions in the folder of the corpus, in records that look like passages."""
    questions = [shard for shard in shards if "queries" in shard.name]
    corpus = [shard for shard in shards if shard.name in ("corpus.jsonl", "corpus.jsonl.gz")]
    if not questions and not corpus:
        return []
    refuse_split(split, name)
    if len(corpus) == 1 and len(corpus) + len(questions) == len(shards):
        return corpus
    raise DataError(
        f"{name}: a BEIR folder must hold one corpus.jsonl and its queries, got "
        f"{[shard.name for shard in shards[:10]]}. Pass the file that you mean."
    )


def _shards_of_split(shards: list[Path], split: str | None, name: str) -> list[Path]:
    splits: dict[str, list[Path]] = {}
    for shard in shards:
        splits.setdefault(_split_of(shard), []).append(shard)
    chosen = choose_split(splits, split, name)
    _refuse_missing_shards(splits[chosen], name)
    return splits[chosen]


def _split_of(shard: Path) -> str:
    stem = _stem(shard)
    match = _SHARD_NAME.fullmatch(stem)
    return match["split"] if match else stem if stem in _SPLIT_NAMES else ""


def _stem(shard: Path) -> str:
    return re.sub(r"\.(jsonl(\.gz)?|parquet)$", "", shard.name, flags=re.IGNORECASE)


def _refuse_missing_shards(shards: list[Path], name: str) -> None:
    """The name of a shard has the number of shards; a missing one would silently make the corpus smaller."""
    matches = [match for shard in shards if (match := _SHARD_NAME.fullmatch(_stem(shard)))]
    found = {(int(match["number"]), int(match["count"])) for match in matches}
    counts = {count for _, count in found}
    if matches and (len(counts) > 1 or len(found) < len(shards) or {n for n, _ in found} != set(range(max(counts)))):
        raise DataError(
            f"{name}: a dataset must have all its shards, each once, got {len(shards)} files of "
            f"{' or '.join(map(str, sorted(counts)))}: {[shard.name for shard in shards[:10]]}. Fetch what is missing."
        )


# ---------------------------------------------------------------------------------------------------------
# Documents
# ---------------------------------------------------------------------------------------------------------


def _documents(folder: Path, name: str) -> RecordStream:
    for file in _walk(folder, name):
        if isinstance(file, BrokenRecord):
            yield file
        else:
            relative = file.relative_to(folder).as_posix()
            yield document_record(file, Place(name, "file", relative), relative)


def _walk(folder: Path, name: str = "") -> Iterator[Path | BrokenRecord]:
    """The documents of a folder in the order of their paths, without hidden ones; one directory is held at a time.

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
                error = DataError(f"{place}: a folder must be readable, got: {cause}. Check its permissions.")
                yield BrokenRecord(place, error)
        elif file.suffix.lower() in DOCUMENT_SUFFIXES and file.is_file():
            yield file


def _listing(folder: Path) -> Iterator[Path]:
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return (folder / name for name in names)


def _link(file: Path, root: Path, place: Place) -> Iterator[Path | BrokenRecord]:
    # Path.resolve raises for circular links instead of returning a path that does not exist.
    target = Path(os.path.realpath(file))
    if not target.is_relative_to(root) or not target.exists():
        yield BrokenRecord(
            place,
            DataError(
                f"{place}: the documents of a folder must lie inside it, got a link that leads out of it or nowhere. "
                "Replace the link by the file, or pass the other folder itself."
            ),
        )
    elif target.is_file():
        yield file
