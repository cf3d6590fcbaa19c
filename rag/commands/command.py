"""`Command`: one command of the command line, and `Report`: its result for people and for programs."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """The result of a command."""

    text: str
    data: Any
    exit_code: int = 0
    """Exit code of the process: not 0 where some of the work failed and the rest is reported."""


@dataclass(frozen=True)
class Command:
    """One verb of the command line."""

    help: str
    arguments: Callable[[Any], None]
    run: Callable[[Any], Report]
    json_file: bool = False
    """Whether `--json FILE` writes the result in addition to the text; otherwise `--json` prints it instead."""
    defers_imports: bool = False
    """Whether its libraries are imported without what only training needs (`rag.deferred_imports`)."""


def progress(args: Any) -> bool:
    """Whether to show progress bars: on a terminal, without --quiet."""
    return not args.quiet and sys.stderr.isatty()


def metrics_text(metrics: dict[str, float]) -> str:
    """One metric on each line."""
    return "\n".join(f"{name:>28}: {value:.4f}" for name, value in metrics.items())
