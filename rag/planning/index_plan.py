"""What an index will take, before its encoder is loaded: `rag plan index`.

    sample of the corpus -> measure: pieces of the work, done for a fraction of a second each -> seconds
    shapes and factory string -> formulas (faiss_factory, training_plan) -------------------------> bytes

Whatever can be done with a few passages is done and timed here: they are read and written, cut, tokenised, put into a
BM25 index; two layers like the encoder's, with random weights, read their batches; and 4,096 random vectors go into an
index of the kind. No weights are read, so an encoder need not be there but for its config.

Axes: N passages of the index, d dimensions, L tokens of a passage.
"""

import json
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.corpora.passage import Passage
from indexes.directory.shards import ROWS
from indexes.errors import UsageError
from indexes.host_memory import BM25_PAIR, NARROW_KERNELS, format_bytes, format_seconds, host_memory, resident_bytes
from indexes.tiny_encoder import encoder_path
from indexes.vectors.faiss.faiss_factory import (
    build_bytes,
    bytes_per_vector,
    choose_factory,
    code_training_points,
    fixed_bytes,
    parse,
    stored_dimension,
    training_points,
    training_sample,
)
from indexes.vectors.faiss.faiss_kinds import CLUSTERING_ROUNDS, MAX_POINTS_PER_LIST
from rag.planning.training_plan import CHARACTERS_PER_TOKEN, SAMPLED_LINES, USABLE, EncoderShape

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from indexes.corpora.chunking import TextFormat

PROBED = 4096
"""Vectors that are put into an index of the kind, to see what one costs: a block of a build."""
TOKENISING = 1.25
"""What an encoder's preparation of a batch takes over its tokenizer alone: padding, tensors, the order by length.
Fitted to the encoding seconds that `python -m benchmarks.index_plan_accuracy` prints for the tiny encoder."""
TOKEN_BYTES = 205
"""Of each token, padding included, of the texts that are tokenised at once: its ids and masks, and what the tokenizer
notes of it; malloc keeps it (all-MiniLM-L6-v2, 4,096 texts of 256 tokens: 215 MB)."""
BATCH_HOLES = 6
"""Times a batch's activations that malloc holds after batches of many shapes on a CPU (all-MiniLM-L6-v2)."""
_NO_LENGTH = 512
"""Tokens where neither files nor positions limit them."""
LEDGER = 24
"""Bytes that reading remembers of each passage."""
_FLOAT = 4
_WEIGHT_BYTES = {"float32": 4, "mixed": 6, "bfloat16": 2, "float16": 2}
"""mixed keeps a bfloat16 copy while it encodes."""

NOT_MODELLED = (
    "starting Python and loading the encoder: seconds",
    "the disk: its speed, waiting for it (fsync), and checksums; probes write to the system's temporary folder",
    "a corpus that changes its character behind the sample; broken rows that are left out; parsing PDF and Word files",
    "an old index at the output (--overwrite), which stays on the disk until the new one is done",
    "encoders whose vectors are not as long as their hidden size (a Dense module), or that read no text",
    "learning rotations (OPQ, PCA, ITQ); clusters found by a graph (IVF65536_HNSW32) are taken as if all were compared",
    "memory of a GPU, and several of them: no GPU was measured; --milvus: the server's time, memory and disk",
)


