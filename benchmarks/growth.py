"""How the cost of each step, of answering and of a round grows, against the formulas of rag/planning.

    python -m benchmarks.growth [--sweep m n V prompt batch "answer prompt" "new tokens" "round n"] [--json] [--quick]

Two kinds of cost. Operations are counted by torch while the step runs (matrix products and attention); they must be
what the formula says, within 15 %. torch counts attention as if it saw all pairs, so for this the formula is given all
pairs too. Seconds are set against the formula as it is, scaled to the middle point of each sweep, so that only the
growth is compared. Answers are written at the speed of memory, and a round (a default one of one question, 4
permutations scored of 32) has phases of different speeds: their formulas are those of `rag plan`, in seconds from rates
that are measured in the same run. Of a round only seconds are compared.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers import LlamaConfig

from benchmarks.round import our_round
from benchmarks.setting import Pipeline, answer_rows, decoder, language_model, our_step, pipeline, posteriors
from benchmarks.timing import keep_freed_memory
from rag.planning.flops import (
    ModelShape,
    QuestionShape,
    e_sample_flops,
    e_score_flops,
    m_generator_flops,
    m_selector_flops,
    reading_flops,
)
from rag.planning.machine import measure as measure_machine
from rag.planning.model_sizes import EncoderShape
from rag.planning.text_sizes import TextSizes
from rag.planning.training_job import TrainingJob
from rag.planning.training_memory import PRECISIONS, StepMemory
from rag.planning.training_plan import plan_training, product_share, step_seconds
from rag.planning.training_steps import TrainingStep, training_steps, writing_cost
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
    """Of the processor."""
    counted: float
    """Operations that torch saw."""
    formula: float
    """By formula; of answering and of a round in seconds, else in operations."""
    all_pairs: float
    """By formula, attention over all pairs as torch counts it."""
    answers: int = 0
    """Written in one run."""


def config(vocabulary: int) -> LlamaConfig:
    """Large enough that products are most of the time."""
    return decoder(LlamaConfig, vocabulary, 512, 1536, 4, 8, 8)


STEPS: dict[str, Callable[..., int]] = {
    "E-sample": e_sample_flops,
    "E-score": e_score_flops,
    "M-selector": m_selector_flops,
    "M-generator": m_generator_flops,
}


def processor_seconds(run: Callable[[], object]) -> float:
    """Of one run; of one thread it is the time that it takes where nothing else runs."""
    gc.collect()
    started = time.process_time()
    run()
    return time.process_time() - started


def steps(p: Pipeline, m: int) -> dict[str, Callable[[], object]]:
    """What is run."""
    found, rows = posteriors(p, m), answer_rows(p, m)
    joint = JointModel(p.selector, p.generator, DROConfig(train_retriever=False))
    generator = torch.Generator().manual_seed(0)

    def learn(role: str) -> object:
        return our_step(p, joint, role, found)

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


IN_PLACE = {torch.ops.aten.addmm_: torch.ops.aten.addmm, torch.ops.aten.baddbmm_: torch.ops.aten.baddbmm}
"""torch has formulas of the others only."""


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
        elif (counted := IN_PLACE.get(name, name)) in flop_registry:
            self.total += flop_registry[counted](*args, **(kwargs or {}), out_val=out)
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
            taken = statistics.median(processor_seconds(run) for _ in range(repeats))
            # What runs in inference mode is not dispatched to modes.
            with Counter() as counter, patch.object(torch, "inference_mode", torch.no_grad):
                run()
            flops = STEPS[name](p.shape, question)
            yield Point(name, sweep, value, taken, counter.total, flops, flops + unseen(name, p.shape, question))


def unseen(name: str, shape: ModelShape, q: QuestionShape) -> float:
    """Operations on the pairs that torch counts and nobody attends to: above the diagonal."""
    prompt, rows = q.prompt * (q.prompt - 1) / 2, q.num_permutations * q.sequence * (q.sequence - 1) / 2
    steps, reply = q.num_selected - 1, q.reply
    pairs = {
        "E-sample": prompt + q.num_permutations * steps * q.choice * (q.choice - 1) / 2,
        "E-score": rows,
        "M-selector": 3 * (prompt + q.num_permutations * reply * (reply - 1) / 2),
        "M-generator": 4 * rows,
    }[name]
    return 4 * shape.layers * shape.heads * shape.head_dim * pairs


MEANT = {
    "m": list(STEPS),
    "n": ["E-sample", "M-selector"],
    "V": ["E-score", "M-generator"],
    "prompt": ["E-sample", "M-selector"],
}

# -- answering and whole rounds --------------------------------------------------------------------------------------

VOCABULARY = 4096
ANSWERING = {"batch": 8, "answer prompt": 480, "new tokens": 32}
ANSWER_SWEEPS = {"batch": [1, 2, 4, 8, 16, 32], "answer prompt": [120, 240, 480, 960], "new tokens": [8, 16, 32, 64]}
ROUND = {"n": 20, "K": 5, "m": 4}
ROUND_SWEEPS = {"n": [10, 20, 40], "K": [2, 5, 8], "m": [2, 4, 8]}
TOKENS_PER_SELECTED = 50
"""With K, the answer prompt grows."""


def measure_answering(sweep: str, value: int, repeats: int) -> Point:
    """Answers to prompts of one length, none of which ends before its last token."""
    sizes = ANSWERING | {sweep: value}
    batch, prompt, written = sizes["batch"], sizes["answer prompt"], sizes["new tokens"]
    model = language_model(config(VOCABULARY), torch.float32, "cpu")
    p = pipeline(model, questions=batch, row=prompt)
    with torch.no_grad():
        model.base_model.get_output_embeddings().weight[list(model.chat.stop_ids)] = 0.0
    p.generator.config = replace(p.generator.config, max_new_tokens=written)
    prompts = [p.generator.prompt_ids(c.question, c.passages[:5]) for c in p.candidates]

    def run() -> None:
        p.generator.complete(prompts)

    run()
    taken = statistics.median(processor_seconds(run) for _ in range(repeats))
    with Counter() as counter, patch.object(torch, "inference_mode", torch.no_grad):
        run()
    machine = measure_machine(p.shape, "float32", "cpu", step_rows=batch)
    step = answering_step(p.shape, prompt, written, batch)
    # Read with the causal kernel, whose pairs torch counts all; a token that is written sees no others.
    unseen_pairs = batch * prompt * (prompt - 1) / 2
    all_pairs = step.flops + 4 * p.shape.layers * p.shape.heads * p.shape.head_dim * unseen_pairs
    return Point(
        "answering",
        sweep,
        value,
        taken,
        counter.total,
        step_seconds(step, machine, product_share(p.shape, machine)),
        all_pairs,
        answers=batch,
    )


def answering_step(shape: ModelShape, prompt: int, written: int, batch: int) -> TrainingStep:
    """Reading and writing by the formulas of the plan."""
    layers = batch * reading_flops(replace(shape, vocabulary=0), prompt)
    body = batch * reading_flops(replace(shape, vocabulary=0, attends=False), prompt)
    # The last token is not read.
    writing = writing_cost(
        shape, PRECISIONS["float32"], prompt=prompt, written=written - 1, questions=batch, together=batch
    )
    return TrainingStep(
        name="answering",
        times=1,
        body=body,
        attention=layers - body,
        head=batch * reading_flops(shape, prompt) - layers,
        writing=writing,
        memory=StepMemory(),
    )


def measure_round(name: str, value: int, repeats: int) -> Point:
    """One question through both steps, optimizer included."""
    sizes = ROUND | {name: value}
    n, K, m = sizes["n"], sizes["K"], sizes["m"]
    prompt, row = 40 + TOKENS_PER_CANDIDATE * n, TOKENS_PER_SELECTED * K
    p = pipeline(
        language_model(config(VOCABULARY), torch.float32, "cpu"), questions=1, n=n, K=K, prompt=prompt, row=row
    )
    settings = {"e_step.num_permutations": m}
    our_round(p, settings)
    taken = statistics.median(processor_seconds(lambda: our_round(p, settings)) for _ in range(repeats))
    job = round_job(p, prompt, row, m)
    predicted = plan_training(job, measure_machine(p.shape, "float32", "cpu", step_rows=1)).round_seconds or 0.0
    # Operations are counted step by step in other sweeps.
    flops = round(sum(step.flops * step.per_round for step in training_steps(job)))
    return Point("round", f"round {name}", value, taken, flops, predicted, flops)


def round_job(p: Pipeline, prompt: int, row: int, m: int) -> TrainingJob:
    """The plan's job for the one question of a pipeline."""
    selector, answer = p.selector.config, len(p.generator.encode_answer(p.examples[0].golden_answers[0]))
    n, K = selector.num_candidates, selector.num_selected
    question = QuestionShape(n, K, m, prompt, row + answer, answer, 1 + len(p.selector.separator_ids))
    return TrainingJob(
        base="",
        shape=p.shape,
        context=8192,
        dtype="float32",
        device="cpu",
        config=DROConfig(rounds=1).with_settings({"e_step.num_permutations": m}),
        selector=selector,
        encoder=EncoderShape(dimension=64),
        texts=TextSizes(passages=n, passage_tokens=TOKENS_PER_CANDIDATE, questions=1),
        question=question,
        single_passage_sequence=row // K + answer,
    )


