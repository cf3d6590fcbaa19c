"""What `rag plan index` predicts against what `rag index build` takes: seconds, peak memory, bytes on the disk.

    python -m benchmarks.index_plan_accuracy [--only NAME] [--json FILE]
    python -m benchmarks.index_plan_accuracy --graph 131072   # how the cost of a vector in a graph grows

Every prediction and every build is a process of its own on one thread. Invented passages of 60 words go through the
tiny encoder, so that it is the index that takes the time, and passages of 2WikiMultihopQA in RAG_DATA (default
../shared/data) through the encoder in RAG_ENCODER (default ../shared/models/all-MiniLM-L6-v2). Seconds are those of the
processor, so that others on the machine do not count; memory is the high-water mark of the process (VmHWM), mapped
files included; bytes on the disk are the sum of all files, looked at every 20 ms while the index is built.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PHASES = ("read", "encode", "train", "segments", "bm25")


@dataclass(frozen=True)
class Case:
    """One index."""

    encoder: str
    passages: int
    factory: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.encoder, f"{self.passages:,}", self.factory, *self.options])


CASES = [
    Case("tiny", 20_000, "Flat", ("--bm25",)),
    Case("tiny", 20_000, "HNSW32"),
    Case("tiny", 50_000, "HNSW32", ("--max_memory", "960MB")),
    Case("tiny", 20_000, "IVF512,PQ24x4fs,Refine(SQ8)"),
    Case("tiny", 50_000, "IVF1024,PQ24x4fs,Refine(SQ8)", ("--bm25",)),
    Case("tiny", 50_000, "IVF1024,RaBitQ"),
    Case("2wiki", 1_000, "HNSW32", ("--bm25",)),
    Case("2wiki", 1_000, "Flat", ("--dtype", "mixed")),
    Case("2wiki", 1_000, "Flat", ("--chunk_tokens", "48")),
]


def main() -> None:
    """Run the cases one after the other; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", metavar="FILE", help="also write everything to FILE")
    parser.add_argument("--graph", type=int, metavar="VECTORS", help="the growth of a graph, and nothing else")
    parser.add_argument("--build", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        print(json.dumps(build(args.build)))
        return
    if args.graph:
        grow(args.graph)
        return
    print("predicted / measured; ratios in brackets\n")
    print(f"| {' | '.join(['index', *(f'{name} s' for name in PHASES), 'peak MB', 'building MB', 'after MB'])} |")
    print("|---" * (len(PHASES) + 4) + "|")
    results = []
    for case in (c for c in CASES if args.only in str(c)):
        results.append({"case": str(case), **compare(case)})
        print(line(case, results[-1]), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


def compare(case: Case) -> dict[str, Any]:
    """Predict, then build."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, encoder = sources(case, Path(folder))
        options = ["--corpus", str(corpus), "--encoder", encoder, "--factory", case.factory, "--device", "cpu"]
        options += case.options
        predicted = alone(["rag", "plan", "index", *options, "--json"])
        output = str(Path(folder) / "index")
        measured = alone(["benchmarks.index_plan_accuracy", "--build", *options, "--output", output])
    return {"predicted": predicted, "measured": measured}


def sources(case: Case, folder: Path) -> tuple[Path, str]:
    """The corpus, written to a folder, and its encoder."""
    corpus = folder / "corpus.jsonl"
    if case.encoder == "tiny":
        rows: Any = invented(case.passages)
        encoder = "tiny"
    else:
        from indexes import Corpus

        data = Path(os.environ.get("RAG_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
        encoder = os.environ.get("RAG_ENCODER", str(data.parent / "models/all-MiniLM-L6-v2"))
        passages = Corpus.from_file(data / case.encoder / "corpus.jsonl.gz").take(range(case.passages))
        rows = ({"id": p.id, "title": p.title, "text": p.text} for p in passages)
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return corpus, encoder


def invented(count: int) -> Any:
    """Rows of 60 words, some of which are frequent."""
    chance = random.Random(0)
    known = ["".join(chance.choice("abdeiklmnoprstu") for _ in range(chance.randint(2, 9))) for _ in range(20_000)]
    for number in range(count):
        words = (known[int(len(known) * chance.random() ** 3)] for _ in range(60))
        yield {"id": f"p{number}", "title": f"Passage {number}", "text": " ".join(words)}


def alone(command: list[str]) -> dict[str, Any]:
    """The JSON that a module prints in a process of its own."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *command], env={**os.environ, **quiet}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(case: Case, found: dict[str, Any]) -> str:
    """One row of the table."""
    predicted, measured = found["predicted"], found["measured"]
    seconds = {phase["name"]: phase["seconds"] for phase in predicted["phases"]}
    cells = [f"{case} ({len(measured['segments'])} segments)"]
    cells += [_cell(seconds.get(name, 0.0), measured["seconds"][name], ".1f") for name in PHASES]
    cells.append(_cell(predicted["memory"]["resident"] / 1e6, measured["peak"] / 1e6))
    cells += [_cell(predicted["disk"][name] / 1e6, measured[name] / 1e6, ",.1f") for name in ("peak", "after")]
    return f"| {' | '.join(cells)} |"


def _cell(predicted: float, measured: float, form: str = ",.0f") -> str:
    if max(predicted, measured) < 0.05:
        return "-"
    return f"{predicted:{form}} / {measured:{form}} ({predicted / measured:.2f})" if measured else "?"


# -- in the child ----------------------------------------------------------------------------------------------------


def build(words: list[str]) -> dict[str, Any]:
    """`rag index build` with a clock around each phase and an eye on the disk."""
    from indexes.directory import builder
    from indexes.host_memory import resident_bytes
    from rag.cli import COMMANDS, _parse

    args = _parse("index build", [*words, "--quiet"])
    output = Path(args.output)
    seconds = dict.fromkeys(PHASES, 0.0)

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            result = work(*arguments, **options)
            seconds[name] += time.process_time() - started
            return result

        return run

    for owner, method, name in (
        (builder.Build, "read", "read"),
        (builder.Build, "encode", "encode"),
        (builder, "train", "train"),
        (builder, "write_segment", "segments"),
        (builder, "write_bm25", "bm25"),
    ):
        setattr(owner, method, timed(name, getattr(owner, method)))
    fullest, done = 0, threading.Event()
    corpus = Path(args.corpus).stat().st_size

    def watch() -> None:
        nonlocal fullest
        while not done.wait(0.02):
            fullest = max(fullest, _bytes_below(output.parent) - corpus)

    watcher = threading.Thread(target=watch)
    watcher.start()
    info = COMMANDS["index build"].run(args).data
    done.set()
    watcher.join()
    return {
        "seconds": seconds,
        "peak": resident_bytes("VmHWM"),
        "building": fullest,
        "after": _bytes_below(output),
        "segments": info["segments"],
        "factory": info["factory"],
    }


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # it was renamed since
                continue
    return total


# -- a graph ---------------------------------------------------------------------------------------------------------


def grow(count: int) -> None:
    """Seconds of the processor for each vector of an HNSW32, and those that `graph_growth` says."""
    import numpy as np

    from indexes import FaissIndex
    from rag.planning.index_seconds import PROBE_VECTORS, graph_growth

    print("| dimension | vectors | us for each | times the first | predicted |\n|---|---|---|---|---|")
    for dimension in (256, 384):
        generator = np.random.default_rng(0)
        centres = generator.standard_normal((8192, dimension), dtype=np.float32)
        index, spent, first = FaissIndex.empty(dimension, "HNSW32"), 0.0, 0.0
        while len(index) < count:
            block = centres[generator.integers(0, len(centres), PROBE_VECTORS)]
            block = block + 0.5 * generator.standard_normal(block.shape, dtype=np.float32)
            block /= np.linalg.norm(block, axis=1, keepdims=True)
            started = time.process_time()
            index.add(block)
            spent += time.process_time() - started
            each = spent / len(index)
            first = first or each
            if (len(index) // PROBE_VECTORS).bit_count() == 1:
                grown = f"{each / first:.2f} | {graph_growth(len(index)):.2f}"
                print(f"| {dimension} | {len(index):,} | {1e6 * each:.0f} | {grown} |", flush=True)


if __name__ == "__main__":
    main()
