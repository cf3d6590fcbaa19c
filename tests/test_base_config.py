"""How long a context is, under whatever name a config has for it, or where it has none."""

import ast
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import byte_tokenizer, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from generator.base_config import DEFAULT_CONTEXT, choose_context, stated_context
from generator.configs import AdapterConfig
from generator.language_model import LanguageModel
from indexes.corpora.passage import Passage
from indexes.directory.passage_index import PassageIndex
from indexes.errors import UsageError
from rag.bundle import load_generator
from rag.cli import main
from rag.evaluation.evaluation_file import describe_pipeline
from rag.pipeline import RAG
from rag.planning.model_sizes import base_shape, encoder_shape
from retriever.selector_config import SelectorConfig

SMALL = SelectorConfig(num_candidates=4, num_selected=2)


def bloom(folder: Path, **changes: Any) -> Path:
    """An ALiBi model: its config has no `max_position_embeddings`, and it needs none."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(byte_tokenizer()), "hidden_size": 32, "n_layer": 2, "n_head": 4}
    config = AutoConfig.for_model("bloom", **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=1, **changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("llama", {"max_position_embeddings": 96}, 96),
        ("gpt2", {"n_positions": 97}, 97),
        ("mpt", {"max_seq_len": 98}, 98),
        ("bloom", {"seq_length": 99}, 99),
        ("rwkv", {"context_length": 100}, 100),
        ("whisper", {"max_target_positions": 101}, 101),
        ("gemma3", {"text_config": {"max_position_embeddings": 102}}, 102),
        ("bloom", {}, None),
        ("mamba", {}, None),
        ("xlnet", {}, None),
    ],
)
def test_context_length_fields_of_architectures(kind: str, settings: dict[str, Any], expected: int | None) -> None:
    assert stated_context(AutoConfig.for_model(kind, **settings)) == expected


def test_context_length_falls_back_to_the_tokenizer(caplog: pytest.LogCaptureFixture) -> None:
    config, tokenizer = AutoConfig.for_model("bloom"), byte_tokenizer()
    assert tokenizer.model_max_length > 10**29  # how transformers says that there is no limit
    with caplog.at_level(logging.WARNING):
        assert choose_context(config, tokenizer) == DEFAULT_CONTEXT == 2048
    assert "this bloom names a context length: rows are cut at 2048 tokens. Set context_length" in caplog.text
    tokenizer.model_max_length = 321
    assert choose_context(config, tokenizer) == 321
    assert choose_context(AutoConfig.for_model("llama", max_position_embeddings=400), tokenizer) == 400


def test_context_length_given_by_the_user() -> None:
    limited, unlimited = AutoConfig.for_model("gpt2", n_positions=64), AutoConfig.for_model("bloom")
    assert choose_context(limited, given=50) == 50
    assert choose_context(unlimited, given=5000) == 5000
    with pytest.raises(UsageError, match="at least 1 and at most 64, which is what the model reads, got 65"):
        choose_context(limited, given=65)
    with pytest.raises(UsageError, match=r"must be at least 1, got 0\."):
        choose_context(unlimited, given=0)


def test_a_base_without_a_stated_context_answers(
    index: PassageIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was an AttributeError about `LanguageModel.context_length`, though that was there."""
    base = bloom(tmp_path / "bloom")
    words = ["ask", "--index", str(index.path), "--base", str(base), "--selector.num_candidates", "4"]
    words += ["--selector.num_selected", "2", "--device", "cpu", "--json", "who wrote Hamlet?"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    (answer,) = found["answers"] if isinstance(found, dict) and "answers" in found else [found]
    assert answer["question"] == "who wrote Hamlet?"
    assert len(answer["passages"]) == 2


def test_a_bundle_remembers_its_context(index: PassageIndex, tmp_path: Path) -> None:
    """The same passages are cut at the same place."""
    base = bloom(tmp_path / "bloom")
    rag = RAG.create(index=index, base=base, selector=SMALL, context_length=900, device="cpu")
    assert rag.generator.language_model.context_length == 900
    passages = [Passage(str(i), "Title", "some words " * 100) for i in range(2)]
    ids = rag.generator.prompt_ids("who wrote Hamlet?", passages)
    assert 850 < len(ids) <= 900 - rag.generator.config.max_new_tokens
    bundle = rag.save_pretrained(tmp_path / "bundle")
    again = RAG.from_pretrained(bundle, device="cpu")
    assert again.generator.language_model.context_length == 900
    assert again.generator.prompt_ids("who wrote Hamlet?", passages) == ids
    assert load_generator(bundle, device="cpu").language_model.context_length == 900
    assert describe_pipeline(again).context_length == 900


def test_a_plan_reads_the_same_context(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 1234}))
    assert base_shape(str(tmp_path))[1] == 1234
    assert base_shape(str(tmp_path), context_length=1000)[1] == 1000
    with pytest.raises(UsageError, match="at most 1234"):
        base_shape(str(tmp_path), context_length=2000)


@pytest.mark.parametrize(
    ("config", "inner"),
    [
        ({"model_type": "distilbert", "dim": 8, "hidden_dim": 24, "n_layers": 3}, 24),
        ({"model_type": "t5", "d_model": 8, "d_ff": 40, "num_layers": 3}, 40),
        ({"model_type": "bert", "hidden_size": 8, "intermediate_size": 56, "num_hidden_layers": 3}, 56),
    ],
)
def test_a_plan_reads_the_sizes_of_encoders_under_their_names(
    config: dict[str, object], inner: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = encoder_shape(str(tmp_path))
    assert (shape.dimension, shape.intermediate, shape.layers) == (8, inner, 3)


def test_a_plan_without_sizes_names_the_missing_fields(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    with pytest.raises(UsageError, match=r"\(bloom\) has none of \['intermediate_size', .*\]\. Plan with another"):
        encoder_shape(str(tmp_path))


# -- properties of modules --------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[1]
SAFE = {
    "LanguageModel.adapter",
    "LanguageModel.base_model",
    "LanguageModel.device",
    "LanguageModel.role",
    "QuestionAdapter.is_identity",
}
"""They read attributes that `__init__` has set, and cannot raise an AttributeError."""


def test_module_properties_read_no_config() -> None:
    """torch.nn.Module answers an AttributeError from inside a property with one about the property itself."""
    found = set()
    for package in ("indexes", "generator", "retriever", "training", "rag"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and any(ast.unparse(b).endswith("Module") for b in node.bases):
                    found |= {
                        f"{node.name}.{f.name}"
                        for f in node.body
                        if isinstance(f, ast.FunctionDef)
                        and any("property" in ast.unparse(d) for d in f.decorator_list)
                    }
    assert found == SAFE
    model = LanguageModel(tiny_model(), byte_tokenizer(), adapter=AdapterConfig(r=2))
    assert (model.role, model.device.type) == ("base", "cpu")
    assert model.base_model.config.model_type == "llama"
