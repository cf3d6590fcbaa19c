"""The objective's parts: by hand, by enumeration, against full logits, by finite differences."""

import math

import pytest
import torch
from torch.nn import functional as F

from indexes.errors import UsageError
from retriever.permutations import enumerate_permutations, plackett_luce_log_prob
from training.losses import (
    baseline_weights,
    default_chunk_tokens,
    distillation_loss,
    distillation_target,
    effective_sample_size,
    generator_loss,
    log_importance_weights,
    log_marginal,
    marginal_selector_loss,
    posterior_weights,
    selector_loss,
    selfaug_loss,
    selfaug_positions,
)


def test_weights_by_hand() -> None:
    """p_s = q = (1/2, 1/2), likelihoods 0.3 and 0.1: posterior (3/4, 1/4), log p(y|x) = log 0.2, ESS = 1.6."""
    half = torch.tensor([0.5, 0.5]).log()
    log_omega = log_importance_weights(half, half, torch.tensor([0.3, 0.1]).log())
    weights = posterior_weights(log_omega)
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.25]))
    assert log_marginal(log_omega).item() == pytest.approx(math.log(0.2))
    assert effective_sample_size(weights).item() == pytest.approx(1.6)


def test_distillation_is_least_where_the_retriever_agrees() -> None:
    target_n = torch.tensor([0.45, 0.35, 0.15, 0.05])
    at_target = distillation_loss(target_n.log() + 3.0, target_n)
    assert float(at_target) == pytest.approx(float(torch.distributions.Categorical(target_n).entropy()), abs=1e-5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert float(distillation_loss(torch.randn(4, generator=generator), target_n)) > float(at_target)


class TestDistillationTarget:
    logits_n = torch.tensor([2.0, 1.0, 0.0, -1.0])

    def test_equal_likelihoods_leave_the_distillation_target_at_the_retriever(self) -> None:
        marginals_n = torch.tensor([0.9, 0.6, 0.3, 0.2])
        found = distillation_target(marginals_n, marginals_n, self.logits_n, 8)
        torch.testing.assert_close(found, self.logits_n.softmax(-1))

    def test_logits_move_by_the_change_in_log_odds(self) -> None:
        """By hand for the last candidate: from odds of 1/4 to odds of 3, a factor of 12."""
        before = torch.tensor([0.9, 0.6, 0.3, 0.2])
        found = distillation_target(torch.tensor([0.9, 0.6, 0.3, 0.75]), before, self.logits_n, 100)
        share = [math.exp(2), math.exp(1), 1.0, 12 * math.exp(-1)]
        assert found.tolist() == pytest.approx([s / sum(share) for s in share], abs=1e-5)

    def test_log_odds_are_bounded_by_half_a_permutation(self) -> None:
        """Of five permutations none, or all, held a candidate: that is a tenth, or nine."""
        found = distillation_target(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), torch.zeros(2), 5)
        assert found.tolist() == pytest.approx([81 / 82, 1 / 82], abs=1e-5)

    def test_with_enumeration_the_marginals_are_the_target(self) -> None:
        found = distillation_target(torch.tensor([1.0, 1.0, 0.0]), None, self.logits_n[:3], 1)
        assert found.tolist() == [0.5, 0.5, 0.0]


def test_the_proposal_is_corrected() -> None:
    """Trap 7: drawn from another q, the self-normalised weights still converge to the enumerated posterior."""
    n, k = 4, 2
    z = enumerate_permutations(n, k)
    generator = torch.Generator().manual_seed(0)
    scores, likelihood = torch.randn(n, generator=generator) * 1.5, torch.randn(len(z), generator=generator)
    log_p, log_q = plackett_luce_log_prob(scores, z), plackett_luce_log_prob(scores / 3, z)
    posterior = (log_p + likelihood).softmax(-1)
    drawn = torch.multinomial(log_q.exp(), 60_000, replacement=True, generator=generator)
    weights = posterior_weights(log_importance_weights(log_p[drawn], log_q[drawn], likelihood[drawn]))
    found = torch.zeros(len(z)).index_add(0, drawn, weights)
    assert (found - posterior).abs().max().item() < 0.01
    careless = torch.zeros(len(z)).index_add(0, drawn, likelihood[drawn].softmax(-1))
    assert (careless - posterior).abs().max().item() > 0.05  # the control: without log p - log q


def test_enumeration_is_exact() -> None:
    z = enumerate_permutations(4, 3)
    log_p = plackett_luce_log_prob(torch.tensor([0.3, -1.0, 2.0, 0.1]), z)
    likelihood = torch.randn(len(z), generator=torch.Generator().manual_seed(2)) - 5
    uniform = torch.full((len(z),), -math.log(len(z)))
    log_omega = log_importance_weights(log_p, uniform, likelihood)
    assert log_marginal(log_omega).item() == pytest.approx(float((log_p + likelihood).logsumexp(-1)), abs=1e-5)
    torch.testing.assert_close(posterior_weights(log_omega), (log_p + likelihood).softmax(-1))
    torch.testing.assert_close(baseline_weights(log_p, uniform), log_p.exp(), rtol=1e-4, atol=1e-6)


