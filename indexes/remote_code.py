"""Models that come with Python code of their own, and the option without which it does not run.

transformers and sentence-transformers import such code from the folder or the repository of a model
(`auto_map` in its config.json, the types in its modules.json) when they are called with `trust_remote_code=True`.
transformers 5.23 asks on the terminal if the option is None, so it is always set here.
"""

from collections.abc import Iterable
from typing import Any

from indexes.errors import ResourceError

_DYNAMIC = "transformers_modules"
"""The package into which transformers imports the code of models."""


def uses_remote_code(parts: Iterable[Any]) -> bool:
    """Whether the class of any of these parts of a model is defined by code that comes with the model."""
    return any(type(part).__module__.partition(".")[0] == _DYNAMIC for part in parts)


def is_refusal(error: BaseException) -> bool:
    """Whether a library refused to run the code of a model because it was not allowed to."""
    # Both libraries raise a ValueError whose text names the option.
    return isinstance(error, ValueError) and "trust_remote_code" in str(error)


def code_refused(what: str, name: str) -> ResourceError:
    """The error for a model whose code may not run.

    Args:
        what: Which model, such as "The encoder".
        name: Its folder or name on the hub.
    """
    return ResourceError(
        f"{what} {name!r} comes with Python code of its own, which runs only with trust_remote_code; it is off. "
        "Read the code, and if you trust it, set trust_remote_code=True (--trust_remote_code). An index or a "
        "bundle that records the option does not set it, since a download must not allow its own code."
    )
