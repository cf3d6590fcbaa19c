"""From a question to candidates, and from candidates to permutations."""

from typing import TYPE_CHECKING

from indexes.lazy_exports import lazy_exports  # `indexes` sets the OpenMP wait policy before torch is imported

if TYPE_CHECKING:
    from indexes.encoder import Encoder
    from retriever.candidates import Candidates, Explanation
    from retriever.dense import DenseRetriever
    from retriever.hybrid import BM25Retriever, HybridRetriever
    from retriever.listwise_selector import ListwiseSelector
    from retriever.permutations import Permutations
    from retriever.plackett_luce_selector import PlackettLuceSelector
    from retriever.question_adapter import QuestionAdapter
    from retriever.question_likelihood_selector import QuestionLikelihoodSelector
    from retriever.retriever import Queries, Retriever
    from retriever.retriever_prior import RetrieverPrior
    from retriever.retrievers import RETRIEVERS
    from retriever.selector import Selector
    from retriever.selector_config import QuestionLikelihoodOptions, SamplingConfig, SelectorConfig
    from retriever.selectors import SELECTORS

_EXPORTS = {
    "BM25Retriever": "retriever.hybrid",
    "Candidates": "retriever.candidates",
    "DenseRetriever": "retriever.dense",
    "Encoder": "indexes.encoder",
    "Explanation": "retriever.candidates",
    "HybridRetriever": "retriever.hybrid",
    "ListwiseSelector": "retriever.listwise_selector",
    "Permutations": "retriever.permutations",
    "PlackettLuceSelector": "retriever.plackett_luce_selector",
    "Queries": "retriever.retriever",
    "QuestionAdapter": "retriever.question_adapter",
    "QuestionLikelihoodOptions": "retriever.selector_config",
    "QuestionLikelihoodSelector": "retriever.question_likelihood_selector",
    "RETRIEVERS": "retriever.retrievers",
    "Retriever": "retriever.retriever",
    "RetrieverPrior": "retriever.retriever_prior",
    "SELECTORS": "retriever.selectors",
    "SamplingConfig": "retriever.selector_config",
    "Selector": "retriever.selector",
    "SelectorConfig": "retriever.selector_config",
}

__all__ = [
    "RETRIEVERS",
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
    "Queries",
    "QuestionAdapter",
    "QuestionLikelihoodOptions",
    "QuestionLikelihoodSelector",
    "Retriever",
    "RetrieverPrior",
    "SamplingConfig",
    "Selector",
    "SelectorConfig",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
