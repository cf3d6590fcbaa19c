"""What the name of a model can be: an id on the Hub, or a GGUF file of a repository there."""

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not re-exported

GGUF_SUFFIX = ".gguf"


def is_model_id(name: str) -> bool:
    """Whether a text can be the id of a model on the Hub, with or without an owner.

    Models without an owner are the Hub's first ones ("gpt2"), and names that sentence-transformers completes
    ("all-MiniLM-L6-v2").
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def hub_file(name: str) -> tuple[str, str] | None:
    """Repository and file of "owner/repo:file.gguf"; None for any other name."""
    repository, colon, file = name.partition(":")
    is_file = bool(colon) and file.lower().endswith(GGUF_SUFFIX) and "/" in repository and is_model_id(repository)
    return (repository, file) if is_file else None
