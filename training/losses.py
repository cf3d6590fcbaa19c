r"""The objective, as pure functions of log-probabilities and hidden states.

DRO (arXiv 2505.03075) treats the permutation z of documents as a latent variable:

    log p(y|x) = log sum_z p_s(z|x) p_g(y|x,d_z)

E-step: z_1..z_m from a proposal q, `log omega_j = log p_s(z_j|x) - log q(z_j|x) + log p_g(y|x,d_zj)`,
`w = softmax(log omega)`: self-normalised importance sampling of the posterior p(z|x,y).
M-step: `L = - sum_j (w_j - b_j) log p_s(z_j|x) - sum_j w_j log p_g(y|x,d_zj) + alpha L_selfaug`.

SelfAug (arXiv 2509.03934): `L_selfaug` is the KL between the base's and the tuned model's next-token
distributions on the *input* tokens.

Legend: m permutations, N token positions, C positions of a chunk, H hidden size, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from indexes.errors import UsageError

Head = Callable[[Tensor], Tensor]


def log_importance_weights(log_p_m: Tensor, log_q_m: Tensor, log_likelihood_m: Tensor) -> Tensor:
    """`log omega_m = log p_s - log q + log p_g`, unnormalised, float32 `[m]`."""
    return log_p_m.float() - log_q_m.float() + log_likelihood_m.float()


def posterior_weights(log_omega_m: Tensor) -> Tensor:
    """`w = softmax(log omega)`: non-negative, sums to 1, computed in float32 log space."""
    return log_omega_m.float().softmax(-1)


def baseline_weights(log_p_m: Tensor, log_q_m: Tensor) -> Tensor:
    """`b`: the self-normalised p_s/q weights, 1/m each when q is the selector itself.

    They are what w would be if every permutation explained the answer equally well. Since
    E_p[grad log p_s] = 0, subtracting them leaves the gradient's mean and removes the noise that otherwise
    pulls the selector onto its own samples.
    """
    return (log_p_m.float() - log_q_m.float()).softmax(-1)


def log_marginal(log_omega_m: Tensor) -> Tensor:
    """Estimate of log p(y|x): `logsumexp(log omega) - log m` (exact under enumeration)."""
    return log_omega_m.float().logsumexp(-1) - math.log(log_omega_m.shape[-1])


def effective_sample_size(weights_m: Tensor) -> Tensor:
    """`1 / sum w^2`, between 1 (one permutation takes all) and m (all equal)."""
    return 1.0 / weights_m.square().sum(-1)


def tempered_exponent(log_ratio_m: Tensor, log_likelihood_m: Tensor, floor: float) -> float:
    """The largest power of p(y|z), at most 1, at which the effective sample size is still `floor`.

    As sequential Monte Carlo tempers its likelihoods (Del Moral et al. 2006). Where no power leaves as many, because
    the proposal itself is too uneven, 0: then nothing is learned from the answer.

    Args:
        log_ratio_m: log p_s - log q.
        log_likelihood_m: log p_g, nats.
        floor: Effective permutations.
    """

    def is_enough(exponent: float) -> bool:
        weights_m = posterior_weights(log_ratio_m + exponent * log_likelihood_m)
        return float(effective_sample_size(weights_m)) >= floor

    # Where the likelihood corrects an uneven proposal the effective sample size first rises: no plain bisection.
    steps = 64
    enough = next((i for i in range(steps, -1, -1) if is_enough(i / steps)), None)
    if enough is None or enough == steps:
        return 0.0 if enough is None else 1.0
    low, high = enough / steps, (enough + 1) / steps
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if is_enough(middle) else (low, middle)
    return low


def selector_loss(log_p_m: Tensor, weights_m: Tensor) -> Tensor:
    """The paper's M-step for the selector: `- sum_j w_j log p_s(z_j|x)`."""
    return -(weights_m * log_p_m).sum(-1)


def marginal_selector_loss(log_p_m: Tensor, log_p_old_m: Tensor, weights_m: Tensor, baseline_m: Tensor) -> Tensor:
    """With the control variate: minus the gain in the estimated log p(y|x) since the samples were drawn.

    The self-normalised estimate of p(y|x) is `sum_j b_j p_g(y|x,d_zj)`. Written for a selector that has moved on,
    both w and b follow it: `- log sum_j w_j p_new/p_old (z_j) + log sum_j b_j p_new/p_old (z_j)`. Its gradient is that
    of `- sum_j (w_j - b_j) log p_s(z_j|x)` with w and b of the selector as it is *now*, so samples may be passed over
    again. With w and b of the selector that was, the negative ones would be lowered without end.

    Args:
        log_p_m: Under the selector now, with gradient.
        log_p_old_m: Under the selector that drew the samples.
        weights_m: w, summing to 1.
        baseline_m: b, summing to 1.

    Returns:
        `[...]`: 0 where nothing has moved; never below `- log max_j w_j / b_j`.
    """
    growth_m = log_p_m - log_p_old_m
    return (growth_m + baseline_m.log()).logsumexp(-1) - (growth_m + weights_m.log()).logsumexp(-1)


def distillation_target(marginals_n: Tensor, expected_n: Tensor | None, logits_n: Tensor, m: int) -> Tensor:
    """What the retriever's softmax over the candidates should be, from how probably each is read `[n]`; sums to 1.

    Its own logits, each moved by as much as the answer moved the log-odds of the candidate's being read. The marginals
    themselves would not do: K candidates are always read, so the useless ones among them would be taught too. And a
    ratio of marginals would teach little where a candidate was read anyway; odds want all useful ones on top.

    Args:
        marginals_n: Probability under the posterior that each is read; they sum to K.
        expected_n: The same before the answer was seen; None (given, not drawn): the marginals are the target.
        logits_n: The retriever's, when the candidates were found.
        m: Permutations behind the marginals; nothing is surer than half a permutation.
    """
    if expected_n is None:
        return marginals_n / marginals_n.sum()
    eps = 0.5 / m
    return (logits_n + marginals_n.logit(eps) - expected_n.logit(eps)).softmax(-1)


