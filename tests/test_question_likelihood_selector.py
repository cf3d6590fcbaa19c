"""The selector by question likelihood: its probabilities, its packed reading, its gradient, and whole runs with it."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import (
    ARCHITECTURES,
    PASSAGES,
    byte_tokenizer,
    dro_config,
    log_probs_of,
    randomize_adapters,
    tiny_language_model,
    tiny_model,
)
from tokenizers.normalizers import Replace

from generator.configs import AdapterConfig, DecodingConfig
from generator.generator import Generator
from generator.language_model import LanguageModel
from generator.log_probs import token_log_probs, token_log_probs_in_chunks
from generator.prompts import QuestionPrompt, RankingPrompt
from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage
from indexes.directory.builder import build_index
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import DataError, MismatchError, UsageError
from rag.bundle import BundleConfig
from rag.cli import main
from rag.evaluation.evaluation import evaluate
from rag.pipeline import RAG
from retriever.candidates import Candidates
from retriever.dense import DenseRetriever
from retriever.question_likelihood_selector import QuestionLikelihoodSelector
from retriever.selector_config import SamplingConfig, SelectorConfig
from training.estimation import EStep
from training.joint_model import JointModel
from training.micro_batches import MicroBatch
from training.posterior import Posterior
from training.prior_weights import best_prior_weights, fit_prior_weights, warnings_of_closed_gates
from training.questions.example import QAExample
from training.questions.loading import write_examples
from training.trainer import DROTrainer
from training.warm_up import warm_up_posteriors

QUESTIONS = ["who wrote Hamlet?", "what is the capital of France, and on which river does it lie?"]
EXAMPLES = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare", "William Shakespeare"), ("p0",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
    QAExample("q3", "who designed Python?", ("Guido",), ()),
]
Make = Callable[..., QuestionLikelihoodSelector]


@pytest.fixture
def make(retriever: DenseRetriever, language_model: LanguageModel) -> Make:
    """Builds a selector over the toy passages."""

    def selector(model: LanguageModel = language_model, **settings: Any) -> QuestionLikelihoodSelector:
        config = SelectorConfig(
            **{"kind": "question_likelihood", "num_candidates": 6, "num_selected": 3, "options": {}, **settings}
        )
        return QuestionLikelihoodSelector(model, retriever, config=config)

    return selector


def plain_likelihoods(
    selector: QuestionLikelihoodSelector, candidates: Candidates, *, role: str = "selector", shift: int = 0
) -> torch.Tensor:
    """Mean log p of the question tokens, from the model's own forward of one sequence at a time.

    Args:
        selector: Its prompts are read.
        candidates: Of one question.
        role: The active adapter.
        shift: How many places too early a question token is looked for: wrong, unless 0.
    """
    model = selector.language_model
    question = selector.prompt.encode_question(model.tokenizer, candidates.question, chat=model.chat)
    values = []
    for prompt in selector.prompts(candidates):
        assert prompt[-len(question) :] == question
        with model.use(role):
            logits_TV = model.base_model(input_ids=torch.tensor([prompt])).logits[0]
        log_p_TV = logits_TV.log_softmax(-1)
        first = len(prompt) - len(question) - 1 - shift
        values.append(torch.stack([log_p_TV[first + t, token] for t, token in enumerate(question)]).mean())
    return torch.stack(values)


def pooled(selector: QuestionLikelihoodSelector, u_n: torch.Tensor, scores_n: torch.Tensor) -> torch.Tensor:
    """gate * (u - mean) / std + strength * (r - mean) / std, with the weights as they are."""
    parts = [(v - v.mean()) / v.std(correction=0) for v in (u_n, scores_n)]
    return selector.prior.gate.item() * parts[0] + selector.prior.strength.item() * parts[1]


def plackett_luce(logits_n: torch.Tensor, z: Sequence[int]) -> torch.Tensor:
    """Log-probability of a permutation, one choice after another."""
    total, left = torch.zeros(()), list(range(len(logits_n)))
    for i in z:
        total = total + logits_n[i] - logits_n[left].logsumexp(0)
        left.remove(i)
    return total


# -- the distribution ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_likelihoods_are_those_of_one_sequence_at_a_time(
    architecture: str, chat: bool, make: Make, retriever: DenseRetriever
) -> None:
    """Two questions together, with and without a chat template; tokens one place too early are something else."""
    model = tiny_language_model(architecture, chat=chat)
    randomize_adapters(model)
    selector = make(model)
    candidates = retriever.search(QUESTIONS, 6)
    with torch.no_grad():
        for one, found_n in zip(candidates, selector.question_log_likelihoods(candidates), strict=True):
            torch.testing.assert_close(found_n, plain_likelihoods(selector, one), atol=1e-4, rtol=0)
            assert (found_n - plain_likelihoods(selector, one, shift=1)).abs().max() > 1e-2
            assert (found_n - plain_likelihoods(selector, one, role="base")).abs().max() > 1e-2


def test_reading_in_padded_rows_is_the_same(make: Make, retriever: DenseRetriever) -> None:
    """For bases whose sequences cannot be packed."""
    model = tiny_language_model()
    randomize_adapters(model)
    selector, candidates = make(model), retriever.search(QUESTIONS, 6)
    assert model.supports_packing
    with torch.no_grad():
        packed = selector.question_log_likelihoods(candidates)
        model.supports_packing = False
        rows = selector.question_log_likelihoods(candidates)
    torch.testing.assert_close(packed, rows, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tokens", [1, 300, 100_000])
def test_the_size_of_a_pass_changes_nothing(tokens: int, make: Make, retriever: DenseRetriever) -> None:
    selector, candidates = make(), retriever.search(QUESTIONS, 6)
    with torch.no_grad():
        expected = selector.question_log_likelihoods(candidates)
        selector.max_tokens_per_batch = tokens
        found = selector.question_log_likelihoods(candidates)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_question_is_read_in_one_pass_whatever_is_drawn(
    make: Make, retriever: DenseRetriever, passes: list[int]
) -> None:
    """All permutations of an E-step, and all that are enumerated, come from it."""
    selector, candidates = make(), retriever.search(QUESTIONS, 6)
    drawn = selector.propose(candidates, SamplingConfig(num_permutations=30, replacement=False))
    assert [len(one) for one in drawn] == [30, 30] and len(passes) == 1
    drawn += selector.enumerate(candidates)
    assert len(passes) == 2
    for one, permutations in zip(candidates * 2, drawn, strict=True):
        assert selector.components(one, permutations).keys() == {"gate", "strength"}
    assert len(passes) == 2


def test_probabilities_of_all_permutations_sum_to_one(make: Make, retriever: DenseRetriever) -> None:
    """n = 6, K = 3: 120 permutations, each against the formula on logits of the plain model."""
    selector = make()
    candidates = retriever.search(QUESTIONS, 6)
    for one, every in zip(candidates, selector.enumerate(candidates), strict=True):
        assert len(every) == 120
        assert every.log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
        with torch.no_grad():
            logits_n = pooled(selector, plain_likelihoods(selector, one), one.scores)
        expected = [float(plackett_luce(logits_n, z)) for z in every.z.tolist()]
        assert every.log_p.tolist() == pytest.approx(expected, abs=1e-3)
        torch.testing.assert_close(log_probs_of(selector, one, every.z), every.log_p, atol=1e-4, rtol=0)
        assert every.log_p.std().item() > 0.1


@pytest.mark.parametrize("replacement", [True, False])
def test_draws_carry_their_log_probabilities(replacement: bool, make: Make, retriever: DenseRetriever) -> None:
    """Candidates of different numbers together."""
    selector = make()
    candidates = [retriever.search(QUESTIONS[0], 6), retriever.search(QUESTIONS[1], 4)]
    sampling = SamplingConfig(num_permutations=9, temperature=1.7, replacement=replacement)
    drawn = selector.propose(candidates, sampling, generator=torch.Generator().manual_seed(0))
    for one, permutations in zip(candidates, drawn, strict=True):
        torch.testing.assert_close(log_probs_of(selector, one, permutations.z), permutations.log_p, atol=1e-4, rtol=0)
        assert permutations.z.max() < len(one)
        assert permutations.lm_logits is not None and permutations.lm_logits.shape == (9, 3, len(one))
        assert permutations.lm_logits.untyped_storage().nbytes() == 4 * len(one)  # once in memory
        again = selector.components(one, replace(permutations, lm_logits=None))
        for name, component in selector.components(one, permutations).items():
            torch.testing.assert_close(component, again[name], atol=1e-4, rtol=0)


def test_the_order_of_candidates_has_no_effect(make: Make, retriever: DenseRetriever) -> None:
    """To the last bit: rows are packed in an order of their own, and sums are of sorted numbers."""
    selector = make()
    for candidates in retriever.search(QUESTIONS, 6):
        with torch.no_grad():
            logits_n = selector.logits(candidates)
            for seed in range(4):
                order = torch.randperm(6, generator=torch.Generator().manual_seed(seed)).tolist()
                assert torch.equal(selector.logits(candidates.reordered(order)), logits_n[order])
        assert len(set(logits_n.tolist())) == 6


def test_an_untrained_pipeline_ranks_by_the_pooled_formula(make: Make, retriever: DenseRetriever) -> None:
    """1.05 and .43 on the base's own likelihoods, although the adapter exists."""
    model = tiny_language_model()
    selector = make(model)
    assert (selector.prior.gate.item(), selector.prior.strength.item()) == pytest.approx((1.05, 0.43))
    for candidates in retriever.search(QUESTIONS, 6):
        with torch.no_grad():
            u_n = plain_likelihoods(selector, candidates, role="base")
        u_n, r_n = ((v - v.mean()) / v.std(correction=0) for v in (u_n, candidates.scores))
        expected = 1.05 * u_n + 0.43 * r_n
        best = selector.select([candidates])[0]
        assert best.z[0].tolist() == expected.argsort(descending=True)[:3].tolist()
        assert float(best.log_p[0]) == pytest.approx(float(plackett_luce(expected, best.z[0].tolist())), abs=1e-4)


