"""Selectors of any kind: the registry, the Plackett-Luce base, and a complete example through training and a bundle."""

import itertools
import json
import math
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import log_probs_of

from generator.generator import Generator
from generator.language_model import LanguageModel
from indexes.errors import DataError, MismatchError, UsageError
from rag.pipeline import RAG
from retriever.candidates import Candidates
from retriever.dense import DenseRetriever
from retriever.plackett_luce_selector import PlackettLuceSelector
from retriever.selector_config import SamplingConfig, SelectorConfig
from retriever.selectors import SELECTORS, config_from_dict, config_to_dict
from training.config import DROConfig, EStepConfig, MStepConfig
from training.estimation import EStep
from training.joint_model import JointModel
from training.micro_batches import MicroBatch
from training.prior_weights import fit_prior_weights
from training.questions.example import QAExample

EXAMPLE = Path(__file__).parents[1] / "examples/new_selector.py"
QUESTIONS = ["who wrote Hamlet?", "what is the capital of France?"]


class TwoScores(PlackettLuceSelector):
    """Weighted sum of the retriever's scores and of the lengths of the passages."""

    uses_retriever_scores = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weights = torch.nn.ParameterDict(
            {"score": torch.nn.Parameter(torch.tensor([0.8])), "length": torch.nn.Parameter(torch.tensor([0.1]))}
        )
        self.modules["weights"] = self.weights

    def logits(self, candidates: Candidates, *, teach_retriever: bool = True) -> torch.Tensor:
        prior_n = self.prior_scores(candidates, teach_retriever=teach_retriever)
        return self.weights["score"] * prior_n + self.weights["length"] * lengths(candidates)

    @property
    def prior_weights(self) -> dict[str, torch.nn.Parameter]:
        return dict(self.weights.items())

    def components(self, candidates: Candidates, permutations: object) -> dict[str, torch.Tensor]:
        prior_n = self.prior_scores(candidates).detach()
        return {"score": prior_n[None, None], "length": lengths(candidates)[None, None]}


def lengths(candidates: Candidates) -> torch.Tensor:
    return torch.tensor([len(p.text) / 10 for p in candidates.passages])


@pytest.fixture(autouse=True)
def registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(SELECTORS, "_registered", dict(SELECTORS._registered))


@pytest.fixture
def selector(language_model: LanguageModel, retriever: DenseRetriever) -> TwoScores:
    config = SelectorConfig(kind="two_scores", num_candidates=5, num_selected=2)
    return TwoScores(language_model, retriever, config=config)


def plackett_luce(logits: list[float], z: tuple[int, ...]) -> float:
    """Log-probability, step by step in plain Python."""
    total, left = 0.0, list(range(len(logits)))
    for i in z:
        total += logits[i] - math.log(sum(math.exp(logits[j]) for j in left))
        left.remove(i)
    return total


def test_plackett_luce_probabilities_are_those_of_the_formula(selector: TwoScores, retriever: DenseRetriever) -> None:
    """Candidates of different numbers together, each permutation against a loop over plain numbers."""
    found = [retriever.search(QUESTIONS[0], 5), retriever.search(QUESTIONS[1], 4)]
    for candidates, everything in zip(found, selector.enumerate(found), strict=True):
        logits = selector.logits(candidates).tolist()
        expected = [plackett_luce(logits, z) for z in itertools.permutations(range(len(candidates)), 2)]
        assert everything.log_p.tolist() == pytest.approx(expected, abs=1e-5)
        best = selector.select([candidates])[0].z[0].tolist()
        assert best == sorted(range(len(candidates)), key=lambda i: -logits[i])[:2]


@pytest.mark.parametrize("replacement", [True, False])
def test_plackett_luce_draws_estimate_expectations_without_bias(
    replacement: bool, selector: TwoScores, retriever: DenseRetriever
) -> None:
    """Mean of p/q f over draws at temperature 2 against the enumerated expectation of f."""
    candidates = retriever.search(QUESTIONS[0], 5)
    exact = selector.enumerate([candidates])[0]
    value = {tuple(z): float(i % 7) for i, z in enumerate(exact.z.tolist())}
    sampling = SamplingConfig(num_permutations=4, temperature=2.0, replacement=replacement)
    draws = selector.propose([candidates] * 500, sampling, generator=torch.Generator().manual_seed(0))
    means = torch.stack(
        [((d.log_p - d.log_q).exp() * torch.tensor([value[tuple(z)] for z in d.z.tolist()])).mean() for d in draws]
    )
    expected = sum(math.exp(log_p) * value[tuple(z)] for z, log_p in zip(exact.z.tolist(), exact.log_p, strict=True))
    assert float(means.mean()) == pytest.approx(expected, abs=4 * float(means.std()) / len(means) ** 0.5)
    for one in draws[:3]:
        torch.testing.assert_close(one.log_p, log_probs_of(selector, candidates, one.z), atol=1e-5, rtol=0)
        assert replacement or len({tuple(z) for z in one.z.tolist()}) == 4


