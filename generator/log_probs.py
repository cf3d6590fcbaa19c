"""Log-probabilities of tokens: pure functions, tensors in and tensors out, always float32 log space.

Legend: B rows, T positions, L answer tokens, V vocabulary, H hidden size, N selected positions.

Everything is upcast to float32 *before* `log_softmax`: in bfloat16 the sum over a 32-token answer is off by
0.6 nat, which is a factor of 1.8 in an importance weight.
"""

from collections.abc import Callable
from typing import Any

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


def token_log_probs_in_chunks(hidden_NH: Tensor, targets_N: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """`token_log_probs` of hidden states, with gradient to them, where logits exist for a few tokens at a time.

    Args:
        hidden_NH: Hidden states.
        targets_N: Token ids.
        head: Hidden states to logits; its parameters get no gradient.

    Returns:
        float32 `[N]`.
    """
    found: Tensor = _ChunkedLogProbs.apply(hidden_NH, targets_N, head)  # type: ignore[no-untyped-call]
    return found


def tokens_at_a_time(head: Callable[[Tensor], Tensor], hidden_NH: Tensor) -> int:
    """C, such that a float32 tensor of C x V logits stays small."""
    vocabulary = head(hidden_NH[:0]).shape[-1]  # no row, and so no work
    return int(max(1, logit_bytes(cuda=hidden_NH.is_cuda) // (4 * vocabulary)))


class _ChunkedLogProbs(torch.autograd.Function):
    """Value and gradient together, in the forward pass, chunk by chunk: nothing of the size of logits is kept.

    The derivative of a log-probability by the logits is known, the one-hot vector of the target less the softmax.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, targets_N: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """The values; the gradients are kept for `backward`."""
        size, learning = tokens_at_a_time(head, hidden_NH), hidden_NH.requires_grad
        values, gradients = [], []
        for hidden_CH, targets_C in zip(hidden_NH.split(size), targets_N.split(size), strict=True):
            with torch.set_grad_enabled(learning):
                leaf_CH = hidden_CH.detach().requires_grad_(learning)
                logits_CV = head(leaf_CH)
            values.append(token_log_probs(logits_CV.detach(), targets_C))
            if learning:
                slope_CV = -logits_CV.detach().softmax(-1, dtype=torch.float32)
                slope_CV[torch.arange(len(targets_C), device=targets_C.device), targets_C] += 1
                gradients.append(torch.autograd.grad(logits_CV, leaf_CH, slope_CV.to(logits_CV.dtype))[0])
        ctx.save_for_backward(torch.cat(gradients) if gradients else None)
        return torch.cat(values) if values else hidden_NH.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scales what `forward` found."""
        (gradient_NH,) = ctx.saved_tensors
        return gradient_NH * grad_outputs[0].unsqueeze(-1).to(gradient_NH.dtype), None, None
