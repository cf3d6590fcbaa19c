"""The pocket models: a language model and an encoder small enough to live inside the package.

They make `rag demo` and the tests of the whole road work with no model hub. How they were made is said in the
model cards beside them; the scripts are in `examples/pocket/`.
"""

from pathlib import Path

from indexes.errors import ResourceError

POCKET = "pocket"


def base_path(base: str | Path) -> str | Path:
    """`"pocket"` to the folder of the embedded language model; anything else unchanged."""
    return _embedded("base") if str(base) == POCKET else base


def encoder_path(encoder: str | Path) -> str | Path:
    """`"pocket"` to the folder of the embedded encoder; anything else unchanged."""
    return _embedded("encoder") if str(encoder) == POCKET else encoder


def _embedded(name: str) -> Path:
    folder = Path(__file__).parent / name
    if not folder.is_dir():
        raise ResourceError(
            f"The embedded {name} must be in {folder}; it is missing. Reinstall the package, or name a model."
        )
    return folder
