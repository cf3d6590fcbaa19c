"""The M-step: its gradient is that of log p(y|x), whatever way it is cut into micro-batches."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tiny_models import ARCHITECTURES, dro_config, log_probs_of, randomize_adapters, tiny_language_model
from torch import nn

from generator.answer_sequences import ReadSequences
from generator.generator import Generator
from generator.language_model import LanguageModel
from retriever.dense import DenseRetriever
from retriever.listwise_selector import ListwiseSelector
from retriever.permutations import enumerate_permutations
from retriever.selector import standardise
from training.config import DROConfig
from training.estimation import EStep
from training.joint_model import JointModel
from training.maximization import MStepTrainer
from training.micro_batches import MicroBatch, PlannedQuestion, plan_steps, token_counter
from training.micro_batches import micro_batches as batches_of_step
from training.posterior import Posterior, answer_sequence
from training.questions.example import QAExample

Make = Callable[..., ListwiseSelector]
EXAMPLES = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare",), ("p0",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
    QAExample("q3", "who designed Python?", ("Guido",), ("p5",)),
]


def config(**settings: object) -> DROConfig:
    plain = {"e_step.num_permutations": 8, "e_step.replacement": True, "e_step.proposals_per_sample": 1}
    return dro_config(**{"selfaug.alpha": 0.0, "m_step.loss_normalization": "sum"} | plain | settings)


@pytest.fixture
def parts(
    language_model: LanguageModel, retriever: DenseRetriever, make_selector: Make
) -> tuple[ListwiseSelector, Generator]:
    return make_selector(language_model, num_candidates=4, num_selected=2), Generator(language_model)


def posteriors_of(parts: tuple[ListwiseSelector, Generator], settings: DROConfig) -> list[Posterior]:
    selector, generator = parts
    return EStep(selector.retriever, selector, generator, settings)(EXAMPLES, round=1)


def micro_batches(posteriors: list[Posterior], **changes: object) -> list[MicroBatch]:
    batch = tuple(posteriors)
    return [MicroBatch("selector", batch, num_questions=len(batch)), MicroBatch("generator", batch, **changes)]


def gradients(joint: JointModel, batches: list[MicroBatch]) -> dict[str, torch.Tensor]:
    """Gradients of the summed losses, each micro-batch's backward under its own adapter."""
    joint.zero_grad()
    for batch in batches:
        with joint.language_model.use(batch.role):
            joint(batch)["loss"].backward()
    return {n: p.grad.clone() for n, p in joint.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float = 1e-3) -> None:
    assert found.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    assert scale > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=rtol, atol=1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("control_variate", [True, False])
def test_exact_mode_gradient_is_that_of_the_marginal(
    control_variate: bool, parts: tuple[ListwiseSelector, Generator], retriever: DenseRetriever
) -> None:
    """- grad log sum_z p_s(z|x) p_g(y|x,d_z), by autograd through every permutation, full-vocabulary logits."""
    selector, generator = parts
    settings = config(e_step__exact=True, e_step__control_variate=control_variate)
    posteriors = posteriors_of(parts, settings)
    joint = JointModel(selector, generator, settings)
    found = gradients(joint, micro_batches(posteriors))

    joint.zero_grad()
    model = selector.language_model
    for posterior in posteriors:
        # The two adapters are never active together, so each side's graph is built under its own and the
        # marginal's gradient is assembled by the chain rule on detached copies of the two log-probabilities.
        z_NK = enumerate_permutations(4, 2)
        with model.use("selector"):
            log_s = selector.log_prob([posterior.candidates], [z_NK])[0]
        with model.use("generator"):
            log_g = torch.stack([_full_logit_log_prob(generator, posterior, z) for z in z_NK])
        leaf_s, leaf_g = log_s.detach().requires_grad_(), log_g.detach().requires_grad_()
        marginal = -(leaf_s + leaf_g).logsumexp(0)
        marginal.backward()
        log_s.backward(leaf_s.grad)
        log_g.backward(leaf_g.grad)
    expected = {n: p.grad.clone() for n, p in joint.named_parameters() if p.grad is not None}
    assert_same(found, expected)
    assert any("question_adapter" in n for n in found)
    assert any(n.startswith("selector_modules.prior.") for n in found)


