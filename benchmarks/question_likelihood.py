"""The selector by question likelihood against the one by identifiers: E-step and M-step, K = 3, m = 32.

    python -m benchmarks.question_likelihood [--device cuda] [--shape smollm2|qwen2.5-0.5b] [--json] [--quick]

In the place of the rival: the list-wise selector, which reads n = 10 candidates in one prompt and draws identifiers
behind it (`autoregressive`). Ours: each candidate read alone in one packed row, all permutations from one pass. The two
are different distributions, so each is checked against plain forward passes of its own: ours here, the list-wise one in
`e_sample` and `m_selector`. The last two paths have ours with n = 50 in the place of the rival and with n = 10 as ours:
their ratio is what five times the candidates cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.setting import (
    CONFIGS,
    Pipeline,
    agree,
    load,
    our_step,
    pipeline,
    posteriors,
    random_ids,
    relative_error,
    step,
)
from benchmarks.timing import Case, Make, Options, main
from generator.language_model import LanguageModel
from generator.prompts import QuestionPrompt
from rag.planning.flops import QuestionShape, e_sample_flops, m_selector_flops
from rag.planning.text_sizes import TextSizes
from rag.planning.training_job import mean_question
from retriever.permutations import plackett_luce_log_prob
from retriever.question_likelihood_selector import QuestionLikelihoodSelector
from retriever.selector_config import SamplingConfig, SelectorConfig
from training.config import DROConfig
from training.joint_model import JointModel
from training.losses import selector_loss
from training.posterior import Posterior

K, M = 3, 32
OPENING = 24
"""Tokens that the chat template of SmolLM2 writes before a user's text."""
INSTRUCTION = 10
"""Tokens of the question prompt before a passage; those after it are the chat template's."""
SAMPLING = SamplingConfig(num_permutations=M, replacement=False)


@dataclass(frozen=True, kw_only=True)
class RandomQuestionPrompt(QuestionPrompt):
    """So many random tokens."""

    length: int = 0
    """Of the passage, and of what the chat template writes after it."""
    question: int = 0
    """Of the question."""

    def encode(
        self, tokenizer: Any, passage: Any, *, passage_tokens: int, max_tokens: int, chat: Any = None
    ) -> list[int]:
        """The same opening, then tokens that depend on the passage."""
        return random_ids(OPENING + INSTRUCTION) + random_ids(self.length, passage.id)

    def encode_question(self, tokenizer: Any, question: str, *, chat: Any = None) -> list[int]:
        """Tokens that depend on the question."""
        return random_ids(self.question, question)

    def least_tokens(self, tokenizer: Any, *, chat: Any = None) -> int:
        """What all prompts begin with."""
        return OPENING + INSTRUCTION


def shape_of_question(options: Options, n: int, kind: str) -> QuestionShape:
    """Of n passages of 120 tokens (40 in the quick round) and a question of 20, as `rag plan` counts them."""
    texts = TextSizes(passages=10_000, passage_tokens=40 if options.quick else 120, questions=1, question_tokens=20)
    selector = SelectorConfig(kind=kind, num_candidates=n, num_selected=K)
    return replace(mean_question(selector, DROConfig(), texts, 8192)[0], num_permutations=M)


def by_identifiers(options: Options, model: LanguageModel, n: int, questions: int) -> Pipeline:
    """Questions with the list-wise selector."""
    prompt = OPENING + shape_of_question(options, n, "listwise").prompt
    return pipeline(model, questions=questions, n=n, K=K, prompt=prompt)


