"""How each step's cost grows with m, n, the vocabulary and the prompt, against the formulas of rag/planning/flops.py.

    python -m benchmarks.growth [--json] [--quick]

Two kinds of cost. Operations are counted by torch while the step runs (matrix products and attention); they must be
what the formula says, within 15 %. torch counts attention as if it saw all pairs, so for this the formula is given all
pairs too. Seconds are set against the formula as it is, scaled to the middle point of each sweep, so that only the
growth is compared.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers import LlamaConfig

from benchmarks.setting import Pipeline, answer_rows, decoder, language_model, our_loss, pipeline, posteriors, step
from benchmarks.timing import keep_freed_memory, seconds
from rag.planning.flops import (
    ModelShape,
    QuestionShape,
    causal_pairs,
    e_sample_flops,
    e_score_flops,
    m_generator_flops,
    m_selector_flops,
)
from retriever.selector_config import SamplingConfig
from training.config import DROConfig
from training.joint_model import JointModel

TOLERANCE = 0.15
PLAIN = QuestionShape(num_candidates=20, num_selected=5, num_permutations=8, prompt=640, sequence=256, answer=8)
SWEEPS: dict[str, tuple[str, list[int]]] = {
    "m": ("num_permutations", [1, 4, 8, 16]),
    "n": ("num_candidates", [5, 10, 20, 40]),
    "V": ("vocabulary", [4096, 16384, 65536]),
    "prompt": ("prompt", [320, 640, 1280, 2560]),
}
TOKENS_PER_CANDIDATE = 30
"""With n, the ranking prompt grows."""


@dataclass(frozen=True)
class Point:
    """One step at one size."""

    step: str
    sweep: str
    value: int
    seconds: float
    counted: float
    """Operations that torch saw."""
    formula: float
    """By formula."""
    all_pairs: float
    """By formula, attention over all pairs as torch counts it."""


def config(vocabulary: int) -> LlamaConfig:
    """Large enough that products are most of the time."""
    return decoder(LlamaConfig, vocabulary, 512, 1536, 4, 8, 8)


STEPS: dict[str, Callable[..., int]] = {
    "E-sample": e_sample_flops,
    "E-score": e_score_flops,
    "M-selector": m_selector_flops,
    "M-generator": m_generator_flops,
}


def steps(p: Pipeline, m: int) -> dict[str, Callable[[], object]]:
    """What is run."""
    found, rows = posteriors(p, m), answer_rows(p, m)
    joint = JointModel(p.selector, p.generator, DROConfig(train_retriever=False))
    generator = torch.Generator().manual_seed(0)

    def learn(role: str) -> object:
        return step(p, role, lambda: our_loss(joint, role, found))

    return {
        "E-sample": lambda: p.selector.propose(p.candidates, SamplingConfig(num_permutations=m), generator=generator),
        "E-score": lambda: p.generator.log_probs(rows),
        "M-selector": lambda: learn("selector"),
        "M-generator": lambda: learn("generator"),
    }


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (sdpa_flop_count, 3),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (sdpa_backward_flop_count, 4),
}


class Counter(TorchDispatchMode):
    """Operations by torch's own formulas.

    Its `FlopCounterMode` follows modules, which a KL whose gradient is formed in the forward pass does not allow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket
        if name in ATTENTION:
            count, tensors = ATTENTION[name]
            self.total += count(*(tensor.shape for tensor in args[:tensors]))
        elif name in flop_registry:
            self.total += flop_registry[name](*args, **(kwargs or {}), out_val=out)
        return out


def measure(sweep: str, value: int, names: list[str], repeats: int) -> Iterator[Point]:
    """Every step at one point of a sweep."""
    field = SWEEPS[sweep][0]
    question, vocabulary = PLAIN, value if field == "vocabulary" else 4096
    if field != "vocabulary":
        question = replace(question, **{field: value})
    if field == "num_candidates":
        question = replace(question, prompt=40 + TOKENS_PER_CANDIDATE * value)
    p = pipeline(
        language_model(config(vocabulary), torch.float32, "cpu"),
        questions=1,
        n=question.num_candidates,
        prompt=question.prompt,
        row=question.sequence - question.answer,
    )
    question = replace(question, choice=1 + len(p.selector.separator_ids))
    for name, run in steps(p, question.num_permutations).items():
        if name in names:
            run()
            taken = statistics.median(seconds(run, "cpu") for _ in range(repeats))
            # What runs in inference mode is not dispatched to modes.
            with Counter() as counter, patch.object(torch, "inference_mode", torch.no_grad):
                run()
            flops = STEPS[name](p.shape, question)
            yield Point(name, sweep, value, taken, counter.total, flops, flops + unseen(name, p.shape, question))


def unseen(name: str, shape: ModelShape, q: QuestionShape) -> float:
    """Operations on the pairs that torch counts and nobody attends to: above the diagonal, and between replies."""
    prompt, rows = q.prompt * (q.prompt - 1) / 2, q.num_permutations * q.sequence * (q.sequence - 1) / 2
    written, steps = q.num_permutations * q.choice, q.num_selected - 1
    seen = q.num_permutations * causal_pairs([q.reply])  # by each reply of itself: that is in the formula
    pairs = {
        "E-sample": prompt + written**2 * steps * (steps + 1) / 2 - seen,
        "E-score": rows,
        "M-selector": 3 * (prompt + (written * steps) ** 2 - seen),
        "M-generator": 4 * rows,
    }[name]
    return 4 * shape.layers * shape.heads * shape.head_dim * pairs


MEANT = {
    "m": list(STEPS),
    "n": ["E-sample", "M-selector"],
    "V": ["E-score", "M-generator"],
    "prompt": ["E-sample", "M-selector"],
}


def main() -> int:
    """Exits with 1 where a count is not what the formula says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sweep", choices=list(SWEEPS), nargs="+", default=list(SWEEPS))
    parser.add_argument("--quick", action="store_true", help="two points of each sweep, one run")
    args = parser.parse_args()
    keep_freed_memory()
    points = [
        point
        for sweep in args.sweep
        for value in (SWEEPS[sweep][1][1:3] if args.quick else SWEEPS[sweep][1])
        for point in measure(sweep, value, MEANT[sweep], 1 if args.quick else 3)
    ]
    print(json.dumps([vars(p) for p in points], indent=1) if args.json else table(points))
    return int(any(abs(p.counted / p.all_pairs - 1) > TOLERANCE for p in points))


def table(points: list[Point]) -> str:
    """A row for each step and sweep: counted and timed over the formula."""
    lines = ["| step | grows with | operations / formula | seconds / formula, middle = 1 |", "|---|---|---|---|"]
    for sweep in dict.fromkeys(p.sweep for p in points):
        for name in MEANT[sweep]:
            row: list[Any] = [p for p in points if (p.sweep, p.step) == (sweep, name)]
            middle = row[len(row) // 2]
            rate = middle.seconds / middle.formula
            lines.append(
                f"| {name} | {sweep} = {', '.join(str(p.value) for p in row)} | "
                f"{', '.join(f'{p.counted / p.all_pairs:.2f}' for p in row)} | "
                f"{', '.join(f'{p.seconds / p.formula / rate:.2f}' for p in row)} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
