"""Attention over packed sequences: each part of a row attends to itself and, in one product, to each part it continues.

The two results are joined by their normalisers: with `o_i` the attention over a set of keys and `l_i` the logarithm of
its softmax's denominator, the attention over the union is `sum_i exp(l_i - l) o_i` with `l = logsumexp(l_i)` (the same
rule as between the blocks of FlashAttention, arXiv 2205.14135, and of Ring Attention, arXiv 2310.01889). So no mask is
needed: PyTorch's kernel is called without one, or with its own causal one, and computes nothing that is masked. In the
backward pass each part's gradient follows from the joined result and normaliser in the same kernel.

`transformers` calls the function of this module in place of its own (its `AttentionInterface`); without a layout it is
`sdpa`. Only the kernel for CPUs is used.

Legend: T tokens of a row, H query heads, N key-value heads, D head dimension, R replies, S tokens of each.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from generator.packed_sequences import AttentionLayout, CausalRun

NAME = "packed"
"""As which transformers knows it (`attn_implementation`)."""


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_layout: AttentionLayout | None = None,
    kept_keys: "KeptKeys | None" = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as layers of transformers ask for it.

    Args:
        module: The layer.
        query: `[1, H, T, D]`.
        key: `[1, N, T, D]`.
        value: `[1, N, T, D]`.
        attention_mask: Ignored with a layout.
        dropout: Must be 0 with a layout.
        scaling: Of the products of queries and keys; None: `D ** -0.5`.
        packed_layout: What the row consists of; None: `sdpa_attention_forward` is called.
        kept_keys: Keys of earlier passes, to which those of this one are added; without gradient.
        kwargs: Further arguments of transformers.

    Returns:
        `[1, T, H, D]` and None.

    Raises:
        NotImplementedError: The layer wants something that the kernel does not do.
    """
    if packed_layout is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unknown or dropout or len(query) != 1 or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"Packed attention has no dropout, {', '.join(unknown) or 'batches'}.")
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    rows = [states[0].transpose(0, 1).to(dtype) for states in (query, key, value)]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if kept_keys is None:
        return packed_attention(*rows, packed_layout, scale).unsqueeze(0), None
    return kept_keys.attend(int(module.layer_idx), *rows, packed_layout, scale).unsqueeze(0), None


class KeptKeys:
    """Keys and values of prompts and, after each of them, of several replies that grow from pass to pass.

    The first pass reads the prompts, every further one S more tokens of all replies.
    """

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[Tensor, Tensor]] = {}
        self._replies: dict[int, tuple[Tensor, Tensor]] = {}

    def move(self, parents_R: Tensor) -> None:
        """Let reply i go on from what was read of reply `parents_R[i]`."""
        self._replies = {layer: (keys[parents_R], values[parents_R]) for layer, (keys, values) in self._replies.items()}

    def attend(
        self, layer: int, q_THD: Tensor, k_TND: Tensor, v_TND: Tensor, layout: AttentionLayout, scale: float
    ) -> Tensor:
        """Attention `[T, H, D]` of one layer in the present pass, whose keys and values are kept."""
        out_THD, lse_TH = _attend(q_THD, k_TND, v_TND, layout, scale)
        if layer not in self._prompts:
            self._prompts[layer] = k_TND, v_TND
            return out_THD
        for seen in layout.kept:
            keys = (t[seen.keys].unsqueeze(0) for t in self._prompts[layer])
            found, lse = _kernel(q_THD[seen.queries].unsqueeze(0), *keys, scale, causal=False)
            _join(out_THD[seen.queries], lse_TH[seen.queries], found[0], lse[0])
        (run,) = layout.runs
        new = tuple(_of_run(t, run) for t in (k_TND, v_TND))
        if layer in self._replies:
            before = self._replies[layer]
            _join(
                *(_of_run(t, run) for t in (out_THD, lse_TH)),
                *_kernel(_of_run(q_THD, run), *before, scale, causal=False),
            )
            new = tuple(torch.cat(both, dim=1) for both in zip(before, new, strict=True))
        self._replies[layer] = new
        return out_THD


