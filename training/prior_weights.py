"""Fit the prior weights of a selector: the closed first part of the M-step.

A selector's logits are a weighted sum of components (`Selector.components`): those of the list-wise selector are the
logits of its language model and the retriever's scores. For given permutations the components are constants, so the
estimated log p(y|x) of *all* questions is a cheap function of a few weights: it is maximised as such, where gradient
steps over a few questions each would mostly see noise. The adapters then learn by gradient through weights that already
fit. (Maximising over some parameters first is conditional maximisation, ECM: Meng & Rubin 1993.)

Legend: C components, m permutations, K selected, n candidates.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from retriever.permutations import sequential_log_prob
from retriever.selector import Selector
from training.losses import marginal_selector_loss, selector_loss
from training.posterior import Posterior

CLOSED = 0.1
"""Share of its start below which a weight counts as closed."""
RIDGE = 0.03
"""Nats per question a step of length 1 must gain; a few questions that all agree would ask for infinite weights."""


Components = Sequence[tuple[Tensor, ...]]
"""What each prior weight of a selector multiplies, for every question; empty where there is nothing to fit."""


def prior_components(
    selector: Selector, posteriors: Sequence[Posterior], progress: Callable[[int], None] = lambda count: None
) -> Components:
    """The components of the selector's logits at the permutations of every posterior, in order.

    Args:
        selector: Whose `prior_weights` they belong to.
        posteriors: Of one E-step.
        progress: Called with the number of questions just finished.
    """
    found: list[tuple[Tensor, ...]] = []
    weights = selector.prior_weights
    for posterior in posteriors:
        components = selector.components(posterior.candidates, posterior.permutations) if weights else {}
        if not components:
            return []
        found.append(tuple(components[name] for name in weights))
        progress(1)
    return found


def fit_prior_weights(
    selector: Selector,
    posteriors: Sequence[Posterior],
    progress: Callable[[int], None] = lambda count: None,
    components: Components | None = None,
) -> dict[str, float]:
    """Set the selector's prior weights to the optimum over all posteriors.

    Args:
        selector: Only its `prior_weights` change.
        posteriors: Of one E-step.
        progress: Called with the number of questions just finished.
        components: As `prior_components` finds them, where they are known already.

    Returns:
        The weights by name; nothing where the selector has none to fit.
    """
    known = prior_components(selector, posteriors, progress) if components is None else components
    if not known:
        return {}
    groups: dict[tuple[torch.Size, ...], list[tuple[Tensor, ...]]] = defaultdict(list)
    for posterior, parts in zip(posteriors, known, strict=True):
        baseline_m = torch.zeros(0) if posterior.baseline_m is None else posterior.baseline_m
        drawn = (posterior.permutations.z, posterior.permutations.log_p)
        tensors = (*parts, *drawn, posterior.weights_m, baseline_m)
        groups[tuple(t.shape for t in tensors)].append(tensors)
    stacks = [tuple(torch.stack(tensors) for tensors in zip(*group, strict=True)) for group in groups.values()]
    weights = selector.prior_weights
    best = best_prior_weights(stacks, current_weights(selector), len(posteriors))
    with torch.no_grad():
        for weight, value in zip(weights.values(), best, strict=True):
            weight.fill_(float(value))
    return {name: weight.item() for name, weight in weights.items()}


def current_weights(selector: Selector) -> Tensor:
    """The selector's prior weights as they are, float32 `[C]` on the CPU."""
    return torch.cat([weight.detach().float().cpu() for weight in selector.prior_weights.values()])


def warnings_of_closed_gates(selector: Selector, questions: int) -> list[str]:
    """Of weights that are below a tenth of where they started: what they multiply hardly counts, or counts against.

    Args:
        selector: After the fit.
        questions: How many it was fitted to.
    """
    now = {name: float(selector.prior_weights[name].detach()) for name in selector.start_weights}
    return [
        f"The {name} of the selector should stay near where it started, {start:.3g}; the fit to the posteriors of "
        f"{questions} questions has set it to {now[name]:.3g}, so the selector "
        + (f"ranks against what the {name} multiplies" if now[name] < 0 else "ranks by the rest of its logits")
        + ". Give it more questions, or a smaller e_step.likelihood_exponent: the posterior may know less than the "
        "untrained selector (posterior_gold_share and selector_gold_share of the round, where gold ids exist)."
        for name, start in selector.start_weights.items()
        if now[name] < CLOSED * start
    ]


def best_prior_weights(stacks: Sequence[tuple[Tensor, ...]], start: Tensor, count: int) -> Tensor:
    """The optimum of the weights `[C]` from `start`.

    Args:
        stacks: Questions of equal shapes together: C components that broadcast to `[N, m, K, n]`, then `z_NmK,
            log_p_old_Nm, w_Nm, b_Nm`, where an empty `b_N0` stands for the paper's estimator.
        start: `[C]`; the ridge pulls towards it.
        count: Questions in all stacks.
    """
    weights_C = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights_C], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        fit = torch.stack([_loss(weights_C, stack[:-4], *stack[-4:]) for stack in stacks]).sum() / count
        loss = fit + RIDGE * (weights_C - start).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = weights_C.detach()
    return found if bool(found.isfinite().all()) else start


def log_prob(weights_C: Tensor, components: Sequence[Tensor], z_NmK: Tensor) -> Tensor:
    """Log p_s `[N, m]` of permutations of N questions at these weights.

    Args:
        weights_C: The prior weights.
        components: What each multiplies; they broadcast to `[N, m, K, n]`.
        z_NmK: The permutations.
    """
    N, m, K = z_NmK.shape
    n = components[0].shape[-1]
    weighted = [weight * component for weight, component in zip(weights_C, components, strict=True)]
    logits_NmKn = sum(weighted[1:], start=weighted[0]).expand(N, m, K, n)
    absent = torch.zeros(N * m, n, dtype=torch.bool)
    return sequential_log_prob(logits_NmKn.reshape(N * m, K, n), z_NmK.reshape(N * m, K), absent).view(N, m)


def _loss(
    weights_C: Tensor, components: Sequence[Tensor], z_NmK: Tensor, old_Nm: Tensor, w_Nm: Tensor, b_Nm: Tensor
) -> Tensor:
    """Sum over N questions of the selector's loss at these weights."""
    log_p_Nm = log_prob(weights_C, components, z_NmK)
    if not b_Nm.shape[-1]:
        return selector_loss(log_p_Nm, w_Nm).sum()
    return marginal_selector_loss(log_p_Nm, old_Nm, w_Nm, b_Nm).sum()
