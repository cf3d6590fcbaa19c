"""What rows of a sweep or of the laboratory have in common: a table with intervals, paired tests, telling questions.

A row is an evaluation file (`evaluation`), what was measured of general abilities, and the records of its rounds.
Everything is computed from those, question by question, so a comparison can be made again at any time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from indexes.dataclass_json import to_json_object
from rag.evaluation.comparison import PairedComparison, adjusted, compare_evaluations, paired_comparison
from rag.evaluation.evaluation_file import EvaluationFile, EvaluationRecord
from rag.evaluation.metric import columns, metrics_of
from rag.evaluation.significance import bootstrap_interval

BASE = "vanilla"
UNMOVED = ("sft", "dro_no_selector")
"""Recipes whose retriever stays as it was."""
SAMPLES = 8
EXTREMES = 10
GENERAL = "general"
TIMES = ("seconds", "tokens_per_second")


@dataclass(frozen=True)
class RowResult:
    """One finished row."""

    name: str
    label: str
    recipe: str
    selfaug: bool
    seed: int
    changes: Mapping[str, Any]
    """Settings by which it differs from the other rows of its recipe."""
    evaluation: EvaluationFile
    general: Sequence[float]
    """1 or 0 for each general-ability task."""
    kl_drift: float | None
    curve: Sequence[Mapping[str, Any]]
    """Records of its rounds."""
    seconds: float

    @property
    def cell(self) -> tuple[Any, ...]:
        """Rows are compared with those of the same seed and settings."""
        return (self.seed, *sorted((name, str(value)) for name, value in self.changes.items()))

    def column(self, name: str) -> list[float]:
        """The values of a metric, one for each question (or general task) that has one."""
        return list(self.general) if name == GENERAL else list(self.evaluation.values(name).values())

    def table_row(self) -> dict[str, Any]:
        """Means and intervals; without times, which are never the same twice."""
        values = {column.name: self.column(column.name) for column in columns("trials")}
        values = {name: found for name, found in values.items() if found}
        return {
            "name": self.name,
            "label": self.label,
            "recipe": self.recipe,
            "selfaug": self.selfaug,
            "seed": self.seed,
            "changes": dict(self.changes),
            **{name: sum(found) / len(found) for name, found in values.items()},
            **({} if self.kl_drift is None else {"kl_drift": self.kl_drift}),
            "intervals": {name: list(bootstrap_interval(found)) for name, found in values.items()},
        }

    def timeless_curve(self) -> list[dict[str, Any]]:
        """The records without their times."""
        return [without_timings(record) for record in self.curve]


def without_timings(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a round without its times."""
    return {name: value for name, value in record.items() if name not in TIMES}


def retriever_recall(results: Sequence[RowResult]) -> dict[str, float | None]:
    """What the retriever finds of itself: by the base model's row, as training moves the retriever of others.

    Where that is not there: by a row whose retriever was not trained, else nothing.
    """
    untrained = [r for recipe in (BASE, *UNMOVED) for r in results if r.recipe == recipe]
    metrics = untrained[0].evaluation.metrics if untrained else {}
    return {f"retriever_recall@{k}": metrics.get(f"retriever_recall@{k}") for k in (1, 3, 5)}


Pair = tuple[RowResult, RowResult, str]
"""A row, another one that it is compared with, and by which metric."""


def sweep_pairs(results: Sequence[RowResult], ours: str) -> list[Pair]:
    """Ours against every other row, SelfAug against its plain twin, and every row against the base model.

    Args:
        results: In the order of the table; only rows of the same seed and settings are compared.
        ours: The recipe (with `_selfaug`, if so) that the others are held against.
    """
    found: dict[tuple[str, str, str], Pair] = {}
    for cell in cells(results):
        for metric in (column.name for column in columns("trial_comparisons")):
            for one, other in _pairs_of(cell, ours):
                if one.column(metric) and other.column(metric):
                    found.setdefault((one.name, other.name, metric), (one, other, metric))
    return list(found.values())


def cells(results: Sequence[RowResult]) -> list[list[RowResult]]:
    """Rows that are compared with each other: of one seed and one cell of the grid; the base model is in all."""
    keys = dict.fromkeys(r.cell for r in results if r.recipe != BASE) or {results[0].cell: None}
    return [[r for r in results if r.recipe == BASE or r.cell == key] for key in keys]


