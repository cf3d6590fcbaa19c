"""Linear layers with LoRA adapters: the product of the frozen weight and its update in one autograd function.

    y = x W^T + b + s (x A^T) B^T

peft's own layer adds the update by separate operations: tensors as large as the output are multiplied by s and added,
and where x has another dtype than an adapter, autograd keeps a copy of x for each. Here the update is added in place,
in both passes, and x is kept once, as it was given. (Unsloth's fast LoRA kernels rest on the same observation.)

Legend: T tokens, I inputs, O outputs of a layer, r rank.
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from generator.mixed_precision import product_dtype


class LoraLinear(Linear):
    """peft's LoRA layer over a frozen `torch.nn.Linear`; whatever is not plain LoRA is left to peft's own code."""

    @classmethod
    def register(cls, config: LoraConfig) -> None:
        """Let peft wrap plain linear layers into this class; quantized ones keep peft's classes for them."""
        config._register_custom_module({nn.Linear: cls._over})  # type: ignore[dict-item]  # peft calls it like a class

    @classmethod
    def _over(cls, target: nn.Module, adapter_name: str, config: LoraConfig, **settings: Any) -> "LoraLinear | None":
        layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        # Quantized weights are subclasses of Linear, or of the tensor in it; peft goes on to its other classes at None.
        if type(layer) is not nn.Linear or type(layer.weight.data) is not Tensor or config.fan_in_fan_out:
            return None
        return cls(target, adapter_name, config=config, **settings)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`[..., I]` to `[..., O]`."""
        role = None if args or kwargs else self._plain_adapter()
        if role is None:
            other: Tensor = super().forward(x, *args, **kwargs)
            return other
        weights: Any = self.base_layer, self.lora_A[role].weight, self.lora_B[role].weight, self.scaling[role]
        if not torch.is_grad_enabled():
            return _product_and_update(x, *weights)[0]
        result: Tensor = LoraProduct.apply(x, *weights)  # type: ignore[no-untyped-call]
        return result

    def switch(self, role: str | None) -> None:
        """Activate one adapter, or none; which parameters learn stays as it is.

        peft's `set_adapter` and `enable_adapters` set `requires_grad` of every parameter besides.
        """
        self._disable_adapters = role is None
        if role is not None:
            self._active_adapter = [role]

    def _plain_adapter(self) -> str | None:
        """The active adapter; None unless there is exactly one, and nothing more to it than `s B A`."""
        active = self.active_adapters
        if self.disable_adapters or self.merged_adapters or len(active) != 1 or active[0] not in self.lora_A:
            return None
        role: str = active[0]
        if role in self.lora_variant or self.lora_bias[role]:
            return None
        if self.training and not isinstance(self.lora_dropout[role], nn.Identity):
            return None
        weight = self.base_layer.weight
        # DeepSpeed ZeRO-3 gathers a weight when the layer that has it is called, and not for this backward pass.
        return None if weight.requires_grad or hasattr(weight, "ds_id") else role


class LoraProduct(torch.autograd.Function):
    """A frozen linear layer and its update. Kept for the backward pass: x as it was given, and x A^T."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base_layer: nn.Linear, a_rI: Tensor, b_Or: Tensor, scaling: float) -> Tensor:
        """`[..., I]` to `[..., O]`, with the operations of `torch.autocast` where that is enabled."""
        result, between_Tr = _product_and_update(x, base_layer, a_rI, b_Or, scaling)
        ctx.save_for_backward(x, between_Tr, base_layer.weight, a_rI, b_Or)
        ctx.scaling = scaling
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients for x and for both factors."""
        with torch.autocast(grad_outputs[0].device.type, enabled=False):
            return _gradients(ctx, grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1]))


def _gradients(ctx: Any, for_y_TO: Tensor) -> tuple[Tensor | None, ...]:
    x, between_Tr, weight_OI, a_rI, b_Or = ctx.saved_tensors
    for_y_TO = for_y_TO.to(product_dtype(for_y_TO.dtype, for_y_TO))
    factor = _Factors(between_Tr.dtype, for_y_TO)
    for_update_TO = for_y_TO.to(factor.multiplied)
    for_between_Tr = torch.mm(for_update_TO, factor(b_Or)).mul_(ctx.scaling)
    for_x = for_a = for_b = None
    if ctx.needs_input_grad[0]:
        for_x_TI = torch.mm(for_y_TO, weight_OI.to(for_y_TO.dtype))
        for_x = _add_product(for_x_TI, for_between_Tr, factor(a_rI)).to(x.dtype).view(x.shape)
    if ctx.needs_input_grad[2]:
        for_a = torch.mm(for_between_Tr.T, factor(x.reshape(-1, x.shape[-1]))).to(a_rI.dtype)
    if ctx.needs_input_grad[3]:
        for_b = torch.mm(for_update_TO.T, factor(between_Tr)).mul_(ctx.scaling).to(b_Or.dtype)
    return for_x, None, for_a, for_b, None


class _Factors:
    """Matrices as the factors of an update: rounded to its dtype, in the dtype that is multiplied in."""

    def __init__(self, dtype: torch.dtype, rows: Tensor) -> None:
        self.rounded = dtype
        self.multiplied = product_dtype(dtype, rows)

    def __call__(self, matrix: Tensor) -> Tensor:
        return matrix.to(self.rounded).to(self.multiplied)


def _product_and_update(
    x: Tensor, base_layer: nn.Linear, a_rI: Tensor, b_Or: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """`x W^T + b + s (x A^T) B^T`, and `x A^T` in the dtype of the update."""
    kind = x.device.type
    factor = _Factors(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else a_rI.dtype, x)
    y: Tensor = base_layer(x)
    y_TO = y.view(-1, y.shape[-1])  # in the place of y
    with torch.autocast(kind, enabled=False):
        between_Tr = torch.mm(factor(x.reshape(-1, x.shape[-1])), factor(a_rI).T).to(factor.rounded)
        if y.dtype == torch.float32 == factor.rounded:
            _add_product(y_TO, between_Tr, b_Or.T, scaling)
        else:  # rounded where peft's layer rounds
            y_TO.add_(torch.mm(factor(between_Tr), factor(b_Or).T).to(factor.rounded), alpha=scaling)
    return y, between_Tr


def _add_product(total: Tensor, left: Tensor, right: Tensor, scaling: float = 1.0) -> Tensor:
    """Add `scaling * left @ right` to `total`, in place."""
    if total.dtype == left.dtype:
        return total.addmm_(left, right, alpha=scaling)
    return total.add_(torch.mm(left, right), alpha=scaling)
