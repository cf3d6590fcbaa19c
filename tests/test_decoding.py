"""Replies of the decoding loop are those of transformers' `generate`, and their scores those of a pass of their own."""

from collections.abc import Sequence

import pytest
import torch
from tiny_models import ARCHITECTURES, PASSAGES, byte_tokenizer, randomize_adapters, tiny_language_model
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from benchmarks.architectures import tiny_config
from generator.configs import AdapterConfig, DecodingConfig
from generator.decoding import Decoding, GeneratedReply
from generator.generator import Generator
from generator.language_model import LanguageModel
from generator.prompt_reading import SHORTEST_PREFIX, ReadPrompts

LENGTHS = (5, 30, 17, 2, 44, 17)
"""Of prompts after their common beginning; some are alike, and most are longer than a sliding window of 8."""


def prompts_of(lengths: Sequence[int] = LENGTHS, *, common: int = 12) -> list[list[int]]:
    drawn = torch.Generator().manual_seed(4)
    beginning = torch.randint(10, 200, (common,), generator=drawn).tolist()
    return [beginning + torch.randint(10, 200, (n,), generator=drawn).tolist() for n in lengths]


def end_sooner(model: LanguageModel, factor: float = 2.0) -> None:
    """Make the end of an answer likelier, so that some replies end early and others are cut off."""
    with torch.no_grad():
        model.base_model.get_output_embeddings().weight[model.end_of_answer_id] *= factor


def make(architecture: str = "llama", *, tokens: int = 12, **changes: object) -> Generator:
    model = tiny_language_model(architecture, **changes)
    randomize_adapters(model)
    end_sooner(model)
    return Generator(model, config=DecodingConfig(max_new_tokens=tokens))


def other_architecture(kind: str) -> Generator:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(tiny_config(kind, vocab_size=len(byte_tokenizer())), dtype=torch.float32)
    model = LanguageModel(base, byte_tokenizer(), adapter=AdapterConfig(r=2))
    randomize_adapters(model, scale=0.1)
    return Generator(model, config=DecodingConfig(max_new_tokens=8))


def tokens_of(replies: Sequence[GeneratedReply]) -> list[list[int]]:
    return [reply.token_ids for reply in replies]


def by_transformers(generator: Generator, prompts: Sequence[list[int]]) -> list[list[int]]:
    model = generator.language_model
    model.supports_shared_prefix = False
    try:
        return tokens_of(generator._replies(prompts, role="generator"))
    finally:
        model.supports_shared_prefix = True


def cross_entropy(model: LanguageModel, prompt: list[int], answer: list[int], role: str = "generator") -> float:
    """Log p of an answer from a plain forward pass in float64 logits."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad(), model.use(role):
        logits = model.base_model(input_ids=ids).logits[0].double()
    return -float(F.cross_entropy(logits[-len(answer) - 1 : -1], ids[0, -len(answer) :], reduction="sum"))


# -- the same replies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_replies_are_those_of_transformers(architecture: str) -> None:
    generator = make(architecture)
    prompts = prompts_of()
    expected = by_transformers(generator, prompts)
    found = tokens_of(generator._replies(prompts, role="generator"))
    assert found == expected
    assert found == [tokens_of(generator._replies([p], role="generator"))[0] for p in prompts]
    assert len({len(reply) for reply in found}) > 1, "some must end before others"


@pytest.mark.filterwarnings("default")  # peft on GPT-2's layers
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", None),
        ("xglm", None),
        ("gpt2", None),
        ("phi3", None),
        ("deepseek_v3", None),
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ],
)
def test_windows_learned_positions_and_latent_keys(kind: str, changes: dict[str, object] | None) -> None:
    """Sliding windows in some layers or all, positions that are embedded, keys and values of different widths."""
    generator = other_architecture(kind) if changes is None else make(kind, **changes)
    assert generator.language_model.supports_shared_prefix
    prompts = prompts_of()
    assert tokens_of(generator._replies(prompts, role="generator")) == by_transformers(generator, prompts)


def test_the_comparison_notices_a_mask_that_hides_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the tests above: without the token that opens the prompts other replies come."""
    generator = make()
    prompts = prompts_of()
    expected = by_transformers(generator, prompts)
    masks = LanguageModel.attention_masks

    def hiding(self: LanguageModel, visible: Tensor, distance: Tensor) -> Tensor | dict[str, Tensor]:
        visible = visible.clone()
        visible[..., 0] = False
        return masks(self, visible, distance)

    monkeypatch.setattr(LanguageModel, "attention_masks", hiding)
    assert tokens_of(generator._replies(prompts, role="generator")) != expected