def test_too_few_candidates_are_refused(selector: TwoScores, retriever: DenseRetriever) -> None:
    with pytest.raises(DataError, match=r"At least K=2 candidates must be retrieved; .* has 1"):
        selector.select([retriever.search(QUESTIONS[0], 1)])


def test_training_reaches_the_weights_and_the_question_adapter_of_any_selector(
    selector: TwoScores, generator: Generator
) -> None:
    """The gradient of the M-step equals that of - sum_j (w_j - b_j) log p(z_j), from the formula of Plackett-Luce."""
    config = DROConfig(e_step=EStepConfig(exact=True), m_step=MStepConfig(loss_normalization="sum"))
    example = QAExample("q", QUESTIONS[0], ("Shakespeare",))
    posterior = EStep(selector.retriever, selector, generator, config)([example], round=1)[0]
    joint = JointModel(selector, generator, config)
    parameters = [*selector.parameters(), selector.retriever.adapter.up]
    loss = joint(MicroBatch("selector", (posterior,), num_questions=1))["loss"]
    found = torch.autograd.grad(loss, parameters)
    logits_n = selector.logits(posterior.candidates)
    assert posterior.baseline_m is not None
    expected_loss = torch.zeros(())
    for z, w, b in zip(posterior.permutations.z.tolist(), posterior.weights_m, posterior.baseline_m, strict=True):
        first, second = z
        rest = torch.cat([logits_n[:first], logits_n[first + 1 :]])
        log_p = logits_n[first] - logits_n.logsumexp(0) + logits_n[second] - rest.logsumexp(0)
        expected_loss = expected_loss - (w - b) * log_p
    for one, other in zip(found, torch.autograd.grad(expected_loss, parameters), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
        assert one.abs().max() > 1e-6


def test_prior_weights_of_any_selector_are_fitted_to_the_posteriors(
    selector: TwoScores, make_e_step: Callable[..., EStep], generator: Generator
) -> None:
    config = DROConfig(e_step=EStepConfig(exact=True))
    examples = [QAExample(f"q{i}", q, ("Shakespeare",)) for i, q in enumerate(QUESTIONS)]
    posteriors = EStep(selector.retriever, selector, generator, config)(examples, round=1)
    joint = JointModel(selector, generator, config)

    def loss() -> float:
        return sum(float(joint(MicroBatch("selector", (p,), num_questions=1))["loss"].detach()) for p in posteriors)

    before, start = loss(), {name: float(w.detach()) for name, w in selector.prior_weights.items()}
    fitted = fit_prior_weights(selector, posteriors)
    assert fitted.keys() == {"score", "length"}
    assert fitted == {name: float(w.detach()) for name, w in selector.prior_weights.items()} != start
    assert loss() < before


def test_unknown_kinds_name_the_known_and_the_nearest(make_rag: Callable[..., RAG], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"The selector must be one of \['listwise'.*got 'listwide'.*mean 'listwise'"):
        RAG.create(index=make_rag().retriever.index, selector=SelectorConfig(kind="listwide"))


def test_a_configuration_from_a_file_names_the_package_of_its_kind() -> None:
    config = SelectorConfig(num_candidates=7, options={})
    written = json.loads(json.dumps(config_to_dict(config)))
    assert (written["kind"], written["package"]) == ("listwise", "retriever")
    assert config_from_dict(written) == config
    with pytest.raises(UsageError, match="registered by the package 'their_package': install or import it"):
        config_from_dict({**written, "kind": "nearest", "package": "their_package"})
    with pytest.raises(MismatchError, match=r"fields of SelectorConfig, got \['beams'\]"):
        config_from_dict({**written, "beams": 3})


def test_the_listwise_selector_has_no_further_options(make_rag: Callable[..., RAG]) -> None:
    with pytest.raises(UsageError, match=r"no further options, got \['beams'\]"):
        RAG.create(index=make_rag().retriever.index, selector=SelectorConfig(options={"beams": 3}))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_permutations": 0}, "got num_permutations=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_sampling_settings_are_checked(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingConfig(**bad)


def test_the_example_trains_saves_and_loads_its_own_selector(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    weight, answer = capsys.readouterr().out.splitlines()
    assert float(weight.removeprefix("learned weight: ")) != 0.0
    assert answer
