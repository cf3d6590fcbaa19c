"""Guessed log-likelihoods: the linear model against plain least squares, and E-steps that need or do not need it."""

from collections.abc import Callable

import pytest
import torch

from indexes.errors import UsageError
from retriever.permutations import enumerate_permutations
from training.config import DROConfig, EStepConfig
from training.estimation import EStep
from training.imputation import RIDGE, Surrogate, choose_permutations_to_score, features, prior_coefficients
from training.posterior import EStepDiagnostics, Posterior
from training.questions.example import QAExample

EXAMPLES = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare",), ("p0",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
    QAExample("q3", "who designed Python?", ("Guido van Rossum",), ("p5",)),
]


@pytest.fixture
def e_step(make_e_step: Callable[..., EStep]) -> Callable[..., EStep]:
    defaults = {"e_step.candidate_order": "retriever", "e_step.replacement": False, "e_step.proposals_per_sample": 3}
    return lambda **settings: make_e_step(**defaults | settings)


def test_features_are_single_passage_likelihoods_in_order_and_their_maximum() -> None:
    found = features(torch.tensor([-1.0, -5.0, -3.0]), torch.tensor([[1, 2], [2, 0]]))
    assert found.tolist() == [[-5.0, -3.0, -3.0], [-3.0, -1.0, -1.0]]


def test_prior_coefficients_weigh_mean_and_maximum_equally() -> None:
    x = features(torch.tensor([-2.0, -8.0]), torch.tensor([[0, 1]]))
    assert float(x[0] @ prior_coefficients(3)) == pytest.approx((-5.0 + -2.0) / 2)


def test_choice_is_without_replacement_in_proportion_to_predicted_weight() -> None:
    """Frequencies of being chosen against enumerated draws of two of three without replacement."""
    x = torch.zeros(3, 3)
    log_ratio = torch.tensor([0.6, 0.3, 0.1]).log()
    generator = torch.Generator().manual_seed(0)
    counts, inverse = torch.zeros(3), torch.zeros(3)
    draws = 20_000
    for _ in range(draws):
        scored_m, log_inclusion_m = choose_permutations_to_score(x, log_ratio, 2, generator)
        assert len(set(scored_m.tolist())) == 2
        counts[scored_m] += 1
        inverse[scored_m] += (-log_inclusion_m).exp()
    p = [0.6, 0.3, 0.1]
    expected = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(3) if j != i) for i in range(3)]
    assert (counts / draws).tolist() == pytest.approx(expected, abs=0.015)
    assert (inverse / draws).tolist() == pytest.approx([1.0, 1.0, 1.0], abs=0.05)  # unbiased sums


def test_all_permutations_are_scored_if_no_more_were_sampled() -> None:
    scored_m, log_inclusion_m = choose_permutations_to_score(torch.randn(3, 3), torch.zeros(3), 5, None)
    assert scored_m.tolist() == [0, 1, 2]
    assert log_inclusion_m.tolist() == [0.0, 0.0, 0.0]


