"""How much to listen to the language model: the first, exact step of the M-step.

The retriever prior pools two opinions with two weights, `gate` and `strength`. For given permutations their logits are
constants, so the estimated log p(y|x) of *all* questions is a cheap function of two numbers: it is maximised as such,
where gradient steps over a few questions each would mostly see noise. The adapters then learn by gradient through a
gate that is already open. (Maximising over some parameters first is conditional maximisation, ECM: Meng & Rubin 1993.)

Legend: m permutations, K selected, n candidates.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from retriever.permutations import sequential_log_prob
from retriever.selector import Selector
from training.estimation import Posterior
from training.losses import marginal_selector_loss, selector_loss

RIDGE = 0.03
"""Nats per question a step of length 1 must gain; a few questions that all agree would ask for infinite weights."""


def fit_prior_weights(
    selector: Selector, posteriors: Sequence[Posterior], progress: Callable[[int], None] = lambda count: None
) -> None:
    """Set the selector's two pooling weights to the optimum over all posteriors.

    Args:
        selector: With a retriever prior; only its two weights change.
        posteriors: Of one E-step.
        progress: Called with the number of questions just finished.
    """
    cases: dict[tuple[int, ...], list[tuple[Tensor, ...]]] = defaultdict(list)
    for posterior in posteriors:
        lm_mKn, prior_n = selector.prior_components(posterior.candidates, posterior.permutations)
        baseline_m = torch.zeros(0) if posterior.baseline_m is None else posterior.baseline_m
        drawn = (posterior.permutations.z_mK, posterior.permutations.log_p_m)
        cases[tuple(lm_mKn.shape)].append((lm_mKn, prior_n, *drawn, posterior.weights_m, baseline_m))
        progress(1)
    stacks = [tuple(torch.stack(tensors) for tensors in zip(*group, strict=True)) for group in cases.values()]
    weights = (selector.prior.gate, selector.prior.strength)
    start = torch.cat([w.detach().float().cpu() for w in weights])
    best = best_pooling(stacks, start, len(posteriors))
    with torch.no_grad():
        for weight, value in zip(weights, best, strict=True):
            weight.fill_(float(value))


def best_pooling(stacks: Sequence[tuple[Tensor, ...]], start: Tensor, count: int) -> Tensor:
    """The optimum of `[gate, strength]` from `start`.

    Args:
        stacks: Questions of equal shapes together: `lm_NmKn, prior_Nn, z_NmK, log_p_old_Nm, w_Nm, b_Nm`, where an empty
            `b_N0` stands for the paper's estimator.
        start: `[2]`; the ridge pulls towards it.
        count: Questions in all stacks.
    """
    pooling = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([pooling], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        fit = torch.stack([_loss(pooling, *stack) for stack in stacks]).sum() / count
        loss = fit + RIDGE * (pooling - start).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    found = pooling.detach()
    return found if bool(found.isfinite().all()) else start


def _loss(
    pooling: Tensor, lm_NmKn: Tensor, prior_Nn: Tensor, z_NmK: Tensor, old_Nm: Tensor, w_Nm: Tensor, b_Nm: Tensor
) -> Tensor:
    """Sum over N questions of the selector's loss at these pooling weights."""
    N, m, K, n = lm_NmKn.shape
    logits_NmKn = pooling[0] * lm_NmKn + pooling[1] * prior_Nn[:, None, None, :]
    absent = torch.zeros(N * m, n, dtype=torch.bool)
    log_p_Nm = sequential_log_prob(logits_NmKn.reshape(N * m, K, n), z_NmK.reshape(N * m, K), absent).view(N, m)
    if not b_Nm.shape[-1]:
        return selector_loss(log_p_Nm, w_Nm).sum()
    return marginal_selector_loss(log_p_Nm, old_Nm, w_Nm, b_Nm).sum()
