"""Which parameters are adapters is asked of peft's layers, whatever the parameters are called."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, randomize_adapters, tiny_model
from torch import nn

from generator.configs import AdapterConfig
from generator.generator import Generator
from generator.language_model import LanguageModel
from indexes.errors import MismatchError, UsageError
from retriever.listwise_selector import ListwiseSelector
from training.config import DROConfig, MStepConfig, RetrieverTrainingConfig
from training.joint_model import JointModel

IDS = torch.tensor([[20, 30, 40, 50, 60]])
EMBEDDING = ["embed_tokens"]
BOTH = ["q_proj", "embed_tokens"]


def adapted(target_modules: list[str], *, tied: bool = False) -> LanguageModel:
    model = tiny_model(tie_word_embeddings=tied)
    return LanguageModel(model, byte_tokenizer(), adapter=AdapterConfig(r=3, target_modules=target_modules))


def sizes(model: LanguageModel, role: str) -> dict[str, int]:
    """Number of weights by the last part of the name that names no role."""
    counts: dict[str, int] = {}
    for name, parameter in model.adapter_parameters(role).items():
        kind = next(part for part in name.split(".") if part.startswith("lora_"))
        counts[kind] = counts.get(kind, 0) + parameter.numel()
    return counts


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_of_embeddings_are_trainable(tied: bool) -> None:
    """A: rank x vocabulary, B: hidden x rank; beside them two layers' q_proj of 32 to 32."""
    model = adapted(BOTH, tied=tied)
    vocabulary = len(byte_tokenizer())
    expected = {
        "lora_embedding_A": 3 * vocabulary,
        "lora_embedding_B": 32 * 3,
        "lora_A": 2 * 3 * 32,
        "lora_B": 2 * 32 * 3,
    }
    model.trainable_roles(("generator",))
    assert sizes(model, "generator") == sizes(model, "selector") == expected
    learning = {n for n, p in model.peft_model.named_parameters() if p.requires_grad}
    assert learning == set(model.adapter_parameters("generator"))
    assert sum(n.endswith("lora_embedding_A.generator") for n in learning) == 1


@pytest.mark.parametrize("target_modules", [EMBEDDING, BOTH])
def test_training_moves_every_adapter(target_modules: list[str]) -> None:
    """Two steps: of each pair of factors one starts at 0, and only then has the other one a gradient."""
    model = adapted(target_modules)
    model.trainable_roles(("generator",))
    before = {n: p.detach().clone() for n, p in model.adapter_parameters("generator").items()}
    others = {n: p.detach().clone() for n, p in model.adapter_parameters("selector").items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        with model.use("generator"):
            model.head(model.hidden(IDS, None)).square().mean().backward()
        optimizer.step()
    after = model.adapter_parameters("generator")
    assert [n for n in before if torch.equal(before[n], after[n])] == []
    assert all(torch.equal(others[n], p) for n, p in model.adapter_parameters("selector").items())


def test_untrained_adapters_are_recognised() -> None:
    model = adapted(BOTH)
    assert model.is_untrained("generator") and model.is_untrained("selector")
    (started_at_zero,) = [p for n, p in model.adapter_parameters("generator").items() if "lora_embedding_A" in n]
    assert not started_at_zero.any()
    with torch.no_grad():
        started_at_zero[0, 20] = 0.5
    assert not model.is_untrained("generator")
    assert model.is_untrained("selector")


@pytest.mark.filterwarnings("error")  # peft would also write the embedding itself, and say so
def test_adapters_of_embeddings_round_trip(tmp_path: Path) -> None:
    model = adapted(BOTH)
    randomize_adapters(model)
    model.save_adapters(tmp_path)
    for role in ("selector", "generator"):
        written = load_file(tmp_path / role / "adapter_model.safetensors")
        assert sum(t.numel() for t in written.values()) == sum(sizes(model, role).values())
    fresh = adapted(BOTH)
    fresh.load_adapters(tmp_path)
    with torch.no_grad():
        for role in ("selector", "generator", "base"):
            with model.use(role), fresh.use(role):
                assert torch.equal(model.hidden(IDS, None), fresh.hidden(IDS, None))
    assert not fresh.is_untrained("generator")


def test_adapter_settings_are_byte_identical_across_processes(tmp_path: Path) -> None:
    """peft 0.21 keeps target_modules as a set, whose order depends on the seed of Python's hashes."""
    model = adapted(["v_proj", "embed_tokens", "q_proj", "k_proj"])
    model.save_adapters(tmp_path)
    text = (tmp_path / "generator" / "adapter_config.json").read_text()
    settings = json.loads(text)
    assert settings["target_modules"] == ["embed_tokens", "k_proj", "q_proj", "v_proj"]
    assert text == json.dumps(settings, indent=2, sort_keys=True)


def test_an_incomplete_adapter_is_refused(tmp_path: Path) -> None:
    model = adapted(BOTH)
    model.save_adapters(tmp_path)
    file = tmp_path / "generator" / "adapter_model.safetensors"
    tensors = load_file(file)
    dropped = next(name for name in tensors if name.endswith("lora_embedding_A"))
    save_file({n: t for n, t in tensors.items() if n != dropped}, file)
    with pytest.raises(MismatchError, match=r"1 are missing, such as '.*lora_embedding_A'"):
        model.load_adapters(tmp_path)


def test_target_modules_without_a_match_are_refused() -> None:
    with pytest.raises(UsageError, match=r"must name layers of LlamaForCausalLM .*'no_such_layer'"):
        adapted(["no_such_layer"])


Make = Callable[..., ListwiseSelector]


def test_settings_that_train_nothing_are_refused(make_selector: Make) -> None:
    model = adapted(EMBEDDING)
    joint = JointModel(make_selector(model), Generator(model), DROConfig())
    joint.requires_grad_(False)
    with pytest.raises(UsageError, match="leave 0 parameters trainable"):
        joint.parameter_groups(DROConfig())


def test_learning_rates_follow_the_owning_module_not_the_parameter_name(make_selector: Make) -> None:
    """A layer of the base that is called as the retriever's prior is: its adapters still learn as adapters do."""
    base = tiny_model()
    for layer in base.model.layers:
        layer.mlp.down_proj = nn.Sequential(OrderedDict(prior=layer.mlp.down_proj))
    model = LanguageModel(base, byte_tokenizer(), adapter=AdapterConfig(r=3, target_modules=["prior", "embed_tokens"]))
    settings = DROConfig(
        m_step=MStepConfig(learning_rate=0.1, selector_learning_rate=0.2, prior_learning_rate=0.3),
        retriever_training=RetrieverTrainingConfig(learning_rate=0.4),
    )
    joint = JointModel(make_selector(model), Generator(model), settings)
    found = {group["lr"]: sum(p.numel() for p in group["params"]) for group in joint.parameter_groups(settings)}
    adapters = sum(sizes(model, "generator").values())
    assert adapters == 3 * len(byte_tokenizer()) + 32 * 3 + 2 * (3 * 48 + 32 * 3)
    question = sum(p.numel() for p in joint.question_adapter.parameters())
    assert found == {0.1: adapters, 0.2: adapters, 0.3: 2, 0.4: question}


def test_a_base_with_a_module_named_like_a_role_is_supported() -> None:
    base = tiny_model()
    base.model.layers[0].mlp.down_proj = nn.Sequential(OrderedDict(generator=base.model.layers[0].mlp.down_proj))
    with pytest.raises(UsageError, match=r"may be called as an adapter is.*'model\.layers\.0\.mlp\.down_proj\.genera"):
        LanguageModel(base, byte_tokenizer())