def adapter_gradients(parts: tuple[ListwiseSelector, Generator], **settings: object) -> dict[str, torch.Tensor]:
    """Of the question adapter, moved from the identity so that both of its factors have one."""
    selector, generator = parts
    with torch.no_grad():
        selector.retriever.adapter.up.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.1)
    made = config(e_step__exact=True, **settings)
    posteriors = posteriors_of(parts, made)
    found = gradients(JointModel(selector, generator, made), micro_batches(posteriors)[:1])
    return {n: g for n, g in found.items() if "question_adapter" in n}


def test_the_retriever_learns_the_posterior_marginals(parts: tuple[ListwiseSelector, Generator]) -> None:
    """Distillation against soft-target `F.cross_entropy` on scores computed here; "both" is the sum of the two ways."""
    distilled = adapter_gradients(parts, retriever_training__objective="distillation")
    selector = parts[0]
    adapter = selector.retriever.adapter
    adapter.zero_grad()
    for posterior in posteriors_of(parts, config(e_step__exact=True)):
        read_n = torch.zeros(4)
        for z, w in zip(posterior.permutations.z.tolist(), posterior.weights_m.tolist(), strict=True):
            read_n[z] += w
        torch.testing.assert_close(posterior.marginals(), read_n, rtol=1e-4, atol=1e-6)
        question = torch.nn.functional.normalize(
            posterior.candidates.question_vector + posterior.candidates.question_vector @ adapter.down.T @ adapter.up.T,
            dim=-1,
        )
        scores_n = posterior.candidates.passage_vectors @ question
        z_scores_n = (scores_n - scores_n.mean()) / scores_n.std(correction=0)
        expected_n = torch.zeros(4)
        for z, b in zip(posterior.permutations.z.tolist(), posterior.permutations.log_p.exp().tolist(), strict=True):
            expected_n[z] += b
        found_n = selector.prior.strength.detach() * standardise(posterior.candidates.scores)
        least = 1 / 24  # half of one permutation of twelve
        odds = [(x / (1 - x)) for x in (read_n.clamp(least, 1 - least), expected_n.clamp(least, 1 - least))]
        target_n = found_n.exp() * odds[0] / odds[1]
        logits_n = selector.prior.strength.detach() * z_scores_n
        torch.nn.functional.cross_entropy(logits_n, target_n / target_n.sum()).backward()
    expected = {f"question_adapter.{n}": p.grad for n, p in adapter.named_parameters()}
    assert_same(distilled, expected)  # type: ignore[arg-type]
    through_prior = adapter_gradients(parts, retriever_training__objective="prior")
    both = adapter_gradients(parts, retriever_training__objective="both")
    assert_same(both, {n: through_prior[n] + distilled[n] for n in both})
    assert any(not torch.allclose(through_prior[n], distilled[n]) for n in both)


def test_distillation_does_not_change_the_selector(parts: tuple[ListwiseSelector, Generator]) -> None:
    selector, generator = parts

    def others(**settings: object) -> dict[str, torch.Tensor]:
        made = config(e_step__exact=True, **settings)
        found = gradients(JointModel(selector, generator, made), micro_batches(posteriors_of(parts, made)))
        return {n: g for n, g in found.items() if "question_adapter" not in n}

    assert_same(others(retriever_training__objective="both"), others(retriever_training__objective="prior"))


def _full_logit_log_prob(generator: Generator, posterior: Posterior, z: torch.Tensor) -> torch.Tensor:
    row = answer_sequence(generator, posterior.candidates, z, posterior.answer)
    ids = torch.tensor([row.input_ids])
    logits = generator.language_model.base_model(input_ids=ids).logits[0]
    n = len(row.answer_ids)
    return -nn.functional.cross_entropy(logits[-n - 1 : -1], ids[0, -n:], reduction="sum")


def test_token_normalisation_only_scales_each_question(parts: tuple[ListwiseSelector, Generator]) -> None:
    selector, generator = parts
    posterior = posteriors_of(parts, config())[:1]
    batches = micro_batches(posterior)
    summed = gradients(JointModel(selector, generator, config()), batches)
    token = gradients(JointModel(selector, generator, config(m_step__loss_normalization="token")), batches)
    tokens = {"selector": 2, "generator": len("Shakespeare") + 1}
    for name, gradient in summed.items():
        role = "generator" if ".generator." in name else "selector"
        torch.testing.assert_close(token[name], gradient / tokens[role], rtol=1e-3, atol=1e-6)


def planned(posteriors: list[Posterior], *, seed: int = 3) -> tuple[PlannedQuestion, ...]:
    return tuple(PlannedQuestion(posterior, seed) for posterior in posteriors)


