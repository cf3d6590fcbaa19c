"""From a question to candidates, and from candidates to permutations."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import indexes as _indexes  # noqa: F401  (sets the OpenMP wait policy before torch is imported)

if TYPE_CHECKING:
    from indexes.encoder import Encoder
    from retriever.dense import Candidates, DenseRetriever, Explanation, QuestionAdapter, Retriever
    from retriever.hybrid import BM25Retriever, HybridRetriever
    from retriever.listwise_selector import ListwiseSelector, RetrieverPrior
    from retriever.permutations import Permutations
    from retriever.plackett_luce_selector import PlackettLuceSelector
    from retriever.selector import SamplingConfig, Selector, SelectorConfig
    from retriever.selectors import SELECTORS

_EXPORTS = {
    "BM25Retriever": "retriever.hybrid",
    "Candidates": "retriever.dense",
    "DenseRetriever": "retriever.dense",
    "Encoder": "indexes.encoder",
    "Explanation": "retriever.dense",
    "HybridRetriever": "retriever.hybrid",
    "ListwiseSelector": "retriever.listwise_selector",
    "Permutations": "retriever.permutations",
    "PlackettLuceSelector": "retriever.plackett_luce_selector",
    "QuestionAdapter": "retriever.dense",
    "Retriever": "retriever.dense",
    "RetrieverPrior": "retriever.listwise_selector",
    "SELECTORS": "retriever.selectors",
    "SamplingConfig": "retriever.selector",
    "Selector": "retriever.selector",
    "SelectorConfig": "retriever.selector",
}

__all__ = [
    "SELECTORS",
    "BM25Retriever",
    "Candidates",
    "DenseRetriever",
    "Encoder",
    "Explanation",
    "HybridRetriever",
    "ListwiseSelector",
    "Permutations",
    "PlackettLuceSelector",
    "QuestionAdapter",
    "Retriever",
    "RetrieverPrior",
    "SamplingConfig",
    "Selector",
    "SelectorConfig",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'retriever' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
