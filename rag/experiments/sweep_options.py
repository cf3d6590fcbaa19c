"""Options of a sweep that need no torch: the invented world, and where a sweep differs from `DROConfig`'s defaults."""

from dataclasses import dataclass
from typing import Any

from indexes.errors import UsageError

DOMAIN_NAMES = ("unseen", "encyclopedia")

SHARED_DEFAULTS: dict[str, Any] = {
    # Warm-up towards gold passages would tell which they are, and warm-up towards the retriever's order would only
    # sharpen the prior until nothing else is ever drawn.
    "supervised.num_train_epochs": 0,
    "selfaug.permutations": "one",
    "metric_for_best_model": "exact_match",
}
"""Settings of training in which a sweep differs from `DROConfig`'s defaults."""


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """An invented world in place of files (`rag.worlds.world`)."""

    seed: int = 42
    domain: str = "unseen"
    """"unseen", which the tiny base model was not trained on, or "encyclopedia", whose wording it was."""
    similar_names: int = 6
    """Number of other entities with names similar to the one asked about."""
    train_questions: int = 256
    eval_questions: int = 64
    test_questions: int = 320

    def __post_init__(self) -> None:
        if self.domain not in DOMAIN_NAMES:
            raise UsageError(f"domain must be one of {list(DOMAIN_NAMES)}, got {self.domain!r}.")
