"""`dtype="mixed"`: weights in bfloat16 give the results of autocast over float32 weights, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import ARCHITECTURES, byte_tokenizer, randomize_adapters, tiny_language_model, tiny_model
from torch import Tensor, nn

from generator import mixed_precision
from generator.language_model import LanguageModel
from generator.mixed_precision import AutocastLinear, multiplies_slowly_in_bfloat16, store_in_bfloat16

IDS = torch.arange(5, 45).reshape(2, 20)
Found = tuple[Tensor, dict[str, Tensor]]


@pytest.fixture
def plain_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's own bfloat16 products, on every processor."""
    monkeypatch.setattr(mixed_precision, "multiplies_slowly_in_bfloat16", lambda: False)


@pytest.fixture
def products_of_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in float32 of factors rounded to bfloat16, on every processor."""
    monkeypatch.setattr(mixed_precision, "multiplies_slowly_in_bfloat16", lambda: True)


def small_model(architecture: str = "llama", **changes: object) -> LanguageModel:
    model = tiny_language_model(architecture, **changes)
    randomize_adapters(model)
    return model


def hidden_and_gradients(model: LanguageModel) -> Found:
    with model.use("generator"):
        hidden = model.hidden(IDS, None)
        hidden.square().sum().backward()
    named = model.adapter_parameters("generator").items()
    gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
    model.zero_grad()
    assert gradients
    return hidden.detach(), gradients


def is_equal(first: Found, second: Found) -> bool:
    same = first[1].keys() == second[1].keys() and all(torch.equal(first[1][n], second[1][n]) for n in first[1])
    return same and torch.equal(first[0], second[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stored_in_bfloat16_equals_autocast_over_float32(architecture: str, plain_products: None) -> None:
    model = small_model(architecture)
    model.mixed = True  # autocast alone, over float32 weights
    expected = hidden_and_gradients(model)
    model.use_mixed_precision()
    assert model.base_model.get_submodule("model.layers.0.mlp.down_proj.base_layer").weight.dtype == torch.bfloat16
    assert is_equal(hidden_and_gradients(model), expected)
    embedding = model.base_model.get_input_embeddings().weight
    embedding.data = embedding.data.bfloat16().float()  # the control: the residual stream is rounded as well
    assert not is_equal(hidden_and_gradients(model), expected)


def test_all_but_the_linear_weights_stay_in_float32(plain_products: None) -> None:
    model = small_model(tie_word_embeddings=True)
    before = {name: p.dtype for name, p in model.named_parameters()}
    assert set(before.values()) == {torch.float32}
    model.use_mixed_precision()
    found = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert found == {name for name in before if name.endswith("_proj.base_layer.weight")}
    assert {p.dtype for p in model.adapter_parameters("selector").values()} == {torch.float32}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def rounded(values: Tensor) -> Tensor:
    return values.bfloat16().double()


def test_products_of_rounded_factors_are_those_of_float64(products_of_rounded: None) -> None:
    """Value and gradients, to half a step of bfloat16; without rounding the factors they are farther away."""
    torch.manual_seed(0)
    layer = AutocastLinear(nn.Linear(64, 24))
    x = torch.randn(3, 16, 64, requires_grad=True)
    gradient = torch.randn(3, 16, 24).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    found.backward(gradient)
    weight, bias = rounded(layer.weight.detach()), rounded(layer.bias.detach())
    expected = rounded(x.detach()) @ weight.T + bias
    assert found.dtype == torch.bfloat16
    assert bool(((found.double() - expected).abs() <= expected.abs() * 2**-8 + 1e-6).all())
    unrounded = x.detach().double() @ layer.weight.detach().double().T + layer.bias.detach().double()
    assert not bool(((found.double() - unrounded).abs() <= unrounded.abs() * 2**-8 + 1e-6).all())
    assert x.grad is not None and layer.weight.grad is not None and layer.bias.grad is not None
    assert bool(((x.grad.double() - rounded(gradient) @ weight).abs() <= 2**-8 * x.grad.double().abs() + 1e-6).all())
    for_weight = torch.einsum("bto,bti->oi", gradient.double(), rounded(x.detach()))
    assert relative_error(layer.weight.grad, for_weight) < 1e-6
    assert relative_error(layer.weight.grad, torch.einsum("bto,bti->oi", gradient.double(), x.detach().double())) > 1e-4
    assert relative_error(layer.bias.grad, gradient.double().sum((0, 1))) < 1e-6


def test_products_of_rounded_factors_train_as_autocast_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    model.use_mixed_precision()
    found = []
    for slow in (False, True):
        monkeypatch.setattr(mixed_precision, "multiplies_slowly_in_bfloat16", lambda slow=slow: slow)
        found.append(hidden_and_gradients(model))
    (expected, gradients), (hidden, others) = found
    assert relative_error(hidden, expected) < 0.02
    assert all(relative_error(others[name], gradients[name]) < 0.05 for name in gradients)
    wrong = dict(zip(gradients, reversed(list(others.values())), strict=True))
    assert not all(
        gradients[name].shape == wrong[name].shape and relative_error(wrong[name], gradients[name]) < 0.05
        for name in gradients
    )


def test_few_rows_take_the_product_of_the_processor(products_of_rounded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    apply = mixed_precision._ProductOfRounded.apply
    monkeypatch.setattr(
        mixed_precision._ProductOfRounded, "apply", lambda x, *rest: counted.append(len(x)) or apply(x, *rest)
    )
    layer = AutocastLinear(nn.Linear(8, 4))
    with torch.autocast("cpu", torch.bfloat16):
        for rows in (1, mixed_precision.FEWEST_ROWS - 1, mixed_precision.FEWEST_ROWS):
            layer(torch.ones(rows, 8))
    assert counted == [mixed_precision.FEWEST_ROWS]


def test_without_autocast_the_input_decides() -> None:
    layer = AutocastLinear(nn.Linear(8, 4))
    x = torch.randn(20, 8)
    expected = nn.functional.linear(x, layer.weight.bfloat16().float(), layer.bias)
    layer.weight.data = layer.weight.data.bfloat16()
    assert torch.equal(layer(x), expected)


class Body(nn.Module):
    """Two layers, of which the second is used as `second` says; each parameter is a part that is stored by itself."""

    def __init__(self, second: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self._use_second = second

    def read(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            return self._use_second(self.second, self.first(torch.linspace(-1, 1, 80).reshape(10, 8)))


def without_autocast(layer: nn.Linear, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return layer(x.float())


def past_the_layer(layer: nn.Linear, x: Tensor) -> Tensor:
    return layer(x) + layer.weight.float().sum()


@pytest.mark.parametrize(
    ("second", "stored"),
    [(lambda layer, x: layer(x), 144), (without_autocast, 72), (lambda layer, x: x, 72), (past_the_layer, 80)],
)
def test_only_what_changes_no_result_is_stored(second: Callable[[nn.Linear, Tensor], Tensor], stored: int) -> None:
    torch.manual_seed(0)
    body = Body(second)
    expected = body.read()
    assert store_in_bfloat16(body, body.read, []) == stored
    assert torch.equal(body.read(), expected) or multiplies_slowly_in_bfloat16()
    assert sum(p.numel() for p in body.parameters() if p.dtype == torch.bfloat16) == stored


def test_parameters_that_are_kept_stay(plain_products: None) -> None:
    body = Body(lambda layer, x: layer(x))
    assert store_in_bfloat16(body, body.read, [body.first.weight]) == 144 - 64
    assert body.first.weight.dtype == torch.float32 and body.second.weight.dtype == torch.bfloat16


def test_a_copy_of_a_mixed_base_is_read_back_as_it_was(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    model = LanguageModel.from_pretrained(tmp_path / "base", dtype="mixed", device="cpu")
    model.save_base(tmp_path / "copy")
    again = LanguageModel.from_pretrained(tmp_path / "copy", dtype="mixed", device="cpu")
    old, new = model.base_weights(), again.base_weights()
    assert {n: (t.dtype, t.shape) for n, t in old.items()} == {n: (t.dtype, t.shape) for n, t in new.items()}
    assert all(torch.equal(old[name], new[name]) for name in old)
