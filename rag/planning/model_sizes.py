"""Sizes of the base and of the encoder, from their configs; no weights are read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generator.base_config import choose_context, stated_context, text_config
from generator.model_source import ModelSource, find_source
from indexes.errors import ResourceError, UsageError
from indexes.named_models import nearest
from indexes.remote_code import code_refused, is_refusal
from indexes.tiny_encoder import encoder_path
from rag.planning.flops import ModelShape
from rag.tiny_base import base_path

_DECODER_SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")
_ENCODER_SIZES = (
    ("hidden_size",),
    ("intermediate_size", "hidden_dim", "d_ff", "n_inner", "d_inner"),
    ("num_hidden_layers",),
)
"""Hidden size, intermediate size and number of layers; DistilBERT, T5, Nomic and XLNet have their own names for the
second."""


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """Sizes of the encoder; without layers it is a table of word vectors."""

    dimension: int
    layers: int = 0
    intermediate: int = 0
    parameters: int = 0

    def flops(self, tokens: int) -> int:
        """Operations for one passage of this many tokens."""
        body = self.layers * (4 * self.dimension**2 + 2 * self.dimension * self.intermediate)
        return 2 * body * tokens + 4 * self.layers * self.dimension * tokens**2

    def bytes(self, tokens: int, batch: int = 256) -> int:
        """Activations within one layer for a batch of passages, float32."""
        return 4 * batch * tokens * (2 * self.intermediate + 6 * self.dimension) if self.layers else 0


def base_shape(
    base: str,
    *,
    revision: str | None = None,
    rank: int = 16,
    context_length: int | None = None,
    trust_remote_code: bool = False,
) -> tuple[ModelShape, int]:
    """The base's sizes and its context, from its config.json (and its tokenizer, where that names no context).

    Of a GGUF file they come from its metadata; one on the Hub is downloaded whole.

    Args:
        base: A folder, a name on the Hub, or a GGUF file.
        revision: Of the repository on the Hub.
        rank: Of the LoRA adapters.
        context_length: The context to use, in tokens; None takes the model's.
        trust_remote_code: Run Python code that is part of the model's repository.

    Raises:
        ResourceError: There is no such model, or it has code of its own that may not run.
        UsageError: A model of another kind, or a context that is longer than the model's.
    """
    source = find_source(base_path(base), revision=revision, trust_remote_code=trust_remote_code)
    config = _base_config(source)
    text = text_config(config)
    if missing := [name for name in _DECODER_SIZES if not getattr(text, name, None)]:
        raise UsageError(
            f"A plan is made for decoders with gated feed-forward layers (Llama, Qwen, Mistral, Gemma); the config of "
            f"{base!r} ({config.model_type}) has no {missing}."
        )
    tokenizer = None if stated_context(config) else _tokenizer(source)
    return ModelShape.of(config, rank=rank), choose_context(config, tokenizer, context_length)


def _base_config(source: ModelSource) -> Any:
    try:
        return source.config()
    except ResourceError:
        raise
    except source.errors as error:
        if is_refusal(error):
            raise code_refused("The base", source.name) from error
        if source.file is not None:
            raise source.not_loaded(error) from error
        raise ResourceError(
            f"A causal language model's config.json must be found at {source.name!r}; reading it failed: "
            f"{(str(error).strip().splitlines() or ['no reason given'])[0]} Give a Hub name that this machine can "
            f"reach, a local folder or a GGUF file; weights are not read.{nearest(source.name)}"
        ) from error


def _tokenizer(source: ModelSource) -> Any:
    """The base's tokenizer, or None where it is not available: a plan needs no more than the config."""
    try:
        return source.tokenizer()
    except source.errors:
        return None


def planned_dtype(dtype: str, device: str | None, quantization: str | None) -> tuple[str, str]:
    """Device and dtype (or quantization) that loading the base would choose.

    Raises:
        UsageError: Unknown name.
    """
    from generator.language_model import best_device, resolve_dtype

    device = device or best_device()
    name = dtype if dtype == "mixed" else str(resolve_dtype(dtype, device)).removeprefix("torch.")
    if quantization not in (None, "4bit", "8bit"):
        raise UsageError(f"quantization must be None, '4bit' or '8bit', but got {quantization!r}.")
    return device, quantization or name


def encoder_shape(encoder: str, *, trust_remote_code: bool = False) -> EncoderShape:
    """The encoder's sizes, from its config, or from the header of its table of word vectors.

    Args:
        encoder: A folder, a name on the Hub, or "tiny".
        trust_remote_code: Run Python code that is part of the encoder's repository.

    Raises:
        ResourceError: There is no such encoder, or it has code of its own that may not run.
        UsageError: Its config lacks a size.
    """
    from transformers import AutoConfig

    folder = Path(encoder_path(encoder))
    if (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        return _word_vectors(folder)
    try:
        config: Any = AutoConfig.from_pretrained(encoder_path(encoder), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        if is_refusal(error):
            raise code_refused("The encoder", encoder) from error
        raise ResourceError(
            f"An encoder's config.json must be found at {encoder!r}; there is none that can be read. Give a Hub name "
            f'that this machine can reach, a local folder, or "tiny".{nearest(encoder)}'
        ) from error
    H, ffn, layers = (_encoder_size(config, encoder, names) for names in _ENCODER_SIZES)
    parameters = layers * (4 * H**2 + 2 * H * ffn) + config.vocab_size * H
    if (folder / "model.safetensors").is_file():
        parameters = sum(map(math.prod, _stored_shapes(folder)))
    return EncoderShape(dimension=H, layers=layers, intermediate=ffn, parameters=parameters)


def _encoder_size(config: Any, encoder: str, names: Sequence[str]) -> int:
    for name in names:
        if isinstance(value := getattr(config, name, None), int):
            return value
    raise UsageError(
        f"A plan needs the sizes of the encoder; the config of {encoder!r} ({config.model_type}) has none of "
        f"{list(names)}. Plan with another encoder of its size."
    )


def _word_vectors(folder: Path) -> EncoderShape:
    words, dimension = max(_stored_shapes(folder), key=math.prod)
    return EncoderShape(dimension=dimension, parameters=words * dimension)


def _stored_shapes(folder: Path) -> list[Sequence[int]]:
    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), framework="np") as file:
        return [file.get_slice(name).get_shape() for name in file.keys()]
