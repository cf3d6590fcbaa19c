"""RAG-Token: decoded and trained as its equation says, by brute force over prefixes and by direct differentiation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import added_tokenizer, byte_tokenizer, randomize_adapters, successor_model, tiny_language_model

from generator.answer_sequences import AnswerSequence
from generator.configs import AdapterConfig, DecodingConfig
from generator.generator import Generator
from generator.language_model import LanguageModel
from indexes.errors import UsageError
from rag.answering.rag_sequence import log_priors
from rag.answering.rag_token import RAGToken
from rag.pipeline import RAG
from retriever.listwise_selector import ListwiseSelector
from training.config import DROConfig, EStepConfig, MStepConfig, SelfAugConfig
from training.estimation import EStep
from training.joint_model import JointModel
from training.micro_batches import MicroBatch
from training.posterior import Posterior
from training.questions.example import QAExample

QUESTIONS = ["who wrote Hamlet?", "what is the capital of Germany?", "which river flows into the Black Sea?"]


@pytest.fixture
def rag(make_selector: Callable[..., ListwiseSelector]) -> RAG:
    model = tiny_language_model()
    randomize_adapters(model)
    selector = make_selector(model, gate=0.0, strength=1.3, num_candidates=4, num_selected=1, use_language_model=False)
    generator = Generator(model, config=DecodingConfig(max_new_tokens=4), max_tokens_per_batch=2500)
    return RAG(selector.retriever, selector, generator, answer_mode="rag_token")


@torch.no_grad()
def by_prefixes(rag: RAG, question: str) -> tuple[list[int], float]:
    """Greedy decoding of sum_d p(d|x) p(y_i|x,d,y_<i), every prefix read anew, every document alone."""
    model, generator = rag.generator.language_model, rag.generator
    candidates = rag.retriever.search(question, 4)
    log_prior_n = log_priors(rag.selector, [candidates])[0]
    prompts = [generator.prompt_ids(question, [p]) for p in candidates.passages]
    ids: list[int] = []
    total = 0.0
    with model.use("generator"):
        for step in range(generator.config.max_new_tokens + 1):
            mixture = torch.zeros(len(byte_tokenizer()), dtype=torch.float64)
            for log_prior, prompt in zip(log_prior_n, prompts, strict=True):
                logits = model.peft_model(input_ids=torch.tensor([prompt + ids])).logits[0, -1]
                mixture += log_prior.double().exp() * logits.double().softmax(-1)
            token = int(mixture.argmax()) if step < generator.config.max_new_tokens else model.end_of_answer_id
            ids.append(token)
            total += float(mixture[token].log())
            if token in (model.end_of_answer_id, model.tokenizer.eos_token_id):
                break
    return ids, total


def test_decoding_equals_brute_force_over_prefixes(rag: RAG) -> None:
    answers = rag.answer(QUESTIONS)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        ids, log_p = by_prefixes(rag, question)
        assert answer.text == rag.generator.language_model.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert answer.log_prob == pytest.approx(log_p, abs=1e-4)
        assert answer.permutation == [0, 1, 2, 3]
    assert len({a.text for a in answers}) > 1


def test_an_answer_does_not_depend_on_the_batch(rag: RAG) -> None:
    together = rag.answer(QUESTIONS)
    for question, answer in zip(QUESTIONS, together, strict=True):
        alone = rag.answer(question)
        assert alone.text == answer.text
        assert alone.log_prob == pytest.approx(answer.log_prob, abs=1e-4)


def test_an_answer_that_ends_at_once_is_empty(rag: RAG, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rag.generator.language_model
    head = model.head

    def ending(hidden: torch.Tensor) -> torch.Tensor:
        return head(hidden).index_fill(-1, torch.tensor([model.end_of_answer_id]), 1e4)

    monkeypatch.setattr(model, "head", ending)
    answer = rag.answer(QUESTIONS[0])
    assert (answer.text, answer.citations) == ("", [])
    assert answer.log_prob == pytest.approx(0.0, abs=1e-6)


def test_reads_one_document_at_a_time(make_selector: Callable[..., ListwiseSelector]) -> None:
    model = tiny_language_model()
    selector = make_selector(model, num_candidates=4, num_selected=2)
    with pytest.raises(UsageError, match="RAG-Token reads one document at a time: num_selected must be 1, got 2"):
        RAGToken(selector.retriever, selector, Generator(model))


def test_num_selected_changed_later_is_refused_when_answering(make_rag: Callable[..., RAG]) -> None:
    """Its first documents alone would be summed over, n! / (n-K)! permutations for n documents."""
    rag = make_rag()
    rag.selector.config = replace(rag.selector.config, num_selected=1)
    for name in ("rag_sequence", "rag_token"):
        summing = RAG(rag.retriever, rag.selector, rag.generator, answer_mode=name)
        rag.selector.config = replace(rag.selector.config, num_selected=2)
        with pytest.raises(UsageError, match="one document at a time: num_selected must be 1, got 2"):
            summing.answer(QUESTIONS[0])
        rag.selector.config = replace(rag.selector.config, num_selected=1)


def test_answer_mode_cannot_be_reassigned(make_rag: Callable[..., RAG]) -> None:
    """Set later it would be written into bundles and evaluations, while answers came as before."""
    with pytest.raises(AttributeError):
        make_rag().answer_mode = "rag_token"  # type: ignore[misc, assignment]


def test_unknown_answer_mode_is_refused(make_selector: Callable[..., ListwiseSelector]) -> None:
    model = tiny_language_model()
    selector = make_selector(model, num_selected=1)
    with pytest.raises(UsageError, match=r"answer mode must be one of .*, got 'rag'"):
        RAG(selector.retriever, selector, Generator(model), answer_mode="rag")


def log_marginal(rag: RAG, rows: list[AnswerSequence], scores_n: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """log prod_i sum_d p(d|x) p(y_i|x,d,y_<i), each row read alone by the whole model."""
    centred = scores_n - scores_n.mean()
    log_prior_n = (strength * centred / centred.square().mean().sqrt()).log_softmax(-1)
    log_p = []
    with rag.generator.language_model.use("generator"):
        for row in rows:
            logits = rag.generator.language_model.peft_model(input_ids=torch.tensor([row.input_ids])).logits[0]
            start = len(row.prompt_ids) - 1
            predicted = logits[start : start + len(row.answer_ids)].log_softmax(-1)
            log_p.append(predicted.gather(-1, torch.tensor(row.answer_ids)[:, None]).squeeze(-1))
    joint = torch.stack(log_p) + log_prior_n[:, None]
    return joint.exp().sum(0).log().sum()


@pytest.mark.parametrize("normalization", ["token", "sum"])
def test_training_step_has_the_gradient_of_the_marginal_likelihood(rag: RAG, normalization: str) -> None:
    example = QAExample("q", QUESTIONS[0], ("Shakespeare",))
    config = DROConfig(
        e_step=EStepConfig(exact=True, marginalization="token"),
        m_step=MStepConfig(loss_normalization=normalization),
        selfaug=SelfAugConfig(alpha=0.0),
    )
    posterior = EStep(rag.retriever, rag.selector, rag.generator, config)([example], round=1)[0]
    model, retriever = rag.generator.language_model, rag.retriever
    joint = JointModel(rag.selector, rag.generator, config)
    learned = [
        *model.adapter_parameters("generator").values(),
        rag.selector.prior.strength,
        retriever.adapter.up,
    ]
    length = len(rag.generator.encode_answer("Shakespeare")) if normalization == "token" else 1
    ours: list[torch.Tensor | None] = [None] * len(learned)
    for role, mine in (("selector", slice(-2, None)), ("generator", slice(-2))):
        with model.use(role):
            loss = joint(MicroBatch(role, (posterior,), num_questions=1))["loss"]
            ours[mine] = torch.autograd.grad(loss, learned[mine])
    candidates = posterior.candidates
    rows = [rag.generator.answer_sequence(example.question, [p], "Shakespeare") for p in candidates.passages]
    expected = log_marginal(rag, rows, retriever.score(candidates), rag.selector.prior.strength)
    assert posterior.diagnostics().log_marginal == pytest.approx(float(expected.detach()), abs=1e-3)
    with model.use("generator"):
        reference = torch.autograd.grad(-expected / length, learned)
    for one, other in zip(ours, reference, strict=True):
        assert one is not None and bool(other.any())
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-5)


def thirds(posteriors: tuple[Posterior, ...]) -> list[tuple[tuple[int, ...], ...]]:
    """Each question's permutations in three parts."""
    counts = [len(posterior.distinct_scored().z_uK) for posterior in posteriors]
    return [tuple(tuple(range(part, count, 3)) for count in counts) for part in range(3)]


