"""RAG-Sequence against its formula, written out document by document."""

import math
from collections.abc import Callable

import pytest
import torch
from tiny_models import randomize_adapters, tiny_language_model

from generator.configs import DecodingConfig
from generator.generator import Generator
from indexes.errors import UsageError
from rag.answering.rag_sequence import RAGSequence
from retriever.listwise_selector import ListwiseSelector
from training.config import DROConfig, EStepConfig
from training.estimation import EStep
from training.losses import generator_loss
from training.questions.example import QAExample

QUESTION = "who wrote Hamlet?"


@pytest.fixture
def baseline(make_selector: Callable[..., ListwiseSelector]) -> RAGSequence:
    model = tiny_language_model()
    randomize_adapters(model)
    selector = make_selector(model, gate=0.0, strength=1.3, num_candidates=4, num_selected=1)
    return RAGSequence(selector.retriever, selector, Generator(model, config=DecodingConfig(max_new_tokens=3)))


def log_prior(scores: list[float], strength: float) -> list[float]:
    mean = sum(scores) / len(scores)
    deviation = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))
    logits = [strength * (s - mean) / deviation for s in scores]
    total = math.log(sum(math.exp(x) for x in logits))
    return [x - total for x in logits]


def test_the_answer_is_the_most_probable_of_all_proposals_under_all_documents(baseline: RAGSequence) -> None:
    candidates = baseline.retriever.search(QUESTION, 4)
    generator = baseline.generator
    proposals = {generator.generate([QUESTION], [[p]])[0] for p in candidates.passages}
    prior = log_prior(candidates.scores.tolist(), 1.3)
    marginal = {
        text: math.log(
            sum(
                math.exp(lp + generator.log_prob(QUESTION, [p], text))
                for lp, p in zip(prior, candidates.passages, strict=True)
            )
        )
        for text in proposals
        if text.strip()
    }
    answer = baseline.answer_from([candidates])[0]
    assert len(marginal) > 1
    assert answer.text == max(marginal, key=lambda text: marginal[text])
    assert answer.log_prob == pytest.approx(marginal[answer.text], abs=1e-3)
    assert [p.id for p in answer.passages] == candidates.ids


def test_training_step_has_the_gradient_of_the_marginal_likelihood(baseline: RAGSequence) -> None:
    example = QAExample("q", QUESTION, ("Shakespeare",))
    config = DROConfig(train_selector=False, e_step=EStepConfig(exact=True, candidate_order="retriever"))
    posterior = EStep(baseline.retriever, baseline.selector, baseline.generator, config)([example], round=1)[0]
    parameters = list(baseline.generator.language_model.adapter_parameters("generator").values())
    passages = [posterior.candidates.passages[i] for i in posterior.permutations.z[:, 0].tolist()]
    rows = [baseline.generator.answer_sequence(QUESTION, [p], "Shakespeare") for p in passages]

    def gradient(loss: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        with baseline.generator.language_model.use("generator"):
            return list(torch.autograd.grad(loss(baseline.generator.score(rows)[0]), parameters))

    ours = gradient(lambda log_p_d: generator_loss(log_p_d, posterior.weights_m))
    prior_d = posterior.permutations.log_p
    reference = gradient(lambda log_p_d: -(prior_d + log_p_d).logsumexp(0))
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_reads_one_document_at_a_time(make_selector: Callable[..., ListwiseSelector]) -> None:
    model = tiny_language_model()
    selector = make_selector(model, num_candidates=4, num_selected=2)
    with pytest.raises(UsageError, match="num_selected must be 1, got 2"):
        RAGSequence(selector.retriever, selector, Generator(model))
