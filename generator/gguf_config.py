"""What a GGUF file says about the sizes of its model, put into the config that transformers makes of it.

transformers 5.23 takes some of the keys of a file and leaves the others at the defaults of the architecture: of Qwen3
the width of a head, of StarCoder2 the base of the rotary positions, of Llama 3 their scaling. Here every key that
belongs to the architecture is either put into the config, or known to change nothing, or an error: a model with a wrong
config answers, and answers worse.
"""

import math
from typing import Any

import numpy as np
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from generator.base_config import stated_context, text_config
from generator.gguf_file import GGUFFile
from indexes.errors import ResourceError

_NAMES = {
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
}
"""Keys without the name of the architecture, and how configs call them, the commonest first."""
_ELSEWHERE = {
    "context_length",
    "block_count",
    "nextn_predict_layers",
    "attention.key_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
}
"""Keys that have a function of their own below."""
_WITHOUT_EFFECT = {
    "tensor_data_layout",  # how the file was written
    "rope.scaling.finetuned",
    "use_parallel_residual",  # transformers sees it by the tensors
    "attention.causal",  # tried when the model is loaded
    "full_attention_interval",  # of the newer architectures, all of whose keys transformers reads
    "rope.dimension_sections",
    "shortconv.l_cache",  # seen by the shape of a weight, as what begins with "ssm."
    "expert_gating_func",
}
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Layers of the 27B models, whose attention llama.cpp scales by another width than that of a head."""
ROPE_FACTORS = "rope_freqs.weight"
"""Factors of the rotary frequencies, as Llama 3.1 has them: no weight, but a part of the config."""


def correct_config(config: Any, file: GGUFFile) -> None:
    """Make a config say what the file says.

    Args:
        config: As transformers made it of the file; it is changed.
        file: The file.

    Raises:
        ResourceError: The file says something that the config cannot hold.
    """
    text = text_config(config)
    for key, value in file.sizes():
        if key in _NAMES:
            _set(text, file, key, value, _NAMES[key])
        elif key == "attention.value_length" and value == _get(file, "attention.key_length", value):
            continue
        elif key not in _ELSEWHERE | _WITHOUT_EFFECT and not key.startswith("ssm.") and not _is_nothing(value):
            raise refused(file, f"{key} = {value} is not taken into account")
    text.num_hidden_layers = file.get(f"{file.architecture}.block_count") - _get(file, "nextn_predict_layers", 0)
    _set_vocabulary(text, file)
    _set_head_width(text, file)
    _set_rotation(text, file)
    if (context := _get(file, "context_length")) and stated_context(config) != context:
        text.max_position_embeddings = context
    for name in ("bos", "eos", "pad"):
        key = f"tokenizer.ggml.{'padding' if name == 'pad' else name}_token_id"
        setattr(text, f"{name}_token_id", file.get(key))
    vars(config).pop("_model_name_or_path", None)  # "general.name", a title


def refused(file: GGUFFile, reason: str) -> ResourceError:
    """The error for a file whose model transformers cannot compute."""
    return ResourceError(
        f"The base must be a model that transformers reads exactly from GGUF; of {file.path} with architecture "
        f"{file.architecture!r} {reason}. Take the same model as safetensors: its Hub name, or a folder."
    )


def _get(file: GGUFFile, key: str, default: Any = None) -> Any:
    return file.get(f"{file.architecture}.{key}", default)


def _is_nothing(value: Any) -> bool:
    return value in (0, None, False, "none") or value == []


def _set(config: Any, file: GGUFFile, key: str, value: Any, names: tuple[str, ...]) -> None:
    if isinstance(value, list):  # one for each layer; 0 where a layer has none
        different = set(value) - {0}
        if len(different) > 1:
            raise refused(file, f"layers differ in {key} ({sorted(different)}), and a config has one value")
        value = max(value, default=0)
    if _is_nothing(value):
        return
    known = [name for name in names if hasattr(config, name)]
    if known:
        setattr(config, known[0], value)
    elif not (key == "attention.head_count_kv" and value == config.num_attention_heads):
        raise refused(file, f"the config ({config.model_type}) has no place for {key} = {value}")


def _set_vocabulary(config: Any, file: GGUFFile) -> None:
    """The rows of the embedding, which count more than a key: some files have rows without a token."""
    rows = file.tensors["token_embd.weight"][-1] if "token_embd.weight" in file.tensors else 0
    if file.length("tokenizer.ggml.tokens") > rows:
        tokens = file.length("tokenizer.ggml.tokens")
        raise refused(file, f"the vocabulary has {tokens} tokens, and the embedding {rows} rows")
    config.vocab_size = rows
    config.tie_word_embeddings = "output.weight" not in file.tensors


def _set_head_width(config: Any, file: GGUFFile) -> None:
    heads = getattr(config, "num_attention_heads", None)
    if not heads:  # state spaces
        return
    width = _get(file, "attention.key_length") or config.hidden_size // heads
    if "attention.key_length" not in dict(file.sizes()) and config.model_type in ("llama", "mistral"):
        width = _get(file, "rope.dimension_count") or width
    if hasattr(config, "head_dim") or width != config.hidden_size // heads:
        config.head_dim = width
    if hasattr(config, "query_pre_attn_scalar"):
        largest = _LARGEST_GEMMA.get(file.architecture) == config.num_hidden_layers
        config.query_pre_attn_scalar = config.hidden_size // heads if largest else width
    rotated = _get(file, "rope.dimension_count") or width
    if rotated != _rotated(config, width):
        raise refused(file, f"{rotated} of {width} dimensions of a head are rotated, not {_rotated(config, width)}")


def _rotation(config: Any) -> dict[str, Any]:
    """Settings of the rotary positions; those of the layers that see everything, where they differ by layer."""
    found = getattr(config, "rope_parameters", None) or {}
    settings: dict[str, Any] = found.get("full_attention", found)
    return settings


def _rotated(config: Any, width: int) -> int:
    factor = _rotation(config).get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    return int(width * (1.0 if factor is None else factor))


def _set_rotation(config: Any, file: GGUFFile) -> None:
    settings = _rotation(config)
    if base := _get(file, "rope.freq_base"):
        if not settings:
            raise refused(file, f"the config ({config.model_type}) has no place for rope.freq_base = {base}")
        settings["rope_theta"] = base
    kind, factor = _get(file, "rope.scaling.type", "none"), _get(file, "rope.scaling.factor", 1.0)
    context = _get(file, "context_length")
    if kind == "linear" and factor != 1.0:
        settings |= {"rope_type": "linear", "factor": factor}
    elif kind not in ("none", "linear") or _get(file, "rope.scaling.original_context_length", context) != context:
        raise refused(file, f"positions are scaled ({kind}, factor {factor})")
    if other := [name for name in file.tensors if name.startswith("rope_factors")]:
        raise refused(file, f"positions are scaled by {other[0]}")
    if ROPE_FACTORS in file.tensors:
        _set_llama3_scaling(config, settings, file)


def _set_llama3_scaling(config: Any, settings: dict[str, Any], file: GGUFFile) -> None:
    """The settings of Llama 3.1 and later of which these factors are; only the largest differs among its models."""
    factors = np.asarray(file.values(ROPE_FACTORS), dtype=np.float64)
    plain = dict(settings)
    settings |= {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    width = 2 * len(factors)
    unscaled = plain["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    if len(frequencies) != len(factors) or not all(
        math.isclose(f, s, rel_tol=1e-4) for f, s in zip(factors, (unscaled / frequencies).tolist(), strict=True)
    ):
        raise refused(file, f"positions are scaled by {ROPE_FACTORS}, and not as in Llama 3.1")