@pytest.mark.parametrize("budget", [1, 700, 10**6])
@pytest.mark.parametrize("rows", ["all", "one"])
def test_the_budget_of_micro_batches_changes_no_gradient(
    parts: tuple[ListwiseSelector, Generator], budget: int, rows: str
) -> None:
    """One sequence at a time, several of several questions, and everything at once."""
    selector, generator = parts
    settings = config(e_step__num_permutations=8, selfaug__alpha=0.5, selfaug__permutations=rows)
    posteriors = posteriors_of(parts, settings)
    joint = JointModel(selector, generator, settings)
    whole = gradients(joint, [replace(batch, seed=3) for batch in micro_batches(posteriors)])
    divided = settings.with_settings({"m_step.tokens_per_micro_batch": budget})
    found = batches_of_step(selector, generator, planned(posteriors), divided)
    assert_same(gradients(joint, found), whole)
    with pytest.raises(AssertionError):
        assert_same(gradients(joint, found[:-1]), whole)  # the control: one pass is missing


def test_micro_batches_hold_their_budget_of_tokens(parts: tuple[ListwiseSelector, Generator]) -> None:
    """Every prompt and every sequence once, questions counted once, and no pass larger than it has to be."""
    selector, generator = parts
    posteriors = posteriors_of(parts, config())
    settings = config(m_step__tokens_per_micro_batch=900)
    batches = batches_of_step(selector, generator, planned(posteriors), settings)
    ranking = [b for b in batches if b.role == "selector"]
    answering = [b for b in batches if b.role == "generator"]
    assert batches == ranking + answering
    assert sorted(p.example.id for b in ranking for p in b.posteriors) == ["q1", "q2", "q3"]
    for batch in ranking:
        lengths = [len(selector.prompt_ids(p.candidates)) for p in batch.posteriors]
        assert len(lengths) == 1 or max(lengths) * len(lengths) <= 900
    read = [(p.example.id, u) for b in answering for i, p in enumerate(b.posteriors) for u in b.permutations(i)]
    assert sorted(read) == [(p.example.id, u) for p in posteriors for u in range(len(p.distinct_scored().z_uK))]
    sums = [sum(map(len, b.encoded or ())) for b in answering]
    assert max(sums) <= 900 and sum(sums) > 900 * (len(sums) - 1) * 0.5
    roomy = batches_of_step(selector, generator, planned(posteriors), config(m_step__tokens_per_micro_batch=10**5))
    assert [(b.role, len(b.posteriors)) for b in roomy] == [("selector", 3), ("generator", 3)]
    assert [sum(b.num_questions for b in group) for group in (ranking, answering)] == [3, 0]
    alone = batches_of_step(selector, generator, planned(posteriors), replace(settings, train_selector=False))
    assert sum(b.num_questions for b in alone) == 3
    for batch in answering:
        again = JointModel(selector, generator, settings).sequences(replace(batch, encoded=None))[0]
        assert again == list(batch.encoded or ())


def test_a_pass_that_keeps_processes_in_step_adds_nothing(parts: tuple[ListwiseSelector, Generator]) -> None:
    selector, generator = parts
    settings = config(selfaug__alpha=0.5)
    posteriors = posteriors_of(parts, settings)
    joint = JointModel(selector, generator, settings)
    batches = micro_batches(posteriors)
    filler = replace(batches[1], counts=False)
    assert_same(gradients(joint, [*batches, filler]), gradients(joint, batches))
    with joint.language_model.use("generator"):
        assert set(float(value.detach()) for value in joint(filler).values()) == {0.0}


def test_padding_batch_and_order_invariance(parts: tuple[ListwiseSelector, Generator]) -> None:
    selector, generator = parts
    settings = config(e_step__num_permutations=3, selfaug__alpha=0.5)
    posteriors = posteriors_of(parts, settings)
    joint = JointModel(selector, generator, settings)
    together = gradients(joint, micro_batches(posteriors))
    alone = gradients(joint, [b for p in reversed(posteriors) for b in micro_batches([p])])
    assert_same(alone, together)


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "mistral", "gemma", "qwen3"])
def test_selfaug_is_exactly_zero_before_the_first_update(
    architecture: str, retriever: DenseRetriever, make_selector: Make
) -> None:
    """Fresh adapters, dropout of the base and of LoRA asked for: the KL is 0, not small."""
    assert architecture in ARCHITECTURES
    model = tiny_language_model(architecture, attention_dropout=0.4)
    selector, generator = make_selector(model, num_candidates=4, num_selected=2), Generator(model)
    settings = config(selfaug__alpha=0.5, e_step__num_permutations=3)
    batch = micro_batches(posteriors_of((selector, generator), settings))[1]
    joint = JointModel(selector, generator, settings).train()
    with model.use("generator"):
        assert joint(batch)["selfaug_kl"].item() == 0.0
    randomize_adapters(model)
    with model.use("generator"):
        assert joint(batch)["selfaug_kl"].item() > 1e-3


