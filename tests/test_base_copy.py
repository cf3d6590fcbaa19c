"""A bundle's copy of its base is the base: whatever layers peft wraps and transformers converts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import byte_tokenizer, randomize_adapters
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from generator.configs import AdapterConfig, DecodingConfig
from generator.language_model import LanguageModel
from indexes.directory.passage_index import PassageIndex
from indexes.errors import MismatchError
from rag.pipeline import RAG
from retriever.selector_config import SelectorConfig

SIZES = {
    "vocab_size": len(byte_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
KINDS = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": MIXTURE,
    "llama": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": False, "dtype": torch.bfloat16},
}


def plain_model(kind: str) -> PreTrainedModel:
    settings = dict(KINDS[kind])
    dtype = settings.pop("dtype", torch.float32)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **settings}), dtype=dtype)


def saved_base(kind: str, folder: Path) -> Path:
    plain_model(kind).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target_modules", ["all-linear", ["q_proj", "embed_tokens"]])
def test_copied_base_weights_keep_their_names(kind: str, target_modules: str | list[str]) -> None:
    expected = {n: t.clone() for n, t in plain_model(kind).state_dict().items()}
    adapter = AdapterConfig(r=2, target_modules=target_modules)
    model = LanguageModel(plain_model(kind), byte_tokenizer(), adapter=adapter)
    randomize_adapters(model)
    wrapped = {n for n, _ in model.base_model.named_modules()}
    found = model.base_weights()
    assert found.keys() == expected.keys()
    assert [n for n in expected if not torch.equal(found[n], expected[n])] == []
    assert {n for n, _ in model.base_model.named_modules()} == wrapped  # the adapters stand where they stood


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_with_its_base_answers_the_same(kind: str, index: PassageIndex, tmp_path: Path) -> None:
    """Of a mixture of experts the old copy held other experts; with the adapters off its answers differed too."""
    dtype = str(KINDS[kind].get("dtype", torch.float32)).removeprefix("torch.")
    rag = RAG.create(
        index=index,
        base=saved_base(kind, tmp_path / "base"),
        selector=SelectorConfig(num_candidates=4, num_selected=2),
        decoding=DecodingConfig(max_new_tokens=4),
        adapter=AdapterConfig(r=2),
        dtype=dtype,
        device="cpu",
    )
    randomize_adapters(rag.generator.language_model)
    with torch.no_grad():
        rag.selector.prior.gate.fill_(0.4)
    before = rag.answer("who wrote Hamlet?")
    again = RAG.from_pretrained(rag.save_pretrained(tmp_path / "bundle", include_base=True), device="cpu")
    old, new = rag.generator.language_model.base_weights(), again.generator.language_model.base_weights()
    assert old.keys() == new.keys()
    assert [n for n in old if old[n].dtype != new[n].dtype or not torch.equal(old[n], new[n])] == []
    assert again.answer("who wrote Hamlet?") == before


def test_the_copy_loads_like_one_saved_by_transformers(tmp_path: Path) -> None:
    """Experts lie one by one in the files, as in Mixtral's own checkpoints, so that other programs can read them."""
    model = LanguageModel(plain_model("mixtral"), byte_tokenizer(), adapter=AdapterConfig(r=2))
    model.save_base(tmp_path / "copy")
    saved_base("mixtral", tmp_path / "plain")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("copy", "plain"))
    assert any("experts.3." in name for name in expected)
    assert found.keys() == expected.keys()
    assert [n for n in expected if not torch.equal(found[n], expected[n])] == []


def test_a_copy_with_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(plain_model("llama"), byte_tokenizer(), adapter=AdapterConfig(r=2))
    write = type(model.base_model).save_pretrained

    def spoilt(self: PreTrainedModel, folder: Path) -> None:
        kept = self.model.norm.weight.detach().clone()
        with torch.no_grad():
            self.model.norm.weight[3] += 1
        write(self, folder)
        with torch.no_grad():
            self.model.norm.weight.copy_(kept)

    monkeypatch.setattr(type(model.base_model), "save_pretrained", spoilt)
    with pytest.raises(MismatchError, match=r"LlamaForCausalLM 1 of \d+ tensors .* such as 'model\.norm\.weight'"):
        model.save_base(tmp_path / "copy")
