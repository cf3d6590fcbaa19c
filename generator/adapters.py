"""Named LoRA adapters over one frozen base: adding, switching, training, saving and loading them.

A base carries one adapter per role. `use("selector")` and `use("generator")` activate it, `use("base")` deactivates all
of them: that is the reference distribution of SelfAug.
"""

import json
import logging
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
from transformers import PreTrainedModel

from generator.configs import AdapterConfig
from generator.lora_linear import LoraLinear
from indexes.errors import MismatchError, UsageError

logger = logging.getLogger(__name__)

ROLES = ("selector", "generator")
BASE = "base"
_PAST_ADAPTERS = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}


class Adapters:
    """The adapters of one base, one per role.

    Args:
        model: A causal LM; it is frozen, and gets an adapter for each role.
        config: LoRA settings, the same for every role.
        linear_without_tensor: Names of the linear layers whose output is no single tensor; None: the base is tried.

    Raises:
        UsageError: `config.target_modules` names no layer that LoRA can adapt, or the output head, or a module of the
            base has the name of a role.
    """

    def __init__(
        self, model: PreTrainedModel, config: AdapterConfig, *, linear_without_tensor: list[str] | None = None
    ) -> None:
        self.config = config
        if linear_without_tensor is None:
            linear_without_tensor = _linear_without_tensor(model)
        self.linear_without_tensor = linear_without_tensor
        self.peft_model = self._add(model)
        self._tuner_layers = [m for m in self.peft_model.modules() if isinstance(m, BaseTunerLayer)]
        self._lora_linears = [m for m in self.peft_model.modules() if isinstance(m, LoraLinear)]
        not_switched = set(map(id, self._lora_linears))
        self._switched_by_peft = [layer for layer in self._tuner_layers if id(layer) not in not_switched]
        self._role = ""
        self._in_use = RLock()
        self.set_trainable(ROLES)
        self._switch(BASE)

    def __repr__(self) -> str:
        return f"Adapters({list(ROLES)}, active={self._role!r}, {self.config})"

    def _add(self, model: PreTrainedModel) -> PeftModel:
        # peft 0.21 distinguishes the weights of adapters only by such a part of their names
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
                        f"target_modules must name layers of {type(model).__name__} that LoRA can adapt, "
                        f"got {self.config.target_modules!r}: {first_line(error)}"
                    ) from error
        if isinstance(model.get_output_embeddings(), BaseTunerLayer):
            raise UsageError(
                "target_modules must not include the output head (the KL is computed through it, frozen); "
                f"{self.config.target_modules!r} adapts it. Name the inner projections instead."
            )
        return peft_model

    def _lora_config(self, model: PreTrainedModel) -> LoraConfig:
        config = LoraConfig(task_type=TaskType.CAUSAL_LM, **asdict(self.config))
        LoraLinear.register(config)
        if self.config.target_modules != "all-linear":
            return config
        # Routers that are linear layers and give more than one tensor (Llama 4, Phi-3.5-MoE) cannot carry an adapter.
        left_out = list(self.linear_without_tensor)
        # Mamba's kernels multiply by the weight itself, past an adapter, so that peft 0.21 refuses these modules
        # (`_check_lora_target_modules_mamba`); to "all" of the linear layers they do not belong.
        if model.config.model_type in _PAST_ADAPTERS:
            left_out += ["out_proj", "conv1d"]
        config.exclude_modules = left_out or None
        return config

    @property
    def role(self) -> str:
        """The active adapter: `"selector"`, `"generator"`, or `"base"` where all are off."""
        return self._role

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Activate the adapter of `role` inside the block; `"base"` deactivates all.

        A forward pass and its backward belong into one block: with gradient checkpointing the backward runs the
        forward again, with whatever adapter is active by then. Other threads wait: only one adapter can be active.
        """
        if role not in (*ROLES, BASE):
            raise UsageError(f"role must be one of {[*ROLES, BASE]}, got {role!r}.")
        with self._in_use:
            previous = self._role
            self._switch(role)
            try:
                yield
            finally:
                self._switch(previous)

    def _switch(self, role: str) -> None:
        if role == self._role:
            return
        for linear in self._lora_linears:
            linear.switch(None if role == BASE else role)
        for layer in self._switched_by_peft:
            layer.enable_adapters(role != BASE)
            if role != BASE:
                layer.set_adapter([role])
        self._role = role
        if self._switched_by_peft:
            self._restore_requires_grad()

    def set_trainable(self, roles: tuple[str, ...]) -> None:
        """Make exactly the adapters of `roles` trainable; the base never is."""
        self._trainable = [(p, role in roles) for role in ROLES for p in self.parameters(role).values()]
        self._restore_requires_grad()

    def _restore_requires_grad(self) -> None:
        # peft's switches also toggle requires_grad: inside disabled adapters a backward would silently give zero
        # gradients, and DDP built while one adapter is active would never reduce the other's. The flags are
        # therefore ours, constant, and put back after every switch.
        for parameter, trainable in self._trainable:
            parameter.requires_grad_(trainable)

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """Name -> parameter of one role's adapter, as `peft_model.named_parameters` names them."""
        # The layers are asked, since a name does not tell: peft 0.21 keeps the matrices of an embedding in a
        # ParameterDict ("lora_embedding_A.generator"), and a base may have modules of any name itself.
        found: dict[str, nn.Parameter] = {}
        for prefix, layer in self.peft_model.named_modules():
            if isinstance(layer, BaseTunerLayer):
                for kind in layer.adapter_layer_names:
                    found |= _named_parameters(getattr(layer, kind), role, f"{prefix}.{kind}")
        return found

    def base_parameters(self) -> list[nn.Parameter]:
        """The parameters of the base."""
        adapted = {id(parameter) for role in ROLES for parameter in self.parameters(role).values()}
        return [parameter for parameter in self.peft_model.parameters() if id(parameter) not in adapted]

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

    def save(self, folder: Path) -> None:
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

    def load(self, folder: Path, base_name: str) -> None:
        """Read what `save` wrote.

        Args:
            folder: Where it was written.
            base_name: Name of the base, for error messages.

        Raises:
            MismatchError: An adapter file is missing or does not fit this base and these LoRA settings.
        """
        for role in ROLES:
            file = folder / role / "adapter_model.safetensors"
            if not file.is_file():
                raise MismatchError(f"A bundle must hold {role}/adapter_model.safetensors; {file} is missing.")
            self._load_role(role, file, base_name)

    def _load_role(self, role: str, file: Path, base_name: str) -> None:
        # Not by peft: its loader (0.21) rewrites names of experts as it knows them from other architectures, and of
        # Laguna's shared experts none is found again.
        mine = {_name_in_file(name, role): p for name, p in self.parameters(role).items()}
        try:
            found = load_file(file)
        except (OSError, SafetensorError) as error:
            raise MismatchError(
                f"The {role} adapter in {file} must be readable, and is not: {first_line(error)} Restore the bundle."
            ) from error
        if unknown := sorted(found.keys() - mine.keys()):
            raise MismatchError(f"The {role} adapter in {file} has weights that this base does not: {unknown[:2]}.")
        if missing := sorted(mine.keys() - found.keys()):
            raise MismatchError(
                f"The {role} adapter in {file} must hold every weight that target_modules="
                f"{self.config.target_modules!r} adapts; {len(missing)} are missing, such as {missing[0]!r}. "
                "Load it with the settings it was trained with."
            )
        if wrong := [name for name, p in mine.items() if found[name].shape != p.shape]:
            raise MismatchError(
                f"The {role} adapter in {file} must fit the base {base_name!r} with rank {self.config.r}: "
                f"{wrong[0]!r} has the shape {tuple(found[wrong[0]].shape)} in place of {tuple(mine[wrong[0]].shape)}. "
                "Load it over the base it was trained on."
            )
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(found[name])

    @contextmanager
    def unwrapped(self) -> Iterator[PreTrainedModel]:
        """The base inside the block as it was before it got adapters: every layer stands in its own place again."""
        with self._in_use:
            base = cast(PreTrainedModel, self.peft_model.base_model.model)
            wrapped = [
                (parent, name, child)
                for parent in base.modules()
                for name, child in parent.named_children()
                if isinstance(child, BaseTunerLayer) and not isinstance(parent, BaseTunerLayer)
            ]
            try:
                for parent, name, layer in wrapped:
                    setattr(parent, name, layer.get_base_layer())
                yield base
            finally:
                for parent, name, layer in wrapped:
                    setattr(parent, name, layer)


@torch.no_grad()
def _linear_without_tensor(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers whose output is no single tensor, seen in one pass over two tokens."""
    found: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: None if isinstance(output, Tensor) else found.append(name)

    hooks = [m.register_forward_hook(note(n)) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    try:
        model(input_ids=torch.tensor([[0, 1]], device=model.device))
    except Exception as error:  # `check_causal` raises an error about it
        logger.debug("%s does not read two tokens: %s", type(model).__name__, error)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _name_in_file(name: str, role: str) -> str:
    """How peft writes the name of an adapter's parameter: without the name of the adapter."""
    start, kind, end = name.rpartition(".lora_")
    return start + kind + ".".join(part for part in end.split(".") if part != role)


def _named_parameters(container: Any, role: str, prefix: str) -> dict[str, nn.Parameter]:
    """Parameters that a tuner layer keeps for one role in a ModuleDict or ParameterDict, by name."""
    if not isinstance(container, (nn.ModuleDict, nn.ParameterDict)) or role not in container:
        return {}
    mine = container[role]
    if isinstance(mine, nn.Parameter):
        return {f"{prefix}.{role}": mine}
    return dict(mine.named_parameters(f"{prefix}.{role}")) if isinstance(mine, nn.Module) else {}


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
