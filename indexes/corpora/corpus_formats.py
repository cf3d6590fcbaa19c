"""The registry of corpus formats: what `Corpus.from_file` and ``rag index build`` can read.

Another format is registered with ``@CORPUS_FORMATS.register("name")``; see `indexes.corpora.corpus_format`.
"""

from pathlib import Path

from indexes.corpora.corpus_format import CorpusFormat
from indexes.errors import DataError
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


def corpus_format_of(path: Path) -> CorpusFormat:
    """The format that recognises an existing file or folder.

    Raises:
        DataError: No format does.
    """
    for kind in _by_precedence():
        corpus_format = CORPUS_FORMATS.get(kind)()
        if corpus_format.recognises(path):
            return corpus_format
    raise _unknown_suffix(path)


def _by_precedence() -> list[str]:
    """Kinds of other packages and of this process, which may be more special, then the built-in ones."""
    return sorted(CORPUS_FORMATS.kinds(), key=CORPUS_FORMATS.is_builtin)


def check_suffix(path: Path) -> None:
    """Check that a file can be of a known format before it is downloaded.

    Raises:
        DataError: No format has its suffix.
    """
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
