"""`DROTrainer` as users import it from `rag`: `training.DROTrainer` with `rag.evaluate` as its evaluation."""

from typing import Any

from rag.evaluation.evaluation import evaluate
from training import trainer
from training.config import DROConfig


class DROTrainer(trainer.DROTrainer):
    """Trains the selector, the generator and the question side of the retriever of a RAG pipeline.

    The `training` package knows nothing of answers and metrics, so its trainer is given a function that evaluates; this
    one brings `rag.evaluate`. Everything else is inherited.

    Args:
        rag: The pipeline; trained in place.
        config: Hyperparameters.
        compute_metrics: Scores the pipeline on `eval_dataset` after each round.
        **options: `train_dataset`, `eval_dataset`, `output_dir`, ...: as `training.DROTrainer`.
    """

    def __init__(
        self,
        rag: trainer.TrainableRAG,
        config: DROConfig,
        *,
        compute_metrics: trainer.ComputeMetrics = evaluate,
        **options: Any,
    ) -> None:
        super().__init__(rag, config, compute_metrics=compute_metrics, **options)
