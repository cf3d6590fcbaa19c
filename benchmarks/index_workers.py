"""A build by one process and by several: `python -m benchmarks.index_workers [--quick] [--json]`.

    1 process with 1 thread | 2 processes with 1 thread each | 1 process with 2 threads

Each build is a command of its own, started as users start it, so that its seconds include imports, loading the encoder
and starting the workers. The three alternate; medians of all rounds. Every index must have the bytes of the first one,
and a corpus that differs in one word must not.

The encoder is all-MiniLM-L6-v2 where RAG_ENCODER names its folder, else random weights of its shape, in float32. A
corpus is encoded in shards of 4,096 passages, so `--passages` should be several times that for each process. `--quick`
is one round over two shards; starting a process is a large part of so short a build, so that there is no target.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.encoding import random_encoder, texts
from indexes.directory.shards import ROWS

ROUNDS, SHARDS, TARGET = 3, 6, 1.7
QUICK_SHARDS = 2
MODES = {"1 process, 1 thread": (1, 1), "2 processes, 1 thread each": (2, 2), "1 process, 2 threads": (1, 2)}
"""Workers, and the threads that all of them share."""


@dataclass(frozen=True)
class Row:
    """One way of building."""

    mode: str
    passages: int
    seconds: float
    ratio: float
    """Seconds of one process with one thread, over these."""
    target: float | None


def write_corpus(file: Path, count: int, words: int, *, changed: bool = False) -> None:
    """Passages of so many words each; `changed` replaces a word of the first."""
    with file.open("w", encoding="utf-8") as stream:
        for number, text in enumerate(texts("even", count)):
            kept = " ".join(text.split()[:words])
            stream.write(json.dumps({"id": str(number), "text": f"other {kept}" if changed and not number else kept}))
            stream.write("\n")


def build(corpus: Path, encoder: str, output: Path, workers: int, threads: int) -> float:
    """Seconds of `rag index build` in a process of its own.

    Raises:
        RuntimeError: It fails.
    """
    command = [sys.executable, "-m", "rag", "index", "build", "--corpus", str(corpus), "--encoder", encoder]
    command += ["--output_dir", str(output), "--factory", "Flat", "--device", "cpu", "--workers", str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--overwrite", "--quiet"], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"The build by {workers} process(es) ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - started


def contents(folder: Path) -> dict[str, bytes]:
    """The vectors of an index."""
    files = folder.rglob("vectors.faiss")
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def measure(folder: Path, passages: int, words: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each mode in every round.

    Raises:
        RuntimeError: The indexes differ, or one of another corpus does not.
    """
    encoder = os.environ.get("RAG_ENCODER") or random_encoder(folder)
    corpus, other = folder / "corpus.jsonl", folder / "other.jsonl"
    write_corpus(corpus, passages, words)
    write_corpus(other, 64, words, changed=True)
    write_corpus(folder / "same.jsonl", 64, words)
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(rounds):
        modes = list(MODES.items())
        for mode, (workers, threads) in modes if number % 2 == 0 else reversed(modes):
            seconds[mode].append(build(corpus, encoder, folder / mode, workers, threads))
    first, *others = (contents(folder / mode) for mode in MODES)
    for name in (other, folder / "same.jsonl"):
        build(name, encoder, folder / name.stem, 1, 1)
    if any(found != first for found in others) or contents(folder / "other") == contents(folder / "same"):
        raise RuntimeError("All modes must build the same bytes, and another corpus must not; one of both is not so.")
    return seconds


def rows(seconds: dict[str, list[float]], passages: int, target: float | None) -> list[Row]:
    """A row for each mode; the ratio is the median of the ratios inside a round."""
    [one, shared, _] = MODES
    return [
        Row(
            mode=mode,
            passages=passages,
            seconds=statistics.median(times),
            ratio=statistics.median(a / b for a, b in zip(seconds[one], times, strict=True)),
            target=target if mode == shared else None,
        )
        for mode, times in seconds.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, help=f"default: {SHARDS} shards of {ROWS:,}, quick {QUICK_SHARDS}")
    parser.add_argument("--words", type=int, default=40, help="of each passage")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}, quick 1")
    parser.add_argument("--quick", action="store_true", help="one round over a small corpus")
    parser.add_argument("--json", action="store_true", help="print a list of rows instead of the table")
    args = parser.parse_args()
    passages = args.passages or ROWS * (QUICK_SHARDS if args.quick else SHARDS)
    words = min(args.words, 10) if args.quick else args.words
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), passages, words, args.rounds or (1 if args.quick else ROUNDS))
    found = rows(seconds, passages, None if args.quick else TARGET)
    if args.json:
        print(json.dumps([asdict(row) for row in found], indent=1))
        return 0
    print("| build | passages | seconds | ratio | to reach |")
    print("|---|---|---|---|---|")
    for row in found:
        reach = "" if row.target is None else f"{row.target:g}x"
        print(f"| {row.mode} | {row.passages:,} | {row.seconds:.1f} | {row.ratio:.2f}x | {reach} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
