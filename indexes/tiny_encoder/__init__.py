"""The encoder "tiny": a static embedding that is small enough to be part of the package.

The model card beside it describes how it was trained; the script is `examples/tiny_models/pretrain.py`.
"""

from pathlib import Path

from indexes.errors import ResourceError

TINY = "tiny"


def encoder_path(encoder: str | Path) -> str | Path:
    """The folder of the built-in encoder for "tiny"; anything else unchanged.

    Raises:
        ResourceError: The built-in encoder was not installed.
    """
    return embedded(Path(__file__).parent / "encoder", "an encoder") if str(encoder) == TINY else encoder


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
