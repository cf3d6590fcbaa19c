"""Tokenizer, prompt and length limit of an encoder, from its files and without its weights."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexes.errors import UsageError
from indexes.tiny_encoder import encoder_path

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_MAX_LENGTH = 512
"""Tokens where neither files nor positions limit them."""


def find_tokenizer(encoder: str) -> "Tokenizer | None":
    """The encoder's tokenizer from its folder or the Hub's cache; None where it is not available."""
    from tokenizers import Tokenizer

    file = _find_file(encoder, "tokenizer.json")
    return None if file is None else Tokenizer.from_file(str(file))


def stored_passage_prompt(encoder: str) -> str:
    """What the encoder's configuration puts before a passage, as `Encoder` reads it."""
    from indexes.encoder import own_passage_prompt

    file = _find_file(encoder, "config_sentence_transformers.json")
    prompts = {} if file is None else json.loads(file.read_text(encoding="utf-8")).get("prompts")
    return own_passage_prompt(prompts or {})


def max_length(encoder: str, wanted: int | None = None, *, trust_remote_code: bool = False) -> int:
    """The most tokens that a transformer encoder reads, as `Encoder` chooses it.

    sentence-transformers 6.2 keeps the length in ``tokenizer_config.json`` (`model_max_length`), older releases wrote
    it into ``sentence_bert_config.json``. What ``tokenizer.json`` truncates to is neither: it is what the last call of
    the tokenizer asked for before it was saved.

    Args:
        encoder: A folder or a name on the Hub.
        wanted: What `--max_length` asks for; None takes the encoder's own.
        trust_remote_code: Run Python code that is part of the encoder's repository.

    Raises:
        UsageError: The encoder has fewer positions than are wanted.
    """
    usable, stated_positions = _positions(encoder, trust_remote_code=trust_remote_code)
    if wanted is not None:
        if wanted < 1 or (usable is not None and wanted > usable):
            raise UsageError(
                f"--max_length must be at least 1{f' and at most {usable}' if usable else ''}, the positions that this "
                f"encoder has, but got {wanted}."
            )
        return wanted
    stated = _stated_length(encoder) or min(
        (length for length in (_tokenizer_length(encoder), stated_positions) if length), default=DEFAULT_MAX_LENGTH
    )
    return int(min(stated, usable or stated))


def _positions(encoder: str, *, trust_remote_code: bool) -> tuple[int | None, int | None]:
    """Usable positions, where the model has a table of them, and the config's `max_position_embeddings`, if any."""
    import torch
    from transformers import AutoConfig, AutoModel

    from indexes.encoder import position_limit

    config: Any = AutoConfig.from_pretrained(encoder_path(encoder), trust_remote_code=trust_remote_code)
    stated = getattr(config, "max_position_embeddings", None)
    with torch.device("meta"):  # shapes without numbers
        usable = position_limit(AutoModel.from_config(config, trust_remote_code=trust_remote_code))
    return usable, stated if isinstance(stated, int) and stated > 0 else None  # XLNet writes -1 for no limit


def _stated_length(encoder: str) -> int | None:
    """The length in sentence-transformers' file for the encoder's transformer, under any of the file's names."""
    from sentence_transformers.sentence_transformer.modules import Transformer

    folder = Path(encoder_path(encoder)).expanduser()
    name = str(folder) if folder.is_dir() else encoder
    written: dict[str, Any] = Transformer.load_config(name, local_files_only=True)
    options = (written.get("tokenizer_args") or {}) | (written.get("processor_kwargs") or {})
    stated: int | None = options.get("model_max_length") or written.get("max_seq_length") or None
    return stated


def _tokenizer_length(encoder: str) -> int | None:
    file = _find_file(encoder, "tokenizer_config.json")
    stated: int | None = None if file is None else json.loads(file.read_text(encoding="utf-8")).get("model_max_length")
    return stated


def _find_file(encoder: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    folder = Path(encoder_path(encoder)).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    found = try_to_load_from_cache(encoder, name)
    return Path(found) if isinstance(found, str) else None