def test_splitting_into_micro_batches_changes_nothing(rag: RAG) -> None:
    config = DROConfig(e_step=EStepConfig(exact=True, marginalization="token"), selfaug=SelfAugConfig(alpha=0.0))
    examples = [QAExample(str(i), q, (a,)) for i, (q, a) in enumerate(zip(QUESTIONS, ("x", "Bern", "it"), strict=True))]
    posteriors = tuple(EStep(rag.retriever, rag.selector, rag.generator, config)(examples, round=1))
    joint = JointModel(rag.selector, rag.generator, config)
    with rag.generator.language_model.use("generator"), torch.no_grad():
        whole = joint(MicroBatch("generator", posteriors))["loss"]
        parts = [joint(MicroBatch("generator", posteriors, chosen))["loss"] for chosen in thirds(posteriors)]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)
    assert not torch.isclose(torch.stack(parts[:2]).sum(), whole)


def test_rag_token_training_requires_enumeration() -> None:
    with pytest.raises(UsageError, match=r"it needs exact=True and likelihood_exponent=1; got exact=False"):
        DROConfig(e_step=EStepConfig(marginalization="token"))


def test_bundle_records_the_answer_mode(make_rag: Callable[..., RAG], tmp_path: Path) -> None:
    plain = make_rag()
    plain.selector.config = replace(plain.selector.config, num_selected=1)
    rag = RAG(plain.retriever, plain.selector, plain.generator, answer_mode="rag_token")
    rag.save_pretrained(tmp_path / "bundle")
    opened = RAG.from_pretrained(tmp_path / "bundle", device="cpu")
    assert opened.answer_mode.kind == "rag_token"
    assert opened.answer(QUESTIONS[0]) == rag.answer(QUESTIONS[0])
    assert opened.answer(QUESTIONS[0]).log_prob != plain.answer(QUESTIONS[0]).log_prob
    assert "".join(opened.stream(QUESTIONS[0])) == rag.answer(QUESTIONS[0]).text


