"""The interface of corpus formats: how a file or folder is recognised, and read as records of passages.

A new format is a subclass in any module, registered under a name of its own:

    @CORPUS_FORMATS.register("medline")
    class Medline(CorpusFormat):
        suffixes = (".nbib",)

        def records(self, path, name, options):
            ...

`indexes.corpora.corpus_formats` holds the registry; ``examples/new_corpus_format.py`` is a whole one.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from indexes.records.delimited import Quoting
from indexes.records.record import RecordStream


@dataclass(frozen=True)
class ReadOptions:
    """How a source is read.

    Attributes:
        split: The part of a dataset that has several.
        quoting: How delimited text is quoted; see `indexes.records.delimited.delimited_records`.
    """

    split: str | None = None
    quoting: Quoting = "auto"


class CorpusFormat(ABC):
    """A format of corpora.

    Attributes:
        suffixes: Suffixes of its files, in lower case, with the dot.
        may_be_gzipped: Whether ``.gz`` may follow the suffix.
        has_splits: Whether `ReadOptions.split` has a meaning; otherwise a split is refused.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    may_be_gzipped: ClassVar[bool] = False
    has_splits: ClassVar[bool] = False

    def recognises(self, path: Path) -> bool:
        """Whether a file or folder is of this format: by default a file with one of its suffixes.

        Args:
            path: An existing file or folder.
        """
        return not path.is_dir() and self.has_suffix(path.name)

    @classmethod
    def has_suffix(cls, file_name: str) -> bool:
        """Whether the name of a file ends in one of the suffixes."""
        name = file_name.lower()
        return name.endswith(cls.suffixes) or (cls.may_be_gzipped and name.removesuffix(".gz").endswith(cls.suffixes))

    @abstractmethod
    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        """The passages of a file or folder in order, streamed.

        Fields of a record are ``id``, ``title`` and ``text``, or those of another built-in format. A record that is
        broken is yielded as a `BrokenRecord`, so that ``on_error="skip"`` can leave it out.

        Args:
            path: What is read. It may be read twice: the stream is opened again where ids are floats.
            name: How errors call it.
            options: How it is read.

        Raises:
            DataError: It cannot be read as a whole.
        """
