"""Distributions over ordered subsets, against enumeration and against numbers worked out by hand."""

import itertools
import math

import pytest
import torch

from indexes.errors import UsageError
from retriever.permutations import (
    Permutations,
    enumerate_permutations,
    log_inclusion,
    perturbed_children,
    plackett_luce_log_prob,
    sample_step,
    sequential_log_prob,
    standard_gumbel,
)


def test_plackett_luce_by_hand() -> None:
    """Scores log(1), log(2), log(3): p(third, first) = 3/6 * 1/3 = 1/6."""
    scores = torch.tensor([1.0, 2.0, 3.0]).log()
    log_p = plackett_luce_log_prob(scores, torch.tensor([[2, 0], [0, 1]]))
    torch.testing.assert_close(log_p.exp(), torch.tensor([1 / 6, 1 / 6 * 2 / 5]))


@pytest.mark.parametrize(("n", "k"), [(6, 3), (5, 5), (4, 1)])
def test_enumeration_equals_itertools(n: int, k: int) -> None:
    assert enumerate_permutations(n, k).tolist() == [list(z) for z in itertools.permutations(range(n), k)]


def test_probabilities_sum_to_one_with_different_logits_per_step() -> None:
    """Step k's logits may depend on z_<k; here they are a fixed random function of it."""
    n, k = 5, 3
    z = enumerate_permutations(n, k)
    table = torch.randn(6**k, n, generator=torch.Generator().manual_seed(0)) * 2
    steps = [[0 if j == 0 else sum((int(i) + 1) * 6**p for p, i in enumerate(row[:j])) for j in range(k)] for row in z]
    logits = table[torch.tensor(steps)]
    log_p = sequential_log_prob(logits, z, torch.zeros(len(z), n, dtype=torch.bool))
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_absent_ids_have_probability_zero() -> None:
    """Four columns, but only three candidates: the 3!/1! = 6 pairs over them hold all the mass."""
    z = enumerate_permutations(3, 2)
    absent = torch.tensor([[False, False, False, True]]).expand(len(z), -1)
    log_p = sequential_log_prob(torch.randn(1, 2, 4).expand(len(z), -1, -1), z, absent)
    # The second step's logits are the same for all here, so this is one distribution per first choice.
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_gumbel_steps_follow_the_probabilities() -> None:
    p = torch.tensor([0.1, 0.2, 0.7])
    draws = sample_step(p.log().expand(20_000, 3), torch.Generator().manual_seed(3))
    found = torch.bincount(draws, minlength=3) / len(draws)
    assert (found - p).abs().max().item() < 4 * math.sqrt(0.25 / len(draws))


def test_masked_ids_are_never_drawn() -> None:
    log_p = torch.tensor([0.0, float("-inf"), -30.0]).expand(5_000, 3)
    assert not (sample_step(log_p, torch.Generator().manual_seed(0)) == 1).any()


def test_gradient_through_a_mask_is_finite() -> None:
    scores = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[2, 0, 1]])
    torch.autograd.gradcheck(lambda s: plackett_luce_log_prob(s.float(), z).double(), scores, eps=1e-2, atol=1e-2)
    plackett_luce_log_prob(scores, z).sum().backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize(("n", "k"), [(3, 4), (3, 0)])
def test_selecting_more_than_there_is_is_refused(n: int, k: int) -> None:
    with pytest.raises(UsageError, match=f"got K={k}, n={n}"):
        enumerate_permutations(n, k)


def test_too_many_permutations_to_enumerate() -> None:
    with pytest.raises(UsageError, match="gives 1860480"):
        enumerate_permutations(20, 5)


def test_distinct_returns_the_index_of_each_draw() -> None:
    z = torch.tensor([[1, 0], [2, 1], [1, 0]])
    unique, inverse = Permutations(z, torch.zeros(3), torch.zeros(3)).distinct()
    assert len(unique) == 2
    assert torch.equal(unique[inverse], z)


def test_perturbed_children_are_distributed_as_leaves() -> None:
    """Top two of three leaves by way of their tree, against the closed form of drawing without replacement."""
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    generator, draws = torch.Generator().manual_seed(2), 40_000
    root = standard_gumbel((draws, 1), generator)
    inner = perturbed_children(torch.tensor([0.5, 0.5]).log().expand(draws, 1, 2), root, generator)[:, 0]
    left = perturbed_children(p[:2].log().expand(draws, 1, 2), inner[:, :1], generator)[:, 0]
    leaves = torch.cat([left, inner[:, 1:]], dim=1)
    torch.testing.assert_close(leaves.amax(1), root[:, 0])
    order = leaves.argsort(dim=1, descending=True)
    found = torch.bincount(order[:, 0] * 3 + order[:, 1], minlength=9) / draws
    for first, second in itertools.permutations(range(3), 2):
        expected = float(p[first] * p[second] / (1 - p[first]))
        assert float(found[first * 3 + second]) == pytest.approx(expected, abs=4 * math.sqrt(0.25 / draws))


def test_missing_children_are_never_perturbed() -> None:
    absent = float("-inf")
    log_q = torch.tensor([[0.0, absent], [absent, absent], [-1.0, -2.0]])
    found = perturbed_children(log_q, torch.tensor([0.3, 0.1, absent]), torch.Generator().manual_seed(0))
    assert found[0, 0].item() == pytest.approx(0.3)
    assert found.isneginf().tolist() == [[False, True], [True, True], [True, True]]


def test_sums_over_a_sample_without_replacement_are_unbiased() -> None:
    """E[sum f / inclusion] is the sum of f over all leaves; without the inclusion weights it is not."""
    generator, draws, m = torch.Generator().manual_seed(4), 20_000, 3
    log_p = torch.randn(7, generator=generator).mul(2).log_softmax(0).double()
    f = log_p.exp() * torch.randn(7, generator=generator)
    perturbed = log_p + standard_gumbel((draws, 7), generator)
    values, taken = perturbed.topk(m + 1, dim=1)
    inclusion = log_inclusion(log_p[taken[:, :m]], values[:, m:]).exp()
    sums = (f[taken[:, :m]] / inclusion).sum(1)
    error = sums.std().item() / math.sqrt(draws)
    assert sums.mean().item() == pytest.approx(f.sum().item(), abs=4 * error)
    assert abs(f[taken[:, :m]].sum(1).mean().item() - f.sum().item()) > 4 * error


def test_inclusion_probability_is_one_when_all_are_drawn() -> None:
    assert log_inclusion(torch.tensor([-3.0, -90.0]), torch.tensor(float("-inf"))).tolist() == [0.0, 0.0]