def test_selfaug_equals_full_logits(parts: tuple[ListwiseSelector, Generator]) -> None:
    """Mean over a row's P-1 input predictions, over the question's draws, summed over questions."""
    selector, generator = parts
    settings = config(selfaug__alpha=0.5, e_step__num_permutations=3, selfaug__chunk_tokens=7)
    posteriors = posteriors_of(parts, settings)
    joint = JointModel(selector, generator, settings)
    model = joint.language_model
    with model.use("generator"):
        found = joint(micro_batches(posteriors)[1])["selfaug_kl"].item()
    expected = 0.0
    for posterior in posteriors:
        for z in posterior.permutations.z:
            row = answer_sequence(generator, posterior.candidates, z, posterior.answer)
            ids, P = torch.tensor([row.input_ids]), len(row.prompt_ids)
            logits = {}
            for role in ("base", "generator"):
                with torch.no_grad(), model.use(role):
                    logits[role] = model.base_model(input_ids=ids).logits[0, : P - 1].double().log_softmax(-1)
            kl = nn.functional.kl_div(logits["generator"], logits["base"], log_target=True, reduction="sum")
            expected += float(kl) / (P - 1) / len(posterior.permutations)
    assert found == pytest.approx(expected, rel=1e-4)


def test_selfaug_on_one_permutation_is_unbiased(parts: tuple[ListwiseSelector, Generator]) -> None:
    selector, generator = parts
    every = config(selfaug__alpha=1.0, e_step__num_permutations=4)
    posteriors = posteriors_of(parts, every)[:1]
    model = selector.language_model

    def kl(settings: DROConfig, seed: int) -> float:
        with torch.no_grad(), model.use("generator"):
            batch = replace(micro_batches(posteriors)[1], seed=seed)
            return JointModel(selector, generator, settings)(batch)["selfaug_kl"].item()

    drawn = torch.tensor([kl(every.with_settings({"selfaug.permutations": "one"}), seed) for seed in range(60)])
    assert drawn.std().item() > 0
    assert drawn.mean().item() == pytest.approx(kl(every, 0), abs=4 * drawn.std().item() / 60**0.5)


@pytest.mark.parametrize("rows", ["all", "one"])
def test_a_correct_reference_passes_the_first_check(rows: str, retriever: DenseRetriever, make_selector: Make) -> None:
    """On one of several rows the reference runs in another batch shape, and rounding is no alarm."""
    model = tiny_language_model()
    selector, generator = make_selector(model, num_candidates=4, num_selected=2), Generator(model)
    settings = config(selfaug__alpha=0.5, e_step__num_permutations=6, selfaug__permutations=rows)
    posteriors = posteriors_of((selector, generator), settings)
    for seed in range(5):
        joint = JointModel(selector, generator, settings)
        with model.use("generator"):
            assert abs(joint(MicroBatch("generator", tuple(posteriors), seed=seed))["selfaug_kl"].item()) < 1e-4


def test_a_zero_selector_learning_rate_means_zero(parts: tuple[ListwiseSelector, Generator]) -> None:
    joint = JointModel(*parts, config())
    groups = joint.parameter_groups(config(m_step__selector_learning_rate=0.0, m_step__learning_rate=0.5))
    assert sorted(group["lr"] for group in groups) == [0.0, 1e-3, 1e-2, 0.5]