def points_of(sweep: str, quick: bool) -> Iterator[Point]:
    """All points of a sweep; in a quick round two of them, run once."""
    repeats = 1 if quick else 3
    values = ALL_SWEEPS[sweep]
    for value in values[1:3] if quick else values:
        if sweep in ANSWER_SWEEPS:
            yield measure_answering(sweep, value, repeats)
        elif sweep.startswith("round "):
            yield measure_round(sweep.removeprefix("round "), value, repeats)
        else:
            yield from measure(sweep, value, MEANT[sweep], repeats)


ALL_SWEEPS: dict[str, list[int]] = {name: values for name, (_, values) in SWEEPS.items()}
ALL_SWEEPS |= ANSWER_SWEEPS | {f"round {name}": values for name, values in ROUND_SWEEPS.items()}


def main() -> int:
    """Exits with 1 where a count is not what the formula says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sweep", choices=list(ALL_SWEEPS), nargs="+", default=list(ALL_SWEEPS))
    parser.add_argument("--quick", action="store_true", help="two points of each sweep, one run")
    args = parser.parse_args()
    keep_freed_memory()
    points = [point for sweep in args.sweep for point in points_of(sweep, args.quick)]
    print(json.dumps([vars(p) for p in points], indent=1) if args.json else table(points))
    return int(any(abs(p.counted / p.all_pairs - 1) > TOLERANCE for p in points))


def table(points: list[Point]) -> str:
    """A row for each step and sweep: counted and timed over the formula."""
    head = ["step", "grows with", "seconds", "operations / formula", "seconds / formula, middle = 1", "answers/s"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, sweep in dict.fromkeys((p.step, p.sweep) for p in points):
        row = [p for p in points if (p.step, p.sweep) == (name, sweep)]
        middle = row[len(row) // 2]
        rate = middle.seconds / middle.formula
        cells = [
            ", ".join(f"{p.seconds:.3f}" for p in row),
            ", ".join(f"{p.counted / p.all_pairs:.2f}" for p in row) if name != "round" else "",
            ", ".join(f"{p.seconds / p.formula / rate:.2f}" for p in row),
            ", ".join(f"{p.answers / p.seconds:.2f}" for p in row if p.answers),
        ]
        label = sweep.removeprefix("round ")
        lines.append(f"| {name} | {label} = {', '.join(str(p.value) for p in row)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
