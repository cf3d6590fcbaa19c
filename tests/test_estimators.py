"""The benchmark of estimators: its truth is the truth, and what it measures falls where theory says it must."""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from retriever.permutations import sequential_log_prob


@pytest.fixture(scope="module")
def estimators() -> ModuleType:
    file = Path(__file__).resolve().parents[1] / "benchmarks/estimators.py"
    spec = importlib.util.spec_from_file_location("estimators", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["estimators"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def problem(estimators: ModuleType, n: int = 4, k: int = 2) -> object:
    return estimators.Problem.drawn(estimators.Tree.of(n, k), 1.0, 2.0, torch.Generator().manual_seed(0))


def test_leaves_are_the_permutations_with_their_probabilities(estimators: ModuleType) -> None:
    one = problem(estimators)
    assert float(one.log_p_N.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    steps_NKn = one.logits_Pn[one.tree.nodes_NK]
    expected = sequential_log_prob(steps_NKn, one.tree.leaves_NK, torch.zeros(12, 4, dtype=torch.bool))
    torch.testing.assert_close(one.log_p_N, expected)


def test_gradients_are_those_of_autograd(estimators: ModuleType) -> None:
    one = problem(estimators)
    weights_RN = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    found = one.tree.gradients(one.logits_Pn, weights_RN)
    for weights_N, gradient in zip(weights_RN, found, strict=True):
        logits = one.logits_Pn.clone().requires_grad_()
        (weights_N * one.tree.log_prob(logits)).sum().backward()
        torch.testing.assert_close(gradient, logits.grad.flatten(), rtol=1e-4, atol=1e-5)


def test_the_exact_posterior_has_no_error(estimators: ModuleType) -> None:
    one = problem(estimators)
    truth_N = (one.log_p_N + one.log_likelihood_N).softmax(-1)
    # The control variate changes no mean: the gradient of sum p log p's weights by p itself is 0.
    errors = one.errors(truth_N.expand(5, -1), one.log_p_N.exp().expand(5, -1))
    assert errors.abs().max().item() < 1e-8


@pytest.mark.parametrize("name", ["snis", "snis + cv", "without", "without + cv", "guided"])
def test_corrected_methods_converge_and_the_papers_does_not(estimators: ModuleType, name: str) -> None:
    one = problem(estimators)

    def error(method: str, m: int) -> float:
        weights, baseline = estimators.METHODS[method](one, m, 400, torch.Generator().manual_seed(2))
        return float(one.errors(weights, baseline)[0])

    many = 11 if name.startswith(("without", "guided")) else 4000
    assert error(name, many) < 0.02 * error(name, 2)
    assert error("paper", 4000) > 100 * error("snis", 4000)


def test_rows_have_the_agreed_names(estimators: ModuleType) -> None:
    args = argparse.Namespace(candidates=4, selected=2, samples=[2], problems=1, repeats=20, seed=0)
    rows = list(estimators.measure(args))
    assert len(rows) == 6 * len(estimators.METHODS)
    assert {r["likelihood"] for r in rows} == {"mild", "peaked"}
    for row in rows:
        total = row["gradient_bias"] + row["gradient_variance"]
        assert row["gradient_mse"] == pytest.approx(total, rel=1e-5)
    assert "paper" in estimators._text(rows)
