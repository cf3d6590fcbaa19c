"""What fine-tuning destroys: general abilities, and the distance from the base model.

SelfAug (arXiv 2509.03934) explains forgetting by a shift of the model's distribution and cures it by holding the
distribution over *input* tokens. So both are measured here: accuracy on tasks that have nothing to do with
retrieval, and the KL divergence between base and tuned model on the prompts of those tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from generator.generator import Generator
from generator.language_model import BASE
from generator.prompts import render_chat
from generator.rows import pad_right
from indexes.batching import token_budget_batches
from rag.pocket.abilities import Exercise
from training.losses import selfaug_loss, selfaug_positions


@dataclass(frozen=True)
class Forgetting:
    """What is left of the base model."""

    right: list[float]
    """1 or 0 for each exercise, in the order given."""
    kl_drift: float
    """Mean KL(base || tuned) per input token of the exercises' prompts, nats."""

    @property
    def general(self) -> float:
        """Share of exercises solved."""
        return sum(self.right) / len(self.right)


def measure_forgetting(generator: Generator, exercises: Sequence[Exercise]) -> Forgetting:
    """Let the tuned generator do exercises that ask for general abilities.

    Args:
        generator: With its adapter as trained so far.
        exercises: What to solve; an answer counts when it is exactly the expected text.
    """
    prompts = [render_chat(generator.language_model.tokenizer, e.prompt) for e in exercises]
    answers = generator.complete(prompts)
    right = [float(answer == e.answer) for answer, e in zip(answers, exercises, strict=True)]
    return Forgetting(right, kl_drift(generator, prompts))


@torch.no_grad()
def kl_drift(generator: Generator, prompts: Sequence[list[int]]) -> float:
    """Mean KL(base || tuned) over the input tokens of `prompts`, averaged per prompt and then over prompts, nats."""
    model, total = generator.language_model, 0.0
    for batch in token_budget_batches([len(p) for p in prompts], generator.max_tokens_per_batch):
        input_ids_BT, lengths_B = pad_right([prompts[i] for i in batch], model.end_of_answer_id, model.device)
        rows_N, positions_N, weights_N = selfaug_positions(
            lengths_B, torch.ones(len(batch), device=model.device), include_last=True
        )
        with model.use("generator"):
            tuned_NH = model.hidden(input_ids_BT, None)[rows_N, positions_N]
        with model.use(BASE):
            base_NH = model.hidden(input_ids_BT, None)[rows_N, positions_N]
        total += float(selfaug_loss(tuned_NH, base_NH, weights_N, model.head))
    return total / len(prompts)
