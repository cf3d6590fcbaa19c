"""What fine-tuning destroys: the base and its tuned models on the same probes, in one table with intervals.

    probe files -> for the base and each model: one score per item -> values, intervals, paired comparisons

SelfAug (arXiv 2509.03934) explains forgetting by a shift of the model's distribution and cures it by holding the
distribution over *input* tokens. So both are measured here: what a model still can do that has nothing to do with
retrieval, and how far it is from the base on prompts. The base is the same weights with the adapters off, measured
on the same items; what is compared is always an item with itself.

Models are loaded and measured one after another, and only their scores are kept: `measure_model` gives them, a file
holds them (`ModelScores.save`), `forgetting_table` compares any number of them.
"""

import gc
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from generator.adapters import BASE
from generator.configs import ChatConfig, ModelConfig
from generator.generator import Generator
from generator.language_model import LanguageModel
from indexes.errors import MismatchError, UsageError
from rag.bundle import load_generator
from rag.evaluation.evaluation_file import bundle_digest, describe_base, write_json
from rag.evaluation.significance import holm
from rag.forgetting.general_tasks import GeneralTask
from rag.forgetting.retention_tasks import WHOLE, Probes
from rag.forgetting.task_scores import (
    Score,
    check_lengths,
    drifts,
    measure_answers,
    measure_drift,
    measure_pairs,
    measure_text,
)
from rag.hub import bundle_folder
from rag.model_loading import load_language_model

