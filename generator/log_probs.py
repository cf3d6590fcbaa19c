"""Log-probabilities of tokens: pure functions, tensors in and tensors out, always float32 log space.

Legend: B rows, T positions, L answer tokens, V vocabulary, H hidden size, N selected positions.

Everything is upcast to float32 *before* `log_softmax`: in bfloat16 the sum over a 32-token answer is off by
0.6 nat, which is a factor of 1.8 in an importance weight.
"""

import torch
from torch import Tensor


def token_log_probs(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Log-probability of each target under its row of logits.

    Args:
        logits_NV: Unnormalised scores `[..., V]`, any floating dtype.
        targets_N: Token ids `[...]`.

    Returns:
        float32 `[...]`: `logits[target] - logsumexp(logits)`.
    """
    chosen_N = logits_NV.gather(-1, targets_N.unsqueeze(-1)).squeeze(-1).float()
    if logits_NV.device.type == "cpu" and not (torch.is_grad_enabled() and logits_NV.requires_grad):
        return chosen_N - _log_normalisers(logits_NV)
    return chosen_N - logits_NV.float().logsumexp(-1)


def _log_normalisers(logits_NV: Tensor) -> Tensor:
    """`logsumexp` `[...]` without a graph: a few rows at a time, as many as a CPU's cache holds."""
    rows_RV = logits_NV.reshape(-1, logits_NV.shape[-1])
    found = [
        log_normaliser(few_RV.float(), few_RV.softmax(-1, dtype=torch.float32))
        for few_RV in rows_RV.split(rows_in_cache(rows_RV.shape[-1]))
    ]
    return torch.cat(found).reshape(logits_NV.shape[:-1]) if found else logits_NV.new_zeros(logits_NV.shape[:-1])


def rows_in_cache(vocabulary: int) -> int:
    """How many rows of float32 logits fill a MiB, at least one."""
    return max(1, 2**20 // (4 * vocabulary))


def logit_bytes(*, cuda: bool) -> int:
    """Bytes of the logits that exist at one time, where a long text is scored in chunks.

    Large enough for a fast product and small compared with everything else; a GPU needs more rows to be busy, and has
    more memory for them.
    """
    return 2**28 if cuda else 2**25


def log_normaliser(logits_RV: Tensor, probabilities_RV: Tensor) -> Tensor:
    """`logsumexp` `[R]` of logits whose softmax is known: read off where that is largest, with no exponential."""
    return logits_RV.amax(-1) - probabilities_RV.amax(-1).log()


def sum_per_row(values_N: Tensor, rows_N: Tensor, num_rows: int) -> Tensor:
    """Sum of `values_N` per row index: float32 `[num_rows]`, differentiable in `values_N`."""
    return values_N.new_zeros(num_rows).index_add(0, rows_N, values_N)


def answer_positions(prompt_lengths_B: Tensor, answer_lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Positions whose hidden state predicts an answer token.

    The token at position t is predicted at t - 1, so a row of P prompt and L answer tokens is scored at the
    positions P-1 .. P+L-2. Nothing else needs logits.

    Returns:
        `(rows_N, positions_N)`, both int64, N = sum of the answer lengths, row by row.
    """
    rows_N = torch.repeat_interleave(
        torch.arange(len(answer_lengths_B), device=answer_lengths_B.device), answer_lengths_B
    )
    starts_B = torch.cumsum(answer_lengths_B, 0) - answer_lengths_B
    offset_N = torch.arange(len(rows_N), device=rows_N.device) - starts_B[rows_N]
    return rows_N, prompt_lengths_B[rows_N] - 1 + offset_N
