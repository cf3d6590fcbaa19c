"""Attention over packed sequences equals attention over each sequence by itself, in value and gradient."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import ARCHITECTURES, randomize_adapters, tiny_language_model
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from generator.language_model import LanguageModel
from generator.packed_attention import KeptKeys, _attend, _join, packed_attention
from generator.packed_sequences import AttentionLayout, CausalRun, PackedSequences, SharedKeys

STEM, OTHER = list(range(40, 65)), list(range(80, 98))
SEQUENCES = [
    [*STEM, 10, 11, 12],
    [*STEM, *OTHER, 13],
    [*STEM, *OTHER, 14, 15],
    [20, 21, 22, 23, 24, 25, 26],
    [*STEM, 16],
    [*OTHER, 10],
    [*OTHER, 11],
]
Make = Callable[[], tuple[Tensor, ...]]


def one_by_one(states: tuple[Tensor, ...], packed: PackedSequences, scale: float) -> list[Tensor]:
    """Of each sequence, by PyTorch's attention."""
    found = []
    for places in packed.places:
        q, k, v = (t[places].transpose(0, 1).unsqueeze(0) for t in states)
        attended = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True, scale=scale)
        found.append(attended[0].transpose(0, 1))
    return found


def gradients(results: list[Tensor], states: tuple[Tensor, ...]) -> list[Tensor]:
    """Of a random weighted sum of everything."""
    generator = torch.Generator().manual_seed(5)
    total = sum((r * torch.randn(r.shape, generator=generator, dtype=r.dtype)).sum() for r in results)
    return list(torch.autograd.grad(total, states))


