"""Tempered posteriors against independent enumeration, the exponent that "auto" fits, and what is said of a teacher."""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import dro_config, log_probs_of

from indexes.directory.passage_index import PassageIndex
from indexes.errors import UsageError
from rag.pipeline import RAG
from retriever.permutations import Permutations, enumerate_permutations, plackett_luce_log_prob
from retriever.selector_config import SelectorConfig
from training.config import DROConfig, EStepConfig, RetrieverTrainingConfig
from training.estimation import EStep
from training.joint_model import distilled_loss, selection_losses
from training.losses import baseline_weights
from training.posterior import EStepDiagnostics, Posterior
from training.prior_weights import prior_components
from training.questions.example import QAExample
from training.tempering import GRID, LEAST_QUESTIONS, agreement, fit_exponent
from training.trainer import DROTrainer

EXAMPLES = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare",), ("p0",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
    QAExample("q3", "who designed Python?", ("Guido",), ("p5",)),
]
TAUS = (0.2, 0.5, 1.0)
Enumerated = dict[tuple[int, ...], tuple[float, float]]


@pytest.fixture
def e_step(make_e_step: Callable[..., EStep]) -> Callable[..., EStep]:
    """E-steps of two of four candidates in the retriever's order; by default all that is drawn is scored."""
    plain = {"e_step.candidate_order": "retriever", "e_step.proposals_per_sample": 1}
    return lambda **settings: make_e_step(**plain | settings)


def enumerated(step: EStep, posterior: Posterior) -> Enumerated:
    """Log p_s and log p_g of all twelve permutations, each by a call of its own."""
    found, candidates = {}, posterior.candidates
    for z in enumerate_permutations(4, 2):
        passages = [candidates.passages[i] for i in z.tolist()]
        log_likelihood = step.generator.log_prob(candidates.question, passages, posterior.answer)
        found[tuple(z.tolist())] = (float(log_probs_of(step.selector, candidates, z[None])[0]), log_likelihood)
    return found


def target(truth: Enumerated, tau: float) -> dict[tuple[int, ...], float]:
    """p_s p_g^tau, normalised over all permutations."""
    log_w = torch.tensor([log_p + tau * log_g for log_p, log_g in truth.values()], dtype=torch.float64)
    return dict(zip(truth, log_w.softmax(-1).tolist(), strict=True))


def weights(posterior: Posterior) -> dict[tuple[int, ...], float]:
    d = posterior.distinct()
    return {tuple(z): float(w) for z, w in zip(d.z_uK.tolist(), d.weights_u, strict=True)}


def distance(found: dict[tuple[int, ...], float], expected: dict[tuple[int, ...], float]) -> float:
    """Total variation."""
    return sum(abs(found.get(z, 0.0) - p) for z, p in expected.items()) / 2


# -- estimators of the tempered posterior ------------------------------------------------------------------------


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"e_step.exact": True}, 1e-4),
        ({"e_step.num_permutations": 40, "e_step.replacement": False, "e_step.proposal_temperature": 2.0}, 1e-4),
        ({"e_step.num_permutations": 12, "e_step.proposals_per_sample": 2}, 1e-4),
        ({"e_step.num_permutations": 3000, "e_step.replacement": True, "e_step.proposal_temperature": 1.5}, 0.04),
    ],
    ids=["enumeration", "without replacement", "imputation, all scored", "importance sampling"],
)
def test_estimators_give_the_tempered_posterior(
    e_step: Callable[..., EStep], settings: dict[str, object], tolerance: float, tau: float
) -> None:
    """w ~ p_s p_g^tau over all permutations; an estimator that ignored tau would be far off."""
    step = e_step(**settings, e_step__likelihood_exponent=tau)
    for posterior in step(EXAMPLES[:2], round=1):
        truth = enumerated(step, posterior)
        found = weights(posterior)
        assert distance(found, target(truth, tau)) < tolerance
        assert posterior.exponent == tau
        for other in set(TAUS) - {tau}:  # the control
            assert distance(found, target(truth, other)) > 2 * tolerance


