"""A new chart of reports: tokens per second of every round, on the page of a training run.

    python examples/new_chart.py RUN_FOLDER

In this library a chart is one file in `rag/report/charts/`. A package of your own registers it like this, in a module
that an entry point of the group `dro_rag.plugins` names; then `rag report` draws it too.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rag.report import read_source, write_report
from rag.report.chart import Chart
from rag.report.charts import CHARTS
from rag.report.drawing.line_figure import LineFigure, Series
from rag.report.report_data import RunData
from rag.report.round_chart import round_points
from rag.report.series_style import SeriesStyles


@CHARTS.register("tokens_per_second")
class TokensPerSecond(Chart):
    pages = ("run",)  # and by default in the section "Charts"

    def draw(self, data: RunData, styles: SeriesStyles) -> Sequence[LineFigure]:
        points = round_points(data.records, "tokens_per_second")
        if not points:
            return []  # nothing is drawn for runs that did not record it
        series = Series(data.name, styles.classes(data.name), styles.shape(data.name), points)
        return [LineFigure("speed", "Speed", "Training, without evaluation.", "round", "tokens per second", [series])]


def main(folder: str) -> Path:
    return write_report(read_source(folder), Path(folder) / "report.html")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the report of a training run with one chart more.")
    parser.add_argument("folder", metavar="RUN_FOLDER", help="the output_dir of `rag train`")
    print(main(parser.parse_args().folder))
