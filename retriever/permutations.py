"""Distributions over ordered K-subsets of n candidates: pure functions, tensors in and tensors out.

A permutation z = (z_1, ..., z_K) names K *different* candidates in order. Ids are drawn one after the other under
a mask that leaves only unused ids, so every draw is well formed and the probabilities of all n!/(n-K)!
permutations sum to 1:

    p(z | x) = prod_k  softmax(s_k over ids not in z_<k)[z_k]

With one and the same score vector at every step (`single_pass`) this is the Plackett-Luce distribution, and
sorting Gumbel-perturbed scores draws from it exactly (Kool et al., arXiv 1903.06059). With scores that depend on
z_<k (`autoregressive`) it is DRO's selector (arXiv 2505.03075).

Legend: B questions, m permutations, K selected, n candidates.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from indexes.errors import UsageError
from retriever.selector_config import check_selection

NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True)
class Permutations:
    """m permutations of one question's candidates, with both log-probabilities that importance weights need.

    They differ when the proposal is not the selector itself (another temperature, enumeration), and mixing them
    up is the classic way to get wrong importance weights.
    """

    z: Tensor
    """Candidate positions, int64 `[m, K]`."""
    log_p: Tensor
    """log p_s(z | x) under the selector when they were drawn, float32 `[m]`."""
    log_q: Tensor
    """log q(z | x) under the proposal they were drawn from, float32 `[m]`."""
    lm_logits: Tensor | None = None
    """Id logits of the language model at every step `[m, K, n]`, float32, where they were computed while drawing."""

    def __len__(self) -> int:
        return len(self.z)

    def at(self, index: Tensor) -> "Permutations":
        """Some of them, by position."""
        lm_logits = None if self.lm_logits is None else self.lm_logits[index]
        return Permutations(self.z[index], self.log_p[index], self.log_q[index], lm_logits)

    def distinct(self) -> tuple[Tensor, Tensor]:
        """`(z_uK, inverse_m)`: the distinct permutations, and the index of each draw among them."""
        distinct, inverse = torch.unique(self.z, dim=0, return_inverse=True)
        return distinct, inverse


def mask_used(logits_n: Tensor, used_n: Tensor) -> Tensor:
    """Logits `[..., n]` in float32 with used (or absent) ids at minus infinity."""
    return logits_n.float().masked_fill(used_n, NEGATIVE_INFINITY)


def mark_used(used_n: Tensor, chosen: Tensor) -> Tensor:
    """`used_n` with the chosen id of each row added; no in-place change (autograd may hold the old one)."""
    return used_n.scatter(-1, chosen.unsqueeze(-1), torch.ones_like(chosen, dtype=torch.bool).unsqueeze(-1))


def sequential_log_prob(step_logits_mKn: Tensor, z_mK: Tensor, absent_mn: Tensor) -> Tensor:
    """Log p(z) when step k has its own logits.

    Args:
        step_logits_mKn: Scores of all n ids at each step.
        z_mK: The permutations.
        absent_mn: True where an id does not exist for this question (fewer than n candidates).

    Returns:
        float32 `[m]`, differentiable in the logits.
    """
    used_mn = absent_mn
    total_m = step_logits_mKn.new_zeros(len(z_mK), dtype=torch.float32)
    for k in range(z_mK.shape[1]):
        log_p_mn = mask_used(step_logits_mKn[:, k], used_mn).log_softmax(-1)
        total_m = total_m + log_p_mn.gather(-1, z_mK[:, k : k + 1]).squeeze(-1)
        used_mn = mark_used(used_mn, z_mK[:, k])
    return total_m


def plackett_luce_log_prob(scores_n: Tensor, z_mK: Tensor) -> Tensor:
    """Log p(z) under Plackett-Luce: `sum_k s[z_k] - logsumexp(s over ids not in z_<k)`; float32 `[m]`."""
    steps_mKn = scores_n.expand(len(z_mK), z_mK.shape[1], -1)
    return sequential_log_prob(steps_mKn, z_mK, torch.zeros_like(steps_mKn[:, 0], dtype=torch.bool))


@dataclass(frozen=True)
class Proposal:
    """What permutations are drawn from: the selector at another temperature.

    The selector itself and the proposal are followed step by step in one tensor of cumulative log-probabilities:
    component 0 is log p_s, component 1 is log q.
    """

    temperature: float = 1.0

    def start(self, num_questions: int, num_nodes: int, device: torch.device) -> Tensor:
        """Of the root: zeros `[C, B, nodes]`."""
        return torch.zeros(2, num_questions, num_nodes, device=device)

    def children(self, log_CBb: Tensor, logits_Bbn: Tensor) -> Tensor:
        """From nodes `[C, B, b]` and the masked id logits that follow each to their children `[C, B, b, n]`."""
        parts = [logits_Bbn, logits_Bbn / self.temperature]
        return log_CBb.unsqueeze(-1) + torch.stack(parts).log_softmax(-1)


def sample_step(log_q_n: Tensor, generator: torch.Generator | None) -> Tensor:
    """One id per row from normalised log-probabilities `[..., n]`, by the Gumbel maximum."""
    perturbed_n = log_q_n.cpu().double() + standard_gumbel(log_q_n.shape, generator)
    return perturbed_n.argmax(-1).to(log_q_n.device)  # some devices have no float64


def standard_gumbel(shape: torch.Size | tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Independent Gumbel(0) noise on the CPU; in float64, because float32 hits 0 often enough for infinite ones."""
    return -torch.empty(shape, dtype=torch.float64).exponential_(generator=generator).log()