def test_long_answers_do_not_underflow() -> None:
    """Trap 9: log-likelihoods of -2000 nats, whose exp is 0 in every format."""
    weights = posterior_weights(torch.tensor([-2000.0, -2001.0]))
    torch.testing.assert_close(weights, torch.tensor([1.0, math.exp(-1)]) / (1 + math.exp(-1)))


def test_mean_instead_of_sum_of_log_probs_flattens_the_weights() -> None:
    """Trap 9: 64 answer tokens, 32 nats apart: the sum decides, the mean hardly does."""
    log_likelihood = torch.tensor([-64.0, -96.0])
    assert posterior_weights(log_likelihood)[0].item() > 0.9999
    assert posterior_weights(log_likelihood / 64)[0].item() == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_losses_by_hand() -> None:
    log_p, weights = torch.tensor([-1.0, -3.0]), torch.tensor([0.25, 0.75])
    assert selector_loss(log_p, weights).item() == pytest.approx(2.5)
    assert generator_loss(log_p, weights).item() == pytest.approx(2.5)


def test_control_variate_gradient_at_fresh_samples() -> None:
    """At p_new = p_old the gradient with respect to log p is -(w - b), and the gain is 0."""
    log_p = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    w, b = torch.tensor([0.7, 0.2, 0.1]), torch.full((3,), 1 / 3)
    loss = marginal_selector_loss(log_p, log_p.detach(), w, b)
    loss.backward()
    torch.testing.assert_close(log_p.grad, b - w)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_stale_samples_have_the_gradient_of_fresh_weights() -> None:
    """Enumerated: moved from p to another selector, the gain is that of log p(y|x), and w and b follow."""
    generator = torch.Generator().manual_seed(3)
    old, new, likelihood = (torch.randn(6, generator=generator).log_softmax(-1) for _ in range(3))
    w, b = (old + likelihood).softmax(-1), old.softmax(-1)
    log_p = new.clone().requires_grad_()
    loss = marginal_selector_loss(log_p, old, w, b)
    loss.backward()
    marginal = [(p + likelihood).logsumexp(-1).item() for p in (old, new)]
    assert loss.item() == pytest.approx(marginal[0] - marginal[1], abs=1e-5)
    torch.testing.assert_close(log_p.grad, new.exp() - (new + likelihood).softmax(-1))


def test_equal_utilities_give_no_selector_gradient() -> None:
    """The paper's estimator pulls the selector onto its own samples; with the control variate nothing moves."""
    log_p = torch.tensor([-1.0, -2.0], requires_grad=True)
    half = torch.tensor([0.5, 0.5])
    marginal_selector_loss(log_p, log_p.detach(), half, half).backward()
    assert torch.equal(log_p.grad, torch.zeros(2))
    (paper,) = torch.autograd.grad(selector_loss(log_p, half), log_p)
    assert paper.abs().min().item() == 0.5


def _ascend(weights: torch.Tensor, *, arms: int = 50, steps: int) -> torch.Tensor:
    """Probabilities of a softmax policy after many passes over one set of four samples; it starts uniform."""
    logits = torch.zeros(arms, requires_grad=True)
    old = logits.detach().log_softmax(-1)[:4]
    for _ in range(steps):
        loss = marginal_selector_loss(logits.log_softmax(-1)[:4], old, weights, torch.full((4,), 0.25))
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - gradient).detach().requires_grad_()
    return logits.detach().softmax(-1)


def test_one_m_step_can_reach_the_posterior() -> None:
    """A permutation that carries the whole posterior overtakes the other samples and everything unsampled."""
    p = _ascend(torch.tensor([1.0, 0.0, 0.0, 0.0]), steps=100)
    assert int(p.argmax()) == 0
    assert p[0] / p[1:4].sum() > 20
    assert p[0] > 5 * 0.02


def test_twenty_passes_over_equal_utilities_change_nothing() -> None:
    torch.testing.assert_close(_ascend(torch.full((4,), 0.25), steps=20), torch.full((50,), 0.02))


def test_many_passes_do_not_collapse_the_selector() -> None:
    """Only the ratio among the samples is at stake: what was not drawn keeps its place, and steps grow smaller.

    With w - b of the old selector, 500 steps would put `-(w - b) * 500` on each logit.
    """
    p = _ascend(torch.tensor([0.4, 0.4, 0.2, 0.0]), steps=500)
    assert p[4:].sum() > 0.5
    torch.testing.assert_close(p[4:], p[4:].mean().expand(46))


# -- SelfAug ---------------------------------------------------------------------------------------------------

N, H, V = 13, 6, 9