@pytest.mark.parametrize("tau", TAUS)
def test_the_scored_permutations_stand_for_all_under_the_tempered_posterior(
    e_step: Callable[..., EStep], tau: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All twelve are drawn, three are scored: sums over those, over inclusion probabilities, are right on average."""
    utility_n = torch.tensor([-2.0, 0.5, -4.0, -1.0])
    monkeypatch.setattr(
        "training.posterior_estimators.PosteriorEstimator._log_likelihoods",
        lambda self, batch, permutations: [utility_n[z_mK].sum(-1) - 1.0 for z_mK in permutations],
    )
    monkeypatch.setattr(
        "training.single_passages.SinglePassages.log_likelihoods",
        lambda self, questions, round: [utility_n for _ in questions],
    )
    step = e_step(
        e_step__num_permutations=3,
        e_step__proposals_per_sample=4,
        e_step__likelihood_exponent=tau,
        e_step__batch_size=200,
    )
    copies = [replace(EXAMPLES[0], id=f"copy-{i}") for i in range(200)]
    posteriors = step(copies, round=1)
    log_p_N = log_probs_of(step.selector, posteriors[0].candidates, enumerate_permutations(4, 2)).double()
    log_g_N = utility_n[enumerate_permutations(4, 2)].sum(-1).double() - 1.0
    sums = []
    for posterior in posteriors:
        scored = posterior.scored
        assert scored is not None
        drawn = posterior.permutations.at(scored.index_m)
        log_w = drawn.log_p.double() + tau * posterior.log_likelihood_m[scored.index_m].double()
        sums.append((log_w - scored.log_inclusion_m.double()).exp().sum())
        torch.testing.assert_close(scored.weights_m.double(), (log_w - scored.log_inclusion_m).softmax(-1))
        predicted = posterior.permutations.log_p.double() + tau * posterior.log_likelihood_m.double()
        torch.testing.assert_close(posterior.weights_m.double(), predicted.softmax(-1), rtol=1e-4, atol=1e-6)
    found, error = torch.stack(sums).mean(), torch.stack(sums).std() / len(sums) ** 0.5

    def normaliser(exponent: float) -> float:
        return float((log_p_N + exponent * log_g_N).exp().sum())

    assert float(found) == pytest.approx(normaliser(tau), abs=4 * float(error))
    for other in set(TAUS) - {tau}:  # the control
        assert abs(float(found) - normaliser(other)) > 4 * float(error)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("control_variate", [True, False])
def test_the_selectors_gradient_is_that_of_the_tempered_objective(
    e_step: Callable[..., EStep], tau: float, control_variate: bool
) -> None:
    """d/d theta of - log sum_z p_s p_g^tau, by autograd through all permutations, with and without the baseline b."""
    step = e_step(e_step__exact=True, e_step__likelihood_exponent=tau, e_step__control_variate=control_variate)
    posterior = step(EXAMPLES[:1], round=1)[0]
    parameters = [step.selector.prior_weights["gate"], step.selector.prior_weights["strength"]]
    truth = enumerated(step, posterior)
    log_g_N = torch.tensor([log_g for _, log_g in truth.values()])
    (log_p_N,) = step.selector.log_prob([posterior.candidates], [torch.tensor(list(truth))])
    found = torch.autograd.grad(selection_losses(step.selector, [posterior]).sum(), parameters)

    def gradient(exponent: float) -> list[torch.Tensor]:
        objective = -(log_p_N + exponent * log_g_N).logsumexp(-1)
        return list(torch.autograd.grad(objective, parameters, retain_graph=True))

    torch.testing.assert_close(list(found), gradient(tau), rtol=2e-3, atol=1e-4)
    for other in set(TAUS) - {tau}:  # the control
        assert not torch.allclose(torch.cat(found), torch.cat(gradient(other)), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("tau", TAUS)
def test_the_retriever_is_taught_by_tempered_marginals(e_step: Callable[..., EStep], tau: float) -> None:
    """Distillation: the target moves each logit by the change in log-odds under the enumerated tempered posterior."""
    step = e_step(e_step__exact=True, e_step__likelihood_exponent=tau)
    posterior = step(EXAMPLES[:1], round=1)[0]
    truth = enumerated(step, posterior)
    logits_n = step.selector.retriever_logits(posterior.candidates.scores)

    def loss(exponent: float) -> float:
        marginals = torch.zeros(2, 4, dtype=torch.float64)
        for row, power in enumerate((exponent, 0.0)):
            for z, p in target(truth, power).items():
                marginals[row, list(z)] += p
        after, before = marginals.clamp(0.5 / 12, 1 - 0.5 / 12).logit()
        wanted_n = (logits_n.double() + after - before).softmax(-1)
        return float(-(wanted_n * logits_n.double().log_softmax(-1)).sum())

    found = float(distilled_loss(step.selector, posterior).detach())
    assert found == pytest.approx(loss(tau), abs=1e-4)
    assert all(abs(found - loss(other)) > 1e-3 for other in set(TAUS) - {tau})  # the control


def test_the_reported_marginal_likelihood_is_not_tempered(e_step: Callable[..., EStep]) -> None:
    """log p(y|x) is the same number whatever the weights are used for."""
    step = e_step(e_step__exact=True, e_step__likelihood_exponent=0.2)
    posterior = step(EXAMPLES[:1], round=1)[0]
    truth = enumerated(step, posterior)
    expected = torch.tensor([log_p + log_g for log_p, log_g in truth.values()]).logsumexp(-1)
    assert posterior.diagnostics().log_marginal == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("settings", [{"e_step.exact": True}, {"e_step.proposals_per_sample": 3}])
def test_posteriors_are_tempered_after_the_e_step(e_step: Callable[..., EStep], settings: dict[str, object]) -> None:
    """From any exponent to any other, without drawing or scoring; the scored ones keep how they were chosen."""
    half, one = (e_step(**settings, e_step__likelihood_exponent=tau)(EXAMPLES, round=1) for tau in (0.5, 1.0))
    for a, b in zip(half, one, strict=True):
        again = a.tempered(1.0).tempered(0.5)
        assert again.exponent == 0.5
        torch.testing.assert_close(again.weights_m, a.weights_m)
        if a.scored is None:
            torch.testing.assert_close(a.tempered(1.0).weights_m, b.weights_m)
            continue
        moved = a.tempered(1.0).scored
        assert moved is not None
        torch.testing.assert_close(moved.log_inclusion_m, a.scored.log_inclusion_m)
        assert float(moved.weights_m.sum()) == pytest.approx(1.0)
        assert not torch.allclose(moved.weights_m, a.scored.weights_m)


def test_posteriors_of_tokens_are_not_tempered(e_step: Callable[..., EStep]) -> None:
    """RAG-Token's objective is a likelihood, and its posterior is the one that the gradient asks for."""
    posterior = e_step(e_step__exact=True, e_step__marginalization="token")(EXAMPLES[:1], round=1)[0]
    with pytest.raises(UsageError, match=r"not tempered, got the exponent 0\.5"):
        posterior.tempered(0.5)
    for exponent in (0.2, 0.5, "auto"):
        with pytest.raises(UsageError, match="likelihood_exponent=1; got exact=True and likelihood_exponent="):
            EStepConfig(exact=True, marginalization="token", likelihood_exponent=exponent)


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, "automatic", ""])
@pytest.mark.parametrize(
    "setting", [(EStepConfig, "likelihood_exponent"), (RetrieverTrainingConfig, "lsr_temperature")], ids=lambda s: s[1]
)
def test_exponents_are_positive_and_finite_or_auto(setting: tuple[Any, str], value: object) -> None:
    group, name = setting
    with pytest.raises(UsageError, match=f'{name} must be positive and finite, or "auto"; got '):
        group(**{name: value})
    assert getattr(group(**{name: "auto"}), name) == "auto"


