"""Real weights for a shape: a Hugging Face folder, a GGUF file, or a model by name such as "smollm2".

Reading a GGUF file needs the extra `gguf`; a model by name is taken from the cache (`rag models get smollm2`).
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from generator.model_names import GGUF_SUFFIX
from generator.model_source import ModelSource, find_source
from indexes.named_models import is_named
from rag import models
from rag.tiny_base import base_path


def missing_weights(weights: str) -> str | None:
    """Why these weights cannot be read here; None if they can.

    Args:
        weights: A folder, a .gguf file, or the name of a model.
    """
    if is_named(weights) and not models.is_cached(weights):
        return f"the model {weights!r} is not in the cache (rag models get {weights})."
    if not is_named(weights) and not Path(weights).exists():
        return f"there are no weights at {weights!r}."
    reads_gguf = is_named(weights) or weights.lower().endswith(GGUF_SUFFIX)
    if reads_gguf and not importlib.util.find_spec("gguf"):
        return "the package 'gguf', which reads its weights, is not installed."
    return None


def source(weights: str) -> ModelSource:
    """Where these weights are, for the library."""
    return find_source(base_path(weights))


def read_model(weights: str, dtype: torch.dtype) -> PreTrainedModel:
    """A causal LM of transformers with these weights."""
    found = source(weights)
    return found.model(found.config(), dtype=dtype)


def read_tokenizer(weights: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside them."""
    return source(weights).tokenizer()


@torch.no_grad()
def load_weights(model: Any, weights: str) -> None:
    """Replace the weights of a `LanguageModel`'s base; shapes must be the same."""
    expected = model.base_weights()
    found = read_model(weights, torch.float32).state_dict()
    if missing := sorted(expected.keys() - found.keys()):
        raise KeyError(f"{weights!r} must have the weights of the base; it has no {missing[0]!r}.")
    for name, weight in expected.items():
        weight.copy_(found[name])