def test_a_wrong_reference_is_refused(
    parts: tuple[ListwiseSelector, Generator],
    retriever: DenseRetriever,
    make_selector: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trap 1, at run time: if the reference pass saw anything else than the base, training stops."""
    model = tiny_language_model()
    selector, generator = make_selector(model, num_candidates=4, num_selected=2), Generator(model)
    settings = config(selfaug__alpha=0.5, e_step__num_permutations=2)
    batch = micro_batches(posteriors_of((selector, generator), settings))[1]
    joint = JointModel(selector, generator, settings)
    real = generator.forward

    def disturbed(rows: list) -> ReadSequences:
        read = real(rows)
        return replace(read, hidden_TH=read.hidden_TH + 0.01) if model.role == "base" else read

    monkeypatch.setattr(generator, "forward", disturbed)
    with pytest.raises(RuntimeError, match="must be exactly 0 before the first update"), model.use("generator"):
        joint(batch)


def test_only_parameters_of_the_trained_roles_are_trainable(parts: tuple[ListwiseSelector, Generator]) -> None:
    selector, generator = parts
    posteriors = posteriors_of(parts, config())

    def names(**settings: object) -> set[str]:
        joint = JointModel(selector, generator, config(**settings))
        batches = micro_batches(posteriors)
        kept = [b for b in batches if settings.get(f"train_{b.role}", True)]
        return {
            "selector" if ".selector." in n else "generator" if ".generator." in n else n.split(".")[0]
            for n in gradients(joint, kept)
        }

    assert names() == {"selector", "generator", "selector_modules", "question_adapter"}
    assert names(train_selector=False) == {"generator"}
    assert names(train_generator=False) == {"selector", "selector_modules", "question_adapter"}
    assert names(train_retriever=False) == {"selector", "generator", "selector_modules"}


def test_plan_gives_every_process_as_many_steps(parts: tuple[ListwiseSelector, Generator]) -> None:
    """5 questions, 2 per batch, 2 processes, 2 batches per step: 3 batches and 1 from the start, of 2 x 2 questions."""
    posteriors = [replace(p, example=replace(p.example, id=str(i))) for i, p in enumerate(many(parts, 5))]
    settings = config(m_step__per_device_train_batch_size=2, m_step__gradient_accumulation_steps=2)
    plan = plan_steps(posteriors, settings, seed=1, world_size=2, count_tokens=lambda p: 1)
    ids = [[question.posterior.example.id for question in step] for step in plan]
    assert [len(step) for step in ids] == [3, 4]
    assert {i for step in ids for i in step} == set("01234")
    assert ids[1][2:] == ids[0][:2]
    epochs = plan_steps(
        posteriors, replace(settings, m_step=replace(settings.m_step, num_train_epochs=2)), seed=1, count_tokens=len
    )
    assert [len(step) for step in epochs] == [4, 3, 3]
    assert len({question.seed for step in epochs for question in step}) == 2


def many(parts: tuple[ListwiseSelector, Generator], count: int) -> list[Posterior]:
    return (posteriors_of(parts, config()) * count)[:count]


def test_a_budget_of_tokens_decides_how_many_questions_share_a_step(
    parts: tuple[ListwiseSelector, Generator],
) -> None:
    """Questions of 30, 20 and 10 tokens by their answers; steps of at most 50 tokens, or of one question."""
    tokens = {"Shakespeare": 30, "Berlin": 20, "Guido": 10}
    posteriors = many(parts, 6)

    def steps(budget: int, world_size: int = 1) -> list[list[int]]:
        settings = config(m_step__tokens_per_optimizer_step=budget)
        plan = plan_steps(posteriors, settings, seed=1, world_size=world_size, count_tokens=lambda p: tokens[p.answer])
        return [[tokens[question.posterior.answer] for question in step] for step in plan]

    found = steps(50)
    assert sorted(t for step in found for t in step) == [10, 10, 20, 20, 30, 30]
    assert all(sum(step) <= 50 for step in found)
    assert all(sum(step) + following[0] > 50 for step, following in pairwise(found))
    assert all(len(step) == 1 for step in steps(1))
    shared = steps(50, world_size=2)
    assert [len(shared[0::2]), [len(s) for s in shared[0::2]]] == [len(shared[1::2]), [len(s) for s in shared[1::2]]]
    assert all(len(a) == 1 or sum(a) + sum(b) <= 50 for a, b in zip(shared[0::2], shared[1::2], strict=True))


def test_tokens_of_a_question_are_those_that_are_read(parts: tuple[ListwiseSelector, Generator]) -> None:
    selector, generator = parts
    (posterior,) = posteriors_of(parts, config())[:1]
    prompt = len(selector.prompt_ids(posterior.candidates))
    rows = [answer_sequence(generator, posterior.candidates, z, posterior.answer) for z in posterior.distinct().z_uK]
    both = prompt + sum(len(row.input_ids) for row in rows)
    assert token_counter(selector, generator, config())(posterior) == both
    assert token_counter(selector, generator, config(train_generator=False))(posterior) == prompt
    assert token_counter(selector, generator, config(train_selector=False))(posterior) == both - prompt


@pytest.mark.parametrize("budget", [1, 2048])
def test_the_trainer_steps_on_the_mean_over_questions(
    budget: int, parts: tuple[ListwiseSelector, Generator], tmp_path: Path
) -> None:
    """One step over 3 questions of unequal length = the mean of their losses (one SGD step, lr 1)."""
    selector, generator = parts
    settings = config(
        selfaug__alpha=0.5,
        e_step__num_permutations=2,
        m_step__gradient_accumulation_steps=3,
        m_step__tokens_per_micro_batch=budget,
        m_step__learning_rate=1.0,
        m_step__prior_learning_rate=1.0,
        retriever_training__learning_rate=1.0,
        m_step__max_grad_norm=0.0,
        m_step__lr_scheduler_type="constant",
        training_arguments={"optim": "sgd"},
    )
    posteriors = posteriors_of(parts, settings)
    joint = JointModel(selector, generator, settings)
    expected = {n: g / 3 for n, g in gradients(joint, micro_batches(posteriors)).items()}
    joint.zero_grad()
    before = {n: p.detach().clone() for n, p in joint.named_parameters()}
    trainer = MStepTrainer(joint, settings, posteriors, output_dir=tmp_path, seed=0)
    trainer.train()
    moved = {n: before[n] - p.detach() for n, p in joint.named_parameters() if not torch.equal(before[n], p)}
    assert_same(moved, {n: g for n, g in expected.items() if n in moved})
    assert trainer.total_questions == 3
    assert set(trainer.totals) == {"selector_loss", "generator_loss", "selfaug_kl"}


def test_exact_em_does_not_lower_the_likelihood(parts: tuple[ListwiseSelector, Generator], tmp_path: Path) -> None:
    """Three rounds of exact E-step and a small M-step: log p(y|x) summed over questions never falls."""
    selector, generator = parts
    settings = config(
        e_step__exact=True,
        e_step__control_variate=False,
        e_step__candidate_order="retriever",
        m_step__gradient_accumulation_steps=3,
        m_step__learning_rate=2e-3,
        m_step__prior_learning_rate=2e-3,
        m_step__lr_scheduler_type="constant",
    )
    values = []
    for round in range(3):
        posteriors = posteriors_of(parts, settings)
        values.append(sum(p.diagnostics().log_marginal for p in posteriors))
        joint = JointModel(selector, generator, settings)
        MStepTrainer(joint, settings, posteriors, output_dir=tmp_path, seed=round).train()
        joint.eval()
    assert all(later >= earlier - 1e-3 for earlier, later in pairwise(values))
    assert values[-1] > values[0] + 0.1


def test_equal_utilities_do_not_change_the_selector(parts: tuple[ListwiseSelector, Generator], tmp_path: Path) -> None:
    """With the control variate, 6 passes over samples of equal weight move nothing."""
    selector, generator = parts
    settings = config(
        e_step__num_permutations=6, train_generator=False, m_step__num_train_epochs=6, m_step__learning_rate=1e-2
    )
    flat = [replace(p, weights_m=p.baseline_m) for p in posteriors_of(parts, settings)]
    z = [p.permutations.z for p in flat]
    before = [log_probs_of(selector, p.candidates, z_mK) for p, z_mK in zip(flat, z, strict=True)]
    joint = JointModel(selector, generator, settings)
    MStepTrainer(joint, settings, flat, output_dir=tmp_path, seed=0).train()
    joint.eval()
    after = [log_probs_of(selector, p.candidates, z_mK) for p, z_mK in zip(flat, z, strict=True)]
    torch.testing.assert_close(torch.cat(after), torch.cat(before), atol=1e-4, rtol=0)


def test_not_finite_losses_stop_the_run(parts: tuple[ListwiseSelector, Generator], tmp_path: Path) -> None:
    selector, generator = parts
    settings = config(e_step__num_permutations=2)
    broken = [replace(p, weights_m=p.weights_m * float("nan")) for p in posteriors_of(parts, settings)]
    joint = JointModel(selector, generator, settings)
    with pytest.raises(RuntimeError, match="loss must be finite"):
        MStepTrainer(joint, settings, broken, output_dir=tmp_path, seed=0).train()
