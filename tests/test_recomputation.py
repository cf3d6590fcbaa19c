"""Results that are computed again instead of being kept: the same gradients bit for bit, from fewer bytes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from tiny_models import ARCHITECTURES, randomize_adapters, tiny_language_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from generator.language_model import LanguageModel
from generator.recomputation import Recomputation

IDS = torch.arange(5, 85).reshape(2, 40)
Block = Callable[[], AbstractContextManager[None]]


def trained(architecture: str = "llama", *, mixed: bool = False) -> LanguageModel:
    model = tiny_language_model(architecture, hidden_size=64, intermediate_size=160, head_dim=16)
    randomize_adapters(model, scale=0.1)
    if mixed:
        model.use_mixed_precision()
    return model.train()


def gradients(model: LanguageModel, block: Block = nullcontext) -> dict[str, Tensor]:
    """Of one pass, whose backward comes after the block."""
    with model.use("generator"):
        with block():
            hidden = model.hidden(IDS, None)
        hidden.square().sum().backward()
    named = model.adapter_parameters("generator").items()
    found = {name: p.grad.clone() for name, p in named if p.grad is not None}
    model.zero_grad()
    assert len(found) == 2 * 7 * 2
    return found


def is_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_equal_bit_for_bit(architecture: str, mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(architecture, mixed=mixed)
    recomputation = Recomputation(model.base_model)
    expected = gradients(model)
    assert is_equal(gradients(model, recomputation.forward), expected)
    value = Recomputation._value
    monkeypatch.setattr(Recomputation, "_value", lambda self, result: 1.01 * value(self, result))
    assert not is_equal(gradients(model, recomputation.forward), expected)  # the control: other results


def live_bytes(model: LanguageModel, block: Block) -> int:
    """Allocated by a forward pass and not freed while its result exists, as torch's profiler counts."""
    with model.use("generator"), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with block():
            hidden = model.hidden(IDS, None)
    assert hidden.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiled.events())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_less_is_kept(architecture: str) -> None:
    """2H + 2q + 2k + 2I numbers of a token in place of 4H + 2q + 2k + 4I, and what a block keeps besides."""
    model = trained(architecture)
    recomputation = Recomputation(model.base_model)
    gradients(model)
    whole, less = (live_bytes(model, block) for block in (nullcontext, recomputation.forward))
    assert less < 0.7 * whole


def test_a_result_that_several_layers_read_is_computed_once() -> None:
    """Queries, keys and values read one norm, gate and up the other; the last norm is read by no adapter."""
    model = trained()
    counts: dict[str, int] = {}

    def counting(name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(*inputs: Tensor) -> Tensor:
            counts[name] = counts.get(name, 0) + 1
            return forward(*inputs)

        return counted

    for name, module in model.base_model.named_modules():
        if name.endswith(("norm", "act_fn")):
            module.forward = counting(name.removeprefix("model."), module.forward)
    gradients(model, Recomputation(model.base_model).forward)
    # Nothing learns before the first norm, so that its result is kept.
    assert counts.pop("layers.0.input_layernorm") == counts.pop("norm") == 1
    assert len(counts) == 5 and set(counts.values()) == {2}


def test_outside_the_block_everything_is_kept() -> None:
    model = trained()
    recomputation = Recomputation(model.base_model)
    before = live_bytes(model, nullcontext)
    gradients(model, recomputation.forward)
    assert live_bytes(model, nullcontext) == before
    assert not recomputation._results
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class ChangedInPlace(nn.Module):
    """A norm whose result is changed after it was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of squares of the changed result."""
        return self.norm(x).mul_(3.0).square().sum()


def test_a_result_that_was_changed_in_place_is_kept() -> None:
    model, x = ChangedInPlace(), torch.randn(5, 8, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x), x)
    with Recomputation(model).forward():
        loss = model(x)
    (found,) = torch.autograd.grad(loss, x)
    assert torch.equal(found, expected)


class GivenBack(nn.Module):
    """A norm whose result is freed at once, so that what is kept next may stand in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        """Exponentials keep their result."""
        self.norm(x)
        return sum(((x + i).exp() for i in range(20)), x.new_zeros(())).sum()


def test_memory_of_a_freed_result_is_not_mistaken_for_it() -> None:
    model, x = GivenBack(), torch.randn(5, 8, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x), x)
    with Recomputation(model).forward():
        loss = model(x)
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected)


def modules() -> Iterator[tuple[nn.Module, bool]]:
    """Modules, and whether their results may be computed again."""
    learning, frozen = nn.LayerNorm(8), nn.LayerNorm(8).requires_grad_(False)
    yield from [(frozen, True), (nn.RMSNorm(8, elementwise_affine=False), True), (nn.SiLU(), True), (nn.GELU(), True)]
    yield from [(learning, False), (nn.PReLU(), False), (nn.RReLU(), False), (nn.Dropout(0.5), False)]
    yield from [(nn.BatchNorm1d(8, affine=False), False), (nn.Linear(8, 8).requires_grad_(False), False)]
    yield nn.MultiheadAttention(8, 1).requires_grad_(False), False


@pytest.mark.parametrize(("module", "is_cheap"), list(modules()), ids=lambda value: type(value).__name__)
def test_only_frozen_modules_without_chance_or_state_are_computed_again(module: nn.Module, is_cheap: bool) -> None:
    assert (module in Recomputation(nn.Sequential(module))._cheap) == is_cheap
