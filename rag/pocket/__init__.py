"""The pocket models: a language model and an encoder small enough to live inside the package.

They make `rag demo` and the tests of the whole road work with no model hub. How they were made is said in the
model cards beside them; the scripts are in `examples/pocket/`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexes.errors import ResourceError

if TYPE_CHECKING:
    from indexes.encoder import Encoder

POCKET = "pocket"


def base_path(base: str | Path) -> str | Path:
    """`"pocket"` to the folder of the embedded language model; anything else unchanged."""
    return embedded("base") if str(base) == POCKET else base


def load_encoder(encoder: str | Path, **settings: Any) -> "Encoder":
    """An encoder by name or folder; `"pocket"` is the embedded one and keeps that name in the index's manifest.

    Args:
        encoder: Hub name, folder, or "pocket".
        settings: As `Encoder.from_pretrained` takes them.
    """
    from indexes.encoder import Encoder

    if str(encoder) != POCKET:
        return Encoder.from_pretrained(encoder, **settings)
    loaded = Encoder.from_pretrained(embedded("encoder"), **settings)
    loaded.name = POCKET  # a path inside site-packages would mean nothing on another machine
    return loaded


def embedded(name: str) -> Path:
    """Folder of the embedded `"base"` or `"encoder"`."""
    folder = Path(__file__).parent / name
    if not folder.is_dir():
        raise ResourceError(
            f"The embedded {name} must be in {folder}; it is missing. Reinstall the package, or name a model."
        )
    return folder
