"""LoRA layers in one autograd function: values and gradients are those of the formula, and of peft's own layer."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from tiny_models import byte_tokenizer, randomize_adapters, tiny_language_model, tiny_model
from torch import Tensor, nn

from generator import mixed_precision
from generator.configs import AdapterConfig
from generator.language_model import LanguageModel
from generator.lora_linear import LoraLinear, LoraProduct

IDS = torch.arange(5, 45).reshape(2, 20)
Found = tuple[Tensor, dict[str, Tensor]]


class Wrapped(nn.Module):
    """One linear layer under peft, with 12 inputs and 20 outputs."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 20, bias=bias)


def lora_layer(*, register: bool = True, bias: bool = True, **settings: object) -> Linear:
    """peft's layer over one linear layer, with rank 3 and an update that is not 0."""
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["layer"], **settings)
    if register:
        LoraLinear.register(config)
    layer = get_peft_model(Wrapped(bias=bias), config).base_model.model.layer
    for factor in (layer.lora_A, layer.lora_B):
        factor["default"].weight.data.normal_()
    return layer


def gradients(layer: Linear, x: Tensor, weights: Tensor) -> Found:
    """The result for x, and the gradients of its weighted sum."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    (y.float() * weights).sum().backward()
    assert x.grad is not None
    return y.detach(), {
        "x": x.grad,
        "A": layer.lora_A["default"].weight.grad.clone(),
        "B": layer.lora_B["default"].weight.grad.clone(),
    }


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def largest_error(found: Found, expected: Found) -> float:
    errors = [relative_error(found[1][name], expected[1][name]) for name in expected[1]]
    return max(relative_error(found[0], expected[0]), *errors)


def by_formula(layer: Linear, x: Tensor, weights: Tensor, *, scaling: float = 2.0) -> Found:
    """Value and gradients in float64, derived by hand."""
    W, b = layer.base_layer.weight.detach().double(), layer.base_layer.bias.detach().double()
    A, B = (factor["default"].weight.detach().double() for factor in (layer.lora_A, layer.lora_B))
    x, g = x.double(), weights.double()
    y = torch.einsum("bti,oi->bto", x, W + scaling * B @ A) + b
    return y, {
        "x": torch.einsum("bto,oi->bti", g, W + scaling * B @ A),
        "A": scaling * torch.einsum("or,bto,bti->ri", B, g, x),
        "B": scaling * torch.einsum("bto,bti,ri->or", g, x, A),
    }


@pytest.mark.parametrize("rows", [1, 7])
def test_value_and_gradients_are_those_of_the_formula(rows: int) -> None:
    layer = lora_layer()
    assert isinstance(layer, LoraLinear)
    x, weights = torch.randn(2, rows, 12), torch.randn(2, rows, 20)
    found = gradients(layer, x, weights)
    assert largest_error(found, by_formula(layer, x, weights)) < 1e-6
    assert largest_error(found, by_formula(layer, x, weights, scaling=1.0)) > 0.1  # the control: another scaling


def test_without_a_gradient_the_value_is_the_same() -> None:
    layer = lora_layer()
    x = torch.randn(2, 7, 12)
    with torch.no_grad():
        found = layer(x)
    assert torch.equal(found, gradients(layer, x, torch.ones(2, 7, 20))[0])
    with torch.inference_mode():
        assert torch.equal(layer(x), found)


@pytest.mark.parametrize("slow", [False, True])
def test_under_autocast_values_are_those_of_peft(slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, where the processor's own products are taken; gradients to the rounding of bfloat16."""
    monkeypatch.setattr(mixed_precision, "multiplies_slowly_in_bfloat16", lambda: slow)
    layer, x, weights = lora_layer(), torch.randn(2, 30, 12), torch.randn(2, 30, 20)
    layer.base_layer = mixed_precision.AutocastLinear(layer.base_layer)
    layer.base_layer.weight.data = layer.base_layer.weight.data.bfloat16()
    plain = lora_layer(register=False)
    assert type(plain) is Linear
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = gradients(layer, x, weights), gradients(plain, x, weights)
        exchanged = gradients(layer, x.flip(1), weights)
    assert found[0].dtype == expected[0].dtype == torch.bfloat16
    assert torch.equal(found[0], expected[0]) or slow
    assert largest_error(found, expected) < 0.01
    assert largest_error(exchanged, expected) > 0.1  # the control: tokens in another order


