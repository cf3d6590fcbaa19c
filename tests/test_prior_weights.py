"""Fitting the two pooling weights: against a grid, and what it must leave alone."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny_models import log_probs_of

from generator.generator import Generator
from generator.language_model import LanguageModel
from retriever.dense import DenseRetriever
from retriever.listwise_selector import ListwiseSelector
from training.config import DROConfig, EStepConfig
from training.estimation import EStep
from training.posterior import Posterior
from training.prior_weights import RIDGE, fit_prior_weights
from training.questions.example import QAExample

EXAMPLES = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare",), ("p0",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
    QAExample("q3", "who designed Python?", ("Guido van Rossum",), ("p5",)),
]


@pytest.fixture
def selector(language_model: LanguageModel, make_selector: Callable[..., ListwiseSelector]) -> ListwiseSelector:
    return make_selector(language_model, num_candidates=4, num_selected=2)


@pytest.fixture
def posteriors(selector: ListwiseSelector, retriever: DenseRetriever, generator: Generator) -> list[Posterior]:
    config = DROConfig(e_step=EStepConfig(num_permutations=6, replacement=True, proposals_per_sample=1))
    return EStep(retriever, selector, generator, config)(EXAMPLES, round=1)


def judged(posteriors: list[Posterior], utility: Callable[[Posterior], torch.Tensor]) -> list[Posterior]:
    """The same samples with other utilities."""
    return [
        replace(p, weights_m=(p.baseline_m.log() + utility(p)).softmax(-1))
        for p in posteriors
        if p.baseline_m is not None
    ]


def objective(
    selector: ListwiseSelector, posteriors: list[Posterior], gate: float, strength: float, start: list[float]
) -> float:
    """From the selector's own log-probabilities at these weights: nothing of the code under test."""
    with torch.no_grad():
        selector.prior.gate.fill_(gate)
        selector.prior.strength.fill_(strength)
    total = 0.0
    for p in posteriors:
        moved = log_probs_of(selector, p.candidates, p.permutations.z).double() - p.permutations.log_p
        assert p.baseline_m is not None
        estimate = (moved.exp() * p.weights_m).sum() / (moved.exp() * p.baseline_m).sum()
        total -= float(estimate.log()) / len(posteriors)
    return total + RIDGE * ((gate - start[0]) ** 2 + (strength - start[1]) ** 2)


def test_the_fit_finds_the_optimum(selector: ListwiseSelector, posteriors: list[Posterior]) -> None:
    """Nothing on a grid around it is better, and the start is worse."""
    start = [selector.prior.gate.item(), selector.prior.strength.item()]
    some = judged(posteriors, lambda p: 3.0 * (p.permutations.z[:, 0] == 1).float())
    fit_prior_weights(selector, some)
    gate, strength = selector.prior.gate.item(), selector.prior.strength.item()
    best = objective(selector, some, gate, strength, start)
    assert best < objective(selector, some, *start, start) - 1e-3
    for step in (0.02, 0.3):
        for dx, dy in ((step, 0), (-step, 0), (0, step), (0, -step), (step, step), (-step, -step)):
            assert objective(selector, some, gate + dx, strength + dy, start) > best - 1e-6


def test_the_gate_follows_the_agreement_with_the_language_model(
    selector: ListwiseSelector, posteriors: list[Posterior]
) -> None:
    """Utilities that agree with the language model open the gate; those that disagree close it."""
    start = selector.prior.gate.item()

    def agreement(p: Posterior) -> torch.Tensor:
        lm_mKn = selector.components(p.candidates, p.permutations)["gate"]
        return lm_mKn[:, 0].gather(-1, p.permutations.z[:, :1]).squeeze(-1)

    agreeing = judged(posteriors, lambda p: 2 * agreement(p))
    opposed = judged(posteriors, lambda p: -2 * agreement(p))
    fit_prior_weights(selector, agreeing)
    opened = selector.prior.gate.item()
    with torch.no_grad():
        selector.prior.gate.fill_(start)
    fit_prior_weights(selector, opposed)
    assert selector.prior.gate.item() < start < opened


def test_equal_utilities_change_nothing(selector: ListwiseSelector, posteriors: list[Posterior]) -> None:
    before = [selector.prior.gate.item(), selector.prior.strength.item()]
    fit_prior_weights(selector, judged(posteriors, lambda p: torch.zeros(len(p.permutations))))
    assert [selector.prior.gate.item(), selector.prior.strength.item()] == pytest.approx(before, abs=1e-4)


def test_the_papers_estimator_is_fitted_too(selector: ListwiseSelector, posteriors: list[Posterior]) -> None:
    """Without the control variate: the weighted likelihood of the samples, better than before."""
    start = [selector.prior.gate.item(), selector.prior.strength.item()]
    some = [replace(p, baseline_m=None) for p in posteriors]

    def likelihood() -> float:
        found = [log_probs_of(selector, p.candidates, p.permutations.z) @ p.weights_m for p in some]
        return float(torch.stack(found).mean())

    before = likelihood()
    fit_prior_weights(selector, some)
    assert likelihood() > before
    assert [selector.prior.gate.item(), selector.prior.strength.item()] != start


def test_several_sizes_and_progress(selector: ListwiseSelector, posteriors: list[Posterior]) -> None:
    """A question with fewer candidates has its own shape."""
    short = posteriors[0].candidates.reordered([0, 1, 2])
    z = torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [1, 0], [2, 1]])
    permutations = replace(posteriors[0].permutations, z=z, log_p=log_probs_of(selector, short, z))
    seen: list[int] = []
    fit_prior_weights(
        selector, [replace(posteriors[0], candidates=short, permutations=permutations), *posteriors[1:]], seen.append
    )
    assert seen == [1, 1, 1]
    assert bool(selector.prior.gate.isfinite().all())
