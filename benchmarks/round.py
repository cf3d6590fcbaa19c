"""A whole round, 24 questions: draw, score, learn, both roles, with the optimizer.

    python -m benchmarks.round [--device cuda] [--shape smollm2|qwen2.5-0.5b|qwen2.5-7b] [--full] [--json] [--quick]

Rival: the official pipeline, with `generate(num_return_sequences=8)`, logits of every token, one sequence for each
permutation and SelfAug from full logits. Ours: `EStep` and `MStepTrainer`, with the same m = 8 scored permutations
drawn with replacement (`exact`, or SelfAug on one row), and as it comes (4 scored of 32 drawn). What each step
computes is compared in the benchmark of that step; here a round must leave finite weights that have moved, and learn
from all questions.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import rivals
from benchmarks.setting import CONFIGS, SHORT_LENGTHS, Pipeline, answer_rows, lengths, load, pipeline, posteriors, tiny
from benchmarks.timing import Case, Make, Options, main
from generator.language_model import LanguageModel
from rag.planning.flops import QuestionShape, e_sample_flops, e_score_flops, m_generator_flops, m_selector_flops
from training.config import DROConfig
from training.estimation import EStep
from training.joint_model import JointModel
from training.maximization import MStepTrainer

M = 8
AS_THE_PAPER: dict[str, Any] = {
    "e_step.num_permutations": M,
    "e_step.replacement": True,
    "e_step.proposals_per_sample": 1,
}
RATE = 1e-4


def build(options: Options, name: str, settings: dict[str, Any], targets: dict[str, float]) -> Case:
    """All questions through both steps; `targets` by shape."""
    # On a CPU a pair of "smollm2" takes a minute or two for one question.
    questions = 1 if options.quick or (options.shape == "smollm2" and options.device == "cpu") else 24
    tokens = lengths(options, SHORT_LENGTHS)
    config = CONFIGS[options.shape]() if options.shape else tiny()
    model = load(options, config)
    p = pipeline(model, questions=questions, prompt=tokens.prompt, row=tokens.row)
    answer = len(p.generator.encode_answer(p.examples[0].golden_answers[0]))
    question = QuestionShape(20, 5, M, tokens.prompt, tokens.row + answer, answer, 1 + len(p.selector.separator_ids))
    aligned = 1 if settings.get("selfaug.permutations") == "one" else None
    flops = e_sample_flops(p.shape, question) + e_score_flops(p.shape, question)
    flops += m_selector_flops(p.shape, question) + m_generator_flops(p.shape, question, aligned_sequences=aligned)
    return Case(
        path=f"whole round, {name}",
        shape=f"{options.shape or 'tiny'}, V = {config.vocab_size:,}, {questions} questions, {tokens}",
        rival=lambda: rival_round(p),
        ours=lambda: our_round(p, settings),
        check=lambda: check(p, settings),
        flops=questions * flops,
        dtype=options.dtype,
        target=targets.get(options.shape or "tiny"),
        bound_by_products=True,
        long=not options.quick,
    )


def our_round(p: Pipeline, settings: dict[str, Any]) -> int:
    """The number of questions learned from."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = {"m_step.learning_rate": RATE, "m_step.fit_prior_weights": False}
        config = DROConfig().with_settings(fixed | settings)
        found = EStep(p.retriever, p.selector, p.generator, config)(p.examples, round=1)
        joint = JointModel(p.selector, p.generator, config)
        trainer = MStepTrainer(joint, config, found, output_dir=Path(folder), seed=0)
        trainer.train()
        return trainer.total_questions


def rival_round(p: Pipeline) -> None:
    """The same steps one after another; stored permutations stand for the replies, which it would parse."""
    optimizers = {
        role: torch.optim.AdamW(p.model.adapter_parameters(role).values(), lr=RATE)
        for role in ("selector", "generator")
    }
    for one in alone(p):
        rivals.sample(one, M)
    rivals.log_probs(p.model, answer_rows(p, M))
    found = posteriors(p, M)
    for start in range(0, len(found), 8):
        for role, loss in (("selector", rivals.selector_loss), ("generator", rivals.generator_loss)):
            for one in found[start : start + 8]:
                with p.model.use(role):
                    (loss(p, [one]) / 8).backward()
            optimizers[role].step()
            optimizers[role].zero_grad()
    p.selector.prior.zero_grad()


def alone(p: Pipeline) -> list[Pipeline]:
    """Each question by itself, as their script samples."""
    return [
        Pipeline(p.model, p.retriever, p.selector, p.generator, [c], [e])
        for c, e in zip(p.candidates, p.examples, strict=True)
    ]


def check(p: Pipeline, settings: dict[str, Any]) -> None:
    """Both adapters move and stay finite, and every question is learned from."""
    before = weights(p.model)
    learned = our_round(p, settings)
    after = weights(p.model)
    moved = {role: float((after[role] - before[role]).norm()) for role in before}
    if learned != len(p.examples) or not all(0 < change < float("inf") for change in moved.values()):
        raise RuntimeError(f"A round must move both adapters and see {len(p.examples)} questions; {learned}, {moved}.")


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    """All of a role's adapter in one vector."""
    return {
        role: torch.cat([w.detach().float().flatten() for w in model.adapter_parameters(role).values()])
        for role in ("selector", "generator")
    }


ROW_KL = {"selfaug.permutations": "one"}
MAKES = [
    Make(partial(build, name="exact", settings=AS_THE_PAPER, targets={"tiny": 4.5, "smollm2": 6.0})),
    Make(
        partial(build, name="row KL", settings=AS_THE_PAPER | ROW_KL, targets={"tiny": 5.5, "smollm2": 9.0}),
        quick=False,
    ),
    Make(partial(build, name="as it comes (m = 4 of 32), row KL", settings=ROW_KL, targets={}), quick=False),
]

if __name__ == "__main__":
    raise SystemExit(main(str(__doc__), MAKES))