def distillation_loss(logits_n: Tensor, target_n: Tensor) -> Tensor:
    """The retriever's M-step by distillation: cross-entropy from what its softmax over the candidates should be.

    As REPLUG-LSR (arXiv 2301.12652) distils how much each document explains, with the posterior over all permutations
    in place of the likelihood of one document alone.

    Args:
        logits_n: The retriever's scores of the candidates, with gradient.
        target_n: Summing to 1.
    """
    return -(target_n * logits_n.log_softmax(-1)).sum()


def generator_loss(log_likelihood_m: Tensor, weights_m: Tensor) -> Tensor:
    """The M-step for the generator: `- sum_j w_j log p_g(y|x,d_zj)`."""
    return -(weights_m * log_likelihood_m).sum(-1)


def selfaug_positions(
    prompt_lengths_B: Tensor, row_weights_B: Tensor, *, include_last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Which positions SelfAug aligns, and the weight of each.

    Position t predicts token t+1, so a prompt of P tokens has P-1 predictions of input tokens; position P-1
    predicts the first *answer* token and is left out by default. Padding never appears.

    Returns:
        `(rows_N, positions_N, weights_N)`: weights average over a row's positions, then by `row_weights_B`.
    """
    counts_B = (prompt_lengths_B - (0 if include_last else 1)).clamp_min(0)
    rows_N = torch.repeat_interleave(torch.arange(len(counts_B), device=counts_B.device), counts_B)
    starts_B = torch.cumsum(counts_B, 0) - counts_B
    positions_N = torch.arange(len(rows_N), device=counts_B.device) - starts_B[rows_N]
    return rows_N, positions_N, (row_weights_B / counts_B.clamp_min(1))[rows_N]


def selfaug_loss(
    tuned_NH: Tensor,
    base_NH: Tensor,
    weights_N: Tensor,
    head: Head,
    *,
    direction: str = "forward",
    chunk_tokens: int = 128,
) -> Tensor:
    """`sum_n weights_n KL_n` between base and tuned next-token distributions, from hidden states.

    No tensor of N x V ever exists: logits live for `chunk_tokens` positions at a time, and the gradient with
    respect to the tuned hidden states is formed right there in the forward pass (the head is frozen).

    Args:
        tuned_NH: Hidden states with the adapter on, with gradient.
        base_NH: Hidden states with the adapter off.
        weights_N: Weight of each position.
        head: Hidden states to logits; its parameters get no gradient.
        direction: `"forward"` is KL(base || tuned) (the released code), `"reverse"` KL(tuned || base) (the paper).
        chunk_tokens: C.

    Returns:
        Scalar, float32.
    """
    if direction not in ("forward", "reverse"):
        raise UsageError(f"direction must be 'forward' or 'reverse'; {direction!r} came.")
    return _ChunkedKL.apply(tuned_NH, base_NH, weights_N, head, direction, chunk_tokens)


class _ChunkedKL(torch.autograd.Function):
    """Value and gradient together, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, tuned_NH: Tensor, base_NH: Tensor, weights_N: Tensor, head: Head, direction: str, chunk: int
    ) -> Tensor:
        needs_gradient = tuned_NH.requires_grad
        total = torch.zeros((), dtype=torch.float32, device=tuned_NH.device)
        gradient_NH = torch.empty_like(tuned_NH) if needs_gradient else None
        parts = zip(tuned_NH.split(chunk), base_NH.split(chunk), weights_N.float().split(chunk), strict=True)
        for i, (tuned_CH, base_CH, weights_C) in enumerate(parts):
            value, gradient_CH = _chunk_kl(tuned_CH, base_CH, weights_C, head, direction, needs_gradient)
            total += value
            if gradient_NH is not None and gradient_CH is not None:
                gradient_NH[i * chunk : i * chunk + len(tuned_CH)] = gradient_CH
        ctx.save_for_backward(gradient_NH)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NH,) = ctx.saved_tensors
        return gradient_NH * grad_outputs[0].to(gradient_NH.dtype), None, None, None, None, None


def _chunk_kl(
    tuned_CH: Tensor, base_CH: Tensor, weights_C: Tensor, head: Head, direction: str, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Weighted KL of one chunk and its gradient with respect to `tuned_CH`."""
    log_base_CV = head(base_CH).float().log_softmax(-1)
    with torch.enable_grad():
        leaf_CH = tuned_CH.detach().requires_grad_(needs_gradient)
        logits_CV = head(leaf_CH)
    log_tuned_CV = logits_CV.detach().float().log_softmax(-1)
    if direction == "forward":
        kl_C = (log_base_CV.exp() * (log_base_CV - log_tuned_CV)).sum(-1)
        # d KL(p||q) / d logits of q = q - p
        slope_CV = log_tuned_CV.exp() - log_base_CV.exp()
    else:
        difference_CV = log_tuned_CV - log_base_CV
        kl_C = (log_tuned_CV.exp() * difference_CV).sum(-1)
        # d KL(q||p) / d logits of q = q (log q - log p - KL)
        slope_CV = log_tuned_CV.exp() * (difference_CV - kl_C.unsqueeze(-1))
    value = (weights_C * kl_C).sum()
    if not needs_gradient:
        return value, None
    slope_CV = (slope_CV * weights_C.unsqueeze(-1)).to(logits_CV.dtype)
    return value, torch.autograd.grad(logits_CV, leaf_CH, slope_CV)[0]
