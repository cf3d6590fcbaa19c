"""Memory formulas: literal numbers derived by hand, and what autograd and a real tiny model really hold."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_language_model
from torch.profiler import ProfilerActivity, profile

from generator.answer_sequences import AnswerSequence
from generator.configs import AdapterConfig
from generator.generator import Generator
from generator.recomputation import Recomputation
from rag.planning.flops import ModelShape, QuestionShape
from rag.planning.training_memory import (
    PRECISIONS,
    StepMemory,
    adapter_bytes,
    answer_bytes,
    base_bytes,
    block_bytes,
    cache_bytes,
    e_sample_bytes,
    e_score_bytes,
    kept_bytes,
    kl_bytes,
    m_generator_bytes,
    m_selector_bytes,
    optimizer_bytes,
)

SHAPE = ModelShape(hidden=10, layers=2, intermediate=30, heads=4, kv_heads=2, head_dim=3, vocabulary=100, rank=5)
QUESTION = QuestionShape(
    num_candidates=6, num_selected=3, num_permutations=4, prompt=70, sequence=50, answer=7, choice=2
)
FLOAT32 = PRECISIONS["float32"]


def test_bytes_that_a_block_keeps_per_token() -> None:
    """q = 4 x 3 = 12, k = 2 x 3 = 6, H = 10, I = 30, r = 5.

    float32: 4 (2H + 2q + 2k + 2I + 7r) + 4 (4 heads + 2 norms) = 4 (20 + 24 + 12 + 60 + 35) + 24 = 628.
    bfloat16: (4 + 2) x 2H + 2 (2q + 2k + 2I) + 4 x 7r + 24 = 120 + 192 + 140 + 24 = 476.
    mixed: 4 x 2H + 2 (2q + 2k + 2I) + 2 x 7r + 24 = 80 + 192 + 70 + 24 = 366.
    4bit: every adapter keeps a float32 copy of its input besides, 4 (5H + q + I) = 368.
    Under a mask, keys and values are counted elsewhere: 4 x 12 = 48 less. As a matrix of 50 keys: 4 x 4 x 50 more.
    """
    precisions = ("float32", "bfloat16", "mixed", "4bit")
    assert [block_bytes(SHAPE, PRECISIONS[name]) for name in precisions] == [628, 476, 366, 844]
    assert block_bytes(SHAPE, FLOAT32, masked=True) == 580
    assert block_bytes(SHAPE, FLOAT32, stored_attention=50) == 1428


def test_bytes_that_are_always_in_use() -> None:
    """Body: 2 layers x (10x12 + 2 x 10x6 + 12x10 + 3 x 10x30) = 2520 weights; embedding and head 1000 each.

    One adapter: 2 layers x rank 5 x (22 + 2 x 16 + 22 + 3 x 40) = 1960 weights.
    """
    assert (SHAPE.body_parameters, SHAPE.parameters, SHAPE.adapter_parameters) == (2520, 4520, 1960)
    assert base_bytes(SHAPE, FLOAT32) == 18080
    assert base_bytes(replace(SHAPE, tied=True), PRECISIONS["bfloat16"]) == 7040
    assert base_bytes(SHAPE, PRECISIONS["4bit"]) == 4000 + 2520 * 9 / 16 + 0.5  # 1417.5 is rounded to even
    assert adapter_bytes(SHAPE) == 15680
    assert (optimizer_bytes(SHAPE), optimizer_bytes(SHAPE, 1)) == (47040, 23520)
    assert cache_bytes(SHAPE, PRECISIONS["bfloat16"], 7) == 7 * 2 * 2 * 6 * 2


def test_bytes_of_logits() -> None:
    """C x V twice; L x V x 4 floats in training, 2 in scoring, and the head's own where it is bfloat16."""
    assert kl_bytes(SHAPE, FLOAT32, 16) == 16 * 100 * 8
    assert kl_bytes(SHAPE, PRECISIONS["bfloat16"], 16) == 16 * 100 * 4
    assert answer_bytes(SHAPE, FLOAT32, 7, learning=True) == 7 * 100 * 16
    assert answer_bytes(SHAPE, PRECISIONS["bfloat16"], 7, learning=False) == 7 * 100 * 10


def test_bytes_of_the_generator_step() -> None:
    """Four sequences of 50 tokens, all aligned: 2 x 200 x 628 bytes kept, and 4 x 200 x 10 numbers of hidden states.

    On top either what a block's backward pass takes, 4 x 200 x (3 x 30 + 10), or logits: 4 x 28 x 100 floats of the 28
    answer tokens, or those once and a chunk of the KL, 28 x 100 x 4 + 128 x 100 x 8.
    Checkpointed: 2 x 200 x 10 numbers kept, and one block again beside the gradients.
    """
    phase = m_generator_bytes(SHAPE, FLOAT32, QUESTION, sequences=4, aligned_sequences=4, chunk=128)
    assert phase == StepMemory(kept=251_200 + 32_000, logits=11_200 + 102_400, passing=80_000)
    assert phase.peak == 396_800
    bare = m_generator_bytes(SHAPE, FLOAT32, QUESTION, sequences=4, aligned_sequences=0)
    assert bare == StepMemory(kept=251_200 + 8_000, logits=44_800, passing=80_000)
    again = m_generator_bytes(SHAPE, FLOAT32, QUESTION, sequences=4, aligned_sequences=4, checkpointing=True)
    assert (again.kept, again.passing) == (16_000 + 32_000, 80_000 + 200 * 628)


