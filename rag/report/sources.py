"""From a path to what a report shows: a run, an evaluation, a forgetting file, a sweep, or a laboratory's result."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from indexes.errors import DataError
from rag.report.values import mapping, mappings

SWEEP_FILE = "sweep.json"
SECONDS_FILE = "seconds.json"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
KINDS = ("evaluation", "forgetting", "sweep")
KNOWN = (
    f"a run folder ({RUN_FILE} and {METRICS_FILE}), a sweep's folder or {SWEEP_FILE}, or the JSON file of an "
    "evaluation, of a forgetting measurement or of `rag demo --json`"
)


def read_source(path: str | Path, *, forgetting: str | Path | None = None) -> dict[str, Any]:
    """What `render_report` takes, read from a file or folder and recognised by content.

    Args:
        path: A run folder, a sweep's folder, or a JSON file.
        forgetting: A forgetting file to show beside it.

    Raises:
        DataError: Nothing that a report can show; says what was found.
    """
    path = Path(path)
    if path.name in (RUN_FILE, METRICS_FILE):
        path = path.parent
    data = _read_folder(path) if path.is_dir() else _read_file(path)
    if forgetting is not None:
        data["forgetting"] = _read_forgetting(Path(forgetting))
    return data


def _read_folder(folder: Path) -> dict[str, Any]:
    if (folder / SWEEP_FILE).is_file():
        return _read_file(folder / SWEEP_FILE)
    if (folder / RUN_FILE).is_file():
        return read_run(folder)
    names = sorted(entry.name for entry in folder.iterdir())
    found = f"holds {', '.join(names[:8])}{' and more' if len(names) > 8 else ''}" if names else "is empty"
    raise DataError(f"A report is made of {KNOWN}; {folder} {found}. Name another path.")


def _read_file(file: Path) -> dict[str, Any]:
    data = _read_json(file)
    if data.get("kind") not in KINDS and (data.get("kind") is not None or "rows" not in data):
        keys = sorted(data)
        found = f"is of kind {data['kind']!r}" if data.get("kind") else f"holds the keys {keys[:12]}"
        raise DataError(f"A report is made of {KNOWN}; {file} {found}. Name another file.")
    return _read_sweep(data, file.parent) if data.get("kind") == "sweep" else data


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise DataError(f"A report is made of {KNOWN}; there is no {file}. Check the path.")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"A report is made of {KNOWN}; {file} is no JSON ({error}). Check the path.") from error
    if not isinstance(data, dict):
        raise DataError(f"A report is made of {KNOWN}; {file} holds a {type(data).__name__}. Name another file.")
    return data


def _read_sweep(sweep: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    times = folder / SECONDS_FILE
    return with_rows(with_seconds(sweep, _read_json(times)) if times.is_file() else sweep, folder)


def with_seconds(sweep: Mapping[str, Any], seconds: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep with its times, which its own file leaves out so that it is the same each time."""
    of_rows = mapping(seconds.get("rows"))
    rows = [{**row, "seconds": of_rows.get(str(row.get("name")))} for row in mappings(sweep.get("rows"))]
    return {**sweep, "rows": rows, "seconds": seconds.get("total")}


def read_run(folder: str | Path) -> dict[str, Any]:
    """A run folder of `training.DROTrainer`.

    Raises:
        DataError: A file that is no JSON, or no round at all.
    """
    folder = Path(folder)
    run, metrics = folder / RUN_FILE, folder / METRICS_FILE
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break  # a round that was being written when the run was killed
            raise DataError(f"{metrics}, line {number}: must be JSON ({error}). Is it a run's file?") from error
    if not records:
        raise DataError(
            f"A run's report needs its rounds; {folder} has no finished one in {METRICS_FILE}. Train first."
        )
    written = _read_json(run)
    name = folder.resolve().name
    return {"kind": "run", "name": name, "run": written, "records": records}


def with_rows(sweep: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """A sweep with the questions of one of its evaluations, where its file lies in the sweep's folder.

    From them the ceilings of recall@k are found. Of the evaluations the first with the most cut-offs is taken:
    pipelines that read documents alone may retrieve fewer, and training may move a retriever.
    """
    evaluations = mapping(sweep.get("evaluations"))
    order = [str(row.get("name")) for row in mappings(sweep.get("rows")) if str(row.get("name")) in evaluations]
    widest = sorted(order, key=lambda name: len(mapping(mapping(evaluations[name]).get("metrics"))), reverse=True)
    for name in widest:
        file = Path(folder) / "rows" / str(name) / "evaluation.json"
        if Path(str(name)).name == name and file.is_file():
            with contextlib.suppress(ValueError):  # the page is the sweep's; what stands beside it only adds to it
                records = mapping(json.loads(file.read_text(encoding="utf-8"))).get("records")
                with_records = {**mapping(evaluations[name]), "records": records}
                return {**sweep, "evaluations": {**evaluations, name: with_records}}
    return dict(sweep)


def _read_forgetting(file: Path) -> dict[str, Any]:
    data = _read_file(file)
    if data.get("kind") != "forgetting":
        raise DataError(f"--forgetting takes a file of `rag forgetting`; {file} is of kind {data.get('kind')!r}.")
    return data
