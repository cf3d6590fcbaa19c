"""Which rows are read together (pure)."""

from collections.abc import Sequence


def token_budget_batches(lengths: Sequence[int], max_tokens: int, *, max_rows: int | None = None) -> list[list[int]]:
    """Group row indices, longest first.

    Args:
        lengths: Tokens of each row.
        max_tokens: Rows x longest row stays within it, but every batch has at least one row.
        max_rows: The most rows of a batch; None for any number.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        rows = len(batches[-1]) + 1 if batches else 0
        if rows and lengths[batches[-1][0]] * rows <= max_tokens and (max_rows is None or rows <= max_rows):
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
