"""The pocket models: a language model and an encoder small enough to be shipped inside the package.

They make `rag demo` and the tests of the whole pipeline work without a model hub. The encoder is in
`indexes/pocket`. How both were made is said in the model cards beside them; the scripts are in `examples/pocket/`.
"""

from pathlib import Path

from indexes.errors import ResourceError
from indexes.pocket import POCKET


def base_path(base: str | Path) -> str | Path:
    """`"pocket"` to the folder of the embedded language model; anything else unchanged.

    Raises:
        ResourceError: The embedded model was not installed.
    """
    if str(base) != POCKET:
        return base
    folder = Path(__file__).parent / "base"
    if not folder.is_dir():
        raise ResourceError(
            f"The embedded base must be in {folder}, but it is missing. Reinstall the package, or name a model."
        )
    return folder
