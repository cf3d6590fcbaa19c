"""Measurements on a sample of passages: reading, chunking, writing, tokenising, encoding and BM25, done and timed.

No weights are read: two layers like the encoder's, with random weights, read the sample's batches.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexes.corpora.passage import Passage
from indexes.errors import UsageError
from indexes.tiny_encoder import encoder_path
from rag.planning.encoder_files import find_tokenizer, max_length, stored_passage_prompt
from rag.planning.index_job import IndexJob, PassageMeasurements, WordStatistics
from rag.planning.text_sizes import CHARACTERS_PER_TOKEN, SAMPLE_SIZE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_OVERHEAD = 1.25
"""What an encoder's preparation of a batch takes over its tokenizer: padding, tensors, sorting by length. Fitted to the
encoding seconds that `python -m benchmarks.index_plan_accuracy` prints for the tiny encoder."""


def measure_passages(job: IndexJob) -> PassageMeasurements:
    """Read, split, write, tokenise and encode the sample, the last with random weights.

    Raises:
        UsageError: The chunks or the length limit are impossible.
    """
    tokenizer = find_tokenizer(job.encoder)
    started = time.process_time()
    prompt = stored_passage_prompt(job.encoder) if job.passage_prompt is None else job.passage_prompt
    chunks = split_sample(job, tokenizer, prompt)
    split_seconds = (time.process_time() - started) / len(chunks)
    files = _measure_files(job, chunks)
    tokens = _count_tokens(job, [prompt + p.contents for p in chunks], tokenizer, _length_limit(job))
    return PassageMeasurements(
        passages=round(job.count * len(chunks) / len(job.sample)),
        sampled=len(chunks),
        tokens=statistics.fmean(tokens.lengths),
        longest=max(tokens.lengths),
        tokens_basis=tokens.basis,
        arrow_bytes=files.arrow_bytes,
        source_bytes=files.source_bytes,
        read_seconds=files.read_seconds + split_seconds,
        write_seconds=files.write_seconds,
        segment_seconds=files.segment_seconds,
        tokenise_seconds=TOKENIZER_OVERHEAD * tokens.seconds / len(chunks),
        layers_seconds=layer_seconds(job, _batches(job, tokens.lengths)) * statistics.fmean(tokens.lengths),
        words=_measure_words(chunks) if job.bm25 else None,
    )


# -- chunks and files ------------------------------------------------------------------------------------------------


def split_sample(job: IndexJob, tokenizer: "Tokenizer | None", prompt: str) -> list[Passage]:
    """The sample as chunks; split by characters where there is no tokenizer, or the passages' length is given.

    Raises:
        UsageError: The chunks are impossible, as the builder would find.
    """
    from indexes.corpora.chunking import Chunker

    if job.chunk_tokens is None:
        return list(job.sample)
    if job.chunk_tokens < 1 or not 0 <= job.chunk_overlap < job.chunk_tokens:
        raise UsageError(
            f"A chunk needs at least 1 token and an overlap below that, but got --chunk_tokens {job.chunk_tokens} and "
            f"--chunk_overlap {job.chunk_overlap}."
        )
    if tokenizer is not None:
        chunker = Chunker(
            tokenizer,
            max_tokens=job.chunk_tokens,
            overlap=job.chunk_overlap,
            text_format=job.chunk_format,
            prompt=prompt,
        )
        if job.passage_tokens is None:
            return [chunk for passage in job.sample for chunk in chunker.chunk(passage)]
    return _split_by_characters(job.sample, job.chunk_tokens, job.chunk_overlap, prompt)


def _split_by_characters(sample: Sequence[Passage], tokens: int, overlap: int, prompt: str) -> list[Passage]:
    # Without a tokenizer it is unknown whether a prompt leaves room; every chunk has at least one new token.
    new = max(tokens - overlap - round(len(prompt) / CHARACTERS_PER_TOKEN), 1)
    length, step = (CHARACTERS_PER_TOKEN * n for n in (new + overlap, new))
    found = []
    for p in sample:
        starts = range(0, max(1, len(p.text) - CHARACTERS_PER_TOKEN * overlap), step)
        parts = [text for start in starts if (text := p.text[start : start + length].strip())]
        # As the chunker does: a passage with a title and no text is one chunk.
        found += [Passage(f"{p.id}#{i}", p.title, text) for i, text in enumerate(parts)] or [p]
    return found


@dataclass(frozen=True)
class _FileMeasurements:
    """Seconds and bytes of one chunk, as in `PassageMeasurements`."""

    read_seconds: float
    write_seconds: float
    segment_seconds: float
    source_bytes: float
    arrow_bytes: float


def _measure_files(job: IndexJob, chunks: Sequence[Passage]) -> _FileMeasurements:
    from indexes.corpora.corpus import Corpus
    from indexes.corpora.passage_files import write_passages

    with tempfile.TemporaryDirectory() as name:
        folder, source = Path(name), Path(name) / "sample.jsonl"
        records = (json.dumps({"id": p.id, "title": p.title, "text": p.text}, ensure_ascii=False) for p in job.sample)
        source.write_text("".join(f"{record}\n" for record in records), encoding="utf-8")
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
    return _FileMeasurements((read - started) / n, (written - read) / n, (done - written) / n, sum(sizes) / n, size / n)


# -- tokens ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TokenCounts:
    lengths: list[int]
    """Tokens of each chunk with its prompt."""
    seconds: float
    """Of tokenising all chunks."""
    basis: str


def _length_limit(job: IndexJob) -> int | None:
    """The most tokens that are read of a passage; None where the encoder reads all of them."""
    if job.shape.layers:
        return max_length(job.encoder, job.max_length, trust_remote_code=job.trust_remote_code)
    if job.max_length is not None:
        raise UsageError(
            f"--max_length {job.max_length} needs an encoder with a length limit, but {job.encoder!r} reads inputs of "
            "any length. Leave --max_length out."
        )
    return None


def _count_tokens(
    job: IndexJob, texts: Sequence[str], tokenizer: "Tokenizer | None", limit: int | None
) -> _TokenCounts:
    seconds = 0.0
    lengths = [max(1, round(len(text) / CHARACTERS_PER_TOKEN)) for text in texts]
    basis = "four characters for each token, as its tokenizer is not available"
    if tokenizer is not None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        started = time.process_time()
        lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
        seconds, basis = time.process_time() - started, "its own tokenizer"
    if job.passage_tokens is not None:
        mean = min(job.passage_tokens, job.chunk_tokens or job.passage_tokens)
        lengths, basis = [mean] * len(texts), "as given"
    return _TokenCounts([max(1, min(length, limit or length)) for length in lengths], seconds, basis)


def _batches(job: IndexJob, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Sequences and padded length of the batches that the sample is read in, longest first."""
    from indexes.batching import token_budget_batches
    from indexes.encoder import batch_tokens

    # A build fills its batches; a small sample would be less than one batch of a GPU.
    filled = [length for length in lengths for _ in range(-(-SAMPLE_SIZE // len(lengths)))]
    groups = token_budget_batches(filled, batch_tokens(job.device.partition(":")[0]), max_rows=job.batch_size)
    return [(len(group), max(filled[i] for i in group)) for group in groups]


# -- layers of the encoder -------------------------------------------------------------------------------------------


def layer_seconds(job: IndexJob, batches: Sequence[tuple[int, int]]) -> float:
    """Seconds of all layers for one token, from two layers of random weights on three batches: short, medium and long.

    Args:
        job: Encoder, dtype and device.
        batches: Sequences and length of each batch, longest first.
    """
    if not job.shape.layers:
        return 0.0
    import torch

    model = _two_layers(job)
    chosen = [batches[i] for i in sorted({len(batches) * part // 6 for part in (1, 3, 5)})]
    total = 0.0
    with torch.inference_mode(), torch.autocast(job.device.partition(":")[0], torch.bfloat16, job.dtype == "mixed"):
        for sequences, length in chosen:
            ids = torch.full((sequences, length), 5, device=job.device)
            total += fastest_seconds(lambda ids=ids: _forward(model, ids), 3, job.device)  # type: ignore[misc]
    return total / 2 * job.shape.layers / sum(sequences * length for sequences, length in chosen)


def _two_layers(job: IndexJob) -> Any:
    import torch
    from transformers import AutoConfig, AutoModel

    config: Any = AutoConfig.from_pretrained(encoder_path(job.encoder), trust_remote_code=job.trust_remote_code)
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 2, 1000, 0
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    plain = job.dtype == "mixed" and job.device == "cpu"  # as `Encoder` does
    options: dict[str, Any] = {"attn_implementation": "eager"} if plain else {}
    model = AutoModel.from_config(config, trust_remote_code=job.trust_remote_code, **options).eval()
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(job.dtype, torch.float32)
    return model.to(job.device, dtype)


def _forward(model: Any, ids: Any) -> None:
    import torch

    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    if ids.is_cuda:
        torch.cuda.synchronize(ids.device)


def fastest_seconds(work: Callable[[], object], repeats: int, device: str = "cpu") -> float:
    """Seconds of the fastest repetition after a first one that is not timed.

    On one CPU thread this is processor time instead of elapsed time, so that other processes matter least.
    """
    import torch

    single = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if single else time.perf_counter
    work()
    found = []
    for _ in range(repeats):
        started = clock()
        work()
        found.append(clock() - started)
    return min(found)


# -- BM25 ------------------------------------------------------------------------------------------------------------


def _measure_words(chunks: Sequence[Passage]) -> WordStatistics:
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
    return WordStatistics(
        seconds=seconds / len(chunks),
        pairs=data / 8 / len(chunks),
        vocabulary=after,
        growth=math.log2(after / before) if before and len(chunks) > 1 else 1.0,
        word_bytes=(sum(sizes.values()) - data) / max(1, after),
    )
