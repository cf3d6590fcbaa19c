"""Bases of many kinds answer, learn, are saved and answer as before; or are refused with the reason.

`python -m benchmarks.architectures` does the same for every architecture of transformers.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import byte_tokenizer, randomize_adapters, tiny_language_model
from transformers import AutoModelForCausalLM

from benchmarks.architectures import PASSAGES, Result, build, pipeline, road, run_all, tiny_config
from generator.configs import AdapterConfig, DecodingConfig
from generator.generator import Generator
from generator.language_model import LanguageModel
from generator.padding import pad_left
from indexes.corpora.corpus import Corpus
from indexes.directory.builder import build_index
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import UsageError
from indexes.tiny_encoder import TINY
from rag.pipeline import RAG
from retriever.listwise_selector import ListwiseSelector
from retriever.selector_config import SamplingConfig

KINDS = {
    "bloom": "attention biased by distance, no context length",
    "mpt": "the same, by another way of counting",
    "mamba": "a state in place of attention",
    "gemma2": "sliding windows in every other layer, logits squeezed",
    "mixtral": "experts that are fused in memory",
    "falcon": "one key for all queries",
    "gpt_neo": "windows inside the attention",
}
"""What each is there for."""
SHARED = {"gemma2", "mixtral"}
"""Those whose replies can share one prompt; the others read a row for each."""


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> PassageIndex:
    folder = tmp_path_factory.mktemp("sentences") / "index"
    return build_index(
        Corpus.from_passages(PASSAGES), Encoder.from_pretrained(TINY, device="cpu"), folder, progress=False
    )


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_trains_saves_and_answers(kind: str, sentences: PassageIndex, tmp_path: Path) -> None:
    """Among its checks: permutations behind a shared prompt, and batches, against rows alone."""
    build(kind, tmp_path / "base")
    rag = pipeline(sentences, tmp_path / "base")
    if kind in SHARED:
        assert rag.generator.language_model.supports_shared_prefix
    road(rag, tmp_path)


def language_model(kind: str) -> LanguageModel:
    torch.manual_seed(0)
    config = tiny_config(kind, vocab_size=len(byte_tokenizer()))
    return LanguageModel(AutoModelForCausalLM.from_config(config), byte_tokenizer(), adapter=AdapterConfig(r=2))


@pytest.mark.parametrize("kind", ["mamba", "gpt_neo"])
def test_architectures_without_shared_prefix_are_detected(kind: str) -> None:
    """A state runs on from one reply to the next; GPT-Neo masks by its own window, whatever mask it is given."""
    assert not language_model(kind).supports_shared_prefix


def test_a_router_that_is_a_linear_layer_carries_no_adapter() -> None:
    """Llama 4's gives a pair; an adapter on it would be added to the pair."""
    adapted = {
        name.split(".lora_")[0].rpartition(".")[2]
        for name in language_model("llama4_text").adapter_parameters("generator")
    }
    assert "router" not in adapted
    assert {"q_proj", "o_proj"} <= adapted


def test_a_model_that_is_not_causal_is_refused() -> None:
    with pytest.raises(UsageError, match=r"must be causal.* in BertLMHeadModel the last token changes"):
        torch.manual_seed(0)
        LanguageModel(
            AutoModelForCausalLM.from_config(tiny_config("bert", is_decoder=False, vocab_size=len(byte_tokenizer()))),
            byte_tokenizer(),
        )


def test_replies_in_separate_sequences_have_the_same_probabilities(
    make_selector: Callable[..., ListwiseSelector],
) -> None:
    """The same Llama reads them in both ways: drawing, beam search, scoring, and the gradient."""
    model = tiny_language_model()
    randomize_adapters(model)
    selector = make_selector(model, num_candidates=4, num_selected=3)
    asked = selector.retriever.search(["who wrote Hamlet?", "the capital of France"], 4)
    z = [torch.tensor([[0, 1, 2], [3, 1, 0]])] * 2

    def everything() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        draw = {"generator": torch.Generator().manual_seed(3)}
        drawn = [*selector.select(asked), *selector.propose(asked, SamplingConfig(num_permutations=3), **draw)]
        drawn += selector.propose(asked, SamplingConfig(num_permutations=3, replacement=False), **draw)
        model.zero_grad()
        with model.use("selector"):
            scored = selector.log_prob(asked, z)
            torch.stack(scored).sum().backward()
        gradients = [p.grad for p in model.adapter_parameters("selector").values() if p.grad is not None]
        return [*(p.z.double() for p in drawn), *(p.log_p.double() for p in drawn), *scored], gradients

    assert model.supports_shared_prefix
    expected, expected_gradients = everything()
    model.supports_shared_prefix = False
    found, found_gradients = everything()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert len(found_gradients) == len(expected_gradients) > 0
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_without_left_padding_prompts_are_batched_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_language_model()
    generator = Generator(model, config=DecodingConfig(max_new_tokens=5))
    prompts = [[20, 30, 40], [50, 60], [70, 80, 90], [25, 35, 45, 55]]
    assert model.supports_left_padding
    expected = generator.complete(prompts)
    seen: list[list[int]] = []
    monkeypatch.setattr(
        "generator.transformers_generation.pad_left",
        lambda rows, *a: seen.append([len(r) for r in rows]) or pad_left(rows, *a),
    )
    model.supports_shared_prefix = model.supports_left_padding = False
    assert generator.complete(prompts) == expected
    assert seen == [[2], [3, 3], [4]]


def test_rag_token_without_a_cache(index: PassageIndex, base: Path) -> None:
    from retriever.selector_config import SelectorConfig

    config = SelectorConfig(num_candidates=4, num_selected=1, use_language_model=False)
    decoding = DecodingConfig(max_new_tokens=4)
    rag = RAG.create(index=index, base=base, selector=config, decoding=decoding, answer_mode="rag_token", device="cpu")
    questions = ["who wrote Hamlet?", "which river flows into the Black Sea?"]
    expected = rag.answer(questions)
    rag.generator.language_model.supports_shared_prefix = False
    for one, other in zip(rag.answer(questions), expected, strict=True):
        assert one.text == other.text
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)


def test_an_architecture_that_hangs_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the table of all architectures each has a process with a limit of time."""

    def stubborn(kind: str, index: Path, work: Path) -> Result:
        while kind == "mamba":
            pass
        return Result(kind, "X", "ok")

    monkeypatch.setattr("benchmarks.architectures.try_one", stubborn)
    states = [(r.kind, r.state) for r in run_all(["llama", "mamba", "bloom"], seconds=2)]
    assert states == [("llama", "ok"), ("mamba", "failed"), ("bloom", "ok")]
