"""M-step of the generator with SelfAug: forward and backward of m = 8 rows of one question.

    python -m benchmarks.m_generator [--device cuda] [--shape smollm2|qwen2.5-0.5b|qwen2.5-7b] [--json] [--quick]

Rival: logits of every token over the whole vocabulary, of the tuned model and of the base, in float32; cross-entropy
and KL from these. Ours: the head on answer tokens only, the KL chunk by chunk from hidden states; on all rows
(`exact`), on one of the m drawn uniformly (`row KL`), or on that and a quarter of its tokens.
"""

from dataclasses import replace
from typing import Any

from benchmarks import rivals
from benchmarks.setting import (
    CONFIGS,
    Lengths,
    Pipeline,
    agree,
    lengths,
    load,
    our_step,
    pipeline,
    posteriors,
    qwen_half_billion,
    relative_error,
    small_qwen,
    step,
)
from benchmarks.timing import Case, Make, Options, main
from rag.planning.flops import QuestionShape, m_generator_flops
from training.config import DROConfig
from training.joint_model import JointModel
from training.posterior import Posterior

M = 8


def build(
    options: Options,
    name: str,
    config: Any,
    settings: dict[str, Any],
    target: float | None,
    *,
    m: int = M,
    row: int = 440,
) -> Case:
    """One question; both ways leave the gradients of the generator's adapter."""
    config = CONFIGS[options.shape]() if options.shape else config
    m = 3 if options.quick else m
    real = options.shape == "smollm2"
    row = lengths(options, Lengths(0, row)).row
    model = load(options, config)
    p = pipeline(model, questions=1, row=row)
    found = posteriors(p, m)
    joint = JointModel(p.selector, p.generator, DROConfig().with_settings(settings))
    exact = JointModel(p.selector, p.generator, DROConfig())
    answer = len(p.generator.encode_answer(found[0].answer))
    question = QuestionShape(20, 5, m, 0, row + answer, answer)
    aligned = 1 if settings.get("selfaug.permutations") == "one" else None
    return Case(
        path="M-generator + SelfAug" + (", row KL" if aligned else ""),
        shape=f"{options.shape or name}, V = {config.vocab_size:,}, {m} rows of {row + answer}",
        rival=lambda: step(p, "generator", lambda: rivals.generator_loss(p, found)),
        ours=lambda: our_step(p, joint, "generator", found),
        check=lambda: check(p, exact, found, options.gradient_tolerance),
        flops=m_generator_flops(p.shape, question, aligned_sequences=aligned),
        dtype=options.dtype,
        target=None if real else target,
        bound_by_products=True,
        memory_target=8.0 if real else None,
        floor_target=0.65 if real else None,
    )


def check(p: Pipeline, joint: JointModel, found: list[Posterior], tolerance: float) -> None:
    """The same gradient, all rows aligned; the control has another permutation's weights."""
    expected = step(p, "generator", lambda: rivals.generator_loss(p, found))
    ours = our_step(p, joint, "generator", found)
    weights_m = found[0].weights_m
    wrong = replace(found[0], weights_m=(1 - weights_m) / (len(weights_m) - 1))
    control = our_step(p, joint, "generator", [wrong])
    agree("M-generator", *(relative_error(g, expected) for g in (ours, control)), tolerance=tolerance)


EXACT: dict[str, Any] = {}
ROW: dict[str, Any] = {"selfaug.permutations": "one"}

MAKES = [
    Make(lambda o: build(o, "small", small_qwen(32000), EXACT, 4.0)),
    Make(lambda o: build(o, "small", small_qwen(32000), ROW, 7.5)),
    Make(lambda o: build(o, "small", small_qwen(4096), EXACT, None), quick=False, with_shape=False),
    Make(lambda o: build(o, "small", small_qwen(4096), ROW, None), quick=False, with_shape=False),
    Make(
        lambda o: build(o, "qwen2.5-0.5b", qwen_half_billion(), EXACT, 2.0, m=2, row=248), quick=False, with_shape=False
    ),
]

if __name__ == "__main__":
    raise SystemExit(main(str(__doc__), MAKES))
