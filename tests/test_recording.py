"""Scores from the generating pass are those of a pass of their own, and the prompt is read once."""

import pytest
import torch
from tiny_models import PASSAGES, randomize_adapters, tiny_language_model

from generator.configs import DecodingConfig
from generator.generator import Generator
from generator.recording import recording

QUESTIONS = ["who wrote Hamlet?", "the capital of France", "who?", "which river flows into the Black Sea?"]
READ = [PASSAGES[:2], PASSAGES[3:4], [], PASSAGES[5:8]]


def make(temperature: float, top_p: float = 1.0, tokens: int = 40) -> Generator:
    """Half of its answers end: the end of the answer is made likely."""
    model = tiny_language_model()
    randomize_adapters(model)
    with torch.no_grad():
        head = model.base_model.get_output_embeddings()
        head.weight[model.end_of_answer_id] *= 3
    config = DecodingConfig(max_new_tokens=tokens, temperature=temperature, top_p=top_p)
    return Generator(model, config=config)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.7, 1.0), (0.8, 0.7)])
def test_recorded_scores_are_those_of_temperature_one(temperature: float, top_p: float) -> None:
    generator = make(temperature, top_p)
    torch.manual_seed(3)
    prompts = [generator.prompt_ids(q, p) for q, p in zip(QUESTIONS * 4, READ * 4, strict=True)]
    with recording() as recorded:
        generator.complete(prompts)
    assert recorded, "some answer must have come to its end"
    end = generator.language_model.end_of_answer_id
    for key, value in recorded.items():
        prompt = next(p for p in prompts if list(key[: len(p)]) == p)
        ids = torch.tensor([[*key, end]])
        with generator.language_model.use("generator"), torch.no_grad():
            log_p = generator.language_model.base_model(input_ids=ids).logits.float().log_softmax(-1)
        expected = sum(float(log_p[0, i - 1, ids[0, i]]) for i in range(len(prompt), ids.shape[1]))
        assert value == pytest.approx(expected, abs=1e-4)


def test_nothing_is_recorded_outside_or_of_answers_that_were_cut_off() -> None:
    generator = make(0.0, tokens=1)
    prompts = [generator.prompt_ids(q, p) for q, p in zip(QUESTIONS, READ, strict=True)]
    with recording() as recorded:
        generator.complete(prompts)
    assert all(list(key) in prompts for key in recorded), "only an answer of no token ends within one"
    before = dict(recorded)
    generator.complete(prompts)
    assert recorded == before
