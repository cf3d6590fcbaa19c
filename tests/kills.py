"""A process that dies before any of its file operations, in the process of the test.

Python announces what it is about to do with a file to audit hooks (PEP 578), and an exception that a hook raises stops
it. After the first one all others are stopped too, so that nothing cleans up: as after SIGKILL.
"""

import os
import sys
from collections.abc import Callable
from threading import get_ident

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")


class Killed(BaseException):
    """No code of the project catches it."""


class _Steps:
    """Counts what one thread does to files, and stops it at a step."""

    def __init__(self) -> None:
        self.thread = 0  # of nobody
        self.left = 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.thread != get_ident():
            return
        if event in _CHANGES:
            self._step()
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            self._step()
            if arguments[2] & os.O_TRUNC and isinstance(arguments[0], str | os.PathLike):
                self._step(after=arguments[0])  # opened, with nothing written yet

    def _step(self, after: str | os.PathLike[str] | None = None) -> None:
        self.left -= 1
        if self.left > 0:
            return
        if self.left == 0 and after is not None:
            thread, self.thread = self.thread, 0
            open(after, "wb").close()
            self.thread = thread
        raise Killed


_steps = _Steps()
sys.addaudithook(_steps)


def survives(work: Callable[[], object], step: int) -> bool:
    """Do something and die at its n-th step, counted from 1; whether it ended before that."""
    _steps.left, _steps.thread = step, get_ident()
    try:
        work()
    except Killed:
        return False
    finally:
        _steps.thread = 0
    return True