def test_temperatures_of_proposals_are_finite() -> None:
    with pytest.raises(UsageError, match="proposal_temperature must be positive and finite; got inf"):
        EStepConfig(proposal_temperature=math.inf)


# -- the exponent that is fitted -------------------------------------------------------------------------------------

WEIGHT = 1.5
"""Of the retriever's scores in the selector, which the constructed questions follow."""


def constructed(
    questions: int, gain: float, noise: float, *, seed: int, K: int = 1, sampled: int | None = None
) -> tuple[SimpleNamespace, list[Posterior]]:
    """Questions of ten passages (six with K = 2): the right permutation is drawn by the selector.

    Its log-likelihood is normal around `gain`, that of all others around 0, both with standard deviation `noise`: the
    exponent by which evidence like that should be weighed is gain / noise^2, the slope of the log-density ratio.
    """
    draws = torch.Generator().manual_seed(seed)
    n = 10 if K == 1 else 6
    z_NK = enumerate_permutations(n, K)
    components, posteriors = {}, []
    for number in range(questions):
        scores_n, other_n = torch.randn(2, n, generator=draws)
        log_p_N = plackett_luce_log_prob(WEIGHT * scores_n, z_NK)
        log_likelihood_N = noise * torch.randn(len(z_NK), generator=draws)
        log_likelihood_N[torch.multinomial(log_p_N.exp(), 1, generator=draws)] += gain
        log_q_N = torch.full((len(z_NK),), -math.log(len(z_NK)))
        kept = torch.arange(len(z_NK))
        if sampled is not None:
            kept, log_q_N = torch.multinomial(log_p_N.exp(), sampled, True, generator=draws), log_p_N
        drawn = Permutations(z_NK[kept], log_p_N[kept], log_q_N[kept])
        posterior = Posterior(
            QAExample(str(number), "?", ("a",)),
            "a",
            None,  # type: ignore[arg-type]
            drawn,
            log_likelihood_N[kept],
            torch.full((len(kept),), 1 / len(kept)),
            baseline_weights(drawn.log_p, drawn.log_q),
            log_likelihood_N[kept],
        ).tempered(1.0)
        components[id(drawn)] = {"gate": other_n[None, None], "strength": scores_n[None, None]}
        posteriors.append(posterior)
    selector = SimpleNamespace(
        prior_weights={"gate": torch.zeros(1), "strength": torch.full((1,), WEIGHT)},
        components=lambda candidates, permutations: components[id(permutations)],
    )
    return selector, posteriors


