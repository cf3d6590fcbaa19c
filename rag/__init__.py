"""Build an index, create a pipeline, train it, ask it, evaluate it.

Everything below is imported on first use: ``import rag`` imports neither torch nor transformers nor faiss.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import indexes as _indexes  # noqa: F401  (sets the OpenMP wait policy before torch is imported)

if TYPE_CHECKING:
    from generator.configs import AdapterConfig, ChatConfig, DecodingConfig, ModelConfig
    from generator.generator import Generator
    from generator.prompts import AnswerPrompt, RankingPrompt
    from indexes.corpora.chunking import Chunker
    from indexes.corpora.corpus import Corpus
    from indexes.corpora.passage import Passage
    from indexes.directory.builder import build_index
    from indexes.directory.passage_index import PassageIndex
    from indexes.directory.writer import IndexWriter
    from indexes.encoder import Encoder
    from indexes.errors import DataError, MismatchError, RAGError, ResourceError, UsageError
    from rag.answering.answer import Answer, ScoredPassage
    from rag.answering.answer_mode import AnswerMode
    from rag.answering.answer_modes import ANSWER_MODES
    from rag.dro_trainer import DROTrainer
    from rag.evaluation.evaluation import Evaluation, evaluate
    from rag.pipeline import RAG
    from retriever.dense import Candidates, Retriever
    from retriever.selector import Selector, SelectorConfig
    from training.config import DROConfig
    from training.questions.example import QAExample
    from training.questions.loading import load_examples

_EXPORTS = {
    "ANSWER_MODES": "rag.answering.answer_modes",
    "AdapterConfig": "generator.configs",
    "Answer": "rag.answering.answer",
    "AnswerMode": "rag.answering.answer_mode",
    "AnswerPrompt": "generator.prompts",
    "Candidates": "retriever.dense",
    "ChatConfig": "generator.configs",
    "Chunker": "indexes.corpora.chunking",
    "Corpus": "indexes.corpora.corpus",
    "DROConfig": "training.config",
    "DROTrainer": "rag.dro_trainer",
    "DataError": "indexes.errors",
    "DecodingConfig": "generator.configs",
    "Encoder": "indexes.encoder",
    "Evaluation": "rag.evaluation.evaluation",
    "Generator": "generator.generator",
    "IndexWriter": "indexes.directory.writer",
    "MismatchError": "indexes.errors",
    "ModelConfig": "generator.configs",
    "Passage": "indexes.corpora.passage",
    "PassageIndex": "indexes.directory.passage_index",
    "QAExample": "training.questions.example",
    "RAG": "rag.pipeline",
    "RAGError": "indexes.errors",
    "RankingPrompt": "generator.prompts",
    "ResourceError": "indexes.errors",
    "Retriever": "retriever.dense",
    "ScoredPassage": "rag.answering.answer",
    "Selector": "retriever.selector",
    "SelectorConfig": "retriever.selector",
    "UsageError": "indexes.errors",
    "build_index": "indexes.directory.builder",
    "evaluate": "rag.evaluation.evaluation",
    "load_examples": "training.questions.loading",
}

__all__ = [
    "ANSWER_MODES",
    "RAG",
    "AdapterConfig",
    "Answer",
    "AnswerMode",
    "AnswerPrompt",
    "Candidates",
    "ChatConfig",
    "Chunker",
    "Corpus",
    "DROConfig",
    "DROTrainer",
    "DataError",
    "DecodingConfig",
    "Encoder",
    "Evaluation",
    "Generator",
    "IndexWriter",
    "MismatchError",
    "ModelConfig",
    "Passage",
    "PassageIndex",
    "QAExample",
    "RAGError",
    "RankingPrompt",
    "ResourceError",
    "Retriever",
    "ScoredPassage",
    "Selector",
    "SelectorConfig",
    "UsageError",
    "build_index",
    "evaluate",
    "load_examples",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'rag' has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
