"""Fields of a base model's config, whose names depend on the architecture.

transformers 5.23 maps many of them to common names by the config's `attribute_map` (GPT-2's `n_positions`, MPT's
`n_layers`), but not all of them: asking for `max_position_embeddings` of MPT or Bloom is an AttributeError.
"""

import logging
from typing import Any

from indexes.errors import UsageError

logger = logging.getLogger(__name__)

CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",  # MPT
    "max_sequence_length",
    "seq_length",  # Bloom's first checkpoints
    "context_length",  # RWKV
    "max_target_positions",  # Whisper's decoder
    "model_max_length",  # Baichuan
    "n_ctx",
)
"""How configs call the number of tokens that a model reads, the commonest first."""
DEFAULT_CONTEXT = 2048
"""Tokens of a model that names no limit (ALiBi, state spaces): what Bloom, MPT and Mamba were trained with."""
_NO_LIMIT = 10**9
"""transformers writes `int(1e30)` for the `model_max_length` of a tokenizer that has none."""


def text_config(config: Any) -> Any:
    """The config of the text decoder, where a model reads images or sounds as well."""
    return config.get_text_config(decoder=True)


def stated_context(config: Any, tokenizer: Any = None) -> int | None:
    """Context length that a model states: in its config, else by its tokenizer's `model_max_length`; None: no limit."""
    text = text_config(config)
    for name in CONTEXT_NAMES:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:  # XLNet says -1
            return value
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and 0 < limit < _NO_LIMIT else None


def choose_context(config: Any, tokenizer: Any = None, given: int | None = None) -> int:
    """Tokens that one row may hold.

    Args:
        config: The model's.
        tokenizer: The model's.
        given: What the user asks for; None takes what the model states, or `DEFAULT_CONTEXT` where it states nothing.

    Raises:
        UsageError: More than the model states, or less than one token.
    """
    stated = stated_context(config, tokenizer)
    if given is None:
        if stated is None:
            logger.warning(
                "Neither the config nor the tokenizer of this %s names a context length: rows are cut at %d tokens. "
                "Set context_length to read more or less.",
                config.model_type,
                DEFAULT_CONTEXT,
            )
        return stated or DEFAULT_CONTEXT
    if given < 1 or (stated is not None and given > stated):
        most = "" if stated is None else f" and at most {stated}, which is what the model reads"
        raise UsageError(f"context_length must be at least 1{most}, got {given}.")
    return given
