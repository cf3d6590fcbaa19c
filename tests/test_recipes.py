"""Recipes are configurations: each trains what it says, and REPLUG's step is the paper's divergence."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import learned, randomize_adapters, tiny_language_model

from generator.configs import DecodingConfig
from generator.generator import Generator
from indexes.errors import UsageError
from rag.experiments.recipe import Recipe, delta_posterior
from rag.experiments.recipes import BASE_RECIPE, BUILTIN_RECIPES, RECIPES, Variant
from rag.pipeline import RAG
from retriever.listwise_selector import ListwiseSelector
from retriever.selector_config import SelectorConfig
from training.config import DROConfig, EStepConfig, SelfAugConfig, SupervisedConfig
from training.estimation import EStep
from training.joint_model import JointModel
from training.losses import lsr_loss
from training.micro_batches import MicroBatch
from training.questions.example import QAExample
from training.trainer import DROTrainer

SHARED = DROConfig(
    rounds=1,
    supervised=SupervisedConfig(num_train_epochs=0),
    selfaug=SelfAugConfig(alpha=2.0),
    e_step=EStepConfig(num_permutations=2, proposals_per_sample=2),
)
SELECTOR = SelectorConfig(num_candidates=4, num_selected=2)
EXAMPLES = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare",), ("p0",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
]


class TestVariants:
    def test_selfaug_is_one_flag(self) -> None:
        for name, recipe in RECIPES.items():
            if not recipe.trains_generator:
                with pytest.raises(UsageError, match=f"the generator of '{name}' stays the base model"):
                    Variant.of(f"{name}_selfaug")
                continue
            plain, twin = Variant.of(name).config(SHARED), Variant.of(f"{name}_selfaug").config(SHARED)
            assert plain is not None and twin is not None
            assert (plain.selfaug.alpha, twin.selfaug.alpha) == (0.0, 2.0)
            assert plain.with_settings({"selfaug.alpha": 2.0}) == twin
            assert Variant.of(name).with_selfaug == Variant.of(f"{name}_selfaug")

    def test_the_base_recipe_trains_nothing(self) -> None:
        variant = Variant.of(BASE_RECIPE)
        assert not variant.recipe.is_trained
        assert variant.config(SHARED) is None and variant.with_selfaug is None

    def test_the_retriever_stays_as_it_was_without_a_trained_selector(self) -> None:
        kept = [name for name, recipe in RECIPES.items() if recipe.keeps_retriever]
        assert kept == ["no_training", "sft", "dro_no_selector"]

    def test_names_of_builtin_recipes_are_their_kinds(self) -> None:
        assert [(name, recipe.name) for name, recipe in RECIPES.items()] == [(name, name) for name in BUILTIN_RECIPES]

    def test_a_registered_recipe_has_a_selfaug_variant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(RECIPES, "_registered", dict(RECIPES._registered))
        training = {"train_selector": False, **delta_posterior()}
        RECIPES.register("mine", Recipe(name="mine", label="Mine", training=training))
        variant = Variant.of("mine_selfaug")
        assert (variant.name, variant.label) == ("mine_selfaug", "Mine + SelfAug")
        config = variant.config(SHARED)
        assert config is not None
        assert (config.train_selector, config.selfaug.alpha, config.e_step.num_permutations) == (False, 2.0, 1)
        assert variant.recipe.keeps_retriever

    def test_invalid_recipes_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"must not end in '_selfaug'.*got 'mine_selfaug'"):
            Recipe(name="mine_selfaug", label="Mine")
        with pytest.raises(UsageError, match="passages_summed must be 'few' or 'candidates', got 'all'"):
            Recipe(name="mine", label="Mine", passages_summed="all")

    def test_numbers_of_passages_and_use_of_the_language_model(self) -> None:
        sizes = {name: Variant.of(name).selector(SELECTOR, 3) for name in RECIPES}
        shapes = {name: (s.num_candidates, s.num_selected, s.use_language_model) for name, s in sizes.items()}
        assert shapes == {
            "no_training": (4, 2, True),
            "sft": (4, 2, True),
            "replug": (4, 1, False),
            "rag_sequence": (3, 1, False),
            "rag_token": (3, 1, False),
            "dro_no_selector": (4, 2, True),
            "dro_no_generator": (4, 2, True),
            "dro": (4, 2, True),
        }

    def test_an_unknown_recipe_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"The recipe must be one of .*, got 'dro_no'. Did you mean 'dro'\?"):
            Variant.of("dro_no")

    def test_selfaug_of_no_weight_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"'sft_selfaug' needs selfaug\.alpha above 0"):
            Variant.of("sft_selfaug").config(SHARED.with_settings({"selfaug.alpha": 0.0}))


TRAINED = {
    "sft": {"generator"},
    "replug": {"question"},
    "rag_sequence": {"generator", "prior", "question"},
    "rag_token": {"generator", "prior", "question"},
    "dro_no_selector": {"generator"},
    "dro_no_generator": {"selector", "prior", "question"},
    "dro": {"selector", "generator", "prior", "question"},
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_round_changes_only_what_the_recipe_trains(name: str, make_rag: Callable[..., RAG], tmp_path: Path) -> None:
    """And what it does not: the weights of everything else are the same to the last bit."""
    variant = Variant.of(name)
    fresh = make_rag()
    selector = ListwiseSelector(fresh.generator.language_model, fresh.retriever, config=variant.selector(SELECTOR, 3))
    rag = RAG(fresh.retriever, selector, fresh.generator, answer_mode=variant.recipe.answer_mode)
    before = learned(rag)
    config = variant.config(SHARED.with_settings({"m_step.learning_rate": 1e-2}))
    assert config is not None
    DROTrainer(rag, config, train_dataset=EXAMPLES, output_dir=tmp_path / "run", progress=False).train()
    changed = {n for n, value in learned(rag).items() if not torch.equal(value, before[n])}
    marks = {"selector": ".selector.", "generator": ".generator.", "prior": "prior.", "question": "question."}
    parts = {part for part, mark in marks.items() if any(mark in n for n in changed)}
    assert parts == TRAINED[name]
    if name.startswith("rag"):
        assert "prior.gate" not in changed  # the language model has no say in which document is read


class TestReplug:
    @pytest.fixture
    def rag(self, make_selector: Callable[..., ListwiseSelector]) -> RAG:
        model = tiny_language_model()
        randomize_adapters(model)
        selector = make_selector(
            model, gate=0.0, strength=1.3, num_candidates=4, num_selected=1, use_language_model=False
        )
        generator = Generator(model, config=DecodingConfig(max_new_tokens=3))
        return RAG(selector.retriever, selector, generator, answer_mode="rag_token")

    @pytest.mark.parametrize("beta", [0.5, 4.0])
    def test_its_loss_is_the_divergence_of_the_retriever_from_the_language_model(self, rag: RAG, beta: float) -> None:
        """KL(p_R || Q) by torch's own function, p_R from inner products with a question vector, both by hand."""
        shared = SHARED.with_settings(
            {"retriever_training.lsr_temperature": beta, "e_step.candidate_order": "shuffled"}
        )
        config = Variant.of("replug").config(shared)
        assert config is not None
        rag.retriever.adapter.up.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
        posterior = EStep(rag.retriever, rag.selector, rag.generator, config)(EXAMPLES[:1], round=1)[0]
        candidates = posterior.candidates
        joint = JointModel(rag.selector, rag.generator, config)
        adapter = rag.retriever.adapter
        loss = joint(MicroBatch("selector", (posterior,), num_questions=1))["loss"]
        gradient = torch.autograd.grad(loss, list(adapter.parameters()))

        vector_d = candidates.question_vector
        moved_d = vector_d + adapter.up @ (adapter.down @ vector_d)
        scores_n = candidates.passage_vectors @ (moved_d / moved_d.norm())
        logits_n = 1.3 * (scores_n - scores_n.mean()) / scores_n.std(correction=0)
        explained_n = torch.tensor(
            [rag.generator.log_prob(EXAMPLES[0].question, [p], "Shakespeare") for p in candidates.passages]
        )
        target_n = (explained_n / beta).softmax(-1)
        expected = torch.nn.functional.kl_div(target_n.log(), logits_n.softmax(-1), reduction="sum")
        torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-5)
        reference = torch.autograd.grad(expected, list(adapter.parameters()))
        for one, other in zip(gradient, reference, strict=True):
            assert bool(other.any())
            torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-5)

    def test_the_loss_is_zero_where_the_retriever_agrees_with_the_language_model(self) -> None:
        log_likelihood_n = torch.tensor([-3.0, -1.0, -7.0])
        assert float(lsr_loss(log_likelihood_n / 2.0, log_likelihood_n, 2.0)) == pytest.approx(0.0, abs=1e-6)
        assert float(lsr_loss(log_likelihood_n, log_likelihood_n, 2.0)) > 0.05

    @pytest.mark.parametrize(
        ("change", "came"),
        [
            ({"e_step.exact": False}, "got {'e_step.exact': False}"),
            ({"train_retriever": False}, "got {'train_retriever': False}"),
            ({"supervised.num_train_epochs": 1}, "got {'supervised.num_train_epochs': 1}"),
        ],
    )
    def test_needs_every_candidate_alone(self, change: dict[str, Any], came: str) -> None:
        config = Variant.of("replug").config(SHARED)
        assert config is not None
        with pytest.raises(UsageError, match=came):
            config.with_settings(change)

    def test_needs_a_selector_that_picks_one(self, make_rag: Callable[..., RAG]) -> None:
        config, rag = Variant.of("replug").config(SHARED), make_rag()
        assert config is not None
        with pytest.raises(UsageError, match="num_selected must be 1; got 2"):
            EStep(rag.retriever, rag.selector, rag.generator, config)


