"""Pairs of trials on the same questions: differences, intervals and p-values."""

from collections.abc import Sequence
from dataclasses import dataclass

from rag.report.page import Section
from rag.report.report_data import PairedTest

MOST = 400
_MANY = 14  # more are shown by metric, each in a table of its own that opens


@dataclass(frozen=True)
class TestTable:
    """The tests of one table.

    Attributes:
        metric: The only metric of the table; None: it has a column with the metric.
        tests: Its lines.
    """

    metric: str | None
    tests: Sequence[PairedTest]

    @property
    def scale(self) -> float:
        """The greatest difference, which fills its bar."""
        return max((abs(test.difference) for test in self.tests if test.difference is not None), default=0.0)


@dataclass(frozen=True)
class PairedTestTables:
    """All tests in one table, or, where they are many, one table for each metric.

    Attributes:
        tests: Those that are shown.
        total: How many there are.
    """

    tests: Sequence[PairedTest]
    total: int

    @property
    def is_adjusted(self) -> bool:
        """Whether p-values are adjusted for the number of comparisons."""
        return any(test.p_adjusted is not None for test in self.tests)

    @property
    def tables(self) -> list[TestTable]:
        """The tables; a single one has no metric of its own."""
        by_metric: dict[str, list[PairedTest]] = {}
        for test in self.tests:
            by_metric.setdefault(test.metric, []).append(test)
        if len(self.tests) <= _MANY or len(by_metric) == 1:
            return [TestTable(None, self.tests)]
        return [TestTable(metric, tests) for metric, tests in by_metric.items()]


def paired_tests_section(tests: Sequence[PairedTest]) -> Section:
    """The paired tests of a comparison."""
    content = PairedTestTables(tests[:MOST], len(tests)) if tests else None
    return Section("comparisons", "Comparisons", "paired_tests.html.jinja", content)
