"""E-step, drawing m = 8 permutations of K = 5 from n = 20 candidates.

    python -m benchmarks.e_sample [--device cuda] [--shape tiny|smollm2|qwen2.5-0.5b|qwen2.5-7b] [--json] [--quick]

Rival: `generate(num_return_sequences=8)`, 24 tokens of free text, which repeats the prompt before the prefill. Ours:
one prefill; identifiers are single tokens on its cache (`autoregressive`), or all drawn from its last position
(`single_pass`).
"""

from dataclasses import replace

import torch

from benchmarks import rivals
from benchmarks.setting import CONFIGS, Lengths, Pipeline, agree, lengths, load, pipeline, posteriors
from benchmarks.timing import Case, Make, Options, main
from rag.planning.flops import QuestionShape, e_sample_flops
from retriever.permutations import plackett_luce_log_prob
from retriever.selector import standardise
from retriever.selector_config import SamplingConfig

M = 8


def build(options: Options, decoding: str, prompt: int, target: float | None) -> Case:
    """One decoding at one prompt length."""
    name, questions = options.shape or "tiny", 1 if options.quick or options.full else 2
    prompt = lengths(options, Lengths(prompt, 0)).prompt
    model = load(options, CONFIGS[name]())
    p = pipeline(model, questions=questions, prompt=prompt, decoding=decoding)
    generator = torch.Generator().manual_seed(0)
    # With replacement, as the rival draws.
    question = QuestionShape(20, 5, M, prompt, 0, 0, 1 + len(p.selector.separator_ids))
    return Case(
        path=f"E-sample, {decoding}",
        shape=f"{name}, {questions} prompts of {prompt}",
        rival=lambda: rivals.sample(p, M),
        ours=lambda: p.selector.propose(p.candidates, SamplingConfig(num_permutations=M), generator=generator),
        check=lambda: check(p),
        flops=questions * e_sample_flops(p.shape, question, decoding=decoding),
        dtype=options.dtype,
        target=target,
    )


@torch.no_grad()
def check(p: Pipeline) -> None:
    """The log-probabilities of what was drawn are those of whole sequences, one for each permutation."""
    drawn = p.selector.propose(
        p.candidates, SamplingConfig(num_permutations=M), generator=torch.Generator().manual_seed(1)
    )[0]
    if p.selector.config.decoding == "single_pass":
        first_n = first_logits(p)
        expected = plackett_luce_log_prob(first_n, drawn.z)
        wrong = plackett_luce_log_prob(first_n.roll(1), drawn.z)
    else:
        posterior = replace(posteriors(p, M)[0], permutations=drawn)
        with p.model.use("selector"):
            expected = rivals.selector_log_probs(p, posterior).cpu()
            wrong = rivals.selector_log_probs(p, posterior, steps_late=-1).cpu()
    agree("E-sample", *(float((drawn.log_p - x).abs().max()) for x in (expected, wrong)), tolerance=0.1)


def first_logits(p: Pipeline) -> torch.Tensor:
    """Pooled logits `[n]` of the first identifier, from the model's own forward."""
    ids = torch.tensor([p.selector.prompt_ids(p.candidates[0])], device=p.model.device)
    with p.model.use("selector"):
        logits_V = p.model.base_model(input_ids=ids).logits[0, -1].float()
    lm_n = logits_V[torch.tensor(p.selector.identifiers.token_ids, device=logits_V.device)]
    return p.selector.prior(lm_n, standardise(p.candidates[0].scores.to(lm_n.device))).cpu()


MAKES = [
    Make(lambda o: build(o, "autoregressive", 1280, 5.5)),
    Make(lambda o: build(o, "single_pass", 1280, 11.0)),
    Make(lambda o: build(o, "autoregressive", 2560, None), quick=False, with_shape=False),
    Make(lambda o: build(o, "single_pass", 2560, None), quick=False, with_shape=False),
]

if __name__ == "__main__":
    raise SystemExit(main(str(__doc__), MAKES))
