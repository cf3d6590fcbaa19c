"""General abilities are counted exactly, and the drift is the KL of full distributions."""

import pytest
import torch
from conftest import shake_adapters, tiny_language_model

from generator.generator import Generator
from generator.language_model import LanguageModel
from generator.prompts import render_chat
from rag.forgetting import kl_drift, measure_forgetting
from rag.pocket.abilities import Exercise

PROMPTS = ["Repeat: abc", "What is 2 + 2?", "Sort these: 3 1 2, please."]


def test_an_untrained_model_has_not_moved() -> None:
    model = tiny_language_model()
    prompts = [render_chat(model.tokenizer, text) for text in PROMPTS]
    assert kl_drift(Generator(model), prompts) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("budget", [16384, 20])
def test_the_drift_is_the_mean_kl_of_the_next_token(language_model: LanguageModel, budget: int) -> None:
    prompts = [render_chat(language_model.tokenizer, text) for text in PROMPTS]
    expected = []
    for ids in prompts:
        log_p = {}
        for role in ("base", "generator"):
            with torch.no_grad(), language_model.use(role):
                log_p[role] = language_model.base_model(torch.tensor([ids])).logits[0].log_softmax(-1)
        kl = torch.nn.functional.kl_div(log_p["generator"], log_p["base"], log_target=True, reduction="none").sum(-1)
        expected.append(float(kl.mean()))
    found = kl_drift(Generator(language_model, max_tokens_per_batch=budget), prompts)
    assert found == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert found > 0.01


def test_an_exercise_counts_when_the_answer_is_exactly_right() -> None:
    model = tiny_language_model()
    shake_adapters(model)
    generator = Generator(model)
    said = generator.complete([render_chat(model.tokenizer, text) for text in PROMPTS])
    tasks = [Exercise("any", PROMPTS[0], said[0]), Exercise("any", PROMPTS[1], said[1] + "x")]
    result = measure_forgetting(generator, tasks)
    assert result.right == [1.0, 0.0]
    assert result.general == 0.5
    assert result.kl_drift > 0
