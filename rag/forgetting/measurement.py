"""Forgetting: the base model and its tuned models on the same retention tasks, in one table with intervals.

    retention tasks -> for the base model and each model: one score per item -> values, intervals, paired comparisons

SelfAug (arXiv 2509.03934) attributes forgetting to a shift of the model's distribution and reduces it by constraining
the distribution over *input* tokens. So both are measured here: whether a model still solves tasks that have nothing to
do with retrieval, and how far its distributions are from the base model's. The base model is the same weights with the
adapters off, measured on the same items; each item is compared with itself.

Models are loaded and measured one after another, and only their scores are kept: `measure_model` returns them, a file
holds them (`ModelScores.save`), `forgetting_table` compares any number of them.
"""

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scipy import stats

from generator.adapters import BASE
from generator.configs import ModelConfig
from generator.generator import Generator
from generator.language_model import LanguageModel
from indexes.atomic_files import read_json
from indexes.dataclass_json import from_json_object, to_json_object
from indexes.errors import DataError, MismatchError, UsageError
from rag.bundle import load_generator
from rag.evaluation.evaluation_file import bundle_digest, describe_base, without_header, write_results
from rag.evaluation.significance import holm
from rag.forgetting.file_tasks import drifts
from rag.forgetting.general_tasks import GeneralTask
from rag.forgetting.retention_items import WHOLE
from rag.forgetting.retention_task import Score
from rag.forgetting.retention_tasks import RetentionTasks
from rag.hub import bundle_folder
from rag.model_loading import load_language_model

