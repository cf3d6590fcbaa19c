"""The encoder "tiny": a static embedding small enough to be shipped inside the package.

How it was made is said in the model card beside it; the script is `examples/tiny_models/pretrain.py`.
"""

from pathlib import Path

from indexes.errors import ResourceError

TINY = "tiny"


def encoder_path(encoder: str | Path) -> str | Path:
    """`"tiny"` to the folder of the embedded encoder; anything else unchanged.

    Raises:
        ResourceError: The embedded encoder was not installed.
    """
    return embedded(Path(__file__).parent / "encoder", "an encoder") if str(encoder) == TINY else encoder


def embedded(folder: Path, kind: str) -> Path:
    """The folder of a model inside this package, once it is known to be there.

    Args:
        folder: Called as the model is: "encoder" or "base".
        kind: What a user can name in its place, such as "an encoder".

    Raises:
        ResourceError: It was not installed.
    """
    if not folder.is_dir():
        raise ResourceError(
            f"The embedded {folder.name} must be in {folder}, but it is missing. Reinstall the package, or name {kind}."
        )
    return folder
