"""M-step of the selector: forward and backward of m = 8 permutations of one question.

    python -m benchmarks.m_selector [--device cuda] [--shape smollm2|qwen2.5-0.5b|qwen2.5-7b] [--json] [--quick]

Rival: one sequence for each permutation, logits of every token. Ours: one prompt, m replies on its cache
(`autoregressive`), or one prompt and nothing else (`single_pass`).
"""

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
    relative_error,
    step,
)
from benchmarks.timing import Case, Make, Options, main
from rag.planning.flops import QuestionShape, m_selector_flops
from training.config import DROConfig
from training.joint_model import JointModel
from training.posterior import Posterior

M = 8


def build(options: Options, decoding: str, prompt: int, target: float) -> Case:
    """One question at one prompt length; both ways leave the gradients of the selector's adapter."""
    name = options.shape or "tiny"
    prompt = lengths(options, Lengths(prompt, 0)).prompt
    model = load(options, CONFIGS[name]())
    p = pipeline(model, questions=1, prompt=prompt, decoding=decoding)
    found = posteriors(p, M)
    joint = JointModel(p.selector, p.generator, DROConfig(train_retriever=False))
    question = QuestionShape(20, 5, M, prompt, 0, 0, 1 + len(p.selector.separator_ids))
    return Case(
        path=f"M-selector, {decoding}",
        shape=f"{name}, prompt of {prompt}",
        rival=lambda: step(p, "selector", lambda: rivals.selector_loss(p, found)),
        ours=lambda: our_step(p, joint, "selector", found),
        check=lambda: check(p, joint, found, options.gradient_tolerance),
        flops=m_selector_flops(p.shape, question, decoding=decoding),
        dtype=options.dtype,
        target=target,
    )


def check(p: Pipeline, joint: JointModel, found: list[Posterior], tolerance: float) -> None:
    """The same gradient; the control has another permutation's weights."""
    if p.selector.config.decoding == "single_pass":
        return  # another selector than the rival's: tests hold it against enumeration
    expected = step(p, "selector", lambda: rivals.selector_loss(p, found))
    ours = our_step(p, joint, "selector", found)
    wrong = [Posterior(**{**vars(found[0]), "weights_m": found[0].weights_m.flip(0)})]
    control = our_step(p, joint, "selector", wrong)
    agree("M-selector", *(relative_error(g, expected) for g in (ours, control)), tolerance=tolerance)


MAKES = [
    Make(lambda o: build(o, "autoregressive", 640, 4.8)),
    Make(lambda o: build(o, "single_pass", 640, 8.0)),
]

if __name__ == "__main__":
    raise SystemExit(main(str(__doc__), MAKES))
