r"""The objective, as pure functions of log-probabilities and hidden states.

DRO (arXiv 2505.03075) treats the permutation z of candidate passages as a latent variable:

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

from generator.log_probs import log_normaliser, logit_bytes, rows_in_cache
from indexes.errors import UsageError

Head = Callable[[Tensor], Tensor]


def log_importance_weights(log_p_m: Tensor, log_q_m: Tensor, log_likelihood_m: Tensor, exponent: float = 1) -> Tensor:
    """`log omega_m = log p_s - log q + tau log p_g`, unnormalised, float32 `[m]`; tau is the exponent."""
    return log_p_m.float() - log_q_m.float() + exponent * log_likelihood_m.float()


def posterior_weights(log_omega_m: Tensor) -> Tensor:
    """`w = softmax(log omega)`: non-negative, sums to 1, computed in float32 log space."""
    return log_omega_m.float().softmax(-1)


def token_posterior_weights(log_p_m: Tensor, log_q_m: Tensor, token_log_p_mL: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior at every answer token, for a permutation drawn per token (RAG-Token, arXiv 2005.11401, section 2.1).

        p(y|x) = prod_i sum_z p_s(z|x) p_g(y_i|x,d_z,y_<i)
        w_mi   = p_s(z_m|x) p_g(y_i|x,d_zm,y_<i) / sum_m' p_s(z_m'|x) p_g(y_i|x,d_zm',y_<i)

    Args:
        log_p_m: log p_s of every permutation.
        log_q_m: Of the proposal; under enumeration uniform, so that the weights of p_s sum to 1.
        token_log_p_mL: log p_g of each answer token given each permutation, nats.

    Returns:
        `(w_mL, log_marginal)`: the posterior at each token, columns summing to 1, and log p(y|x).
    """
    log_prior_m1 = (log_p_m.float() - log_q_m.float()).log_softmax(-1).unsqueeze(-1)
    joint_mL = log_prior_m1 + token_log_p_mL.float()
    return joint_mL.softmax(0), joint_mL.logsumexp(0).sum()


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


def selector_loss(log_p_m: Tensor, weights_m: Tensor) -> Tensor:
    """The paper's M-step for the selector: `- sum_j w_j log p_s(z_j|x)`."""
    return -(weights_m * log_p_m).sum(-1)


def marginal_selector_loss(log_p_m: Tensor, log_p_old_m: Tensor, weights_m: Tensor, baseline_m: Tensor) -> Tensor:
    """With the control variate: minus the gain in the estimated log p(y|x) since the samples were drawn.

    The self-normalised estimate of p(y|x) is `sum_j b_j p_g(y|x,d_zj)`. Written for a selector that has moved on,
    both w and b follow it: `- log sum_j w_j p_new/p_old (z_j) + log sum_j b_j p_new/p_old (z_j)`. Its gradient is that
    of `- sum_j (w_j - b_j) log p_s(z_j|x)` with w and b of the selector as it is *now*, so samples may be passed over
    again. With w and b of the selector that was, the negative ones would be lowered without end. Where w is tempered,
    p_g stands for its power throughout: the gain is that of log sum_z p_s p_g^tau.

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
    in place of the likelihood of a single document.

    Args:
        logits_n: The retriever's scores of the candidates, with gradient.
        target_n: Summing to 1.
    """
    return -(target_n * logits_n.log_softmax(-1)).sum()


def lsr_loss(logits_n: Tensor, log_likelihood_n: Tensor, temperature: float) -> Tensor:
    """REPLUG LSR (arXiv 2301.12652, section 4): `KL(p_R || Q)` over the candidates of one question.

    p_R is the retriever's softmax, whose own temperature is the scale of its logits, and `Q(d) ~ p_g(y|x,d)^(1/beta)`.
    The paper's Q is a softmax of the probability itself; of its logarithm, as Atlas has it (arXiv 2208.03299), it does
    not go flat where the answer is long.

    Args:
        logits_n: The retriever's scores of the candidates, with gradient.
        log_likelihood_n: log p_g(y|x,d) of each single candidate, nats.
        temperature: beta.
    """
    log_p_n, log_target_n = logits_n.log_softmax(-1), (log_likelihood_n / temperature).log_softmax(-1)
    return (log_p_n.exp() * (log_p_n - log_target_n)).sum()


def generator_loss(log_likelihood_m: Tensor, weights_m: Tensor) -> Tensor:
    """The M-step for the generator: `- sum_j w_j log p_g(y|x,d_zj)`."""
    return -(weights_m * log_likelihood_m).sum(-1)


