"""Results as one HTML page: tables, charts, answers.

The page is a single file without scripts: charts are SVG, series are shown and hidden by style rules, and its
content policy forbids every load. It can be mailed, archived, or opened from a disk without a network, and text
from a data set cannot run in it. The same data always give the same bytes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from indexes.atomic_files import write_file
from indexes.errors import DataError
from rag.report.comparison import render_comparison
from rag.report.evaluation import render_evaluation
from rag.report.forgetting import render_forgetting
from rag.report.run import render_run
from rag.report.sources import read_run, read_source, with_rows

__all__ = ["read_run", "read_source", "render_report", "with_rows", "write_report"]

_PAGES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "evaluation": render_evaluation,
    "forgetting": render_forgetting,
    "run": render_run,
    "sweep": render_comparison,
}


def write_report(result: Mapping[str, Any], file: str | Path) -> Path:
    """Write the page of a result as one self-contained HTML file.

    Args:
        result: What was measured. `kind` says what it is: "evaluation", "forgetting", "run" (as `read_run` reads a
            folder) or "sweep"; without it, it is the result of a laboratory. Of a sweep or a laboratory `rows` is
            needed: one mapping per pipeline with `name`, `label` and the metrics. All else is shown where it is
            there. Values that are no finite numbers are left out.
        file: Where to write; missing folders are made, an older file is replaced.

    Returns:
        The path of the file.

    Raises:
        DataError: Another kind, or a comparison without a list of rows.
    """
    page = render_report(result)
    path = Path(file)
    # A lone surrogate, which JSON can hold and UTF-8 cannot, must not cost the whole report.
    encoded = page.encode("utf-8", "replace")
    write_file(path, lambda stream: stream.write(encoded))
    return path


def render_report(result: Mapping[str, Any]) -> str:
    """The page as text; `write_report` says what it shows.

    Args:
        result: As for `write_report`.

    Returns:
        An HTML document.

    Raises:
        DataError: Another kind, or a comparison without a list of rows.
    """
    kind = result.get("kind")
    if kind is None:
        return render_comparison(result)
    if kind not in _PAGES:
        raise DataError(
            f"A report shows one of the kinds {sorted(_PAGES)}; {kind!r} came. Pass the file of one of them."
        )
    return _PAGES[kind](result)