def _case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    tuned, base = (torch.randn(N, H, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    head = torch.randn(V, H, generator=generator, dtype=torch.float64).to(dtype)
    weights = torch.rand(N, generator=generator)
    return tuned.requires_grad_(), base, head, weights


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("chunk", [1, 4, 13, 50])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_chunked_kl_is_the_full_one(direction: str, chunk: int, cap: float | None) -> None:
    """Value and gradient against `F.kl_div` on full logits, with and without soft-capped logits."""
    tuned, base, weight, row_weights = _case()

    def head(h: torch.Tensor) -> torch.Tensor:
        logits = h @ weight.T
        return logits if cap is None else torch.tanh(logits / cap) * cap

    log_q, log_p = head(tuned).log_softmax(-1), head(base).log_softmax(-1)
    # F.kl_div(input, target) is KL(target || input)
    pair = (log_q, log_p) if direction == "forward" else (log_p, log_q)
    full = (F.kl_div(*pair, log_target=True, reduction="none").sum(-1) * row_weights).sum()
    (expected,) = torch.autograd.grad(full, tuned)
    ours = selfaug_loss(tuned, base, row_weights, head, direction=direction, chunk_tokens=chunk)
    (gradient,) = torch.autograd.grad(3.0 * ours, tuned)
    torch.testing.assert_close(ours, full.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient / 3.0, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_distributions_have_exactly_no_divergence(direction: str, dtype: torch.dtype) -> None:
    tuned, _, head, weights = _case(dtype)
    loss = selfaug_loss(tuned, tuned.detach().clone(), weights, lambda h: h @ head.T, direction=direction)
    assert loss.item() == 0.0
    loss.backward()
    assert tuned.grad is not None
    assert tuned.grad.abs().max().item() == 0.0


def test_the_head_gets_no_gradient() -> None:
    tuned, base, head, weights = _case()
    head.requires_grad_()
    selfaug_loss(tuned, base, weights, lambda h: h @ head.T).backward()
    assert head.grad is None


def test_the_kl_can_be_evaluated_without_a_graph() -> None:
    tuned, base, head, weights = _case()
    with torch.no_grad():
        value = selfaug_loss(tuned, base, weights, lambda h: h @ head.T)
    assert value.item() == pytest.approx(selfaug_loss(tuned, base, weights, lambda h: h @ head.T).item())


def test_logits_exist_only_for_a_chunk() -> None:
    tuned, base, weight, weights = _case()
    sizes: list[int] = []

    def head(h: torch.Tensor) -> torch.Tensor:
        sizes.append(len(h))
        return h @ weight.T

    selfaug_loss(tuned, base, weights, head, chunk_tokens=4).backward()
    assert max(sizes) == 4
    assert sum(sizes) == 2 * N


def test_positions_average_per_sequence_then_over_sequences() -> None:
    """P = 4 and 2: three and one predictions of input tokens. Row weights 1/2: each row counts the same (trap 10)."""
    rows, positions, weights = selfaug_positions(torch.tensor([4, 2]), torch.tensor([0.5, 0.5]))
    assert rows.tolist() == [0, 0, 0, 1]
    assert positions.tolist() == [0, 1, 2, 0]
    torch.testing.assert_close(weights, torch.tensor([1 / 6, 1 / 6, 1 / 6, 1 / 2]))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_large_vocabulary_is_processed_in_small_chunks(direction: str) -> None:
    """70,000 tokens in float32 are 280 kB: three rows at a time of the chunk's seven."""
    torch.manual_seed(0)
    head = torch.randn(70_000, 3)
    tuned, base, weights = torch.randn(9, 3, requires_grad=True), torch.randn(9, 3), torch.rand(9)
    log_q, log_p = (tuned @ head.T).log_softmax(-1), (base @ head.T).log_softmax(-1)
    pair = (log_q, log_p) if direction == "forward" else (log_p, log_q)
    full = (F.kl_div(*pair, log_target=True, reduction="none").sum(-1) * weights).sum()
    (expected,) = torch.autograd.grad(full, tuned)
    ours = selfaug_loss(tuned, base, weights, lambda h: h @ head.T, direction=direction, chunk_tokens=7)
    (gradient,) = torch.autograd.grad(ours, tuned)
    torch.testing.assert_close(ours, full.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_chunks_fit_the_vocabulary_and_the_device() -> None:
    """32 MiB of logits on a CPU, 256 MiB on a GPU, as a power of two between 16 and 256 (1,024)."""
    assert default_chunk_tokens(151_936 * 2) == 128
    assert default_chunk_tokens(32_000 * 2) == 256
    assert default_chunk_tokens(256_000 * 4) == 32
    assert default_chunk_tokens(2**30) == 16
    assert default_chunk_tokens(151_936 * 2, cuda=True) == 1024


def test_an_unknown_kl_direction_is_refused() -> None:
    tuned, base, head, weights = _case()
    with pytest.raises(UsageError, match="got 'sideways'"):
        selfaug_loss(tuned, base, weights, lambda h: h @ head.T, direction="sideways")
