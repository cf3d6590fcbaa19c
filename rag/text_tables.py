"""Text tables for terminals: one renderer for all commands, by rich."""

import re
from collections.abc import Sequence
from io import StringIO
from typing import Any, Literal

_WIDTH = 500
"""Columns of the virtual terminal: a table is never wrapped, because the output may be piped or parsed."""

_NUMBER = re.compile(r"[~+\-\[]*\d|-?$")
"""What a cell with a number begins with: a sign, the bracket of an interval, or nothing; "-" is a missing one."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text: columns of numbers are right-aligned, the others left-aligned.

    Args:
        header: Titles of the columns.
        rows: Cells of each row, as many as there are columns.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = Table(box=None, pad_edge=False, padding=(0, 1), header_style="")
    for i, title in enumerate(header):
        found.add_column(Text(title), justify=_justify([row[i] for row in rows]), no_wrap=True)
    for row in rows:
        found.add_row(*(Text(cell) for cell in row))  # as they are: square brackets are no markup
    buffer = StringIO()
    Console(file=buffer, width=_WIDTH, color_system=None).print(found)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def _justify(cells: Sequence[str]) -> Literal["left", "right"]:
    return "right" if cells and all(_NUMBER.match(cell) for cell in cells) else "left"


def cell(value: Any) -> str:
    """A value as a cell: four decimals, "-" where there is none."""
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def interval(ends: Sequence[float] | None) -> str:
    """A confidence interval as a cell: "[0.1000, 0.2000]", or "-" where there is none."""
    return "-" if ends is None else f"[{ends[0]:.4f}, {ends[1]:.4f}]"
