"""Answers with their log-probabilities: many questions, one, and the proposals of RAG-Sequence.

    python -m benchmarks.answering [--device cuda] [--shape tiny|smollm2|qwen2.5-0.5b] [--dtype mixed] [--full] [--json]

Reference: transformers' `generate` over prompts in file order, padded on the left in batches of eight, and a pass that
scores the answers, with the head on their tokens only. Ours: prompts by length, their common beginning read once, all
decoded together on a cache that is allocated once, scores from the same logits. No answer ends by itself: the end has a
logit of 0, the tokens of the tokenizer random ones, and the rest of the vocabulary 0. With `--dtype mixed`, and by
default where bfloat16 is fast, the reference has bfloat16 weights and ours are mixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.setting import CONFIGS, Lengths, agree, language_model, lengths, random_ids, shape_of, tiny
from benchmarks.timing import Case, Make, Options, main
from generator.configs import DecodingConfig
from generator.generator import Generator
from generator.transformers_generation import generate_replies
from rag.planning.flops import reading_flops, writing_flops

BATCH = 8
"""Questions of one call of `generate`."""
PARTS = ("answering", "one question", "RAG-Sequence answers")
Answers = tuple[list[str], Tensor]


@dataclass
class Sides:
    """The same weights twice, and what both are asked."""

    reference: Generator
    ours: Generator
    prompts: list[list[int]]
    documents: int = 1
    """Prompts of each question."""

    @property
    def questions(self) -> list[list[list[int]]]:
        """The prompts of each question."""
        return [self.prompts[i : i + self.documents] for i in range(0, len(self.prompts), self.documents)]


def generator(options: Options, precision: str, new_tokens: int) -> Generator:
    """Over random weights that never end an answer."""
    config = CONFIGS[options.shape]() if options.shape else tiny()
    model = language_model(config, torch.float32, options.device)
    with torch.no_grad():
        weight_VH = model.base_model.get_output_embeddings().weight
        weight_VH[len(model.tokenizer) :] = 0
        weight_VH[model.chat.stop_ids] = 0
    if precision == "mixed":
        model.use_mixed_precision()
    elif precision == "bfloat16":
        # Parameters only: `to` would round the frequencies of the positions, too.
        for parameter in model.adapters.base_parameters():
            parameter.data = parameter.data.bfloat16()
    return Generator(model, config=DecodingConfig(max_new_tokens=new_tokens))


def precisions(options: Options) -> tuple[str, str]:
    """Of the reference and of ours."""
    if options.precision in ("float32", "bfloat16"):
        return options.precision, options.precision
    fast = options.precision == "mixed" or options.dtype == torch.bfloat16
    return ("bfloat16", "mixed") if fast else ("float32", "float32")


def prompts(count: int, row: int) -> list[list[int]]:
    """Prompts of three quarters of `row` tokens to all of it, a seventh of which is the same in all."""
    common = random_ids(row // 7, "common")
    return [common + random_ids(row * (75 + 25 * i * 7 % 26) // 100 - len(common), i) for i in range(count)]


def sides(options: Options, part: str) -> Sides:
    """Both sides of one part."""
    row = lengths(options, Lengths(0, 300 if options.quick else 448)).row
    count = 1 if part == PARTS[1] else (24 if options.quick else 16 if options.shape == "smollm2" else 64)
    new_tokens = 12 if options.quick else 32
    reference, ours = (generator(options, precision, new_tokens) for precision in precisions(options))
    if part != PARTS[2]:
        return Sides(reference, ours, prompts(count, row))
    documents = 5
    return Sides(reference, ours, prompts(max(1, count // 16) * documents, row // 2), documents)


# -- the reference ---------------------------------------------------------------------------------------------


def by_transformers(one: Generator, asked: Sequence[list[int]]) -> list[str]:
    """Answers by `generate`, eight at a time in file order."""
    model, texts = one.language_model, []
    with torch.no_grad(), model.use("generator"):
        for start in range(0, len(asked), BATCH):
            batch = asked[start : start + BATCH]
            replies = generate_replies(model, batch, one.config, max_tokens_per_batch=2**40)
            texts += [text.strip() for text, _ in one.answers_in(batch, [reply.token_ids for reply in replies])]
    return texts


def scored(one: Generator, asked: Sequence[list[int]], texts: Sequence[str]) -> Tensor:
    """Log-probabilities of answers, eight rows at a time in file order, with the head on answers only."""
    rows = [one.generated_sequence(*both) for both in zip(asked, texts, strict=True)]
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    with torch.no_grad(), one.language_model.use("generator"):
        return torch.cat([one.score(batch)[0].cpu() for batch in batches])


def reference(s: Sides, part: str) -> Answers:
    """What the reference does."""
    texts = by_transformers(s.reference, s.prompts)
    if part != PARTS[2]:
        return texts, scored(s.reference, s.prompts, texts)
    found: Answers = ([], torch.empty(0))
    for number, of_question in enumerate(s.questions):
        proposals = list(dict.fromkeys(texts[number * s.documents : (number + 1) * s.documents]))
        pairs = [(prompt, text) for text in proposals for prompt in of_question]
        log_p = scored(s.reference, *(list(values) for values in zip(*pairs, strict=True)))
        found = found[0] + proposals, torch.cat([found[1], log_p])
    return found


def ours(s: Sides, part: str) -> Answers:
    """What the library does."""
    if part != PARTS[2]:
        texts, log_p = s.ours.complete_scored(s.prompts)
        return texts, torch.tensor(log_p)
    found = s.ours.complete_and_compare(s.questions)
    return [text for texts, _ in found for text in texts], torch.cat([log_p.flatten() for _, log_p in found])


# -- cases -----------------------------------------------------------------------------------------------------


def check(options: Options, s: Sides, part: str) -> None:
    """Equal answers in float32; in the precision that is timed, equal scores of the same answers, to rounding.

    The controls are answers to the prompts without their last tokens, and scores that are off by ten nats.
    """
    exact = Sides(*(generator(options, "float32", s.ours.config.max_new_tokens) for _ in range(2)), s.prompts)
    exact = replace(
        exact, documents=s.documents, prompts=s.prompts[: max(BATCH, s.documents) // s.documents * s.documents]
    )
    texts, log_p = reference(exact, part)
    other = ours(replace(exact, prompts=[prompt[:-1] for prompt in exact.prompts]), part)
    # Random weights of a large vocabulary may say nothing that is text, whatever the prompt: then the log-probabilities
    # tell answers apart.
    errors = [
        float(x != texts) + (float((y - log_p).abs().max()) if len(y) == len(log_p) else 1.0)
        for x, y in (ours(exact, part), other)
    ]
    agree(part, *errors, tolerance=1e-3)
    few = s.prompts[:2]
    texts, log_probs = s.ours.complete_scored(few)
    again = scored(s.reference, few, texts)
    error, control = (float((torch.tensor(log_probs) - x).abs().max()) for x in (again, again + 10))
    agree(part, error, control, tolerance=1e-3 if options.dtype == torch.float32 else 2.0)


def build(options: Options, part: str, target: float | None = None) -> Case:
    """One part on the shape of the options."""
    s = sides(options, part)
    model = s.ours.language_model
    new_tokens, tokens = s.ours.config.max_new_tokens, [len(prompt) for prompt in s.prompts]
    flops = sum(reading_flops(shape_of(model), n) + writing_flops(shape_of(model), n, new_tokens) for n in tokens)
    asked = f"{len(s.questions)} x {s.documents} prompts" if s.documents > 1 else f"{len(tokens)} prompts"
    return Case(
        path=part,
        shape=f"{options.shape or 'tiny'}, {asked} of {min(tokens)} to {max(tokens)}, {new_tokens} new tokens",
        rival=lambda: reference(s, part),
        ours=lambda: ours(s, part),
        check=lambda: check(options, s, part),
        flops=float(flops),
        dtype=options.dtype,
        target=target,
        long=options.shape not in (None, "tiny"),
    )


MAKES = [
    Make(lambda o: build(o, PARTS[0], 1.8)),
    Make(lambda o: build(o, PARTS[1]), quick=False),
    Make(lambda o: build(o, PARTS[2]), quick=False),
]

if __name__ == "__main__":
    raise SystemExit(main(str(__doc__), MAKES))
