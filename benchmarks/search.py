"""Queries per second of a screened "Flat" index against exact search elsewhere, one thread, the same vectors.

    python -m benchmarks.search [--quick]

Rivals: FAISS's own Flat search and `sentence_transformers.util.semantic_search` in float32. The vectors are synthetic:
unit vectors around a thousand centres, queries drawn like them. All three are exact, so ids must agree: nothing is
timed before the top k of every query are the same up to scores that lie within 1e-5, and before the same comparison has
failed for the results of another query. The copy that screening keeps is made before the clock starts, and its time
is reported beside it.

Axes: N vectors, B queries, k results, d dimensions.
"""

import argparse
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.util import dot_score, semantic_search

import indexes  # noqa: F401  (sets the OpenMP wait policy before torch is imported)
from benchmarks.encoding import seconds
from indexes import FaissIndex
from indexes.screening import Screen

TIE = 1e-5
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


def check(name: str, found: Found, truth: Found) -> float:
    """Recall, which must be 1, with scores that agree.

    Raises:
        AssertionError: It is not, or the comparison cannot tell the results of another query.
    """
    reached = recall(found, truth) if np.abs(found[0] - truth[0]).max() < TIE else 0.0
    others = (np.roll(found[0], 1, axis=0), np.roll(found[1], 1, axis=0))
    control = recall(others, truth) if np.abs(others[0] - truth[0]).max() < TIE else 0.0
    if not (reached == 1.0 > control):
        raise AssertionError(f"{name} must find all, and another query's results must not; {reached}, {control} came.")
    return reached


def measure(
    quick: bool = False, *, vectors: int = 100_000, queries: int = 256, dimension: int = 384, k: int = 20
) -> list[dict[str, Any]]:
    """One row per rival: seconds of both, their ratio, recall and the seconds that the copy took."""
    vectors_Nd = clustered(vectors // 5 if quick else vectors, dimension, 1)
    queries_Bd = clustered(queries, dimension, 2)
    index = FaissIndex.build(vectors_Nd)
    tensors = torch.from_numpy(queries_Bd), torch.from_numpy(vectors_Nd)
    rivals: dict[str, Callable[[], Found]] = {
        "FAISS Flat": lambda: index.search(queries_Bd, k, screen=False),
        "semantic_search, float32": lambda: library_search(*tensors, k),
    }
    found = index.search(queries_Bd, k, screen=True)
    recalls = {name: check(name, found, rival()) for name, rival in rivals.items()}
    taken = seconds({"ours": lambda: index.search(queries_Bd, k, screen=True), **rivals}, 1 if quick else 5)
    copy = seconds({"copy": lambda: Screen(vectors_Nd)}, 1)["copy"]
    return [
        {
            "rival": name,
            "seconds": taken[name],
            "ours": taken["ours"],
            "ratio": taken[name] / taken["ours"],
            "recall": recalls[name],
            "copy": copy,
        }
        for name in rivals
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the vectors, one run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    for row in measure(args.quick):
        print(
            f"{row['rival']:26s} {row['seconds']:.3f} s, ours {row['ours']:.3f} s: {row['ratio']:.2f} x, "
            f"recall {row['recall']:.3f}, copy {row['copy']:.3f} s"
        )


if __name__ == "__main__":
    main()
