"""The benchmark of estimators: its truth is the truth, and what it measures falls where theory says it must."""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_models import log_probs_of

from rag import RAG
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
    return estimators.Problem.drawn(estimators.Tree.of(n, k), 1.0, 2.0, seed=0)


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


@pytest.mark.parametrize("name", ["snis", "snis + cv", "without", "without + cv", "guided", "imputed"])
def test_corrected_methods_converge_and_the_papers_does_not(estimators: ModuleType, name: str) -> None:
    one = problem(estimators)

    def error(method: str, m: int) -> float:
        estimate = estimators.METHODS[method]([one], m, 400, torch.Generator().manual_seed(2))[0]
        return float(one.errors(*estimate)[0])

    many = 11 if name.startswith(("without", "guided", "imputed")) else 4000
    assert error(name, many) < 0.02 * error(name, 2)
    assert error("paper", 4000) > 100 * error("snis", 4000)


def test_estimates_use_only_the_sampled_permutations(estimators: ModuleType) -> None:
    """Every method: weights and baselines that sum to 1, and no more permutations than it says."""
    problems = [problem(estimators), problem(estimators, 5, 2)]
    for name, method in estimators.METHODS.items():
        for one, (weights, baseline) in zip(
            problems, method(problems, 3, 50, torch.Generator().manual_seed(0)), strict=True
        ):
            assert weights.shape == (50, len(one.log_p_N))
            for found in (weights, baseline):
                if found is not None:
                    torch.testing.assert_close(found.sum(-1), torch.ones(50))
            drawn = (weights > 0).sum(-1).max().item()
            most = {"none": len(one.log_p_N), "imputed": len(one.log_p_N) - 1, "imputed, same cost": 8}
            assert drawn <= most.get(name, 3)


def test_problems_can_be_made_from_the_questions_of_a_pipeline(
    estimators: ModuleType, base: Path, make_rag: Callable[..., RAG], tmp_path: Path
) -> None:
    """The tree's probabilities are the selector's, and its likelihoods the generator's, on a saved pipeline."""
    rag = make_rag(num_candidates=4)
    rag.save_pretrained(tmp_path / "pipeline")
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        '{"id": "q1", "question": "who wrote Hamlet?", "golden_answers": ["Shakespeare"]}\n', encoding="utf-8"
    )
    args = argparse.Namespace(pipeline=str(tmp_path / "pipeline"), questions=str(questions), limit=5)
    (one,) = estimators.measured(args)
    found = rag.retriever.search("who wrote Hamlet?", 4)
    leaves = one.tree.leaves_NK
    torch.testing.assert_close(one.log_p_N, log_probs_of(rag.selector, found, leaves), atol=1e-4, rtol=0)
    for z, value in zip(leaves.tolist(), one.log_likelihood_N.tolist(), strict=True):
        read = [found.passages[i] for i in z]
        assert value == pytest.approx(rag.generator.log_prob(found.question, read, "Shakespeare"), abs=1e-3)
    alone = [rag.generator.log_prob(found.question, [p], "Shakespeare") for p in found.passages]
    assert one.single_passage_log_likelihood_n.tolist() == pytest.approx(alone, abs=1e-3)


def test_results_have_the_documented_keys(estimators: ModuleType) -> None:
    args = argparse.Namespace(candidates=4, selected=2, samples=[2], problems=1, repeats=20, seed=0, pipeline=None)
    rows = list(estimators.measure(args))
    assert len(rows) == 6 * len(estimators.METHODS)
    assert {r["likelihood"] for r in rows} == {"mild", "peaked"}
    for row in rows:
        total = row["gradient_bias"] + row["gradient_variance"]
        assert row["gradient_mse"] == pytest.approx(total, rel=1e-5)
    assert "paper" in estimators._text(rows)