@pytest.mark.parametrize("slow", [False, True])
def test_a_bfloat16_base_with_float32_adapters_is_as_exact_as_with_peft(
    slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed_precision, "multiplies_slowly_in_bfloat16", lambda: slow)
    layer, plain = lora_layer(), lora_layer(register=False)
    x, weights = torch.randn(2, 30, 12).bfloat16(), torch.randn(2, 30, 20).bfloat16()
    for each in (layer, plain):
        each.base_layer.to(torch.bfloat16)
    found, expected = gradients(layer, x, weights), gradients(plain, x, weights)
    assert torch.equal(found[0], expected[0])
    assert found[0].dtype == found[1]["x"].dtype == torch.bfloat16
    assert largest_error(found, expected) < 0.01


def test_only_what_learns_gets_a_gradient() -> None:
    layer, x = lora_layer(), torch.randn(4, 12)
    layer.lora_A["default"].weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.lora_A["default"].weight.grad is None and layer.lora_B["default"].weight.grad is not None
    assert layer.base_layer.weight.grad is None


def taken(layer: Linear, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the function was taken so far."""
    counted: list[int] = []
    apply = LoraProduct.apply
    monkeypatch.setattr(LoraProduct, "apply", lambda *operands: counted.append(1) or apply(*operands))
    return lambda: len(counted)


def test_more_than_plain_lora_is_left_to_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout in training, DoRA, a bias of the update, a base that learns, no adapter, and two at once."""
    x = torch.randn(4, 12)
    cases = {
        "dropout": lora_layer(lora_dropout=0.5),
        "dora": lora_layer(use_dora=True),
        "bias": lora_layer(lora_bias=True),
        "base": lora_layer(),
        "off": lora_layer(),
        "partitioned": lora_layer(),
    }
    cases["base"].base_layer.weight.requires_grad_()
    cases["off"].enable_adapters(False)
    cases["partitioned"].base_layer.weight.ds_id = 3
    count = taken(cases["base"], monkeypatch)
    for name, layer in cases.items():
        assert isinstance(layer, LoraLinear), name
        layer.train()(x)
        assert count() == 0, name
    cases["dropout"].eval()(x)
    lora_layer()(x)
    assert count() == 2


def test_a_quantized_layer_keeps_the_class_that_peft_has_for_it() -> None:
    """Their layers are subclasses of Linear, or hold tensors that are subclasses of Tensor."""

    class Quantized(nn.Linear):
        pass

    class Packed(Tensor):
        pass

    for change in ("layer", "tensor"):
        model = Wrapped()
        if change == "layer":
            model.layer = Quantized(12, 20)
        else:
            model.layer.weight = nn.Parameter(model.layer.weight.data.as_subclass(Packed), requires_grad=False)
        config = LoraConfig(r=3, target_modules=["layer"])
        LoraLinear.register(config)
        layer = get_peft_model(model, config).base_model.model.layer
        assert type(layer) is Linear


def hidden_and_gradients(model: LanguageModel) -> Found:
    with model.use("generator"):
        hidden = model.hidden(IDS, None)
        hidden.square().sum().backward()
    named = model.adapter_parameters("generator").items()
    found = {name: p.grad.clone() for name, p in named if p.grad is not None}
    model.zero_grad()
    return hidden.detach(), found


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma"])
def test_a_model_learns_as_with_layers_of_peft(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_language_model(architecture)
    randomize_adapters(model)
    assert sum(isinstance(module, LoraLinear) for module in model.modules()) == 2 * 7
    found = hidden_and_gradients(model)
    monkeypatch.setattr(LoraLinear, "forward", Linear.forward)
    expected = hidden_and_gradients(model)
    assert found[1].keys() == expected[1].keys() and len(found[1]) == 2 * 7 * 2
    assert largest_error(found, expected) < 1e-4
    next(iter(model.adapter_parameters("generator").values())).data.neg_()  # the control: one factor of another sign
    assert largest_error(found, hidden_and_gradients(model)) > 0.01


def test_switching_changes_what_is_active_and_not_what_learns() -> None:
    model = LanguageModel(tiny_model(), byte_tokenizer(), adapter=AdapterConfig(r=3))
    randomize_adapters(model)
    model.trainable_roles(("selector",))
    learning = {name for name, p in model.peft_model.named_parameters() if p.requires_grad}
    assert learning == set(model.adapter_parameters("selector"))
    results = []
    for role in ("selector", "generator", "base", "selector"):
        with model.use(role), torch.no_grad():
            results.append(model.hidden(IDS, None))
            assert {name for name, p in model.peft_model.named_parameters() if p.requires_grad} == learning
    assert torch.equal(results[0], results[3])
    assert not torch.allclose(results[0], results[1]) and not torch.allclose(results[1], results[2])
