"""What was learned, as files: adapters, retriever prior and question adapter (safetensors, no pickle).

A checkpoint is written under another name in the same folder, synced to the disk and renamed: a process that is killed
while it replaces one leaves the old one or the new one.
"""

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from indexes.atomic_files import readable_directory, replace_directory
from indexes.errors import MismatchError
from retriever.selector import Selector

LEARNED = "retrieval.safetensors"
_QUESTION_ADAPTER = "question_adapter."


def save_learned(selector: Selector, folder: Path, *, also: Callable[[Path], object] | None = None) -> None:
    """Write every learned weight under `folder` (replaced as a whole when it exists).

    Args:
        selector: Whose weights, its language model's adapters and its retriever's included.
        folder: The folder of the checkpoint.
        also: Writes further files into the folder that it is passed.
    """

    def write(partial: Path) -> None:
        write_learned(selector, partial)
        if also is not None:
            also(partial)

    replace_directory(folder, write)


def write_learned(selector: Selector, folder: Path) -> None:
    """The files of a checkpoint, into a new folder that the caller puts in its place."""
    folder.mkdir(parents=True)
    selector.language_model.save_adapters(folder)
    save_file({key: value.detach().cpu().contiguous() for key, value in _state(selector).items()}, folder / LEARNED)
    for card in folder.rglob("README.md"):  # peft writes a template card per adapter; the bundle has its own
        card.unlink()


def load_learned(selector: Selector, folder: Path) -> None:
    """Read what `save_learned` wrote into the living modules.

    Raises:
        MismatchError: A file is missing, damaged, or does not fit.
    """
    folder = readable_directory(folder)
    selector.language_model.load_adapters(folder)
    file = folder / LEARNED
    if not file.is_file():
        raise MismatchError(f"A checkpoint must hold {LEARNED}, but {file} is missing.")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise MismatchError(f"{file} must be a safetensors file, but it is damaged ({error}). Train again.") from error
    shapes = {key: tuple(value.shape) for key, value in _state(selector).items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if shapes != found:
        raise MismatchError(
            f"{file} must hold tensors of shapes {shapes}; it holds {found}. It belongs to another selector, another "
            "encoder or another question-adapter rank."
        )
    selector.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(_QUESTION_ADAPTER)})
    selector.retriever.adapter.load_state_dict(
        {k.removeprefix(_QUESTION_ADAPTER): v for k, v in tensors.items() if k.startswith(_QUESTION_ADAPTER)}
    )


def _state(selector: Selector) -> dict[str, Tensor]:
    """What the selector and the question side of its retriever have learned, by name."""
    question_adapter = selector.retriever.adapter.state_dict()
    return {**selector.state_dict(), **{f"{_QUESTION_ADAPTER}{key}": value for key, value in question_adapter.items()}}
