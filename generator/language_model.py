"""One frozen base model, one LoRA adapter per role, and the base itself as the reference.

A `LanguageModel` holds a single copy of the base weights. `use("selector")` and `use("generator")` switch the
adapter, `use("base")` switches all of them off: that is the reference distribution of SelfAug.

Legend: B sequences, T tokens, P prompt tokens, Q query tokens of this call, H hidden size, V vocabulary.
"""

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    Cache,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from generator.adapters import ROLES, Adapters
from generator.architecture_checks import find_out, use_packed_attention
from generator.architecture_findings import ArchitectureFindings, architecture_key
from generator.base_config import choose_context, text_config
from generator.chat import Chat
from generator.configs import AdapterConfig, ChatConfig
from generator.mixed_precision import store_in_bfloat16
from generator.model_source import find_source
from generator.packed_attention import KeptKeys
from generator.packed_sequences import AttentionLayout, PackedSequences
from generator.padding import SharedPrefixTokens, shared_prefix_visibility
from indexes.errors import MismatchError, ResourceError, UsageError
from indexes.remote_code import code_refused, is_refusal, uses_remote_code

logger = logging.getLogger(__name__)


class LanguageModel(nn.Module):
    """Any Hugging Face causal LM with named LoRA adapters over one frozen base.

    Args:
        model: A causal LM; it is frozen and gets the adapters. Its own dropout is switched off, so that the
            reference is the same distribution in every mode.
        tokenizer: Its tokenizer (fast, because documents are cut by character offsets).
        adapter: LoRA settings.
        name: What `from_pretrained` was called with; recorded in bundles.
        revision: Revision of that name, if any.
        context_length: Tokens that one sequence may hold; None: what config or tokenizer state, else
            `generator.base_config.DEFAULT_CONTEXT`.
        chat: Settings of the chat template.
        findings: What trying this base has shown before; taken only if nothing that it depends on has changed.

    Raises:
        UsageError: Slow tokenizer, no end-of-sequence token, an adapter on the output head, or an output head
            whose logits cannot be reproduced from hidden states.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        adapter: AdapterConfig | None = None,
        name: str = "",
        revision: str | None = None,
        context_length: int | None = None,
        chat: ChatConfig | None = None,
        findings: ArchitectureFindings | None = None,
    ) -> None:
        super().__init__()
        if not tokenizer.is_fast:
            raise UsageError("The tokenizer must be a fast one (it cuts documents by offsets), got a slow one.")
        if tokenizer.eos_token_id is None:
            raise UsageError("The tokenizer must have an end-of-sequence token; it has none. Set eos_token.")
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        # Not a property: torch 2.13 replaces an AttributeError inside a property of a module by one about the
        # property itself ("'LanguageModel' object has no attribute 'context_length'"), which hides the cause.
        self.context_length = choose_context(model.config, tokenizer, context_length)
        """Tokens that one sequence may hold."""
        self.trust_remote_code = uses_remote_code((model, model.config, tokenizer))
        """Whether code of the model's repository runs here; loading the model again needs the option of this name."""
        self.quantization: str | None = None
        self.mixed = False
        self.is_checkpointing = False
        _switch_off_dropout(model)
        adapter = adapter or AdapterConfig()
        key = architecture_key(model, adapter, remote_code=self.trust_remote_code)
        known = findings if findings is not None and findings.hold_for(key) else None
        self.adapters = Adapters(model, adapter, linear_without_tensor=known.linear_without_tensor if known else None)
        self.peft_model = self.adapters.peft_model
        self.tokens_read = 0  # of prompts, replies and answers, without padding
        self.eval()
        self.chat = Chat(tokenizer, chat, listed_ids=_listed_ends(model))
        self.chat.check()
        self.end_of_answer_id = _end_of_answer_id(tokenizer, self.chat)
        self.findings = known or find_out(self, key)
        """What trying the base has shown; a bundle records it."""
        if known and known.supports_packing:
            use_packed_attention(self)
        self.supports_shared_prefix = self.findings.supports_shared_prefix
        """Whether several replies after one prompt are read as in sequences of their own; else each is one."""
        self.supports_left_padding = self.findings.supports_left_padding
        """Whether prompts of unequal lengths can be continued in one batch; else only those of one length can."""
        self.supports_packing = self.findings.supports_packing
        """Whether sequences can be read in one row, what several begin with once; `packs` says up to which length."""

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.adapters.base_parameters())
        where = f"{self.dtype_name()} on {self.device}" + (f", {self.quantization}" if self.quantization else "")
        return (
            f"LanguageModel({self.name!r}, {type(self.base_model).__name__}, {size:,} parameters, {where}, "
            f"context_length={self.context_length}, adapters r={self.adapter.r}, active: {self.role})"
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        adapter: AdapterConfig | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        quantization: str | None = None,
        context_length: int | None = None,
        chat: ChatConfig | None = None,
        trust_remote_code: bool = False,
        findings: ArchitectureFindings | None = None,
    ) -> "LanguageModel":
        """Load a causal LM from the Hub, a folder or a GGUF file.

        Args:
            name_or_path: Hub name, local folder, GGUF file, or a GGUF file on the Hub as "owner/repo:file.gguf". The
                weights of a GGUF file are unpacked to `dtype` (needs the `gguf` extra).
            adapter: LoRA settings.
            revision: Branch, tag or commit on the Hub.
            dtype: `"auto"` takes bfloat16 on a GPU that has it (else float16) and float32 on a CPU; or a torch
                dtype name; or `"mixed"`: products in bfloat16, linear weights too, everything else in float32
                (`generator.mixed_precision`).
            device: `"cuda"`, `"mps"`, `"cpu"`; default: the best one present.
            quantization: None, `"4bit"` or `"8bit"` (QLoRA; needs the `quantization` extra and a GPU).
            context_length: Tokens that one sequence may hold; None: what the model states.
            chat: Settings of the chat template.
            trust_remote_code: Run Python code that comes with the model, where it has some.
            findings: As for the class.

        Raises:
            ResourceError: The model cannot be found or loaded, or has code of its own that may not run.
            UsageError: As for the class, or a quantization of a GGUF file.
        """
        device = device or best_device()
        mixed = dtype == "mixed"
        options: dict[str, Any] = {"dtype": resolve_dtype("float32" if mixed else dtype, device)}
        source = find_source(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
        if quantization is not None:
            if source.file is not None:
                raise UsageError(
                    f"The weights of a GGUF file are unpacked when they are loaded, and cannot be quantized again; got "
                    f"quantization={quantization!r} for {source.name}. Leave it out, or take the model as safetensors."
                )
            options |= {"quantization_config": _quantization(quantization), "device_map": {"": device}}
        try:
            config = source.config()
            tokenizer = source.tokenizer()
            model = source.model(config, **options)
        except ResourceError:
            raise
        except source.errors as error:
            if is_refusal(error):
                raise code_refused("The base", source.name) from error
            raise source.not_loaded(error) from error
        if quantization is None:
            nn.Module.to(model, device)
        loaded = cls(
            model,
            tokenizer,
            adapter=adapter,
            name=str(name_or_path),
            revision=revision,
            context_length=context_length,
            chat=chat,
            findings=findings,
        )
        loaded.quantization = quantization
        if mixed:
            loaded.use_mixed_precision()
        return loaded

    @torch.no_grad()
    def use_mixed_precision(self) -> None:
        """Compute in bfloat16 from here on, as `dtype="mixed"` of `from_pretrained`; weights are rounded for good."""
        self.mixed = True
        embeddings = (self.base_model.get_input_embeddings(), self.base_model.get_output_embeddings())
        kept = [p for module in embeddings if module is not None for p in module.parameters()]
        kept += [p for role in ROLES for p in self.adapters.parameters(role).values()]
        ids = torch.tensor([[0, 1]], device=self.device)
        for role in ROLES:  # each has layers of its own beside those of the base
            with self.use(role):
                store_in_bfloat16(self._body(), lambda: self.hidden(ids, None), kept)

    # -- adapters ----------------------------------------------------------------------------------------------

    @property
    def adapter(self) -> AdapterConfig:
        """LoRA settings."""
        return self.adapters.config

    @property
    def role(self) -> str:
        """The active adapter: `"selector"`, `"generator"`, or `"base"` where all are off."""
        return self.adapters.role

    @contextmanager
    def use(self, role: str) -> Iterator["LanguageModel"]:
        """Activate the adapter of `role` inside the block; `"base"` deactivates all of them.

        A forward pass and its backward belong into one block: with gradient checkpointing the backward runs the
        forward again, and would do so with whatever adapter is active by then. Other threads wait.
        """
        with self.adapters.use(role):
            yield self

    def trainable_roles(self, roles: tuple[str, ...]) -> None:
        """Make exactly the adapters of `roles` trainable; the base never is."""
        self.adapters.set_trainable(roles)

    def adapter_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """Name -> parameter of one role's adapter, as `peft_model.named_parameters` names them."""
        return self.adapters.parameters(role)

    def is_untrained(self, role: str) -> bool:
        """Whether the adapter of `role` is still the identity."""
        return self.adapters.is_untrained(role)

    def save_adapters(self, folder: Path) -> None:
        """Write `folder/<role>/adapter_model.safetensors` and its config, for every role."""
        self.adapters.save(folder)

    def load_adapters(self, folder: Path) -> None:
        """Read what `save_adapters` wrote.

        Raises:
            MismatchError: An adapter file is missing or does not fit this base and these LoRA settings.
        """
        self.adapters.load(folder, self.name)

    # -- the base without adapters -------------------------------------------------------------------------------

    def base_weights(self) -> dict[str, Tensor]:
        """The weights of the base by the names that they have without adapters."""
        # Names are not rewritten: peft 0.21 nests one wrapper in another where several parameters of a module are
        # adapted, as those of fused experts are ("mlp.experts.base_layer.base_layer.gate_up_proj").
        with self.adapters.unwrapped() as base:
            return dict(base.state_dict())

    def save_base(self, folder: Path) -> None:
        """Write the base and its tokenizer, unmerged, and read the base back to compare every tensor.

        transformers 5.23 converts weights while it writes and reads them (experts that a model fuses lie one by one in
        its files), so the files alone do not show whether what was written is what will be loaded. The comparison takes
        as much main memory as the base (of a quantized base: as much memory of its device). Linear weights of a base
        loaded as "mixed" are written in bfloat16, as it has them.

        Raises:
            MismatchError: What is read back differs.
        """
        with self.adapters.unwrapped() as base:
            base.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            placed: dict[str, Any] = {"device_map": {"": str(self.device)}} if self.quantization else {}
            again = type(base).from_pretrained(folder, dtype=base.dtype, **placed)
            expected, found = base.state_dict(), again.state_dict()
        changed = sorted(expected.keys() ^ found.keys())
        changed += [
            name for name, value in expected.items() if name in found and not _is_same(value, found[name], self.mixed)
        ]
        if changed:
            raise MismatchError(
                f"A copy of the base must hold the same weights; of {type(base).__name__} {len(changed)} of "
                f"{len(expected)} tensors are different or missing, such as {changed[0]!r}. Leave the base "
                "out of the bundle, or report it."
            )

    # -- forward -----------------------------------------------------------------------------------------------

    @contextmanager
    def gradient_checkpointing(self, enabled: bool = True) -> Iterator[None]:
        """Recompute activations in backward passes inside the block (non-reentrant)."""
        with warnings.catch_warnings():
            # transformers 5.2x renames these; the old names are the ones that all of 5.17 to 5.x have.
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
            if enabled:
                self.base_model.gradient_checkpointing_enable({"use_reentrant": False})
            self.is_checkpointing = enabled
            try:
                yield
            finally:
                self.is_checkpointing = False
                if enabled:
                    self.base_model.gradient_checkpointing_disable()

    @property
    def base_model(self) -> PreTrainedModel:
        """The causal LM under the adapters (adapters still act in its forward)."""
        return cast(PreTrainedModel, self.peft_model.base_model.model)

    def dtype_name(self) -> str:
        """The dtype that `from_pretrained` takes to load this model again: "mixed", or that of the base's weights."""
        return "mixed" if self.mixed else str(self.base_model.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where the base weights are."""
        return next(self.base_model.parameters()).device

    def hidden(
        self,
        input_ids_BQ: Tensor,
        attention_mask: Tensor | dict[str, Tensor] | None,
        *,
        position_ids_BQ: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Last hidden states `[B, Q, H]` of the active role; no logits are computed.

        Args:
            input_ids_BQ: Tokens; without a mask, padding may only stand on the right.
            attention_mask: None for plain causal attention, else as transformers takes it.
            position_ids_BQ: Where the tokens stand; default: consecutive, after the cache.
            cache: Keys and values of what was read before; what is read now is added.
        """
        with self.autocast():
            output = self._body()(
                input_ids=input_ids_BQ,
                attention_mask=attention_mask,
                position_ids=position_ids_BQ,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def hidden_in_row(
        self,
        token_ids_T: Tensor,
        positions_T: Tensor,
        layout: AttentionLayout,
        *,
        kept: KeptKeys | None = None,
    ) -> Tensor:
        """Last hidden states `[T, H]` of a row of packed tokens, where the model `packs` sequences of such lengths.

        Args:
            token_ids_T: The row.
            positions_T: Where the tokens stand in their sequences.
            layout: Which tokens see which.
            kept: Keys of earlier passes, to which those of this pass are added (without gradient).
        """
        # A mask of four dimensions is handed on as it is; without one transformers would make one.
        ignored = torch.zeros(1, 1, 1, 1, dtype=self.base_model.dtype, device=self.device)
        with self.autocast():
            output = self._body()(
                input_ids=token_ids_T.unsqueeze(0),
                attention_mask=ignored,
                position_ids=positions_T.unsqueeze(0),
                use_cache=False,
                packed_layout=layout,
                kept_keys=kept,
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def hidden_of_packed(self, packed: PackedSequences, *, kept: KeptKeys | None = None) -> Tensor:
        """Last hidden states `[T, H]` of packed sequences; `packed.places` says where those of each sequence are.

        Args:
            packed: The sequences.
            kept: As for `hidden_in_row`.
        """
        self.tokens_read += len(packed)
        ids_T, positions_T = (torch.tensor(row, device=self.device) for row in (packed.token_ids, packed.positions))
        return self.hidden_in_row(ids_T, positions_T, packed.layout, kept=kept)

    def packs(self, length: int) -> bool:
        """Whether sequences of at most so many tokens can be packed: no layer may look back less far."""
        return self.supports_packing and length <= self.attention_types()[1]

    def _body(self) -> PreTrainedModel:
        """The model without its output head."""
        # In transformers 5.23 `get_decoder` of ModernBERT's decoder gives the head, and of Llama 4 the model itself.
        base: Any = self.base_model
        for found in (base.get_decoder(), base.base_model, getattr(base, "model", None)):
            if isinstance(found, PreTrainedModel) and found is not base:
                return found
        raise UsageError(f"The base must have a body below its output head; none is found in {type(base).__name__}.")

    def autocast(self) -> torch.autocast:
        """Where the body computes: in bfloat16 if the model was loaded as `"mixed"`. The head stays as it is."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.mixed)

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Logits `[..., V]` of hidden states, as the model's own forward gives them."""
        logits = self.base_model.get_output_embeddings()(hidden_NH)
        return self._finish_logits(logits)

    def logits_for_positions(self, hidden_NH: Tensor, token_ids_n: Tensor) -> Tensor:
        """float32 logits `[..., n]` of a few tokens only: n rows of the head instead of V."""
        embeddings = self.base_model.get_output_embeddings()
        bias = getattr(embeddings, "bias", None)
        bias = None if bias is None else bias[token_ids_n]
        logits = nn.functional.linear(hidden_NH, embeddings.weight[token_ids_n].to(hidden_NH.dtype), bias)
        return self._finish_logits(logits.float())

    def _finish_logits(self, logits: Tensor) -> Tensor:
        # What some architectures do after the head. `_check_head` proves at start-up that nothing is missing.
        config = text_config(self.base_model.config).to_dict()
        if (scale := config.get("logit_scale")) is not None:  # Cohere
            logits = logits * scale
        if (scaling := config.get("logits_scaling")) is not None:  # Granite
            logits = logits / scaling
        if (cap := config.get("final_logit_softcapping")) is not None:  # Gemma 2 and later
            logits = torch.tanh(logits / cap) * cap
        return logits

    def shared_prefix_masks(
        self, prompt_lengths_B: Tensor, prompt_width: int, query: SharedPrefixTokens, keys: SharedPrefixTokens
    ) -> Tensor | dict[str, Tensor]:
        """Additive attention mask of several replies to one prompt in one row.

        A key is a prompt token of this row or an earlier-or-same token of the same branch. The mask is explicit
        because transformers would take restarting positions without one for packed, isolated segments.

        Args:
            prompt_lengths_B: True prompt lengths; the rest up to `prompt_width` is padding.
            prompt_width: P, the padded width of the prompt part of the keys.
            query: Branch and depth of each query token (`branch -1`: a prompt token, depth its position).
            keys: The same for the keys after the prompt.

        Returns:
            `[B, 1, Q, P + keys]`, or one mask per layer type where the model mixes full and sliding attention.
        """
        return self.attention_masks(*shared_prefix_visibility(prompt_lengths_B, prompt_width, query, keys))

    def attention_masks(self, visible_BQK: Tensor, distance_BQK: Tensor) -> Tensor | dict[str, Tensor]:
        """Additive attention mask in the form that the layers of this model take.

        Args:
            visible_BQK: Whether a query may see a key, as far as the window of its layer reaches.
            distance_BQK: How many positions the key lies before the query.

        Returns:
            `[B, 1, Q, K]`, or one mask per layer type where the model mixes full and sliding attention.
        """
        # What lies below bfloat16's range would become -inf there, and a padding row that sees nothing, NaN.
        dtype = torch.bfloat16 if self.mixed else self.base_model.dtype

        def additive(seen: Tensor) -> Tensor:
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            return mask.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)

        types, window = self.attention_types()
        masks = {
            kind: additive(visible_BQK & (distance_BQK < window) if kind == "sliding_attention" else visible_BQK)
            for kind in types
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def attention_types(self) -> tuple[list[str], float]:
        """Kinds of attention layers ("full_attention", "sliding_attention"), and the width of the sliding window."""
        config = text_config(self.base_model.config).to_dict()
        window = config.get("sliding_window") or math.inf
        types = config.get("layer_types") or ["sliding_attention" if config.get("sliding_window") else "full_attention"]
        return sorted(set(types)), window

    def new_cache(self) -> Cache:
        """An empty key-value cache that keeps every token: the masks above decide what a layer may see."""
        return DynamicCache()


def best_device() -> str:
    """`"cuda"`, `"mps"` or `"cpu"`, whichever comes first; of several GPUs the one of this process."""
    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """A torch dtype from its name; `"auto"` chooses by hardware.

    Raises:
        UsageError: Unknown name.
    """
    if dtype == "auto":
        if device.startswith("cuda"):
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise UsageError(f"dtype must be 'auto', 'mixed' or one of {sorted(known)}, got {dtype!r}.")
    return known[dtype]


def _quantization(kind: str) -> Any:
    from transformers import BitsAndBytesConfig

    if kind == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    raise UsageError(f"quantization must be None, '4bit' or '8bit', got {kind!r}.")


def _is_same(first: Tensor, second: Tensor, mixed: bool = False) -> bool:
    """Whether two tensors have the same numbers of the same type, wherever they are; of any type if `mixed`."""
    # What is stored in bfloat16 is read back as float32, which holds the same numbers.
    return (mixed or first.dtype == second.dtype) and torch.equal(first.cpu().to(second.dtype), second.cpu())


def _switch_off_dropout(model: PreTrainedModel) -> None:
    """Dropout of the base would make the reference a random variable; LoRA has its own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if name.endswith(("dropout", "pdrop")) and isinstance(value, float):
                setattr(module, name, 0.0)


def _end_of_answer_id(tokenizer: PreTrainedTokenizerBase, chat: Chat | None = None) -> int:
    """The token that closes an assistant turn: the chat template's own, else the end-of-sequence token."""
    return (chat or Chat(tokenizer)).end_of_answer_id


def _listed_ends(model: PreTrainedModel) -> list[int]:
    """What the generation config names as the end of a reply, one token or several.

    Of Gemma, Phi-3 and the first Llama-3-Instruct it is the only place that names the end of a turn.
    """
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if listed is None:
        return []
    return [int(i) for i in (listed if isinstance(listed, (list, tuple)) else [listed])]