FORMAT_VERSION = 1
_FINDING = ("revision", "token", "cache_dir", "local_files_only")
"""Options of `bundle_folder`: where a bundle comes from, and not how it is loaded."""
# Half the width of a 95 % interval, in standard errors.
_Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """Everything that one model scored, item by item; ready for JSON."""

    name: str
    """Of the column."""
    role: str
    """"base", "generator" or "selector"."""
    base: dict[str, Any]
    """Which weights the adapters stand on (`describe_base`), as "chat" what the chat template is given, and as
    "context_length" how many tokens one row may hold."""
    bundle_sha256: str | None
    scores: tuple[Score, ...]

    def save(self, file: str | Path) -> None:
        """Write them as JSON, the same bytes for the same scores."""
        write_json(asdict(self), file)

    @classmethod
    def load(cls, file: str | Path) -> "ModelScores":
        """Read what `save` wrote.

        Raises:
            MismatchError: Another file.
        """
        try:
            data = json.loads(Path(file).read_text(encoding="utf-8"))
            scores = tuple(_score_from(entry) for entry in data.pop("scores"))
            return cls(scores=scores, **data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MismatchError(
                f"{file} must hold the scores of one model, as ModelScores.save wrote them; it does not ({error}). "
                "Measure the model again."
            ) from error


def forgetting(
    models: Sequence[tuple[str, "Generator | str | Path"]],
    probes: Probes,
    *,
    base: str | Path | None = None,
    role: str = "generator",
    scores_folder: str | Path | None = None,
    progress: bool = True,
    **loading: Any,
) -> dict[str, Any]:
    """Measure the base once and every model after it, one in memory at a time, and compare them.

    Args:
        models: Name and model: a generator, or a bundle, by its folder or Hub id (its index is not needed).
        probes: On what.
        base: Without any model: the base alone, by name or folder.
        role: Whose adapter, "generator" or "selector".
        scores_folder: Where the scores of every item are written, a file for each model; None: nowhere.
        progress: Show progress bars.
        loading: What `load_generator` takes of every bundle: `dtype`, `device`, `quantization`, `trust_remote_code`,
            and for those on the Hub `revision`, `token`, `cache_dir` and `local_files_only`. For a base alone what
            `LanguageModel.from_pretrained` takes: `revision`, `context_length` and `chat` beside the first four.

    Returns:
        A forgetting file, see `forgetting_table`.

    Raises:
        MismatchError: Models over different bases.
        UsageError: Neither models nor a base, two models of one name, or a revision of a local folder.
    """
    names = [name for name, _ in models]
    _check_names([BASE, *names])  # before anything is measured
    if scores_folder is not None and (wrong := [name for name in names if Path(name).name != name]):
        raise UsageError(f"The name of a model is that of its file of scores, without folders; {wrong[0]!r} came.")
    scores: list[ModelScores] = []
    if not models:
        if base is None:
            raise UsageError("Forgetting is measured of bundles, or of a base alone; neither came. Give one of them.")
        scores.append(measure_model(load_base(base, **loading), BASE, probes, progress=progress))
    finding: dict[str, Any] = {key: loading.pop(key) for key in _FINDING if models and key in loading}
    finding["leave_out"] = ("index", "encoder")
    for name, source in models:
        folder = None if isinstance(source, Generator) else bundle_folder(source, **finding)
        generator = source if isinstance(source, Generator) else load_generator(folder or source, **loading)
        if scores:
            _check_base(name, _describe(generator.language_model), scores[0].base)
        else:
            scores.append(measure_model(generator, BASE, probes, progress=progress))
        sha256 = None if folder is None else bundle_digest(folder)
        scores.append(measure_model(generator, role, probes, name=name, bundle_sha256=sha256, progress=progress))
        del generator
        gc.collect()  # the next model may need the room
    if scores_folder is not None:
        for found in scores:
            found.save(Path(scores_folder) / f"{found.name}.json")
    return forgetting_table(scores)


def measure_model(
    generator: Generator,
    role: str,
    probes: Probes,
    *,
    name: str | None = None,
    bundle_sha256: str | None = None,
    progress: bool = True,
) -> ModelScores:
    """Score one model under one role on every probe.

    Args:
        generator: Whose model it is; its batches are as large as `max_tokens_per_batch` allows.
        role: "base" (adapters off), "generator" or "selector".
        probes: On what.
        name: Of the column; default: the role.
        bundle_sha256: Which bundle it is, if it is one.
        progress: Show progress bars.

    Raises:
        DataError: A probe file that is broken or does not fit the model.
        ResourceError: Tasks of the harness without the harness.
    """
    scores: list[Score] = []
    check_lengths(generator, probes)
    common: dict[str, Any] = {"on_error": probes.on_error, "progress": progress}
    for file in probes.answers:
        scores += measure_answers(generator, role, file, max_new_tokens=probes.max_new_tokens, **common)
    for file in probes.pairs:
        scores += measure_pairs(generator, role, file, **common)
    for file in probes.text:
        scores += measure_text(generator, role, file, window=probes.window, progress=progress)
    for file in probes.drift:
        scores += measure_drift(generator, role, file, **common)
    if probes.harness:
        from rag.forgetting.lm_eval_adapter import measure_harness

        scores += measure_harness(generator, role, probes, progress=progress)
    base = _describe(generator.language_model)
    return ModelScores(name=name or role, role=role, base=base, bundle_sha256=bundle_sha256, scores=tuple(scores))


# -- the table ---------------------------------------------------------------------------------------------------


def forgetting_table(scores: Sequence[ModelScores]) -> dict[str, Any]:
    """Values with intervals, and every model against the base on the same items: a forgetting file.

    Args:
        scores: The base (role "base") and any number of models over it, in the order of the columns.

    Returns:
        `kind`, `format_version`, `base`, `models`, `measurements` and `comparisons`; the group of a whole task is
        "all".

    Raises:
        MismatchError: Models over different bases, or measured on different items.
        UsageError: Not exactly one base, or two models of one name.
    """
    bases = [model for model in scores if model.role == BASE]
    if len(bases) != 1:
        raise UsageError(f"A table of forgetting needs the base exactly once; {len(bases)} of {len(scores)} are it.")
    _check_names([model.name for model in scores])
    for model in scores:
        _check_base(model.name, model.base, bases[0].base)
    return {
        "kind": "forgetting",
        "format_version": FORMAT_VERSION,
        "base": bases[0].base,
        "models": [_model(model) for model in scores],
        "measurements": [row for model in scores for score in model.scores for row in _measurements(model, score)],
        "comparisons": [row for model in scores if model.role != BASE for row in _comparisons(model, bases[0])],
    }


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise UsageError(f"Models must have different names, and none but the base is {BASE!r}; {list(names)} came.")


def _model(model: ModelScores) -> dict[str, Any]:
    if model.role == BASE:
        return {"name": model.name}
    return {"name": model.name, "role": model.role, "bundle_sha256": model.bundle_sha256}


def _measurements(model: ModelScores, score: Score) -> list[dict[str, Any]]:
    rows = []
    for group in _groups(score):
        value, interval, n = _value(score, group)
        rows.append(
            {
                "model": model.name,
                "task": score.task,
                "group": group,
                "metric": score.metric,
                "value": value,
                "interval": interval,
                "n": n,
                "higher_is_better": score.higher_is_better,
            }
        )
    return rows


def _groups(score: Score) -> list[str]:
    return [WHOLE, *sorted({group for groups in score.groups for group in groups})]


def _value(score: Score, group: str) -> tuple[float | None, list[float] | None, int]:
    if not score.numerators:
        value, spread = score.reported, None if score.stderr is None else _Z * score.stderr
        interval = None if value is None or spread is None else [value - spread, value + spread]
        return value, interval, len(score.items)
    ratio = score.ratio(None if group == WHOLE else group)
    found = ratio.interval()
    return _finite(ratio.value), None if found is None else list(found), len(ratio.numerators)


def _finite(value: float | None) -> float | None:
    """None for what JSON has no number for: a perplexity that is more than a float holds, or a score that is none."""
    return value if value is not None and math.isfinite(value) else None


def _comparisons(model: ModelScores, base: ModelScores) -> list[dict[str, Any]]:
    of_base = {(score.task, score.metric): score for score in base.scores}
    rows = []
    for score in model.scores:
        other = of_base.get((score.task, score.metric))
        if other is None or other.items != score.items or other.groups != score.groups:
            raise MismatchError(
                f"{model.name} and {base.name} must be measured on the same items; those of {score.task} differ. "
                "Measure both on the same files."
            )
        if not score.metric.startswith(_DISTANCES):  # these are comparisons with the base already
            whole, *parts = [_comparison(model.name, base.name, score, other, group) for group in _groups(score)]
            rows += [*_adjusted([whole]), *_adjusted(parts)]
    return rows


def _adjusted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With p-values adjusted for how many groups were looked at (Holm); the whole is a question of its own."""
    tested = [row for row in rows if row["p"] is not None]
    adjusted = dict(zip([id(row) for row in tested], holm([row["p"] for row in tested]), strict=True))
    return [row | {"p_adjusted": adjusted.get(id(row))} for row in rows]


_DISTANCES = ("kl_drift", "total_variation", "top1_agreement")


def _comparison(name: str, against: str, score: Score, other: Score, group: str) -> dict[str, Any]:
    difference: float | None
    if score.numerators:
        which = None if group == WHOLE else group
        ratio = score.ratio(which)
        difference, interval, p = ratio.against(other.ratio(which))
        n = len(ratio.numerators)
    else:
        difference, interval, p = _unpaired(score, other)
        n = len(score.items)
    return {
        "model": name,
        "against": against,
        "task": score.task,
        "group": group,
        "metric": score.metric,
        "difference": _finite(difference),
        "interval": None if interval is None else list(interval),
        "p": p,
        "n": n,
    }


def _unpaired(score: Score, other: Score) -> tuple[float | None, tuple[float, float] | None, float | None]:
    """Two reported values by their standard errors: too wide where both models tend to fail on the same items."""
    if score.reported is None or other.reported is None:
        return None, None, None
    difference = score.reported - other.reported
    spread = math.hypot(score.stderr or 0.0, other.stderr or 0.0)
    if score.stderr is None or other.stderr is None or spread == 0:
        return difference, None, None
    p = float(2 * stats.norm.sf(abs(difference) / spread))
    return difference, (difference - _Z * spread, difference + _Z * spread), p


# -- models ------------------------------------------------------------------------------------------------------


def _describe(model: LanguageModel) -> dict[str, Any]:
    """What models that are compared must share: the base, and how its prompts are written."""
    return {**describe_base(model), "chat": asdict(model.chat.config), "context_length": model.context_length}


def _check_base(name: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    # Scores without a context length are of when "mixed" was recorded as float32 too.
    older = "context_length" not in found or "context_length" not in expected
    one, other = (
        {
            "dtype": "float32" if older and about["dtype"] == "mixed" else about["dtype"],
            "quantization": about["quantization"],
            "sha256": about["sha256"],
        }
        for about in (found, expected)
    )
    if one != other:
        raise MismatchError(
            f"Models are compared over one base; {name} stands on {found['name']!r} ({found['dtype']}, weights "
            f"{found['sha256'][:12]}), the others on {expected['name']!r} ({expected['dtype']}, "
            f"{expected['sha256'][:12]}). Measure models of different bases apart."
        )
    without = asdict(ChatConfig())  # of scores that were written before there were settings
    if (ours := found.get("chat", without)) != (theirs := expected.get("chat", without)):
        different = sorted(key for key in ours if ours[key] != theirs.get(key))
        raise MismatchError(
            f"Models are compared on the same prompts; {name} has other settings of the chat template than the others, "
            f"namely {different}. Measure them apart."
        )
    lengths = [about.get("context_length") for about in (found, expected)]  # older scores do not say
    if None not in lengths and lengths[0] != lengths[1]:
        raise MismatchError(
            f"Models are compared on the same prompts; {name} has a context of {lengths[0]} tokens, the others of "
            f"{lengths[1]}. Measure them apart, or with one context_length."
        )


def load_base(base: str | Path, **loading: Any) -> Generator:
    """A base model without any bundle: a Hub id, a folder, or "tiny"; the rest as in `ModelConfig`, and `chat`."""
    chat = loading.pop("chat", None)
    return Generator(load_language_model(ModelConfig(name=str(base), **loading), chat=chat))


def _score_from(entry: Mapping[str, Any]) -> Score:
    groups = tuple(tuple(names) for names in entry["groups"])
    lists = {name: tuple(entry[name]) for name in ("items", "numerators", "denominators")}
    return Score(**{**entry, **lists, "groups": groups})


# -- the laboratory's exercises --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forgetting:
    """What is left of the base model."""

    right: list[float]
    """1 or 0 for each exercise, in the order given."""
    kl_drift: float
    """Mean KL(base || tuned) per input token of the exercises' prompts, nats."""

    @property
    def general(self) -> float:
        """Share of exercises solved."""
        return sum(self.right) / len(self.right)


def measure_forgetting(generator: Generator, exercises: Sequence[GeneralTask]) -> Forgetting:
    """Let the tuned generator do exercises that ask for general abilities.

    Args:
        generator: With its adapter as trained so far.
        exercises: What to solve; an answer counts when it is exactly the expected text.
    """
    prompts = [generator.language_model.chat.encode(e.prompt) for e in exercises]
    answers = generator.complete(prompts)
    right = [float(answer == e.answer) for answer, e in zip(answers, exercises, strict=True)]
    return Forgetting(right, kl_drift(generator, prompts))


def kl_drift(generator: Generator, prompts: Sequence[list[int]]) -> float:
    """Mean KL(base || tuned) over the input tokens of `prompts`, averaged per prompt and then over prompts, nats."""
    return math.fsum(drift.kl for drift in drifts(generator, "generator", prompts)) / len(prompts)