@pytest.mark.parametrize("common", [0, SHORTEST_PREFIX - 1, SHORTEST_PREFIX, 40])
def test_common_beginnings_of_any_length(common: int) -> None:
    generator = make()
    prompts = prompts_of((3, 1, 9), common=common)
    prompts += [prompts[0], prompts[1][:-1] or prompts[1]]  # one twice, and one that another begins with
    assert tokens_of(generator._replies(prompts, role="generator")) == by_transformers(generator, prompts)


def test_small_caches_and_passes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make()
    prompts = prompts_of()
    expected = generator.complete_scored(prompts)
    groups: list[list[int]] = []
    original = ReadPrompts.__init__

    def noting(self: ReadPrompts, model: object, prompts: object, indices: list[int], *rest: object) -> None:
        groups.append(sorted(indices))
        original(self, model, prompts, indices, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ReadPrompts, "__init__", noting)
    one_token = 2 * 2 * 2 * 8 * 4  # layers x (keys, values) x heads x dimension x bytes
    generator.max_cache_bytes = 2 * (12 + 44 + 12) * one_token
    generator.max_tokens_per_batch = 40
    texts, log_probs = generator.complete_scored(prompts)
    assert texts == expected[0]
    assert log_probs == pytest.approx(expected[1], abs=1e-4)
    assert groups == [[1, 4], [0, 2, 5], [3]], "two of the longest fill the cache, or three shorter ones"


def test_a_common_beginning_is_read_with_each_prompt_where_its_positions_depend_on_the_length() -> None:
    """Beyond 24 tokens this embedding of positions changes, also that of the first ones (Phi-3's longrope)."""
    scaling = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 24}
    scaling |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    generator = make(rope_parameters=scaling)
    prompts = prompts_of((20, 25, 20))
    assert tokens_of(generator._replies(prompts, role="generator")) == by_transformers(generator, prompts)


@pytest.mark.parametrize("role", ["base", "selector"])
def test_other_roles_reply_as_they_do_in_transformers(role: str) -> None:
    generator = make()
    model, prompts = generator.language_model, prompts_of()
    found = generator.continuations(prompts, role=role)
    model.supports_shared_prefix = False
    assert found == generator.continuations(prompts, role=role)
    assert model.role == "base"


# -- sampling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "top_p"), [(1.7, 1.0), (0.8, 0.7)])
def test_draws_are_those_of_transformers(temperature: float, top_p: float) -> None:
    """The same processors on the same logits: with one seed the same tokens."""
    generator = make(tokens=30)
    prompts = prompts_of((20,))
    generator.config = DecodingConfig(max_new_tokens=30, temperature=temperature, top_p=top_p)
    found = []
    for decode in (generator._replies, lambda p, role: [GeneratedReply(t) for t in by_transformers(generator, p)]):
        torch.manual_seed(3)
        found.append([tokens_of(decode(prompts, role="generator"))[0] for _ in range(4)])
    assert found[0] == found[1]
    assert len(set(map(tuple, found[0]))) > 1


def test_the_same_seed_gives_the_same_answers() -> None:
    generator = make()
    generator.config = DecodingConfig(max_new_tokens=8, temperature=2.0)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(generator.complete(prompts_of()))
    assert found[0] == found[1] != found[2]


# -- log-probabilities -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_of_generated_answers_are_those_of_the_full_model(architecture: str) -> None:
    generator = make(architecture)
    model, prompts = generator.language_model, prompts_of()
    texts, log_probs = generator.complete_scored(prompts)
    answers = [generator.generated_sequence(p, text).answer_ids for p, text in zip(prompts, texts, strict=True)]
    expected = [cross_entropy(model, *both) for both in zip(prompts, answers, strict=True)]
    assert log_probs == pytest.approx(expected, abs=1e-4)
    others = [cross_entropy(model, p, [*a[:-1], 7]) for p, a in zip(prompts, answers, strict=True)]  # the control
    assert log_probs != pytest.approx(others, abs=1e-4)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.7, 1.0), (0.8, 0.7)])
def test_scores_are_those_of_temperature_one(temperature: float, top_p: float) -> None:
    generator = make()
    generator.config = DecodingConfig(max_new_tokens=12, temperature=temperature, top_p=top_p)
    torch.manual_seed(3)
    prompts = prompts_of()
    texts, log_probs = generator.complete_scored(prompts)
    rows = [generator.generated_sequence(*both) for both in zip(prompts, texts, strict=True)]
    assert log_probs == pytest.approx(generator.log_probs(rows).tolist(), abs=1e-4)


