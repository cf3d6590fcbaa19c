"""E-step, log p(y | x, d) of given answers.

    python -m benchmarks.e_score [--device cuda] [--shape smollm2|qwen2.5-0.5b|qwen2.5-7b] [--json] [--quick]

Rival: logits of every token over the whole vocabulary, a shifted copy, cross-entropy; rows in file order, padded to
the longest of eight. Ours: rows by token budget, the head on answer tokens only.
"""

from benchmarks import rivals
from benchmarks.setting import CONFIGS, Lengths, Pipeline, agree, answer_rows, lengths, load, pipeline, small_qwen
from benchmarks.timing import Case, Make, Options, main
from generator.answer_sequences import AnswerSequence
from rag.planning.flops import causal_pairs, forward_flops, head_flops


def build(options: Options, vocabulary: int, target: float | None, memory_target: float | None) -> Case:
    """Eight rows of about 448 tokens each, for every question."""
    config = CONFIGS[options.shape]() if options.shape else small_qwen(vocabulary)
    model = load(options, config)
    p = pipeline(model, questions=1, row=lengths(options, Lengths(0, 440)).row)
    rows = answer_rows(p, 8)
    tokens = [len(row.input_ids) for row in rows]
    answers = sum(len(row.answer_ids) for row in rows)
    flops = forward_flops(p.shape, sum(tokens), causal_pairs(tokens)) + head_flops(p.shape, answers)
    return Case(
        path="E-score",
        shape=f"{options.shape or 'small'}, V = {config.vocab_size:,}, 8 rows of {max(tokens)}",
        rival=lambda: rivals.log_probs(model, rows),
        ours=lambda: p.generator.log_probs(rows),
        check=lambda: check(p, rows),
        flops=flops,
        dtype=options.dtype,
        target=target,
        memory_target=memory_target,
        floor_target=0.65 if options.shape == "smollm2" else None,
    )


def check(p: Pipeline, rows: list[AnswerSequence]) -> None:
    """Sums over the same tokens; the control leaves the last one out."""
    expected = rivals.log_probs(p.model, rows).cpu()
    ours = p.generator.log_probs(rows)
    shorter = [AnswerSequence(row.prompt_ids, row.answer_ids[:-1]) for row in rows]
    control = p.generator.log_probs(shorter)
    agree("E-score", *(float((x - expected).abs().max()) for x in (ours, control)), tolerance=0.3)


MAKES = [
    Make(lambda o: build(o, 32000, 1.9, 3.0)),
    Make(lambda o: build(o, 4096, None, None), quick=False, with_shape=False),
]

if __name__ == "__main__":
    raise SystemExit(main(str(__doc__), MAKES))
