"""Numbers of questions in a file of JSON lines, which a later call continues: for measurements of hours."""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from training.questions.example import QAExample

Record = dict[str, Any]
"""What was measured of a question; its `"id"` says of which."""


def cache_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `cached_records` and of how questions are chosen."""
    parser.add_argument("--index", required=True, help="index directory")
    parser.add_argument("--encoder", help="encoder folder, if it has moved since the index was built")
    parser.add_argument("--questions", required=True, help="questions with answers and gold ids")
    parser.add_argument("--limit", type=int, default=100, help="only the first so many")
    parser.add_argument("--cache", required=True, help="file of the numbers, which is continued")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further question after this time")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")


def cached_records(
    args: argparse.Namespace,
    settings: Sequence[str],
    examples: Sequence[QAExample],
    start: Callable[[], Callable[[QAExample], Record]],
) -> Iterator[Record]:
    """The records of all questions: first those of the cache, then new ones, which are added to it.

    Args:
        args: With the options of `cache_arguments`.
        settings: Names of the options that a record depends on; a cache of other ones is refused.
        examples: The questions.
        start: Loads what is needed, and gives what measures a question; not called where the cache is complete.
    """
    cache, wanted = Path(args.cache), {name: getattr(args, name) for name in settings}
    known: dict[str, Record] = {}
    if cache.is_file():
        first, *lines = cache.read_text(encoding="utf-8").splitlines()
        if json.loads(first) != wanted:
            raise SystemExit(f"{cache} holds numbers of other settings: {first}. Give another --cache.")
        known = {record["id"]: record for record in map(json.loads, lines)}
    else:
        cache.write_text(json.dumps(wanted) + "\n", encoding="utf-8")
    yield from (known[e.id] for e in examples if e.id in known)
    missing = [e for e in examples if e.id not in known]
    if not missing or args.seconds <= 0:
        return
    started, measure = time.monotonic(), start()
    with cache.open("a", encoding="utf-8") as file:
        for number, example in enumerate(missing, 1):
            if time.monotonic() - started > args.seconds:
                return
            record = measure(example)
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(f"{number} of {len(missing)} questions measured", end="\r", file=sys.stderr)
            yield record


def print_rows(
    args: argparse.Namespace,
    records: Iterator[Record],
    rows_of: Callable[[Sequence[Record]], list[dict[str, Any]]],
    text: Callable[[list[dict[str, Any]], int], str],
) -> None:
    """Print the rows that follow from all records, as `text` or as JSON."""
    found = list(records)
    if not found:
        raise SystemExit("No question has been measured yet: give more --seconds.")
    rows = rows_of(found)
    print(json.dumps(rows) if args.json else text(rows, len(found)))