def test_the_retrievers_gradient_in_rag_sequence_is_that_of_the_marginal_likelihood(
    make_selector: Callable[..., ListwiseSelector],
) -> None:
    model = tiny_language_model()
    randomize_adapters(model)
    selector = make_selector(model, gate=0.0, strength=1.3, num_candidates=4, num_selected=1, use_language_model=False)
    generator = Generator(model)
    config = Variant.of("rag_sequence").config(SHARED)
    assert config is not None
    posterior = EStep(selector.retriever, selector, generator, config)(EXAMPLES[:1], round=1)[0]
    joint = JointModel(selector, generator, config)
    parameters = [selector.prior.strength, selector.retriever.adapter.up]
    gradients = torch.autograd.grad(joint(MicroBatch("selector", (posterior,), num_questions=1))["loss"], parameters)
    candidates = posterior.candidates
    scores_n = selector.retriever.score(candidates)
    logits_n = parameters[0] * (scores_n - scores_n.mean()) / scores_n.std(correction=0)
    explained_n = torch.tensor(
        [generator.log_prob(EXAMPLES[0].question, [p], "Shakespeare") for p in candidates.passages]
    )
    reference = torch.autograd.grad(-(logits_n.log_softmax(-1) + explained_n).logsumexp(-1), parameters)
    for one, other in zip(gradients, reference, strict=True):
        assert bool(other.any())
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-5)


