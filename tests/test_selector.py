"""The selector's distribution: normalised, cached = uncached, shared = separate, and about passages."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import ARCHITECTURES, log_probs_of, randomize_adapters, tiny_language_model

from generator.language_model import LanguageModel
from indexes.errors import DataError, UsageError
from retriever.dense import DenseRetriever
from retriever.listwise_selector import ListwiseSelector
from retriever.permutations import Permutations, enumerate_permutations
from retriever.selector import standardise
from retriever.selector_config import SamplingConfig, SelectorConfig

Make = Callable[..., ListwiseSelector]
QUESTIONS = ["who wrote Hamlet?", "what is the capital of France, and on which river does it lie?"]
DECODINGS = ["autoregressive", "single_pass"]


def reference_log_prob(
    selector: ListwiseSelector,
    candidates: object,
    z: list[int],
    temperature: float = 1.0,
) -> float:
    """log p_s(z), or of the tempered selector.

    From plain full-model forwards: one row per step, no cache, no mask, every logit of V.
    """
    model = selector.language_model
    prompt = selector.prompt_ids(candidates)
    prior = standardise(candidates.scores)
    reply: list[int] = []
    total, used = 0.0, []
    for chosen in z:
        row = prompt + ([] if selector.config.decoding == "single_pass" else reply)
        with torch.no_grad(), model.use("selector"):
            logits = model.base_model(input_ids=torch.tensor([row])).logits[0, -1].double()
        pooled = torch.stack([logits[i] for i in selector.identifiers.token_ids[: len(candidates)]])
        if selector.config.use_prior:
            pooled = selector.prior.gate.item() * pooled + selector.prior.strength.item() * prior
        pooled = pooled / temperature
        pooled[used] = float("-inf")
        total += float(pooled.log_softmax(-1)[chosen])
        used.append(chosen)
        reply += [selector.identifiers.token_ids[chosen], *selector.separator_ids]
    return total


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_prob_is_that_of_the_plain_model(
    architecture: str, decoding: str, make_selector: Make, retriever: DenseRetriever
) -> None:
    model = tiny_language_model(architecture)
    randomize_adapters(model)
    selector = make_selector(model, decoding=decoding)
    for candidates in retriever.search(QUESTIONS, 6):
        z = [[3, 0, 5], [1, 2, 4]]
        found = log_probs_of(selector, candidates, torch.tensor(z))
        expected = [reference_log_prob(selector, candidates, one) for one in z]
        assert found.tolist() == pytest.approx(expected, abs=2e-4)


def test_mixed_precision_with_padding(
    language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    """Padding rows see nothing: their mask must not become -inf in bfloat16, or gradients are NaN."""
    selector = make_selector(language_model)
    candidates = [c.reordered(list(range(n))) for c, n in zip(retriever.search(QUESTIONS, 6), (6, 3), strict=False)]
    z = [torch.tensor([[2, 0, 1], [1, 2, 0]]) for _ in candidates]
    with language_model.use("selector"):
        expected = torch.stack(selector.log_prob(candidates, z)).detach()
        language_model.use_mixed_precision()
        found = torch.stack(selector.log_prob(candidates, z))
        found.sum().backward()
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found.detach(), expected, atol=0.2, rtol=0.02)
    gradients = [p.grad for p in language_model.adapter_parameters("selector").values()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    assert [p.z.shape for p in selector.select(candidates)] == [(1, 3), (1, 3)]


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("prior", [True, False])
def test_probabilities_of_all_permutations_sum_to_one(
    decoding: str, prior: bool, language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    """n = 6, K = 3: 120 permutations."""
    selector = make_selector(language_model, decoding=decoding, prior=prior)
    everything = selector.enumerate(retriever.search(QUESTIONS, 6))
    for one in everything:
        assert len(one) == 120
        assert one.log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-4)
        assert one.log_p.std().item() > 0.1  # not the uniform distribution, for which this would be easy


@pytest.mark.parametrize("decoding", DECODINGS)
def test_cached_sampling_equals_uncached_scoring(
    decoding: str, language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    selector = make_selector(language_model, decoding=decoding)
    candidates = retriever.search(QUESTIONS, 6)
    drawn = selector.propose(
        candidates, SamplingConfig(num_permutations=7, temperature=1.7), generator=torch.Generator().manual_seed(1)
    )
    for one, permutations in zip(candidates, drawn, strict=True):
        torch.testing.assert_close(log_probs_of(selector, one, permutations.z), permutations.log_p, atol=1e-4, rtol=0)
        assert not torch.allclose(permutations.log_p, permutations.log_q)
        assert all(len(set(z)) == 3 for z in permutations.z.tolist())


@pytest.mark.parametrize("decoding", DECODINGS)
def test_samples_follow_the_distribution(
    decoding: str, language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    """4,000 draws of 6 ordered pairs against the enumerated probabilities, tempered and not."""
    selector = make_selector(language_model, decoding=decoding, num_candidates=3, num_selected=2)
    candidates = [retriever.search(QUESTIONS[0], 3)]
    exact = selector.enumerate(candidates)[0]
    generator = torch.Generator().manual_seed(5)
    # Draws of one call see only their own reply, by a mask that grows with the square of their number.
    sampling = SamplingConfig(num_permutations=200)
    drawn_mK = torch.cat([selector.propose(candidates, sampling, generator=generator)[0].z for _ in range(20)])
    frequency = torch.stack([(drawn_mK == z).all(-1).float().mean() for z in exact.z])
    assert (frequency - exact.log_p.exp()).abs().max().item() < 0.03


@pytest.mark.parametrize("decoding", DECODINGS)
def test_without_replacement_draws_differ_and_are_scored_as_uncached(
    decoding: str, language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    """Beams change parents at every step, so the cached keys of a beam must be those of its present parent."""
    selector = make_selector(language_model, decoding=decoding)
    candidates = [*retriever.search(QUESTIONS, 6), retriever.search(QUESTIONS[0], 5)]
    generator = torch.Generator().manual_seed(1)
    drawn = selector.propose(
        candidates, SamplingConfig(num_permutations=9, temperature=1.7, replacement=False), generator=generator
    )
    for one, permutations in zip(candidates, drawn, strict=True):
        torch.testing.assert_close(log_probs_of(selector, one, permutations.z), permutations.log_p, atol=1e-4, rtol=0)
        assert len({tuple(z) for z in permutations.z.tolist()}) == 9
        assert all(len(set(z)) == 3 and max(z) < len(one) for z in permutations.z.tolist())


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("decoding", DECODINGS)
def test_components_from_sampling_equal_rescoring(
    decoding: str, replacement: bool, language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    """Candidates of different numbers, so that some of the logits are padding."""
    selector = make_selector(language_model, decoding=decoding)
    candidates = [retriever.search(QUESTIONS[0], 6), retriever.search(QUESTIONS[1], 4)]
    generator = torch.Generator().manual_seed(3)
    drawn = selector.propose(
        candidates, SamplingConfig(num_permutations=5, replacement=replacement), generator=generator
    )
    for one, permutations in zip(candidates, drawn, strict=True):
        drawn_components = selector.components(one, permutations)
        again = selector.components(one, Permutations(permutations.z, *[permutations.log_p] * 2))
        assert permutations.lm_logits is not None
        assert drawn_components["gate"].shape == (5, 3, len(one))
        torch.testing.assert_close(drawn_components["gate"], again["gate"], atol=1e-4, rtol=0)
        assert again["gate"].std().item() > 0.01
        torch.testing.assert_close(drawn_components["strength"][0, 0], standardise(one.scores))


@pytest.mark.parametrize("replacement", [True, False])
def test_a_gate_of_zero_skips_the_language_model(
    replacement: bool,
    language_model: LanguageModel,
    make_selector: Make,
    retriever: DenseRetriever,
    passes: list[int],
) -> None:
    selector = make_selector(language_model, gate=0.0)
    candidates = retriever.search(QUESTIONS, 6)
    selector.select(candidates)
    drawn = selector.propose(
        candidates,
        SamplingConfig(num_permutations=4, replacement=replacement),
        generator=torch.Generator().manual_seed(0),
    )
    log_p = [log_probs_of(selector, c, p.z) for c, p in zip(candidates, drawn, strict=True)]
    assert not passes
    for one, permutations, log_p_m in zip(candidates, drawn, log_p, strict=True):
        assert permutations.lm_logits is None
        prior = selector.prior.strength.item() * standardise(one.scores).double()
        for z, value, drawn_value in zip(permutations.z.tolist(), log_p_m, permutations.log_p, strict=True):
            plackett_luce = sum(prior[j] - prior[[i for i in range(6) if i not in z[:k]]].logsumexp(0)
                                for k, j in enumerate(z))  # fmt: skip
            assert float(value) == pytest.approx(float(plackett_luce), abs=1e-5)
            assert float(drawn_value) == pytest.approx(float(plackett_luce), abs=1e-5)

    with language_model.use("selector"):  # a gate that learns must hear what it would open for
        selector.log_prob(candidates, [p.z for p in drawn])[0].sum().backward()
    assert passes
    assert selector.prior.gate.grad is not None and selector.prior.gate.grad.abs().item() > 1e-4


def test_drawing_all_permutations_equals_enumeration(
    language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    selector = make_selector(language_model, num_candidates=3, num_selected=2)
    candidates = [retriever.search(QUESTIONS[0], 3)]
    exact = selector.enumerate(candidates)[0]
    for m in (6, 50):
        drawn = selector.propose(
            candidates,
            SamplingConfig(num_permutations=m, replacement=False),
            generator=torch.Generator().manual_seed(0),
        )[0]
        order = sorted(range(6), key=lambda i: drawn.z[i].tolist())
        assert torch.equal(drawn.z[order], exact.z)
        torch.testing.assert_close(drawn.log_p[order], exact.log_p, atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn.log_q, exact.log_q)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_draws_without_replacement_estimate_sums_without_bias(
    temperature: float, language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    """Mean over j of p/q f is, on average, the exact expectation of f; the first draw follows the proposal."""
    selector = make_selector(language_model, num_candidates=4, num_selected=2)
    candidates = retriever.search(QUESTIONS[0], 4)
    exact = selector.enumerate([candidates])[0]
    f_N = torch.linspace(-1, 2, 12)
    value = {tuple(z): float(f) for z, f in zip(exact.z.tolist(), f_N, strict=True)}
    generator = torch.Generator().manual_seed(8)
    draws = selector.propose(
        [candidates] * 600,
        SamplingConfig(num_permutations=4, temperature=temperature, replacement=False),
        generator=generator,
    )
    means = torch.stack(
        [((d.log_p - d.log_q).exp() * torch.tensor([value[tuple(z)] for z in d.z.tolist()])).mean() for d in draws]
    )
    expected = float((exact.log_p.exp() * f_N).sum())
    assert float(means.mean()) == pytest.approx(expected, abs=4 * float(means.std()) / len(means) ** 0.5)
    if temperature == 1.0:
        first = torch.stack([(d.z[0] == exact.z).all(-1).float() for d in draws]).mean(0)
        assert (first - exact.log_p.exp()).abs().max().item() < 4 * (0.25 / len(draws)) ** 0.5


def test_proposal_log_probs_follow_the_temperature(
    language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    """Trap 7. single_pass at temperature t is Plackett-Luce with scores / t, computed here from the scores."""
    selector = make_selector(language_model, decoding="single_pass")
    candidates = retriever.search(QUESTIONS[0], 6)
    drawn = selector.propose(
        [candidates], SamplingConfig(num_permutations=5, temperature=2.5), generator=torch.Generator().manual_seed(0)
    )[0]
    first = torch.tensor(
        [float(log_probs_of(selector, candidates, torch.tensor([[i, *_rest(i)]]))[0]) for i in range(6)]
    )
    assert torch.isfinite(first).all()
    with torch.no_grad(), language_model.use("selector"):
        scores = selector._teacher_forced_logits(
            selector._batch([candidates], [selector.prompt_ids(candidates)]), drawn.z[None]
        )[0, :, 0].double()
    for z, s, log_q in zip(drawn.z.tolist(), scores / 2.5, drawn.log_q, strict=True):
        left = list(range(6))
        expected = 0.0
        for i in z:
            expected += float(s[i] - s[left].logsumexp(-1))
            left.remove(i)
        assert float(log_q) == pytest.approx(expected, abs=1e-4)


def _rest(i: int) -> list[int]:
    return [j for j in range(3) if j != i][:2]


def test_shared_prompt_gradients_equal_separate_sequences(
    language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    selector = make_selector(language_model)
    candidates = retriever.search(QUESTIONS[1], 6)
    z = torch.tensor([[0, 3, 1], [5, 2, 4], [0, 3, 2], [1, 0, 5]])
    weights = torch.tensor([0.4, -0.7, 1.1, 0.2])

    def gradients(rows: list[torch.Tensor], parts: list[torch.Tensor]) -> torch.Tensor:
        language_model.zero_grad()
        with language_model.use("selector"):
            for row, weight in zip(rows, parts, strict=True):
                (selector.log_prob([candidates], [row])[0] * weight).sum().backward()
        return torch.cat([p.grad.flatten() for p in language_model.adapter_parameters("selector").values()])

    shared = gradients([z], [weights])
    separate = gradients(list(z.split(1)), list(weights.split(1)))
    assert shared.abs().max() > 1e-4
    torch.testing.assert_close(shared, separate, rtol=1e-3, atol=1e-5 * float(shared.abs().max()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_checkpointing_changes_no_gradient(
    architecture: str, make_selector: Make, retriever: DenseRetriever
) -> None:
    """It leaves no cache to read from, so prompt and replies are one row there."""
    model = tiny_language_model(architecture)
    randomize_adapters(model)
    selector = make_selector(model)
    candidates = [retriever.search(QUESTIONS[0], 5), retriever.search(QUESTIONS[1], 4)]
    z = [torch.tensor([[0, 3, 1], [4, 2, 0]]), torch.tensor([[1, 0, 2], [3, 2, 1]])]

    def gradients(checkpointing: bool) -> torch.Tensor:
        model.zero_grad()
        model.train()
        with model.use("selector"), model.gradient_checkpointing(checkpointing):
            torch.cat(selector.log_prob(candidates, z)).dot(torch.tensor([0.4, -0.7, 1.1, 0.2])).backward()
        model.eval()
        return torch.cat([p.grad.flatten() for p in model.adapter_parameters("selector").values()])

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.abs().max() > 1e-5
    torch.testing.assert_close(plain, checkpointed, rtol=1e-3, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("decoding", DECODINGS)
def test_log_probs_do_not_depend_on_the_batch(
    decoding: str, language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    """Different prompt lengths, different numbers of candidates (5 and 3) and of permutations (4 and 2)."""
    selector = make_selector(language_model, decoding=decoding)
    one, two = retriever.search(QUESTIONS[0], 5), retriever.search(QUESTIONS[1], 3)
    z_one, z_two = enumerate_permutations(5, 3)[7:11], enumerate_permutations(3, 3)[2:4]
    with torch.no_grad(), language_model.use("selector"):
        together = selector.log_prob([one, two], [z_one, z_two])
    torch.testing.assert_close(together[0], log_probs_of(selector, one, z_one), atol=1e-4, rtol=0)
    torch.testing.assert_close(together[1], log_probs_of(selector, two, z_two), atol=1e-4, rtol=0)
    greedy = [p.z.tolist() for p in selector.select([one, two])]
    assert greedy == [selector.select([c])[0].z.tolist() for c in (one, two)]


@pytest.mark.parametrize("decoding", DECODINGS)
def test_an_untrained_selector_reproduces_the_retrievers_order(decoding: str, retriever: DenseRetriever) -> None:
    """Whatever the base model's logits say, and in whatever order the candidates are shown."""
    selector = ListwiseSelector(
        tiny_language_model(),
        retriever,
        config=SelectorConfig(num_candidates=8, num_selected=4, decoding=decoding),
    )
    for candidates in retriever.search(QUESTIONS, 8):
        assert selector.select([candidates])[0].z[0].tolist() == [0, 1, 2, 3]
        shuffled = candidates.reordered([5, 2, 7, 0, 1, 6, 4, 3])
        chosen = selector.select([shuffled])[0].z[0].tolist()
        assert [shuffled.ids[i] for i in chosen] == candidates.ids[:4]


