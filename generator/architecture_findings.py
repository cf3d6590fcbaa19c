"""What was found out about a base by trying it, with a key of everything that this depends on.

Trying takes some twenty passes over a few tokens, each of which reads all weights. A bundle keeps what was found; where
the key is the same when it is opened, nothing is tried again.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers import PreTrainedModel

from generator.configs import AdapterConfig

_NOT_BEHAVIOUR = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""Fields of a config that say where a model comes from and how it was saved; the key has the dtype as it was loaded."""


@dataclass(frozen=True, kw_only=True)
class ArchitectureFindings:
    """What a base can do besides being causal and having a plain head, without which there are no findings."""

    key: str
    """Of `architecture_key`; empty where something is unknown, which is equal to no other."""
    supports_shared_prefix: bool
    supports_left_padding: bool
    supports_packing: bool
    linear_without_tensor: list[str] = field(default_factory=list)
    """Names of linear layers that give something else than one tensor, and can carry no adapter."""

    def hold_for(self, key: str) -> bool:
        """Whether they are those of the base with this key."""
        return bool(key) and self.key == key


def architecture_key(model: PreTrainedModel, adapter: AdapterConfig, *, remote_code: bool) -> str:
    """A digest of what decides how a base computes, its weights left out; empty if that is not known.

    It covers the config, the classes of all modules with the functions that compute them, the dtype, the processor, the
    adapters, the versions of the libraries, and the code of this package.

    Args:
        model: The base, without adapters.
        adapter: The adapters that it gets.
        remote_code: Whether the code of the model's repository computes, which can change without a trace.
    """
    modules = list(model.modules())
    if remote_code or any("forward" in vars(module) for module in modules):  # code that somebody put in its place
        return ""
    facts = {
        "libraries": [library.__version__ for library in (torch, transformers, peft)],
        "package": _package_digest(),
        "config": {k: v for k, v in model.config.to_dict().items() if k not in _NOT_BEHAVIOUR},
        "attention": model.config._attn_implementation,
        "classes": sorted({f"{_origin(type(module))} {_origin(type(module).forward)}" for module in modules}),
        "dtype": str(model.dtype),
        "processor": _processor(model.device),
        "adapter": asdict(adapter),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _origin(code: Any) -> str:
    return f"{code.__module__}.{code.__qualname__}"


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else device.type


@cache
def _package_digest() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