@pytest.mark.parametrize("used", ["prior", "language_model"])
def test_one_half_alone(used: str, make: Make, retriever: DenseRetriever, passes: list[int]) -> None:
    selector = make(use_prior=used == "prior", use_language_model=used == "language_model")
    candidates = retriever.search(QUESTIONS[0], 6)
    with torch.no_grad():
        logits_n = selector.logits(candidates)
        if used == "prior":
            assert not passes and not selector.prompts(candidates)
            expected = 0.43 * pooled_part(candidates.scores)
        else:
            expected = 1.05 * pooled_part(selector.question_log_likelihoods([candidates])[0])
    torch.testing.assert_close(logits_n, expected, atol=1e-4, rtol=0)
    name = {"prior": "strength", "language_model": "gate"}[used]
    drawn = selector.propose([candidates], SamplingConfig(num_permutations=4))[0]
    assert selector.prior_weights.keys() == selector.components(candidates, drawn).keys() == {name}
    assert selector.uses_retriever_scores == (used == "prior")


def pooled_part(values_n: torch.Tensor) -> torch.Tensor:
    """To mean 0 and standard deviation 1."""
    return (values_n - values_n.mean()) / values_n.std(correction=0)


# -- learning ------------------------------------------------------------------------------------------------------


def gradients(model: LanguageModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the selector's adapter."""
    parameters = model.adapter_parameters("selector")
    found = torch.autograd.grad(loss, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of what is expected."""
    difference = sum(float((found[name] - value).square().sum()) for name, value in expected.items())
    return math.sqrt(difference / sum(float(value.square().sum()) for value in expected.values()))


def given(candidates: Sequence[Candidates]) -> list[torch.Tensor]:
    """A few permutations of each question."""
    return [torch.tensor([[1, 0, 2], [3, 2, 0], [0, 1, 3]]) for _ in candidates]


@pytest.mark.parametrize("chunked", [False, True])
def test_the_gradient_is_that_of_the_naive_form(
    chunked: bool, make: Make, retriever: DenseRetriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through likelihoods, their standardisation and Plackett-Luce; without the standardisation it is another one."""
    model = tiny_language_model()
    randomize_adapters(model)
    model.trainable_roles(("selector",))
    selector, candidates = make(model), retriever.search(QUESTIONS, 6)
    if chunked:  # logits of two tokens at a time
        monkeypatch.setattr("generator.log_probs.logit_bytes", lambda cuda: 2 * 4 * model.base_model.vocab_size)
    z = given(candidates)
    with model.use("selector"):
        found = gradients(model, -torch.stack(selector.log_prob(candidates, z)).sum())

    def naive(*, standardised: bool) -> dict[str, torch.Tensor]:
        loss = torch.zeros(())
        for one, z_mK in zip(candidates, z, strict=True):
            u_n = plain_likelihoods(selector, one)
            if not standardised:
                u_n = u_n + 0 * u_n.detach()
                mean, std = u_n.detach().mean(), u_n.detach().std(correction=0)
                logits_n = 1.05 * (u_n - mean) / std + 0.43 * pooled_part(one.scores)
            else:
                logits_n = pooled(selector, u_n, one.scores)
            loss = loss - sum(plackett_luce(logits_n, row) for row in z_mK.tolist())
        with model.use("selector"):
            return gradients(model, loss)

    assert same(found, naive(standardised=True)) < 1e-3
    assert same(found, naive(standardised=False)) > 1e-2


def test_log_probabilities_in_chunks_have_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd through all logits; another target has another one."""
    generator = torch.Generator().manual_seed(0)
    weight_VH, hidden_NH = (torch.randn(n, 7, generator=generator) for n in (11, 5))
    hidden_NH.requires_grad_()
    targets_N = torch.tensor([0, 3, 10, 3, 5])
    upstream_N = torch.randn(5, generator=generator)
    monkeypatch.setattr("generator.log_probs.logit_bytes", lambda cuda: 2 * 4 * 11)

    def head(hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ weight_VH.T

    expected_N = token_log_probs(head(hidden_NH), targets_N)
    found_N = token_log_probs_in_chunks(hidden_NH, targets_N, head)
    torch.testing.assert_close(found_N, expected_N)
    wrong_N = token_log_probs_in_chunks(hidden_NH, targets_N.roll(1), head)
    slopes = [torch.autograd.grad(v, hidden_NH, upstream_N)[0] for v in (found_N, expected_N, wrong_N)]
    torch.testing.assert_close(slopes[0], slopes[1])
    assert (slopes[2] - slopes[1]).abs().max() > 0.1
    assert not token_log_probs_in_chunks(hidden_NH.detach(), targets_N, head).requires_grad
    assert token_log_probs_in_chunks(hidden_NH[:0], targets_N[:0], head).shape == (0,)


def test_prefilter_reads_all_and_teaches_some(make: Make, retriever: DenseRetriever) -> None:
    """The same values; the gradient is that of the naive form in which the others are constants."""
    model = tiny_language_model()
    randomize_adapters(model)
    model.trainable_roles(("selector",))
    whole, filtered = make(model), make(model, options={"prefilter": 2})
    candidates = retriever.search(QUESTIONS[0], 6)
    best = whole.select([candidates])[0].z[0].tolist()
    z_mK = torch.tensor([[best[0], best[2], best[1]]])  # the third best is drawn as well
    learning = set(best[:3])
    with torch.no_grad():
        constant_n = plain_likelihoods(whole, candidates)
    u_n = plain_likelihoods(whole, candidates)
    mixed_n = torch.stack([u_n[i] if i in learning else constant_n[i] for i in range(6)])
    with model.use("selector"):
        expected_log_p = whole.log_prob([candidates], [z_mK])[0]
        log_p = filtered.log_prob([candidates], [z_mK])[0]
        torch.testing.assert_close(log_p, expected_log_p, atol=1e-4, rtol=0)
        found, everything = gradients(model, log_p.sum()), gradients(model, expected_log_p.sum())
        expected = gradients(model, plackett_luce(pooled(whole, mixed_n, candidates.scores), z_mK[0].tolist()))
    assert same(found, expected) < 1e-3
    assert same(everything, expected) > 1e-2
    all_of_them = make(model, options={"prefilter": 6})
    with model.use("selector"):
        assert same(gradients(model, all_of_them.log_prob([candidates], [z_mK])[0].sum()), everything) < 1e-3
    assert torch.equal(log_probs_of(filtered, candidates, z_mK), log_probs_of(whole, candidates, z_mK))


def posteriors_of(selector: QuestionLikelihoodSelector, generator: Generator, **settings: Any) -> list[Posterior]:
    config = dro_config(e_step__exact=True, **settings)
    return EStep(selector.retriever, selector, generator, config)(EXAMPLES[:2], round=1)


def test_the_kl_to_the_untrained_selector_and_its_gradient(
    make: Make, retriever: DenseRetriever, generator: Generator, language_model: LanguageModel
) -> None:
    """KL(untrained || trained) of the first choice: value and gradient of the naive form, and its part of the loss."""
    selector = make(num_candidates=4, num_selected=2)
    posteriors = posteriors_of(selector, generator)
    settings = {"train_generator": False, "train_retriever": False}
    without = JointModel(selector, generator, dro_config(**settings))
    joint = JointModel(selector, generator, dro_config(m_step__selector_kl=0.7, **settings))
    batch = MicroBatch("selector", tuple(posteriors), num_questions=2)
    expected, reverse = torch.zeros(()), torch.zeros(())
    for posterior in posteriors:
        one = posterior.candidates
        log_q_n = pooled(selector, plain_likelihoods(selector, one), one.scores).log_softmax(-1)
        with torch.no_grad():
            u_n = plain_likelihoods(selector, one, role="base")
            log_p_n = pooled(selector, u_n, one.scores).log_softmax(-1)
        expected = expected + (log_p_n.exp() * (log_p_n - log_q_n)).sum()
        reverse = reverse + (log_q_n.exp() * (log_q_n - log_p_n)).sum()
    with language_model.use("selector"):
        found, plain = joint(batch), without(batch)
        assert float(found["selector_kl"]) == pytest.approx(float(expected.detach()), abs=1e-4)
        assert float(reverse.detach()) != pytest.approx(float(expected.detach()), abs=1e-2)
        difference = gradients(language_model, found["loss"])
        for name, value in gradients(language_model, plain["loss"]).items():
            difference[name] = difference[name] - value
        naive = {name: 0.7 * value for name, value in gradients(language_model, expected).items()}
    assert same(difference, naive) < 1e-2
    assert "selector_kl" not in plain


def test_the_kl_is_zero_before_the_adapter_has_moved(make: Make, generator: Generator) -> None:
    selector = make(tiny_language_model(), num_candidates=4, num_selected=2)
    posteriors = posteriors_of(selector, generator)
    config = dro_config(m_step__selector_kl=0.7)
    joint = JointModel(selector, Generator(selector.language_model), config)
    with selector.language_model.use("selector"):
        found = joint(MicroBatch("selector", tuple(posteriors), num_questions=2))
    assert abs(float(found["selector_kl"])) < 1e-6


def test_a_kl_of_a_selector_that_has_none_is_refused_before_training(
    make_rag: Callable[..., RAG], tmp_path: Path
) -> None:
    config = dro_config(m_step__selector_kl=0.1)
    with pytest.raises(UsageError, match=r"selector_kl needs a selector .* got ListwiseSelector"):
        DROTrainer(make_rag(), config, train_dataset=EXAMPLES, output_dir=tmp_path / "run")


def test_gate_and_strength_change_by_their_fit_only(make: Make, generator: Generator) -> None:
    """No gradient reaches them, and the fit finds the optimum of what enumeration gives."""
    selector = make(num_candidates=4, num_selected=2)
    posteriors = posteriors_of(selector, generator)
    joint = JointModel(selector, generator, dro_config())
    assert not any(p.requires_grad for p in selector.parameters())
    assert all(p.requires_grad for p in selector.language_model.adapter_parameters("selector").values())
    learning = {id(p) for group in joint.parameter_groups() for p in group["params"]}
    assert not learning & {id(p) for p in selector.parameters()}
    assert fit_prior_weights(selector, posteriors).keys() == {"gate", "strength"}
    found = [selector.prior.gate.item(), selector.prior.strength.item()]
    with torch.no_grad():
        parts = [
            (pooled_part(plain_likelihoods(selector, p.candidates)), pooled_part(p.candidates.scores))
            for p in posteriors
        ]
    stack = (
        torch.stack([u for u, _ in parts])[:, None, None],
        torch.stack([r for _, r in parts])[:, None, None],
        torch.stack([p.permutations.z for p in posteriors]),
        torch.stack([p.permutations.log_p for p in posteriors]),
        torch.stack([p.weights_m for p in posteriors]),
        torch.stack([p.baseline_m for p in posteriors if p.baseline_m is not None]),
    )
    assert found == pytest.approx(best_prior_weights([stack], torch.tensor([1.05, 0.43]), 2).tolist(), abs=1e-3)
    assert found != pytest.approx([1.05, 0.43], abs=1e-3)


def test_the_retrievers_question_side_learns_through_the_prior(make: Make, retriever: DenseRetriever) -> None:
    selector, candidates = make(), retriever.search(QUESTIONS, 6)
    retriever.adapter.requires_grad_(True)
    loss = -torch.stack(selector.log_prob(candidates, given(candidates))).sum()
    (slope,) = torch.autograd.grad(loss, [retriever.adapter.up])
    assert slope.abs().max() > 1e-4
    still = selector.log_prob(candidates, given(candidates), teach_retriever=False)
    assert torch.autograd.grad(torch.stack(still).sum(), [retriever.adapter.up], allow_unused=True) == (None,)


def test_a_closed_gate_is_warned_of(
    make: Make, make_rag: Callable[..., RAG], index: PassageIndex, base: Path, tmp_path: Path
) -> None:
    """By the words, and in the record of the round; a list-wise selector starts with a gate of 0."""
    selector = make()
    assert not warnings_of_closed_gates(selector, 8) and not warnings_of_closed_gates(make_rag().selector, 8)
    selector.prior.gate.data.fill_(0.1)
    (warning,) = warnings_of_closed_gates(selector, 8)
    assert "The gate of the selector" in warning
    assert "posteriors of 8 questions has set it to 0.1, so the selector ranks by the rest of its logits" in warning
    selector.prior.gate.data.fill_(1.0)
    selector.prior.strength.data.fill_(-0.79)
    (warning,) = warnings_of_closed_gates(selector, 2)
    assert "The strength of the selector should stay near where it started, 0.43" in warning
    assert "set it to -0.79, so the selector ranks against what the strength multiplies" in warning
    rag = make_pipeline(index, base, 4)
    rag.selector.prior.gate.data.fill_(-3.0)
    config = dro_config(rounds=1, supervised__num_train_epochs=0, e_step__exact=True, m_step__fit_prior_weights=False)
    trainer = DROTrainer(rag, config, train_dataset=EXAMPLES, output_dir=tmp_path / "run", progress=False)
    assert any("set it to -3" in warning for warning in trainer.train().history[-1]["warnings"])


@pytest.mark.parametrize("target", ["auto", "retriever"])
def test_warm_up_does_not_teach_it_the_retrievers_order(
    target: str, make: Make, retriever: DenseRetriever, generator: Generator
) -> None:
    """Without gold ids the target is its own selection, from which only the generator learns; unless it is asked."""
    selector = make(num_candidates=6, num_selected=2)
    config = dro_config(supervised__target=target)
    found = warm_up_posteriors(EXAMPLES, retriever, selector, config)
    joint = JointModel(selector, generator, dro_config())
    for posterior in found:
        own = selector.select([posterior.candidates])[0].z[0].tolist()
        by_score = posterior.candidates.scores.argsort(descending=True)[:2].tolist()
        order, moves = posterior.permutations.z[0].tolist(), True
        if target == "retriever":
            assert order == by_score
        elif posterior.example.gold_ids:
            assert posterior.candidates.ids[order[0]] == posterior.example.gold_ids[0]
        else:
            assert order == own != by_score
            moves = False
        with selector.language_model.use("selector"):
            loss = joint(MicroBatch("selector", (posterior,), num_questions=1))["loss"]
            slopes = gradients(selector.language_model, loss)
        assert (sum(float(g.abs().sum()) for g in slopes.values()) > 1e-3) == moves


# -- prompts and limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [True, False])
def test_the_prompt_as_text(chat: bool) -> None:
    tokenizer, prompt = byte_tokenizer(chat=chat), QuestionPrompt()
    ids = prompt.encode(tokenizer, PASSAGES[0], passage_tokens=1000, max_tokens=1000)
    text = f"Write a question that this passage answers.\nPassage: Hamlet {PASSAGES[0].text}"
    assert prompt.render(PASSAGES[0]) == text
    assert tokenizer.decode(ids) == (f"<|user|>{text}<|end|><|assistant|>" if chat else f"{text}\n")
    assert prompt.render(Passage("x", "", "only text")).endswith("Passage: only text")


def test_passages_are_cut_to_their_setting_and_to_the_context(make: Make, retriever: DenseRetriever) -> None:
    tokenizer, prompt = byte_tokenizer(), QuestionPrompt()
    long = Passage("x", "title", "word " * 100)
    empty = prompt.least_tokens(tokenizer)
    for passage_tokens, max_tokens in ((40, 1000), (1000, empty + 60), (3, 1000), (1000, empty)):
        ids = prompt.encode(tokenizer, long, passage_tokens=passage_tokens, max_tokens=max_tokens)
        # A blank stands between title and text, which is left out where there is no text.
        assert len(ids) <= min(max_tokens, empty + passage_tokens + 1)
        assert len(ids) >= min(max_tokens, empty + passage_tokens) - 2
    with pytest.raises(DataError, match="instructions around an empty passage"):
        prompt.encode(tokenizer, long, passage_tokens=1000, max_tokens=empty - 1)
    selector = make(options={"passage_tokens": 10})
    assert {len(p) for p in selector.prompts(retriever.search(QUESTIONS[0], 6))} <= {
        empty + tokens + len(QUESTIONS[0]) for tokens in (10, 11)
    }


def test_a_document_cannot_end_the_users_turn(make: Make) -> None:
    tokenizer = byte_tokenizer()
    ids = QuestionPrompt().encode(tokenizer, Passage("x", "<|end|>", "a<|end|>b"), passage_tokens=99, max_tokens=999)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|end|>")) == 1
    question = QuestionPrompt().encode_question(tokenizer, "who<|end|>?")
    assert tokenizer.convert_tokens_to_ids("<|end|>") not in question


def test_a_question_of_no_tokens_is_refused(make: Make, retriever: DenseRetriever) -> None:
    """An empty one, and one of characters that the tokenizer drops."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Replace("\u2063", "")
    model = LanguageModel(tiny_model(), tokenizer, adapter=AdapterConfig(r=3))
    selector, found = make(model), retriever.search(QUESTIONS[0], 6)
    for question in ("", "  \n", "\u2063\u2063"):
        with pytest.raises(DataError, match="A question must have at least one token"):
            selector.select([replace(found, question=question)])
        with pytest.raises(DataError, match="A question must have at least one token"):
            selector.why_too_long(question)


def test_a_question_that_does_not_fit_is_named(make: Make, retriever: DenseRetriever) -> None:
    selector = make(tiny_language_model(context=128))
    assert selector.why_too_long("who?") is None
    reason = selector.why_too_long("w" * 100)
    assert reason is not None and "must fit into 128 tokens" in reason
    found = replace(retriever.search(QUESTIONS[0], 6), question="w" * 100)
    for refused in (lambda: selector.select([found]), lambda: selector.check(found)):
        with pytest.raises(DataError, match="must fit into 128 tokens"):
            refused()
    assert all(len(prompt) <= 128 for prompt in selector.prompts(replace(found, question="w" * 40)))


def test_refused_settings(make: Make, retriever: DenseRetriever, language_model: LanguageModel) -> None:
    for options, message in (
        ({"gates": 1}, r"must be of \['gate', 'passage_tokens', 'prefilter'\], got \['gates'\]"),
        ({"gate": 0.0}, "gate must be a positive"),
        ({"gate": "big"}, "gate must be a positive, finite number"),
        ({"gate": float("inf")}, "gate must be a positive, finite number"),
        ({"gate": True}, "gate must be a positive, finite number"),
        ({"passage_tokens": 0}, "passage_tokens must be a whole number of at least 1"),
        ({"passage_tokens": 1.5}, "passage_tokens must be a whole number of at least 1"),
        ({"passage_tokens": True}, "passage_tokens must be a whole number of at least 1"),
        ({"prefilter": 2.5}, "prefilter must be a whole number of at least 0"),
        ({"prefilter": -1}, "prefilter must be a whole number of at least 0"),
    ):
        with pytest.raises(UsageError, match=message):
            SelectorConfig(kind="question_likelihood", options=options)
    with pytest.raises(UsageError, match="must be a QuestionPrompt, got a RankingPrompt"):
        QuestionLikelihoodSelector(language_model, retriever, prompt=RankingPrompt(), config=make().config)
    with pytest.raises(UsageError, match=r"template must contain the placeholders \['passage'\]"):
        QuestionPrompt(template="{question}")
    assert make(prior_strength=0.9).prior.strength.item() == pytest.approx(0.9)


def test_more_candidates_than_the_index_has(make: Make, retriever: DenseRetriever) -> None:
    """All twelve are read; fewer than K are refused."""
    selector = make(num_candidates=50)
    found = retriever.search(QUESTIONS[0], selector.config.num_candidates)
    assert len(found) == 12 and selector.select([found])[0].z.shape == (1, 3)
    with pytest.raises(DataError, match="At least K=3 candidates"):
        selector.select([found.reordered([0, 1])])


# -- whole runs ------------------------------------------------------------------------------------------------------


def make_pipeline(
    index: PassageIndex, base: Path, n: int, *, prompt: QuestionPrompt | None = None, **options: Any
) -> RAG:
    config = SelectorConfig(kind="question_likelihood", num_candidates=n, num_selected=2, options=options)
    return RAG.create(
        index=index,
        base=base,
        selector=config,
        ranking_prompt=prompt,
        decoding=DecodingConfig(max_new_tokens=3),
        adapter=AdapterConfig(r=3),
        device="cpu",
    )


def test_a_whole_run_and_its_bundle(index: PassageIndex, base: Path, tmp_path: Path) -> None:
    """Warm-up, two rounds and an evaluation; the bundle opens with the selector and the prompt that were saved."""
    prompt = QuestionPrompt(template="Text: {passage}\nAsk.")
    rag = make_pipeline(index, base, 6, prompt=prompt, passage_tokens=50, prefilter=4)
    before = {n: p.detach().clone() for n, p in rag.generator.language_model.adapter_parameters("selector").items()}
    config = dro_config(
        rounds=2,
        e_step__num_permutations=3,
        m_step__learning_rate=5e-3,
        m_step__gradient_accumulation_steps=2,
        m_step__selector_kl=0.1,
    )
    trainer = DROTrainer(
        rag,
        config,
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES[:2],
        output_dir=tmp_path / "run",
        compute_metrics=evaluate,
        progress=False,
    )
    history = trainer.train().history
    assert len(history) == 3
    for record in history:
        assert {"prior_gate", "prior_strength", "selector_kl", "selector_loss", "eval_f1"} <= record.keys()
        assert all(math.isfinite(v) for v in record.values() if isinstance(v, float))
    after = rag.generator.language_model.adapter_parameters("selector")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    folder = rag.save_pretrained(tmp_path / "bundle")
    opened = RAG.from_pretrained(folder, device="cpu")
    assert isinstance(opened.selector, QuestionLikelihoodSelector)
    assert opened.selector.prompt == prompt and opened.selector.config == rag.selector.config
    assert opened.selector.options.passage_tokens == 50
    candidates = rag.retriever.search(QUESTIONS[0], 6)
    with torch.no_grad():
        assert torch.equal(opened.selector.logits(candidates), rag.selector.logits(candidates))
    assert opened.answer(QUESTIONS[0]).text == rag.answer(QUESTIONS[0]).text


def test_a_fitted_likelihood_exponent(index: PassageIndex, base: Path, tmp_path: Path) -> None:
    """The folds of `likelihood_exponent="auto"` refit gate and strength from what was read while drawing."""
    rag = make_pipeline(index, base, 4)
    examples = [QAExample(f"q{i}", f"what is {p.title}, {i}?", (p.title,), ()) for i, p in enumerate(PASSAGES * 2)]
    config = dro_config(
        rounds=1,
        supervised__num_train_epochs=0,
        train_generator=False,
        e_step__num_permutations=2,
        e_step__likelihood_exponent="auto",
    )
    trainer = DROTrainer(rag, config, train_dataset=examples, output_dir=tmp_path / "run", progress=False)
    record = trainer.train().history[-1]
    assert record["likelihood_exponent"] > 0 and record["prior_gate"] != pytest.approx(1.05, abs=1e-4)


def test_a_bundle_knows_which_prompt_its_selector_has(make_rag: Callable[..., RAG], tmp_path: Path) -> None:
    """The prompt of another kind is a damaged bundle."""
    folder = make_rag().save_pretrained(tmp_path / "bundle")
    data = json.loads((folder / "rag_config.json").read_text())
    assert BundleConfig.from_dict(data).ranking_prompt == RankingPrompt()
    data["selector"]["kind"] = "question_likelihood"
    prompt = {"template": "{passage}?", "passage_template": "{text}"}
    assert BundleConfig.from_dict({**data, "ranking_prompt": prompt}).ranking_prompt == QuestionPrompt(**prompt)
    with pytest.raises(MismatchError, match="ranking_prompt"):
        BundleConfig.from_dict({**data, "ranking_prompt": {**prompt, "identifiers": "?"}})


@pytest.fixture(scope="module")
def large_index(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> PassageIndex:
    """The toy passages ten times over."""
    passages = [replace(p, id=f"{p.id}-{i}", text=f"{p.text} ({i})") for i in range(10) for p in PASSAGES]
    folder = tmp_path_factory.mktemp("index") / "large"
    return build_index(Corpus.from_passages(passages), encoder, folder, progress=False)


def test_a_hundred_candidates_end_to_end(large_index: PassageIndex, base: Path, tmp_path: Path) -> None:
    """Answering, training and evaluation; the list-wise selector has no identifiers for so many."""
    rag = make_pipeline(large_index, base, 100, passage_tokens=20, prefilter=5)
    assert len(rag.retriever.search(QUESTIONS[0], 100)) == 100
    examples = [replace(e, gold_ids=()) for e in EXAMPLES[:2]]
    config = dro_config(rounds=1, e_step__num_permutations=2)
    trainer = DROTrainer(rag, config, train_dataset=examples, output_dir=tmp_path / "run", progress=False)
    assert {"prior_gate", "selector_loss"} <= trainer.train().history[-1].keys()
    assert evaluate(rag, examples, progress=False).metrics["f1"] >= 0
    with pytest.raises(UsageError, match="Lower num_candidates"):
        RAG.create(index=large_index, base=base, selector=SelectorConfig(num_candidates=100), device="cpu")


def test_a_hundred_candidates_from_the_command_line(
    large_index: PassageIndex, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training, evaluation of its bundle, the prompts as they are read, and the plan of the run."""
    questions = tmp_path / "questions.jsonl"
    write_examples(EXAMPLES[:2], questions)
    selector = ["--selector.kind", "question_likelihood", "--selector.num_candidates", "100"]
    selector += ["--selector.num_selected", "2", "--selector.options", '{"passage_tokens": 20, "prefilter": 3}']
    pipeline = ["--index", str(large_index.path), "--base", str(base), *selector, "--decoding.max_new_tokens", "3"]
    training = ["--train_dataset", str(questions), "--rounds", "1", "--e_step.num_permutations", "2"]
    training += ["--answerable_only", "false", "--m_step.selector_kl", "0.1"]
    found = {}
    for words in (
        ["train", *pipeline, *training, "--output_dir", str(tmp_path / "run")],
        ["evaluate", "--bundle", str(tmp_path / "run" / "bundle"), "--questions", str(questions)],
        ["inspect", "prompts", *pipeline, QUESTIONS[0]],
        ["plan", *pipeline, *training],
    ):
        capsys.readouterr()
        assert main([*words, "--json", "--quiet"]) == 0, words
        found[words[0]] = json.loads(capsys.readouterr().out)
    assert found["train"]["rounds"][-1].keys() >= {"prior_gate", "selector_kl"}
    assert found["inspect"]["ranking_prompt"].count("Write a question") == 100
    assert found["plan"]["setting"]["question"]["prompts"] == 100
    code = main(["ask", *pipeline, "--selector.options", '{"gates": 1}', "who?"])
    assert code == 2 and "must be of ['gate', 'passage_tokens', 'prefilter']" in capsys.readouterr().err