def test_no_prompt_is_read_twice() -> None:
    """Ended, cut off, or written with other tokens than it was generated with: scores need no pass over the prompt."""
    generator = make()
    prompts = prompts_of()
    model, common = generator.language_model, 12
    before = model.tokens_read
    texts, _ = generator.complete_scored(prompts)
    read = model.tokens_read - before
    generated = tokens_of(generator._replies(prompts, role="generator"))
    assert {True, False} == {ids[-1] in model.chat.stop_ids for ids in generated}
    once = sum(map(len, prompts)) - (len(prompts) - 1) * common
    answers = [generator.generated_sequence([], text).answer_ids for text in texts]
    assert once < read <= once + sum(map(len, generated)) + sum(map(len, answers))
    before = model.tokens_read
    generator.log_probs([generator.generated_sequence(*both) for both in zip(prompts, texts, strict=True)])
    assert model.tokens_read - before > sum(map(len, prompts)), "the control reads them again"


def test_answers_with_other_tokens_than_the_generated_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text without the spaces around it is scored behind the prompt, wherever rows have moved in the meantime."""
    generator = make(tokens=9)
    model, prompts = generator.language_model, prompts_of()
    monkeypatch.setattr(generator, "_text", lambda reply: " " + "".join(chr(65 + i % 26) for i in reply.answer_ids))
    texts, log_probs = generator.complete_scored(prompts)
    rows = [generator.generated_sequence(*both) for both in zip(prompts, texts, strict=True)]
    expected = [cross_entropy(model, row.prompt_ids, row.answer_ids) for row in rows]
    assert log_probs == pytest.approx(expected, abs=1e-4)
    assert len({len(text) for text in texts}) > 2


def test_answers_are_compared_under_every_prompt_of_their_question() -> None:
    generator = make(tokens=4)
    prompts = prompts_of()
    questions = [prompts[:3], prompts[3:5], prompts[5:]]
    found = generator.complete_and_compare(questions)
    assert [texts for texts, _ in found] == [list(dict.fromkeys(generator.complete(q))) for q in questions]
    for question, (texts, scores) in zip(questions, found, strict=True):
        answers = [generator.generated_sequence([], text).answer_ids for text in texts]
        expected = [[cross_entropy(generator.language_model, p, a) for p in question] for a in answers]
        torch.testing.assert_close(scores, torch.tensor(expected), atol=1e-4, rtol=0)
    generator.language_model.supports_shared_prefix = False
    for (texts, scores), (others, expected_scores) in zip(
        found, generator.complete_and_compare(questions), strict=True
    ):
        assert texts == others
        torch.testing.assert_close(scores, expected_scores, atol=1e-4, rtol=0)


def test_in_mixed_precision_generated_and_scored_agree() -> None:
    """Head and softmax are float32 in both; what differs is the shape of passes in bfloat16."""
    generator = make()
    model, prompts = generator.language_model, prompts_of()
    model.use_mixed_precision()
    texts, log_probs = generator.complete_scored(prompts)
    rows = [generator.generated_sequence(*both) for both in zip(prompts, texts, strict=True)]
    scored = generator.log_probs(rows).tolist()
    difference = max(abs(a - b) / len(r.answer_ids) for a, b, r in zip(log_probs, scored, rows, strict=True))
    assert difference < 0.05
    shuffled = [*scored[1:], scored[0]]
    assert max(abs(a - b) / len(r.answer_ids) for a, b, r in zip(log_probs, shuffled, rows, strict=True)) > 0.05


# -- the cache -------------------------------------------------------------------------------------------------


def read(generator: Generator, prompts: Sequence[list[int]], **options: object) -> ReadPrompts:
    (found,) = generator.read(prompts, **options)  # type: ignore[arg-type]
    return found


def last_hidden(model: LanguageModel, ids: list[int]) -> Tensor:
    return model.hidden(torch.tensor([ids]), None)[0, -1]


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 4, 5], [5], [0, 4], [1, 2, 5], [3, 4, 5]])
def test_rows_that_stay_continue_as_before(kept: list[int]) -> None:
    generator = make()
    model, prompts = generator.language_model, prompts_of()
    with torch.inference_mode(), model.use("generator"):
        found = read(generator, prompts)
        found.extend([20] * len(prompts))
        staying = {found.indices[row] for row in kept}
        order = found.keep(kept)
        assert sorted(order) == sorted(kept) and set(found.indices) == staying
        hidden = found.extend(list(range(30, 30 + len(kept))))
        for row, number in enumerate(found.indices):
            expected = last_hidden(model, [*prompts[number], 20, 30 + row])
            torch.testing.assert_close(hidden[row], expected, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found.last_RH[row], last_hidden(model, prompts[number]), atol=1e-4, rtol=1e-4)


def test_scoring_leaves_the_cache_as_it_is() -> None:
    generator = make()
    model, prompts = generator.language_model, prompts_of((9, 4, 6))
    with torch.inference_mode(), model.use("generator"):
        found = read(generator, prompts)
        found.extend([20, 21, 22])
        replies = [[[40, 41, 4], [4]], [[50, 4]], [[60, 61, 62, 4], [63, 4], [64, 65, 4]]]
        scores = found.log_probs([2, 0, 1], replies)
        hidden = found.extend([30, 31, 32])
        expected = [last_hidden(model, [*prompts[n], 20 + row, 30 + row]) for row, n in enumerate(found.indices)]
    torch.testing.assert_close(hidden, torch.stack(expected), atol=1e-4, rtol=1e-4)
    for row, of_row, scores_U in zip([2, 0, 1], replies, scores, strict=True):
        prompt = prompts[found.indices[row]]
        assert scores_U.tolist() == pytest.approx([cross_entropy(model, prompt, r) for r in of_row], abs=1e-4)


def test_keys_are_stored_once_and_as_the_kernel_takes_them() -> None:
    generator = make()
    model, prompts = generator.language_model, prompts_of()
    model.use_mixed_precision()
    with torch.inference_mode(), model.use("generator"):
        found = read(generator, prompts)
        layers = found._cache.row_layers
        places = [layer.stored()[0].data_ptr() for layer in layers]
        for _ in range(4):
            found.extend([20] * len(prompts))
        assert [layer.stored()[0].data_ptr() for layer in layers] == places
    assert {stored.dtype for layer in layers for stored in layer.stored()} == {torch.bfloat16}
    assert layers[0].stored()[0].shape[2] == 12 + 44 + generator.config.max_new_tokens


def test_replies_that_have_ended_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make(tokens=30)
    prompts = prompts_of((7, 9, 12, 5, 8, 21, 30, 3, 14, 6, 11, 4))
    sizes: list[int] = []
    extend = ReadPrompts.extend
    monkeypatch.setattr(ReadPrompts, "extend", lambda self, tokens: sizes.append(len(tokens)) or extend(self, tokens))
    lengths = [len(ids) for ids in tokens_of(generator._replies(prompts, role="generator"))]
    assert sizes == [sum(length > step for length in lengths) for step in range(1, len(sizes) + 1)]
    assert sizes[-1] < sizes[0]


# -- streams ---------------------------------------------------------------------------------------------------


def test_an_abandoned_stream_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make(tokens=9)
    prompt = prompts_of((20,))[0]
    steps: list[int] = []
    step = Decoding.step
    monkeypatch.setattr(Decoding, "step", lambda self: steps.append(1) or step(self))
    whole = list(generator._tokens(prompt))
    assert len(steps) == len(whole) > 3
    tokens = generator._tokens(prompt)
    assert [next(tokens), next(tokens)] == whole[:2]
    tokens.close()
    assert len(steps) == len(whole) + 2
    assert generator.language_model.role == "base"


@pytest.mark.parametrize("shared", [True, False])
def test_streams_of_both_ways_are_the_answer(shared: bool) -> None:
    generator = make(tokens=20)
    expected = generator.generate(["who?"], [PASSAGES[:2]])[0]
    generator.language_model.supports_shared_prefix = shared
    pieces = list(generator.stream("who?", PASSAGES[:2]))
    assert "".join(pieces).strip() == expected
    assert all(pieces)


@pytest.mark.parametrize("shared", [True, False])
def test_a_stream_raises_what_goes_wrong(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = make()
    generator.language_model.supports_shared_prefix = shared

    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    name = "decoding.choose_tokens" if shared else "transformers_generation._settings"
    monkeypatch.setattr(f"generator.{name}", fail)
    with pytest.raises(ZeroDivisionError):
        list(generator.stream("who?", PASSAGES[:2]))


def test_streams_may_take_turns() -> None:
    """No adapter is held while the consumer has the word."""
    generator = make(tokens=10)
    questions = ["who?", "where?"]
    alone = generator.generate(questions, [PASSAGES[:2]] * 2)
    streams = {question: generator.stream(question, PASSAGES[:2]) for question in questions}
    texts = dict.fromkeys(questions, "")
    while streams:
        for question in list(streams):
            piece = next(streams[question], None)
            assert generator.language_model.role == "base"
            if piece is None:
                del streams[question]
            else:
                texts[question] += piece
    assert [text.strip() for text in texts.values()] == alone


# -- stop texts ------------------------------------------------------------------------------------------------


def test_stop_texts_end_replies_as_in_transformers() -> None:
    generator = make(tokens=20)
    prompts = prompts_of()
    whole = generator.continuations(prompts)
    stop = [whole[1][3:5], whole[4][6]]
    found = generator.continuations(prompts, stop=stop)
    generator.language_model.supports_shared_prefix = False
    assert found == generator.continuations(prompts, stop=stop)
    assert found == [text[: min([text.find(s) for s in stop if s in text], default=len(text))] for text in whole]
    assert found != whole


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_prompts_have_no_replies(temperature: float) -> None:
    """As where every question of a batch was left out."""
    generator = Generator(tiny_language_model(), config=DecodingConfig(max_new_tokens=2, temperature=temperature))
    assert generator.generate([], []) == []
    assert generator.complete([]) == []
