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

from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from generator.packed_sequences import AttentionLayout, CausalRun, SharedKeys

States = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values."""
Attended = tuple[Tensor, Tensor]
"""Attention, and the logarithms of the denominators of its softmax."""
Rows = TypeVar("Rows", States, Attended)

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
    states = cast(States, tuple(t[0].transpose(0, 1).to(dtype) for t in (query, key, value)))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if kept_keys is None:
        return packed_attention(states, packed_layout, scale).unsqueeze(0), None
    return kept_keys.attend(cast(int, module.layer_idx), states, packed_layout, scale).unsqueeze(0), None


def packed_attention(states: States, layout: AttentionLayout, scale: float) -> Tensor:
    """Attention `[T, H, D]` in a row of packed sequences, with gradient.

    Args:
        states: Queries `[T, H, D]`, keys and values `[T, N, D]`.
        layout: Which tokens see which.
        scale: Of the products of queries and keys.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in states):
        joined: Tensor = _PackedAttention.apply(*states, layout, scale)  # type: ignore[no-untyped-call]
        return joined
    return _attend(states, layout, scale)[0]


class KeptKeys:
    """Keys and values of prompts and, after each of them, of several replies that grow from pass to pass.

    The first pass reads the prompts, every further one S more tokens of all replies. There is no gradient.
    """

    def __init__(self) -> None:
        self._prompts: dict[int, tuple[Tensor, Tensor]] = {}
        self._replies: dict[int, tuple[Tensor, Tensor]] = {}

    def move(self, parents_R: Tensor) -> None:
        """Let reply i go on from what was read of reply `parents_R[i]`."""
        self._replies = {layer: (keys[parents_R], values[parents_R]) for layer, (keys, values) in self._replies.items()}

    def attend(self, layer: int, states: States, layout: AttentionLayout, scale: float) -> Tensor:
        """Attention `[T, H, D]` of one layer in the present pass, whose keys and values are kept."""
        attended = _attend(states, layout, scale)
        if layer not in self._prompts:
            self._prompts[layer] = states[1:]
            return attended[0]
        for shared in layout.kept:
            seen = _seen((states[0], *self._prompts[layer]), shared)
            _join(*(t[shared.queries] for t in attended), *(t[0] for t in _kernel(seen, scale, causal=False)))
        (run,) = layout.runs
        queries_RSHD, *new = _of_run(states, run)
        if layer in self._replies:
            before = self._replies[layer]
            _join(*_of_run(attended, run), *_kernel((queries_RSHD, *before), scale, causal=False))
            new = [torch.cat(both, dim=1) for both in zip(before, new, strict=True)]
        self._replies[layer] = (new[0], new[1])
        return attended[0]


class _PackedAttention(torch.autograd.Function):
    """`_attend` and its gradient."""

    @staticmethod
    def forward(ctx: Any, q_THD: Tensor, k_TND: Tensor, v_TND: Tensor, layout: AttentionLayout, scale: float) -> Tensor:
        """As `packed_attention`."""
        states = (q_THD, k_TND, v_TND)
        attended = _attend(states, layout, scale)
        ctx.save_for_backward(*states, *attended)
        ctx.layout, ctx.scale = layout, scale
        return attended[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Of each part by the kernel, whose probabilities are right as its normaliser is that of all keys together."""
        *saved, out_THD, lse_TH = ctx.saved_tensors
        states, given = cast(States, tuple(saved)), (grad_outputs[0], out_THD, lse_TH)
        totals = cast(States, tuple(torch.empty_like(t) for t in states))
        for run in ctx.layout.runs:
            parts = _kernel_backward(_of_run(given, run), _of_run(states, run), ctx.scale, causal=True)
            for total, part in zip(_of_run(totals, run), parts, strict=True):
                total.copy_(part)
        for shared in ctx.layout.shared:
            of_queries = cast(States, tuple(t[shared.queries].unsqueeze(0) for t in given))
            parts = _kernel_backward(of_queries, _seen(states, shared), ctx.scale, causal=False)
            for total, part in zip(_seen(totals, shared), parts, strict=True):
                total.add_(part)
        return (*totals, None, None)


def _attend(states: States, layout: AttentionLayout, scale: float) -> Attended:
    """Attention `[T, H, D]` and the logarithms of its denominators `[T, H]`."""
    if len(layout.runs) == 1:
        found, lse = _kernel(_of_run(states, layout.runs[0]), scale, causal=True)
        attended = found.flatten(0, 1), lse.flatten(0, 1)
    else:
        queries = states[0]
        attended = torch.empty_like(queries), queries.new_empty(queries.shape[:2], dtype=_precise(queries.dtype))
        for run in layout.runs:
            parts = _kernel(_of_run(states, run), scale, causal=True)
            for total, part in zip(_of_run(attended, run), parts, strict=True):
                total.copy_(part)
    for shared in layout.shared:
        parts = _kernel(_seen(states, shared), scale, causal=False)
        _join(*(t[shared.queries] for t in attended), *(t[0] for t in parts))
    return attended


def _precise(dtype: torch.dtype) -> torch.dtype:
    """In which the kernel gives the logarithms of denominators."""
    return torch.promote_types(dtype, torch.float32)


def _of_run(rows: Rows, run: CausalRun) -> Rows:
    """The parts of a run: each tensor `[T, ...]` as `[count, length, ...]`, a view."""
    return cast(Rows, tuple(t[run.start : run.stop].unflatten(0, (run.count, run.length)) for t in rows))


def _seen(states: States, shared: SharedKeys) -> States:
    """The queries, and the keys and values that they see, as a batch of one, views."""
    q_THD, k_TND, v_TND = states
    return q_THD[None, shared.queries], k_TND[None, shared.keys], v_TND[None, shared.keys]


def _join(out_QHD: Tensor, lse_QH: Tensor, more_QHD: Tensor, more_lse_QH: Tensor) -> None:
    """Add the attention over further keys, in place."""
    weight_QH1 = torch.sigmoid(more_lse_QH - lse_QH).unsqueeze(-1)
    out_QHD.lerp_(more_QHD, weight_QH1.to(out_QHD.dtype))
    lse_QH.copy_(torch.logaddexp(lse_QH, more_lse_QH))


def _kernel(states: States, scale: float, *, causal: bool) -> Attended:
    """PyTorch's kernel for CPUs: `[B, S, H, D]`, and the logarithms of the denominators `[B, S, H]`."""
    heads_first = [t.transpose(1, 2) for t in states]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads_first, 0.0, causal, scale=scale)
    return out.transpose(1, 2), lse.transpose(1, 2)


def _kernel_backward(given: States, states: States, scale: float, *, causal: bool) -> States:
    """Gradients for queries, keys and values of these keys' share in an attention.

    Args:
        given: Gradient of the attention over all keys, that attention, and the logarithms of its denominators.
        states: Queries, and the keys and values of this share.
        scale: As for `packed_attention`.
        causal: Whether the kernel's own mask is used.
    """
    gradient, out, lse = (t.transpose(1, 2) for t in given)
    tensors = (gradient, *(t.transpose(1, 2) for t in states), out, lse)
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*tensors, 0.0, causal, scale=scale)
    return cast(States, tuple(t.transpose(1, 2) for t in found))


AttentionInterface.register(NAME, packed_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
