"""Passages per second of `Encoder` against the loops that others run, one CPU thread, the same model and texts.

    python -m benchmarks.encoding --encoder sentence-transformers/all-MiniLM-L6-v2 [--quick]

Rivals: FlashRAG's way of building an index (batches of 256 in the order of the corpus, padded to the longest, mean
pooling, float32) and `SentenceTransformer.encode` in float32 and with bfloat16 weights. Ours is `dtype="mixed"`.
"Even" texts have 100 words, as DPR's passages; "skewed" ones a log-normal number with a mean of 70 (90 tokens).

Nothing is timed before the vectors of both sides agree (cosine at least 0.9999, for the rival in bfloat16 0.999), and
before the same comparison has failed for the vectors of shuffled texts. Runs alternate; the median is reported.

Axes: N texts, d dimensions.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

import indexes  # noqa: F401  (sets the OpenMP wait policy before torch is imported)
from indexes import Encoder, Passage
from rag.encyclopedia import passages

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
FLASHRAG_BATCH = 256
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Race:
    """One rival against us; `lowest` is the cosine that the two must reach."""

    name: str
    theirs: Callable[[], Vectors]
    lowest: float


def texts(kind: str, count: int, *, seed: int = 0) -> list[str]:
    """English texts, "even" or "skewed" in length: stretches of an encyclopedia."""
    random = np.random.default_rng(seed)
    words = " ".join(row["text"] for row in passages()).split()
    sigma = 0.8
    skewed = random.lognormal(np.log(70) - sigma**2 / 2, sigma, count).clip(5, 400).astype(int)
    lengths = skewed if kind == "skewed" else np.full(count, 100)
    starts = random.integers(0, len(words) - 400, count)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


@torch.no_grad()
def flashrag_encode(model: SentenceTransformer, batch: Sequence[str]) -> Vectors:
    """Fixed batches in the order that came, padded to the longest, mean pooling, unit length."""
    found = []
    for start in range(0, len(batch), FLASHRAG_BATCH):
        features = model[0].preprocess(list(batch[start : start + FLASHRAG_BATCH]))
        mask = features["attention_mask"][..., None].float()
        hidden = model[0](features)["token_embeddings"]
        found.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)))
    return torch.cat(found).numpy()


def library_encode(model: SentenceTransformer, batch: Sequence[str]) -> Vectors:
    """`SentenceTransformer.encode` as it comes."""
    vectors_Nd: Vectors = model.encode(list(batch), show_progress_bar=False, convert_to_tensor=True).float().numpy()
    return vectors_Nd / np.linalg.norm(vectors_Nd, axis=1, keepdims=True)


def ours(encoder: Encoder, batch: Sequence[str]) -> Vectors:
    """What `build_index` calls."""
    return encoder.encode_passages([Passage(str(n), "", text) for n, text in enumerate(batch)], batch_size=256)


def lowest_cosine(one_Nd: Vectors, other_Nd: Vectors) -> float:
    """Over pairs of unit vectors."""
    return float((one_Nd * other_Nd).sum(axis=1).min())


def check(mine_Nd: Vectors, race: Race) -> float:
    """The lowest cosine with the rival.

    Raises:
        AssertionError: The two do not agree, or the comparison cannot tell shuffled texts.
    """
    theirs_Nd = race.theirs()
    cosine, control = lowest_cosine(mine_Nd, theirs_Nd), lowest_cosine(np.roll(mine_Nd, 1, axis=0), theirs_Nd)
    if not (cosine >= race.lowest > control):
        raise AssertionError(
            f"{race.name} must agree to {race.lowest}, shuffled texts must not; {cosine:.5f} and {control:.5f} came."
        )
    return cosine


def seconds(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each way; they take turns, so that a busy moment hits all."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in taken.items()}


def measure(
    quick: bool = False, encoder: str = MODEL, *, kinds: Sequence[str] = ("skewed", "even"), repeats: int = 5
) -> list[dict[str, Any]]:
    """One row per kind of text and rival: seconds of both, their ratio and the lowest cosine."""
    mixed = Encoder.from_pretrained(encoder, device="cpu", dtype="mixed", passage_prompt="")
    exact, rounded = (
        Encoder.from_pretrained(encoder, device="cpu", dtype=dtype).model.eval() for dtype in ("float32", "bfloat16")
    )
    rows: list[dict[str, Any]] = []
    for kind in kinds:
        batch = texts(kind, 64 if quick else 256)
        races = [
            Race("FlashRAG, float32", lambda b=batch: flashrag_encode(exact, b), 0.9999),
            Race("sentence-transformers, float32", lambda b=batch: library_encode(exact, b), 0.9999),
            Race("sentence-transformers, bfloat16", lambda b=batch: library_encode(rounded, b), 0.999),
        ]
        # One newline stands between the empty title and the text, which tokenisers drop.
        mine_Nd = ours(mixed, batch)
        cosines = [check(mine_Nd, race) for race in races]
        ways: dict[str, Callable[[], object]] = {race.name: race.theirs for race in races}
        taken = seconds({"ours": lambda b=batch: ours(mixed, b), **ways}, repeats)
        rows += [
            {
                "texts": kind,
                "rival": race.name,
                "seconds": taken[race.name],
                "ours": taken["ours"],
                "ratio": taken[race.name] / taken["ours"],
                "cosine": cosine,
            }
            for race, cosine in zip(races, cosines, strict=True)
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default=MODEL, help="with mean pooling")
    parser.add_argument("--quick", action="store_true", help="64 texts of each kind instead of 256")
    parser.add_argument("--kinds", nargs="+", choices=["skewed", "even"], default=["skewed", "even"])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for kind in args.kinds:
        report(measure(args.quick, args.encoder, kinds=[kind], repeats=args.repeats))


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    """One line per row."""
    for row in rows:
        print(
            f"{row['texts']:7s} {row['rival']:32s} {row['seconds']:.3f} s, ours {row['ours']:.3f} s: "
            f"{row['ratio']:.2f} x, cosine {row['cosine']:.5f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
