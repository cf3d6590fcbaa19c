"""Results of the trials of a sweep: scores with intervals, paired tests, and questions that show the difference.

A finished trial is an evaluation file (`rag.evaluation`), what was measured of general abilities, and the records of
its rounds. Everything here is computed from those, question by question, so a comparison can be repeated at any time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from indexes.dataclass_json import to_json_object
from rag.evaluation.comparison import PairedComparison, adjusted, compare_evaluations, paired_comparison
from rag.evaluation.evaluation_file import EvaluationFile, EvaluationRecord
from rag.evaluation.metric import columns, metrics_of
from rag.evaluation.significance import bootstrap_interval
from rag.experiments.recipe import SELFAUG_SUFFIX
from rag.experiments.recipes import BASE_RECIPE, RECIPES

SAMPLES = 8
EXTREMES = 10
GENERAL = "general"
TIMES = ("seconds", "tokens_per_second")


@dataclass(frozen=True)
class TrialScores:
    """The entry of a trial in sweep.json: without times, which differ between two runs.

    Attributes:
        name: The trial's name.
        label: For tables.
        recipe: Without the suffix `_selfaug`.
        selfaug: Whether it has the SelfAug term.
        seed: Of every draw.
        changes: The settings of the grid, by their dotted names.
        metrics: Means over the test questions, or over the general tasks.
        intervals: Their 95 % bootstrap intervals.
        kl_drift: Divergence from the base model in nats per input token; None: not measured.
    """

    name: str
    label: str
    recipe: str
    selfaug: bool
    seed: int
    changes: Mapping[str, Any]
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    kl_drift: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As in sweep.json: the metrics stand beside the other keys."""
        drift = {} if self.kl_drift is None else {"kl_drift": self.kl_drift}
        return {
            **{name: getattr(self, name) for name in ("name", "label", "recipe", "selfaug", "seed")},
            "changes": dict(self.changes),
            **self.metrics,
            **drift,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TrialScores":
        """What `to_dict` made; other keys, such as `seconds`, are ignored."""
        named = {name: data[name] for name in ("name", "label", "recipe", "selfaug", "seed", "changes")}
        intervals = {name: (low, high) for name, (low, high) in data["intervals"].items()}
        metrics = {name: data[name] for name in intervals}
        return cls(**named, metrics=metrics, intervals=intervals, kl_drift=data.get("kl_drift"))


@dataclass(frozen=True)
class TrialResult:
    """One finished trial with its values for every question."""

    name: str
    label: str
    recipe: str
    selfaug: bool
    seed: int
    changes: Mapping[str, Any]
    """The settings of the grid, by their dotted names."""
    evaluation: EvaluationFile
    general: Sequence[float]
    """1 or 0 for each general-ability task."""
    kl_drift: float | None
    curve: Sequence[Mapping[str, Any]]
    """Records of its rounds."""
    seconds: float

    @property
    def cell(self) -> tuple[Any, ...]:
        """Seed and settings of the grid; trials are compared with those of the same cell."""
        return (self.seed, *sorted((name, str(value)) for name, value in self.changes.items()))

    def column(self, name: str) -> list[float]:
        """The values of a metric, one for each question (or general task) that has one."""
        return list(self.general) if name == GENERAL else list(self.evaluation.values(name).values())

    def scores(self) -> TrialScores:
        """Means and bootstrap intervals of every metric that has values."""
        columns_found = {column.name: self.column(column.name) for column in columns("trials")}
        values = {name: found for name, found in columns_found.items() if found}
        return TrialScores(
            name=self.name,
            label=self.label,
            recipe=self.recipe,
            selfaug=self.selfaug,
            seed=self.seed,
            changes=dict(self.changes),
            metrics={name: sum(found) / len(found) for name, found in values.items()},
            intervals={name: bootstrap_interval(found) for name, found in values.items()},
            kl_drift=self.kl_drift,
        )

    def curve_without_timings(self) -> list[dict[str, Any]]:
        """The records without their times."""
        return [without_timings(record) for record in self.curve]


def without_timings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a round without its times."""
    return {name: value for name, value in record.items() if name not in TIMES}


def retriever_recall(results: Sequence[TrialResult]) -> dict[str, float | None]:
    """Recall of the retriever before training, from the base model's trial.

    Without that, from a trial whose recipe keeps the retriever as it is; without one, every value is None.
    """
    unchanged = [r for r in results if RECIPES.get(r.recipe).keeps_retriever]
    unchanged.sort(key=lambda r: r.recipe != BASE_RECIPE)
    metrics = unchanged[0].evaluation.metrics if unchanged else {}
    return {f"retriever_recall@{k}": metrics.get(f"retriever_recall@{k}") for k in (1, 3, 5)}


Pair = tuple[TrialResult, TrialResult, str]
"""A trial, the one that it is compared with, and the name of the metric."""


def sweep_pairs(results: Sequence[TrialResult], focus_recipe: str) -> list[Pair]:
    """Pairs of trials that are tested.

    The focus recipe is compared with every other trial, a trial with SelfAug with the same recipe without, and every
    trial with the base model.

    Args:
        results: In the order of the table; only trials of the same seed and settings are compared.
        focus_recipe: The recipe (with its suffix `_selfaug`, if any) that is compared with every other one.
    """
    found: dict[tuple[str, str, str], Pair] = {}
    for cell in cells(results):
        for metric in (column.name for column in columns("trial_comparisons")):
            for one, other in _pairs_in(cell, focus_recipe):
                if one.column(metric) and other.column(metric):
                    found.setdefault((one.name, other.name, metric), (one, other, metric))
    return list(found.values())


def cells(results: Sequence[TrialResult]) -> list[list[TrialResult]]:
    """Trials that are compared with each other: those of one seed and one cell of the grid, and the base model."""
    keys = dict.fromkeys(r.cell for r in results if r.recipe != BASE_RECIPE) or {results[0].cell: None}
    return [[r for r in results if r.recipe == BASE_RECIPE or r.cell == key] for key in keys]


def _pairs_in(cell: Sequence[TrialResult], focus_recipe: str) -> list[tuple[TrialResult, TrialResult]]:
    by_kind = {(r.recipe, r.selfaug): r for r in cell}
    focus = next((r for r in cell if recipe_of(r) == focus_recipe), None)
    base = by_kind.get((BASE_RECIPE, False))
    pairs = [(focus, other) for other in cell if focus is not None and other is not focus]
    without = [(r, by_kind.get((r.recipe, False))) for r in cell if r.selfaug]
    pairs += [(one, other) for one, other in without if other is not None]
    pairs += [(one, base) for one in cell if base is not None and one is not base]
    seen: set[frozenset[str]] = set()
    kept = []
    for one, other in pairs:
        if one is not None and (both := frozenset((one.name, other.name))) not in seen:
            seen.add(both)
            kept.append((one, other))
    return kept


def recipe_of(result: TrialResult) -> str:
    """The recipe, with its suffix `_selfaug` if it has the SelfAug term."""
    return result.recipe + SELFAUG_SUFFIX * result.selfaug


def compare(pairs: Sequence[Pair]) -> list[PairedComparison]:
    """Paired tests over the same questions; p-values adjusted by Holm over all comparisons of the same metric."""
    found: list[PairedComparison] = []
    for metric in dict.fromkeys(metric for _, _, metric in pairs):
        chosen = [(one, other) for one, other, name in pairs if name == metric]
        if metric == GENERAL:  # general tasks are not in the evaluation files
            found += adjusted(
                [paired_comparison(one.name, other.name, GENERAL, one.general, other.general) for one, other in chosen]
            )
        else:
            trials = {r.name: r.evaluation for pair in chosen for r in pair}
            names = [(one.name, other.name) for one, other in chosen]
            found += compare_evaluations(list(trials.values()), metrics=[metric], pairs=names)
    return found


# Questions.


def question_of(results: Sequence[TrialResult], i: int) -> dict[str, Any]:
    """The i-th question by id, with the answer of every trial."""
    widest = max((r.evaluation.records[i] for r in results), key=lambda record: len(record.candidates))
    shown = to_json_object(widest)
    return {
        **{name: shown[name] for name in ("id", "question", "golden_answers", "gold_ids", "candidates")},
        "answers": [_answer(r, r.evaluation.records[i]) for r in results],
    }


def _answer(result: TrialResult, record: EvaluationRecord) -> dict[str, Any]:
    shown = to_json_object(record)
    return {
        "trial": result.name,
        "text": record.prediction,
        **{name: shown[name] for name in ("question", "citations", "passages", "permutation", "log_prob")},
        **{m.name: record.scores[m.name] for m in metrics_of("answer") if m.name in record.scores},
    }


def extremes(results: Sequence[TrialResult], focus_recipe: str) -> list[dict[str, Any]]:
    """The questions on which the focus recipe gains and loses most F1 against the base model, best and worst first.

    Without a trial of the base model, those with the highest and lowest F1. Without the focus recipe, the last trial
    takes its place. Of equal ones the smaller id comes first in both lists, and no question is in both.
    """
    shown = cells(results)[0]
    focus = next((r for r in shown if recipe_of(r) == focus_recipe), shown[-1])
    base = next((r for r in shown if r.recipe == BASE_RECIPE), None)
    gain = _gain(focus, None if base is focus else base)
    places = range(len(focus.evaluation.records))
    best = sorted(places, key=gain, reverse=True)[: min(EXTREMES, (len(places) + 1) // 2)]  # sorted is stable
    worst = [i for i in sorted(places, key=gain) if i not in best][:EXTREMES]
    return [{**question_of(shown, i), "list": "best"} for i in best] + [
        {**question_of(shown, i), "list": "worst"} for i in worst
    ]


def _gain(focus: TrialResult, base: TrialResult | None) -> Callable[[int], tuple[float, float]]:
    def gain(i: int) -> tuple[float, float]:
        scores = focus.evaluation.records[i].scores
        less = {"f1": 0.0} if base is None else base.evaluation.records[i].scores
        return scores["f1"] - less["f1"], scores["f1"]

    return gain
