"""A tokenizer that does what a GGUF file says, made of the one that transformers makes.

A file names how text is split before merges are applied ("tokenizer.ggml.pre"), and transformers 5.23 splits as GPT-2
does where it does not know the name: of SmolLM2 two line breaks before a digit are then two tokens, which the model has
never seen there. It also adds tokens that its tokenizer classes have by default, beyond the rows of the embedding.
What the names mean is said by llama.cpp (src/llama-vocab.cpp).
"""

import json
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from generator.gguf_config import refused
from generator.gguf_file import GGUFFile

_AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "a.x-4.0", "mellum", "exaone4"}
"""Names for the pre-tokenizer of GPT-2."""
_INDIVIDUAL_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"}
"""Names for the same with every digit by itself."""
_IGNORES_MERGES = {
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "tekken",
}
"""Names of vocabularies in which a word of the vocabulary is one token whatever the merges say; BOS is added to a text
unless the file says otherwise."""
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_CONTROL, _USER_DEFINED = 3, 4
_SENTENCEPIECE = ("llama", "gemma4")
"""Vocabularies of SentencePiece, in which "▁" is a space."""


def tokenizer_of(made: PreTrainedTokenizerBase, file: GGUFFile) -> PreTrainedTokenizerBase:
    """The tokenizer of a file.

    Args:
        made: As transformers made it of the file.
        file: The file.

    Raises:
        ResourceError: The file says something that is not known here, or the tokenizer cannot do.
    """
    kind = file.get("tokenizer.ggml.model")
    if kind != "gpt2" and kind not in _SENTENCEPIECE:
        raise refused(file, f"the tokenizer is of the kind {kind!r}, which is not known here")
    backend = _with_tokens_of(made.backend_tokenizer, file, kind)
    if kind == "gpt2":
        _set_pre_tokenizer(backend, file)
    elif kind == "llama":
        _set_space_before(backend, file)
    ids = {role: file.get(f"tokenizer.ggml.{key}_token_id") for role, key in _ROLES.items()}
    tokens = {f"{role}_token": None if i is None else _token(file, i) for role, i in ids.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens, **_added_around(file, kind, ids))
    found = {role: getattr(tokenizer, f"{role}_token_id") for role in ids}
    if found != ids:
        raise refused(file, f"special tokens have the ids {ids}, and {found} in the tokenizer")
    tokenizer.chat_template = file.get("tokenizer.chat_template")
    return tokenizer


def ends_of_reply(file: GGUFFile) -> list[int]:
    """Ids of the tokens that end a reply: of a sequence, and of a turn or message where the file names them."""
    found = [file.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return list(dict.fromkeys(int(i) for i in found if i is not None))


def _token(file: GGUFFile, index: int) -> str:
    if not 0 <= index < file.length("tokenizer.ggml.tokens"):
        raise refused(file, f"a special token has the id {index}, which the vocabulary does not have")
    return str(file.element("tokenizer.ggml.tokens", index))


def _with_tokens_of(made: Any, file: GGUFFile, kind: str) -> Any:
    """The same tokenizer with exactly the added tokens that the file has, and nothing around a text."""
    state = json.loads(made.to_str())
    size = file.length("tokenizer.ggml.tokens")
    added = {token["id"]: token for token in state["added_tokens"] if token["id"] < size}
    spelled = {i: token for token, i in state["model"]["vocab"].items()}
    for i, token_type in enumerate(file.get("tokenizer.ggml.token_type", [])):
        if token_type not in (_CONTROL, _USER_DEFINED) or i in added or i not in spelled:
            continue
        token = _token(file, i)
        if kind == "gpt2" and spelled[i] != token:  # transformers spells it in the alphabet of bytes
            state["model"]["vocab"][token] = state["model"]["vocab"].pop(spelled[i])
        elif spelled[i] != token or token_type != _CONTROL:
            continue
        added[i] = {"id": i, "content": token, "special": token_type == _CONTROL}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    state |= {"added_tokens": [{**plain, **added[i]} for i in sorted(added)], "post_processor": None}
    return Tokenizer.from_str(json.dumps(state))


def _set_pre_tokenizer(backend: Any, file: GGUFFile) -> None:
    """The pre-tokenizer of a byte-level vocabulary, and whether words of the vocabulary come before merges."""
    name = file.get("tokenizer.ggml.pre")
    if name in _IGNORES_MERGES:
        backend.model.ignore_merges = True
    if name in _INDIVIDUAL_DIGITS:
        digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    elif name not in _AS_GPT2 and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        raise refused(file, f"text is split by the pre-tokenizer {name!r}, which is not known here")


def _set_space_before(backend: Any, file: GGUFFile) -> None:
    """Whether a SentencePiece vocabulary puts a space before a text."""
    wanted = bool(file.get("tokenizer.ggml.add_space_prefix", True))
    if _has_space_before(backend) != wanted and isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        backend.pre_tokenizer.prepend_scheme = "first" if wanted else "never"
    if _has_space_before(backend) != wanted:
        raise refused(file, f"a space before a text (add_space_prefix) is {wanted}, which the tokenizer cannot do")


def _has_space_before(backend: Any) -> bool:
    return bool(backend.encode("a", add_special_tokens=False).tokens[0].startswith("▁"))


def _added_around(file: GGUFFile, kind: str, ids: dict[str, int | None]) -> dict[str, bool]:
    """Whether BOS and EOS are added to a text."""
    first = kind == "llama" or file.get("tokenizer.ggml.pre") in _IGNORES_MERGES
    return {
        "add_bos_token": bool(file.get("tokenizer.ggml.add_bos_token", first)) and ids["bos"] is not None,
        "add_eos_token": bool(file.get("tokenizer.ggml.add_eos_token", False)) and ids["eos"] is not None,
    }
