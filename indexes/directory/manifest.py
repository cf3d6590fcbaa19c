"""The manifest of an index: what it is made of, so that parts that do not belong together are refused.

It is the only file of an index that changes, and it is replaced atomically: a reader sees one version or the next. It
holds no time and no absolute path of its own: the same build writes the same bytes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

from indexes.atomic_files import write_text
from indexes.checksums import file_sha256
from indexes.corpora.corpus import Corpus
from indexes.encoder import COSINE, SIMILARITIES, Encoder
from indexes.errors import MismatchError
from indexes.vectors.vector_stores import VECTOR_STORES

FORMAT_VERSION = 2
METRIC = "inner_product"
FAISS, MILVUS = "faiss", "milvus"
DISTRIBUTION = "dro-rag"
MANIFEST_FILE = "manifest.json"
_LIBRARIES = ("bm25s", "datasets", "faiss-cpu", "numpy", "sentence-transformers", "torch", "transformers")
_REBUILD = "Build the index again."


@dataclass(frozen=True, slots=True)
class EncoderRecord:
    """The encoder that made the vectors.

    Attributes:
        name: The folder or Hub id it was loaded from; a hint, since encoders are compared by fingerprint.
        revision: The revision on the Hub, if one was named.
        dtype: Of the weights, or "mixed": float32 weights with vectors from bfloat16 products.
        fingerprint: Of weights, prompts, length limit and similarity.
        question_prompt: Put before every question.
        passage_prompt: Put before every passage.
        max_length: The most tokens of an input; None when there is no limit.
        similarity: "cosine": the vectors have unit length; "dot": they are as the encoder gives them.
        trust_remote_code: Whether it runs Python code of its own; loading it requires the option again.
    """

    name: str
    revision: str | None
    dtype: str
    fingerprint: str
    question_prompt: str
    passage_prompt: str
    max_length: int | None
    similarity: str = COSINE
    trust_remote_code: bool = False

    @classmethod
    def of(cls, encoder: Encoder) -> "EncoderRecord":
        """Describe an encoder."""
        return cls(
            name=encoder.name,
            revision=encoder.revision,
            dtype=encoder.dtype,
            fingerprint=encoder.fingerprint,
            question_prompt=encoder.question_prompt,
            passage_prompt=encoder.passage_prompt,
            max_length=encoder.max_length,
            similarity=encoder.similarity,
            trust_remote_code=encoder.trust_remote_code,
        )

    def load(
        self,
        name_or_path: str | Path | None = None,
        *,
        revision: str | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ) -> Encoder:
        """Load the encoder with the recorded prompts, dtype and length limit; `Manifest.check_encoder` compares it.

        Args:
            name_or_path: A copy of it somewhere else; None takes the recorded name.
            revision: Branch, tag or commit of that name on the Hub; None takes the recorded one for the recorded name.
            device: As for `Encoder.from_pretrained`.
            trust_remote_code: As for `Encoder.from_pretrained`; the recorded value does not count.

        Raises:
            ResourceError: It cannot be loaded, or has code of its own that may not run.
        """
        name = self.name if name_or_path is None else str(name_or_path)
        return Encoder.from_pretrained(
            name,
            question_prompt=self.question_prompt,
            passage_prompt=self.passage_prompt,
            device=device,
            dtype=self.dtype,
            revision=self.revision if revision is None and name == self.name else revision,
            max_length=self.max_length,
            similarity=self.similarity,
            trust_remote_code=trust_remote_code,
        )

    def __post_init__(self) -> None:
        """Refuse an unknown similarity."""
        if self.similarity not in SIMILARITIES:
            raise MismatchError(
                f"The similarity of an index must be one of {', '.join(SIMILARITIES)}, but the manifest says "
                f"{self.similarity!r}. {_REBUILD}"
            )


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and SHA-256 (hex) of one file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileRecord":
        """Describe a file."""
        return cls(path.stat().st_size, file_sha256(path))


@dataclass(frozen=True, slots=True)
class SegmentRecord:
    """One segment: its folder below `segments`, never used twice, and how many rows it has, deleted ones included."""

    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an index directory holds.

    Attributes:
        passages: How many passages and vectors, without deleted ones.
        dimension: The length of a vector.
        factory: The store's description of the kind of index, such as "IVF1024,Flat" or "Milvus(HNSW)".
        corpus_fingerprint: Of all passages, independent of their order.
        corpus_source: The name of the corpus file, without its path.
        encoder: What made the vectors.
        segments: The parts of the index in their order.
        files: Every other file of the directory by its relative name.
        version: 1 after the build, and one more with each change.
        next_segment: The number that the next segment is named by.
        segment_rows: The most rows that a segment may have; 0 for as many as there are.
        deleted: The file with the rows that are deleted; empty when there are none.
        bm25: The folder of the BM25 index; empty when there is none.
        search_parameters: Search parameters of this index, such as "nprobe=64"; empty for the defaults.
        chunking: The settings of the chunker that cut the passages (`Chunker.settings`; older releases kept only
            `max_tokens` and `overlap`); empty when they are whole.
        truncation: The fields of `encoder.Truncation`, over all passages that were ever encoded for this index, those
            deleted since included; empty in indexes of older releases, which did not count.
        milvus: Of the store "milvus": its address ("uri") and the collection; empty for other stores.
        storage: Of a store other than "faiss" and "milvus": its "kind", the "package" that registers it and its
            "options"; left out of the file when it is empty.
        origin: The fingerprint of the corpus that the index was built from; it stays while the index changes.
        allow_untested: Whether the kind of index was allowed although its results were not measured
            (`indexes.vectors.faiss.faiss_kinds`).
        plan: The SHA-256 of the settings of the build, by which a finished build is recognised.
        metric: Always "inner_product".
        created_by: The version of this library that built it.
        libraries: The versions of the libraries it was built with.
        format_version: Of the directory's layout.
    """

    passages: int
    dimension: int
    factory: str
    corpus_fingerprint: str
    corpus_source: str
    encoder: EncoderRecord
    segments: tuple[SegmentRecord, ...]
    files: Mapping[str, FileRecord]
    version: int = 1
    next_segment: int = 1
    segment_rows: int = 0
    deleted: str = ""
    bm25: str = ""
    search_parameters: str = ""
    chunking: Mapping[str, int | str] = field(default_factory=dict)
    truncation: Mapping[str, int] = field(default_factory=dict)
    milvus: Mapping[str, str] = field(default_factory=dict)
    storage: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    plan: str = ""
    allow_untested: bool = False
    metric: str = METRIC
    created_by: str = field(default_factory=lambda: f"{DISTRIBUTION} {_version(DISTRIBUTION)}")
    libraries: Mapping[str, str] = field(default_factory=lambda: {name: _version(name) for name in _LIBRARIES})
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Refuse names that lead out of the directory."""
        for name in (*self.files, *filter(None, (self.deleted, self.bm25))):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
                raise MismatchError(
                    f"A manifest may only name files inside its directory, but it names {name!r}. Do not "
                    "open this index unless you trust its origin."
                )
        for segment in self.segments:
            if not re.fullmatch(r"\d{6,}", segment.name):
                raise MismatchError(
                    f"A segment is named by a number of six digits, but the manifest names {segment.name!r}. Do not "
                    "open this index unless you trust its origin."
                )
        numbers = [int(segment.name) for segment in self.segments]
        if len({*numbers, self.next_segment}) <= len(numbers) or self.next_segment < max(numbers, default=0):
            raise MismatchError(
                f"A segment needs its own number, below that of the next one, but there are {numbers} and the next is "
                f"{self.next_segment}. {_REBUILD}"
            )
        for name, wanted in (
            ("milvus", {"uri", "collection"}),
            ("storage", {"kind", "package", "options"}),
            ("chunking", {"max_tokens", "overlap", "text_format", "prompt"}),
            ("truncation", {"passages", "truncated", "tokens", "lost"}),
        ):
            found = set(getattr(self, name))
            older = {"max_tokens", "overlap"} if name == "chunking" else wanted
            if found and found not in (wanted, older):
                raise MismatchError(
                    f"{name!r} of a manifest must be empty or hold {sorted(wanted)}, but it holds {sorted(found)}. "
                    f"{_REBUILD}"
                )

    @property
    def store_kind(self) -> str:
        """The kind of the vector store, as `indexes.vectors.vector_stores` registers it."""
        return str(self.storage["kind"]) if self.storage else MILVUS if self.milvus else FAISS

    @property
    def store_package(self) -> str | None:
        """The package that registers the store; None for those of this library."""
        return str(self.storage["package"]) if self.storage else None

    @property
    def store_options(self) -> Mapping[str, str]:
        """Where the vectors are if not in the directory; empty for FAISS."""
        return self.storage["options"] if self.storage else self.milvus

    def to_json(self) -> str:
        """The manifest as JSON with sorted keys."""
        data = asdict(self)
        if not self.storage:
            del data["storage"]
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = "the manifest") -> "Manifest":
        """Read `to_json` back.

        Args:
            text: The JSON.
            where: What an error message calls it.

        Raises:
            MismatchError: The JSON is broken, of another version, or not a manifest.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise MismatchError(f"A manifest must be JSON, but {where} is broken: {error}. {_REBUILD}") from error
        if not isinstance(data, dict) or "format_version" not in data:
            raise MismatchError(f'A manifest must have a "format_version", but {where} has none. {_REBUILD}')
        if data["format_version"] != FORMAT_VERSION:
            raise MismatchError(
                f"This library reads index format {FORMAT_VERSION}, but {where} has format "
                f"{data['format_version']!r}. Build the index again, or install the version that made it "
                f"({data.get('created_by', 'unknown')})."
            )
        values = _checked(cls, data, where)
        values["segments"] = tuple(
            SegmentRecord(**_checked(SegmentRecord, record, f"{where}, segments")) for record in values["segments"]
        )
        values["encoder"] = EncoderRecord(**_checked(EncoderRecord, values["encoder"], f"{where}, encoder"))
        values["files"] = {
            name: FileRecord(**_checked(FileRecord, record, f"{where}, file {name!r}"))
            for name, record in values["files"].items()
        }
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write the manifest to a file, which is replaced in one step and safely on the disk afterwards.

        Raises:
            MismatchError: A value is of the wrong type, so that the index could not be opened.
        """
        text = self.to_json()
        self.from_json(text)  # the old manifest is replaced only by one that can be read back
        write_text(Path(path), text)

    @classmethod
    def load(cls, path: str | Path) -> "Manifest":
        """Read a manifest from a file.

        Raises:
            MismatchError: The file is missing, broken or of another version.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise MismatchError(f"A manifest must be readable, but {path} is not: {error}. {_REBUILD}") from error
        return cls.from_json(text, where=str(path))

    def verify_files(self, folder: str | Path, *, checksums: bool) -> None:
        """Compare the files of a directory with the record.

        Args:
            folder: The index directory.
            checksums: Also read every file and compare its SHA-256; otherwise only sizes are compared.

        Raises:
            MismatchError: A file is missing or differs.
        """
        for name, record in sorted(self.files.items()):
            path = Path(folder) / name
            if not path.is_file():
                raise MismatchError(f"The index must hold {name!r}, but {path} is missing. {_REBUILD}")
            size = path.stat().st_size
            if size != record.bytes:
                state = "truncated" if size < record.bytes else "changed"
                raise MismatchError(
                    f"{path} must have {record.bytes} bytes, but it has {size}: it was {state} after the "
                    "build. Copy it again, or build the index again."
                )
            if checksums and (found := file_sha256(path)) != record.sha256:
                raise MismatchError(
                    f"{path} must have the SHA-256 {record.sha256}, but it has {found}: it was changed after "
                    "the build. Copy it again, or build the index again."
                )

    def check_encoder(self, encoder: Encoder) -> None:
        """Refuse an encoder whose vectors do not belong to this index.

        Raises:
            MismatchError: The fingerprints differ; the message names the setting that does.
        """
        found = EncoderRecord.of(encoder)
        if found.fingerprint == self.encoder.fingerprint:
            return
        raise MismatchError(
            f"The index was built with the encoder {self.encoder.name!r} (fingerprint "
            f"{self.encoder.fingerprint[:12]}), but got {found.name!r} (fingerprint {found.fingerprint[:12]}): "
            f"{_difference(self.encoder, found)}. Open it with the encoder it was built with, or build "
            "it again."
        )

    def check_corpus(self, corpus: Corpus) -> None:
        """Refuse a corpus that is not the one in this index.

        Raises:
            MismatchError: The number of passages or the fingerprints differ.
        """
        if corpus.fingerprint == self.corpus_fingerprint:
            return
        raise MismatchError(
            f"The index holds {self.passages} passages of {self.corpus_source or 'a corpus'!r} (fingerprint "
            f"{self.corpus_fingerprint[:12]}), but got a corpus of {len(corpus)} passages (fingerprint "
            f"{corpus.fingerprint[:12]}). Use the corpus it was built from, or build the index again."
        )


