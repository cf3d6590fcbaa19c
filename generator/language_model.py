"""One frozen base model, one LoRA adapter per role, and the base itself as the reference.

A `LanguageModel` holds a single copy of the base weights. `use("selector")` and `use("generator")` switch the
adapter, `use("base")` switches all of them off: that is the reference distribution of SelfAug.

Legend: B rows, T tokens, P prompt tokens, Q query tokens of this call, H hidden size, V vocabulary.
"""

import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import RLock
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from generator.base_config import choose_context, text_config
from generator.chat import Chat
from generator.configs import AdapterConfig, ChatConfig
from generator.padding import Branches, branch_visibility
from indexes.errors import MismatchError, ResourceError, UsageError
from indexes.remote_code import code_refused, is_refusal, uses_remote_code

logger = logging.getLogger(__name__)

ROLES = ("selector", "generator")
_PAST_ADAPTERS = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
_KNOWN_WINDOWS = {
    "sliding_window",
    "max_window_layers",
    "sliding_window_pattern",
    "_sliding_window_pattern",
    "prefix_dense_sliding_window_pattern",
}
"""Fields of configs about how far attention looks back that `shared_prefix_masks` heeds or that change nothing."""
BASE = "base"


class LanguageModel(nn.Module):
    """Any Hugging Face causal LM with named LoRA adapters over one frozen base.

    Args:
        model: A causal LM; it is frozen and gets the adapters. Its own dropout is switched off, so that the
            reference is the same distribution in every mode.
        tokenizer: Its tokenizer (fast, because documents are cut by character offsets).
        adapter: LoRA settings.
        name: What `from_pretrained` was called with; recorded in bundles.
        revision: Revision of that name, if any.
        context_length: Tokens that one row may hold; None: what config or tokenizer state, else
            `generator.base_config.DEFAULT_CONTEXT`.
        chat: What the chat template is given.

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
    ) -> None:
        super().__init__()
        if not tokenizer.is_fast:
            raise UsageError("The tokenizer must be a fast one (it cuts documents by offsets); a slow one came.")
        if tokenizer.eos_token_id is None:
            raise UsageError("The tokenizer must have an end-of-sequence token; it has none. Set eos_token.")
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        # Not a property: torch 2.13 answers an AttributeError inside a property of a module with one about the
        # property itself ("'LanguageModel' object has no attribute 'context_length'"), which hides the cause.
        self.context_length = choose_context(model.config, tokenizer, context_length)
        """Tokens that one row may hold."""
        self.trust_remote_code = uses_remote_code((model, model.config, tokenizer))
        """Whether code that came with the model runs here; loading it anew needs the option of this name."""
        self.quantization: str | None = None
        self.mixed = False
        self.is_checkpointing = False
        self.adapter = adapter or AdapterConfig()
        _switch_off_dropout(model)
        self._not_adaptable = _linear_without_tensor(model)
        self.peft_model = self._add_adapters(model)
        self._tuner_layers = [m for m in self.peft_model.modules() if isinstance(m, BaseTunerLayer)]
        self._role = ""
        self.tokens_read = 0  # of prompts, replies and answers, padding left out: what passes are paid for
        self._in_use = RLock()
        self.trainable_roles(ROLES)
        self._switch(BASE)
        self.eval()
        self._check_causal()
        self._check_head()
        self.chat = Chat(tokenizer, chat, listed_ids=_listed_ends(model))
        self.chat.check()
        self.end_of_answer_id = _end_of_answer_id(tokenizer, self.chat)
        self.reads_branches = self._probe(self._branches_match)
        """Whether several replies behind one prompt are read as in rows of their own; else each needs its own row."""
        self.reads_left_padding = self._probe(self._left_padding_matches)
        """Whether prompts of unequal length continue in one batch as each alone; else only those of one length do."""

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
    ) -> "LanguageModel":
        """Load a causal LM from the Hub or a folder.

        Args:
            name_or_path: Hub name or local folder.
            adapter: LoRA settings.
            revision: Branch, tag or commit on the Hub.
            dtype: `"auto"` takes bfloat16 on a GPU that has it (else float16) and float32 on a CPU; or a torch
                dtype name; or `"mixed"`: float32 weights and residual stream, bfloat16 products.
            device: `"cuda"`, `"mps"`, `"cpu"`; default: the best one present.
            quantization: None, `"4bit"` or `"8bit"` (QLoRA; needs the `quantization` extra and a GPU).
            context_length: Tokens that one row may hold; None: what the model states.
            chat: What the chat template is given.
            trust_remote_code: Run Python code that comes with the model, where it has some.

        Raises:
            ResourceError: The model cannot be found or loaded, or has code of its own that may not run.
            UsageError: As for the class.
        """
        device = device or best_device()
        mixed = dtype == "mixed"
        options: dict[str, Any] = {"dtype": resolve_dtype("float32" if mixed else dtype, device)}
        if quantization is not None:
            options |= {"quantization_config": _quantization(quantization), "device_map": {"": device}}
        try:
            source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
            config = AutoConfig.from_pretrained(name_or_path, **source)
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, **source)
            model = AutoModelForCausalLM.from_pretrained(name_or_path, config=config, **source, **options)
        except (OSError, ValueError, ImportError) as error:
            if is_refusal(error):
                raise code_refused("The base", str(name_or_path)) from error
            raise ResourceError(
                f"A causal language model must be found at {str(name_or_path)!r}; loading it failed: "
                f"{_first_line(error)} Give a Hub name that this machine can reach or a local folder with "
                "config.json, tokenizer and weights."
            ) from error
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
        )
        loaded.quantization = quantization
        loaded.mixed = mixed
        return loaded

    # -- adapters ----------------------------------------------------------------------------------------------

    def _add_adapters(self, model: PreTrainedModel) -> PeftModel:
        # peft 0.21 tells the weights of one adapter from those of another by such a part of their names alone
        # (`_filter_state_dict_for_adapter_name`), and would leave some out of the file of the other.
        if clashes := [name for name, _ in model.named_modules() if name.rpartition(".")[2] in ROLES]:
            raise UsageError(
                f"No module of a base may be called as an adapter is, one of {list(ROLES)}; {type(model).__name__} has "
                f"{clashes[0]!r}. Rename it in the code of the model."
            )
        with warnings.catch_warnings():
            # peft 0.21 still asks transformers 5.2x by an old name; nothing a user could do about it.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            # An adapter on a tied embedding: nothing is merged here, and the head keeps the base's own weights.
            warnings.filterwarnings("ignore", message=".*tied layer is part of the adapter.*", category=UserWarning)
            # peft 0.21 sets a pattern of ranks for experts that transformers fuses, uses it, and yet warns of it.
            warnings.filterwarnings("ignore", message=".*_pattern keys did not match.*", category=RuntimeWarning)
            # LoRA's A matrices are random; a fixed seed makes the same command give the same pipeline.
            with torch.random.fork_rng():
                torch.manual_seed(0)
                try:
                    peft_model = get_peft_model(model, self._lora_config(model), adapter_name=ROLES[0])
                    for role in ROLES[1:]:
                        peft_model.add_adapter(role, self._lora_config(model))
                except (ValueError, NotImplementedError) as error:  # nothing matches, or a module of another kind
                    raise UsageError(
                        f"target_modules must name layers of {type(model).__name__} that LoRA can adapt; "
                        f"{self.adapter.target_modules!r} came: {_first_line(error)}"
                    ) from error
        if isinstance(model.get_output_embeddings(), BaseTunerLayer):
            raise UsageError(
                "target_modules must leave the output head alone (the KL is computed through it, frozen); "
                f"{self.adapter.target_modules!r} adapts it. Name the inner projections instead."
            )
        return peft_model

    def _lora_config(self, model: PreTrainedModel) -> LoraConfig:
        config = LoraConfig(task_type=TaskType.CAUSAL_LM, **asdict(self.adapter))
        if self.adapter.target_modules != "all-linear":
            return config
        # Routers that are linear layers and give more than one tensor (Llama 4, Phi-3.5-MoE) cannot carry an adapter.
        left_out = list(self._not_adaptable)
        # Mamba's kernels multiply by the weight itself, past an adapter, so that peft 0.21 refuses these modules
        # (`_check_lora_target_modules_mamba`); to "all" of the linear layers they do not belong.
        if model.config.model_type in _PAST_ADAPTERS:
            left_out += ["out_proj", "conv1d"]
        config.exclude_modules = left_out or None
        return config

    @property
    def role(self) -> str:
        """Who answers now: `"selector"`, `"generator"` or `"base"`."""
        return self._role

    @contextmanager
    def use(self, role: str) -> Iterator["LanguageModel"]:
        """Answer as `role` inside the block.

        A forward pass and its backward belong into one block: with gradient checkpointing the backward runs the
        forward again, and would do so with whatever adapter is active by then. Other threads wait: there is one
        set of adapters, and it cannot play two roles at once.
        """
        if role not in (*ROLES, BASE):
            raise UsageError(f"role must be one of {[*ROLES, BASE]}; {role!r} came.")
        with self._in_use:
            previous = self._role
            self._switch(role)
            try:
                yield self
            finally:
                self._switch(previous)

    def _switch(self, role: str) -> None:
        if role == self._role:
            return
        for layer in self._tuner_layers:
            layer.enable_adapters(role != BASE)
            if role != BASE:
                layer.set_adapter([role])
        self._role = role
        self._restore_requires_grad()

    def trainable_roles(self, roles: tuple[str, ...]) -> None:
        """Make exactly the adapters of `roles` trainable; the base never is."""
        self._trainable = [(p, role in roles) for role in ROLES for p in self.adapter_parameters(role).values()]
        self._restore_requires_grad()

    def _restore_requires_grad(self) -> None:
        # peft's switches also toggle requires_grad: inside disabled adapters a backward would silently give zero
        # gradients, and DDP built while one adapter is active would never reduce the other's. The flags are
        # therefore ours, constant, and put back after every switch.
        for parameter, trainable in self._trainable:
            parameter.requires_grad_(trainable)

    def adapter_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """Name -> parameter of one role's adapter, as `peft_model.named_parameters` names them."""
        # The layers are asked, since a name does not tell: peft 0.21 keeps the matrices of an embedding in a
        # ParameterDict ("lora_embedding_A.generator"), and a base may have modules of any name itself.
        found: dict[str, nn.Parameter] = {}
        for prefix, layer in self.peft_model.named_modules():
            if isinstance(layer, BaseTunerLayer):
                for kind in layer.adapter_layer_names:
                    found |= _named_parameters(getattr(layer, kind), role, f"{prefix}.{kind}")
        return found

    def is_untrained(self, role: str) -> bool:
        """Whether the adapter of `role` is still the identity.

        That is so where one of the two factors of every update B A is zero. Which one starts so depends on the layer:
        B of a linear layer, but A of an embedding (peft 0.21, `LoraLayer.reset_lora_parameters`).
        """
        pairs = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
        return all(
            any(not any(p.any() for p in factor.values()) for factor in factors)
            for layer in self._tuner_layers
            for pair in pairs
            if any(factors := [_named_parameters(getattr(layer, kind), role, kind) for kind in pair])
        )

    def save_adapters(self, folder: Path) -> None:
        """Write `folder/<role>/adapter_model.safetensors` and its config, for every role."""
        # "auto" would also write the whole frozen embedding where an adapter stands on it.
        self.peft_model.save_pretrained(
            str(folder), selected_adapters=list(ROLES), safe_serialization=True, save_embedding_layers=False
        )
        # peft 0.21 keeps target_modules as a set, whose order is another one in every process; the same pipeline is the
        # same bytes.
        for role in ROLES:
            file = folder / role / "adapter_config.json"
            settings = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(settings["target_modules"], list):
                settings["target_modules"].sort()
            file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")

    def load_adapters(self, folder: Path) -> None:
        """Read what `save_adapters` wrote.

        Raises:
            MismatchError: An adapter file is missing or does not fit this base and these LoRA settings.
        """
        for role in ROLES:
            file = folder / role / "adapter_model.safetensors"
            if not file.is_file():
                raise MismatchError(f"A bundle must hold {role}/adapter_model.safetensors; {file} is missing.")
            self._load_adapter(role, file)

    def _load_adapter(self, role: str, file: Path) -> None:
        # Not by peft: its loader (0.21) rewrites names of experts as it knows them from other architectures, and of
        # Laguna's shared experts none is found again.
        mine = {_name_in_file(name, role): p for name, p in self.adapter_parameters(role).items()}
        try:
            found = load_file(file)
        except (OSError, SafetensorError) as error:
            raise MismatchError(
                f"The {role} adapter in {file} must be readable, and is not: {_first_line(error)} Restore the bundle."
            ) from error
        if unknown := sorted(found.keys() - mine.keys()):
            raise MismatchError(f"The {role} adapter in {file} has weights that this base does not: {unknown[:2]}.")
        if missing := sorted(mine.keys() - found.keys()):
            raise MismatchError(
                f"The {role} adapter in {file} must hold every weight that target_modules="
                f"{self.adapter.target_modules!r} adapts; {len(missing)} are missing, such as {missing[0]!r}. "
                "Load it with the settings it was trained with."
            )
        if wrong := [name for name, p in mine.items() if found[name].shape != p.shape]:
            raise MismatchError(
                f"The {role} adapter in {file} must fit the base {self.name!r} with rank {self.adapter.r}: "
                f"{wrong[0]!r} has the shape {tuple(found[wrong[0]].shape)} in place of {tuple(mine[wrong[0]].shape)}. "
                "Load it over the base it was trained on."
            )
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(found[name])

    # -- the base alone ------------------------------------------------------------------------------------------

    @contextmanager
    def unwrapped(self) -> Iterator[PreTrainedModel]:
        """The base inside the block as it was before it got adapters: every layer stands in its own place again."""
        with self._in_use:
            wrapped = [
                (parent, name, child)
                for parent in self.base_model.modules()
                for name, child in parent.named_children()
                if isinstance(child, BaseTunerLayer) and not isinstance(parent, BaseTunerLayer)
            ]
            try:
                for parent, name, layer in wrapped:
                    setattr(parent, name, layer.get_base_layer())
                yield self.base_model
            finally:
                for parent, name, layer in wrapped:
                    setattr(parent, name, layer)

    def base_weights(self) -> dict[str, Tensor]:
        """The weights of the base by the names that they have without adapters."""
        # Names are not rewritten: peft 0.21 nests one wrapper in another where several parameters of a module are
        # adapted, as those of fused experts are ("mlp.experts.base_layer.base_layer.gate_up_proj").
        with self.unwrapped() as base:
            return dict(base.state_dict())

    def save_base(self, folder: Path) -> None:
        """Write the base and its tokenizer, unmerged, and read the base back to compare every tensor.

        transformers 5.23 converts weights while it writes and reads them (experts that a model fuses lie one by one in
        its files), so the files alone do not show whether what was written is what will be loaded. The comparison takes
        as much main memory as the base (of a quantized base: as much memory of its device).

        Raises:
            MismatchError: What is read back differs.
        """
        with self.unwrapped() as base:
            base.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            placed: dict[str, Any] = {"device_map": {"": str(self.device)}} if self.quantization else {}
            again = type(base).from_pretrained(folder, dtype=base.dtype, **placed)
            expected, found = base.state_dict(), again.state_dict()
        changed = sorted(expected.keys() ^ found.keys())
        changed += [name for name, value in expected.items() if name in found and not _is_same(value, found[name])]
        if changed:
            raise MismatchError(
                f"A copy of the base must hold the same weights; of {type(base).__name__} {len(changed)} of "
                f"{len(expected)} tensors came back different or not at all, such as {changed[0]!r}. Leave the base "
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
            position_ids_BQ: Where the tokens stand; default: one after the other, behind the cache.
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
        return output.last_hidden_state

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

    @torch.no_grad()
    def _check_causal(self) -> None:
        """No token may see a later one: then padding on the right changes nothing, and an answer explains no prompt."""
        first, second = (self._probe_ids(5, last=last) for last in (1, 2))
        try:
            seen = [self.hidden(ids, None)[:, :-1].float() for ids in (first, second)]
            with self.use("generator"):  # a router that is a linear layer, yet gives more than a tensor, as Llama 4's
                self.hidden(first, None)
        except Exception as error:  # whatever an architecture raises that is no language model by itself
            raise UsageError(
                f"The base must read plain rows of tokens; {type(self.base_model).__name__} cannot: "
                f"{type(error).__name__}: {_first_line(error)} Use another architecture, or other target_modules."
            ) from error
        if not self._agree(*seen):
            raise UsageError(
                f"The base must be causal, so that no token sees a later one; in {type(self.base_model).__name__} the "
                "last token changes what is read before it. Use a decoder (of BERT's kin: with is_decoder=true in its "
                "config.json)."
            )

    def _probe_ids(self, length: int, *, last: int = 0) -> Tensor:
        """A row `[1, T]` of some tokens, none of them special by its number in most vocabularies."""
        size = len(cast(Tensor, self.base_model.get_input_embeddings().weight))
        ids = torch.arange(length, device=self.device) * 7 + size // 2
        ids[-1] += last
        return (ids % size).unsqueeze(0)

    @torch.no_grad()
    def _probe(self, matches: Callable[[], bool]) -> bool:
        """Whether a way of reading several rows at once works; one that the architecture cannot do at all does not."""
        try:
            return matches()
        except Exception as error:  # masks of four dimensions, caches of another kind, positions: anything may come
            logger.debug("%s reads rows one by one: %s", type(self.base_model).__name__, error)
            return False

    def _agree(self, first: Tensor, second: Tensor) -> bool:
        """Whether two readings of the same tokens agree, as far as the number format of the base lets them."""
        allowed = 1e-3 if self.base_model.dtype == torch.float32 else 5e-2
        difference, size = (first.float() - second.float()).norm(), second.float().norm()
        return bool(torch.isfinite(difference)) and float(difference) <= allowed * float(size) + 1e-6

    def _branches_match(self) -> bool:
        text = text_config(self.base_model.config).to_dict()
        # A limited look-back that `shared_prefix_masks` does not know of shows only in long prompts.
        limits = {
            name for name, v in text.items() if ("window" in name or "chunk" in name) and type(v) is int and v > 0
        }
        if limits - _KNOWN_WINDOWS or not {*self._attention_types()[0]} <= {"full_attention", "sliding_attention"}:
            return False
        rows = self._probe_ids(11)
        prompt, replies = rows[:, :5], (rows[:, 5:8], rows[:, 8:])
        lengths_B, width = torch.tensor([5], device=self.device), 7  # two tokens of padding behind the prompt
        padded = nn.functional.pad(prompt, (0, 2))
        behind = Branches.of(2, 0, 3, self.device)
        cache = self.new_cache()
        self.hidden(padded, None, cache=cache)
        after_cache = self.hidden(
            torch.cat(replies, dim=1),
            self.shared_prefix_masks(lengths_B, width, behind, behind),
            position_ids_BQ=behind.positions(lengths_B),
            cache=cache,
        )
        tokens = Branches.prompt(width, self.device).followed_by(behind)
        in_one_row = self.hidden(
            torch.cat([padded, *replies], dim=1),
            self.shared_prefix_masks(lengths_B, width, tokens, behind),
            position_ids_BQ=tokens.positions(lengths_B),
        )[:, width:]
        alone = [self.hidden(torch.cat([prompt, reply], dim=1), None)[:, 5:] for reply in replies]
        expected = torch.cat(alone, dim=1)
        return self._agree(after_cache, expected) and self._agree(in_one_row, expected)

    def _left_padding_matches(self) -> bool:
        base: Any = self.base_model
        short, long = self._probe_ids(4), self._probe_ids(7)
        padding = torch.full_like(long[:, :3], int(self.tokenizer.eos_token_id))
        mask = torch.ones_like(long).repeat(2, 1)
        mask[0, :3] = 0

        def logits(ids: Tensor, mask: Tensor) -> Tensor:
            # Two steps: the second one reads from the cache.
            config = GenerationConfig(
                max_new_tokens=2,
                min_new_tokens=2,
                do_sample=False,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
            with self.autocast():
                found = base.generate(ids, attention_mask=mask, generation_config=config)
            return torch.stack(found.logits, dim=1)

        together = logits(torch.cat([torch.cat([padding, short], dim=1), long]), mask)
        alone = torch.cat([logits(ids, torch.ones_like(ids)) for ids in (short, long)])
        return self._agree(together, alone)

    @torch.no_grad()
    def _check_head(self) -> None:
        """Body then head must give the model's own logits, else log-probabilities would be silently wrong."""
        probe = torch.tensor([[self.tokenizer.eos_token_id] * 2], device=self.device)
        expected = self.base_model(input_ids=probe).logits.float()
        ids = torch.arange(min(3, expected.shape[-1]), device=self.device)
        try:
            found = self.head(self.hidden(probe, None)).float()
            rows = self.logits_for_positions(self.hidden(probe, None), ids)
            close = torch.allclose(found, expected, rtol=1e-2, atol=1e-2)
            close = close and torch.allclose(rows, expected[..., ids], rtol=5e-2, atol=5e-2)
        except RuntimeError:  # RemBERT's head does not even take hidden states of that size
            close = False
        if not close:
            raise UsageError(
                f"{type(self.base_model).__name__} changes its logits after the output head in a way that is not "
                "known here, or its hidden states before it (as BERT's kin do); selection and alignment would be "
                "wrong. Use another architecture or report it."
            )

    def shared_prefix_masks(
        self, prompt_lengths_B: Tensor, prompt_width: int, query: Branches, keys: Branches
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
        visible, distance = branch_visibility(prompt_lengths_B, prompt_width, query, keys)
        # What lies below bfloat16's range would become -inf there, and a padding row that sees nothing, NaN.
        dtype = torch.bfloat16 if self.mixed else self.base_model.dtype

        def additive(seen: Tensor) -> Tensor:
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            return mask.masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)

        types, window = self._attention_types()
        masks = {
            kind: additive(visible & (distance < window) if kind == "sliding_attention" else visible) for kind in types
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _attention_types(self) -> tuple[list[str], float]:
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
        raise UsageError(f"dtype must be 'auto', 'mixed' or one of {sorted(known)}; {dtype!r} came.")
    return known[dtype]


def _quantization(kind: str) -> Any:
    from transformers import BitsAndBytesConfig

    if kind == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    raise UsageError(f"quantization must be None, '4bit' or '8bit'; {kind!r} came.")


@torch.no_grad()
def _linear_without_tensor(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers whose output is no single tensor, seen in one pass over two tokens."""
    found: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: None if isinstance(output, Tensor) else found.append(name)

    hooks = [m.register_forward_hook(note(n)) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    try:
        model(input_ids=torch.tensor([[0, 1]], device=model.device))
    except Exception as error:  # `_check_causal` says it with more words
        logger.debug("%s does not read two tokens: %s", type(model).__name__, error)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _name_in_file(name: str, role: str) -> str:
    """How peft writes the name of an adapter's parameter: without the name of the adapter."""
    start, kind, end = name.rpartition(".lora_")
    return start + kind + ".".join(part for part in end.split(".") if part != role)


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same numbers of the same type, wherever they are."""
    return first.dtype == second.dtype and torch.equal(first.cpu(), second.cpu())


def _named_parameters(container: Any, role: str, prefix: str) -> dict[str, nn.Parameter]:
    """Parameters that a tuner layer keeps for one role in a ModuleDict or ParameterDict, by name."""
    if not isinstance(container, (nn.ModuleDict, nn.ParameterDict)) or role not in container:
        return {}
    mine = container[role]
    if isinstance(mine, nn.Parameter):
        return {f"{prefix}.{role}": mine}
    return dict(mine.named_parameters(f"{prefix}.{role}")) if isinstance(mine, nn.Module) else {}


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


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