@pytest.mark.parametrize(
    ("gain", "noise", "allowed"),
    [(2.0, 3.2, (0.1, 0.2, 0.3)), (2.0, 2.0, (0.3, 0.5, 0.7)), (1.0, 1.0, (0.7, 1.0)), (0.0, 3.0, (0.05,))],
    ids=["0.2", "0.5", "1", "no evidence"],
)
def test_auto_finds_the_weight_that_the_evidence_deserves(gain: float, noise: float, allowed: Sequence[float]) -> None:
    """To one step of the grid, with prior weights that are fitted and as the selector is."""
    selector, posteriors = constructed(400, gain, noise, seed=5)
    for components in (prior_components(selector, posteriors), []):
        found = fit_exponent(selector, posteriors, components, fallback=0.4)
        assert found.exponent in allowed
        assert set(found.agreement) == set(GRID) and not found.is_fallback and found.questions == 400
    assert selector.prior_weights["strength"].item() == WEIGHT, "the selector is left as it is"
    assert fit_exponent(selector, posteriors, components, fallback=0.4) == found


def test_auto_finds_it_for_sampled_lists() -> None:
    """Twelve draws with replacement of thirty lists of two: repeated ones count once."""
    low, high = (
        fit_exponent(selector, posteriors, prior_components(selector, posteriors), fallback=0.4).exponent
        for selector, posteriors in (
            constructed(300, g, s, seed=2, K=2, sampled=12) for g, s in ((2.0, 4.0), (1.0, 0.9))
        )
    )
    assert low <= 0.2 and high >= 0.5


