"""From the start of a process to its first answer: `rag ask` of this checkout against that of another one.

    python -m benchmarks.cold_start --against ../other-checkout [--base FOLDER --encoder FOLDER] [--json]

Each side builds the same index and saves a bundle with its own code, with the built-in tiny models or those of the
given folders. Then both answer one question in processes of their own, in turn: `python -m rag ask --bundle ...`, with
a mark written down when imports are done, when the index and the models are open, and when the answer is there. Seconds
are those of the processor (user and system), the row of the wall clock excepted; megabytes are the peak of the process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks.timing import Row, Targets, line

ROOT = Path(__file__).parents[1]
QUESTION = "What is the capital of France?"
TARGET = 2.0

BUILD = """
import inspect, os, sys
from pathlib import Path
from indexes import build_index
from rag import RAG
corpus, output, encoder, base = sys.argv[1:]
tiny_base = inspect.signature(RAG.create).parameters["base"].default
(tiny_encoder,) = (file.parent for file in Path(os.environ["PYTHONPATH"]).glob("*/*/encoder/modules.json"))
build_index(corpus, encoder or tiny_encoder, Path(output) / "index", progress=False)
rag = RAG.create(index=Path(output) / "index", base=base or tiny_base, device="cpu")
rag.save_pretrained(Path(output) / "bundle", include_index=True, include_encoder=True, include_base=True)
"""

# Wraps what the command calls, as soon as its module has been imported, and so imports nothing itself.
ASK = """
import functools, importlib.machinery, json, os, runpy, sys, time
marks = {}
def mark(name):
    marks[name] = {"processor": time.process_time(), "wall": time.monotonic() - float(os.environ["COLD_START_BEGAN"])}
def wrapped(function, before, after):
    @functools.wraps(function)
    def call(*args, **kwargs):
        mark(before)
        found = function(*args, **kwargs)
        mark(after)
        return found
    return call
class AfterImport:
    def find_spec(self, name, path=None, target=None):
        if name != "rag.pipeline":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module
        def execute_and_wrap(module):
            execute(module)
            rag, index = module.RAG, module.PassageIndex
            rag.from_pretrained = staticmethod(wrapped(rag.from_pretrained, "imports", "models"))
            rag.answer = wrapped(rag.answer, "models", "answer")
            index.open = staticmethod(wrapped(index.open, "index began", "index"))
        spec.loader.exec_module = execute_and_wrap
        return spec
sys.meta_path.insert(0, AfterImport())
sys.argv = ["rag", *sys.argv[1:]]
try:
    runpy.run_module("rag", run_name="__main__", alter_sys=True)
finally:
    with open(os.environ["COLD_START_MARKS"], "w") as stream:
        json.dump(marks, stream)
"""

PHASES = ("imports", "index", "models", "first answer")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, type=Path, help="another checkout of this project")
    parser.add_argument("--base", default="", help="folder of a causal LM (default: the built-in tiny one)")
    parser.add_argument("--encoder", default="", help="folder of an encoder (default: the built-in tiny one)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of processes")
    parser.add_argument("--json", action="store_true", help="print a list of rows instead of the table")
    args = parser.parse_args(arguments)
    sides = {"rival": args.against.resolve(), "ours": ROOT}
    shape = " + ".join(Path(name).name for name in (args.base, args.encoder) if name) or "tiny"
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder))
        for side, tree in sides.items():
            run(tree, "-c", BUILD, str(corpus), str(Path(folder) / side), args.encoder, args.base)
            ask(tree, Path(folder) / side / "bundle")  # files are read from the disk, and compiled, once
        pairs = [
            {side: ask(sides[side], Path(folder) / side / "bundle") for side in (list(sides)[:: 1 if n % 2 else -1])}
            for n in range(args.repeats)
        ]
    found = rows(shape, pairs)
    if args.json:
        print(json.dumps([asdict(row) for row in found], indent=1))
        return 0
    print("| path | shape | rival s | ours s | ratio | to reach | rival MB | ours MB | ratio | of floor |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in found:
        print(line(row, Targets()))
    return 0


def make_corpus(folder: Path) -> Path:
    """The passages of the built-in encyclopedia."""
    from rag.worlds.encyclopedia import write_encyclopedia

    return write_encyclopedia(folder / "corpus")["corpus"]


def rows(shape: str, pairs: list[dict[str, dict[str, float]]]) -> list[Row]:
    """The medians of all pairs."""

    def median(side: str, name: str) -> float:
        return statistics.median(pair[side][name] for pair in pairs)

    def row(path: str, name: str, *, memory: bool = False, target: float | None = None) -> Row:
        rival, ours = median("rival", name), median("ours", name)
        peaks = [median(side, "MB") if memory else None for side in ("rival", "ours")]
        return Row(path, shape, rival, ours, rival / ours, peaks[0], peaks[1], None, target)

    return [
        row("start to first answer", "to answer", memory=True, target=TARGET),
        row("the same, wall clock", "to answer, wall"),
        row("the whole process", "process"),
        *(row(f"of it: {phase}", phase) for phase in PHASES),
    ]


def ask(tree: Path, bundle: Path) -> dict[str, float]:
    """Seconds of one process and its phases, and its peak in megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks.json"
        variables = {"COLD_START_MARKS": str(marks), "COLD_START_BEGAN": str(time.monotonic())}
        words = ("ask", "--bundle", str(bundle), QUESTION, "--device", "cpu", "--json")
        usage = run(tree, "-c", ASK, *words, variables=variables)
        at = json.loads(marks.read_text())
    seconds = {name: mark["processor"] for name, mark in at.items()}
    index = seconds["index"] - seconds["index began"]
    return {
        "to answer": seconds["answer"],
        "to answer, wall": at["answer"]["wall"],
        "process": usage.ru_utime + usage.ru_stime,
        "MB": usage.ru_maxrss / 2**10,
        "imports": seconds["imports"],
        "index": index,
        "models": seconds["models"] - seconds["imports"] - index,
        "first answer": seconds["answer"] - seconds["models"],
    }


def run(tree: Path, *words: str, variables: Mapping[str, str] | None = None) -> resource.struct_rusage:
    """Run Python on the code of a checkout, from an empty folder; what the process used."""
    quiet = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tree)}
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "errors").open("w+b") as errors:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env={**os.environ, **quiet, **(variables or {})},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{tree}: {errors.read().decode(errors='replace')[-2000:]}")
    return usage


if __name__ == "__main__":
    raise SystemExit(main())
