"""Build an index, create a pipeline, train it, ask it, evaluate it.

Everything below is imported on first use: ``import rag`` imports neither torch nor transformers nor faiss.
"""

from typing import TYPE_CHECKING

from indexes.lazy_exports import lazy_exports  # `indexes` sets the OpenMP wait policy before torch is imported

if TYPE_CHECKING:
    from generator.configs import AdapterConfig, ChatConfig, DecodingConfig, ModelConfig
    from generator.generator import Generator
    from generator.prompts import AnswerPrompt, QuestionPrompt, RankingPrompt
    from indexes.corpora.chunking import Chunker
    from indexes.corpora.corpus import Corpus
    from indexes.corpora.corpus_formats import CORPUS_FORMATS
    from indexes.corpora.passage import Passage
    from indexes.directory.builder import build_index
    from indexes.directory.passage_index import PassageIndex
    from indexes.directory.writer import IndexWriter
    from indexes.encoder import Encoder
    from indexes.errors import DataError, MismatchError, RAGError, ResourceError, UsageError
    from indexes.vectors.vector_stores import VECTOR_STORES
    from rag.answering.answer import Answer, ScoredPassage
    from rag.answering.answer_mode import AnswerMode
    from rag.answering.answer_modes import ANSWER_MODES
    from rag.dro_trainer import DROTrainer
    from rag.evaluation.evaluation import Evaluation, evaluate
    from rag.evaluation.metric import METRICS, Metric
    from rag.forgetting.retention_tasks import RETENTION_TASKS
    from rag.pipeline import RAG
    from retriever.candidates import Candidates
    from retriever.retriever import Retriever
    from retriever.retrievers import RETRIEVERS
    from retriever.selector import Selector
    from retriever.selector_config import SelectorConfig
    from retriever.selectors import SELECTORS
    from training.config import (
        DROConfig,
        EncoderTrainingConfig,
        EStepConfig,
        MStepConfig,
        RetrieverTrainingConfig,
        SelfAugConfig,
        SupervisedConfig,
    )
    from training.questions.example import QAExample
    from training.questions.loading import load_examples
    from training.questions.question_formats import QUESTION_FORMATS
    from training.round_callback import RoundCallback, TrainingState, TrainOutput

_EXPORTS = {
    "ANSWER_MODES": "rag.answering.answer_modes",
    "AdapterConfig": "generator.configs",
    "Answer": "rag.answering.answer",
    "AnswerMode": "rag.answering.answer_mode",
    "AnswerPrompt": "generator.prompts",
    "CORPUS_FORMATS": "indexes.corpora.corpus_formats",
    "Candidates": "retriever.candidates",
    "ChatConfig": "generator.configs",
    "Chunker": "indexes.corpora.chunking",
    "Corpus": "indexes.corpora.corpus",
    "DROConfig": "training.config",
    "DROTrainer": "rag.dro_trainer",
    "DataError": "indexes.errors",
    "DecodingConfig": "generator.configs",
    "EStepConfig": "training.config",
    "Encoder": "indexes.encoder",
    "EncoderTrainingConfig": "training.config",
    "Evaluation": "rag.evaluation.evaluation",
    "Generator": "generator.generator",
    "IndexWriter": "indexes.directory.writer",
    "METRICS": "rag.evaluation.metric",
    "MStepConfig": "training.config",
    "Metric": "rag.evaluation.metric",
    "MismatchError": "indexes.errors",
    "ModelConfig": "generator.configs",
    "Passage": "indexes.corpora.passage",
    "PassageIndex": "indexes.directory.passage_index",
    "QAExample": "training.questions.example",
    "QuestionPrompt": "generator.prompts",
    "QUESTION_FORMATS": "training.questions.question_formats",
    "RAG": "rag.pipeline",
    "RAGError": "indexes.errors",
    "RETENTION_TASKS": "rag.forgetting.retention_tasks",
    "RETRIEVERS": "retriever.retrievers",
    "RankingPrompt": "generator.prompts",
    "ResourceError": "indexes.errors",
    "Retriever": "retriever.retriever",
    "RetrieverTrainingConfig": "training.config",
    "RoundCallback": "training.round_callback",
    "SELECTORS": "retriever.selectors",
    "ScoredPassage": "rag.answering.answer",
    "Selector": "retriever.selector",
    "SelectorConfig": "retriever.selector_config",
    "SelfAugConfig": "training.config",
    "SupervisedConfig": "training.config",
    "TrainOutput": "training.round_callback",
    "TrainingState": "training.round_callback",
    "UsageError": "indexes.errors",
    "VECTOR_STORES": "indexes.vectors.vector_stores",
    "build_index": "indexes.directory.builder",
    "evaluate": "rag.evaluation.evaluation",
    "load_examples": "training.questions.loading",
}

__all__ = [
    "ANSWER_MODES",
    "CORPUS_FORMATS",
    "METRICS",
    "QUESTION_FORMATS",
    "RAG",
    "RETENTION_TASKS",
    "RETRIEVERS",
    "SELECTORS",
    "VECTOR_STORES",
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
    "EStepConfig",
    "Encoder",
    "EncoderTrainingConfig",
    "Evaluation",
    "Generator",
    "IndexWriter",
    "MStepConfig",
    "Metric",
    "MismatchError",
    "ModelConfig",
    "Passage",
    "PassageIndex",
    "QAExample",
    "QuestionPrompt",
    "RAGError",
    "RankingPrompt",
    "ResourceError",
    "Retriever",
    "RetrieverTrainingConfig",
    "RoundCallback",
    "ScoredPassage",
    "Selector",
    "SelectorConfig",
    "SelfAugConfig",
    "SupervisedConfig",
    "TrainOutput",
    "TrainingState",
    "UsageError",
    "build_index",
    "evaluate",
    "load_examples",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