def store_fields(kind: str, options: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a manifest that record a vector store.

    Args:
        kind: As registered.
        options: Where the vectors are if not in the directory.
    """
    if kind in (FAISS, MILVUS):
        return {"milvus": dict(options)}
    return {"storage": {"kind": kind, "package": VECTOR_STORES.package_of(kind), "options": dict(options)}}


def _difference(expected: EncoderRecord, found: EncoderRecord) -> str:
    for name in ("question_prompt", "passage_prompt", "max_length", "similarity", "dtype"):
        wanted, given = asdict(expected)[name], asdict(found)[name]
        if wanted != given:
            return f"its {name} is {given!r} instead of {wanted!r}"
    return "its weights differ"


_KINDS: dict[str, tuple[type, ...]] = {
    "allow_untested": (bool,),
    "bytes": (int,),
    "chunking": (dict,),
    "dimension": (int,),
    "encoder": (dict,),
    "files": (dict,),
    "format_version": (int,),
    "libraries": (dict,),
    "max_length": (int, type(None)),
    "milvus": (dict,),
    "next_segment": (int,),
    "passages": (int,),
    "revision": (str, type(None)),
    "rows": (int,),
    "segment_rows": (int,),
    "segments": (list,),
    "storage": (dict,),
    "truncation": (dict,),
    "trust_remote_code": (bool,),
    "version": (int,),
}
_OPTIONAL: dict[str, Any] = {
    "allow_untested": False,
    "similarity": COSINE,
    "storage": {},
    "truncation": {},
    "trust_remote_code": False,
}
"""Fields that may be missing, and their values then."""


def _checked(cls: type, data: Any, where: str) -> dict[str, Any]:
    """The values of a record, which must have all its fields (but `_OPTIONAL` ones) with values of their types."""
    names = {entry.name for entry in fields(cls)}
    if isinstance(data, dict):
        data = {name: value for name, value in _OPTIONAL.items() if name in names} | data
    if not isinstance(data, dict) or set(data) != names:
        raise MismatchError(
            f"{where} must have exactly the fields {sorted(names)}, but got "
            f"{sorted(data) if isinstance(data, dict) else type(data).__name__}. {_REBUILD}"
        )
    for name, value in data.items():
        kinds = _KINDS.get(name, (str,))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise MismatchError(
                f"In {where}, {name!r} must be {' or '.join(kind.__name__ for kind in kinds)}, but got {value!r}. "
                f"{_REBUILD}"
            )
    return dict(data)


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "unknown"