def test_bytes_of_the_selector_step() -> None:
    """A prompt of 70 tokens and 4 x (3 - 1) x 2 = 16 tokens of replies.

    Prompt: 2 x 70 x 628. Replies: in each of 2 layers 16 x 580, 2 x 12 x 86 repeated keys and values of 4 bytes, and
    one mask of 16 x 86 floats. Backward: 70 x 4 x (3 x 30 + 10).
    """
    phase = m_selector_bytes(SHAPE, FLOAT32, QUESTION)
    assert phase == StepMemory(kept=87_920 + 2 * (9_280 + 8_256) + 5_504, passing=28_000)
    assert m_selector_bytes(SHAPE, FLOAT32, QUESTION, decoding="single_pass").kept == 87_920
    checkpointed = m_selector_bytes(SHAPE, FLOAT32, QUESTION, checkpointing=True)
    assert checkpointed.kept == 2 * 86 * 10 * 4 + 86 * 86 * 4
    assert m_selector_bytes(SHAPE, FLOAT32, QUESTION, questions=3).kept == 3 * phase.kept


def test_e_step_passes_keep_to_their_token_budget() -> None:
    """16384 // 50 = 327 sequences at once; five replies (one too many) of 4 tokens: 16384 // 90 = 182 prompts."""
    few, many = (e_score_bytes(SHAPE, FLOAT32, QUESTION, sequences=sequences) for sequences in (3, 10_000))
    assert few.logits == 3 * 7 * 100 * 8
    assert many.logits == 327 * 7 * 100 * 8
    drawn = e_sample_bytes(SHAPE, FLOAT32, QUESTION, questions=10_000, decoding="autoregressive")
    assert drawn.cache == 182 * 90 * 2 * 2 * 6 * 4
    assert e_sample_bytes(SHAPE, FLOAT32, QUESTION, questions=8, decoding="single_pass").cache == 0


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral", "gemma"])
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_equal_those_of_a_real_model(architecture: str, tied: bool) -> None:
    """All but norms and biases, which have one dimension."""
    model = tiny_language_model(architecture, tie_word_embeddings=tied)
    shape = ModelShape.of(model.base_model.config, rank=3)
    weights = [p for n, p in model.base_model.named_parameters() if "lora_" not in n and p.dim() > 1]
    assert shape.parameters == sum(p.numel() for p in weights)
    assert shape.adapter_parameters == sum(p.numel() for p in model.adapter_parameters("generator").values())
    assert base_bytes(shape, FLOAT32) == sum(p.nbytes for p in weights)


def live_bytes(make: Callable[[], object]) -> int:
    """Bytes that are allocated by a call and not freed while its result exists, as torch's profiler counts them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = make()
    assert result is not None
    return sum(event.self_cpu_memory_usage for event in profiled.events())


@pytest.mark.parametrize(
    ("precision", "checkpointing"),
    [("float32", False), ("mixed", False), ("bfloat16", False), ("float32", True)],
)
def test_kept_bytes_equal_those_of_a_real_pass(
    precision: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 3 %, with the input and the result of the last norm, and the cosines and sines of the positions.

    Nothing learns before the first norm, which keeps its result and not its input.
    """
    monkeypatch.setattr("generator.mixed_precision.multiplies_slowly_in_bfloat16", lambda: False)
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "head_dim": 16}
    model = tiny_language_model("qwen2", **sizes)
    if precision == "mixed":
        model.use_mixed_precision()
    if precision == "bfloat16":
        for parameter in model.adapters.base_parameters():
            parameter.data = parameter.data.bfloat16()
    rows = [AnswerSequence(list(range(5 + i, 150 + i)), [7, 8, 9, 10, 1]) for i in range(4)]
    shape = ModelShape.of(model.base_model.config, rank=model.adapter.r)
    recomputation = Recomputation(model.base_model)

    def read() -> torch.Tensor:
        with nullcontext() if checkpointing else recomputation.forward():
            return Generator(model).forward(rows).hidden_TH

    with model.use("generator"), model.gradient_checkpointing(checkpointing):
        model.train()
        read()
        kept = live_bytes(read)
    tokens = 4 * 150
    expected = kept_bytes(shape, PRECISIONS[precision], tokens, checkpointing=checkpointing)
    residual = PRECISIONS[precision].residual
    expected += tokens * (shape.hidden * (4 + residual) + 2 * shape.head_dim * residual)
    expected -= tokens * shape.hidden * 4 if precision == "bfloat16" else 0
    assert kept == pytest.approx(expected, rel=0.03)


def test_adapter_parameters_grow_with_the_rank() -> None:
    assert replace(SHAPE, rank=10).adapter_parameters == 2 * SHAPE.adapter_parameters
    assert AdapterConfig().r == ModelShape.of(tiny_language_model().base_model.config).rank