@pytest.mark.parametrize("heads", [(4, 2, 8), (3, 3, 16), (9, 3, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packed_attention_is_attention_of_each_sequence(heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    packed = PackedSequences.of(SEQUENCES)
    assert len(packed.layout.shared) == 3  # one of them inside another
    torch.manual_seed(0)
    H, N, D = heads
    states = tuple(torch.randn(len(packed), h, D, dtype=dtype, requires_grad=True) for h in (H, N, N))
    attended = packed_attention(states, packed.layout, 0.3)
    found = [attended[places] for places in packed.places]
    expected = one_by_one(states, packed, 0.3)
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)
    for one, other in zip(gradients(found, states), gradients(expected, states), strict=True):
        torch.testing.assert_close(one, other, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(packed_attention(states, packed.layout, 0.3), attended)


def test_gradients_of_a_part_without_the_joined_result_are_wrong() -> None:
    """Control: with each part's own normaliser instead of that of all keys, the gradient is another one."""
    packed = PackedSequences.of(SEQUENCES)
    torch.manual_seed(0)
    states = tuple(torch.randn(len(packed), 2, 8, requires_grad=True) for _ in range(3))
    alone = AttentionLayout(packed.layout.runs)
    joined = packed_attention(states, packed.layout, 0.3)
    lonely = packed_attention(states, alone, 0.3)
    right = gradients([joined], states)
    wrong = gradients([lonely], states)
    assert all((one - other).norm() > 0.1 * other.norm() for one, other in zip(wrong, right, strict=True))


def test_joining_by_equal_weights_is_wrong() -> None:
    """Control: the mean of both parts is not the attention over both."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(6, 2, 8) for _ in range(3))
    both, own = AttentionLayout((CausalRun(0, 1, 6),)), AttentionLayout((CausalRun(0, 2, 3),))
    expected = _attend((q, k, v), both, 0.3)[0][3:]
    out, lse = (t[3:].clone() for t in _attend((q, k, v), own, 0.3))
    scores = torch.einsum("qhd,khd->hqk", q[3:], k[:3]) * 0.3
    more = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[:3])
    mean = (out + more) / 2
    _join(out, lse, more, scores.logsumexp(-1).T)
    torch.testing.assert_close(out, expected)
    assert (mean - expected).abs().max() > 0.05


# -- models ----------------------------------------------------------------------------------------------------


def hidden_one_by_one(model: LanguageModel, sequences: list[list[int]]) -> list[Tensor]:
    return [model.hidden(torch.tensor([ids]), None)[0] for ids in sequences]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_models_read_packed_sequences_as_each_by_itself(architecture: str) -> None:
    """Hidden states and the gradients of an adapter; control: without what is shared they are others."""
    model = tiny_language_model(architecture)
    randomize_adapters(model)
    assert model.packs(100)
    packed = PackedSequences.of(SEQUENCES)
    weights = list(model.adapter_parameters("generator").values())
    with model.use("generator"):
        hidden_TH = model.hidden_of_packed(packed)
        found = [hidden_TH[places] for places in packed.places]
        expected = hidden_one_by_one(model, SEQUENCES)
        found_gradients, expected_gradients = (gradients(h, tuple(weights)) for h in (found, expected))
        alone = PackedSequences(packed.token_ids, packed.positions, packed.places, AttentionLayout(packed.layout.runs))
        wrong_TH = model.hidden_of_packed(alone)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-6
    assert (wrong_TH[packed.places[0]] - expected[0]).abs().max() > 0.1


@pytest.mark.parametrize("mixed", [True, False])
def test_packing_with_recomputed_activations(mixed: bool) -> None:
    """Gradient checkpointing reads the row again with the same layout; in bfloat16 both ways round differently."""
    model = tiny_language_model()
    randomize_adapters(model)
    if mixed:
        model.mixed = True
    packed = PackedSequences.of(SEQUENCES)
    weights = tuple(model.adapter_parameters("generator").values())

    def found(*, packs: bool) -> list[Tensor]:
        with model.use("generator"):
            hidden_TH = model.hidden_of_packed(packed) if packs else None
            rows = hidden_one_by_one(model, SEQUENCES) if hidden_TH is None else [hidden_TH[p] for p in packed.places]
            return gradients(rows, weights)

    expected = found(packs=False)
    with model.gradient_checkpointing():
        model.train()
        recomputed = found(packs=True)
        model.eval()
    for one, other in zip(recomputed, expected, strict=True):
        assert (one - other).norm() <= (5e-2 if mixed else 1e-4) * other.norm() + 1e-6


def test_steps_after_kept_keys_are_read_as_one_sequence() -> None:
    """Two prompts, three replies to each in two steps, between which they change places."""
    model = tiny_language_model()
    randomize_adapters(model)
    prompts, parents = [[40, 41, 42, 43, 44], [50, 51, 52]], torch.tensor([2, 0, 0, 4, 3, 5])
    steps = torch.arange(100, 124).view(2, 6, 2)
    kept = KeptKeys()
    packed = PackedSequences.of(prompts, sharing=False)
    spans = [slice(int(p[0]), int(p[-1]) + 1) for p in packed.places]
    layout = AttentionLayout(
        (CausalRun(0, 6, 2),), kept=tuple(SharedKeys(slice(6 * b, 6 * b + 6), span) for b, span in enumerate(spans))
    )
    with torch.no_grad(), model.use("selector"):
        model.hidden_of_packed(packed, kept=kept)
        starts = torch.tensor([len(prompts[r // 3]) for r in range(6)])[:, None]
        for step, ids in enumerate(steps):
            if step:
                kept.move(parents)
            positions = starts + 2 * step + torch.arange(2)
            found = model.hidden_in_row(ids.flatten(), positions.flatten(), layout, kept=kept).view(6, 2, -1)
        for moved in (True, False):
            came_from = parents if moved else torch.arange(6)
            sequences = [
                [*prompts[r // 3], *steps[0][int(came_from[r])].tolist(), *steps[1][r].tolist()] for r in range(6)
            ]
            expected = torch.stack([h[-2:] for h in hidden_one_by_one(model, sequences)])
            error = float((found - expected).abs().max())
            assert error < 1e-4 if moved else error > 0.1


def test_models_that_cannot_pack_keep_their_attention() -> None:
    """Positions stretched by the longest sequence, and a window that is shorter than a sequence."""
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    stretched = tiny_language_model(rope_parameters=dynamic)
    assert not stretched.supports_packing and stretched.base_model.config._attn_implementation == "sdpa"
    window = tiny_language_model("mistral", sliding_window=64)
    assert window.packs(64) and not window.packs(65)
    eager = tiny_language_model(attn_implementation="eager")
    assert not eager.supports_packing and eager.base_model.config._attn_implementation == "eager"