def by_documents(rag: RAG, text: str) -> float:
    """log p of an answer to the first question, each document read in a row of its own."""
    candidates = rag.retriever.search(QUESTIONS[0], 4)
    rows = [
        rag.generator.generated_sequence(rag.generator.prompt_ids(QUESTIONS[0], [p]), text) for p in candidates.passages
    ]
    mixture_L = torch.stack([log_p_L.exp() for log_p_L in rag.generator.token_log_probs(rows)])
    prior_n1 = log_priors(rag.selector, [candidates])[0].exp()[:, None]
    return float((prior_n1 * mixture_L).sum(0).log().sum())


def test_the_end_of_the_answer_is_scored_whichever_token_stopped_it(
    make_selector: Callable[..., ListwiseSelector],
) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{% endif %}{{ m.content }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = added_tokenizer(["<|assistant|>", "<|end|>"], template=template)
    successors = {"<|assistant|>": "R", "R": "o", "o": "<eos>"}
    model = LanguageModel(successor_model(tokenizer, successors), tokenizer, adapter=AdapterConfig(r=2))
    selector = make_selector(model, gate=0.0, num_candidates=4, num_selected=1, use_language_model=False)
    rag = RAG(selector.retriever, selector, Generator(model), answer_mode="rag_token")
    answer = rag.answer(QUESTIONS[0])
    assert (answer.text, model.end_of_answer_id) == ("Ro", tokenizer.convert_tokens_to_ids("<|end|>"))
    assert answer.log_prob == pytest.approx(by_documents(rag, "Ro"), abs=1e-4)


def test_a_thought_is_neither_in_the_answer_nor_in_its_probability(
    make_selector: Callable[..., ListwiseSelector],
) -> None:
    """The log-probability is that of the answer right behind the prompt, as everywhere."""
    template = "{{ messages[-1].content }}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    tokenizer = added_tokenizer(["<|assistant|>"], plain=["<think>", "</think>"], template=template)
    successors = {"<|assistant|>": "<think>", "<think>": "h", "h": "</think>", "</think>": "R", "R": "o", "o": "<eos>"}
    model = LanguageModel(successor_model(tokenizer, successors), tokenizer, adapter=AdapterConfig(r=2))
    randomize_adapters(model, scale=0.02)
    selector = make_selector(model, gate=0.0, num_candidates=4, num_selected=1, use_language_model=False)
    for room, text in ((8, "Ro"), (2, "")):
        generator = Generator(model, config=DecodingConfig(max_new_tokens=room))
        rag = RAG(selector.retriever, selector, generator, answer_mode="rag_token")
        answer = rag.answer(QUESTIONS[0])
        assert answer.text == text
        assert answer.log_prob == pytest.approx(by_documents(rag, text), abs=1e-4)
