"""What was learned, as files: adapters, retriever prior and question adapter (safetensors, no pickle).

A checkpoint is written beside its place, synced to the disk and renamed: a process that is killed while it replaces one
leaves the old one or the new one.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from indexes.atomic_files import replace_folder, standing_folder
from indexes.errors import MismatchError
from retriever.selector import Selector

LEARNED = "retrieval.safetensors"


def _retrieval_modules(selector: Selector) -> dict[str, nn.Module]:
    return {"prior": selector.prior, "question_adapter": selector.retriever.adapter}


def save_learned(selector: Selector, folder: Path) -> None:
    """Write every learned weight under `folder` (replaced as a whole when it exists)."""
    replace_folder(folder, lambda partial: write_learned(selector, partial))


def write_learned(selector: Selector, folder: Path) -> None:
    """The files of a checkpoint, into a new folder that the caller puts in its place."""
    folder.mkdir(parents=True)
    selector.language_model.save_adapters(folder)
    tensors = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, module in _retrieval_modules(selector).items()
        for key, value in module.state_dict().items()
    }
    save_file(tensors, folder / LEARNED)
    for card in folder.rglob("README.md"):  # peft writes a template card per adapter; the bundle has its own
        card.unlink()


def load_learned(selector: Selector, folder: Path) -> None:
    """Read what `save_learned` wrote into the living modules.

    Raises:
        MismatchError: A file is missing, damaged, or does not fit.
    """
    folder = standing_folder(folder)
    selector.language_model.load_adapters(folder)
    file = folder / LEARNED
    if not file.is_file():
        raise MismatchError(f"A checkpoint must hold {LEARNED}, but {file} is missing.")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise MismatchError(f"{file} must be a safetensors file, but it is damaged ({error}). Train again.") from error
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
