"""Models by name that are published as GGUF files, unpacked once into the cache as safetensors.

Reading a GGUF file takes many times as long as reading the same weights from safetensors: of SmolLM2-135M half a minute
of processor time in place of a second. The copy is in float32, which loses nothing, and is made again for every version
of transformers, whose reading of the file it is.
"""

import logging
from importlib.metadata import version
from pathlib import Path

import torch

from generator.model_names import GGUF_SUFFIX
from generator.model_source import find_source
from indexes import model_cache
from indexes.named_models import named_model

logger = logging.getLogger(__name__)

READING = 1
"""Raised when this library reads GGUF files in another way, so that copies are made again."""


def base_folder(name: str) -> Path:
    """What to open for a base by name: its folder, or that of its unpacked copy.

    Raises:
        MismatchError: Files in the cache have changed.
        ResourceError: It cannot be fetched, unpacked or written, or the extra ``gguf`` is missing.
        UsageError: No base has this name.
    """
    if not named_model(name, "base").path.endswith(GGUF_SUFFIX):
        return model_cache.path(name, "base")
    what = f"unpacked-{READING}-{version('transformers')}"
    return model_cache.derived(name, what, lambda folder: _unpack(model_cache.path(name, "base"), folder))


def _unpack(path: Path, folder: Path) -> None:
    logger.warning("unpacking %s, which is done once", path.name)
    source = find_source(path)
    try:
        config = source.config()
        source.tokenizer().save_pretrained(folder)
        source.model(config, dtype=torch.float32).save_pretrained(folder)
    except source.errors as error:
        raise source.not_loaded(error) from error