def test_agreement_against_its_definition() -> None:
    """Lists (0, 1), (1, 2), (2, 0) of which the first was drawn twice: every passage is in two of three."""
    z = torch.tensor([[[0, 1], [1, 2], [0, 1], [2, 0]]])
    again = torch.tensor([[False, False, True, False]])
    log_p = torch.tensor([[0.1, 0.4, 0.1, 0.2]]).log()
    e = torch.tensor([[-3.0, -1.0, -3.0, -2.0]])
    p = [w / 0.7 for w in (0.1, 0.4, 0.2)]
    marginals = [p[0] + p[2], p[0] + p[1], p[1] + p[2]]
    shares = [(marginals[a] + marginals[b]) / (2 * 2) for a, b in ((0, 1), (1, 2), (2, 0))]
    power = [math.exp(0.5 * x) for x in (-3.0, -1.0, -2.0)]
    expected = math.log(3 * sum(s * w for s, w in zip(shares, power, strict=True)) / sum(power))
    assert float(agreement(log_p, e, z, again, 0.5)) == pytest.approx(expected)
    assert float(agreement(log_p, torch.zeros_like(e), z, again, 0.5)) == pytest.approx(0.0, abs=1e-9)


def test_agreement_does_not_depend_on_the_order_within_lists() -> None:
    """A selector that puts the best passage first and a generator that likes it last agree on the passage."""
    z = torch.tensor([[[0, 1], [1, 0], [2, 3], [3, 2]]])
    fresh = torch.zeros(1, 4, dtype=torch.bool)
    log_p = torch.tensor([[0.6, 0.1, 0.2, 0.1]]).log()
    e = torch.tensor([[-2.0, -1.0, -4.0, -4.0]])
    assert float(agreement(log_p, e, z, fresh, 1.0)) > 0.1
    turned = agreement(log_p[:, [1, 0, 2, 3]], e, z, fresh, 1.0)
    torch.testing.assert_close(turned, agreement(log_p, e, z, fresh, 1.0))


def test_few_usable_questions_fall_back() -> None:
    """Questions of which every permutation explains the answer equally well tell nothing."""
    selector, posteriors = constructed(LEAST_QUESTIONS, 1.0, 1.0, seed=0)
    components = prior_components(selector, posteriors)
    assert not fit_exponent(selector, posteriors, components, fallback=0.4).is_fallback
    even = replace(posteriors[0], log_likelihood_m=torch.zeros(10))
    found = fit_exponent(selector, [even, *posteriors[1:]], components, fallback=0.4)
    assert found.is_fallback and found.exponent == 0.4 and found.questions == LEAST_QUESTIONS - 1


# -- in the trainer --------------------------------------------------------------------------------------------------


def train(rag: RAG, output_dir: Path, examples: Sequence[QAExample] = EXAMPLES, **settings: object) -> DROTrainer:
    defaults = {"rounds": 2, "e_step.num_permutations": 3, "supervised.num_train_epochs": 0}
    trainer = DROTrainer(
        rag, dro_config(**defaults | settings), train_dataset=list(examples), output_dir=output_dir, progress=False
    )
    trainer.train()
    return trainer


