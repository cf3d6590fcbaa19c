"""Results as one HTML page: tables, charts, answers.

The page is a single file without scripts: charts are SVG, series are shown and hidden by style rules, and its content
security policy forbids every load. It can be mailed, archived, or opened from a disk without a network, and text from a
data set cannot run in it. The same data always give the same bytes.

`pages` has a module per kind of page, `charts` one per chart (a new chart is one file there, see `chart`),
`html` the templates and the style sheet, `sections` what several pages share, `drawing` the geometry of the figures.
Only `result_files` knows the keys of result files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from indexes.atomic_files import write_file
from rag.report.page import Page
from rag.report.pages.comparison_page import comparison_page
from rag.report.pages.evaluation_page import evaluation_page
from rag.report.pages.forgetting_page import forgetting_page
from rag.report.pages.run_page import run_page
from rag.report.report_data import ComparisonData, EvaluationData, ForgettingData, ReportData, RunData
from rag.report.result_files import parse_result, read_source, with_evaluation_records

__all__ = ["parse_result", "read_source", "render_report", "with_evaluation_records", "write_report"]


def write_report(result: ReportData | Mapping[str, Any], file: str | Path) -> Path:
    """Write the page of a result as one self-contained HTML file.

    Args:
        result: What `read_source` or `parse_result` returns, or what `parse_result` takes.
        file: Where to write; missing folders are created, an existing file is replaced.

    Returns:
        The path of the file.

    Raises:
        DataError: `result` is of an unknown kind, or a comparison without a list of trials.
    """
    page = render_report(result)
    path = Path(file)
    # A lone surrogate, which JSON can hold and UTF-8 cannot, costs one character and not the report.
    encoded = page.encode("utf-8", "replace")
    write_file(path, lambda stream: stream.write(encoded))
    return path


def render_report(result: ReportData | Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        result: As for `write_report`.

    Returns:
        An HTML document.

    Raises:
        DataError: `result` is of an unknown kind, or a comparison without a list of trials.
    """
    return _page(parse_result(result) if isinstance(result, Mapping) else result).html()


def _page(data: ReportData) -> Page:
    match data:
        case EvaluationData():
            return evaluation_page(data)
        case ForgettingData():
            return forgetting_page(data)
        case RunData():
            return run_page(data)
        case ComparisonData():
            return comparison_page(data)