@dataclass(frozen=True, kw_only=True)
class IndexJob:
    """One `rag index build`, as far as its costs depend on it."""

    encoder: str
    shape: EncoderShape
    count: int
    """Passages of the corpus, before they are cut."""
    sample: Sequence[Passage]
    """Some of them; made up where only numbers are given."""
    basis: str
    """Where count and sample come from, in words."""
    passage_tokens: int | None = None
    """L, where it is said and not counted."""
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
    allow_untested: bool = False
    bm25: bool = False
    milvus: bool = False
    processes: int = 1
    trust_remote_code: bool = False
    output: Path | None = None

    @property
    def weight_bytes(self) -> int:
        """Of the encoder in the host's memory, as `build_index` counts them."""
        if self.device.startswith("cuda"):
            return 0
        return self.shape.parameters * min(_FLOAT, _WEIGHT_BYTES[self.dtype])

    @property
    def is_narrow(self) -> bool:
        """Whether a CPU multiplies in bfloat16."""
        return self.device.startswith("cpu") and self.dtype in ("mixed", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Words:
    """What BM25 makes of a passage of the sample."""

    seconds: float
    pairs: float
    """Different words."""
    vocabulary: int
    """Different words of the whole sample."""
    growth: float
    """Exponent by which the vocabulary grows with the passages (Heaps)."""
    word_bytes: float
    """On disk for a word of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the sample showed; the bytes and seconds are of one passage of the index."""

    passages: int
    """N: of the index, cut if that is asked for."""
    sampled: int
    """Passages of the sample, cut."""
    tokens: float
    """L that the encoder reads, cut to its limit."""
    longest: int
    tokens_basis: str
    arrow_bytes: float
    """In the file of passages."""
    source_bytes: float
    """In the files that reading makes and removes."""
    read_seconds: float
    write_seconds: float
    """Of writing passages that are read one after another."""
    segment_seconds: float
    """Of writing those that are read by their rows."""
    tokenise_seconds: float
    layers_seconds: float
    words: Words | None = None


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How fast this machine makes a kind of index."""

    train_seconds: float = 0.0
    """Learning codes from one vector."""
    add_seconds: float = 0.0
    """Adding one vector, besides finding its cluster, to few others."""
    coarse_rate: float = math.inf
    """Operations per second of comparisons with centroids."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the builder would decide."""

    factory: str
    reason: str
    rows: int
    """Of every segment but the last; 0 when the builder would refuse."""
    segments: int
    memory: int | None
    """Bytes that it allows an index; None where it does not ask."""
    refused: str = ""


@dataclass(frozen=True)
class Room:
    """What there is."""

    memory: int
    """Bytes that processes may use."""
    process: int
    """Bytes that Python and the libraries take."""
    disk: int | None
    """Free bytes where the output goes; None when that is not said."""


@dataclass(frozen=True)
class Peak:
    """Memory at the worst moment of a phase, all processes together."""

    held: int
    mapped: int
    """Pages of files, which the system takes back when memory is short, but counts as resident as long as it is not."""

    @property
    def resident(self) -> int:
        """Both."""
        return self.held + self.mapped


# -- passages --------------------------------------------------------------------------------------------------------


def invented_passages(count: int, tokens: int) -> list[Passage]:
    """Passages of made-up words whose frequencies fall as in text (Zipf), four characters for each token.

    Args:
        count: How many; at most `SAMPLED_LINES` are made.
        tokens: Of each.
    """
    generator, characters = np.random.default_rng(0), CHARACTERS_PER_TOKEN * tokens
    weights = 1 / (np.arange(50_000) + 2.7)
    vocabulary = [_spelled(rank) for rank in range(len(weights))]
    found = []
    for number in range(min(count, SAMPLED_LINES)):
        ranks = generator.choice(len(weights), size=characters // 3 + 1, p=weights / weights.sum())
        text = " ".join(vocabulary[rank] for rank in ranks.tolist())
        found.append(Passage(str(number), "", text[:characters].strip()))
    return found


def _spelled(number: int) -> str:
    """Frequent words are short."""
    syllables = []
    while number >= 0:
        number, syllable = divmod(number, 100)
        syllables.append("bcdfghjklmnprstvwxyz"[syllable // 5] + "aeiou"[syllable % 5])
        number -= 1
    return "".join(syllables)


def _chunks(job: IndexJob, tokenizer: "Tokenizer | None", prompt: str) -> list[Passage]:
    """The sample as it is cut; by characters where the tokenizer is not there, or L is said."""
    from indexes.corpora.chunking import Chunker

    if job.chunk_tokens is None:
        return list(job.sample)
    if job.chunk_tokens < 1 or not 0 <= job.chunk_overlap < job.chunk_tokens:
        raise UsageError(
            f"A chunk needs at least 1 token and an overlap below that, but --chunk_tokens {job.chunk_tokens} and "
            f"--chunk_overlap {job.chunk_overlap} came."
        )
    if tokenizer is not None:  # which refuses what the build would refuse
        chunker = Chunker(
            tokenizer,
            max_tokens=job.chunk_tokens,
            overlap=job.chunk_overlap,
            text_format=job.chunk_format,
            prompt=prompt,
        )
        if job.passage_tokens is None:
            return [chunk for passage in job.sample for chunk in chunker.chunk(passage)]
    # Without a tokenizer nobody knows whether a prompt leaves room; something new is in every chunk.
    new = max(job.chunk_tokens - job.chunk_overlap - round(len(prompt) / CHARACTERS_PER_TOKEN), 1)
    length, step = (CHARACTERS_PER_TOKEN * n for n in (new + job.chunk_overlap, new))
    found = []
    for p in job.sample:
        starts = range(0, max(1, len(p.text) - CHARACTERS_PER_TOKEN * job.chunk_overlap), step)
        parts = [text for start in starts if (text := p.text[start : start + length].strip())]
        # As the chunker does: a passage that is all title is one chunk.
        found += [Passage(f"{p.id}#{i}", p.title, text) for i, text in enumerate(parts)] or [p]
    return found


# -- what is measured ------------------------------------------------------------------------------------------------


def measure_passages(job: IndexJob) -> Measured:
    """Read, cut, write, tokenise and encode the sample, the last with random weights."""
    tokenizer = find_tokenizer(job.encoder)
    started = time.process_time()
    prompt = passage_prompt(job.encoder) if job.passage_prompt is None else job.passage_prompt
    chunks = _chunks(job, tokenizer, prompt)
    cut_seconds = (time.process_time() - started) / len(chunks)
    read_seconds, write_seconds, segment_seconds, source_bytes, arrow_bytes = _time_files(job, chunks)
    limit = _limit(job)
    lengths, seconds, basis = _token_lengths(job, [prompt + p.contents for p in chunks], tokenizer, limit)
    batches = _batches(job, lengths)
    return Measured(
        passages=round(job.count * len(chunks) / len(job.sample)),
        sampled=len(chunks),
        tokens=statistics.fmean(lengths),
        longest=max(lengths),
        tokens_basis=basis,
        arrow_bytes=arrow_bytes,
        source_bytes=source_bytes,
        read_seconds=read_seconds + cut_seconds,
        write_seconds=write_seconds,
        segment_seconds=segment_seconds,
        tokenise_seconds=TOKENISING * seconds / len(chunks),
        layers_seconds=layer_seconds(job, batches) * statistics.fmean(lengths),
        words=_measure_words(chunks) if job.bm25 else None,
    )


def _time_files(job: IndexJob, chunks: Sequence[Passage]) -> tuple[float, ...]:
    """Reading, writing, writing by rows, seconds; the files of reading and of the index, bytes; all for one chunk."""
    from indexes.corpora.corpus import Corpus
    from indexes.directory.segments import write_passages

    with tempfile.TemporaryDirectory() as name:
        folder, source = Path(name), Path(name) / "sample.jsonl"
        rows = (json.dumps({"id": p.id, "title": p.title, "text": p.text}, ensure_ascii=False) for p in job.sample)
        source.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        started = time.process_time()
        corpus = Corpus.from_file(source, cache_dir=folder)
        if job.chunk_tokens is not None:
            corpus = Corpus.from_passages(chunks, cache_dir=folder)
        read = time.process_time()
        sizes = [path.stat().st_size for path in folder.rglob("*.arrow")]
        write_passages(folder / "written", corpus)
        written = time.process_time()
        write_passages(folder / "segment", corpus.take(range(len(corpus))))
        done = time.process_time()
        size = (folder / "written").stat().st_size
    n = len(chunks)
    return (read - started) / n, (written - read) / n, (done - written) / n, sum(sizes) / n, size / n


def find_tokenizer(encoder: str) -> "Tokenizer | None":
    """The encoder's tokenizer without its weights, from its folder or the Hub's cache; None when it is not there."""
    from tokenizers import Tokenizer

    file = _file_of(encoder, "tokenizer.json")
    return None if file is None else Tokenizer.from_file(str(file))


def passage_prompt(encoder: str) -> str:
    """What the encoder's own configuration puts before a passage, as `Encoder` will find it, without its weights."""
    from indexes.encoder import own_passage_prompt

    file = _file_of(encoder, "config_sentence_transformers.json")
    prompts = {} if file is None else json.loads(file.read_text(encoding="utf-8")).get("prompts")
    return own_passage_prompt(prompts or {})


def _limit(job: IndexJob) -> int | None:
    """The most tokens that are read of a passage; None where the encoder reads all of them."""
    if job.shape.layers:
        return max_length(job.encoder, job.max_length, trust_remote_code=job.trust_remote_code)
    if job.max_length is not None:
        raise UsageError(
            f"--max_length {job.max_length} needs an encoder with a length limit, but {job.encoder!r} reads inputs of "
            "any length. Leave --max_length out."
        )
    return None


def max_length(encoder: str, wanted: int | None = None, *, trust_remote_code: bool = False) -> int:
    """The most tokens that a transformer among the encoders reads, as `Encoder` will find it, without its weights.

    sentence-transformers 6.2 keeps the length in ``tokenizer_config.json`` (`model_max_length`), older releases wrote
    it into ``sentence_bert_config.json``. What ``tokenizer.json`` truncates to is neither: it is what the last call of
    the tokenizer asked for before it was saved.

    Args:
        encoder: A folder or a name on the Hub.
        wanted: What `--max_length` asks for; None takes the encoder's own.
        trust_remote_code: Run Python code that comes with the encoder, where it has some.

    Raises:
        UsageError: The encoder has fewer positions than are wanted.
    """
    room, positions = _positions(encoder, trust_remote_code=trust_remote_code)
    if wanted is not None:
        if wanted < 1 or (room is not None and wanted > room):
            raise UsageError(
                f"--max_length must be at least 1{f' and at most {room}' if room else ''}, the positions that this "
                f"encoder has, but {wanted} came."
            )
        return wanted
    written = _stated(encoder)
    options = (written.get("tokenizer_args") or {}) | (written.get("processor_kwargs") or {})
    stated = options.get("model_max_length") or written.get("max_seq_length")
    if not stated:
        file = _file_of(encoder, "tokenizer_config.json")
        of_tokenizer = None if file is None else json.loads(file.read_text(encoding="utf-8")).get("model_max_length")
        stated = min((length for length in (of_tokenizer, positions) if length), default=_NO_LENGTH)
    return int(min(stated, room or stated))


def _positions(encoder: str, *, trust_remote_code: bool) -> tuple[int | None, int | None]:
    """Positions that can be used, where there is a table of them, and `max_position_embeddings`, where that is said."""
    import torch
    from transformers import AutoConfig, AutoModel

    from indexes.encoder import position_limit

    config: Any = AutoConfig.from_pretrained(encoder, trust_remote_code=trust_remote_code)
    stated = getattr(config, "max_position_embeddings", None)
    with torch.device("meta"):  # shapes without numbers
        room = position_limit(AutoModel.from_config(config, trust_remote_code=trust_remote_code))
    return room, stated if isinstance(stated, int) and stated > 0 else None  # XLNet says -1 for no limit


def _stated(encoder: str) -> dict[str, Any]:
    """What sentence-transformers finds in the encoder's file for its transformer, under any of the names it had."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    folder = Path(encoder).expanduser()
    name = str(folder) if folder.is_dir() else encoder
    found: dict[str, Any] = Transformer.load_config(name, local_files_only=True)
    return found


def _file_of(encoder: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    folder = Path(encoder_path(encoder)).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    found = try_to_load_from_cache(encoder, name)
    return Path(found) if isinstance(found, str) else None


def _token_lengths(
    job: IndexJob, texts: Sequence[str], tokenizer: "Tokenizer | None", limit: int | None
) -> tuple[list[int], float, str]:
    """Tokens of each chunk with its prompt, the seconds of counting them, and how they were counted."""
    seconds = 0.0
    lengths = [max(1, round(len(text) / CHARACTERS_PER_TOKEN)) for text in texts]
    basis = "four characters for each token, as its tokenizer is not here"
    if tokenizer is not None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        started = time.process_time()
        lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
        seconds, basis = time.process_time() - started, "its own tokenizer"
    if job.passage_tokens is not None:
        mean = min(job.passage_tokens, job.chunk_tokens or job.passage_tokens)
        lengths, basis = [mean] * len(texts), "as you say"
    return [max(1, min(length, limit or length)) for length in lengths], seconds, basis


def _batches(job: IndexJob, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Rows and padded length of the batches that the sample is read in, longest first."""
    from indexes.batching import token_budget_batches
    from indexes.encoder import batch_tokens

    # A window of a build is full; a small sample of a GPU's would be less than one batch.
    filled = [length for length in lengths for _ in range(-(-SAMPLED_LINES // len(lengths)))]
    groups = token_budget_batches(filled, batch_tokens(job.device.partition(":")[0]), max_rows=job.batch_size)
    return [(len(rows), max(filled[i] for i in rows)) for rows in groups]


def layer_seconds(job: IndexJob, batches: Sequence[tuple[int, int]]) -> float:
    """Seconds of all layers for one token: two of them, of random weights, read three batches, short, middle and long.

    Args:
        job: Says which encoder, in which numbers, where.
        batches: Rows and length of each batch.
    """
    if not job.shape.layers:
        return 0.0
    import torch

    model = _two_layers(job)
    chosen = [batches[i] for i in sorted({len(batches) * part // 6 for part in (1, 3, 5)})]
    total = 0.0
    with torch.inference_mode(), torch.autocast(job.device.partition(":")[0], torch.bfloat16, job.dtype == "mixed"):
        for rows, length in chosen:
            ids = torch.full((rows, length), 5, device=job.device)
            total += _best_of(lambda ids=ids: _forward(model, ids), 3, job.device)  # type: ignore[misc]
    return total / 2 * job.shape.layers / sum(rows * length for rows, length in chosen)


def _two_layers(job: IndexJob) -> Any:
    import torch
    from transformers import AutoConfig, AutoModel

    config: Any = AutoConfig.from_pretrained(job.encoder, trust_remote_code=job.trust_remote_code)
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 2, 1000, 0
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    plain = job.dtype == "mixed" and job.device == "cpu"  # as `Encoder` does
    how: dict[str, Any] = {"attn_implementation": "eager"} if plain else {}
    model = AutoModel.from_config(config, trust_remote_code=job.trust_remote_code, **how).eval()
    numbers = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(job.dtype, torch.float32)
    return model.to(job.device, numbers)


def _forward(model: Any, ids: Any) -> None:
    import torch

    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    if ids.is_cuda:
        torch.cuda.synchronize(ids.device)


def _best_of(work: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """Seconds of the fastest repetition behind one that warms up; on one thread those of the processor, not the clock.

    So others on the machine count as little as can be.
    """
    import torch

    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    work()
    found = []
    for _ in range(repeats):
        started = clock()
        work()
        found.append(clock() - started)
    return min(found)


def _measure_words(chunks: Sequence[Passage]) -> Words:
    from indexes.vectors.bm25_index import BM25Index

    with tempfile.TemporaryDirectory() as name:
        half, whole = Path(name) / "half", Path(name) / "whole"
        BM25Index.build(chunks[: max(1, len(chunks) // 2)]).save(half)
        started = time.process_time()
        BM25Index.build(chunks).save(whole)
        seconds = time.process_time() - started
        before, after = (json.loads((folder / "bm25.json").read_text())["words"] for folder in (half, whole))
        sizes = {file.name: file.stat().st_size for file in whole.iterdir()}
    data = sum(size for file, size in sizes.items() if file.startswith(("data.", "indices.")))
    return Words(
        seconds=seconds / len(chunks),
        pairs=data / 8 / len(chunks),
        vocabulary=after,
        growth=math.log2(after / before) if before and len(chunks) > 1 else 1.0,
        word_bytes=(sum(sizes.values()) - data) / max(1, after),
    )


def measure_kind(factory: str, dimension: int) -> Kind:
    """Put random vectors into an index of a kind, with a single cluster where it has clusters.

    Args:
        factory: FAISS's description of the index; "Flat" is written without FAISS and costs nothing here.
        dimension: d.
    """
    if factory == "Flat":
        return Kind()
    parts, inner = parse(factory), stored_dimension(factory, dimension)
    graph = f"HNSW{parts.neighbours}," if parts.neighbours else ""
    train, add = _time_kind(f"IVF1,{parts.code}" if parts.lists else f"{graph}{parts.code}", inner)
    if parts.refine:
        more = _time_kind(parts.refine, dimension)
        train, add = train + more[0], add + more[1]
    rate = _coarse_rate(inner, min(parts.lists, PROBED)) if parts.lists else math.inf
    return Kind(train_seconds=train, add_seconds=add, coarse_rate=rate)


def _time_kind(factory: str, dimension: int) -> tuple[float, float]:
    """Seconds of training on, and of adding, one vector."""
    from indexes.vectors.faiss.faiss_index import FaissIndex
    from indexes.vectors.faiss.faiss_training import new_faiss_index

    vectors_nd = _gathered(PROBED, dimension)
    # A part of an index that was looked at as a whole: alone it may give no vectors back, and need not.
    index = FaissIndex(new_faiss_index(dimension, factory), factory)
    started = time.process_time()
    index.train(vectors_nd)
    trained = time.process_time()
    index.add(vectors_nd)
    return (trained - started) / PROBED, (time.process_time() - trained) / PROBED


def _coarse_rate(dimension: int, lists: int) -> float:
    from indexes.vectors.faiss.faiss_index import FaissIndex

    centroids = FaissIndex.build(_gathered(lists, dimension))
    vectors_nd = _gathered(PROBED, dimension, seed=1)
    seconds = _best_of(lambda: centroids.search(vectors_nd, 1, prefilter=False, batch_size=PROBED), 5)
    return 2 * PROBED * lists * dimension / seconds


def _gathered(count: int, dimension: int, *, seed: int = 0) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Unit vectors around centres, as those of texts are: float32 [n, d]."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((max(1, count // 4), dimension), dtype=np.float32)
    noise = generator.standard_normal((count, dimension), dtype=np.float32)
    vectors_nd = centres[generator.integers(0, len(centres), count)] + 0.5 * noise
    unit_nd: np.ndarray[Any, np.dtype[np.float32]] = vectors_nd / np.linalg.norm(vectors_nd, axis=1, keepdims=True)
    return unit_nd


# -- what the builder would decide -----------------------------------------------------------------------------------


def layout(job: IndexJob, passages: int) -> Layout:
    """Kind and segments, by the builder's own functions; its refusal becomes part of the answer.

    Args:
        job: The build.
        passages: N.

    Raises:
        UsageError: FAISS cannot make such an index at all.
    """
    from indexes.directory.builder import check_training, memory_beside, segment_rows
    from indexes.vectors.faiss.faiss_index import FaissIndex
    from indexes.vectors.vector_store import StoreConfig

    if job.milvus:
        name = "AUTOINDEX" if job.factory == "auto" else job.factory
        return Layout(factory=f"Milvus({name})", reason="Milvus decides", rows=passages, segments=1, memory=None)
    d, factory, reason, memory = job.shape.dimension, job.factory, "as you say", None
    if factory != "auto":
        FaissIndex.empty(d, factory, allow_untested=job.allow_untested)
    try:
        memory = memory_beside(job.max_memory, job.weight_bytes, narrow=job.is_narrow)
        if factory == "auto":
            factory, reason = choose_factory(passages, d, memory=memory)
        config = StoreConfig(dimension=d, factory=factory, allow_untested=job.allow_untested)
        rows = segment_rows(FaissIndex, config, passages, memory)
        check_training(FaissIndex, config, passages)
    except UsageError as error:
        return Layout(factory=factory, reason=reason, rows=0, segments=0, memory=memory, refused=str(error))
    return Layout(factory=factory, reason=reason, rows=rows, segments=-(-passages // rows), memory=memory)


# -- seconds ---------------------------------------------------------------------------------------------------------


def index_seconds(factory: str, passages: int, rows: int, dimension: int, kind: Kind) -> tuple[float, float]:
    """Training once, and adding all vectors to segments of so many rows."""
    parts, inner = parse(factory), stored_dimension(factory, dimension)
    sample = training_sample(factory, passages)
    train = kind.train_seconds * code_training_points(factory, sample)
    add = kind.add_seconds * passages * (graph_growth(rows) if parts.neighbours else 1)
    if parts.lists:
        compared = 2 * parts.lists * inner / kind.coarse_rate
        train += CLUSTERING_ROUNDS * compared * min(sample, MAX_POINTS_PER_LIST * parts.lists)
        add += compared * passages
    return train if sample else 0.0, add


def graph_growth(rows: int) -> float:
    """How much more a vector costs in a graph of so many than in the probe's: half as much again at each doubling.

    Measured: 2.4 times at 8 times as many (`python -m benchmarks.index_plan_accuracy --graph 32768`).
    """
    doublings = math.log2(rows / PROBED)
    return 1 + doublings / 2 if doublings > 0 else float(2 ** (doublings / 2))


def speedup(job: IndexJob, passages: int, threads: int, cores: int) -> float:
    """How much faster several processes encode: they share out whole shards, and a machine's cores or GPUs.

    Args:
        job: Says how many processes.
        passages: N.
        threads: Of this process, which the rates are of.
        cores: Of the machine; GPUs where encoding takes place on them.
    """
    shards = -(-passages // ROWS)
    useful = min(job.processes, cores if job.device.startswith("cuda") else max(1.0, cores / threads))
    return min(useful, shards / math.ceil(shards / job.processes))


def seconds(
    job: IndexJob, found: Layout, measured: Measured, kind: Kind, faster: float
) -> dict[str, tuple[float, str]]:
    """Of each phase, and what that rests on."""
    n = measured.passages
    sample = f"{measured.sampled:,} passages done here"
    reading = n * (measured.read_seconds + measured.write_seconds)
    encoding = n * (measured.tokenise_seconds + measured.layers_seconds) / faster
    layers = f", {job.shape.layers} layers of random weights" if job.shape.layers else ""
    phases = {"read": (reading, sample), "encode": (encoding, f"tokenising {sample}{layers}")}
    if found.rows:
        train, add = 0.0, 0.0
        random = ""
        if not job.milvus and found.factory != "Flat":
            train, add = index_seconds(found.factory, n, found.rows, job.shape.dimension, kind)
            random = f"{PROBED:,} random vectors in an index of the kind"
        if train:
            phases["train"] = (train, random)
        phases["segments"] = (
            add + n * measured.segment_seconds,
            "; ".join(filter(None, [f"writing {sample}", random])),
        )
    if measured.words is not None:
        phases["bm25"] = (n * measured.words.seconds, sample)
    return phases


# -- bytes -----------------------------------------------------------------------------------------------------------


def peaks(job: IndexJob, found: Layout, measured: Measured, process: int, *, free: int) -> dict[str, Peak]:
    """Memory of each phase.

    Args:
        job: The build.
        found: What the builder would decide.
        measured: Sizes of passages.
        process: Of Python and the libraries.
        free: Bytes of memory that are free: an index of more than half of them is left on the disk when it is opened.
    """
    n, d = measured.passages, job.shape.dimension
    # All processes are there from the first to the last moment, and wait while one of them reads or builds.
    idle = job.processes * (process + job.weight_bytes)
    passages = int(n * measured.arrow_bytes)
    block = 2 * ROWS * d * _FLOAT
    found_peaks = {
        "read": Peak(idle + n * LEDGER, int(n * measured.source_bytes)),
    }
    idle += job.processes * _kept_bytes(job, measured)
    found_peaks["encode"] = Peak(idle + job.processes * (_encoding_bytes(job, measured) + block), passages)
    if not found.rows:
        return found_peaks
    if job.milvus:
        found_peaks["segments"] = Peak(idle + block, passages)
        return found_peaks | _words_peak(measured, idle, passages)
    if sample := training_sample(found.factory, n):
        copies = 2 + len(parse(found.factory).transforms)
        found_peaks["train"] = Peak(idle + fixed_bytes(found.factory, d) + copies * sample * d * _FLOAT, 0)
    segment = 0 if found.factory == "Flat" else build_bytes(found.factory, found.rows, d)
    found_peaks["segments"] = Peak(idle + block + segment, int(found.rows * measured.arrow_bytes))
    found_peaks |= _words_peak(measured, idle, passages)
    whole, stays = vector_bytes(found, n, d), vector_bytes(found, n, d) > free // 2
    found_peaks["open"] = Peak(idle + (0 if stays else whole), whole if stays else 0)
    return found_peaks


def _encoding_bytes(job: IndexJob, measured: Measured) -> int:
    """Of one process beside the weights and what its tokenizer keeps: on a CPU the activations of a batch."""
    from indexes.encoder import batch_tokens

    if not job.shape.layers or not job.device.startswith("cpu"):
        return 0
    rows = min(job.batch_size, max(1, batch_tokens("cpu") // measured.longest))
    copies = job.shape.parameters * (_WEIGHT_BYTES[job.dtype] - min(_FLOAT, _WEIGHT_BYTES[job.dtype]))
    return copies + BATCH_HOLES * job.shape.bytes(measured.longest, rows)


def _kept_bytes(job: IndexJob, measured: Measured) -> int:
    """Of one process, from encoding on, although nobody needs it any more."""
    from indexes.encoder import window_texts

    if not job.shape.layers:
        return 0
    texts = min(window_texts(measured.longest), measured.passages, ROWS)
    kernels = NARROW_KERNELS if job.is_narrow else 0
    return TOKEN_BYTES * measured.longest * texts + kernels


def _words_peak(measured: Measured, idle: int, passages: int) -> dict[str, Peak]:
    if measured.words is None:
        return {}
    return {"bm25": Peak(idle + int(BM25_PAIR * measured.words.pairs * measured.passages), passages)}


def vector_bytes(found: Layout, passages: int, dimension: int) -> int:
    """The files of vectors of all segments, and of what was trained once for them."""
    fixed = fixed_bytes(found.factory, dimension)
    copies = found.segments + bool(training_points(found.factory))
    return round(bytes_per_vector(found.factory, dimension) * passages) + copies * fixed


def disk(job: IndexJob, found: Layout, measured: Measured) -> dict[str, int]:
    """What lies on the disk: `building` at the fullest moment, `after` when only the index is left, and its parts."""
    n, d = measured.passages, job.shape.dimension
    passages, reading = int(n * measured.arrow_bytes), int(n * measured.source_bytes)
    vectors = 0 if job.milvus or not found.rows else vector_bytes(found, n, d)
    parts = {"passages": passages, "vectors": vectors, "bm25": words_bytes(measured)}
    after, shards = sum(parts.values()), n * d * _FLOAT
    return parts | {"shards": shards, "building": max(reading + passages, passages + shards + after), "after": after}


def words_bytes(measured: Measured) -> int:
    """The BM25 index: 8 bytes for each pair of a passage and a word, and a vocabulary that grows ever more slowly."""
    if measured.words is None:
        return 0
    n, w = measured.passages, measured.words
    grown = w.vocabulary * (n / measured.sampled) ** w.growth
    return int(8 * w.pairs * n + w.word_bytes * grown)


# -- the answer ------------------------------------------------------------------------------------------------------


def plan_index(job: IndexJob) -> dict[str, Any]:
    """Everything that can be said of a build before it starts; sizes in bytes, times in seconds.

    Args:
        job: The build.

    Raises:
        UsageError: The kind of index does not exist, or the cutting is impossible.
        ResourceError: The encoder's config is not there.
    """
    import torch

    from indexes.directory.builder import build_index  # noqa: F401 - what a build loads, so that this process is as large

    available, process = host_memory()[1], resident_bytes()
    free = None if job.output is None else shutil.disk_usage(_existing(job.output)).free
    room = Room(int(USABLE * (available + process)), process, free)
    measured = measure_passages(job)
    found = layout(job, measured.passages)
    kind = Kind() if job.milvus or not found.rows else measure_kind(found.factory, job.shape.dimension)
    gpus = job.device.startswith("cuda")
    cores = torch.cuda.device_count() if gpus else os.cpu_count() or 1
    faster = speedup(job, measured.passages, torch.get_num_threads(), cores)
    return answer(job, measured, found, seconds(job, found, measured, kind, faster), room, faster)


def answer(
    job: IndexJob,
    measured: Measured,
    found: Layout,
    phases: dict[str, tuple[float, str]],
    room: Room,
    faster: float = 1.0,
) -> dict[str, Any]:
    """The plan from its parts, ready for JSON; nothing is measured any more."""
    memory = peaks(job, found, measured, room.process, free=room.memory)
    files = disk(job, found, measured)
    worst = max(memory, key=lambda name: memory[name].held)
    fits = _fits(job, found, memory, files, room)
    return {
        "corpus": {
            "passages": job.count,
            "indexed": measured.passages,
            "basis": job.basis,
            "tokens": measured.tokens,
            "tokens_basis": measured.tokens_basis,
            "bytes": measured.arrow_bytes,
        },
        "encoder": {"name": job.encoder, "dtype": job.dtype, "device": job.device, **asdict(job.shape)},
        "index": asdict(found),
        "processes": {"count": job.processes, "encoding_speedup": faster},
        "phases": [
            {"name": name, "seconds": phases.get(name, (0.0, ""))[0], "basis": phases.get(name, (0.0, ""))[1]}
            | asdict(peak)
            | {"resident": peak.resident}
            for name, peak in memory.items()
        ],
        "seconds": sum(time for time, _ in phases.values()),
        "memory": {
            "process": room.process,
            "encoder": job.weight_bytes,
            "peak": memory[worst].held,
            "peak_phase": worst,
            "resident": max(peak.resident for peak in memory.values()),
            "max_memory": job.max_memory,
            "room": room.memory,
        },
        "disk": files | {"free": room.disk},
        "fits": fits,
        "changes": _changes(job, found, measured, fits, room),
        "not_modelled": list(NOT_MODELLED),
    }


def _existing(path: Path) -> Path:
    path = path.expanduser().resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _fits(
    job: IndexJob, found: Layout, memory: dict[str, Peak], files: dict[str, int], room: Room
) -> dict[str, bool | None]:
    """Whether the builder would begin at all, and what it would then run out of; None where no limit is known."""
    held = max(peak.held for peak in memory.values())
    return {
        "builder": not found.refused,
        "max_memory": None if job.max_memory is None else held <= job.processes * job.max_memory,
        "machine": held <= room.memory,
        "disk": None if room.disk is None else files["building"] <= room.disk,
    }


def _changes(
    job: IndexJob, found: Layout, measured: Measured, fits: dict[str, bool | None], room: Room
) -> list[dict[str, Any]]:
    """What would make it fit, each alone: segments by --max_memory, a smaller kind, fewer processes, another disk."""
    wanted: list[tuple[str, IndexJob]] = []
    if not (fits["builder"] and fits["machine"] and fits["max_memory"] is not False):
        share = room.memory // job.processes
        if job.max_memory is None or share < job.max_memory or found.refused:
            wanted.append((f"--max_memory {share // 10**6}MB", replace(job, max_memory=share // 10**6 * 10**6)))
        wanted += [(f"--factory {factory}", replace(job, factory=factory)) for factory in _smaller(job, measured)]
        if job.processes > 1:
            wanted.append(("--processes 1", replace(job, processes=1)))
    changes = []
    for name, changed in wanted:
        other = layout(changed, measured.passages)
        memory = peaks(changed, other, measured, room.process, free=room.memory)
        files = disk(changed, other, measured)
        good = _fits(changed, other, memory, files, room)
        if good["builder"] and good["machine"] and good["max_memory"] is not False:
            held = max(peak.held for peak in memory.values())
            changes.append({"change": name, "factory": other.factory, "segments": other.segments, "peak": held})
    if fits["disk"] is False:
        changes.append(
            {"change": "another --output_dir", "factory": found.factory, "segments": found.segments, "peak": 0}
        )
    return changes


def _smaller(job: IndexJob, measured: Measured) -> list[str]:
    """The kinds that `choose_factory` would come to with ever less memory, and exact search, built as a stream."""
    if job.milvus:
        return []
    n, d = measured.passages, job.shape.dimension
    kinds = {choose_factory(n, d, memory=2**power)[0]: None for power in range(40, 20, -1)}
    return [kind for kind in [*kinds, "Flat"] if kind != job.factory]


def render(data: dict[str, Any]) -> str:
    """The plan as text."""
    return "\n\n".join(part(data) for part in (_heading, _phases_text, _disk_text, _verdict))


def _heading(data: dict[str, Any]) -> str:
    corpus, encoder, index = data["corpus"], data["encoder"], data["index"]
    cut = "" if corpus["indexed"] == corpus["passages"] else f", cut into {corpus['indexed']:,}"
    lines = [
        f"{corpus['passages']:,} passages{cut} ({corpus['basis']}), {corpus['tokens']:,.0f} tokens each "
        f"({corpus['tokens_basis']})",
        f"{encoder['name']}: {encoder['dimension']} dimensions, {encoder['parameters'] / 1e6:,.1f} M parameters in "
        f"{encoder['dtype']} on {encoder['device']}",
    ]
    if index["refused"]:
        return "\n".join([*lines, f"{index['factory']}: refused, see below"])
    segments = "1 segment" if index["segments"] == 1 else f"{index['segments']} segments of up to {index['rows']:,}"
    return "\n".join([*lines, f"{index['factory']} in {segments}: {index['reason']}"])


def _phases_text(data: dict[str, Any]) -> str:
    lines = [f"{'':<12}{'seconds':>12}{'memory':>12}{'files in it':>14}   seconds rest on"]
    lines += [
        f"  {p['name']:<10}{format_seconds(p['seconds']) if p['basis'] else '-':>12}{format_bytes(p['held']):>12}"
        f"{format_bytes(p['mapped']) if p['mapped'] else '-':>14}   {p['basis'] or '-'}"
        for p in data["phases"]
    ]
    processes, memory = data["processes"], data["memory"]
    several = (
        ""
        if processes["count"] == 1
        else (f"; {processes['count']} processes encode {processes['encoding_speedup']:.1f} times as fast as one")
    )
    lines.append(f"  in all {format_seconds(data['seconds'])}{several}")
    return "\n".join(
        [
            *lines,
            f"Memory: {format_bytes(memory['process'])} for Python and libraries (of this process), "
            f"{format_bytes(memory['encoder'])} for weights (the encoder's files or config), the rest by formula. "
            "The system can drop files from memory.",
        ]
    )


def _disk_text(data: dict[str, Any]) -> str:
    found = data["disk"]
    parts = ", ".join(f"{name} {format_bytes(found[name])}" for name in ("passages", "vectors", "bm25") if found[name])
    return (
        f"Disk: {format_bytes(found['after'])} in the end ({parts}: passages and words as in the sample, vectors "
        f"by formula); {format_bytes(found['building'])} while it is built, with {format_bytes(found['shards'])} of "
        "shards and the passages twice."
    )


def _verdict(data: dict[str, Any]) -> str:
    memory, fits, index = data["memory"], data["fits"], data["index"]
    lines = [f"The builder would refuse it: {index['refused']}"] if index["refused"] else []
    lines.append(
        f"Peak {format_bytes(memory['peak'])} ({memory['peak_phase']}), {format_bytes(memory['resident'])} with files: "
        f"{_says(fits['machine'])} {format_bytes(memory['room'])}, {USABLE:.0%} of what is free here."
    )
    if memory["max_memory"] is not None:
        lines.append(
            f"--max_memory {format_bytes(memory['max_memory'])} for each process: {_says(fits['max_memory'])} it."
        )
    if fits["disk"] is not None:
        lines.append(
            f"Disk: {_says(fits['disk'])} the {format_bytes(data['disk']['free'])} that are free at the output."
        )
    lines += [
        f"  {c['change']:<40} {c['factory']} in {c['segments']} segments, {format_bytes(c['peak'])}"
        for c in data["changes"]
    ]
    if not data["changes"] and False in fits.values():
        lines.append("  Nothing here makes it fit: take more memory, a smaller encoder, or fewer passages.")
    return "\n".join([*lines, "Not modelled:", *(f"  {what}" for what in data["not_modelled"])])


def _says(fits: bool | None) -> str:
    return "fits" if fits else "DOES NOT FIT"
