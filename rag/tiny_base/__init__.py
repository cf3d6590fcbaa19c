"""The tiny models: a language model and an encoder small enough to be shipped inside the package.

They make `rag demo` and the tests of the whole pipeline work without a model hub. The encoder is in
`indexes/tiny_encoder`. How both were made is said in their model cards; the scripts are in `examples/tiny_models/`.
"""

from pathlib import Path

from indexes.named_models import is_named
from indexes.tiny_encoder import TINY, embedded


def base_path(base: str | Path) -> str | Path:
    """`"tiny"` to the folder of the embedded language model, a base by name to its folder; anything else unchanged.

    A base by name is fetched if it is not there, and unpacked.

    Raises:
        MismatchError: The files of the model by name are not those that were published.
        ResourceError: The embedded model was not installed, or the model by name cannot be fetched.
        UsageError: It is the name of an encoder.
    """
    if str(base) == TINY:
        return embedded(Path(__file__).parent / "base", "a model")
    if not is_named(base):
        return base
    from generator.unpacked_models import base_folder

    return base_folder(str(base))
