"""What a command of `rag` is, and how its findings are printed."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Report:
    """What a command found: for people and for programs."""

    text: str
    data: Any
    exit_code: int = 0
    """Of the process: not 0 where some of the work failed, and the rest is reported."""


@dataclass(frozen=True)
class Command:
    """One verb of the command line."""

    help: str
    arguments: Callable[[Any], None]
    run: Callable[[Any], Report]
    json_file: bool = False
    """`--json FILE` beside the text, for a command whose text is worth having too; else `--json` replaces it."""


def progress(args: Any) -> bool:
    """Whether somebody looks at progress bars."""
    return not args.quiet and sys.stderr.isatty()


def metrics_text(metrics: dict[str, float]) -> str:
    """One metric on each line."""
    return "\n".join(f"{name:>28}: {value:.4f}" for name, value in metrics.items())


def cell(value: Any) -> str:
    """A value as the cell of a table."""
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of cells, aligned to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(lines)