def test_scores_depend_on_passages_not_on_identifiers(
    language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    """Probabilities of *passages* are untouched by a shuffle when the prior speaks alone; when the language model
    speaks, the shuffled prompt's own letters are the ones that are scored."""
    candidates = retriever.search(QUESTIONS[0], 6)
    order = [4, 2, 0, 5, 1, 3]
    shuffled = candidates.reordered(order)
    z = torch.tensor([[0, 1, 2], [3, 5, 4]])
    moved = torch.tensor([[order.index(i) for i in row] for row in z.tolist()])
    prior_only = make_selector(language_model, gate=0.0)
    torch.testing.assert_close(log_probs_of(prior_only, candidates, z), log_probs_of(prior_only, shuffled, moved))
    speaking = make_selector(language_model)
    expected = [reference_log_prob(speaking, shuffled, row) for row in moved.tolist()]
    assert log_probs_of(speaking, shuffled, moved).tolist() == pytest.approx(expected, abs=2e-4)


def test_the_prior_gives_the_question_adapter_a_gradient(
    language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    """d log p_s / d adapter by finite differences."""
    selector = make_selector(language_model)
    candidates = retriever.search(QUESTIONS[0], 6)
    z = torch.tensor([[2, 4, 1]])
    adapter = retriever.adapter
    with language_model.use("selector"):
        selector.log_prob([candidates], [z])[0].sum().backward()
        assert adapter.up.grad is not None
        i, j = divmod(int(adapter.up.grad.abs().argmax()), adapter.up.shape[1])
        values = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                adapter.up[i, j] += step
            values.append(float(selector.log_prob([candidates], [z])[0].detach()))
            with torch.no_grad():
                adapter.up[i, j] -= step
    assert float(adapter.up.grad[i, j]) == pytest.approx((values[0] - values[1]) / 2e-2, rel=2e-2)


def test_too_few_candidates(language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever) -> None:
    selector = make_selector(language_model)
    with pytest.raises(DataError, match=r"At least K=3 candidates must be retrieved; .* has 2"):
        selector.select([retriever.search(QUESTIONS[0], 2)])
    with pytest.raises(UsageError, match="At most num_candidates=6"):
        selector.select([retriever.search(QUESTIONS[0], 7)])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_candidates": 3, "num_selected": 4}, "got K=4, n=3"),
        ({"decoding": "beam"}, "got 'beam'"),
        ({"prior_strength": 0.0}, "must be a positive"),
    ],
)
def test_config_is_checked(bad: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SelectorConfig(**bad)


def test_long_candidates_are_cut_to_the_context(make_selector: Make, retriever: DenseRetriever) -> None:
    """Prompt and reply must fit 1,200 positions; the question stays whole."""
    model = tiny_language_model(context=1200)
    selector = make_selector(model)
    ids = selector.prompt_ids(retriever.search(QUESTIONS[1], 6))
    assert len(ids) + 2 * (1 + len(selector.separator_ids)) <= 1200
    assert model.tokenizer.decode(ids).count(QUESTIONS[1]) == 2


def test_each_prompt_is_read_once_for_all_replies(
    language_model: LanguageModel, make_selector: Make, retriever: DenseRetriever
) -> None:
    """Two prompts, then four draws of K - 1 = 2 choices of each, an identifier and its separator every time."""
    selector = make_selector(language_model)
    found = retriever.search(["who wrote Hamlet?", "what is the capital of Germany?"], 6)
    before = language_model.tokens_read
    selector.propose(found, SamplingConfig(num_permutations=4), generator=torch.Generator().manual_seed(0))
    prompts = sum(len(selector.prompt_ids(c)) for c in found)
    replies = 2 * 4 * 2 * (1 + len(selector.separator_ids))
    assert language_model.tokens_read - before == prompts + replies
