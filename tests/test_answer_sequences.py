"""Answers are scored alike whether their sequences are packed or padded, in value and gradient."""

import pytest
import torch
from tiny_models import randomize_adapters, tiny_language_model

from generator.answer_sequences import AnswerSequence, answer_batches, read_sequences
from generator.generator import Generator
from generator.language_model import LanguageModel
from generator.log_probs import answer_positions

QUESTION, PASSAGE = list(range(30, 60)), list(range(70, 95))
SEQUENCES = [
    AnswerSequence([*QUESTION, *PASSAGE, 10], [40, 41, 1]),
    AnswerSequence([20, 21, 22, 23], [42, 1]),
    AnswerSequence([*QUESTION, *PASSAGE, 11, 12], [40, 41, 1]),
    AnswerSequence([*QUESTION, 13, 14, 15], [40, 1]),
    AnswerSequence([*QUESTION, 13, 14, 15], [1]),
]


@pytest.fixture
def model() -> LanguageModel:
    made = tiny_language_model()
    randomize_adapters(made)
    return made


def scored(model: LanguageModel, *, packs: bool) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Log-probabilities, hidden states of the prompts, and the gradient of a weighted sum of both."""
    model.supports_packing = packs
    weights = torch.linspace(0.5, 1.5, sum(len(s.answer_ids) for s in SEQUENCES))
    model.zero_grad()
    with model.use("generator"):
        log_p_B, read = Generator(model).score(SEQUENCES, weights)
        prompts_NH = read.hidden_at(*answer_positions(torch.ones(5, dtype=torch.long), read.prompt_lengths_B - 1))
        (log_p_B.sum() + (prompts_NH * torch.linspace(-1, 1, prompts_NH.numel()).view_as(prompts_NH)).sum()).backward()
    gradients = [p.grad for p in model.adapter_parameters("generator").values() if p.grad is not None]
    return log_p_B.detach(), prompts_NH.detach(), gradients


def test_packed_and_padded_sequences_are_scored_alike(model: LanguageModel) -> None:
    packed, padded = scored(model, packs=True), scored(model, packs=False)
    for one, other in zip(packed[:2], padded[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert len(packed[2]) == len(padded[2]) > 0
    for one, other in zip(packed[2], padded[2], strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm()


def test_what_sequences_begin_with_is_read_once(model: LanguageModel) -> None:
    before = model.tokens_read
    found = Generator(model).log_probs(SEQUENCES)
    assert model.tokens_read - before == 30 + 25 + (1 + 3) + (2 + 3) + (3 + 2) + (3 + 1) + (4 + 2)
    model.supports_packing = False
    torch.testing.assert_close(Generator(model).log_probs(SEQUENCES), found, rtol=1e-4, atol=1e-4)
    changed = [*SEQUENCES[:-1], AnswerSequence([29, *SEQUENCES[-1].prompt_ids[1:]], [1])]
    control = Generator(model).log_probs(changed)
    assert (control[:-1] - found[:-1]).abs().max() < 1e-4 < 0.01 < (control[-1] - found[-1]).abs()


@pytest.mark.parametrize("packs", [True, False])
def test_batches_keep_to_the_budget_and_hold_everything_once(model: LanguageModel, packs: bool) -> None:
    model.supports_packing = packs
    batches = answer_batches(model, SEQUENCES, 130)
    assert sorted(i for batch in batches for i in batch) == [0, 1, 2, 3, 4]
    assert len(batches) > 1
    for batch in batches:
        tokens = [len(SEQUENCES[i]) for i in batch]
        assert (sum(tokens) if packs else max(tokens) * len(batch)) <= 130
    together = next(batch for batch in batches if 0 in batch)
    assert not packs or 2 in together  # they begin with the same 55 tokens
    assert answer_batches(model, [], 10) == []
    assert [len(batch) for batch in answer_batches(model, SEQUENCES, 1)] == [1] * 5  # each is longer than that


def test_sequences_beyond_a_sliding_window_are_padded() -> None:
    model = tiny_language_model("mistral", sliding_window=40)
    assert model.packs(40) and max(map(len, SEQUENCES)) > 40
    with torch.no_grad(), model.use("generator"):
        read = read_sequences(model, SEQUENCES)
        for sequence, places in zip(SEQUENCES, read.places, strict=True):
            alone = model.hidden(torch.tensor([sequence.input_ids]), None)[0]
            torch.testing.assert_close(read.hidden_TH[places], alone, rtol=1e-4, atol=1e-4)
