"""The E-step against the enumerated posterior, and its bookkeeping."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import log_probs_of

from generator.generator import Generator
from indexes.errors import DataError, UsageError
from retriever.dense import DenseRetriever
from retriever.permutations import Permutations
from training.config import DROConfig
from training.estimation import EStep, Posterior, answer_row, stable_seed
from training.questions.example import QAExample

EXAMPLES = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare", "William Shakespeare"), ("p0",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
    QAExample("q3", "who designed Python?", ("Guido van Rossum",), ("p5",)),
]


@pytest.fixture
def e_step(make_e_step: Callable[..., EStep]) -> Callable[..., EStep]:
    plain = {"num_permutations": 8, "replacement": True, "proposals_per_sample": 1}
    return lambda **settings: make_e_step(**plain | settings)


def test_exact_mode_is_the_enumerated_posterior(e_step: Callable[..., EStep]) -> None:
    """p(z|x,y) and log p(y|x) from one forward per permutation."""
    step = e_step(exact=True)
    for posterior in step(EXAMPLES, round=1):
        joint = []
        for z in posterior.permutations.z_mK:
            log_p_s = log_probs_of(step.selector, posterior.candidates, z[None])[0]
            passages = [posterior.candidates.passages[i] for i in z.tolist()]
            joint.append(
                log_p_s.double() + step.generator.log_prob(posterior.candidates.question, passages, posterior.answer)
            )
        expected = torch.stack(joint)
        assert len(posterior.permutations) == 12
        torch.testing.assert_close(posterior.weights_m.double(), expected.softmax(-1), rtol=1e-3, atol=1e-5)
        assert posterior.telemetry()["log_marginal"] == pytest.approx(float(expected.logsumexp(-1)), abs=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampling_converges_to_it(e_step: Callable[..., EStep], temperature: float) -> None:
    exact = e_step(exact=True, candidate_order="retriever")(EXAMPLES[:1], round=1)[0]
    step = e_step(num_permutations=1200, proposal_temperature=temperature, candidate_order="retriever")
    sampled = step(EXAMPLES[:1], round=1)[0]
    assert sampled.answer == exact.answer
    distinct = sampled.distinct()
    found = {tuple(z): float(w) for z, w in zip(distinct.z_uK.tolist(), distinct.weights_u, strict=True)}
    expected = {tuple(z): float(w) for z, w in zip(exact.permutations.z_mK.tolist(), exact.weights_m, strict=True)}
    assert max(abs(found.get(z, 0.0) - w) for z, w in expected.items()) < 0.06
    assert sampled.telemetry()["log_marginal"] == pytest.approx(exact.telemetry()["log_marginal"], abs=0.2)


def test_without_replacement_all_of_them_are_the_posterior(e_step: Callable[..., EStep]) -> None:
    """Twelve exist: twelve different draws leave nothing to estimate."""
    exact = e_step(exact=True, candidate_order="retriever")(EXAMPLES, round=1)
    settings = {"num_permutations": 40, "proposal_temperature": 2.0, "replacement": False}
    sampled = e_step(**settings, candidate_order="retriever")(EXAMPLES, round=1)
    for one, other in zip(exact, sampled, strict=True):
        weights = {tuple(z): float(w) for z, w in zip(other.permutations.z_mK.tolist(), other.weights_m, strict=True)}
        expected = {tuple(z): float(w) for z, w in zip(one.permutations.z_mK.tolist(), one.weights_m, strict=True)}
        assert weights == pytest.approx(expected, abs=1e-4)
        assert other.telemetry()["log_marginal"] == pytest.approx(one.telemetry()["log_marginal"], abs=1e-3)
        assert other.telemetry()["distinct_permutations"] == 1.0


def test_the_marginal_is_estimated_without_bias_without_replacement(e_step: Callable[..., EStep]) -> None:
    """p(y|x) itself, not its logarithm: averaged over many E-steps with three of twelve permutations each."""
    exact = e_step(exact=True, candidate_order="retriever")(EXAMPLES[:1], round=1)[0]
    step = e_step(num_permutations=3, replacement=False, candidate_order="retriever", e_step_batch_size=300)
    copies = [replace(EXAMPLES[0], id=f"copy-{i}", golden_answers=(exact.answer,)) for i in range(300)]
    found = torch.tensor([p.telemetry()["log_marginal"] for p in step(copies, round=1)]).double().exp()
    expected = math.exp(exact.telemetry()["log_marginal"])
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
    assert posterior.telemetry()["distinct_permutations"] == pytest.approx(2 / 3)


def test_equal_weights_have_full_ess(e_step: Callable[..., EStep]) -> None:
    telemetry = e_step(num_permutations=5)(EXAMPLES, round=1)[0].telemetry()
    assert 1.0 <= telemetry["ess"] <= 5.0 + 1e-4
    assert math.isfinite(telemetry["log_marginal"])


def test_everything_is_a_function_of_seed_and_round(e_step: Callable[..., EStep]) -> None:
    first, again = e_step()(EXAMPLES, round=2), e_step()(EXAMPLES, round=2)
    other = e_step()(EXAMPLES, round=3)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.permutations.z_mK, b.permutations.z_mK)
        assert torch.equal(a.weights_m, b.weights_m)
        assert a.candidates.ids == b.candidates.ids
    assert any(a.candidates.ids != c.candidates.ids for a, c in zip(first, other, strict=True))


def test_guided_sampling_converges_to_the_posterior_too(e_step: Callable[..., EStep]) -> None:
    """Weights are corrected for whatever was drawn from, with and without replacement."""
    exact = e_step(exact=True, candidate_order="retriever")(EXAMPLES[:1], round=1)[0]
    expected = {tuple(z): float(w) for z, w in zip(exact.permutations.z_mK.tolist(), exact.weights_m, strict=True)}
    for settings in ({"num_permutations": 1200}, {"num_permutations": 12, "replacement": False}):
        step = e_step(guidance=0.5, candidate_order="retriever", **settings)
        d = step(EXAMPLES[:1], round=1)[0].distinct()
        found = {tuple(z): float(w) for z, w in zip(d.z_uK.tolist(), d.weights_u, strict=True)}
        assert max(abs(found.get(z, 0.0) - w) for z, w in expected.items()) < 0.06


def test_the_guide_is_each_candidate_alone(e_step: Callable[..., EStep], monkeypatch: pytest.MonkeyPatch) -> None:
    step = e_step(guidance=0.3, candidate_order="retriever")
    seen: dict[str, object] = {}
    propose = step.selector.propose
    monkeypatch.setattr(step.selector, "propose", lambda *a, **k: seen.update(k) or propose(*a, **k))
    posteriors = step(EXAMPLES, round=1)
    for posterior, guide_n in zip(posteriors, seen["guides"], strict=True):  # type: ignore[call-overload]
        for passage, guide in zip(posterior.candidates.passages, guide_n.tolist(), strict=True):
            alone = step.generator.log_prob(posterior.example.question, [passage], posterior.answer)
            assert guide == pytest.approx(0.3 * alone, rel=1e-4)


def test_telemetry_tells_whether_the_best_permutation_reads_the_gold_passages(e_step: Callable[..., EStep]) -> None:
    for posterior in e_step(exact=True)(EXAMPLES, round=1):
        telemetry = posterior.telemetry()
        best = posterior.permutations.z_mK[int(posterior.weights_m.argmax())].tolist()
        read = {posterior.candidates.ids[i] for i in best}
        assert telemetry["best_holds_gold"] == float(set(posterior.example.gold_ids) <= read)
        entropy = torch.distributions.Categorical(probs=posterior.weights_m.double()).entropy()
        assert telemetry["posterior_entropy"] == pytest.approx(float(entropy), abs=1e-4)
        assert telemetry["permutations"] == 12
    unknown = replace(EXAMPLES[0], gold_ids=())
    assert "best_holds_gold" not in e_step()([unknown], round=1)[0].telemetry()


def test_candidate_order(e_step: Callable[..., EStep], retriever: DenseRetriever) -> None:
    """Shuffled: the same candidates in another order. "retriever": as they were found."""
    found = retriever.search([e.question for e in EXAMPLES], 4)
    kept = e_step(candidate_order="retriever")(EXAMPLES, round=1)
    shuffled = e_step()(EXAMPLES, round=1)
    assert [p.candidates.ids for p in kept] == [c.ids for c in found]
    assert [sorted(p.candidates.ids) for p in shuffled] == [sorted(c.ids) for c in found]
    assert [p.candidates.ids for p in shuffled] != [c.ids for c in found]


def test_half_of_the_candidates_may_come_from_a_larger_pool(
    e_step: Callable[..., EStep], retriever: DenseRetriever
) -> None:
    """Of six passages: the first two always, two of the other four, other ones in another round; never one twice."""
    step = e_step(candidate_pool=6, candidate_order="retriever")
    found = retriever.search(EXAMPLES[0].question, 6)
    seen: set[str] = set()
    for round in range(1, 9):
        posterior = step(EXAMPLES[:1], round=round)[0]
        ids = posterior.candidates.ids
        assert ids[:2] == found.ids[:2] and len(set(ids)) == 4
        assert sorted(ids, key=found.ids.index) == ids
        expected = [float(found.scores_n[found.ids.index(i)]) for i in ids]
        assert posterior.candidates.scores_n.tolist() == pytest.approx(expected, abs=1e-6)
        seen |= set(ids[2:])
    assert seen == set(found.ids[2:])
    again = step(EXAMPLES[:1], round=3)[0].candidates.ids
    assert again == step(EXAMPLES[:1], round=3)[0].candidates.ids
    assert (
        e_step(candidate_pool=2, candidate_order="retriever")(EXAMPLES[:1], round=1)[0].candidates.ids == found.ids[:4]
    )


def test_mean_likelihood_is_a_temperature(e_step: Callable[..., EStep]) -> None:
    """An option with its name: weights from log p / |y|; the reported log-likelihood stays a sum."""
    total, mean = (
        e_step(exact=True)(EXAMPLES[2:], round=1)[0],
        e_step(exact=True, likelihood="mean")(EXAMPLES[2:], round=1)[0],
    )
    torch.testing.assert_close(total.log_likelihood_m, mean.log_likelihood_m)
    length = len("Guido van Rossum") + 1  # byte tokens and the end
    expected = (total.permutations.log_p_m + total.log_likelihood_m / length).softmax(-1)
    torch.testing.assert_close(mean.weights_m, expected, rtol=1e-4, atol=1e-6)
    assert mean.telemetry()["ess"] > total.telemetry()["ess"]


def test_paper_mode_has_no_baseline(e_step: Callable[..., EStep]) -> None:
    assert e_step(control_variate=False)(EXAMPLES, round=1)[0].baseline_m is None


def test_what_was_expected_is_known_without_the_control_variate_too(e_step: Callable[..., EStep]) -> None:
    """The same marginals before the answer; of a single permutation that was given there are none."""
    paper, ours = e_step(control_variate=False)(EXAMPLES, round=1), e_step()(EXAMPLES, round=1)
    for one, other in zip(paper, ours, strict=True):
        expected, same = one.expected_marginals(), other.expected_marginals()
        assert expected is not None and same is not None
        torch.testing.assert_close(expected, same)
        assert float(expected.sum()) == pytest.approx(2.0, abs=1e-5)
    given = replace(paper[0], permutations=paper[0].permutations.at(torch.tensor([0])), weights_m=torch.ones(1))
    assert given.expected_marginals() is None


def test_exact_mode_needs_no_candidate_alone(e_step: Callable[..., EStep], monkeypatch: pytest.MonkeyPatch) -> None:
    step = e_step(exact=True, guidance=0.5)
    rows: list[int] = []
    log_probs = step.generator.log_probs
    monkeypatch.setattr(step.generator, "log_probs", lambda r: rows.append(len(r)) or log_probs(r))
    step(EXAMPLES[:1], round=1)
    assert rows == [12]


def test_aliases_change_over_rounds(e_step: Callable[..., EStep]) -> None:
    """Trap 8: every golden answer is used, one per round."""
    step = e_step(num_permutations=1)
    assert {step(EXAMPLES[:1], round=r)[0].answer for r in range(12)} == {"Shakespeare", "William Shakespeare"}


def test_gold_passages_get_no_special_place(e_step: Callable[..., EStep], generator: Generator) -> None:
    """Trap 8: the generator reads the passages in the permutation's order, gold or not."""
    posterior = e_step(candidate_order="retriever")(EXAMPLES[:1], round=1)[0]
    z = torch.tensor([3, 1])
    row = answer_row(generator, posterior.candidates, z, "x")
    text = generator.language_model.tokenizer.decode(row.prompt_ids)
    titles = [posterior.candidates.passages[i].title for i in (3, 1)]
    assert f"[1] Title: {titles[0]} Text" in text
    assert f"[2] Title: {titles[1]} Text" in text


