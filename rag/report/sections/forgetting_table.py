"""What fine-tuning destroyed: every measurement of a forgetting file, with intervals and differences from the base."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from rag.report.page import Section
from rag.report.report_data import WHOLE_TASK, ForgettingData, ForgettingDifference, Measurement, TaskMetric

T = TypeVar("T")

MOST_GROUPS = 200
MOST_MODELS = 40


@dataclass(frozen=True)
class GroupTable:
    """The groups of one task, the greatest losses first.

    Attributes:
        column: The task and its metric.
        groups: Those that are shown.
        total: How many there are.
        base: Models without differences, in most files the base model.
        tuned: Models with differences from the base.
    """

    column: TaskMetric
    groups: Sequence[str]
    total: int
    base: Sequence[str]
    tuned: Sequence[str]


@dataclass(frozen=True)
class ForgettingTables:
    """A table over all items of every task, and one by group for each task that has groups.

    Attributes:
        data: The forgetting file.
    """

    data: ForgettingData

    @property
    def models(self) -> list[str]:
        """The models that are shown, in the order of the file."""
        return list(self.data.models[:MOST_MODELS])

    @cached_property
    def columns(self) -> list[TaskMetric]:
        """Tasks and metrics that were measured on all items."""
        return _unique(m.column for m in self.data.measurements if m.group == WHOLE_TASK)

    def measurement(self, model: str, column: TaskMetric, group: str = WHOLE_TASK) -> Measurement | None:
        """The value of a model on a group."""
        return self._measurements.get((model, column, group))

    def difference(self, model: str, column: TaskMetric, group: str = WHOLE_TASK) -> ForgettingDifference | None:
        """The difference of a model from the base on a group, if it is known."""
        return self._differences.get((model, column, group))

    def direction(self, column: TaskMetric) -> str:
        """Which way is better, in words; empty if the file does not say."""
        ways = {m.higher_is_better for m in self.data.measurements if m.column == column}
        return "higher is better" if ways == {True} else "lower is better" if ways == {False} else ""

    def items(self, table: GroupTable, group: str) -> float | None:
        """How many items a group has."""
        found = (self.measurement(model, table.column, group) for model in [*table.base, *table.tuned])
        return next((measurement.estimate.n for measurement in found if measurement), None)

    @cached_property
    def group_tables(self) -> list[GroupTable]:
        """A table for each task with groups."""
        columns = _unique(m.column for m in self.data.measurements)
        return [table for table in map(self._group_table, columns) if table.total]

    def _group_table(self, column: TaskMetric) -> GroupTable:
        measured = [m for m in self.data.measurements if m.column == column]
        groups = _unique(m.group for m in measured if m.group != WHOLE_TASK)
        tuned = [model for model in self.data.models if any((model, column, g) in self._differences for g in groups)]
        base = [
            model
            for model in self.data.models
            if model not in tuned and any((model, column, g) in self._measurements for g in groups)
        ]
        sign = -1.0 if any(m.higher_is_better is False for m in measured) else 1.0
        gains = {group: self._mean_gain(column, group, sign) for group in groups}
        shown = sorted(groups, key=lambda group: (gains[group], group))[:MOST_GROUPS]
        return GroupTable(column, shown, len(groups), base, tuned[:MOST_MODELS])

    def _mean_gain(self, column: TaskMetric, group: str, sign: float) -> float:
        """The mean difference of all models, upwards for better; groups without one come last."""
        found = [
            d.difference
            for d in self._differences.values()
            if (d.column, d.group) == (column, group) and d.difference is not None
        ]
        return sign * sum(found) / len(found) if found else math.inf

    @cached_property
    def _measurements(self) -> dict[tuple[str, TaskMetric, str], Measurement]:
        return {(m.model, m.column, m.group): m for m in reversed(self.data.measurements)}

    @cached_property
    def _differences(self) -> dict[tuple[str, TaskMetric, str], ForgettingDifference]:
        return {(d.model, d.column, d.group): d for d in reversed(self.data.differences)}


def forgetting_section(data: ForgettingData, heading: str = "Forgetting") -> Section:
    """All tables of a forgetting file."""
    content = ForgettingTables(data) if data.measurements else None
    return Section("forgetting", heading, "forgetting.html.jinja", content)


def _unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))
