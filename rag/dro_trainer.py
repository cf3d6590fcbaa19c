"""`DROTrainer` as users import it from `rag`: `training.DROTrainer` with `rag.evaluate` as its evaluation."""

from typing import Any

from rag.evaluation.evaluation import evaluate
from training import trainer


class DROTrainer(trainer.DROTrainer):
    """Trains the selector, the generator and the question side of the retriever of a RAG pipeline.

    The `training` package knows nothing of answers and metrics, so its trainer is given a function that evaluates; this
    one brings `rag.evaluate`. Everything else is inherited.

    Args:
        *args: As `training.DROTrainer`: the pipeline, a `DROConfig`, `train_dataset` and `eval_dataset`.
        evaluate: Scores the pipeline on `eval_dataset` after each round.
        **options: As `training.DROTrainer`.
    """

    def __init__(self, *args: Any, evaluate: trainer.Evaluate = evaluate, **options: Any) -> None:
        super().__init__(*args, evaluate=evaluate, **options)
