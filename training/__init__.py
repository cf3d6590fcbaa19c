"""The EM loop: estimate which documents explain the answer, then make them and the answer more likely."""

from typing import TYPE_CHECKING

from indexes.lazy_exports import lazy_exports  # `indexes` sets the OpenMP wait policy before torch is imported

if TYPE_CHECKING:
    from training.config import DROConfig
    from training.estimation import EStep, Posterior
    from training.maximization import JointModel, MStepTrainer
    from training.questions.example import QAExample
    from training.questions.gold_ids import check_gold_ids
    from training.questions.loading import load_examples
    from training.questions.self_retrieval import identical_ids, retrieve
    from training.trainer import DROTrainer

_EXPORTS = {
    "DROConfig": "training.config",
    "DROTrainer": "training.trainer",
    "EStep": "training.estimation",
    "JointModel": "training.maximization",
    "MStepTrainer": "training.maximization",
    "Posterior": "training.estimation",
    "QAExample": "training.questions.example",
    "check_gold_ids": "training.questions.gold_ids",
    "identical_ids": "training.questions.self_retrieval",
    "load_examples": "training.questions.loading",
    "retrieve": "training.questions.self_retrieval",
}

__all__ = [
    "DROConfig",
    "DROTrainer",
    "EStep",
    "JointModel",
    "MStepTrainer",
    "Posterior",
    "QAExample",
    "check_gold_ids",
    "identical_ids",
    "load_examples",
    "retrieve",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
