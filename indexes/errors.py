"""Errors a user can cause, each with the exit code that the command line returns for it.

Every message says three things: what must hold, what was found, and what to do about it.
"""


class RAGError(Exception):
    """Base of all errors that are the input's fault, not the program's."""

    exit_code = 1


class UsageError(RAGError, ValueError):
    """An argument or a configuration value that cannot work (exit code 2)."""

    exit_code = 2


class DataError(RAGError, ValueError):
    """A file, row, passage or question that breaks the format it claims (exit code 3)."""

    exit_code = 3


class MismatchError(RAGError, ValueError):
    """Two artefacts that do not belong together, or one that is damaged (exit code 4)."""

    exit_code = 4


class ResourceError(RAGError, RuntimeError):
    """Something outside the input is missing or exhausted: a model, memory, disk (exit code 5)."""

    exit_code = 5


def check_on_error(on_error: str) -> None:
    """Refuse a policy for broken records other than "raise" and "skip".

    Raises:
        UsageError: It is something else.
    """
    if on_error not in ("raise", "skip"):
        raise UsageError(f'on_error must be "raise" or "skip", got {on_error!r}. Choose one of them.')