def test_auto_with_few_questions_says_once_what_it_takes(
    make_rag: Callable[..., RAG], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = train(make_rag(), tmp_path / "run", e_step__likelihood_exponent="auto")
    assert [record["likelihood_exponent"] for record in trainer.history[1:]] == [0.5, 0.5]
    said = [r.message for r in caplog.records if "likelihood_exponent" in r.message and "To fit" in r.message]
    assert len(said) == 1
    assert "at least 20 questions" in said[0] and "3 have. It is 0.5 instead" in said[0]


def test_auto_is_fitted_and_used_in_every_round(make_rag: Callable[..., RAG], tmp_path: Path) -> None:
    """With enough questions the M-step learns from posteriors at the exponent of the record."""
    examples = [replace(EXAMPLES[i % 3], id=f"q{i}") for i in range(24)]
    seen: list[float] = []
    trainer = DROTrainer(
        make_rag(),
        dro_config(
            rounds=1,
            e_step__num_permutations=2,
            e_step__proposals_per_sample=3,
            supervised__num_train_epochs=0,
            e_step__likelihood_exponent="auto",
        ),
        train_dataset=examples,
        output_dir=tmp_path / "run",
        progress=False,
    )
    maximize = trainer._maximize
    trainer._maximize = lambda posteriors, round: (
        seen.extend(p.exponent for p in posteriors) or maximize(posteriors, round)
    )  # type: ignore[method-assign]
    trainer.train()
    assert set(seen) == {trainer.history[1]["likelihood_exponent"]} and seen[0] in GRID


def test_the_temperature_of_single_passages_is_fitted_apart(
    base: Path, index: PassageIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """REPLUG: its own setting, in the record of the round, and in the loss."""

    def single() -> RAG:
        selector = SelectorConfig(num_candidates=3, num_selected=1, use_language_model=False)
        return RAG.create(index=index, base=base, selector=selector, device="cpu")

    replug = {
        "e_step.exact": True,
        "train_generator": False,
        "retriever_training.objective": "lsr",
        "e_step.likelihood_exponent": 1.0,
    }
    few = train(single(), tmp_path / "few", **replug, rounds=1, retriever_training__lsr_temperature="auto")
    assert few.history[1]["likelihood_exponent"] == pytest.approx(0.2), "of REPLUG's target, which teaches"
    assert any('retriever_training.lsr_temperature="auto"' in record.message for record in caplog.records)
    fixed = train(
        single(),
        tmp_path / "fixed",
        **replug,
        rounds=1,
        retriever_training__lsr_temperature=5.0,
    )
    assert few.history[1]["retriever_loss"] == pytest.approx(fixed.history[1]["retriever_loss"], abs=1e-6)
    many = [replace(EXAMPLES[i % 3], id=f"q{i}") for i in range(24)]
    fitted = train(
        single(),
        tmp_path / "many",
        many,
        **replug,
        rounds=1,
        retriever_training__lsr_temperature="auto",
    )
    assert fitted.history[1]["likelihood_exponent"] in [pytest.approx(tau) for tau in GRID]
    target = Posterior.lsr_target(constructed(1, 1.0, 1.0, seed=0)[1][0], 4.0)
    torch.testing.assert_close(target.weights_m, (target.log_likelihood_m / 4).softmax(-1))


# -- the teacher beside the selector -----------------------------------------------------------------------------


def test_gold_figures_against_enumeration(e_step: Callable[..., EStep]) -> None:
    """Expected share, recall@K of marginals and cross-entropy of posterior and selector, spelled out."""
    step = e_step(e_step__exact=True, e_step__likelihood_exponent=0.5)
    example = replace(EXAMPLES[0], gold_ids=("p0", "p4", "unknown"))
    posterior = step([example], round=1)[0]
    truth, diagnostics = enumerated(step, posterior), posterior.diagnostics()
    gold = {i for i, name in enumerate(posterior.candidates.ids) if name in example.gold_ids}
    assert gold, "the constructed question retrieves a gold passage"
    log_likelihood = {z: log_g for z, (_, log_g) in truth.items()}
    for who, power, likelihood in (
        ("posterior", 0.5, diagnostics.log_likelihood),
        ("selector", 0.0, diagnostics.selector_log_likelihood),
    ):
        p = target(truth, power)
        marginals = [sum(w for z, w in p.items() if i in z) for i in range(4)]
        best = sorted(range(4), key=lambda i: -marginals[i])[:2]
        share = sum(w * len(gold & set(z)) / 3 for z, w in p.items())
        entropy = -sum(math.log(marginals[i] / 2) for i in gold) / len(gold)
        assert getattr(diagnostics, f"{who}_gold_share") == pytest.approx(share, abs=1e-4)
        assert getattr(diagnostics, f"{who}_recall") == pytest.approx(len(gold & set(best)) / 3)
        assert getattr(diagnostics, f"{who}_cross_entropy") == pytest.approx(entropy, abs=1e-3)
        assert likelihood == pytest.approx(sum(w * log_likelihood[z] for z, w in p.items()), abs=1e-2)


def test_without_gold_ids_or_a_choice_there_are_no_gold_figures(e_step: Callable[..., EStep]) -> None:
    unknown = e_step(e_step__exact=True)([replace(EXAMPLES[0], gold_ids=())], round=1)[0].diagnostics()
    assert unknown.posterior_gold_share is None and unknown.selector_log_likelihood is not None
    single = e_step(e_step__num_permutations=1)(EXAMPLES[:1], round=1)[0].diagnostics()
    assert single.posterior_gold_share is None and single.selector_log_likelihood is None
    assert EStepDiagnostics.warning([unknown, single]) is None


def judged(pairs: Sequence[tuple[float, float]], entropies: Sequence[tuple[float, float]]) -> str | None:
    base = EStepDiagnostics(
        ess=1.0,
        distinct_permutations=1.0,
        log_marginal=0.0,
        log_likelihood=0.0,
        posterior_entropy=0.0,
        permutations=4.0,
        likelihood_exponent=0.3,
    )
    return EStepDiagnostics.warning(
        [
            replace(
                base,
                posterior_gold_share=a,
                selector_gold_share=b,
                posterior_cross_entropy=c,
                selector_cross_entropy=d,
            )
            for (a, b), (c, d) in zip(pairs, entropies, strict=True)
        ]
    )


def test_a_useless_teacher_is_named_and_a_good_one_is_not() -> None:
    """No better within the noise of 40 questions; clearly better; better and yet surer than it is right."""
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0)).mul(0.2).tolist()
    useless = judged([(0.5 + x, 0.5) for x in noise], [(1.0, 1.0)] * 40)
    assert useless is not None
    assert (
        "no better a teacher" in useless and "0.500" in useless and "40 questions, likelihood exponent 0.3" in useless
    )
    assert judged([(0.7 + x, 0.5) for x in noise], [(0.9 + x, 1.0) for x in noise]) is None
    sharp = judged([(0.7 + x, 0.5) for x in noise], [(3.4 + x, 1.4) for x in noise])
    assert sharp is not None
    assert "surer than it is right" in sharp and "1.400" in sharp and '"auto"' in sharp