def perturbed_children(log_q_bn: Tensor, perturbed_parent_b: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gumbel-perturbed log-probabilities of all children of b nodes, given each node's own.

    A node's perturbed log-probability is the largest of its leaves', so its children's are drawn under the condition
    that their largest is the node's (Kool et al. 2019, arXiv 1903.06059, section 4.1 and appendix B.3).

    Args:
        log_q_bn: Log-probability of each child from the root; minus infinity for one that does not exist.
        perturbed_parent_b: Of the nodes; minus infinity for one that does not exist.
        generator: Of the noise.

    Returns:
        float64 `[..., b, n]` on the CPU.
    """
    log_q_bn, parent_b1 = log_q_bn.double().cpu(), perturbed_parent_b.double().cpu().unsqueeze(-1)
    free_bn = log_q_bn + standard_gumbel(log_q_bn.shape, generator)
    gap_bn = free_bn - free_bn.amax(-1, keepdim=True)
    v_bn = parent_b1 - free_bn + torch.log(-torch.expm1(gap_bn))
    given_bn = parent_b1 - v_bn.clamp_min(0) - torch.log1p(torch.exp(-v_bn.abs()))
    return given_bn.masked_fill(log_q_bn.isneginf() | parent_b1.isneginf(), NEGATIVE_INFINITY)


def log_inclusion(log_q_m: Tensor, threshold: Tensor) -> Tensor:
    """Log-probability that a leaf is among those whose perturbed log-probability passes `threshold`.

    `log(1 - exp(-exp(log q - kappa)))`: with kappa the largest perturbed value that was *not* taken, sums of
    `f / inclusion` over the sample are unbiased (Kool et al. 2019, section 4.2).
    """
    return torch.log(-torch.expm1(-torch.exp(log_q_m.double() - threshold.double())))


def enumerate_permutations(n: int, k: int, *, limit: int = 100_000) -> Tensor:
    """All n!/(n-k)! ordered k-subsets of `range(n)`, int64 `[n!/(n-k)!, k]`, in lexicographic order.

    Raises:
        UsageError: k > n, or more than `limit` of them.
    """
    check_selection(n, k)
    count = math.perm(n, k)
    if count > limit:
        raise UsageError(
            f"Exact mode enumerates n!/(n-K)! permutations and allows {limit}; n={n}, K={k} gives {count}. "
            "Lower num_candidates or num_selected, or sample."
        )
    rows = torch.arange(n).unsqueeze(-1)
    for _ in range(k - 1):
        grown = torch.cat([rows.repeat_interleave(n, 0), torch.arange(n).repeat(len(rows)).unsqueeze(-1)], -1)
        rows = grown[(grown[:, :-1] != grown[:, -1:]).all(-1)]
    return rows
