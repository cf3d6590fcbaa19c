"""The encoder "tiny": a static embedding that is small enough to be part of the package.

The model card beside it describes how it was trained; the script is `examples/tiny_models/pretrain.py`.
"""

from pathlib import Path

from indexes import model_cache
from indexes.errors import ResourceError
from indexes.named_models import is_named

TINY = "tiny"


def encoder_path(encoder: str | Path) -> str | Path:
    """The folder of the built-in encoder for "tiny", of an encoder by name in the cache; anything else unchanged.

    An encoder by name is fetched if it is not there.

    Raises:
        MismatchError: The files of the encoder by name are not those that were published.
        ResourceError: The built-in encoder was not installed, or the encoder by name cannot be fetched.
        UsageError: It is the name of a base model.
    """
    if str(encoder) == TINY:
        return embedded(Path(__file__).parent / "encoder", "an encoder")
    return model_cache.path(str(encoder), "encoder") if is_named(encoder) else encoder


def is_portable_name(name: object) -> bool:
    """Whether the name of a model means the same on every machine, whatever folders there are: "tiny" or by name."""
    return str(name) == TINY or is_named(name)


def embedded(folder: Path, kind: str) -> Path:
    """The folder of a model inside this package, after checking that it exists.

    Args:
        folder: Named "encoder" or "base".
        kind: What a user can name instead, such as "an encoder".

    Raises:
        ResourceError: It was not installed.
    """
    if not folder.is_dir():
        raise ResourceError(
            f"The built-in {folder.name} must be in {folder}, but it is missing. Reinstall the package, or name {kind}."
        )
    return folder