def test_a_selector_needs_a_prior_or_a_language_model() -> None:
    with pytest.raises(UsageError, match="use_prior and use_language_model are both false"):
        SelectorConfig(use_prior=False, use_language_model=False)


class TestSharedSettings:
    """Settings that suit DRO must not change a baseline."""

    def test_supervised_training_reads_the_top_k_with_any_shared_settings(self) -> None:
        shared = SHARED.with_settings({"e_step.exact": True, "e_step.candidate_pool": 50, "train_encoder": True})
        config = Variant.of("sft").config(shared)
        assert config is not None
        assert not (config.e_step.exact or config.train_encoder or config.train_selector)
        assert (config.e_step.num_permutations, config.e_step.candidate_pool) == (1, None)

    def test_baselines_keep_their_objectives(self) -> None:
        shared = SHARED.with_settings(
            {
                "retriever_training.objective": "distillation",
                "e_step.likelihood_exponent": 0.5,
                "supervised.num_train_epochs": 2,
            }
        )
        found = {name: Variant.of(name).config(shared) for name in ("replug", "rag_sequence", "rag_token")}
        objectives = {
            name: (c.retriever_training.objective, c.e_step.likelihood_exponent)
            for name, c in found.items()
            if c is not None
        }
        assert objectives == {"replug": ("lsr", 1.0), "rag_sequence": ("prior", 1.0), "rag_token": ("prior", 1.0)}

    def test_an_ablation_is_the_only_trial_without_its_part(self) -> None:
        shared = SHARED.with_settings(
            {"train_selector": False, "e_step.exact": True, "e_step.marginalization": "token"}
        )
        trained = {name: Variant.of(name).config(shared) for name in ("dro_no_selector", "dro_no_generator", "dro")}
        parts = {n: (c.train_selector, c.train_generator, c.e_step.marginalization) for n, c in trained.items() if c}
        assert parts == {
            "dro_no_selector": (False, True, "sequence"),
            "dro_no_generator": (True, False, "sequence"),
            "dro": (True, True, "sequence"),
        }

    def test_the_order_of_an_untrained_selector_is_the_retrievers(self) -> None:
        papers = replace(SELECTOR, use_prior=False)
        prior = {name: Variant.of(name).selector(papers, 3).use_prior for name in RECIPES}
        assert prior == {name: not name.startswith("dro") or name == "dro_no_selector" for name in RECIPES}

    def test_defaults_leave_a_recipe_as_it_is(self) -> None:
        """A demo experiment or a sweep with default settings is continued only with these very settings."""
        changed = {
            "sft": {
                *(
                    "train_selector",
                    "e_step.num_permutations",
                    "e_step.proposal_temperature",
                    "e_step.proposals_per_sample",
                    "e_step.replacement",
                ),
            },
            "replug": {"e_step.exact", "train_generator", "retriever_training.objective"},
            "rag_sequence": {"e_step.exact"},
            "rag_token": {"e_step.exact", "e_step.marginalization"},
            "dro_no_selector": {"train_selector"},
            "dro_no_generator": {"train_generator"},
            "dro": set(),
        }
        plain = SHARED.with_settings({"selfaug.alpha": 0.0})
        for name, fields in changed.items():
            config = Variant.of(name).config(plain)
            assert {key for key in config.names() if config.get(key) != plain.get(key)} == fields
