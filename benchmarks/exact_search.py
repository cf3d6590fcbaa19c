"""Exact search, a prefiltered "Flat" index against exact search elsewhere: the same vectors, one thread.

    python -m benchmarks.exact_search [--json] [--quick]

Rivals: FAISS's own Flat search, in memory and in a mapped file, and `sentence_transformers.util.semantic_search` in
float32. The vectors are synthetic: unit vectors around a thousand centres, queries drawn like them. All are exact, so
the results of every query must be the same up to scores that lie within 1e-5. The copy that the pre-filter keeps in
memory where the CPU multiplies in bfloat16 is made before the clock starts; a mapped index keeps none.

Axes: N vectors, B queries, k results, d dimensions.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.util import dot_score, semantic_search

from benchmarks.timing import Case, Make, Options, main
from indexes import FaissIndex
from indexes.vectors.faiss.faiss_files import write_flat
from indexes.vectors.prefilter import has_fast_bfloat16

TIE = 1e-5
DIMENSION, QUERIES, K, BLOCK = 384, 256, 20, 20_000
FLOAT32_TARGET = 1.0
"""To reach against `semantic_search` where the CPU has no fast bfloat16: both then multiply in float32."""
Vectors = NDArray[np.float32]
Found = tuple[Vectors, NDArray[np.int64]]
"""Scores and ids, both [B, k]."""


def clustered(count: int, dimension: int, seed: int, *, centres: int = 1000) -> Vectors:
    """Unit vectors around centres that are the same for every seed."""
    random = np.random.default_rng(seed)
    centres_cd = np.random.default_rng(0).standard_normal((centres, dimension), dtype=np.float32)
    noise_Nd = 0.7 * random.standard_normal((count, dimension), dtype=np.float32)
    vectors_Nd = centres_cd[random.integers(0, centres, count)] + noise_Nd
    return vectors_Nd / np.linalg.norm(vectors_Nd, axis=1, keepdims=True)


def library_search(queries_Bd: torch.Tensor, vectors_Nd: torch.Tensor, k: int) -> Found:
    """`semantic_search` as it comes, its hits as arrays."""
    hits = semantic_search(queries_Bd, vectors_Nd, top_k=k, score_function=dot_score)
    return _arrays(hits)


def _arrays(hits: list[list[dict[str, Any]]]) -> Found:
    scores_Bk = np.array([[hit["score"] for hit in row] for row in hits], dtype=np.float32)
    return scores_Bk, np.array([[hit["corpus_id"] for hit in row] for row in hits])


def recall(found: Found, truth: Found) -> float:
    """Share of the true results that were found; one whose score ties with the last true one counts as true."""
    (scores_Bk, ids_Bk), (true_scores_Bk, true_ids_Bk) = found, truth
    hits = [
        id in true_k or abs(score - true_scores_k[-1]) < TIE
        for scores_k, ids_k, true_scores_k, true_k in zip(scores_Bk, ids_Bk, true_scores_Bk, true_ids_Bk, strict=True)
        for score, id in zip(scores_k, ids_k, strict=True)
    ]
    return float(np.mean(hits))


def check(name: str, found: Found, truth: Found) -> None:
    """Recall must be 1, with scores that agree.

    Raises:
        RuntimeError: It is not, or the comparison cannot tell the results of another query.
    """
    reached = recall(found, truth) if np.abs(found[0] - truth[0]).max() < TIE else 0.0
    others = (np.roll(found[0], 1, axis=0), np.roll(found[1], 1, axis=0))
    control = recall(others, truth) if np.abs(others[0] - truth[0]).max() < TIE else 0.0
    if not (reached == 1.0 > control):
        raise RuntimeError(f"{name} must find all, and another query's results must not; got {reached} and {control}.")


def build(options: Options, rival: str, target: float) -> Case:
    """One rival, in memory."""
    faiss.omp_set_num_threads(options.threads)
    vectors_Nd = clustered(20_000 if options.quick else 100_000, DIMENSION, 1)
    queries_Bd = clustered(QUERIES, DIMENSION, 2)
    index = FaissIndex.build(vectors_Nd)
    tensors = torch.from_numpy(queries_Bd), torch.from_numpy(vectors_Nd)

    def theirs() -> Found:
        if rival == "faiss Flat":
            return index.search(queries_Bd, K, prefilter=False)
        return library_search(*tensors, K)

    def ours() -> Found:
        return index.search(queries_Bd, K, prefilter=True)

    ours()
    if rival == "semantic_search" and not has_fast_bfloat16():
        target = FLOAT32_TARGET
    return Case(
        path="exact search",
        shape=f"{len(vectors_Nd):,} x {DIMENSION}, {QUERIES} queries, k = {K}; {rival}",
        rival=theirs,
        ours=ours,
        check=lambda: check(rival, ours(), theirs()),
        flops=2 * vectors_Nd.size * QUERIES,
        bytes=options.dtype.itemsize * vectors_Nd.size,
        dtype=options.dtype,
        target=target,
    )


def build_mapped(options: Options, target: float) -> Case:
    """FAISS's own search in a mapped file of a million vectors."""
    faiss.omp_set_num_threads(options.threads)
    count = 20_000 if options.quick else 1_000_000
    queries_Bd = clustered(QUERIES, DIMENSION, 2)
    index = mapped_index(count)
    return Case(
        path="exact search, mapped",
        shape=f"{count:,} x {DIMENSION}, {QUERIES} queries, k = {K}; faiss Flat",
        rival=lambda: index.search(queries_Bd, K, prefilter=False),
        ours=lambda: index.search(queries_Bd, K),
        check=lambda: check("faiss Flat", index.search(queries_Bd, K), index.search(queries_Bd, K, prefilter=False)),
        flops=2 * count * DIMENSION * QUERIES,
        bytes=4 * count * DIMENSION,
        dtype=options.dtype,
        target=target,
        long=not options.quick,
    )


def mapped_index(count: int) -> FaissIndex:
    """A mapped "Flat" index of so many vectors; its file is removed at once, and lives as long as it is mapped."""

    def blocks() -> Iterator[Vectors]:
        for start in range(0, count, BLOCK):
            yield clustered(min(BLOCK, count - start), DIMENSION, 1 + start)

    with tempfile.TemporaryDirectory() as folder:
        write_flat(Path(folder) / "flat.faiss", blocks(), DIMENSION)
        return FaissIndex.load(Path(folder) / "flat.faiss", mmap=True)


MAKES = [
    Make(partial(build, rival="faiss Flat", target=6.0)),
    Make(partial(build, rival="semantic_search", target=2.5)),
    Make(partial(build_mapped, target=8.0)),
]

if __name__ == "__main__":
    raise SystemExit(main(str(__doc__), MAKES))
