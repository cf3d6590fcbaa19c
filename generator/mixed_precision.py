"""`dtype="mixed"`: products in bfloat16 as `torch.autocast` makes them, with the frozen weights stored in bfloat16.

Autocast converts float32 weights at every pass, because it keeps converted ones only of weights that require
gradients, and autograd keeps such a copy of every weight until its backward. The weights of a frozen base never change,
so they are converted once: half of the memory, no conversion, and the same results bit for bit. Residual stream, norms,
embeddings, output head and adapters stay in float32.

A CPU without bfloat16 instructions multiplies bfloat16 matrices several times more slowly than float32 ones. There,
products of many rows are computed in float32 from factors rounded to bfloat16: products of two bfloat16 numbers are
exact in float32, so that only the order of summation differs.

Legend: T rows, I inputs, O outputs of a layer.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from indexes.vectors.prefilter import has_fast_bfloat16

logger = logging.getLogger(__name__)

CONVERTED_IN_PARTS = 4
"""Weights are converted in so many parts, and both copies are in memory of one part only."""
FEWEST_ROWS = 8
"""With fewer rows, converting a weight to float32 takes longer than a slow product in bfloat16."""


@cache
def multiplies_slowly_in_bfloat16() -> bool:
    """Whether this CPU is of a kind whose bfloat16 products are known to be slower than float32 ones."""
    return torch.cpu.get_capabilities().get("architecture", "").startswith("x86") and not has_fast_bfloat16()


def product_dtype(dtype: torch.dtype, rows: Tensor) -> torch.dtype:
    """The dtype to multiply matrices of a dtype in: float32 where that is faster for bfloat16 ones.

    Args:
        dtype: Of the matrices.
        rows: `[..., I]`, of as many rows as the product has, on their device.
    """
    slow = dtype == torch.bfloat16 and rows.device.type == "cpu" and multiplies_slowly_in_bfloat16()
    return torch.float32 if slow and _num_rows(rows) >= FEWEST_ROWS else dtype


class _ProductOfRounded(torch.autograd.Function):
    """`x @ weight.T + bias` of factors rounded to bfloat16, computed in float32 and rounded to bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        """Keeps the weight itself, and the input only where the weight learns."""
        rounded = x.bfloat16()
        ctx.save_for_backward(weight_OI, rounded if weight_OI.requires_grad else None)
        ctx.input_dtype = x.dtype
        bias_O = None if bias_O is None else _rounded(bias_O)
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(rounded.float(), _rounded(weight_OI), bias_O).bfloat16()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for the input and, where they learn, for weight and bias."""
        weight_OI, rounded = ctx.saved_tensors
        gradient = _rounded(grad_outputs[0])
        for_input = (gradient @ _rounded(weight_OI)).bfloat16().to(ctx.input_dtype) if ctx.needs_input_grad[0] else None
        gradient_TO = gradient.flatten(0, -2)
        for_weight = gradient_TO.T @ rounded.float().flatten(0, -2) if ctx.needs_input_grad[1] else None
        for_bias = gradient_TO.sum(0) if ctx.needs_input_grad[2] else None
        return for_input, for_weight, for_bias


def _rounded(values: Tensor) -> Tensor:
    """Values rounded to bfloat16, as float32."""
    return values.bfloat16().float()


class AutocastLinear(nn.Linear):
    """A linear layer that multiplies under autocast as every layer does, whichever dtype its weight is stored in.

    Args:
        linear: Its weight and bias are taken over, not copied.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """`[..., I]` to `[..., O]`: in bfloat16 under autocast, in the input's dtype without."""
        if not torch.is_autocast_enabled(input.device.type):
            bias = None if self.bias is None else self.bias.to(input.dtype)
            return nn.functional.linear(input, self.weight.to(input.dtype), bias)
        if product_dtype(torch.bfloat16, input) == torch.float32:
            product: Tensor = _ProductOfRounded.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return product
        return super().forward(input)


def _num_rows(input: Tensor) -> int:
    return input.numel() // max(input.shape[-1], 1)


def store_in_bfloat16(body: nn.Module, read: Callable[[], Tensor], kept: Collection[nn.Parameter]) -> int:
    """Store the weights of linear layers in bfloat16, where that changes no result under autocast.

    A few tokens are read before and after each part of them. Layers whose product autocast does not make in bfloat16
    (a router that switches it off) or that were not used (some experts) keep their weights. Where results differ all
    the same, because something reads a weight past its layer, all layers of that part do.

    Args:
        body: The model without its output head, with its adapters.
        read: Reads a few tokens under autocast with an adapter active, and gives the hidden states.
        kept: Parameters that stay in float32: those of the adapters, of embeddings and of the output head.

    Returns:
        The number of weights (elements) that are stored in bfloat16 now.
    """
    layers = {name: layer for name, layer in body.named_modules() if type(layer) is nn.Linear}
    used: set[str] = set()
    hooks = [layer.register_forward_hook(_note_bfloat16(name, used)) for name, layer in layers.items()]
    try:
        expected = read()
    finally:
        for hook in hooks:
            hook.remove()
    for name in used:
        _replace(body, name, AutocastLinear(layers[name]))
    excluded = {id(parameter) for parameter in kept}
    found = {id(p): p for name in layers if name in used for p in layers[name].parameters() if id(p) not in excluded}
    convertible = [p for p in found.values() if p.dtype == torch.float32]
    size = -(-len(convertible) // CONVERTED_IN_PARTS) or 1
    return sum(_store(convertible[start : start + size], read, expected) for start in range(0, len(convertible), size))


def _store(parameters: Sequence[nn.Parameter], read: Callable[[], Tensor], expected: Tensor) -> int:
    """Store some weights in bfloat16, unless that changes what is read; how many are stored so."""
    exact = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.bfloat16()
    if torch.equal(read(), expected):
        return sum(parameter.numel() for parameter in parameters)
    for parameter, values in zip(parameters, exact, strict=True):
        parameter.data = values
    logger.info("Weights stay in float32: stored in bfloat16 they give other results in this architecture.")
    return 0


def _note_bfloat16(name: str, used: set[str]) -> Callable[..., None]:
    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dtype == torch.bfloat16:
            used.add(name)

    return note


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    root.get_submodule(parent)._modules[child] = module
