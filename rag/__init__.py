"""What people use: build a pipeline, train it, ask it, measure it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import indexes as _indexes  # noqa: F401  (sets the OpenMP wait policy before torch is imported)

if TYPE_CHECKING:
    from rag.answering.answer import Answer
    from rag.evaluation.evaluation import Evaluation, evaluate
    from rag.pipeline import RAG

_EXPORTS = {
    "Answer": "rag.answering.answer",
    "Evaluation": "rag.evaluation.evaluation",
    "RAG": "rag.pipeline",
    "evaluate": "rag.evaluation.evaluation",
}

__all__ = ["RAG", "Answer", "Evaluation", "evaluate"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'rag' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
