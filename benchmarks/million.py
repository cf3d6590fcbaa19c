"""A million vectors of 384 dimensions: what each kind of index costs, and what it finds.

    python -m benchmarks.million [--vectors 1000000] [--only flat hnsw ...] [--memory 2GB] [--threads 1] [--json]

The vectors are those of all-MiniLM-L6-v2 for the passages of the corpora in RAG_DATA (default ../shared/data), and
copies of them with Gaussian noise of length 0.5 on average (a cosine of 0.89), brought back to unit length, up to the
number asked for. The queries are vectors of real questions of the same corpora. All are encoded once and kept in the
folder that --cache names.

Every row builds and searches in processes of its own, one at a time, so that their peaks of resident memory (VmHWM)
are their own; what is resident before anything is built or opened is taken off. A build reads the vectors in blocks
and never holds them all, unless the rival does; pages of mapped files count as long as they are resident. Recall is the
share of the 20 best by exact search that are among the 20 found, with the default search parameters. Rivals are
`sentence_transformers.util.semantic_search`, its `semantic_search_faiss` as it comes (an exact FAISS index that is made
while it opens), and bm25s over as many short texts: two sentences of the corpora each.

Axes: N vectors, B queries, k results, d dimensions.
"""

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from indexes import Corpus, Encoder, FaissIndex
from indexes.host_memory import parse_bytes, resident_bytes
from indexes.vectors.faiss.faiss_factory import build_bytes, choose_factory, training_sample
from indexes.vectors.faiss.faiss_files import write_flat

CORPORA = ("squad", "nq", "hotpotqa", "2wiki")
DIMENSION, BATCH, K, BLOCK = 384, 256, 20, 16_384
QUERIES, SINGLE = 512, 64
NOISE = 0.5
Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
Search = Callable[[Vectors], Rows]


@dataclass(frozen=True)
class Row:
    """What one way of searching costs; `null` where it was not measured."""

    name: str
    factory: str
    build_s: float
    build_mb: float
    planned_mb: float | None
    bytes_per_vector: float
    batch_qps: float
    single_qps: float
    recall: float | None
    search_mb: float


# -- vectors, queries and texts --------------------------------------------------------------------------------


