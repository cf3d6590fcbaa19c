"""Settings of a sweep, and the trials that follow from them: one for each recipe, seed and setting of the grid."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any

from generator.configs import AdapterConfig, ChatConfig, DecodingConfig
from indexes.errors import UsageError
from indexes.records.delimited import Quoting
from indexes.tiny_encoder import TINY
from rag.experiments.recipes import BUILTIN_RECIPES, Variant
from rag.experiments.sweep_options import SHARED_DEFAULTS, WorldSettings
from rag.forgetting.retention_tasks import retention_tasks_of
from retriever.dense import DenseRetriever
from retriever.selector_config import SelectorConfig
from training import DROConfig
from training.config import flatten

SPLITS = ("train", "eval", "test")
# Settings of DROConfig that each trial or the sweep itself sets.
_SET_BY_THE_SWEEP = ("seed", "max_train_samples", "max_eval_samples", "ignore_identical_ids")
_GROUPS: dict[str, Any] = {
    "selector": SelectorConfig,
    "decoding": DecodingConfig,
    "adapter": AdapterConfig,
    "chat": ChatConfig,
}
_TRIAL_CHOICES = ("recipes", "with_selfaug", "seeds", "grid", "focus_recipe")


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What is compared, on which questions."""

    recipes: tuple[str, ...] = BUILTIN_RECIPES
    """Registered recipes; with the suffix `_selfaug` a recipe has the SelfAug term."""
    with_selfaug: bool = False
    """Also the SelfAug variant of each recipe that trains the generator."""
    seeds: tuple[int, ...] = (42,)
    """Of every draw and of the batches; one trial for each."""
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Settings of `DROConfig` by their dotted names (`m_step.learning_rate`), with the values to try: one trial for
    each combination. A setting that a recipe fixes keeps the recipe's value."""
    focus_recipe: str = "auto"
    """The recipe that is compared with every other one; "auto": DRO with SelfAug if it is in the sweep, else DRO, else
    the last recipe."""

    index: str | None = None
    """Index directory (with files of questions)."""
    train_dataset: str | None = None
    eval_dataset: str | None = None
    """Questions that choose the round that is kept, and draw the curves."""
    test_dataset: str | None = None
    """Questions that fill the table."""
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    max_test_samples: int | None = None
    world: WorldSettings | None = None
    """An invented world in place of index and files."""
    answerable_only: bool = True
    """Leave out training questions that no candidate answers."""
    ignore_identical_ids: bool | None = None
    """As in `training.questions.loading.load_examples`, for the questions of all three files."""
    quoting: Quoting = "auto"
    """As in `training.questions.loading.load_examples`, for the questions of all three files."""

    base: str = TINY
    """Causal LM: Hub name, folder, GGUF file, or "tiny"."""
    revision: str | None = None
    encoder: str | None = None
    retriever: str = DenseRetriever.kind
    dtype: str = "auto"
    device: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    trust_remote_code: bool = False
    selector: SelectorConfig = field(default_factory=SelectorConfig)
    """n, K and prompts of every trial whose recipe reads several passages together."""
    documents: int | None = None
    """Number of passages that RAG-Sequence and RAG-Token sum over; None: K, and at least 3."""
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `DROConfig` that all trials share, dotted or nested; `selfaug.alpha` is for trials with SelfAug."""
    general_tasks: int = 48
    """General tasks of the tiny base model: this number after each round, twice as many at the end. 0: none."""
    general_tasks_seed: int = 42
    retention: Mapping[str, Any] = field(default_factory=dict)
    """Retention tasks on which every trial is compared with the base model, as keywords of
    `rag.forgetting.retention_tasks.RetentionTasks`: {"pairs": ["blimp.jsonl"]}. Empty: only the general tasks."""

    def __post_init__(self) -> None:
        for name in ("recipes", "seeds"):
            if not getattr(self, name):
                raise UsageError(f"A sweep needs at least one of its {name}, got none.")
        files = {name: getattr(self, name) for name in ("index", *(f"{split}_dataset" for split in SPLITS))}
        missing = [name for name, file in files.items() if file is None]
        if (self.world is None and missing) or (self.world is not None and len(missing) < len(files)):
            raise UsageError(
                "A sweep needs either a world, or an index with train_dataset, eval_dataset and test_dataset; "
                f"got {'a world' if self.world else 'no world'} and {[n for n in files if n not in missing]}."
            )
        self._check_fields("training", self.training)
        self._check_fields("grid", self.grid)
        if empty := [name for name, values in self.grid.items() if not values]:
            raise UsageError(f"Each setting of the grid needs values to try; {empty} has none.")
        if self.documents is not None and self.documents < 1:
            raise UsageError(f"documents must be at least 1, got {self.documents}.")
        retention_tasks_of(self.retention)  # refuses unknown kinds
        self.trials()  # checks every configuration before the first trial starts
        if self.focus_recipe != "auto" and Variant.of(self.focus_recipe) not in self.variants().values():
            raise UsageError(
                f"focus_recipe must be one of the recipes of the sweep, {list(self.variants())}, or auto, got "
                f"{self.focus_recipe!r}."
            )

    @staticmethod
    def _check_fields(what: str, given: Mapping[str, Any]) -> None:
        names = flatten(given)
        DROConfig.check_names(names)
        if own := sorted(set(names) & set(_SET_BY_THE_SWEEP)):
            raise UsageError(f"{what} must name settings that every trial may share; got {own}, which the sweep sets.")

    def shared_config(self, seed: int, changes: Mapping[str, Any]) -> DROConfig:
        """The settings that trials of one seed and one cell of the grid share."""
        return DROConfig().with_settings({**SHARED_DEFAULTS, **flatten(self.training), **changes, "seed": seed})

    def variants(self) -> dict[str, Variant]:
        """The variants that are compared, each once, by their names.

        Raises:
            UsageError: An unknown recipe, or SelfAug for a recipe whose generator is not trained.
        """
        found = [Variant.of(name) for name in self.recipes]
        if self.with_selfaug:
            found += [added for variant in found if (added := variant.with_selfaug) is not None]
        return {variant.name: variant for variant in found}

    def trials(self) -> list["Trial"]:
        """One for each recipe, seed and cell of the grid, in the order of the table.

        Raises:
            UsageError: As for `variants`, or settings that exclude each other.
        """
        variants = self.variants()
        cells = [
            (seed, dict(zip(self.grid, values, strict=True)))
            for seed in self.seeds
            for values in itertools.product(*self.grid.values())
        ]
        trials = [Trial.of(variant, seed, changes, self) for seed, changes in cells for variant in variants.values()]
        unique = {trial.name: trial for trial in trials}
        for trial in unique.values():
            trial.config(self)
        return list(unique.values())

    def to_json(self) -> dict[str, Any]:
        """As it is written; `from_json` reads it."""
        return dict(json.loads(json.dumps(asdict(self), default=str)))

    @staticmethod
    def with_defaults(written: Mapping[str, Any]) -> dict[str, Any]:
        """Written settings, completed by the defaults of settings that were added since, also inside their groups."""
        groups = {**_GROUPS, "world": WorldSettings}
        found = _defaults(SweepSettings) | dict(written)
        return found | {
            name: _defaults(kind) | found[name] for name, kind in groups.items() if isinstance(found.get(name), Mapping)
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "SweepSettings":
        """What `to_json` made."""
        data = cls.with_defaults(data)
        made: dict[str, Any] = {name: kind(**data[name]) for name, kind in _GROUPS.items()}
        made["world"] = None if data["world"] is None else WorldSettings(**data["world"])
        return cls(**{**data, **made, "recipes": tuple(data["recipes"]), "seeds": tuple(data["seeds"])})


@dataclass(frozen=True)
class Trial:
    """One recipe with one seed and one setting of the grid.

    Attributes:
        name: Also of its folder.
        variant: The recipe, with or without SelfAug.
        seed: Of every draw and of the batches.
        changes: The settings of the grid, by their dotted names.
        label: For tables.
    """

    name: str
    variant: Variant
    seed: int
    changes: Mapping[str, Any]
    label: str

    def config(self, settings: SweepSettings) -> DROConfig | None:
        """How it is trained; None: not at all."""
        return self.variant.config(settings.shared_config(self.seed, self.changes))

    @classmethod
    def of(cls, variant: Variant, seed: int, changes: Mapping[str, Any], settings: SweepSettings) -> "Trial":
        """Named after its recipe, and after its seed and its cell where there are several."""
        if not variant.recipe.is_trained:  # one trial for all seeds and settings of training
            return cls(variant.name, variant, settings.seeds[0], {}, variant.label)
        parts = [f"seed={seed}"] if len(settings.seeds) > 1 else []
        parts += [f"{key}={value}" for key, value in changes.items() if len(settings.grid[key]) > 1]
        folder = "-".join([variant.name, *parts]).replace("/", "_")
        return cls(folder, variant, seed, dict(changes), " ".join([variant.label, *parts]))


def _defaults(kind: Any) -> dict[str, Any]:
    """Of the fields of a dataclass that have one, as JSON has them."""
    made = {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}
    made |= {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    parts = {name: asdict(value) if is_dataclass(value) else value for name, value in made.items()}  # type: ignore[arg-type]
    return dict(json.loads(json.dumps(parts, default=str)))


def comparable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What may not change between two runs over one folder: everything but which trials there are."""
    return {name: value for name, value in settings.items() if name not in _TRIAL_CHOICES}
