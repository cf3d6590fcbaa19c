"""Answers and their log-probabilities: independent references and invariances."""

import pytest
import torch
from tiny_models import ARCHITECTURES, PASSAGES, randomize_adapters, tiny_language_model
from torch.nn import functional as F

from generator.configs import DecodingConfig
from generator.generator import Generator
from indexes.errors import DataError, UsageError

QUESTIONS = ["who wrote Hamlet?", "what is the capital of France, and on which river does it lie?", "O?"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_prob_is_the_cross_entropy_of_the_unpadded_sequence(architecture: str) -> None:
    model = tiny_language_model(architecture)
    randomize_adapters(model)
    generator = Generator(model)
    row = generator.answer_sequence(QUESTIONS[0], PASSAGES[:3], "William Shakespeare")
    ids = torch.tensor([row.input_ids])
    with torch.no_grad(), model.use("generator"):
        logits = model.base_model(input_ids=ids).logits[0].double()
    n = len(row.answer_ids)
    expected = -F.cross_entropy(logits[-n - 1 : -1], ids[0, -n:], reduction="sum")
    assert generator.log_prob(QUESTIONS[0], PASSAGES[:3], "William Shakespeare") == pytest.approx(
        float(expected), abs=1e-4
    )
    assert row.answer_ids[-1] == model.end_of_answer_id


def test_log_probs_do_not_depend_on_batch_or_order(generator: Generator) -> None:
    """Trap 5: padding, batch split and order change nothing."""
    rows = [
        generator.answer_sequence(q, PASSAGES[i : i + 2 + i], a)
        for i, (q, a) in enumerate(zip(QUESTIONS, ["x", "Paris, Seine", "symbol O"], strict=True))
    ]
    together = generator.log_probs(rows)
    alone = torch.tensor([float(generator.log_probs([row])[0]) for row in rows])
    generator.max_tokens_per_batch = max(len(r.input_ids) for r in rows) * 2
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(generator.log_probs(rows[::-1]).flip(0), alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("packs", [True, False])
def test_tokens_read_excludes_padding_and_scores_work_with_autograd(generator: Generator, packs: bool) -> None:
    """And counts what both begin with, the instructions, once where it is read once."""
    generator.language_model.supports_packing = packs
    rows = [
        generator.answer_sequence(QUESTIONS[2], PASSAGES[:1], "a"),
        generator.answer_sequence(QUESTIONS[1], PASSAGES[:3], "bcd"),
    ]
    before = generator.language_model.tokens_read
    scores = generator.log_probs(rows)
    common = next(i for i, (a, b) in enumerate(zip(*(row.input_ids for row in rows), strict=False)) if a != b)
    assert common > 100
    expected = sum(len(row.input_ids) for row in rows) - (common if packs else 0)
    assert generator.language_model.tokens_read - before == expected
    factor = torch.ones(2, requires_grad=True)
    (factor * scores).sum().backward()
    torch.testing.assert_close(factor.grad, scores)


def test_pad_equal_to_eos_changes_nothing(generator: Generator) -> None:
    """Trap 5: masks come from lengths, so an end token inside the row is no padding."""
    tokenizer = generator.language_model.tokenizer
    rows = [
        generator.answer_sequence(QUESTIONS[2], PASSAGES[:1], "a"),
        generator.answer_sequence(QUESTIONS[1], PASSAGES[:3], "bcd"),
    ]
    before = generator.log_probs(rows)
    tokenizer.pad_token = tokenizer.eos_token
    torch.testing.assert_close(generator.log_probs(rows), before)


def test_answers_do_not_depend_on_the_batch(generator: Generator) -> None:
    passages = [PASSAGES[:1], PASSAGES[2:5], PASSAGES[1:9]]
    together = generator.generate(QUESTIONS, passages)
    alone = [generator.generate([q], [p])[0] for q, p in zip(QUESTIONS, passages, strict=True)]
    assert together == alone


def test_greedy_answers_are_the_argmax_of_the_full_model(generator: Generator) -> None:
    model = generator.language_model
    ids = generator._prompt_ids(QUESTIONS[0], PASSAGES[:2], reserve=5)
    new: list[int] = []
    with torch.no_grad(), model.use("generator"):
        while len(new) < 5:
            new.append(int(model.base_model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] in (model.end_of_answer_id, model.tokenizer.eos_token_id):
                break
    expected = model.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert generator.generate([QUESTIONS[0]], [PASSAGES[:2]]) == [expected]


def test_generation_config_of_the_model_is_ignored(generator: Generator) -> None:
    """A repetition penalty in generation_config.json would make "greedy" something else."""
    before = generator.generate(QUESTIONS, [PASSAGES[:2]] * 3)
    generator.language_model.base_model.generation_config.repetition_penalty = 5.0
    assert generator.generate(QUESTIONS, [PASSAGES[:2]] * 3) == before
    assert generator.language_model.base_model.generation_config.repetition_penalty == 5.0


def test_streaming_gives_the_same_answer(generator: Generator) -> None:
    pieces = list(generator.stream(QUESTIONS[0], PASSAGES[:2]))
    assert "".join(pieces).strip() == generator.generate([QUESTIONS[0]], [PASSAGES[:2]])[0]


def test_long_documents_are_cut_and_answers_are_not() -> None:
    model = tiny_language_model(context=900)
    row = Generator(model).answer_sequence("q?", PASSAGES, "an answer of some length")
    assert len(row.input_ids) <= 900
    assert model.tokenizer.decode(row.answer_ids[:-1]) == "an answer of some length"


def test_empty_answer_is_refused(generator: Generator) -> None:
    with pytest.raises(DataError, match="got an empty one"):
        generator.log_prob("q?", PASSAGES[:1], " ")


def test_the_generator_uses_its_own_adapter(generator: Generator) -> None:
    before = generator.log_prob("q?", PASSAGES[:1], "a")
    for parameter in generator.language_model.adapter_parameters("selector").values():
        parameter.data.zero_()
    assert generator.log_prob("q?", PASSAGES[:1], "a") == before
    for parameter in generator.language_model.adapter_parameters("generator").values():
        parameter.data.zero_()
    assert generator.log_prob("q?", PASSAGES[:1], "a") != before


@pytest.mark.parametrize("bad", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}])
def test_config_is_checked(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be"):
        DecodingConfig(**bad)


def test_sampling_is_available(generator: Generator) -> None:
    torch.manual_seed(0)
    sampler = Generator(generator.language_model, config=DecodingConfig(max_new_tokens=8, temperature=5.0))
    assert len({sampler.generate(["q?"], [PASSAGES[:1]])[0] for _ in range(5)}) > 1
