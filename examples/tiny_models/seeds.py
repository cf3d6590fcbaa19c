"""Several seeds of the demo experiment in one table: mean and spread of every number, and of every paired difference.

    for seed in 1 2 3; do rag demo --full --seed $seed --json full-$seed.json; done
    python examples/tiny_models/seeds.py full-1.json full-2.json full-3.json

The spread is the sample standard deviation over seeds. A seed changes the world, the questions and every draw, so it
is wider than the bootstrap interval of one run, which only redraws that run's questions.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

METRICS = (
    "exact_match",
    "f1",
    "selector_recall@1",
    "selector_recall@3",
    "selector_recall@5",
    "general",
    "kl_drift",
    "seconds",
)
SHARES = ("exact_match", "f1", "selector_recall@1", "selector_recall@3", "selector_recall@5", "general")


def main() -> None:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="what `rag demo --json FILE` wrote, one per seed")
    args = parser.parse_args()
    print(summary([json.loads(file.read_text(encoding="utf-8")) for file in args.files]))


def summary(runs: Sequence[Mapping[str, Any]]) -> str:
    """Both tables in Markdown; only trials and comparisons that every run has."""
    return "\n".join([*_scores(runs), "", *_differences(runs)])


def _scores(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    tables = [{trial["name"]: trial for trial in run["trials"]} for run in runs]
    lines = [f"| trial | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 1) + "|"]
    for name in _shared(tables):
        cells = [_cell(metric, [table[name].get(metric) for table in tables]) for metric in METRICS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _differences(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    tables = [{(c["name"], c["against"], c["metric"]): c for c in run["comparisons"]} for run in runs]
    lines = ["| difference | metric | points | relative | p of each seed |", "|---|---|---|---|---|"]
    for key in _shared(tables):
        found = [table[key] for table in tables]
        relative = [c["relative"] for c in found]
        shares = _cell("exact_match", relative) + (" %" if None not in relative else "")
        points = _cell("exact_match", [c["difference"] for c in found])
        p = ", ".join(f"{c['p']:.4f}" for c in found)
        lines.append(f"| {key[0]} - {key[1]} | {key[2]} | {points} | {shares} | {p} |")
    return lines


def _shared(tables: Sequence[Mapping[Any, Any]]) -> Iterable[Any]:
    return [key for key in tables[0] if all(key in table for table in tables)]


def _cell(metric: str, values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    scale, digits = (100, 1) if metric in SHARES else (1, 0) if metric == "seconds" else (1, 3)
    spread = f" ± {scale * stdev(known):.{digits}f}" if len(known) > 1 else ""
    return f"{scale * mean(known):.{digits}f}{spread}"


if __name__ == "__main__":
    main()
