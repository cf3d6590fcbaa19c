"""What was learned, as files: adapters, retriever prior and question adapter (safetensors, no pickle).

A checkpoint is written into a temporary sibling folder and renamed, so a killed process leaves a whole one or none.
"""

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from indexes.errors import MismatchError
from retriever.selector import Selector

LEARNED = "retrieval.safetensors"


def _retrieval_modules(selector: Selector) -> dict[str, nn.Module]:
    return {"prior": selector.prior, "question_adapter": selector.retriever.adapter}


def save_learned(selector: Selector, folder: Path) -> None:
    """Write every learned weight under `folder` (replaced as a whole when it exists)."""
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    selector.language_model.save_adapters(partial)
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, module in _retrieval_modules(selector).items()
        for key, value in module.state_dict().items()
    }
    save_file(tensors, partial / LEARNED)
    for card in partial.rglob("README.md"):  # peft writes a template card per adapter; the bundle has its own
        card.unlink()
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def load_learned(selector: Selector, folder: Path) -> None:
    """Read what `save_learned` wrote into the living modules.

    Raises:
        MismatchError: A file is missing or does not fit.
    """
    selector.language_model.load_adapters(folder)
    file = folder / LEARNED
    if not file.is_file():
        raise MismatchError(f"A checkpoint must hold {LEARNED}; {file} is missing.")
    tensors = load_file(file)
    for name, module in _retrieval_modules(selector).items():
        own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        _load_module(module, own, file)


def _load_module(module: nn.Module, tensors: dict[str, torch.Tensor], file: Path) -> None:
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if shapes != found:
        raise MismatchError(
            f"{file} must hold tensors of shapes {shapes}; it holds {found}. It belongs to another encoder or to "
            "another question-adapter rank."
        )
    module.load_state_dict(tensors)
