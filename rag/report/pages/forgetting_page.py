"""The page of a forgetting file."""

from rag.report.page import Fact, Page, settings_section
from rag.report.report_data import ForgettingData
from rag.report.sections.figure_sections import charts_section
from rag.report.sections.forgetting_table import forgetting_section
from rag.report.series_style import SeriesStyles


def forgetting_page(data: ForgettingData) -> Page:
    """What fine-tuning kept, and what it destroyed."""
    styles = SeriesStyles.of({name: name for name in data.models})
    return Page(
        title="What fine-tuning kept, and what it destroyed",
        introduction="forgetting_introduction.html.jinja",
        data=data,
        styles=styles,
        facts=[Fact(f"Bundle of {name}, sha256", sha256, is_hash=True) for name, sha256 in data.bundles.items()],
        sections=[
            forgetting_section(data, "Measurements"),
            charts_section(data, styles),
            settings_section([("The base model", dict(data.base)), ("Settings", dict(data.settings))]),
        ],
    )