def by_likelihood(options: Options, model: LanguageModel, n: int, questions: int) -> Pipeline:
    """The same questions with the selector by question likelihood."""
    p = by_identifiers(options, model, n, questions)
    shape = shape_of_question(options, n, "question_likelihood")
    found: Any = QuestionLikelihoodSelector(
        model,
        p.retriever,
        prompt=RandomQuestionPrompt(length=shape.prompt // n - shape.scored - INSTRUCTION, question=shape.scored),
        config=SelectorConfig(kind="question_likelihood", num_candidates=n, num_selected=K),
    )
    return replace(p, selector=found)


def propose(p: Pipeline) -> object:
    """The E-step's draws."""
    return p.selector.propose(p.candidates, SAMPLING, generator=torch.Generator().manual_seed(0))


def learn(p: Pipeline, joint: JointModel, found: Sequence[Posterior]) -> dict[str, Tensor]:
    """The M-step's gradient."""
    return our_step(p, joint, "selector", found)


def joint_model(p: Pipeline) -> JointModel:
    """What learns in an M-step of the selector."""
    return JointModel(p.selector, p.generator, DROConfig(train_retriever=False))


def sampling(options: Options, n: int, *, against: int | None) -> Case:
    """E-sample with n candidates, against the list-wise selector or against more of them."""
    name, questions = options.shape or "tiny", 1 if options.quick else 2
    model = load(options, CONFIGS[name]())
    p = by_likelihood(options, model, n, questions)
    make = by_identifiers if against is None else by_likelihood
    other = make(options, model, against or n, questions)
    return Case(
        path="E-sample" if against is None else f"E-sample, n = {against} against n = {n}",
        shape=f"{name}, n = {n}, {questions} questions",
        rival=lambda: propose(other),
        ours=lambda: propose(p),
        check=lambda: check_values(p),
        flops=questions * e_sample_flops(p.shape, shape_of_question(options, n, "question_likelihood")),
        dtype=options.dtype,
        target=1.5 if against is None else None,
        memory_target=1.0 if against is None else None,
    )


def learning(options: Options, n: int, *, against: int | None) -> Case:
    """M-selector with n candidates, against the list-wise selector or against more of them."""
    name = options.shape or "tiny"
    model = load(options, CONFIGS[name]())
    p = by_likelihood(options, model, n, 1)
    other = (by_identifiers if against is None else by_likelihood)(options, model, against or n, 1)
    joint, other_joint, found, others = joint_model(p), joint_model(other), posteriors(p, M), posteriors(other, M)
    return Case(
        path="M-selector" if against is None else f"M-selector, n = {against} against n = {n}",
        shape=f"{name}, n = {n}, one question",
        rival=lambda: learn(other, other_joint, others),
        ours=lambda: learn(p, joint, found),
        check=lambda: check_gradients(p, joint, found, options.gradient_tolerance),
        flops=m_selector_flops(p.shape, shape_of_question(options, n, "question_likelihood")),
        dtype=options.dtype,
        target=1.0 if against is None else None,
        memory_target=1.0 if against is None else None,
    )


def plain_logits(p: Pipeline, *, early: int = 0) -> Tensor:
    """Logits `[n]` of the first question, from the model's own forward of one sequence at a time.

    Args:
        p: With the selector by question likelihood.
        early: How many places too early a question token is looked for: wrong, unless 0.
    """
    selector, candidates = p.selector, p.candidates[0]
    assert isinstance(selector, QuestionLikelihoodSelector)
    values = []
    for sequence in selector.sequences(candidates):
        logits_TV = p.model.base_model(input_ids=torch.tensor([sequence.input_ids], device=p.model.device)).logits[0]
        first, count = len(sequence.prompt_ids) - 1 - early, len(sequence.answer_ids)
        log_p_LV = logits_TV[first : first + count].float().log_softmax(-1)
        targets_L1 = torch.tensor(sequence.answer_ids, device=log_p_LV.device).unsqueeze(-1)
        values.append(log_p_LV.gather(-1, targets_L1).mean())
    u_n, r_n = (_standardised(v.float()) for v in (torch.stack(values), candidates.scores.to(values[0].device)))
    return selector.prior.gate * u_n + selector.prior.strength * r_n


def _standardised(values_n: Tensor) -> Tensor:
    return (values_n - values_n.mean()) / values_n.std(correction=0)


@torch.no_grad()
def check_values(p: Pipeline) -> None:
    """The log-probabilities of what was drawn are those of sequences read one by one."""
    drawn = p.selector.propose(p.candidates, SAMPLING, generator=torch.Generator().manual_seed(1))[0]
    with p.model.use("selector"):
        expected, wrong = (plackett_luce_log_prob(plain_logits(p, early=e).cpu(), drawn.z) for e in (0, 1))
    agree("E-sample", *(float((drawn.log_p - x).abs().max()) for x in (expected, wrong)), tolerance=0.1)


def check_gradients(p: Pipeline, joint: JointModel, found: Sequence[Posterior], tolerance: float) -> None:
    """The same gradient as of sequences read one by one; the control has another permutation's weights."""
    posterior = found[0]

    def loss() -> Tensor:
        log_p_m = plackett_luce_log_prob(plain_logits(p), posterior.permutations.z.to(p.model.device))
        return selector_loss(log_p_m, posterior.weights_m.to(log_p_m.device)) / K

    expected = step(p, "selector", loss)
    wrong = [replace(posterior, weights_m=posterior.weights_m.flip(0))]
    ours, control = learn(p, joint, found), learn(p, joint, wrong)
    # The log-likelihoods of random weights hardly differ, and standardising them magnifies what is rounded.
    agree("M-selector", *(relative_error(g, expected) for g in (ours, control)), tolerance=max(tolerance, 2e-3))


MAKES = [
    Make(lambda o: sampling(o, 10, against=None)),
    Make(lambda o: learning(o, 10, against=None)),
    Make(lambda o: sampling(o, 10, against=50), quick=False),
    Make(lambda o: learning(o, 10, against=50), quick=False),
]

if __name__ == "__main__":
    raise SystemExit(main(str(__doc__), MAKES))
