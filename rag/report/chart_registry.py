"""The door for new charts: a class in one file of `rag/report/charts/`, or anywhere else, with `@register_chart`.

    @register_chart
    class TokensPerSecond(Chart):
        kind = "tokens-per-second"
        pages = ("run",)

        def draw(self, data: RunData, styles: SeriesStyles) -> list[LineFigure]:
            return [LineFigure(self.kind, "Speed", "Tokens of the M-step.", "round", "tokens per second", ...)]

A chart says on which pages and in which section it is drawn. Modules of `rag.report.charts` are imported when a report
is made; a module elsewhere registers its chart when it is imported.
"""

import functools
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from indexes.errors import UsageError
from rag.report.series_style import SeriesStyles

PAGE_KINDS = ("evaluation", "forgetting", "run", "sweep", "comparison")
SECTIONS = ("rounds", "recall", "tradeoff", "charts")
"""Sections of pages that draw charts; "charts" is the last one of every page."""


class Figure(Protocol):
    """What a template of `rag/report/html/` draws, under the name `figure`."""

    @property
    def template(self) -> Any:
        """The name of a template in `rag/report/html/`, or a `jinja2.Template` of `environment().from_string`."""
        ...


class Chart(ABC):
    """One chart of reports; subclasses are registered with `register_chart`.

    Attributes:
        kind: Its unique name, which is also the key of its figure unless it draws several.
        pages: Kinds of pages that show it, of `PAGE_KINDS`.
        section: Section of these pages, of `SECTIONS`.
        order: Place within its section: lower numbers come first.
    """

    kind: ClassVar[str]
    pages: ClassVar[Sequence[str]]
    section: ClassVar[str] = "charts"
    order: ClassVar[int] = 100

    @abstractmethod
    def draw(self, data: Any, styles: SeriesStyles) -> Sequence[Figure]:
        """The figures of a page; none where `data` does not have the numbers.

        Args:
            data: What the page shows: `RunData`, `EvaluationData`, `ForgettingData` or `ComparisonData`, by `pages`.
            styles: Colours, marks and labels of the page's series.
        """


C = TypeVar("C", bound=type[Chart])
_CHARTS: dict[str, Chart] = {}


def register_chart(chart: C) -> C:
    """Class decorator: have reports draw this chart.

    Raises:
        UsageError: Another chart of this kind is registered, or a page or section does not exist.
    """
    known = _CHARTS.get(chart.kind)
    # A module that is reloaded registers its class again.
    if known is not None and (type(known).__module__, type(known).__qualname__) != (
        chart.__module__,
        chart.__qualname__,
    ):
        raise UsageError(
            f"Kinds of charts must be unique; {chart.kind!r} is {type(known).__name__} of {type(known).__module__}. "
            "Give the new chart another kind."
        )
    if unknown := sorted(set(chart.pages) - set(PAGE_KINDS)):
        raise UsageError(f"The pages of a chart must be among {list(PAGE_KINDS)}; {chart.kind!r} names {unknown}.")
    if chart.section not in SECTIONS:
        raise UsageError(
            f"The section of a chart must be one of {list(SECTIONS)}; {chart.kind!r} names {chart.section!r}."
        )
    _CHARTS[chart.kind] = chart()
    return chart


def registered_charts() -> dict[str, Chart]:
    """Every chart by kind."""
    _import_own_charts()
    return dict(_CHARTS)


def figures_of(section: str, data: Any, styles: SeriesStyles) -> list[Figure]:
    """The figures of one section of the page for `data`, in their order."""
    charts = [c for c in registered_charts().values() if c.section == section and data.kind in c.pages]
    charts.sort(key=lambda chart: (chart.order, chart.kind))
    return [figure for chart in charts for figure in chart.draw(data, styles)]


@functools.cache
def _import_own_charts() -> None:
    from rag.report import charts

    for module in pkgutil.iter_modules(charts.__path__):
        importlib.import_module(f"rag.report.charts.{module.name}")
