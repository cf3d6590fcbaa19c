"""Recipes by name, and their variants with the SelfAug term (arXiv 2509.03934).

    RECIPES.register("my_recipe", Recipe(name="my_recipe", label="My recipe", training={"rounds": 1}))

makes a training method available to `rag sweep --recipes [my_recipe, my_recipe_selfaug]`.
"""

from dataclasses import dataclass, replace

from indexes.errors import UsageError
from indexes.registry import Registry
from rag.experiments.recipe import SELFAUG_SUFFIX, Recipe
from retriever.selector_config import SelectorConfig
from training.config import DROConfig

BASE_RECIPE = "no_training"
BUILTIN_RECIPES = (
    BASE_RECIPE,
    "sft",
    "replug",
    "rag_sequence",
    "rag_token",
    "dro_no_selector",
    "dro_no_generator",
    "dro",
)
"""The recipes of a sweep by default, in the order of its table."""
RECIPES: Registry[Recipe] = Registry(
    "recipe", builtin={name: f"rag.experiments.builtin_recipes:{name.upper()}" for name in BUILTIN_RECIPES}
)


@dataclass(frozen=True)
class Variant:
    """A recipe, with or without the SelfAug term."""

    recipe: Recipe
    selfaug: bool = False

    @classmethod
    def of(cls, name: str) -> "Variant":
        """The variant of a name: a registered recipe, or one followed by `_selfaug`.

        Raises:
            UsageError: No such recipe, or SelfAug for a recipe whose generator is not trained.
        """
        recipe = RECIPES.get(name.removesuffix(SELFAUG_SUFFIX))
        selfaug = name.endswith(SELFAUG_SUFFIX)
        if selfaug and not recipe.trains_generator:
            possible = [kind for kind, known in RECIPES.items() if known.trains_generator]
            raise UsageError(
                f"{SELFAUG_SUFFIX!r} needs a recipe that trains the generator, got {name!r}: the generator of "
                f"{recipe.name!r} stays the base model. Recipes with a SelfAug variant: {possible}."
            )
        return cls(recipe, selfaug)

    @property
    def name(self) -> str:
        """As `of` reads it."""
        return self.recipe.name + SELFAUG_SUFFIX * self.selfaug

    @property
    def label(self) -> str:
        """For tables and reports."""
        return self.recipe.label + " + SelfAug" * self.selfaug

    @property
    def with_selfaug(self) -> "Variant | None":
        """The same recipe with SelfAug; None where the generator is not trained."""
        return replace(self, selfaug=True) if self.recipe.trains_generator else None

    def config(self, shared: DROConfig) -> DROConfig | None:
        """How it is trained, from the settings that all trials share; None: nothing is trained.

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
        """The selector settings of its pipeline.

        Args:
            shared: n and K of all trials.
            documents: The number of passages that a recipe with `single_passage` sums over, unless it takes all n.
        """
        if not self.recipe.single_passage:
            return replace(shared, **self.recipe.selector)
        n = shared.num_candidates if self.recipe.passages_summed == "candidates" else documents
        return replace(shared, **self.recipe.selector, num_candidates=n, num_selected=1)