@pytest.mark.parametrize("useless", [True, False])
def test_the_first_round_warns_of_a_useless_teacher(
    useless: bool,
    make_rag: Callable[..., RAG],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A generator to which all lists are alike, and one that answers from gold passages; in log and record."""

    def log_likelihoods(self: Any, batch: Any, permutations: Any) -> list[torch.Tensor]:
        return [
            torch.tensor(
                [
                    0.0 if useless else 3.0 * any(item.candidates.ids[i] in item.example.gold_ids for i in z)
                    for z in z_mK.tolist()
                ]
            )
            for item, z_mK in zip(batch, permutations, strict=True)
        ]

    monkeypatch.setattr("training.posterior_estimators.PosteriorEstimator._log_likelihoods", log_likelihoods)
    with caplog.at_level(logging.WARNING):
        trainer = train(make_rag(), tmp_path / "run", EXAMPLES[:2], rounds=1, e_step__exact=True)
    record = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[1])
    said = [r.message for r in caplog.records if "teacher" in r.message]
    assert record == trainer.history[1]
    assert record.get("warnings", []) == said and bool(said) == useless
    assert (record["posterior_gold_share"] > record["selector_gold_share"] + 0.05) != useless


def test_auto_is_a_setting_of_the_command_line_and_of_files() -> None:
    config = DROConfig.from_dict({"e_step": {"likelihood_exponent": "auto"}})
    assert DROConfig.from_dict(config.to_dict()) == config
    assert config.e_step.first_exponent == 0.5
