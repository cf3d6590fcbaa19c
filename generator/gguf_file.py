"""GGUF files: what one says about its model, read without its weights.

GGUF is the file format of llama.cpp: metadata (sizes, vocabulary, chat template) and tensors, most of them quantized,
in one file; its specification is docs/gguf.md of the ggml project. The package `gguf` reads it: the extra ``gguf``.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from indexes.errors import ResourceError

_MAGIC = b"GGUF"


class GGUFFile:
    """The metadata and the table of tensors of one file.

    Args:
        path: The file.

    Raises:
        ResourceError: The extra ``gguf`` is missing, or the file is not there, is no GGUF file, is damaged, is one of
            several parts, or names no architecture.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fields: dict[str, Any]
        self._fields, tensors = _read(path)
        self.tensors: dict[str, tuple[int, ...]] = {tensor.name: tuple(map(int, tensor.shape)) for tensor in tensors}
        """Shapes by name, the fastest dimension first, as the format has them."""
        self._data = {tensor.name: tensor for tensor in tensors}
        if (parts := self.get("split.count", 1)) > 1:
            raise ResourceError(
                f"A GGUF file must hold the whole model, but {path} is one of {parts} parts. Join them with "
                "llama-gguf-split --merge."
            )
        if "general.architecture" not in self._fields:
            raise ResourceError(
                f"A GGUF file must name its architecture, but {path} does not. Convert the model again."
            )
        self.architecture = str(self.get("general.architecture"))
        """The name of llama.cpp, such as "llama" or "qwen2"."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of the metadata: number, text, truth value, or a list of them."""
        field = self._fields.get(key)
        return default if field is None else _plain(field.contents())

    def length(self, key: str) -> int:
        """How many elements a list of the metadata has, 0 without such a key."""
        field = self._fields.get(key)
        return 0 if field is None else len(field.data)

    def element(self, key: str, index: int) -> Any:
        """One element of a list of the metadata."""
        return _plain(self._fields[key].contents(index))

    def sizes(self) -> Iterator[tuple[str, Any]]:
        """The keys that belong to the architecture, without its name, and their values."""
        prefix = f"{self.architecture}."
        for key in self._fields:
            if key.startswith(prefix):
                yield key.removeprefix(prefix), self.get(key)

    def count(self, name: str) -> int:
        """How many elements a tensor has."""
        return math.prod(self.tensors[name])

    def values(self, name: str) -> np.ndarray:
        """A tensor that is not quantized."""
        return np.asarray(self._data[name].data)


def _plain(value: Any) -> Any:
    """float32 as the shortest number that is stored so: 1e-05 and not 9.999999747378752e-06."""
    if isinstance(value, list):
        return [_plain(element) for element in value]
    return float(str(np.float32(value))) if isinstance(value, float) and np.float32(value) == value else value


def _read(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """Metadata and tensors; the tensors are views of the file and not read."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ResourceError(
            f"Reading {path} needs the extra `gguf`, got no module {error.name or error}. "
            'Install it with: pip install "dro-rag[gguf]"'
        ) from error
    try:
        with path.open("rb") as stream:
            start = stream.read(len(_MAGIC))
    except OSError as error:
        raise ResourceError(f"A GGUF file must be readable, but {path} is not: {error}. Check the path.") from error
    if start != _MAGIC:
        raise ResourceError(
            f"A model in one file must be a GGUF file, but {path} does not begin like one. Give a .gguf file, or a "
            "folder with config.json, tokenizer and weights."
        )
    try:
        reader = GGUFReader(path)
    except Exception as error:  # it checks little itself: whatever numpy and Python find wrong
        raise ResourceError(
            f"A GGUF file must be whole, but {path} ({path.stat().st_size:,} bytes) is damaged or cut off "
            f"({type(error).__name__}: {error}). Fetch it again."
        ) from error
    return dict(reader.fields), list(reader.tensors)
