"""Tiny models and tokenizers of transformers written as GGUF files, as llama.cpp's own converter writes them.

The writer is `gguf.GGUFWriter`, and the names of tensors are those of the package `gguf`; what else the converter does
with weights (rows of queries and keys in another order, norms plus one) is done here, independently of what reads them.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tiny_models import CHAT_TEMPLATE, PASSAGES
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import LlamaTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}
"""Names of llama.cpp that are not those of transformers."""
TYPES = gguf.GGMLQuantizationType
TEXT = [f"{p.title}\n\n{p.text}  In 1773, or 12:34.\n\n1. First\n\n2. Second\n" for p in PASSAGES]

NORMS = ("norm_epsilon", "layer_norm_eps", "layer_norm_epsilon")

Arrays = dict[str, np.ndarray]


def digit_tokenizer(**roles: Any) -> PreTrainedTokenizerFast:
    """Byte-level merges learned with every digit by itself, as SmolLM2's were: blanks before a digit are one token."""
    tokenizer = Tokenizer(models.BPE())
    digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    tokenizer.decoder = ByteLevel()
    specials = ["<pad>", "<eos>", "<|user|>", "<|assistant|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    roles = {"pad_token": "<pad>", "eos_token": "<eos>", "additional_special_tokens": specials[2:], **roles}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def piece_tokenizer(*, space_before: bool = True) -> LlamaTokenizer:
    """SentencePiece-like merges with bytes for what is not in the vocabulary, as of Llama 2."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=160, show_progress=False))
    pieces = sorted(learned.get_vocab().items(), key=lambda item: item[1])
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: i for i, piece in enumerate([*first, *(piece for piece, _ in pieces)])}
    merges = [tuple(merge) for merge in _merges(learned)]
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, add_prefix_space=space_before)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: str = "F32",
    architecture: str | None = None,
    permuted: bool = True,
    changes: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> dict[str, torch.Tensor]:
    """Write a file; gives the weights that it holds, by the names of transformers, as they are without quantization.

    Args:
        path: The file.
        model: Its weights and config.
        tokenizer: Its vocabulary, special tokens and chat template.
        kind: How matrices are stored: "F32", "F16", "Q8_0", "Q4_1" and so on; vectors are in F32.
        architecture: The name of llama.cpp; default: that of the model.
        permuted: Whether rows of queries and keys stand as llama.cpp has them.
        changes: Metadata in place of, or beside, what the model says; None leaves a key out.
        tensors: Further tensors.
    """
    architecture = architecture or ARCHITECTURES.get(model.config.model_type, model.config.model_type)
    writer = gguf.GGUFWriter(path, architecture)
    facts = {**_sizes(model.config, architecture), **_vocabulary(tokenizer, model.config.vocab_size), **(changes or {})}
    for key, value in facts.items():
        if value is not None:
            _add(writer, key, value)
    held = {}
    names = gguf.get_tensor_name_map(_architecture(architecture), model.config.num_hidden_layers)
    for name, weight in _weights(model).items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        there, back = _layout(name, architecture, model.config, permuted)
        values = there(weight.detach().float().numpy())
        quantized = TYPES[kind] if values.ndim == 2 else TYPES.F32
        packed = gguf.quants.quantize(np.ascontiguousarray(values), quantized)
        writer.add_tensor(stored, packed, raw_dtype=quantized)
        held[name] = torch.from_numpy(np.array(back(gguf.quants.dequantize(packed, quantized))))
    for stored, values in (tensors or {}).items():
        writer.add_tensor(stored, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def save_folder(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, weights: Mapping[str, torch.Tensor]
) -> Path:
    """The same model as safetensors, with these weights."""
    model.load_state_dict(dict(weights), strict=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())  # a tied head is not among them


def _architecture(name: str) -> gguf.MODEL_ARCH:
    return next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _sizes(config: Any, architecture: str) -> dict[str, Any]:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotation = getattr(config, "rope_parameters", None) or {}
    found = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None),
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention.layer_norm_epsilon": next((getattr(config, n) for n in NORMS if hasattr(config, n)), None),
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "attn_logit_softcapping": getattr(config, "attn_logit_softcapping", None),
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        "rope.freq_base": rotation.get("full_attention", rotation).get("rope_theta"),
    }
    if architecture == "lfm2":
        is_attention = [kind == "full_attention" for kind in config.layer_types]
        found |= {"attention.head_count_kv": [config.num_key_value_heads * seen for seen in is_attention]}
        found |= {"shortconv.l_cache": config.conv_L_cache, "attention.layer_norm_rms_epsilon": config.norm_eps}
    if architecture != "gpt2":
        found["rope.dimension_count"] = int(width * (rotation.get("partial_rotary_factor") or 1.0))
    if architecture == "llama":
        found["vocab_size"] = config.vocab_size
    return {f"{architecture}.{key}": value for key, value in found.items()}


def _vocabulary(tokenizer: Any, size: int) -> dict[str, Any]:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    added = {i: token for i, token in tokenizer.added_tokens_decoder.items()}
    is_pieces = isinstance(tokenizer, LlamaTokenizer)
    roles = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {f"tokenizer.ggml.{key}_token_id": getattr(tokenizer, f"{role}_token_id") for role, key in roles.items()}
    kinds = [3 if i in added and added[i].special else 6 if token.startswith("<0x") else 1 for token, i in vocabulary]
    found = {
        "tokenizer.ggml.model": "llama" if is_pieces else "gpt2",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.chat_template": tokenizer.chat_template,
        "tokenizer.ggml.add_bos_token": bool(tokenizer.add_bos_token) if is_pieces else False,
        **ids,
    }
    merges = [" ".join(merge) for merge in _merges(tokenizer.backend_tokenizer)]
    if is_pieces:
        found["tokenizer.ggml.add_space_prefix"] = bool(tokenizer.add_prefix_space)
        found["tokenizer.ggml.scores"] = [-float(i) for i in range(len(vocabulary))]
    else:
        found |= {"tokenizer.ggml.pre": "smollm", "tokenizer.ggml.merges": merges or None}
    return found


def _merges(tokenizer: Tokenizer) -> Sequence[Sequence[str]]:
    import json

    merges: Sequence[Sequence[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return merges


def _layout(
    name: str, architecture: str, config: Any, permuted: bool
) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """How a weight lies in the file, and back."""
    if architecture == "llama" and permuted and (".q_proj." in name or ".k_proj." in name):
        heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
        return (
            lambda w: w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape),
            lambda w: w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape),
        )
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return lambda w: w + 1, lambda w: w - 1
    if name.endswith("conv.conv.weight"):
        return lambda w: w[:, 0], lambda w: w[:, None]
    if architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return lambda w: w.T, lambda w: w.T
    return lambda w: w, lambda w: w
