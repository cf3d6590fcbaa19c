"""The encoder "pocket": a static embedding small enough to be shipped inside the package.

How it was made is said in the model card beside it; the script is `examples/pocket/pretrain.py`.
"""

from pathlib import Path

from indexes.errors import ResourceError

POCKET = "pocket"


def encoder_path(encoder: str | Path) -> str | Path:
    """`"pocket"` to the folder of the embedded encoder; anything else unchanged.

    Raises:
        ResourceError: The embedded encoder was not installed.
    """
    if str(encoder) != POCKET:
        return encoder
    folder = Path(__file__).parent / "encoder"
    if not folder.is_dir():
        raise ResourceError(
            f"The embedded encoder must be in {folder}, but it is missing. Reinstall the package, or name an encoder."
        )
    return folder
