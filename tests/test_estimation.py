"""The E-step against the enumerated posterior, and its bookkeeping."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny_models import log_probs_of

from generator.generator import Generator
from indexes.errors import DataError
from retriever.dense import DenseRetriever
from retriever.permutations import Permutations
from training.estimation import EStep
from training.posterior import Posterior, answer_sequence, stable_seed
from training.questions.example import QAExample

EXAMPLES = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare", "William Shakespeare"), ("p0",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
    QAExample("q3", "who designed Python?", ("Guido van Rossum",), ("p5",)),
]


@pytest.fixture
def e_step(make_e_step: Callable[..., EStep]) -> Callable[..., EStep]:
    plain = {"e_step.num_permutations": 8, "e_step.replacement": True, "e_step.proposals_per_sample": 1}
    return lambda **settings: make_e_step(**plain | settings)


def test_exact_mode_is_the_enumerated_posterior(e_step: Callable[..., EStep]) -> None:
    """p(z|x,y) and log p(y|x) from one forward per permutation."""
    step = e_step(e_step__exact=True)
    for posterior in step(EXAMPLES, round=1):
        joint = []
        for z in posterior.permutations.z:
            log_p_s = log_probs_of(step.selector, posterior.candidates, z[None])[0]
            passages = [posterior.candidates.passages[i] for i in z.tolist()]
            joint.append(
                log_p_s.double() + step.generator.log_prob(posterior.candidates.question, passages, posterior.answer)
            )
        expected = torch.stack(joint)
        assert len(posterior.permutations) == 12
        torch.testing.assert_close(posterior.weights_m.double(), expected.softmax(-1), rtol=1e-3, atol=1e-5)
        assert posterior.diagnostics().log_marginal == pytest.approx(float(expected.logsumexp(-1)), abs=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampling_converges_to_the_enumerated_posterior(e_step: Callable[..., EStep], temperature: float) -> None:
    exact = e_step(e_step__exact=True, e_step__candidate_order="retriever")(EXAMPLES[:1], round=1)[0]
    step = e_step(
        e_step__num_permutations=1200, e_step__proposal_temperature=temperature, e_step__candidate_order="retriever"
    )
    sampled = step(EXAMPLES[:1], round=1)[0]
    assert sampled.answer == exact.answer
    distinct = sampled.distinct()
    found = {tuple(z): float(w) for z, w in zip(distinct.z_uK.tolist(), distinct.weights_u, strict=True)}
    expected = {tuple(z): float(w) for z, w in zip(exact.permutations.z.tolist(), exact.weights_m, strict=True)}
    assert max(abs(found.get(z, 0.0) - w) for z, w in expected.items()) < 0.06
    assert sampled.diagnostics().log_marginal == pytest.approx(exact.diagnostics().log_marginal, abs=0.2)


def test_sampling_all_without_replacement_gives_the_posterior(e_step: Callable[..., EStep]) -> None:
    """Twelve exist: twelve different draws leave nothing to estimate."""
    exact = e_step(e_step__exact=True, e_step__candidate_order="retriever")(EXAMPLES, round=1)
    settings = {"e_step.num_permutations": 40, "e_step.proposal_temperature": 2.0, "e_step.replacement": False}
    sampled = e_step(**settings, e_step__candidate_order="retriever")(EXAMPLES, round=1)
    for one, other in zip(exact, sampled, strict=True):
        weights = {tuple(z): float(w) for z, w in zip(other.permutations.z.tolist(), other.weights_m, strict=True)}
        expected = {tuple(z): float(w) for z, w in zip(one.permutations.z.tolist(), one.weights_m, strict=True)}
        assert weights == pytest.approx(expected, abs=1e-4)
        assert other.diagnostics().log_marginal == pytest.approx(one.diagnostics().log_marginal, abs=1e-3)
        assert other.diagnostics().distinct_permutations == 1.0


def test_the_marginal_is_estimated_without_bias_without_replacement(e_step: Callable[..., EStep]) -> None:
    """p(y|x) itself, not its logarithm: averaged over many E-steps with three of twelve permutations each."""
    exact = e_step(e_step__exact=True, e_step__candidate_order="retriever")(EXAMPLES[:1], round=1)[0]
    step = e_step(
        e_step__num_permutations=3,
        e_step__replacement=False,
        e_step__candidate_order="retriever",
        e_step__batch_size=300,
    )
    copies = [replace(EXAMPLES[0], id=f"copy-{i}", golden_answers=(exact.answer,)) for i in range(300)]
    found = torch.tensor([p.diagnostics().log_marginal for p in step(copies, round=1)]).double().exp()
    expected = math.exp(exact.diagnostics().log_marginal)
    assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / len(found) ** 0.5)


def test_duplicates_keep_their_multiplicity() -> None:
    """Draws a, b, a with weights .2, .5, .3: a carries .5 and stands for two thirds of the draws."""
    z = torch.tensor([[1, 0], [0, 1], [1, 0]])
    posterior = Posterior(
        QAExample("q", "who?", ("x",)),
        "x",
        None,  # type: ignore[arg-type]
        Permutations(z, torch.tensor([-1.0, -2.0, -1.0]), torch.zeros(3)),
        torch.zeros(3),
        torch.tensor([0.2, 0.5, 0.3]),
        torch.full((3,), 1 / 3),
        torch.zeros(3),
    )
    distinct = posterior.distinct()
    a = distinct.z_uK.tolist().index([1, 0])
    assert distinct.weights_u[a].item() == pytest.approx(0.5)
    assert distinct.share_u[a].item() == pytest.approx(2 / 3)
    assert distinct.baseline_u is not None
    assert distinct.baseline_u[a].item() == pytest.approx(2 / 3)
    assert distinct.log_p_old_u.tolist() == [-2.0 if i != a else -1.0 for i in range(2)]
    assert posterior.diagnostics().distinct_permutations == pytest.approx(2 / 3)


def test_the_effective_sample_size_is_that_of_the_weights(e_step: Callable[..., EStep]) -> None:
    """5 for equal weights, 1 / sum w^2 otherwise."""
    posterior = e_step(e_step__num_permutations=5)(EXAMPLES, round=1)[0]
    expected = 1 / sum(w**2 for w in posterior.weights_m.tolist())
    assert posterior.diagnostics().ess == pytest.approx(expected)
    even = replace(posterior, weights_m=torch.full((5,), 0.2))
    assert even.diagnostics().ess == pytest.approx(5.0)


def test_results_depend_only_on_seed_and_round(e_step: Callable[..., EStep]) -> None:
    first, again = e_step()(EXAMPLES, round=2), e_step()(EXAMPLES, round=2)
    other = e_step()(EXAMPLES, round=3)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.permutations.z, b.permutations.z)
        assert torch.equal(a.weights_m, b.weights_m)
        assert a.candidates.ids == b.candidates.ids
    assert any(a.candidates.ids != c.candidates.ids for a, c in zip(first, other, strict=True))


def test_diagnostics_say_whether_the_best_permutation_holds_the_gold_passages(e_step: Callable[..., EStep]) -> None:
    for posterior in e_step(e_step__exact=True)(EXAMPLES, round=1):
        diagnostics = posterior.diagnostics()
        best = posterior.permutations.z[int(posterior.weights_m.argmax())].tolist()
        read = {posterior.candidates.ids[i] for i in best}
        assert diagnostics.best_holds_gold == float(set(posterior.example.gold_ids) <= read)
        entropy = torch.distributions.Categorical(probs=posterior.weights_m.double()).entropy()
        assert diagnostics.posterior_entropy == pytest.approx(float(entropy), abs=1e-4)
        assert diagnostics.permutations == 12
    unknown = replace(EXAMPLES[0], gold_ids=())
    assert e_step()([unknown], round=1)[0].diagnostics().best_holds_gold is None


def test_candidate_order(e_step: Callable[..., EStep], retriever: DenseRetriever) -> None:
    """Shuffled: the same candidates in another order. "retriever": as they were found."""
    found = retriever.search([e.question for e in EXAMPLES], 4)
    kept = e_step(e_step__candidate_order="retriever")(EXAMPLES, round=1)
    shuffled = e_step()(EXAMPLES, round=1)
    assert [p.candidates.ids for p in kept] == [c.ids for c in found]
    assert [sorted(p.candidates.ids) for p in shuffled] == [sorted(c.ids) for c in found]
    assert [p.candidates.ids for p in shuffled] != [c.ids for c in found]


def test_half_of_the_candidates_may_come_from_a_larger_pool(
    e_step: Callable[..., EStep], retriever: DenseRetriever
) -> None:
    """Of six passages: the first two always, two of the other four, other ones in another round; never one twice."""
    step = e_step(e_step__candidate_pool=6, e_step__candidate_order="retriever")
    found = retriever.search(EXAMPLES[0].question, 6)
    seen: set[str] = set()
    for round in range(1, 9):
        posterior = step(EXAMPLES[:1], round=round)[0]
        ids = posterior.candidates.ids
        assert ids[:2] == found.ids[:2] and len(set(ids)) == 4
        assert sorted(ids, key=found.ids.index) == ids
        expected = [float(found.scores[found.ids.index(i)]) for i in ids]
        assert posterior.candidates.scores.tolist() == pytest.approx(expected, abs=1e-6)
        seen |= set(ids[2:])
    assert seen == set(found.ids[2:])
    again = step(EXAMPLES[:1], round=3)[0].candidates.ids
    assert again == step(EXAMPLES[:1], round=3)[0].candidates.ids
    assert (
        e_step(e_step__candidate_pool=2, e_step__candidate_order="retriever")(EXAMPLES[:1], round=1)[0].candidates.ids
        == found.ids[:4]
    )


@pytest.mark.parametrize("settings", [{"e_step__exact": True}, {"e_step__proposals_per_sample": 3}])
def test_the_likelihood_exponent_flattens_the_weights(
    e_step: Callable[..., EStep], settings: dict[str, object]
) -> None:
    """w ~ p_s/q p_g^tau for all that were drawn; the reported log-likelihood keeps its unit."""
    settings = {"e_step.replacement": False, "e_step.num_permutations": 3, **settings}
    plain, flat = (e_step(**settings, e_step__likelihood_exponent=tau)(EXAMPLES, round=1) for tau in (1.0, 0.2))
    for one, other in zip(plain, flat, strict=True):
        assert torch.equal(one.permutations.z, other.permutations.z)
        drawn = other.permutations
        log_w = (drawn.log_p - drawn.log_q).double() + 0.2 * other.log_likelihood_m.double()
        torch.testing.assert_close(other.weights_m.double(), log_w.softmax(-1), rtol=1e-4, atol=1e-6)
        assert other.diagnostics().likelihood_exponent == 0.2
        assert other.diagnostics().ess > one.diagnostics().ess


def test_paper_mode_has_no_baseline(e_step: Callable[..., EStep]) -> None:
    assert e_step(e_step__control_variate=False)(EXAMPLES, round=1)[0].baseline_m is None


def test_expected_marginals_do_not_need_the_control_variate(e_step: Callable[..., EStep]) -> None:
    """The same marginals before the answer; of a single permutation that was given there are none."""
    paper, ours = e_step(e_step__control_variate=False)(EXAMPLES, round=1), e_step()(EXAMPLES, round=1)
    for one, other in zip(paper, ours, strict=True):
        expected, same = one.expected_marginals(), other.expected_marginals()
        assert expected is not None and same is not None
        torch.testing.assert_close(expected, same)
        assert float(expected.sum()) == pytest.approx(2.0, abs=1e-5)
    given = replace(paper[0], permutations=paper[0].permutations.at(torch.tensor([0])), weights_m=torch.ones(1))
    assert given.expected_marginals() is None


def test_exact_mode_scores_no_single_passages(e_step: Callable[..., EStep], monkeypatch: pytest.MonkeyPatch) -> None:
    step = e_step(e_step__exact=True, e_step__proposals_per_sample=8)
    rows: list[int] = []
    log_probs = step.generator.log_probs
    monkeypatch.setattr(step.generator, "log_probs", lambda r: rows.append(len(r)) or log_probs(r))
    step(EXAMPLES[:1], round=1)
    assert rows == [12]


def test_aliases_change_over_rounds(e_step: Callable[..., EStep]) -> None:
    """Trap 8: every golden answer is used, one per round."""
    step = e_step(e_step__num_permutations=1)
    assert {step(EXAMPLES[:1], round=r)[0].answer for r in range(12)} == {"Shakespeare", "William Shakespeare"}


def test_gold_passages_are_not_moved_to_the_front(e_step: Callable[..., EStep], generator: Generator) -> None:
    """Trap 8: the generator reads the passages in the permutation's order, gold or not."""
    posterior = e_step(e_step__candidate_order="retriever")(EXAMPLES[:1], round=1)[0]
    z = torch.tensor([3, 1])
    row = answer_sequence(generator, posterior.candidates, z, "x")
    text = generator.language_model.tokenizer.decode(row.prompt_ids)
    titles = [posterior.candidates.passages[i].title for i in (3, 1)]
    assert f"[1] Title: {titles[0]} Text" in text
    assert f"[2] Title: {titles[1]} Text" in text


def test_fewer_than_k_retrieved(e_step: Callable[..., EStep], monkeypatch: pytest.MonkeyPatch) -> None:
    step = e_step()
    search = step.retriever.search
    monkeypatch.setattr(step.retriever, "search", lambda questions, k, **options: [search(q, 1) for q in questions])
    with pytest.raises(DataError, match="At least K=2 candidates must be retrieved"):
        step(EXAMPLES, round=1)


def test_seeds_are_stable_across_processes() -> None:
    assert stable_seed(42, 1, "order", "q1") == 4406052232115555641


def test_equal_permutations_are_scored_once(e_step: Callable[..., EStep], monkeypatch: pytest.MonkeyPatch) -> None:
    step = e_step(e_step__num_permutations=30)
    scored: list[str] = []
    log_probs = step.generator.log_probs
    monkeypatch.setattr(
        step.generator,
        "log_probs",
        lambda r: scored.extend(str(x.prompt_ids + x.answer_ids) for x in r) or log_probs(r),
    )
    posteriors = step(EXAMPLES, round=1)
    assert len(scored) == len(set(scored)) == sum(len(p.distinct().z_uK) for p in posteriors)
    assert len(scored) < sum(len(p.permutations) for p in posteriors)
