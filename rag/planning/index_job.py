"""One index build, as far as its costs depend on it, and what the builder would decide for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from indexes.corpora.passage import Passage
from rag.planning.model_sizes import EncoderShape

if TYPE_CHECKING:
    from indexes.corpora.chunking import TextFormat

FLOAT_BYTES = 4
WEIGHT_BYTES = {"float32": 4, "mixed": 6, "bfloat16": 2, "float16": 2}
"""Of one weight of the encoder while it encodes, by dtype; mixed keeps a bfloat16 copy besides the float32 one."""


@dataclass(frozen=True, kw_only=True)
class IndexJob:
    """One `rag index build`, as far as its costs depend on it."""

    encoder: str
    shape: EncoderShape
    count: int
    """Passages of the corpus, before they are split into chunks."""
    sample: Sequence[Passage]
    """Some of them; synthetic where only numbers are given."""
    basis: str
    """Where count and sample are from, in words."""
    passage_tokens: int | None = None
    """L, where it is given; None counts it in the sample."""
    factory: str = "auto"
    dtype: str = "float32"
    device: str = "cpu"
    batch_size: int = 256
    max_length: int | None = None
    """The most tokens that the encoder reads; None for its own limit."""
    passage_prompt: str | None = None
    """Put before every passage; None for the encoder's own."""
    chunk_tokens: int | None = None
    chunk_overlap: int = 16
    chunk_format: "TextFormat" = "auto"
    max_memory: int | None = None
    """Bytes for each process; None for no limit."""
    allow_untested: bool = False
    bm25: bool = False
    milvus: bool = False
    processes: int = 1
    trust_remote_code: bool = False
    output: Path | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the encoder's weights in the host's memory, as `build_index` counts them."""
        if self.device.startswith("cuda"):
            return 0
        return self.shape.parameters * min(FLOAT_BYTES, WEIGHT_BYTES[self.dtype])

    @property
    def is_narrow(self) -> bool:
        """Whether a CPU multiplies in bfloat16."""
        return self.device.startswith("cpu") and self.dtype in ("mixed", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class PlannedLayout:
    """Kind of index and its segments, as the builder would choose them."""

    factory: str
    reason: str
    segment_rows: int
    """Vectors of every segment but the last; 0 where the builder would refuse."""
    segments: int
    memory: int | None
    """Bytes that the builder allows the index; None where it sets no limit."""
    refused: str = ""
    """Why the builder would refuse; empty where it would not."""


@dataclass(frozen=True, kw_only=True)
class WordStatistics:
    """What BM25 needs for a passage of the sample."""

    seconds: float
    """Of indexing one passage."""
    pairs: float
    """Distinct words of one passage."""
    vocabulary: int
    """Distinct words of the whole sample."""
    growth: float
    """Exponent by which the vocabulary grows with the number of passages (Heaps' law)."""
    word_bytes: float
    """Bytes on disk for one word of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class PassageMeasurements:
    """What was measured on the sample; bytes and seconds are of one passage of the index."""

    passages: int
    """N: passages of the index, after splitting into chunks."""
    sampled: int
    """Passages of the sample, after splitting into chunks."""
    tokens: float
    """Mean of L, the tokens that the encoder reads, truncated to its limit."""
    longest: int
    """Maximum of L."""
    tokens_basis: str
    """How tokens were counted, in words."""
    arrow_bytes: float
    """In the file of passages."""
    source_bytes: float
    """In the temporary files of reading."""
    read_seconds: float
    write_seconds: float
    """Of writing passages in their order."""
    segment_seconds: float
    """Of writing passages that are looked up by their numbers."""
    tokenise_seconds: float
    layers_seconds: float
    words: WordStatistics | None = None
    """None without BM25."""


@dataclass(frozen=True, kw_only=True)
class IndexSpeed:
    """How fast this machine builds a kind of index."""

    train_seconds: float = 0.0
    """Of training codes on one vector."""
    add_seconds: float = 0.0
    """Of adding one vector to an index of `PROBE_VECTORS`, without finding its cluster."""
    coarse_rate: float = float("inf")
    """Operations per second of comparisons with centroids."""


@dataclass(frozen=True, kw_only=True)
class IndexSetting:
    """What a plan of an index build rests on, as its JSON has it."""

    passages: int
    """Of the corpus, before they are split into chunks."""
    indexed: int
    """N: passages of the index."""
    basis: str
    """Where the number and the sample are from, in words."""
    tokens: float
    """Mean tokens of a passage of the index."""
    tokens_basis: str
    passage_bytes: float
    """Mean bytes of a stored passage."""
    encoder: str
    dtype: str
    device: str
    shape: EncoderShape
    layout: PlannedLayout
    processes: int
    encoding_speedup: float
    """How many times as fast as one process all of them encode."""

    joint_limits: ClassVar[tuple[str, ...]] = ("builder", "memory", "max_memory")
    """Limits that a change proposed for one of them makes hold together."""
    last_resort: ClassVar[str] = "use more memory, a smaller encoder, or fewer passages"
    """Advice where no change is enough."""

    @classmethod
    def of(
        cls, job: IndexJob, measured: PassageMeasurements, layout: PlannedLayout, encoding_speedup: float
    ) -> "IndexSetting":
        """The setting of a job."""
        return cls(
            passages=job.count,
            indexed=measured.passages,
            basis=job.basis,
            tokens=measured.tokens,
            tokens_basis=measured.tokens_basis,
            passage_bytes=measured.arrow_bytes,
            encoder=job.encoder,
            dtype=job.dtype,
            device=job.device,
            shape=job.shape,
            layout=layout,
            processes=job.processes,
            encoding_speedup=encoding_speedup,
        )

    def summary(self) -> list[str]:
        """The setting in a few lines of text."""
        chunks = "" if self.indexed == self.passages else f", split into {self.indexed:,}"
        lines = [
            f"{self.passages:,} passages{chunks} ({self.basis}), {self.tokens:,.0f} tokens each ({self.tokens_basis})",
            f"{self.encoder}: {self.shape.dimension} dimensions, {self.shape.parameters / 1e6:,.1f} M parameters in "
            f"{self.dtype} on {self.device}",
            self._layout_line(),
        ]
        if self.processes > 1:
            lines.append(f"{self.processes} processes encode {self.encoding_speedup:.1f} times as fast as one")
        return lines

    def _layout_line(self) -> str:
        layout = self.layout
        if layout.refused:
            return f"{layout.factory}: refused by the builder, see below"
        several = f"{layout.segments} segments of up to {layout.segment_rows:,}"
        return f"{layout.factory} in {'1 segment' if layout.segments == 1 else several}: {layout.reason}"