def packed_attention(q_THD: Tensor, k_TND: Tensor, v_TND: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
    """Attention `[T, H, D]` in a row of packed sequences, with gradient to queries, keys and values."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q_THD, k_TND, v_TND)):
        joined: Tensor = _PackedAttention.apply(q_THD, k_TND, v_TND, layout, scale)  # type: ignore[no-untyped-call]
        return joined
    return _attend(q_THD, k_TND, v_TND, layout, scale)[0]


class _PackedAttention(torch.autograd.Function):
    """`_attend` and its gradient."""

    @staticmethod
    def forward(ctx: Any, q_THD: Tensor, k_TND: Tensor, v_TND: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
        """As `packed_attention`."""
        out_THD, lse_TH = _attend(q_THD, k_TND, v_TND, layout, scale)
        ctx.save_for_backward(q_THD, k_TND, v_TND, out_THD, lse_TH)
        ctx.layout, ctx.scale = layout, scale
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Of each part by the kernel, whose probabilities are right as its normaliser is that of all keys together."""
        q_THD, k_TND, v_TND, out_THD, lse_TH = ctx.saved_tensors
        grad_THD, layout, scale = grad_outputs[0], ctx.layout, ctx.scale
        for_q, for_k, for_v = torch.empty_like(q_THD), torch.empty_like(k_TND), torch.empty_like(v_TND)
        for run in layout.runs:
            inputs = (_of_run(t, run) for t in (grad_THD, q_THD, k_TND, v_TND, out_THD, lse_TH))
            for total, part in zip((for_q, for_k, for_v), _kernel_backward(*inputs, scale, causal=True), strict=True):
                _of_run(total, run).copy_(part)
        for seen in layout.shared:
            queries = (t[seen.queries].unsqueeze(0) for t in (out_THD, lse_TH))
            keys = (t[seen.keys].unsqueeze(0) for t in (k_TND, v_TND))
            asked = (t[seen.queries].unsqueeze(0) for t in (grad_THD, q_THD))
            parts = _kernel_backward(*asked, *keys, *queries, scale, causal=False)
            for total, part, place in zip(
                (for_q, for_k, for_v), parts, (seen.queries, seen.keys, seen.keys), strict=True
            ):
                total[place] += part[0]
        return for_q, for_k, for_v, None, None


def _attend(
    q_THD: Tensor, k_TND: Tensor, v_TND: Tensor, layout: AttentionLayout, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention `[T, H, D]` and the logarithms of its denominators `[T, H]`."""
    if len(layout.runs) == 1:
        found, lse = _kernel(*(_of_run(t, layout.runs[0]) for t in (q_THD, k_TND, v_TND)), scale, causal=True)
        return found.flatten(0, 1), lse.flatten(0, 1)
    out_THD, lse_TH = (
        torch.empty_like(q_THD),
        q_THD.new_empty(q_THD.shape[:2], dtype=torch.promote_types(q_THD.dtype, torch.float32)),
    )
    for run in layout.runs:
        found, lse = _kernel(*(_of_run(t, run) for t in (q_THD, k_TND, v_TND)), scale, causal=True)
        _of_run(out_THD, run).copy_(found)
        _of_run(lse_TH, run).copy_(lse)
    for seen in layout.shared:
        keys = (t[seen.keys].unsqueeze(0) for t in (k_TND, v_TND))
        found, lse = _kernel(q_THD[seen.queries].unsqueeze(0), *keys, scale, causal=False)
        _join(out_THD[seen.queries], lse_TH[seen.queries], found[0], lse[0])
    return out_THD, lse_TH


def _of_run(row_T: Tensor, run: CausalRun) -> Tensor:
    """The parts of a run: `[T, ...]` to `[count, length, ...]`, a view."""
    return row_T[run.start : run.stop].unflatten(0, (run.count, run.length))


def _join(out_QHD: Tensor, lse_QH: Tensor, more_QHD: Tensor, more_lse_QH: Tensor) -> None:
    """Add the attention over further keys, in place."""
    weight_QH1 = torch.sigmoid(more_lse_QH - lse_QH).unsqueeze(-1)
    out_QHD.lerp_(more_QHD, weight_QH1.to(out_QHD.dtype))
    lse_QH.copy_(torch.logaddexp(lse_QH, more_lse_QH))


def _kernel(q_BSHD: Tensor, k_BSND: Tensor, v_BSND: Tensor, scale: float, *, causal: bool) -> tuple[Tensor, Tensor]:
    """PyTorch's kernel for CPUs, which also gives the logarithms of the denominators: `[B, S, H, D]`, `[B, S, H]`."""
    heads_first = (t.transpose(1, 2) for t in (q_BSHD, k_BSND, v_BSND))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads_first, 0.0, causal, scale=scale)
    return out.transpose(1, 2), lse.transpose(1, 2)


def _kernel_backward(
    grad_BSHD: Tensor,
    q_BSHD: Tensor,
    k_BSND: Tensor,
    v_BSND: Tensor,
    out_BSHD: Tensor,
    lse_BSH: Tensor,
    scale: float,
    *,
    causal: bool,
) -> tuple[Tensor, ...]:
    """Gradients for queries, keys and values of these keys' share in an attention with the given result."""
    tensors = (t.transpose(1, 2) for t in (grad_BSHD, q_BSHD, k_BSND, v_BSND, out_BSHD, lse_BSH))
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*tensors, 0.0, causal, scale=scale)
    return tuple(t.transpose(1, 2) for t in found)


AttentionInterface.register(NAME, packed_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
