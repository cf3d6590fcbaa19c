"""The door for new charts.

A built-in chart is a module of `rag/report/charts/` whose `chart` is a `Chart`; its kind is the module's name, and it
is listed nowhere else. Other packages register theirs:

    @CHARTS.register("tokens_per_second")
    class TokensPerSecond(Chart):
        pages = ("run",)

        def draw(self, data: RunData, styles: SeriesStyles) -> list[LineFigure]:
            points = round_points(data.records, "tokens_per_second")
            series = [Series(data.name, styles.classes(data.name), styles.shape(data.name), points)]
            return [LineFigure("speed", "Speed", "Of the M-step.", "round", "tokens per second", series)]
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from indexes.errors import UsageError
from rag.report.series_style import SeriesStyles

PAGES = ("evaluation", "forgetting", "run", "sweep")
"""Kinds of pages, which are the kinds of their data."""
SECTIONS = ("rounds", "recall", "tradeoff", "charts")
"""Sections of pages that draw charts; every page has "charts", before its settings."""


class Figure(Protocol):
    """What a template draws under the name `figure`, for example a `LineFigure` or a `ScatterFigure`."""

    @property
    def template(self) -> Any:
        """The name of a template in `rag/report/html/`, or a template made by `environment().from_string`."""
        ...


class Chart(ABC):
    """One chart of reports.

    Attributes:
        pages: Kinds of pages that show it, of `PAGES`.
        section: The section of these pages, of `SECTIONS`.
        order: Its place within the section: lower numbers come first.

    Raises:
        UsageError: On the definition of a class that names another page or section.
    """

    pages: ClassVar[Sequence[str]] = ()
    section: ClassVar[str] = "charts"
    order: int = 100

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if unknown := sorted(set(cls.pages) - set(PAGES)):
            raise UsageError(f"The pages of a chart must be among {list(PAGES)}; {cls.__name__} names {unknown}.")
        if cls.section not in SECTIONS:
            raise UsageError(
                f"The section of a chart must be one of {list(SECTIONS)}; {cls.__name__} names {cls.section!r}."
            )

    @abstractmethod
    def draw(self, data: Any, styles: SeriesStyles) -> Sequence[Figure]:
        """The figures of a page; none where `data` does not have the numbers.

        Args:
            data: What the page shows: `RunData`, `EvaluationData`, `ForgettingData` or `ComparisonData`.
            styles: Colours, marks and labels of the page's series.
        """
