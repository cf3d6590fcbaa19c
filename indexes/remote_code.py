"""Models that bring Python code of their own, and the option without which it does not run.

transformers and sentence-transformers import such code from the folder or the repository of a model
(`auto_map` in its config.json, the types in its modules.json) when they are called with `trust_remote_code=True`.
transformers 5.23 asks on the terminal where the option is None, so it is always given here.
"""

from collections.abc import Iterable
from typing import Any

from indexes.errors import ResourceError

_DYNAMIC = "transformers_modules"
"""The package that transformers imports the code of models into."""


def uses_remote_code(parts: Iterable[Any]) -> bool:
    """Whether the class of any of these parts of a model came with the model."""
    return any(type(part).__module__.partition(".")[0] == _DYNAMIC for part in parts)


def is_refusal(error: BaseException) -> bool:
    """Whether a library refused to run the code of a model because it was not allowed to."""
    # Both libraries raise a plain ValueError, whose text names the option.
    return isinstance(error, ValueError) and "trust_remote_code" in str(error)


def code_refused(what: str, name: str) -> ResourceError:
    """The error for a model whose code may not run.

    Args:
        what: Which model, such as "The encoder".
        name: Its folder or name on the hub.
    """
    return ResourceError(
        f"{what} {name!r} brings Python code of its own, which runs only where trust_remote_code allows it; it is off. "
        "Read the code, and if you trust it, set trust_remote_code=True (--trust_remote_code). That an index or a "
        "bundle records the option does not set it: what was downloaded cannot speak for its own code."
    )