def data_folder() -> Path:
    return Path(os.environ.get("RAG_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()


def encoder() -> Encoder:
    name = os.environ.get("RAG_ENCODER", str(data_folder().parent / "models/all-MiniLM-L6-v2"))
    return Encoder.from_pretrained(name, device="cpu", dtype="mixed")


def encode(cache: Path) -> None:
    """The real vectors, once."""
    cache.mkdir(parents=True, exist_ok=True)
    model = None
    for corpus in CORPORA:
        if not (cache / f"{corpus}.npy").is_file():
            model = model or encoder()
            passages = list(Corpus.from_file(data_folder() / corpus / "corpus.jsonl.gz"))
            np.save(cache / f"{corpus}.npy", model.encode_passages(passages, progress=True))
    if not (cache / "questions.npy").is_file():
        model = model or encoder()
        asked = [e.question for corpus in CORPORA for e in questions(corpus)]
        np.save(cache / "questions.npy", model.encode_questions(asked))


def questions(corpus: str) -> list[Any]:
    from training.questions.loading import load_examples  # brings transformers, which would be in every peak

    (file,) = (data_folder() / corpus).glob("dev.jsonl*")
    return load_examples(file)[: QUERIES // len(CORPORA)]


def vectors(cache: Path, count: int) -> Vectors:
    """The first vectors are real, the others near them; memory-mapped float32 [N, d]."""
    path = cache / f"vectors-{count}.npy"
    if not path.is_file():
        real = np.concatenate([np.load(cache / f"{corpus}.npy") for corpus in CORPORA])
        generator = np.random.default_rng(0)
        # Shuffled, so that the first N vectors are of all corpora.
        real = real[generator.permutation(len(real))]
        partial = path.with_suffix(".part.npy")
        found = np.lib.format.open_memmap(partial, "w+", np.float32, (count, DIMENSION))
        for start in range(0, count, BLOCK):
            rows = np.arange(start, min(start + BLOCK, count))
            noise_nd = generator.standard_normal((len(rows), DIMENSION), dtype=np.float32) * NOISE / DIMENSION**0.5
            block_nd = real[rows % len(real)] + noise_nd * (rows >= len(real))[:, None]
            found[rows] = block_nd / np.linalg.norm(block_nd, axis=1, keepdims=True)
        found.flush()
        partial.rename(path)
    mapped: Vectors = np.load(path, mmap_mode="r")
    return mapped


def truth(cache: Path, count: int) -> Rows:
    """The rows of the K best of each query, by exact products: int64 [B, K]."""
    path = cache / f"truth-{count}.npy"
    if not path.is_file():
        vectors_Nd, queries_Bd = vectors(cache, count), np.load(cache / "questions.npy")
        scores, rows = [], []
        for start in range(0, count, BLOCK):
            scores_Bn = queries_Bd @ vectors_Nd[start : start + BLOCK].T
            best_Bk = np.argpartition(-scores_Bn, min(K, scores_Bn.shape[1]) - 1, axis=1)[:, :K]
            scores.append(np.take_along_axis(scores_Bn, best_Bk, axis=1))
            rows.append(best_Bk + start)
        order_Bk = np.argsort(-np.concatenate(scores, axis=1), axis=1, kind="stable")[:, :K]
        np.save(path, np.take_along_axis(np.concatenate(rows, axis=1), order_Bk, axis=1))
    exact: Rows = np.load(path)
    return exact


def read(cache: Path, count: int, runs: Iterator[tuple[int, int]]) -> Iterator[Vectors]:
    """Runs of vectors (first row, how many), read and not mapped, so that no page of them stays resident."""
    mapped = np.load(cache / f"vectors-{count}.npy", mmap_mode="r")
    with (cache / f"vectors-{count}.npy").open("rb") as file:
        for start, number in runs:
            file.seek(mapped.offset + start * DIMENSION * 4)
            yield np.fromfile(file, np.float32, number * DIMENSION).reshape(number, DIMENSION)


def blocks(cache: Path, count: int) -> Iterator[Vectors]:
    return read(cache, count, ((start, min(BLOCK, count - start)) for start in range(0, count, BLOCK)))


def evenly_spaced(cache: Path, count: int, sample: int) -> Vectors:
    sample_nd = np.empty((sample, DIMENSION), np.float32)
    rows = np.linspace(0, count - 1, sample).astype(np.int64)
    for i, row_1d in enumerate(read(cache, count, ((int(row), 1) for row in rows))):
        sample_nd[i] = row_1d
    return sample_nd


def sentences() -> list[str]:
    found = []
    for corpus in CORPORA:
        for passage in Corpus.from_file(data_folder() / corpus / "corpus.jsonl.gz"):
            found += re.split(r"(?<=[.!?])\s+", passage.text)
    return found


def short_texts(count: int) -> Iterator[str]:
    """Two sentences each."""
    pool, generator = sentences(), random.Random(0)
    for _ in range(count):
        yield f"{generator.choice(pool)} {generator.choice(pool)}"


# -- ours ------------------------------------------------------------------------------------------------------


def build_ours(factory: str, cache: Path, count: int, output: Path) -> None:
    if factory == "Flat":
        write_flat(output, blocks(cache, count), DIMENSION)
        return
    index = FaissIndex.empty(DIMENSION, factory)
    if sample := training_sample(factory, count):
        index.train(evenly_spaced(cache, count, sample))
    for block_nd in blocks(cache, count):
        index.add(block_nd)
    index.save(output)


def open_ours(factory: str, output: Path, *, mmap: bool) -> Search:
    index = FaissIndex.load(output, mmap=mmap, factory=factory)
    return lambda queries_Bd: index.search(queries_Bd, K)[1]


# -- rivals ----------------------------------------------------------------------------------------------------


def open_semantic_search(cache: Path, count: int) -> Search:
    from sentence_transformers.util import dot_score, semantic_search

    corpus = torch.from_numpy(np.load(cache / f"vectors-{count}.npy"))

    def search(queries_Bd: Vectors) -> Rows:
        hits = semantic_search(torch.from_numpy(queries_Bd), corpus, top_k=K, score_function=dot_score)
        return np.array([[hit["corpus_id"] for hit in row] for row in hits])

    return search


def open_semantic_search_faiss(cache: Path, count: int) -> Search:
    from sentence_transformers.quantization import semantic_search_faiss

    _, _, index = semantic_search_faiss(
        np.zeros((1, DIMENSION), np.float32),
        corpus_embeddings=np.load(cache / f"vectors-{count}.npy"),
        top_k=K,
        rescore=False,
        output_index=True,
    )

    def search(queries_Bd: Vectors) -> Rows:
        hits, _ = semantic_search_faiss(queries_Bd, corpus_index=index, top_k=K, rescore=False)
        return np.array([[hit["corpus_id"] for hit in row] for row in hits])

    return search


def build_bm25s(count: int, output: Path) -> None:
    import bm25s

    tokens = bm25s.tokenize(list(short_texts(count)), show_progress=False)
    retriever = bm25s.BM25()
    retriever.index(tokens, show_progress=False)
    retriever.save(str(output))


def open_bm25s(output: Path) -> Callable[[list[str]], object]:
    import bm25s

    retriever = bm25s.BM25.load(str(output), load_corpus=False)

    def search(texts: list[str]) -> object:
        return retriever.retrieve(bm25s.tokenize(texts, show_progress=False), k=K, show_progress=False, n_threads=1)

    return search


# -- one row, in processes of its own --------------------------------------------------------------------------

RIVALS = ("semantic_search", "semantic_search_faiss", "bm25s")


def factories(count: int) -> dict[str, str]:
    """Ours: what `choose_factory` takes without and with little memory, and its neighbours."""
    lists = 1 << round(math.log2(4 * math.sqrt(count)))
    compressed = re.sub(r"IVF\d+", f"IVF{lists}", choose_factory(10**7, DIMENSION)[0])
    return {
        "flat": "Flat",
        "flat-mapped": "Flat",
        "sq8": "SQ8",
        "ivf-pq": compressed,
        "ivf-rabitq": f"IVF{lists},RaBitQ,Refine(SQ8)",
        "hnsw": "HNSW32",
    }


def build_row(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak of the build; rivals without an index file build while they open."""
    output = args.cache / f"index-{name}-{args.vectors}"
    before, started = resident_bytes(), time.perf_counter()
    if name == "bm25s":
        build_bm25s(args.vectors, output)
    elif name not in RIVALS:
        build_ours(factories(args.vectors)[name], args.cache, args.vectors, output)
    return {"build_s": time.perf_counter() - started, "build_mb": (resident_bytes("VmHWM") - before) / 1e6}


def search_row(name: str, args: argparse.Namespace) -> dict[str, Any]:
    output = args.cache / f"index-{name}-{args.vectors}"
    queries: Any = np.load(args.cache / "questions.npy")
    if name == "bm25s":
        queries = [e.question for corpus in CORPORA for e in questions(corpus)]
    before, started = resident_bytes(), time.perf_counter()
    search: Callable[[Any], Any]
    if name == "bm25s":
        search = open_bm25s(output)
    elif name == "semantic_search":
        search = open_semantic_search(args.cache, args.vectors)
    elif name == "semantic_search_faiss":
        search = open_semantic_search_faiss(args.cache, args.vectors)
    else:
        search = open_ours(factories(args.vectors)[name], output, mmap=name == "flat-mapped")
    opened = time.perf_counter() - started
    search(queries[:BATCH])  # what is made at the first search is made, and what is read once is read
    started = time.perf_counter()
    batches = [search(queries[i : i + BATCH]) for i in range(0, len(queries), BATCH)]
    batch_qps = len(queries) / (time.perf_counter() - started)
    started = time.perf_counter()
    for i in range(SINGLE):
        search(queries[i : i + 1])
    single_qps = SINGLE / (time.perf_counter() - started)
    recall = None
    if name != "bm25s":
        exact_Bk = truth(args.cache, args.vectors)
        found_Bk = np.concatenate(batches)
        recall = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found_Bk, exact_Bk, strict=True)]))
    row = {"batch_qps": batch_qps, "single_qps": single_qps, "recall": recall}
    row["search_mb"] = (resident_bytes("VmHWM") - before) / 1e6
    if name in RIVALS[:2]:
        row["build_s"] = opened
    return row


def alone(name: str, phase: str, args: argparse.Namespace) -> dict[str, Any]:
    """One phase of one row in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.million", "--phase", phase, "--only", name]
    command += ["--vectors", str(args.vectors), "--cache", str(args.cache), "--threads", str(args.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise RuntimeError(f"The {phase} of {name} ended with {result.returncode}: {result.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def measure(name: str, args: argparse.Namespace) -> Row:
    output = args.cache / f"index-{name}-{args.vectors}"
    row = alone(name, "build", args) | alone(name, "search", args)
    factory = factories(args.vectors).get(name, "")
    size = 4.0 * DIMENSION
    if output.exists():
        files = [output] if output.is_file() else [f for f in output.rglob("*") if f.is_file()]
        size = sum(f.stat().st_size for f in files) / args.vectors
    planned = build_bytes(factory, args.vectors, DIMENSION) / 1e6 if factory else None
    if name in RIVALS[:2]:
        row["build_mb"] = row["search_mb"]
    return Row(name=name, factory=factory, planned_mb=planned, bytes_per_vector=size, **row)


HEAD = """\
| row | build s | queries/s, 256 at once | single | recall@20 | bytes/vector | build MB | planned MB | search MB |
|---|---|---|---|---|---|---|---|---|"""


# -- the command line ------------------------------------------------------------------------------------------


def line(row: Row) -> str:
    recall = "" if row.recall is None else f"{row.recall:.3f}"
    planned = "" if row.planned_mb is None else f"{row.planned_mb:,.0f}"
    name = f"{row.name} `{row.factory}`" if row.factory else row.name
    cells = [name, f"{row.build_s:,.1f}", f"{row.batch_qps:,.0f}", f"{row.single_qps:,.0f}", recall]
    cells += [f"{row.bytes_per_vector:,.0f}", f"{row.build_mb:,.0f}", planned, f"{row.search_mb:,.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="+", help="names of rows (all by default)")
    parser.add_argument("--memory", type=parse_bytes, help='leave out kinds whose build needs more, such as "2GB"')
    parser.add_argument("--cache", type=Path, default=Path(".cache/million"), help="where vectors and indexes are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print a list of rows instead of the table")
    parser.add_argument("--phase", choices=["build", "search"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    if args.phase:
        print(json.dumps({"build": build_row, "search": search_row}[args.phase](args.only[0], args)))
        return 0
    encode(args.cache)
    vectors(args.cache, args.vectors)
    truth(args.cache, args.vectors)
    known = factories(args.vectors)
    rows = []
    if not args.json:
        print(f"{args.vectors:,} vectors of {DIMENSION} dimensions, {args.threads} thread(s), k = {K}\n")
        print(HEAD)
    for name in args.only or [*known, *RIVALS]:
        if args.memory and name in known and build_bytes(known[name], args.vectors, DIMENSION) > args.memory:
            print(f"{name}: needs more than {args.memory / 1e9:g} GB", file=sys.stderr)
            continue
        row = measure(name, args)
        rows.append(asdict(row))
        if not args.json:
            print(line(row), flush=True)
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
