"""Baselines and ablations as configurations of the one trainer and the one pipeline.

A recipe says three things: what its selector may do, how its pipeline answers, and what of `DROConfig` it sets. All
else (questions, rounds, learning rates, seeds) is shared by whoever compares recipes, so that rows differ by their
recipe alone. What a recipe sets, shared settings do not change: a setting that is good for DRO (enumeration, another
objective of the retriever, a pool of candidates) would make something else of a baseline, under the baseline's name.

| recipe | what it is |
|---|---|
| vanilla | the base model reads the retriever's top K; nothing is trained |
| sft | LoRA, supervised on the retriever's top K: an E-step with one certain permutation |
| replug | REPLUG LSR (arXiv 2301.12652): the retriever learns from a frozen model that reads each document alone |
| rag_sequence | RAG-Sequence (arXiv 2005.11401): a sum over single documents, of whole answers |
| rag_token | RAG-Token (the same paper): a sum over single documents at every token |
| dro_no_selector | DRO whose selector stays the retriever's order |
| dro_no_generator | DRO whose generator stays the base model |
| dro | DRO (arXiv 2505.03075) |

`NAME_selfaug` is the same recipe with the SelfAug term (arXiv 2509.03934), for each whose generator learns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from indexes.errors import UsageError
from rag.answering.answer_modes import PERMUTATION
from retriever.selector_config import SelectorConfig
from training.config import DROConfig

SELFAUG = "_selfaug"
# Choosing a permutation at almost no temperature is choosing the most probable one.
_CERTAIN = 1e-4


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train and to answer."""

    name: str
    label: str
    """For tables."""
    training: Mapping[str, Any] | None = None
    """Settings of `DROConfig` that make the recipe, by their dotted names; None: nothing is trained."""
    selector: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `SelectorConfig` that make it."""
    reads_alone: bool = False
    """Each document is read alone: K is 1."""
    summed_documents: str = "few"
    """Where documents are read alone: "few", or "candidates", all that are retrieved."""
    answer_mode: str = PERMUTATION
    """As `rag.RAG` takes it."""

    @property
    def trains_generator(self) -> bool:
        """Whether there is anything that SelfAug could hold back."""
        return self.training is not None and bool(self.training.get("train_generator", True))


_TRAINED = {"train_selector": True, "train_generator": True}
_RETRIEVED = {"train_selector": False, "train_encoder": False}  # order and encoder stay the retriever's
_WHOLE = {"e_step.marginalization": "sequence"}
# Single documents, all of them weighed.
_ALONE = {
    **_TRAINED,
    **_WHOLE,
    "e_step.exact": True,
    "e_step.likelihood_exponent": 1.0,
    "retriever_training.objective": "prior",
}
_BY_SCORES = {"use_prior": True, "use_language_model": False}
_PRIOR = {"use_prior": True}  # without it, an untrained selector's order is the language model's

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="vanilla", label="base model, retrieved top K", selector=_PRIOR),
        Recipe(
            name="sft",
            label="supervised LoRA on top K",
            training={
                **_RETRIEVED,
                **_WHOLE,
                "train_generator": True,
                "e_step.exact": False,
                "e_step.num_permutations": 1,
                "e_step.proposal_temperature": _CERTAIN,
                "e_step.proposals_per_sample": 1,
                "e_step.replacement": True,
                "e_step.candidate_pool": None,
            },
            selector=_PRIOR,
        ),
        Recipe(
            name="replug",
            label="REPLUG LSR (generator frozen)",
            training=_ALONE
            | {
                "train_generator": False,
                "train_retriever": True,
                "retriever_training.objective": "lsr",
                "train_encoder": False,
                "supervised.num_train_epochs": 0,
            },
            selector=_BY_SCORES,
            reads_alone=True,
            summed_documents="candidates",
            answer_mode="rag_token",
        ),
        Recipe(
            name="rag_sequence",
            label="RAG-Sequence (single documents)",
            training=_ALONE,
            selector=_BY_SCORES,
            reads_alone=True,
            answer_mode="rag_sequence",
        ),
        Recipe(
            name="rag_token",
            label="RAG-Token (single documents, token by token)",
            training=_ALONE | {"e_step.marginalization": "token"},
            selector=_BY_SCORES,
            reads_alone=True,
            answer_mode="rag_token",
        ),
        Recipe(
            name="dro_no_selector",
            label="DRO, selector not trained",
            training=_TRAINED | _RETRIEVED | _WHOLE,
            selector=_PRIOR,
        ),
        Recipe(
            name="dro_no_generator",
            label="DRO, generator not trained",
            training=_TRAINED | _WHOLE | {"train_generator": False},
        ),
        Recipe(name="dro", label="DRO", training=_TRAINED | _WHOLE),
    )
}
ALIASES = {"base": "vanilla"}
"""What the laboratory calls them."""


@dataclass(frozen=True)
class Variant:
    """A recipe, with or without SelfAug."""

    recipe: Recipe
    selfaug: bool = False

    @classmethod
    def of(cls, name: str) -> "Variant":
        """By name: that of a recipe, or with `_selfaug` behind it.

        Raises:
            UsageError: No such recipe, or one with nothing for SelfAug to hold back.
        """
        plain = ALIASES.get(name, name).removesuffix(SELFAUG)
        if plain not in RECIPES:
            raise UsageError(
                f"A recipe must be one of {list(RECIPES)}, or one of {_with_twins()} with {SELFAUG} behind it; "
                f"{name!r} came."
            )
        if name.endswith(SELFAUG) and not RECIPES[plain].trains_generator:
            raise UsageError(
                f"SelfAug holds a generator back while it learns; that of {plain!r} stays the base model, so "
                f"{name!r} would be {plain!r} again. It goes with {_with_twins()}."
            )
        return cls(RECIPES[plain], name.endswith(SELFAUG))

    @property
    def name(self) -> str:
        """As `of` reads it."""
        return self.recipe.name + SELFAUG * self.selfaug

    @property
    def label(self) -> str:
        """For tables."""
        return self.recipe.label + " + SelfAug" * self.selfaug

    @property
    def twin(self) -> "Variant | None":
        """The same recipe with SelfAug, where there is one."""
        return replace(self, selfaug=True) if self.recipe.trains_generator else None

    def config(self, shared: DROConfig) -> DROConfig | None:
        """What is trained, from settings that all rows share; None: nothing.

        Raises:
            UsageError: SelfAug of weight 0.
        """
        if self.recipe.training is None:
            return None
        if self.selfaug and not shared.selfaug.alpha:
            raise UsageError(f"{self.name!r} needs selfaug.alpha above 0; got 0, which leaves SelfAug out.")
        alpha = shared.selfaug.alpha if self.selfaug else 0.0
        return shared.with_settings({"selfaug.alpha": alpha, **self.recipe.training})

    def selector(self, shared: SelectorConfig, documents: int) -> SelectorConfig:
        """Of its pipeline.

        Args:
            shared: n and K of all rows.
            documents: How many a recipe sums over that reads each document alone, where it need not be all n.
        """
        if not self.recipe.reads_alone:
            return replace(shared, **self.recipe.selector)
        n = shared.num_candidates if self.recipe.summed_documents == "candidates" else documents
        return replace(shared, **self.recipe.selector, num_candidates=n, num_selected=1)


def _with_twins() -> list[str]:
    return [name for name, recipe in RECIPES.items() if recipe.trains_generator]
