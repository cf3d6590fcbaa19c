"""Ten rounds of EM where log p(y | x) can be enumerated: it never falls in exact mode, and a sampled run follows it."""

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_models import dro_config

from rag.pipeline import RAG
from training import DROTrainer, QAExample
from training.estimation import EStep

EXAMPLES = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",)),
    QAExample("q3", "who designed Python?", ("Guido",)),
]
# The candidates stay as they are, so that every round is about the same log p(y | x): a question adapter that learns
# brings others, and what is summed over is then another set.
SHARED = {
    "e_step.candidate_order": "retriever",
    "train_retriever": False,
    "supervised.num_train_epochs": 0,
    "selfaug.alpha": 0.0,
    "m_step.loss_normalization": "sum",
    "m_step.gradient_accumulation_steps": 3,
}


@pytest.fixture
def run(make_rag: Callable[..., RAG], tmp_path: Path) -> Callable[..., list[float]]:
    def exact_log_marginal(rag: RAG) -> float:
        e_step = EStep(rag.retriever, rag.selector, rag.generator, dro_config(e_step__exact=True, **SHARED))
        found = [p.diagnostics().log_marginal for p in e_step(EXAMPLES, round=0)]
        return sum(found) / len(found)

    def measured(rag: RAG, examples: object, **options: object) -> SimpleNamespace:
        return SimpleNamespace(metrics={"f1": exact_log_marginal(rag)}, intervals={})

    def run(name: str, **changes: object) -> list[float]:
        """Exact log p(y | x), mean over the questions, after rounds 0 to 10."""
        rag = make_rag(num_candidates=4)
        config = dro_config(rounds=10, m_step__learning_rate=3e-3, **SHARED, **changes)
        trainer = DROTrainer(
            rag,
            config,
            train_dataset=EXAMPLES,
            eval_dataset=EXAMPLES,
            output_dir=tmp_path / name,
            compute_metrics=measured,
            progress=False,
        )
        history = trainer.train().history
        return [row["eval_f1"] for row in history]

    return run


def test_exact_em_never_lowers_the_likelihood_and_sampling_approximates_it(run: Callable[..., list[float]]) -> None:
    exact = run("exact", e_step__exact=True, m_step__tokens_per_micro_batch=4000)
    assert len(exact) == 11
    assert all(later >= earlier for earlier, later in itertools.pairwise(exact))
    gain = exact[-1] - exact[0]
    assert gain > 1.0

    sampled = run("sampled", e_step__num_permutations=6, seed=1)
    assert sampled[0] == pytest.approx(exact[0])
    assert max(abs(s - e) for s, e in zip(sampled, exact, strict=True)) < 0.2 * gain
