"""Batches of sequences of similar length, within a budget of tokens (pure)."""

from collections.abc import Sequence


def token_budget_batches(lengths: Sequence[int], max_tokens: int, *, max_rows: int | None = None) -> list[list[int]]:
    """Group the indices of sequences into batches, longest first.

    Args:
        lengths: Tokens of each sequence.
        max_tokens: The most tokens of a batch, padding included (sequences x longest); every batch has at least one
            sequence.
        max_rows: The most sequences of a batch; None for no limit.
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
