"""What a test works with, read off its code: its own, its fixtures', and that of the helper functions in tests/.

conftest.py turns each kind into a mark of the same name, so that no test has to be run, or marked by hand:

| mark | the test, or a fixture or helper function that it uses ... |
|---|---|
| process | starts another process |
| training | trains over whole rounds, or runs a sweep or demo experiment |
| browser | opens a page in a browser |
| milvus | needs the `milvus` extra |

The code of the library itself is not followed: what starts processes or trains is listed by name.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

TESTS = Path(__file__).resolve().parent
KINDS: Mapping[str, frozenset[str]] = {
    "process": frozenset({"subprocess", "multiprocessing", "fork", "WorkerProcesses", "ProcessPoolExecutor"}),
    "training": frozenset({"DROTrainer", "MStepTrainer", "measure_training", "Sweep", "Lab", "run_demo"}),
    "browser": frozenset({"find_browser"}),
    "milvus": frozenset({"MilvusIndex", "milvus_lite", "pymilvus"}),
}
TRAINING_COMMANDS = frozenset({"train", "sweep", "demo", "--measure"})
"""Of `rag`: a test that runs the command line and names one of them trains."""


def kinds(
    test: Callable[..., Any], fixtures: Iterable[Callable[..., Any]] = (), parameters: Iterable[object] = ()
) -> set[str]:
    """The kinds of a test, as in the table above.

    Args:
        test: The test function.
        fixtures: The functions behind all fixtures that it uses, directly or through other fixtures.
        parameters: The values of its parametrization.
    """
    used = frozenset().union(*(_names(function) for function in (test, *fixtures)))
    words = used.union(*(_words(value) for value in parameters))
    found = {kind for kind, names in KINDS.items() if names & used}
    if "rag.cli.main" in used and TRAINING_COMMANDS & words:
        found.add("training")
    return found


@cache
def _names(start: Callable[..., Any]) -> frozenset[str]:
    """Every name and string that a function, and what it reaches in tests/, is written with."""
    found: set[str] = set()
    seen: set[int] = set()
    waiting: list[object] = [start]
    while waiting:
        thing = _unwrapped(waiting.pop())
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, FunctionType) and _in_tests(thing.__code__.co_filename):
            names = set(_of_code(thing.__code__))
            found |= {thing.__name__, *names}
            waiting += _reached(thing, names)
        elif isinstance(thing, type) and _in_tests(_file_of(sys.modules.get(thing.__module__))):
            waiting += [value for value in vars(thing).values() if isinstance(value, FunctionType)]
        else:
            found |= _words(thing) | _path(thing)
    return frozenset(found)


def _unwrapped(thing: object) -> object:
    """A function as it was written, without decorators, Hypothesis and the binding to an object."""
    if hypothesis := getattr(thing, "hypothesis", None):
        thing = getattr(hypothesis, "inner_test", thing)
    thing = inspect.unwrap(thing) if callable(thing) else thing
    return getattr(thing, "__func__", thing)


def _of_code(code: CodeType) -> Iterator[str]:
    """Names and strings of a function's code, and of the functions inside it."""
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _of_code(constant)
        else:
            yield from _words(constant)


def _reached(function: FunctionType, names: Iterable[str]) -> list[object]:
    """What the names stand for: globals, variables of the functions around it, and functions of modules in tests/."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    scope = function.__globals__ | {name: cell.cell_contents for name, cell in cells.items()}
    found = [scope[name] for name in names if name in scope]
    modules = [thing for thing in found if isinstance(thing, ModuleType) and _in_tests(_file_of(thing))]
    return found + [vars(module)[name] for module in modules for name in names if name in vars(module)]


def _words(value: object) -> frozenset[str]:
    """A string, with the words of a script that it holds, and the strings of a collection."""
    if isinstance(value, str):
        return frozenset({value, *re.findall(r"\w+", value)} if "import " in value else {value})
    if isinstance(value, list | tuple | set | frozenset):
        return frozenset().union(*map(_words, value))
    return frozenset()


def _path(thing: object) -> frozenset[str]:
    """How a module, a class or a function of a library is called: by itself and with its module."""
    if isinstance(thing, ModuleType):
        return frozenset({thing.__name__.partition(".")[0]})
    if isinstance(thing, type | FunctionType):
        return frozenset({thing.__name__, f"{thing.__module__}.{thing.__name__}"})
    return frozenset()


def _in_tests(file: str | None) -> bool:
    return file is not None and Path(file).is_relative_to(TESTS)


def _file_of(module: object) -> str | None:
    return getattr(module, "__file__", None)
