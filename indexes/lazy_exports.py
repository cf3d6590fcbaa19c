"""Names of a package that are imported on first use, so that importing the package costs nothing (PEP 562)."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(package: str, exports: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package.

        _EXPORTS = {"Corpus": "indexes.corpora.corpus"}
        __getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)

    Args:
        package: `__name__` of the package.
        exports: For each name the module that defines it. It is a literal dictionary called `_EXPORTS`, from which
            `tests/test_architecture.py` reads the imports.
    """

    def load(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(exports[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *exports})

    return load, names