def _pairs_of(cell: Sequence[RowResult], ours: str) -> list[tuple[RowResult, RowResult]]:
    by_kind = {(r.recipe, r.selfaug): r for r in cell}
    mine = next((r for r in cell if variant_name(r) == ours), None)
    base = by_kind.get((BASE, False))
    pairs = [(mine, other) for other in cell if mine is not None and other is not mine]
    twins = [(r, by_kind.get((r.recipe, False))) for r in cell if r.selfaug]
    pairs += [(one, other) for one, other in twins if other is not None]
    pairs += [(one, base) for one in cell if base is not None and one is not base]
    seen: set[frozenset[str]] = set()
    kept = []
    for one, other in pairs:
        if one is not None and (both := frozenset((one.name, other.name))) not in seen:
            seen.add(both)
            kept.append((one, other))
    return kept


def variant_name(result: RowResult) -> str:
    """The recipe, with `_selfaug` if so."""
    return result.recipe + "_selfaug" * result.selfaug


def compare(pairs: Sequence[Pair]) -> list[PairedComparison]:
    """Paired tests over the same questions; p-values adjusted by Holm over all comparisons of the same metric."""
    found: list[PairedComparison] = []
    for metric in dict.fromkeys(metric for _, _, metric in pairs):
        chosen = [(one, other) for one, other, name in pairs if name == metric]
        if metric == GENERAL:  # task by task: the same for what no evaluation holds
            found += adjusted(
                [paired_comparison(one.name, other.name, GENERAL, one.general, other.general) for one, other in chosen]
            )
        else:
            rows = {r.name: r.evaluation for pair in chosen for r in pair}
            names = [(one.name, other.name) for one, other in chosen]
            found += compare_evaluations(list(rows.values()), metrics=[metric], pairs=names)
    return found


# -- questions -------------------------------------------------------------------------------------------------


def question_of(results: Sequence[RowResult], i: int) -> dict[str, Any]:
    """The i-th question by id, with what every row made of it."""
    widest = max((r.evaluation.records[i] for r in results), key=lambda record: len(record.candidates))
    shown = to_json_object(widest)
    return {
        **{name: shown[name] for name in ("id", "question", "golden_answers", "gold_ids", "candidates")},
        "answers": [_answer(r, r.evaluation.records[i]) for r in results],
    }


def _answer(result: RowResult, record: EvaluationRecord) -> dict[str, Any]:
    shown = to_json_object(record)
    return {
        "row": result.name,
        "text": record.prediction,
        **{name: shown[name] for name in ("question", "citations", "passages", "permutation", "log_prob")},
        **{m.name: record.scores[m.name] for m in metrics_of("answer") if m.name in record.scores},
    }


def extremes(results: Sequence[RowResult], ours: str) -> list[dict[str, Any]]:
    """The questions that ours answers most above the base model, and those most below it, best first and worst first.

    Where there is no base model, by ours alone; where ours is not there, the last row is meant. Of equals the smaller
    id comes first in both lists, and no question is in both.
    """
    shown = cells(results)[0]
    mine = next((r for r in shown if variant_name(r) == ours), shown[-1])
    base = next((r for r in shown if r.recipe == BASE), None)
    gain = _gain(mine, None if base is mine else base)
    places = range(len(mine.evaluation.records))
    best = sorted(places, key=gain, reverse=True)[: min(EXTREMES, (len(places) + 1) // 2)]  # sorted is stable
    worst = [i for i in sorted(places, key=gain) if i not in best][:EXTREMES]
    return [{**question_of(shown, i), "list": "best"} for i in best] + [
        {**question_of(shown, i), "list": "worst"} for i in worst
    ]


def _gain(mine: RowResult, base: RowResult | None) -> Callable[[int], tuple[float, float]]:
    def gain(i: int) -> tuple[float, float]:
        scores = mine.evaluation.records[i].scores
        less = {"f1": 0.0} if base is None else base.evaluation.records[i].scores
        return scores["f1"] - less["f1"], scores["f1"]

    return gain