KIND = "forgetting"
FORMAT_VERSION = 1
_BUNDLE_LOCATION = ("revision", "token", "cache_dir", "local_files_only")
"""Options of `bundle_folder`: where a bundle is, as opposed to how it is loaded."""
# Half the width of a 95 % interval, in standard errors.
_Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True, kw_only=True)
class MeasuredBase:
    """The base model of measured models, and how prompts are written for it: what they must have in common."""

    name: str
    revision: str | None
    sha256: str
    """Digest of the weights in memory."""
    dtype: str
    quantization: str | None
    chat: dict[str, Any]
    """Settings of the chat template."""
    context_length: int
    """Tokens that a sequence may have."""


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """Everything that one model scored, item by item."""

    name: str
    """Heading of its column."""
    role: str
    """"base", "generator" or "selector"."""
    base: MeasuredBase
    bundle_sha256: str | None
    scores: tuple[Score, ...]

    def __repr__(self) -> str:
        return f"ModelScores({self.name!r}, role={self.role!r}, {len(self.scores)} metrics)"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return to_json_object(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "the scores") -> "ModelScores":
        """Read what `to_dict` made.

        Raises:
            DataError: A key that is missing, unknown or wrong; it is named.
        """
        return from_json_object(cls, data, where)

    def save(self, file: str | Path) -> None:
        """Write them as JSON, the same bytes for the same scores."""
        write_results(self.to_dict(), file)

    @classmethod
    def load(cls, file: str | Path) -> "ModelScores":
        """Read what `save` wrote.

        Raises:
            DataError: Another file; a key is named.
            MismatchError: It is damaged.
        """
        return cls.from_dict(read_json(Path(file), "Measure the model again."), where=str(file))


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """A column of a forgetting table."""

    name: str
    role: str | None = None
    """None for the base model."""
    bundle_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One metric of one model on a task, or on one group of its items."""

    model: str
    task: str
    group: str
    """"all" for the whole task."""
    metric: str
    value: float | None
    """None for what JSON has no number for, and for what the task could not compute."""
    interval: tuple[float, float] | None
    """95 %; None for a single item."""
    n: int
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class ForgettingComparison:
    """A model against the base model on the same items."""

    model: str
    against: str
    task: str
    group: str
    metric: str
    difference: float | None
    interval: tuple[float, float] | None
    p: float | None
    p_adjusted: float | None
    """Holm-adjusted over the groups of a task; the whole task is a question of its own."""
    n: int


@dataclass(frozen=True, kw_only=True)
class ForgettingTable:
    """Values with intervals, and every model against the base model: what `rag forgetting --output` writes."""

    base: MeasuredBase
    models: list[MeasuredModel]
    measurements: list[Measurement]
    comparisons: list[ForgettingComparison]

    def __repr__(self) -> str:
        names = [model.name for model in self.models]
        return f"ForgettingTable(models={names}, {len(self.measurements)} measurements)"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, with `kind` and `format_version`."""
        return {"kind": KIND, "format_version": FORMAT_VERSION, **to_json_object(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "the forgetting table") -> "ForgettingTable":
        """Read what `to_dict` made.

        Raises:
            DataError: Another kind of file, or a key that is missing, unknown or wrong; it is named.
        """
        return from_json_object(cls, without_header(data, KIND, FORMAT_VERSION, where), where)


def read_forgetting(file: str | Path) -> ForgettingTable:
    """Read a forgetting file.

    Raises:
        DataError: There is no such file, or a key of it is missing, unknown or wrong; the key is named.
        MismatchError: It is not JSON.
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(f"A forgetting table is a file of `rag forgetting --output`; {file} does not exist.")
    return ForgettingTable.from_dict(read_json(file, "Measure again."), where=str(file))


def measure_forgetting(
    models: Sequence[tuple[str, "Generator | str | Path"]],
    tasks: RetentionTasks,
    *,
    base: str | Path | None = None,
    role: str = "generator",
    scores_folder: str | Path | None = None,
    progress: bool = True,
    **loading: Any,
) -> ForgettingTable:
    """Measure the base model once and every model after it, one in memory at a time, and compare them.

    Args:
        models: Name and model: a generator, or a bundle, by its folder or Hub id (its index is not needed).
        tasks: What to measure.
        base: Without any model: the base model, by name or folder.
        role: Whose adapter, "generator" or "selector".
        scores_folder: Where the scores of every item are written, a file for each model; None: nowhere.
        progress: Show progress bars.
        loading: Arguments of `load_generator` for every bundle: `dtype`, `device`, `quantization`, `trust_remote_code`,
            and for those on the Hub `revision`, `token`, `cache_dir` and `local_files_only`. With `base`, arguments of
            `LanguageModel.from_pretrained`: `revision`, `context_length` and `chat`, and the first four.

    Raises:
        MismatchError: Models over different base models.
        UsageError: Neither models nor a base model, two models of one name, or a revision of a local folder.
    """
    names = [name for name, _ in models]
    _check_names([BASE, *names])  # before anything is measured
    if scores_folder is not None and (wrong := [name for name in names if Path(name).name != name]):
        raise UsageError(f"The name of a model is the name of its file of scores, without folders, got {wrong[0]!r}.")
    scores: list[ModelScores] = []
    if not models:
        if base is None:
            raise UsageError("Forgetting is measured of bundles, or of a base model; give one of them, got neither.")
        scores.append(measure_model(load_base(base, **loading), BASE, tasks, progress=progress))
    location: dict[str, Any] = {key: loading.pop(key) for key in _BUNDLE_LOCATION if models and key in loading}
    location["leave_out"] = ("index", "encoder")
    for name, source in models:
        folder = None if isinstance(source, Generator) else bundle_folder(source, **location)
        generator = source if isinstance(source, Generator) else load_generator(folder or source, **loading)
        if scores:
            _check_base(name, _describe(generator.language_model), scores[0].base)
        else:
            scores.append(measure_model(generator, BASE, tasks, progress=progress))
        sha256 = None if folder is None else bundle_digest(folder)
        scores.append(measure_model(generator, role, tasks, name=name, bundle_sha256=sha256, progress=progress))
        del generator
        gc.collect()  # the next model may need the memory
    if scores_folder is not None:
        for found in scores:
            found.save(Path(scores_folder) / f"{found.name}.json")
    return forgetting_table(scores)


def measure_model(
    generator: Generator,
    role: str,
    tasks: RetentionTasks,
    *,
    name: str | None = None,
    bundle_sha256: str | None = None,
    progress: bool = True,
) -> ModelScores:
    """Score one model under one role on every retention task; all sources are read before anything is measured.

    Args:
        generator: The model; its batches are as large as `max_tokens_per_batch` allows.
        role: "base" (adapters off), "generator" or "selector".
        tasks: What to measure.
        name: Heading of its column; default: the role.
        bundle_sha256: The digest of its bundle, if it is one.
        progress: Show progress bars.

    Raises:
        DataError: A source that is broken or does not fit the model.
        ResourceError: Tasks of lm-evaluation-harness without the harness installed.
    """
    options = tasks.shared()
    prepared = [
        (task, source) for task, sources in tasks.tasks() for source in task.prepare_all(generator, sources, options)
    ]
    scores = [s for task, source in prepared for s in task.score(generator, role, source, options, progress=progress)]
    base = _describe(generator.language_model)
    return ModelScores(name=name or role, role=role, base=base, bundle_sha256=bundle_sha256, scores=tuple(scores))


# -- the table ---------------------------------------------------------------------------------------------------


def forgetting_table(scores: Sequence[ModelScores]) -> ForgettingTable:
    """Values with intervals, and every model against the base model on the same items.

    Args:
        scores: The base model (role "base") and any number of models over it, in the order of the columns.

    Raises:
        MismatchError: Models over different base models, or measured on different items.
        UsageError: Not exactly one base model, or two models of one name.
    """
    bases = [model for model in scores if model.role == BASE]
    if len(bases) != 1:
        raise UsageError(f"A table of forgetting needs the base model exactly once, got it {len(bases)} times.")
    _check_names([model.name for model in scores])
    for model in scores:
        _check_base(model.name, model.base, bases[0].base)
    return ForgettingTable(
        base=bases[0].base,
        models=[_model(model) for model in scores],
        measurements=[one for model in scores for score in model.scores for one in _measurements(model, score)],
        comparisons=[one for model in scores if model.role != BASE for one in _comparisons(model, bases[0])],
    )


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise UsageError(
            f"Models must have different names, and only the base model is named {BASE!r}, got {list(names)}."
        )


def _model(model: ModelScores) -> MeasuredModel:
    if model.role == BASE:
        return MeasuredModel(name=model.name)
    return MeasuredModel(name=model.name, role=model.role, bundle_sha256=model.bundle_sha256)


def _measurements(model: ModelScores, score: Score) -> list[Measurement]:
    found = []
    for group in _groups(score):
        value, interval, n = _value(score, group)
        found.append(
            Measurement(
                model=model.name,
                task=score.task,
                group=group,
                metric=score.metric,
                value=value,
                interval=interval,
                n=n,
                higher_is_better=score.higher_is_better,
            )
        )
    return found


def _groups(score: Score) -> list[str]:
    return [WHOLE, *sorted({group for groups in score.groups for group in groups})]


def _value(score: Score, group: str) -> tuple[float | None, tuple[float, float] | None, int]:
    if not score.numerators:
        value, spread = score.reported, None if score.stderr is None else _Z * score.stderr
        interval = None if value is None or spread is None else (value - spread, value + spread)
        return value, interval, len(score.items)
    ratio = score.ratio(None if group == WHOLE else group)
    return _json_number(ratio.value), ratio.interval(), len(ratio.numerators)


def _json_number(value: float | None) -> float | None:
    """None for what JSON has no number for: a perplexity above the largest float, or NaN."""
    return value if value is not None and math.isfinite(value) else None


def _comparisons(model: ModelScores, base: ModelScores) -> list[ForgettingComparison]:
    of_base = {(score.task, score.metric): score for score in base.scores}
    found = []
    for score in model.scores:
        other = of_base.get((score.task, score.metric))
        if other is None or other.items != score.items or other.groups != score.groups:
            raise MismatchError(
                f"{model.name} and {base.name} must be measured on the same items; those of {score.task} differ. "
                "Measure both on the same files."
            )
        if not score.is_distance:
            whole, *parts = [_comparison(model.name, base.name, score, other, group) for group in _groups(score)]
            found += [*_adjusted([whole]), *_adjusted(parts)]
    return found


def _adjusted(comparisons: Sequence[ForgettingComparison]) -> list[ForgettingComparison]:
    """p-values adjusted by Holm's method over the groups."""
    tested = [i for i, c in enumerate(comparisons) if c.p is not None]
    adjusted = dict(zip(tested, holm([comparisons[i].p or 0.0 for i in tested]), strict=True))
    return [replace(c, p_adjusted=adjusted.get(i)) for i, c in enumerate(comparisons)]


def _comparison(name: str, against: str, score: Score, other: Score, group: str) -> ForgettingComparison:
    difference: float | None
    if score.numerators:
        which = None if group == WHOLE else group
        ratio = score.ratio(which)
        difference, interval, p = ratio.against(other.ratio(which))
        n = len(ratio.numerators)
    else:
        difference, interval, p = _unpaired(score, other)
        n = len(score.items)
    return ForgettingComparison(
        model=name,
        against=against,
        task=score.task,
        group=group,
        metric=score.metric,
        difference=_json_number(difference),
        interval=interval,
        p=p,
        p_adjusted=None,
        n=n,
    )


def _unpaired(score: Score, other: Score) -> tuple[float | None, tuple[float, float] | None, float | None]:
    """Two reported values by their standard errors: conservative where both models fail on the same items."""
    if score.reported is None or other.reported is None:
        return None, None, None
    difference = score.reported - other.reported
    spread = math.hypot(score.stderr or 0.0, other.stderr or 0.0)
    if score.stderr is None or other.stderr is None or spread == 0:
        return difference, None, None
    p = float(2 * stats.norm.sf(abs(difference) / spread))
    return difference, (difference - _Z * spread, difference + _Z * spread), p


# -- models ------------------------------------------------------------------------------------------------------


def _describe(model: LanguageModel) -> MeasuredBase:
    return MeasuredBase(
        **to_json_object(describe_base(model)), chat=asdict(model.chat.config), context_length=model.context_length
    )


def _check_base(name: str, found: MeasuredBase, expected: MeasuredBase) -> None:
    weights = [(base.dtype, base.quantization, base.sha256) for base in (found, expected)]
    if weights[0] != weights[1]:
        raise MismatchError(
            f"Models are compared over one base model; {name} is over {found.name!r} ({found.dtype}, weights "
            f"{found.sha256[:12]}), the others over {expected.name!r} ({expected.dtype}, {expected.sha256[:12]}). "
            "Measure models over different base models separately."
        )
    if found.chat != expected.chat:
        keys = sorted(found.chat.keys() | expected.chat.keys())
        different = [key for key in keys if found.chat.get(key) != expected.chat.get(key)]
        raise MismatchError(
            f"Models are compared on the same prompts; {name} has other settings of the chat template than the others, "
            f"namely {different}. Measure them separately."
        )
    if found.context_length != expected.context_length:
        raise MismatchError(
            f"Models are compared on the same prompts; {name} has a context of {found.context_length} tokens, the "
            f"others of {expected.context_length}. Measure them separately, or with one context_length."
        )


def load_base(base: str | Path, **loading: Any) -> Generator:
    """A base model: a Hub id, a folder, a GGUF file, or "tiny"; the rest as in `ModelConfig`, and `chat`."""
    chat = loading.pop("chat", None)
    return Generator(load_language_model(ModelConfig(name=str(base), **loading), chat=chat))


# -- general tasks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneralTaskScores:
    """What a tuned generator still solves, and its distance from the base model."""

    right: list[float]
    """1 or 0 for each task, in the order given."""
    kl_drift: float
    """Mean KL(base || tuned) per input token of the prompts, nats."""

    @property
    def general(self) -> float:
        """Share of tasks solved."""
        return sum(self.right) / len(self.right)


def measure_general_tasks(generator: Generator, tasks: Sequence[GeneralTask]) -> GeneralTaskScores:
    """Let the tuned generator solve general tasks.

    Args:
        generator: With its adapter as trained so far.
        tasks: An answer counts if it is exactly the expected text.
    """
    prompts = [generator.language_model.chat.encode(task.prompt) for task in tasks]
    answers = generator.complete(prompts)
    right = [float(answer == task.answer) for answer, task in zip(answers, tasks, strict=True)]
    return GeneralTaskScores(right, kl_drift(generator, prompts))


def kl_drift(generator: Generator, prompts: Sequence[list[int]]) -> float:
    """Mean KL(base || tuned) over the input tokens of each prompt, averaged over prompts, nats."""
    return math.fsum(drift.kl for drift in drifts(generator, "generator", prompts)) / len(prompts)
