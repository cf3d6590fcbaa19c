"""`rag report`: a run, an evaluation, a forgetting measurement or a sweep as one page."""

from pathlib import Path
from typing import Any

from rag.commands.command import Command, Report

_FILE = "report.html"


def _report_arguments(parser: Any) -> None:
    parser.add_argument("path", type=str, help="run folder, sweep folder, or the JSON file of a result")
    parser.add_argument(
        "--output", type=str, help=f"page to write (default: {_FILE} in the folder, or NAME.html next to a file)"
    )
    parser.add_argument("--forgetting", type=str, help="file of `rag forgetting` to show in the page")


def _report(args: Any) -> Report:
    from rag.report import read_source, write_report

    path = Path(args.path)
    data = read_source(path, forgetting=args.forgetting)
    default = path / _FILE if path.is_dir() else path.with_suffix(".html")
    page = write_report(data, default if args.output is None else args.output)
    return Report(f"Wrote the report of this {data.kind}: {page}", {"report": str(page), "kind": data.kind})


COMMANDS: dict[str, Command] = {
    "report": Command("a run, an evaluation or a sweep as one HTML page", _report_arguments, _report),
}
