"""The same work with the library of this checkout ("ours") and of another one ("rival"): what has become faster.

    git worktree add /tmp/before 4da73a0
    python -m benchmarks.against --checkout /tmp/before [--shape tiny|smollm2] [--dtype float32|mixed] [--json]

Each checkout has one process, which builds the model and an index and then works on request; requests alternate, with
the canary of `benchmarks.timing` between them, and memory is that of one run in a fork. "whole" memory is counted from
before the base was loaded, the other from before the run. Everything goes through the public interface: `RAG.answer`,
`RAG.stream`, `DROTrainer.train`. Answers and log-probabilities of both are compared; in float32 texts must be equal.
Passages and questions are made of random words, see `benchmarks.checkouts`.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkouts import ROOT, Worker, Workload, prompt_tokens, texts, write_base
from benchmarks.real_weights import missing_weights
from benchmarks.timing import CANARY_TOLERANCE, Canary, Row

GATE = 0.5
"""Of a selector whose language model reads its ranking prompts."""
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"questions": 64, "train_questions": 2, "rounds": 2},
    "smollm2": {"questions": 16, "train_questions": 1, "rounds": 2},
}
"""Without `--questions`; 64 of "smollm2" take minutes for each pair on one core."""
ROUND: dict[str, Any] = {"warm_up": 0, "m": 4, "proposals": 8}


@dataclass(frozen=True)
class Comparison:
    """One path on which both checkouts are compared."""

    path: str
    run: str
    """Of `Work.runs` in the worker."""
    work: Workload
    shape: str
    targets: dict[str, float]
    """Ratio of times to reach, by part."""
    memory_target: float | None = None


@dataclass(frozen=True)
class TwoCheckouts(Row):
    """A row of `benchmarks.timing`, with processor time and the comparison of results."""

    rival_cpu_s: float
    ours_cpu_s: float
    cpu_ratio: float | None
    rival_whole_mb: float | None
    ours_whole_mb: float | None
    memory_target: float | None
    pairs: int
    results: str
    """How the results of both compare."""


def comparisons(args: argparse.Namespace, base: str, shape: str, dtype: str) -> Iterator[Comparison]:
    """All paths of one shape and dtype."""
    sizes = SIZES.get(shape, SIZES["smollm2"])
    count = args.questions or sizes["questions"]
    # The embedded tokenizer makes about three tokens of a word, a real one little more than one.
    asked = texts(max(count, sizes["train_questions"]), args.passage_words or (60 if args.weights else 20))
    work = Workload(base, dtype, *asked, new_tokens=args.new_tokens, threads=args.threads)
    train = args.train_questions or sizes["train_questions"]
    where = f"{shape}{', real weights' if args.weights else ''}, {dtype}, prompts of about {prompt_tokens(work)}"
    fast = dtype == "mixed"
    for gate in (0.0, GATE):
        named = f"{where}, {'selector reads' if gate else 'untrained'}"
        asking = Workload(**{**vars(work), "gate": gate})
        path = f"answering {count} questions, {args.new_tokens} new tokens"
        yield Comparison(path, "answer", asking.with_questions(count), named, {"": 3.0} if fast else {})
        reach = {"first token": 2.0, "last token": 2.0}
        yield Comparison("one question", "one question", asking.with_questions(1), named, reach)
    yield Comparison("load the base", "load", work.with_questions(1), where, {}, 2.0 if fast else None)
    training = Workload(**{**vars(work.with_questions(train)), "gate": GATE, "settings": {**ROUND, "rounds": 1}})
    path = f"M-step, m = 4 of 32, {train} questions"
    yield Comparison(path, "m step", training, where, {}, 1 / 0.6 if fast else None)
    rounds = Workload(**{**vars(training), "settings": {**ROUND, "rounds": sizes["rounds"]}})
    path = f"default round, m = 4 of 32, {train} questions"
    yield Comparison(path, "round", rounds, where, {"mean of five": 1 / 0.6})


def compare(found: Comparison, rival: Worker, ours: Worker, repeats: int, memory: bool) -> list[TwoCheckouts]:
    """Run both in turn; a row for each part of the path."""
    with rival.case(found.work), ours.case(found.work):
        # First of all: autograd cannot be used in a forked process once it was used in this one.
        measured = [worker.memory(found.run) if memory else {} for worker in (rival, ours)]
        pairs, results = alternate(found.run, rival, ours, repeats)
    rows = []
    for part in pairs[0][0]["parts"]:
        walls, cpus = ([statistics.median(pair[i]["parts"][part][j] for pair in pairs) for i in (0, 1)] for j in (0, 1))
        rows.append(
            TwoCheckouts(
                path=f"{found.path}, {part}" if part else found.path,
                shape=found.shape,
                rival_s=walls[0],
                ours_s=walls[1],
                ratio=walls[0] / walls[1],
                rival_mb=measured[0].get("beyond"),
                ours_mb=measured[1].get("beyond"),
                floor_share=None,
                target=found.targets.get(part),
                rival_cpu_s=cpus[0],
                ours_cpu_s=cpus[1],
                cpu_ratio=cpus[0] / cpus[1] if cpus[1] else None,
                rival_whole_mb=measured[0].get("whole"),
                ours_whole_mb=measured[1].get("whole"),
                memory_target=found.memory_target,
                pairs=len(pairs),
                results=results,
            )
        )
    return rows


def alternate(run: str, rival: Worker, ours: Worker, repeats: int) -> tuple[list[tuple[Any, Any]], str]:
    """The pairs that count, as `timing.race` chooses them, and how the first results compare."""
    canary = Canary("cpu")
    first = (rival.run(run), ours.run(run))  # of both; kernels are chosen and pages mapped by now
    kept: list[tuple[Any, Any]] = []
    disturbed: list[tuple[Any, Any]] = []
    before = canary()
    for tried in range(2 * repeats):
        if len(kept) == repeats:
            break
        done = {worker: worker.run(run) for worker in ((rival, ours) if tried % 2 else (ours, rival))}
        after = canary()
        moved = abs(after - before) / min(after, before) > CANARY_TOLERANCE
        (disturbed if moved else kept).append((done[rival], done[ours]))
        before = after
    missing = repeats - len(kept)
    if missing > 0:
        print(f"{run}: the machine was busy; {missing} disturbed pairs are counted.", file=sys.stderr)
    return kept + disturbed[: max(missing, 0)], compared(*(side["result"] for side in first))


def compared(rival: dict[str, Any], ours: dict[str, Any]) -> str:
    """Equal texts, and how far numbers are apart."""
    parts = []
    if "texts" in rival:
        equal = sum(a == b for a, b in zip(rival["texts"], ours["texts"], strict=True))
        parts.append(f"{equal} of {len(rival['texts'])} texts equal")
    for name in ("log_probs", "log_marginal"):
        if name in rival:
            same = rival.get("texts", [0] * len(rival[name])), ours.get("texts", [0] * len(rival[name]))
            both = zip(rival[name], ours[name], *same, strict=True)
            gaps = [abs(a - b) / max(1.0, abs(a)) for a, b, x, y in both if x == y]
            parts.append(f"{name.replace('_', '-')} within {max(gaps):.1e}" if gaps else f"no {name} to compare")
    return ", ".join(parts)


def agree(row: TwoCheckouts) -> bool:
    """Whether texts are equal where they must be."""
    if "float32" not in row.shape or "texts" not in row.results:
        return True
    equal, of, total, *_ = row.results.split()
    return of == "of" and equal == total


HEAD = (
    "| path | shape | other s | here s | ratio | to reach | processor s, other | here | ratio | other MB | here MB | "
    "ratio | whole MB, other | here | ratio | results |\n" + "|---" * 16 + "|"
)


def line(row: TwoCheckouts) -> str:
    """One row of the table."""

    def pair(a: float | None, b: float | None, form: str, wanted: float | None = None) -> list[str]:
        if a is None or b is None or not b:
            return ["", "", ""]
        return [f"{a:{form}}", f"{b:{form}}", f"{a / b:.2f}x" + (f" ({wanted:.2g}x)" if wanted else "")]

    seconds = pair(row.rival_s, row.ours_s, ".3f")
    processor = pair(row.rival_cpu_s, row.ours_cpu_s, ".3f")
    # Of the base itself there is nothing "whole" to be reached, of a run there is.
    loads = row.path.startswith("load")
    beyond = pair(row.rival_mb, row.ours_mb, ",.0f", row.memory_target if loads else None)
    whole = pair(row.rival_whole_mb, row.ours_whole_mb, ",.0f", None if loads else row.memory_target)
    reach = "" if row.target is None else f"{row.target:.2g}x"
    return "| " + " | ".join([row.path, row.shape, *seconds, reach, *processor, *beyond, *whole, row.results]) + " |"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, help="the other checkout")
    parser.add_argument("--shape", nargs="+", default=["tiny", "smollm2"])
    parser.add_argument("--weights", help="real weights of the shape: a folder, a .gguf file, or a model by name")
    parser.add_argument("--dtype", nargs="+", default=["mixed", "float32"], help="as `LanguageModel.from_pretrained`")
    parser.add_argument("--only", default="", help="paths whose name, with their shape, holds this")
    parser.add_argument("--questions", type=int, help="that are answered; default: by shape")
    parser.add_argument("--train_questions", type=int, help="of a round; default: by shape")
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--passage_words", type=int, help="default: 20, and 60 with real weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no_memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exits with 1 where answers in float32 differ."""
    args = parse(arguments)
    if args.weights and (reason := missing_weights(args.weights)):
        print(f"Skipped: {reason}", file=sys.stderr)
        return 0
    rows: list[TwoCheckouts] = []
    if not args.json:
        print(HEAD)
    with ExitStack() as stack:
        rival, ours = (Worker(path) for path in (args.checkout, ROOT))
        stack.callback(rival.close)
        stack.callback(ours.close)
        for shape in args.shape:
            base = write_base(shape, Path(stack.enter_context(tempfile.TemporaryDirectory())), args.weights)
            for found in (c for dtype in args.dtype for c in comparisons(args, base, shape, dtype)):
                if args.only not in f"{found.path}, {found.shape}":
                    continue
                for row in compare(found, rival, ours, args.repeats, not args.no_memory):
                    rows.append(row)
                    if not args.json:
                        print(line(row), flush=True)
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    return int(not all(map(agree, rows)))


if __name__ == "__main__":
    raise SystemExit(main())
