"""The EM loop: estimate which passages explain the answer, then make them and the answer more likely."""

from typing import TYPE_CHECKING

from indexes.lazy_exports import lazy_exports  # `indexes` sets the OpenMP wait policy before torch is imported

if TYPE_CHECKING:
    from training.config import (
        DROConfig,
        EncoderTrainingConfig,
        EStepConfig,
        MStepConfig,
        RetrieverTrainingConfig,
        SelfAugConfig,
        SupervisedConfig,
    )
    from training.estimation import EStep
    from training.joint_model import JointModel
    from training.maximization import MStepTrainer
    from training.posterior import EStepDiagnostics, Posterior
    from training.questions.example import QAExample
    from training.questions.gold_ids import check_gold_ids
    from training.questions.loading import load_examples
    from training.questions.question_format import QuestionFormat
    from training.questions.question_formats import QUESTION_FORMATS
    from training.questions.self_retrieval import identical_ids, retrieve
    from training.round_callback import RoundCallback, TrainingState, TrainOutput
    from training.trainer import DROTrainer

_EXPORTS = {
    "DROConfig": "training.config",
    "EStepConfig": "training.config",
    "EncoderTrainingConfig": "training.config",
    "MStepConfig": "training.config",
    "RetrieverTrainingConfig": "training.config",
    "SelfAugConfig": "training.config",
    "SupervisedConfig": "training.config",
    "EStepDiagnostics": "training.posterior",
    "DROTrainer": "training.trainer",
    "EStep": "training.estimation",
    "JointModel": "training.joint_model",
    "MStepTrainer": "training.maximization",
    "Posterior": "training.posterior",
    "QAExample": "training.questions.example",
    "QUESTION_FORMATS": "training.questions.question_formats",
    "QuestionFormat": "training.questions.question_format",
    "RoundCallback": "training.round_callback",
    "TrainOutput": "training.round_callback",
    "TrainingState": "training.round_callback",
    "check_gold_ids": "training.questions.gold_ids",
    "identical_ids": "training.questions.self_retrieval",
    "load_examples": "training.questions.loading",
    "retrieve": "training.questions.self_retrieval",
}

__all__ = [
    "QUESTION_FORMATS",
    "DROConfig",
    "DROTrainer",
    "EStep",
    "EStepConfig",
    "EStepDiagnostics",
    "EncoderTrainingConfig",
    "JointModel",
    "MStepConfig",
    "MStepTrainer",
    "Posterior",
    "QAExample",
    "QuestionFormat",
    "RetrieverTrainingConfig",
    "RoundCallback",
    "SelfAugConfig",
    "SupervisedConfig",
    "TrainOutput",
    "TrainingState",
    "check_gold_ids",
    "identical_ids",
    "load_examples",
    "retrieve",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
