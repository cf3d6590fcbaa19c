"""The `rag` command line: dispatches to a command, parses its options, prints its result.

Exit codes: 0 done, 2 usage, 3 data, 4 mismatch or damage, 5 missing resource, 130 interrupted, 1 anything else.
Every command takes `--json [FILE]` (machine-readable result), `--config FILE` (YAML, overridden by flags) and
`--debug` (tracebacks). Each module in `rag.commands` with a table `COMMANDS` adds its commands.
"""

import atexit
import difflib
import gc
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from indexes.errors import RAGError, UsageError
from rag import commands
from rag.commands.command import Command, Report
from rag.commands.option_names import renamed
from rag.logs import set_up_logs

INTERRUPTED = 130
_OBJECTS_BEFORE_COLLECTION = 200_000
_FIRST = (
    "index",
    "search",
    "train",
    "plan",
    "evaluate",
    "forgetting",
    "sweep",
    "report",
    "ask",
    "inspect",
    "models",
    "demo",
)
"""Modules of `rag.commands` in the order of the overview; others follow by name."""


def _found_commands() -> dict[str, Command]:
    """The `COMMANDS` of every module in `rag.commands`: a new command is a new module, listed nowhere else."""
    names = {module.name for module in iter_modules(commands.__path__)}
    ordered = [*(name for name in _FIRST if name in names), *sorted(names - set(_FIRST))]
    found: dict[str, Command] = {}
    for name in ordered:
        found |= getattr(import_module(f"{commands.__name__}.{name}"), "COMMANDS", {})
    return found


COMMANDS = _found_commands()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = [_underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
    if not words or words[0] in _HELP:
        print(_overview())
        return 0 if words else UsageError.exit_code
    if words[1:] and words[1] in _HELP and _verbs(words[0]) and words[0] not in COMMANDS:
        print(_overview(words[0]))
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"dro-rag {version('dro-rag')}")
        return 0
    debug = "--debug" in words
    set_up_logs(debug, quiet="--quiet" in words)
    try:
        name, rest = _split_command(words)
        args = _parse(name, rest)
        _check_json_file(args)
        if argv is None and COMMANDS[name].defers_imports:
            _start_quickly()
        report = COMMANDS[name].run(args)
        _print(report, args)
        return report.exit_code
    except RAGError as error:
        return _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _fail("interrupted; finished work is kept", INTERRUPTED, debug)
    except BrokenPipeError:  # the reader of the output has gone (`rag ... | head`): not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        return _fail(f"{kind}: {error} (an unexpected error; run again with --debug for the traceback)", 1, debug)


def _start_quickly() -> None:
    """Leave out of this process what a command that only answers does not need."""
    from rag.deferred_imports import defer_imports

    # Imports and models make objects that stay. Looking for garbage among them, at the default rate and once more at
    # the end, took a fifth of the time to an answer.
    gc.set_threshold(_OBJECTS_BEFORE_COLLECTION)
    atexit.register(gc.freeze)
    defer_imports()


def _underscored(word: str) -> str:
    """`--max-memory` becomes `--max_memory`, as in `accelerate launch`; values are unchanged."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _overview(noun: str = "") -> str:
    """All commands, or those of one noun ("index")."""
    lines = ["usage: rag COMMAND [options]     (rag COMMAND --help explains one)", ""]
    lines += [f"  {name:<20} {COMMANDS[name].help}" for name in (_verbs(noun) if noun else COMMANDS)]
    return "\n".join(lines if noun else [*lines, "", "  --version            print the version"])


_HELP = ("-h", "--help")


def _verbs(noun: str) -> list[str]:
    """The commands of two words whose first word this is."""
    return [name for name in COMMANDS if name.startswith(f"{noun} ")]


def _split_command(words: list[str]) -> tuple[str, list[str]]:
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    if verbs := [name.split()[1] for name in _verbs(words[0])]:
        raise UsageError(f"`rag {words[0]}` needs one of {verbs}, got {' '.join(words[1:2]) or 'nothing'!r}.")
    raise UsageError(f"The command must be one of {list(COMMANDS)}, got {words[0]!r}.{_nearest(words[0], COMMANDS)}")


def _nearest(word: str, known: Any) -> str:
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""


def _parser(name: str) -> Any:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=f"rag {name}", description=COMMANDS[name].help, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    if COMMANDS[name].json_file:
        parser.add_argument("--json", metavar="FILE", type=str, help="also write the result as JSON to FILE")
    else:
        parser.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and library logs")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    COMMANDS[name].arguments(parser)
    return parser


def _parse(name: str, words: list[str]) -> Any:
    from jsonargparse import ArgumentError

    parser = _parser(name)
    known = [action.dest for action in parser._actions if action.dest not in ("help", "==SUPPRESS==")]
    _refuse_old_names(name, words, known)
    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        message = str(error).removeprefix("error: ").strip()
        raise UsageError(f"rag {name}: {message}{_suggestion(message, known)}") from error


def _refuse_old_names(name: str, words: Sequence[str], known: list[str]) -> None:
    """Refuse renamed options first: otherwise the error would be that the option of the new name is missing."""
    for word in words:
        option = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and option not in known and (new := renamed(option, known)):
            raise UsageError(f"rag {name}: the option --{option} is now called --{new}, got --{option}.")


def _suggestion(message: str, known: list[str]) -> str:
    """What to write instead of an unknown option: its new name, or the nearest one."""
    from training.config import what_became_of

    if " required: " in message:
        return ""
    unknown = re.search(r"(?:[Kk]ey|[Oo]ption|arguments?)[ :]+['\"]?(?:--)?([\w.-]+)", message)
    if unknown is None or unknown.group(1) in known:
        return ""
    option = unknown.group(1)
    if new := renamed(option, known):
        return f" It is now called {new!r}."
    moved = what_became_of(option) if "rounds" in known else ""  # a command with the settings of training
    return f" {moved}" if moved else _nearest(option, known)


def _check_json_file(args: Any) -> None:
    if isinstance(args.json, str) and not Path(args.json).resolve().parent.is_dir():
        raise UsageError(f"--json needs a file in an existing folder, got {args.json}. Create the folder first.")


def _print(report: Report, args: Any) -> None:
    if args.json is True:
        print(json.dumps(report.data, ensure_ascii=False))
        return
    print(report.text)
    if args.json:
        from indexes.atomic_files import write_text

        text = json.dumps(report.data, ensure_ascii=False, indent=2)
        write_text(Path(args.json), text + "\n")


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return code