def selfaug_positions(prompt_lengths_B: Tensor, weights_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which positions SelfAug aligns, and the weight of each.

    Position t predicts token t+1, so a prompt of P tokens has P-1 predictions of input tokens. Position P-1 predicts
    the first *answer* token and is left out: aligning it would work against the loss of the answer. Padding never
    appears.

    Args:
        prompt_lengths_B: P of each sequence.
        weights_B: Weight of each sequence.

    Returns:
        `(sequence_N, position_N, weight_N)`: weights average over a sequence's positions, then by `weights_B`.
    """
    device = prompt_lengths_B.device
    counts_B = (prompt_lengths_B - 1).clamp_min(0)
    sequence_N = torch.repeat_interleave(torch.arange(len(counts_B), device=device), counts_B)
    position_N = torch.cat([torch.arange(count, device=device) for count in counts_B.tolist()])
    return sequence_N, position_N, (weights_B / counts_B.clamp_min(1))[sequence_N]


def selfaug_loss(
    tuned_NH: Tensor,
    base_NH: Tensor,
    weights_N: Tensor,
    head: Head,
    *,
    direction: str = "forward",
    chunk_tokens: int | None = None,
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
        chunk_tokens: C; None: as many as a tensor of logits of moderate size holds on this kind of device.

    Returns:
        Scalar, float32.
    """
    if direction not in ("forward", "reverse"):
        raise UsageError(f"direction must be 'forward' or 'reverse'; got {direction!r}.")
    loss: Tensor = SelfAugKL.apply(tuned_NH, base_NH, weights_N, head, direction, chunk_tokens)  # type: ignore[no-untyped-call]
    return loss


class SelfAugKL(torch.autograd.Function):
    """Value and gradient of the weighted KL together, in the forward pass, chunk by chunk.

    With p the base's distribution and q the tuned one, d KL(p||q) / d logits of q = q - p: nothing has to be kept for a
    backward pass. Three products with the head are all it takes (base logits, tuned logits, gradient).
    `torch.nn.functional.linear_cross_entropy` has targets, not distributions, and sums in the dtype of its input;
    Liger's fused JSD keeps a tensor of N x V, and its distillation loss forms the gradient of a head that is frozen.
    """

    @staticmethod
    def forward(
        ctx: Any,
        tuned_NH: Tensor,
        base_NH: Tensor,
        weights_N: Tensor,
        head: Head,
        direction: str,
        chunk_tokens: int | None,
    ) -> Tensor:
        """The value; the gradient is kept for `backward`."""
        needs_gradient = tuned_NH.requires_grad
        total = torch.zeros((), dtype=torch.float32, device=tuned_NH.device)
        gradient_NH = torch.empty_like(tuned_NH) if needs_gradient else None
        chunk = chunk_tokens or _chunk_tokens(head, base_NH)
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
        """Scales what `forward` found."""
        (gradient_NH,) = ctx.saved_tensors
        return gradient_NH * grad_outputs[0].to(gradient_NH.dtype), None, None, None, None, None


def default_chunk_tokens(row_bytes: int, *, cuda: bool = False) -> int:
    """C, the tokens whose logits exist at one time, so that they fill `generator.log_probs.logit_bytes`.

    Args:
        row_bytes: Of the logits of one token.
        cuda: Whether they are on a GPU.
    """
    fitting = max(logit_bytes(cuda=cuda) // row_bytes, 1)
    return min(max(1 << round(math.log2(fitting)), 16), 1024 if cuda else 256)


def _chunk_tokens(head: Head, hidden_NH: Tensor) -> int:
    row_0V = head(hidden_NH[:0])  # an empty input costs nothing and gives shape and dtype
    return default_chunk_tokens(row_0V.shape[-1] * row_0V.element_size(), cuda=hidden_NH.is_cuda)


def _chunk_kl(
    tuned_CH: Tensor, base_CH: Tensor, weights_C: Tensor, head: Head, direction: str, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Weighted KL of one chunk and its gradient with respect to `tuned_CH`."""
    base_CV = head(base_CH)
    with torch.enable_grad():
        leaf_CH = tuned_CH.detach().requires_grad_(needs_gradient)
        tuned_CV = head(leaf_CH)
    # Products want many rows, softmaxes want few enough for a fast cache: float32 exists for a few rows at a time.
    few = rows_in_cache(base_CV.shape[-1]) * (64 if base_CV.is_cuda else 1)
    kl_C = torch.cat(
        [
            _kl_and_slope(base_RV, tuned_RV, weights_R, direction)
            for base_RV, tuned_RV, weights_R in zip(
                base_CV.split(few), tuned_CV.detach().split(few), weights_C.split(few), strict=True
            )
        ]
    )
    value = (weights_C * kl_C).sum()
    # The slope stands where the base's logits were.
    return value, torch.autograd.grad(tuned_CV, leaf_CH, base_CV)[0] if needs_gradient else None


def _kl_and_slope(base_RV: Tensor, tuned_RV: Tensor, weights_R: Tensor, direction: str) -> Tensor:
    """KL of a few rows `[R]`; its weighted derivative by the tuned logits replaces the base's logits, in place."""
    base32_RV, tuned32_RV = base_RV.float(), tuned_RV.float()
    p_RV, q_RV = base32_RV.softmax(-1), tuned32_RV.softmax(-1)
    log_ratio_R1 = (log_normaliser(base32_RV, p_RV) - log_normaliser(tuned32_RV, q_RV)).unsqueeze(-1)
    if direction == "forward":
        # sum p (log p - log q); d KL(p||q) / d logits of q = q - p
        kl_R1 = (p_RV * base32_RV.sub_(tuned32_RV)).sum(-1, keepdim=True) - log_ratio_R1
        slope_RV = q_RV.sub_(p_RV)
    else:
        # d KL(q||p) / d logits of q = q (log q - log p - KL)
        difference_RV = tuned32_RV.sub_(base32_RV).add_(log_ratio_R1)
        kl_R1 = (q_RV * difference_RV).sum(-1, keepdim=True)
        slope_RV = difference_RV.sub_(kl_R1).mul_(q_RV)
    base_RV.copy_(slope_RV.mul_(weights_R.unsqueeze(-1)))
    return kl_R1.squeeze(-1)