def test_fewer_than_k_retrieved(e_step: Callable[..., EStep], monkeypatch: pytest.MonkeyPatch) -> None:
    step = e_step()
    search = step.retriever.search
    monkeypatch.setattr(step.retriever, "search", lambda questions, k: [search(q, 1) for q in questions])
    with pytest.raises(DataError, match="At least K=2 candidates must be retrieved"):
        step(EXAMPLES, round=1)


def test_seeds_are_stable_across_processes() -> None:
    assert stable_seed(42, 1, "order", "q1") == 4406052232115555641


class TestUnevenWeights:
    def test_more_permutations_while_that_is_allowed(self, e_step: Callable[..., EStep]) -> None:
        """A floor that is hardly ever reached asks for twice as many, twice; the last is tempered."""
        for posterior in e_step(num_permutations=3, max_samples=12, ess_floor=2.9)(EXAMPLES, round=1):
            telemetry = posterior.telemetry()
            assert telemetry["ess"] >= 2.9 - 1e-3
            if telemetry["likelihood_exponent"] < 1:
                assert telemetry["permutations"] == 12
                assert telemetry["ess"] == pytest.approx(2.9, abs=1e-2)
        counts = [
            len(p.permutations) for p in e_step(num_permutations=3, max_samples=11, ess_floor=2.9)(EXAMPLES, round=1)
        ]
        assert max(counts) == 6  # twelve would be too many

    def test_no_permutation_is_scored_twice(
        self, e_step: Callable[..., EStep], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = e_step(num_permutations=3, max_samples=12, ess_floor=2.9)
        rows: list[str] = []
        log_probs = step.generator.log_probs
        monkeypatch.setattr(
            step.generator,
            "log_probs",
            lambda r: rows.extend(str(x.prompt_ids + x.answer_ids) for x in r) or log_probs(r),
        )
        step(EXAMPLES, round=1)
        assert len(rows) > 9 and len(rows) == len(set(rows))

    def test_without_more_of_them_the_likelihood_is_tempered(self, e_step: Callable[..., EStep]) -> None:
        """To the power at which the effective sample size is the floor, by the formula."""
        for settings in ({}, {"replacement": False, "proposals_per_sample": 3}):
            for posterior in e_step(num_permutations=3, ess_floor=2.5, **settings)(EXAMPLES, round=1):
                drawn = posterior.permutations
                log_w = drawn.log_p_m - drawn.log_q_m + posterior.exponent * posterior.log_likelihood_m
                weights = log_w.double().softmax(-1)
                torch.testing.assert_close(posterior.weights_m.double(), weights, atol=1e-5, rtol=0)
                ess = 1 / float(weights.square().sum())
                assert ess == pytest.approx(2.5, abs=1e-2) if posterior.exponent < 1 else ess >= 2.5
                assert float(posterior.distinct_scored().weights_u.sum()) == pytest.approx(1.0, abs=1e-5)

    def test_even_weights_are_left_alone(self, e_step: Callable[..., EStep]) -> None:
        plain = e_step(num_permutations=6)(EXAMPLES, round=1)
        lowest = min(p.telemetry()["ess"] for p in plain)
        floored = e_step(num_permutations=6, max_samples=24, ess_floor=0.99 * lowest)(EXAMPLES, round=1)
        assert lowest > 1.05
        for one, other in zip(plain, floored, strict=True):
            assert torch.equal(one.weights_m, other.weights_m) and other.exponent == 1.0

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_permutations": 4, "ess_floor": 4.0}, "ess_floor must be below num_permutations"),
            ({"num_permutations": 4, "max_samples": 3}, "max_samples must be at least num_permutations"),
            ({"num_permutations": 4, "max_samples": 8}, "max_samples needs ess_floor"),
            ({"exact": True, "ess_floor": 2.0}, "exact needs no ess_floor"),
        ],
    )
    def test_settings_that_contradict(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            DROConfig(output_dir="unused", **settings)


@pytest.mark.parametrize("replacement", [True, False])
def test_a_single_pass_proposal_converges_to_the_posterior_of_the_selector(
    e_step: Callable[..., EStep], replacement: bool
) -> None:
    """Drawn from the first logits alone, weighted by the probability under the selector that goes step by step."""
    exact = e_step(exact=True, candidate_order="retriever")(EXAMPLES[:1], round=1)[0]
    expected = {tuple(z): float(w) for z, w in zip(exact.permutations.z_mK.tolist(), exact.weights_m, strict=True)}
    step = e_step(
        proposal="single_pass",
        candidate_order="retriever",
        num_permutations=1200 if replacement else 12,
        replacement=replacement,
    )
    posterior = step(EXAMPLES[:1], round=1)[0]
    d = posterior.distinct()
    found = {tuple(z): float(w) for z, w in zip(d.z_uK.tolist(), d.weights_u, strict=True)}
    assert max(abs(found.get(z, 0.0) - w) for z, w in expected.items()) < 0.06
    drawn = posterior.permutations
    log_p = log_probs_of(step.selector, posterior.candidates, drawn.z_mK[:12])
    torch.testing.assert_close(drawn.log_p_m[:12], log_p, atol=1e-4, rtol=0)
    assert (drawn.log_p_m - drawn.log_q_m).std() > 1e-3