def questions(seed: int, noise: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Four questions with five scored permutations of two of six candidates; slopes 0.2, 0.1 and 0.7, any level."""
    generator = torch.Generator().manual_seed(seed)
    xs, ys = [], []
    for level in (-30.0, 0.0, 5.0, -2.0):
        z = enumerate_permutations(6, 2)[torch.randperm(30, generator=generator)[:5]]
        x = features(8 * torch.randn(6, generator=generator), z)
        xs.append(x)
        ys.append(x @ torch.tensor([0.2, 0.1, 0.7]) + level + noise * torch.randn(5, generator=generator))
    return xs, ys


def augmented_least_squares(xs: list[torch.Tensor], ys: list[torch.Tensor]) -> torch.Tensor:
    """The same slopes from one big system: a column per question's level, and three rows per slope for the ridge."""
    rows, values = [], []
    for q, (x, y) in enumerate(zip(xs, ys, strict=True)):
        scale = float(y.std(correction=0)) + 1.0
        own = torch.zeros(len(y), len(xs))
        own[:, q] = 1.0
        rows.append(torch.cat([x, own], dim=1) / scale)
        values.append(y / scale)
    size = xs[0].shape[1]
    rows.append(torch.cat([RIDGE**0.5 * torch.eye(size), torch.zeros(size, len(xs))], dim=1))
    values.append(RIDGE**0.5 * prior_coefficients(size))
    solution = torch.linalg.lstsq(torch.cat(rows).double(), torch.cat(values).double()[:, None]).solution
    return solution[:, 0]


def test_coefficients_equal_least_squares_with_an_intercept_per_question() -> None:
    xs, ys = questions(0, noise=1.0)
    found = Surrogate.fit(xs, ys).slopes_F
    torch.testing.assert_close(found.double(), augmented_least_squares(xs, ys)[:3], atol=1e-4, rtol=0)
    assert (found - prior_coefficients(3)).abs().max() > 0.02  # something was learned


def test_batched_e_steps_are_independent() -> None:
    first, second = questions(1, 0.5), questions(2, 0.5)
    stacked = [[torch.stack(pair) for pair in zip(a, b, strict=True)] for a, b in zip(first, second, strict=True)]
    both = Surrogate.fit(*stacked)
    torch.testing.assert_close(both.slopes_F[0], Surrogate.fit(*first).slopes_F)
    torch.testing.assert_close(both.slopes_F[1], Surrogate.fit(*second).slopes_F)


def test_residuals_leave_one_out() -> None:
    """Each against a fit that never saw it; the spread that scales its question is the only thing kept."""
    xs, ys = questions(3, noise=1.0)
    surrogate = Surrogate.fit(xs, ys)
    scales = [float(y.std(correction=0)) + 1.0 for y in ys]
    for left_out in range(5):
        rows, values = [], []
        for q, (x, y) in enumerate(zip(xs, ys, strict=True)):
            kept = [i for i in range(5) if q or i != left_out]
            own = torch.zeros(len(kept), 4)
            own[:, q] = 1.0
            rows.append(torch.cat([x[kept], own], dim=1) / scales[q])
            values.append(y[kept] / scales[q])
        rows.append(torch.cat([RIDGE**0.5 * torch.eye(3), torch.zeros(3, 4)], dim=1))
        values.append(RIDGE**0.5 * prior_coefficients(3))
        solution = torch.linalg.lstsq(torch.cat(rows).double(), torch.cat(values).double()[:, None]).solution[:, 0]
        guess = float(xs[0][left_out].double() @ solution[:3] + solution[3])
        found = float(surrogate.residuals(xs[0], ys[0])[left_out])
        assert found == pytest.approx(float(ys[0][left_out]) - guess, abs=1e-3)
    assert surrogate.residuals(xs[0][:1], ys[0][:1]).tolist() == [0.0]


def test_scored_likelihoods_are_kept_and_the_others_predicted() -> None:
    xs, ys = questions(4, noise=0.0)
    surrogate = Surrogate.fit([x.repeat(50, 1) for x in xs], [y.repeat(50) for y in ys])  # the ridge fades
    scored = torch.tensor([0, 3])
    found = surrogate.complete(xs[0], scored, ys[0][scored])
    assert torch.equal(found[scored], ys[0][scored])
    torch.testing.assert_close(found, ys[0], atol=0.5, rtol=0)


class TestEStep:
    def test_when_all_are_scored_it_is_the_exact_posterior(self, e_step: Callable[..., EStep]) -> None:
        """Twelve permutations exist; twelve are asked for."""
        exact = e_step(e_step__exact=True)(EXAMPLES, round=1)
        found = e_step(e_step__num_permutations=12)(EXAMPLES, round=1)
        for one, other in zip(exact, found, strict=True):
            assert by_permutation(other) == pytest.approx(by_permutation(one), abs=1e-4)
            assert other.scored is not None and len(other.scored.index_m) == 12
            assert other.diagnostics().scored_weight == pytest.approx(1.0, abs=1e-5)

    def test_scored_likelihoods_are_the_generators_and_the_others_predicted(self, e_step: Callable[..., EStep]) -> None:
        step = e_step(e_step__num_permutations=3)
        for posterior in step(EXAMPLES, round=1):
            assert len(posterior.permutations) == 9 and posterior.scored is not None
            assert len({tuple(z) for z in posterior.permutations.z.tolist()}) == 9
            index = posterior.scored.index_m.tolist()
            assert len(set(index)) == 3
            for i, z in enumerate(posterior.permutations.z.tolist()):
                passages = [posterior.candidates.passages[c] for c in z]
                truth = step.generator.log_prob(posterior.candidates.question, passages, posterior.answer)
                found = float(posterior.log_likelihood_m[i])
                assert (found == pytest.approx(truth, abs=1e-3)) == (i in index)
            torch.testing.assert_close(
                posterior.weights_m,
                (posterior.permutations.log_p - posterior.permutations.log_q + posterior.log_likelihood_m).softmax(-1),
            )

    def test_the_generator_trains_on_scored_permutations_only(self, e_step: Callable[..., EStep]) -> None:
        posterior = e_step(e_step__num_permutations=3)(EXAMPLES[:1], round=1)[0]
        assert posterior.scored is not None
        d = posterior.distinct_scored()
        scored = posterior.permutations.z[posterior.scored.index_m].tolist()
        assert sorted(d.z_uK.tolist()) == sorted(scored)
        assert len(posterior.distinct().z_uK) == 9
        assert float(d.weights_u.sum()) == pytest.approx(1.0, abs=1e-5)
        assert d.share_u.tolist() == pytest.approx([1 / 3] * 3)

    def test_scored_weights_are_corrected_for_inclusion(self, e_step: Callable[..., EStep]) -> None:
        """omega_j over the probability that j was scored; averaged over choices such sums are those over all nine."""
        posterior = e_step(e_step__num_permutations=3)(EXAMPLES[:1], round=1)[0]
        scored = posterior.scored
        assert scored is not None and float(scored.log_inclusion_m.min()) < -0.05
        torch.testing.assert_close(
            scored.weights_m, (posterior.log_omega_m[scored.index_m] - scored.log_inclusion_m).softmax(-1)
        )
        drawn, generator = posterior.permutations, torch.Generator().manual_seed(0)
        omega_M = posterior.log_omega_m.exp()
        x_MF = features(torch.randn(4, generator=generator), drawn.z)
        sums = []
        for _ in range(4000):
            scored_m, log_inclusion_m = choose_permutations_to_score(x_MF, drawn.log_p - drawn.log_q, 3, generator)
            sums.append(float((omega_M[scored_m].log() - log_inclusion_m).exp().sum()))
        assert sum(sums) / 4000 == pytest.approx(float(omega_M.sum()), rel=0.05)

    def test_diagnostics_of_the_scored_permutations(self, e_step: Callable[..., EStep]) -> None:
        posterior = e_step(e_step__num_permutations=3)(EXAMPLES, round=1)[0]
        diagnostics = posterior.diagnostics()
        assert posterior.scored is not None
        assert (diagnostics.permutations, diagnostics.scored_permutations) == (9, 3)
        expected = float(posterior.weights_m[posterior.scored.index_m].sum())
        assert diagnostics.scored_weight == pytest.approx(expected)
        assert diagnostics.imputation_rmse > 0
        plain = e_step(e_step__proposals_per_sample=1, e_step__num_permutations=3)(EXAMPLES, round=1)[0].diagnostics()
        assert plain.scored_weight is None and "scored_weight" not in plain.to_dict()
        assert EStepDiagnostics.from_dict(diagnostics.to_dict()) == diagnostics
        mean = EStepDiagnostics.mean([plain, diagnostics])
        assert mean.ess == pytest.approx((plain.ess + diagnostics.ess) / 2)
        assert mean.scored_weight == diagnostics.scored_weight, "the mean is over the questions that have the number"

    def test_predictions_are_at_most_probability_one(
        self, e_step: Callable[..., EStep], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        step = e_step(e_step__num_permutations=3)
        monkeypatch.setattr(Surrogate, "complete", lambda self, x, i, y: torch.full((len(x),), 5.0).scatter(0, i, y))
        for posterior in step(EXAMPLES, round=1):
            assert posterior.scored is not None
            guessed = set(range(9)) - set(posterior.scored.index_m.tolist())
            assert posterior.log_likelihood_m[list(guessed)].tolist() == [0.0] * 6

    def test_each_single_passage_is_scored_once(
        self, e_step: Callable[..., EStep], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Per question four sequences with one passage, and three with two."""
        step = e_step(e_step__num_permutations=3)
        rows: list[int] = []
        log_probs = step.generator.log_probs
        monkeypatch.setattr(step.generator, "log_probs", lambda r: rows.append(len(r)) or log_probs(r))
        step(EXAMPLES, round=1)
        assert rows == [12, 9]

    def test_imputation_requires_sampling_without_replacement(self) -> None:
        with pytest.raises(UsageError, match="set replacement=False, or proposals_per_sample=1"):
            DROConfig(e_step=EStepConfig(replacement=True))


def by_permutation(posterior: Posterior) -> dict[tuple[int, ...], float]:
    z = map(tuple, posterior.permutations.z.tolist())
    return dict(zip(z, posterior.weights_m.tolist(), strict=True))
