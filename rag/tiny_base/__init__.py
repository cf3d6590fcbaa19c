"""The tiny models: a language model and an encoder small enough to be shipped inside the package.

They make `rag demo` and the tests of the whole pipeline work without a model hub. The encoder is in
`indexes/tiny_encoder`. How both were made is said in their model cards; the scripts are in `examples/tiny_models/`.
"""

from pathlib import Path

from indexes.tiny_encoder import TINY, embedded


def base_path(base: str | Path) -> str | Path:
    """`"tiny"` to the folder of the embedded language model; anything else unchanged.

    Raises:
        ResourceError: The embedded model was not installed.
    """
    return embedded(Path(__file__).parent / "base", "a model") if str(base) == TINY else base
