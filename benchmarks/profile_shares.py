"""Where the time of answering and of a round goes: products, attention, head, conversion, other operations, Python.

    python -m benchmarks.profile_shares [--checkout /tmp/before] [--shape smollm2] [--dtype mixed] [--json]

Operations are those of torch's profiler, by the time that they take themselves. What has the vocabulary among the sizes
of its inputs is the head (with the softmax over it). "Python" is what is left of the processor time: Python itself, the
dispatch of operations and autograd's bookkeeping; the profiler adds to it, so seconds of a run without it are printed
too. The table is for docs/performance.md.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from benchmarks.against import GATE, ROUND, SIZES
from benchmarks.checkouts import ROOT, Worker, Workload, prompt_tokens, texts, write_base
from benchmarks.real_weights import missing_weights

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mv", "aten::dot", "mkldnn::", "onednn::")
ATTENTION = ("aten::_scaled_dot_product", "aten::scaled_dot_product", "aten::_flash_attention", "flex_attention")
COPIES = (
    *("aten::copy_", "aten::_to_copy", "aten::to", "aten::clone", "aten::contiguous", "aten::cat", "aten::stack"),
    *("aten::index", "aten::gather", "aten::repeat", "aten::fill_", "aten::zero_", "aten::masked_fill"),
    *("aten::empty", "aten::resize", "aten::arange", "aten::pad", "aten::constant_pad_nd", "aten::_cat"),
)
SHARES = ("products", "attention", "head", "conversion, copies", "other operations", "Python")


def share_of(name: str, shapes: Sequence[Any], vocabulary: int) -> str:
    """The share that an operation belongs to."""
    if not name.startswith(("aten::", "mkldnn::", "onednn::")):
        return "Python"  # autograd's nodes and the functions of other libraries, less the operations inside
    if any(vocabulary in shape for shape in shapes if isinstance(shape, list | tuple)):
        return "head"
    for share, names in (("attention", ATTENTION), ("products", PRODUCTS), ("conversion, copies", COPIES)):
        if name.startswith(names):
            return share
    return "other operations"


def shares(profile: dict[str, Any], vocabulary: int) -> dict[str, float]:
    """Parts of the processor time, which sum to 1."""
    found = dict.fromkeys(SHARES, 0.0)
    for operation in profile["operations"]:
        found[share_of(operation["name"], operation["shapes"], vocabulary)] += operation["self_us"] / 1e6
    # Several threads, or a clock of other resolution, may make the sum of operations the larger one.
    total = max(profile["seconds"], sum(found.values()))
    found["Python"] += total - sum(found.values())
    return {name: seconds / total for name, seconds in found.items()}


def cases(args: argparse.Namespace, base: str) -> list[tuple[str, str, Workload]]:
    """Name, run and workload of what is profiled."""
    sizes = SIZES.get(args.shape, SIZES["smollm2"])
    words = args.passage_words or (60 if args.weights else 20)
    count, train = args.questions or sizes["questions"], args.train_questions or sizes["train_questions"]
    work = Workload(base, args.dtype, *texts(max(count, train), words), new_tokens=args.new_tokens)
    training = {**vars(work.with_questions(train)), "gate": GATE, "settings": {**ROUND, "rounds": 1}}
    return [
        (f"answering {count} questions", "answer", work.with_questions(count)),
        (f"E-step, {train} questions", "e step", Workload(**training)),
        (f"M-step, {train} questions", "m step", Workload(**training)),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row for each case and checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, help="also another checkout")
    parser.add_argument("--shape", default="smollm2")
    parser.add_argument("--weights", help="as for `benchmarks.against`")
    parser.add_argument("--dtype", default="mixed")
    parser.add_argument("--questions", type=int)
    parser.add_argument("--train_questions", type=int)
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--passage_words", type=int)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    if args.weights and (reason := missing_weights(args.weights)):
        print(f"Skipped: {reason}", file=sys.stderr)
        return 0
    rows = []
    with ExitStack() as stack:
        base = write_base(args.shape, Path(stack.enter_context(tempfile.TemporaryDirectory())), args.weights)
        vocabulary = AutoConfig.from_pretrained(base).vocab_size
        workers = {"here": Worker(ROOT)} | ({"other": Worker(args.checkout)} if args.checkout else {})
        for worker in workers.values():
            stack.callback(worker.close)
        if not args.json:
            print("| what | checkout | seconds | " + " | ".join(SHARES) + " |\n" + "|---" * (3 + len(SHARES)) + "|")
        for name, run, work in (case for case in cases(args, base) if args.only in case[0]):
            where = f"{name}, {args.shape}, {args.dtype}, prompts of about {prompt_tokens(work)}"
            for side, worker in workers.items():
                with worker.case(work):
                    profile = worker.profile(run)
                row = {"what": where, "checkout": side, "seconds": profile["plain_seconds"]}
                rows.append(row | shares(profile, vocabulary))
                if not args.json:
                    cells = [f"{rows[-1][share]:.0%}" for share in SHARES]
                    print(f"| {where} | {side} | {row['seconds']:.2f} | {' | '.join(cells)} |", flush=True)
    if args.json:
        print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
