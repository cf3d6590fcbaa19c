"""Registries: named kinds of selectors, retrievers, metrics and so on, open to packages of other people.

    SELECTORS = Registry("selector", builtin={"listwise": "retriever.listwise_selector:ListwiseSelector"})

    @SELECTORS.register("nearest")          # in any module that is imported before the kind is asked for
    class NearestSelector(Selector): ...

A package that is not imported makes its kinds known by an entry point of the group ``dro_rag.plugins``, whose value is
the module that registers them:

    [project.entry-points."dro_rag.plugins"]
    my_package = "my_package.selectors"

Entry points are loaded once per process, when a kind is asked for that is neither built in nor registered yet.
Built-in kinds are names of modules, imported on first use, so that the names of all kinds can be listed (in ``--help``,
in an error message) without importing torch.
"""

import logging
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from indexes.errors import UsageError

logger = logging.getLogger(__name__)

T = TypeVar("T")

GROUP = "dro_rag.plugins"
"""The group of entry points through which a package registers its kinds."""


class Registry(Generic[T]):
    """What is known under the name of a kind: classes, functions or objects of one sort.

    Args:
        noun: What is registered, in the singular; it opens error messages ("selector").
        builtin: Kinds of this library, as "module:attribute"; a module is imported when its kind is first asked for.
    """

    def __init__(self, noun: str, builtin: Mapping[str, str] | None = None) -> None:
        self.noun = noun
        self._builtin = dict(builtin or {})
        self._registered: dict[str, T] = {}

    def __repr__(self) -> str:
        return f"Registry({self.noun!r}, kinds={sorted({*self._builtin, *self._registered})})"

    def register(self, kind: str, entry: T | None = None) -> Any:
        """Register an entry under a kind: ``register(kind, entry)``, or ``@register(kind)`` above a class or function.

        Raises:
            UsageError: The kind is taken by something else.
        """
        if entry is None:
            return lambda decorated: self.register(kind, decorated)
        taken = self._builtin.get(kind) or self._registered.get(kind)
        if taken is not None and taken != entry:
            raise UsageError(
                f"Every {self.noun} needs a kind of its own, but {kind!r} is registered for {_described(taken)}. "
                f"Register {_described(entry)} under another name."
            )
        self._registered[kind] = entry
        return entry

    def get(self, kind: str, package: str | None = None) -> T:
        """The entry of a kind.

        Args:
            kind: As registered.
            package: The package that a saved file names as the one that registers this kind, for the error message.

        Raises:
            UsageError: The kind is not registered, or a plugin cannot be imported.
        """
        if kind not in self._registered and kind in self._builtin:
            self._registered[kind] = _attribute(self._builtin[kind])
        if kind not in self._registered:
            load_plugins()
        if kind not in self._registered:
            raise UsageError(self._unknown(kind, package))
        return self._registered[kind]

    def kinds(self) -> list[str]:
        """All kinds: built-in ones in their order, then those of plugins and of this process."""
        load_plugins()
        return list(dict.fromkeys([*self._builtin, *self._registered]))

    def is_builtin(self, kind: str) -> bool:
        """Whether a kind belongs to this library."""
        return kind in self._builtin

    def __contains__(self, kind: object) -> bool:
        return kind in self._builtin or kind in self.kinds()

    def __iter__(self) -> Iterator[str]:
        return iter(self.kinds())

    def items(self) -> list[tuple[str, T]]:
        """All kinds with their entries; imports the modules of built-in ones."""
        return [(kind, self.get(kind)) for kind in self.kinds()]

    def package_of(self, kind: str) -> str:
        """The top-level package whose code registered a kind, which a bundle writes beside it."""
        entry = self.get(kind)
        module = getattr(entry, "__module__", None) or type(entry).__module__
        return module.partition(".")[0]

    def _unknown(self, kind: str, package: str | None) -> str:
        known = self.kinds()
        nearest = get_close_matches(kind, known, n=1)
        message = f"The {self.noun} must be one of {known}, got {kind!r}."
        if nearest:
            message += f" Did you mean {nearest[0]!r}?"
        if package:
            message += f" It is registered by the package {package!r}: install or import it."
        return message


_plugins_loaded = False


def load_plugins() -> None:
    """Import what the entry points of other packages name, once per process.

    Raises:
        UsageError: A plugin fails to import.
    """
    global _plugins_loaded
    if _plugins_loaded:
        return
    for entry_point in entry_points(group=GROUP):
        _load(entry_point)
    _plugins_loaded = True


def _load(entry_point: EntryPoint) -> None:
    try:
        entry_point.load()
    except Exception as error:
        package = entry_point.dist.name if entry_point.dist else "unknown"
        raise UsageError(
            f"The entry point {entry_point.name!r} = {entry_point.value!r} (group {GROUP!r}) "
            f"of the package {package!r} must be importable, got {type(error).__name__}: {error}. Repair or remove it."
        ) from error
    logger.debug("loaded the plugin %s = %s", entry_point.name, entry_point.value)


def _attribute(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _described(entry: object) -> str:
    if isinstance(entry, str):
        return entry
    return getattr(entry, "__qualname__", None) or repr(entry)
