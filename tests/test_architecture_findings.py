"""What trying a base has shown is kept in a bundle, and taken from there only if nothing it depends on has changed."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from tiny_models import PASSAGES, byte_tokenizer, tiny_language_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

import generator.language_model
from benchmarks.architectures import tiny_config
from generator.architecture_findings import ArchitectureFindings, architecture_key
from generator.configs import AdapterConfig
from generator.language_model import LanguageModel
from indexes.corpora.corpus import Corpus
from indexes.directory.builder import build_index
from indexes.errors import UsageError
from rag.bundle import read_config
from rag.pipeline import RAG


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the bases that were tried, as they are."""
    keys: list[str] = []
    find_out = generator.language_model.find_out

    def noted(model: Any, key: str) -> ArchitectureFindings:
        keys.append(key)
        return find_out(model, key)

    monkeypatch.setattr(generator.language_model, "find_out", noted)
    return keys


def base(kind: str = "llama", **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = tiny_config(kind, vocab_size=len(byte_tokenizer()), **changes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


@pytest.mark.parametrize("include_base", [True, False])
def test_a_bundle_brings_what_was_found_and_answers_the_same(
    include_base: bool, tried: list[str], tmp_path: Path
) -> None:
    build_index(Corpus.from_passages(PASSAGES), "tiny", tmp_path / "index", progress=False)
    rag = RAG.create(index=tmp_path / "index", device="cpu")
    assert len(tried) == 1
    rag.save_pretrained(tmp_path / "bundle", include_base=include_base)
    again = RAG.from_pretrained(tmp_path / "bundle", device="cpu")
    assert len(tried) == 1
    mine, other = (pipeline.generator.language_model for pipeline in (rag, again))
    assert other.findings == mine.findings == read_config(tmp_path / "bundle").findings
    for name in ("supports_shared_prefix", "supports_left_padding", "supports_packing"):
        assert getattr(other, name) == getattr(mine, name) == getattr(mine.findings, name)
    assert other.base_model.config._attn_implementation == mine.base_model.config._attn_implementation
    assert again.answer(["what is Oxygen?", "who wrote Faust?"]) == rag.answer(["what is Oxygen?", "who wrote Faust?"])
    # The control: the same bundle at another dtype is tried.
    RAG.from_pretrained(tmp_path / "bundle", device="cpu", dtype="bfloat16")
    assert len(tried) == 2 and tried[1] != tried[0]


def test_findings_of_another_key_are_not_believed(tried: list[str]) -> None:
    findings = tiny_language_model().findings
    assert findings.supports_shared_prefix and findings.key
    lie = replace(findings, supports_shared_prefix=False, supports_left_padding=False)
    model = base()
    key = architecture_key(model, AdapterConfig(r=2), remote_code=False)
    for wrong in ("", "another", key[:-1]):
        load = LanguageModel(base(), byte_tokenizer(), adapter=AdapterConfig(r=2), findings=replace(lie, key=wrong))
        assert load.supports_shared_prefix and load.supports_left_padding
    count = len(tried)
    # The control: with the right key they are taken as they are, which is what the key has to answer for.
    load = LanguageModel(model, byte_tokenizer(), adapter=AdapterConfig(r=2), findings=replace(lie, key=key))
    assert not load.supports_shared_prefix and len(tried) == count


def _patched(model: PreTrainedModel) -> None:
    linear = next(module for module in model.modules() if isinstance(module, nn.Linear))
    linear.forward = MethodType(nn.Linear.forward, linear)  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[], tuple[PreTrainedModel, AdapterConfig, bool]]] = {
    "config": lambda: (base(num_hidden_layers=3), AdapterConfig(), False),
    "kind": lambda: (base("qwen2"), AdapterConfig(), False),
    "dtype": lambda: (base().bfloat16(), AdapterConfig(), False),
    "adapters": lambda: (base(), AdapterConfig(r=3), False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_key_depends_on(change: str) -> None:
    changed, adapter, remote = CHANGES[change]()
    key = architecture_key(base(), AdapterConfig(), remote_code=False)
    assert len(key) == 64 and architecture_key(changed, adapter, remote_code=remote) not in ("", key)


def test_the_key_does_not_depend_on_weights_or_on_where_they_are(tmp_path: Path) -> None:
    model = base()
    key = architecture_key(model, AdapterConfig(), remote_code=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    model.save_pretrained(tmp_path / "elsewhere")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere")
    assert architecture_key(again, AdapterConfig(), remote_code=False) == key


def test_functions_in_place_of_those_of_a_class_and_code_of_a_repository_have_no_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = base()
    key = architecture_key(model, AdapterConfig(), remote_code=False)
    assert architecture_key(model, AdapterConfig(), remote_code=True) == ""
    with monkeypatch.context() as patch:
        other = lambda self, *args, **kwargs: nn.functional.linear(args[0], self.weight)  # noqa: E731
        patch.setattr(nn.Linear, "forward", other)  # as packages of faster kernels do
        assert architecture_key(model, AdapterConfig(), remote_code=False) not in ("", key)
    _patched(model)
    assert architecture_key(model, AdapterConfig(), remote_code=False) == ""
    assert not ArchitectureFindings(
        key="", supports_shared_prefix=True, supports_left_padding=True, supports_packing=True
    ).hold_for("")


def test_a_base_that_is_refused_leaves_no_findings(tried: list[str]) -> None:
    with pytest.raises(UsageError, match="must be causal"):
        LanguageModel(base("bert", is_decoder=False), byte_tokenizer())
    assert len(tried) == 1


def test_a_linear_layer_without_a_tensor_is_remembered(tried: list[str]) -> None:
    first = LanguageModel(base("llama4_text"), byte_tokenizer(), adapter=AdapterConfig(r=2))
    assert any(name.endswith("router") for name in first.findings.linear_without_tensor)
    data = asdict(first.findings)
    again = LanguageModel(
        base("llama4_text"), byte_tokenizer(), adapter=AdapterConfig(r=2), findings=ArchitectureFindings(**data)
    )
    assert len(tried) == 1
    assert set(again.adapter_parameters("generator")) == set(first.adapter_parameters("generator"))
