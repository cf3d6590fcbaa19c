"""A recipe: one training method as settings of the one trainer and the one pipeline.

A recipe says three things: what its selector may do, how its pipeline answers, and which settings of `DROConfig` it
fixes. Everything else (questions, rounds, learning rates, seeds) is shared by the trials of a sweep, so that they
differ by their recipe alone. Shared settings never override what a recipe fixes: a setting that suits DRO (enumeration,
another objective of the retriever, a pool of candidates) would otherwise change a baseline under the baseline's name.

A new recipe is one registration in `rag.experiments.recipes.RECIPES`; see `examples/new_recipe.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from indexes.errors import UsageError
from rag.answering.answer_modes import PERMUTATION

SELFAUG_SUFFIX = "_selfaug"
# A softmax at this temperature puts all probability on its largest logit.
_ALMOST_ZERO_TEMPERATURE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train and to answer.

    Attributes:
        name: The kind under which it is registered; names of trials begin with it.
        label: For tables and reports.
        training: The settings of `DROConfig` that make the recipe, by their dotted names; None: nothing is trained.
        selector: The fields of `SelectorConfig` that make the recipe.
        single_passage: Each passage is read on its own: K is 1.
        passages_summed: With `single_passage`, how many passages an answer is summed over: "few" (the sweep's
            `documents`), or "candidates", all that are retrieved.
        answer_mode: As `rag.RAG` takes it.

    Raises:
        UsageError: A name that ends in `_selfaug`, or another value of `passages_summed`.
    """

    name: str
    label: str
    training: Mapping[str, Any] | None = None
    selector: Mapping[str, Any] = field(default_factory=dict)
    single_passage: bool = False
    passages_summed: str = "few"
    answer_mode: str = PERMUTATION

    def __post_init__(self) -> None:
        if self.name.endswith(SELFAUG_SUFFIX):
            raise UsageError(
                f"A recipe's name must not end in {SELFAUG_SUFFIX!r}, which names its SelfAug variant; got "
                f"{self.name!r}. Register the recipe without the SelfAug term."
            )
        if self.passages_summed not in ("few", "candidates"):
            raise UsageError(f"passages_summed must be 'few' or 'candidates', got {self.passages_summed!r}.")

    @property
    def is_trained(self) -> bool:
        """Whether anything is trained; if not, the trial measures the base model."""
        return self.training is not None

    @property
    def trains_generator(self) -> bool:
        """Whether the generator changes, so that the SelfAug term has something to hold back."""
        return self.training is not None and bool(self.training.get("train_generator", True))

    @property
    def keeps_retriever(self) -> bool:
        """Whether the retriever ranks after training as before: neither selector nor retriever is trained."""
        if self.training is None:
            return True
        parts = (self.training.get("train_selector", True), self.training.get("train_retriever", False))
        return not any(parts)


def delta_posterior() -> dict[str, Any]:
    """Settings of a posterior with all its weight on the selector's most probable permutation: supervised fine-tuning.

    The E-step draws one permutation at a temperature of almost zero, which is the arg max, and gives it weight 1.
    """
    return {
        "e_step.exact": False,
        "e_step.likelihood_exponent": 1.0,
        "e_step.num_permutations": 1,
        "e_step.proposal_temperature": _ALMOST_ZERO_TEMPERATURE,
        "e_step.proposals_per_sample": 1,
        "e_step.replacement": True,
        "e_step.candidate_pool": None,
    }


def exact_posterior() -> dict[str, Any]:
    """Settings of the exact posterior over single passages, p(z | x) p(y | x, z) normalised over all candidates.

    The exponent is 1: these recipes maximise the likelihood log sum_z p(z | x) p(y | x, z), whose gradient is an
    expectation under this posterior and no tempered one.
    """
    return {
        "e_step.exact": True,
        "e_step.likelihood_exponent": 1.0,
        "retriever_training.objective": "prior",
    }
