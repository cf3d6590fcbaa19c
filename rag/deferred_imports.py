"""Imports that answering a question does not need, put off until something uses what they give.

On the way to a language model and an encoder, torch 2.13, transformers 5.23 and sentence-transformers 6.2 import what
only compilation, symbolic shapes, tensor parallelism, training, detection losses and sparse vectors use: torch's
compiler, sympy, distributed tensors, scikit-learn, scipy, `datasets` and pandas, together half of the time to a first
answer. None of them can be asked to leave that out.

`defer_imports` makes import statements of `_DEFERRED` give references where the named libraries execute them. A
reference imports its module when it is called, subclassed, or asked for an attribute, so whatever is used works as
ever, later. `isinstance` says False without importing: as long as a module is not imported there are no objects of its
classes. Import statements of all others are unchanged, and `sys.modules` never holds anything but real modules. When a
library changes how it uses a name, it is at worst slow again: what is not listed here is imported at once.

For a process of the command line that only answers (`rag.cli.main`). It holds until the process ends.
"""

import builtins
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial, wraps
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, Union

_LIBRARIES = ("peft", "sentence_transformers", "transformers")
_DEFERRED = {
    # Training: annotations and isinstance in trainers, losses and model cards.
    "datasets": _LIBRARIES,
    # One function each: distances other than those of an index, the matching of DETR's loss.
    "sklearn.metrics": ("sentence_transformers.util.similarity",),
    "scipy.optimize": ("transformers.loss",),
    # isinstance, and the class of sparse vectors.
    "scipy.sparse": ("sentence_transformers.util",),
    # isinstance with a size that is an expression.
    "sympy": ("torch._prims_common",),
    # A context of masks that are compiled.
    "torch._dynamo._trace_wrapped_higher_order_op": ("transformers.masking_utils",),
    # isinstance with a tensor that is split over several processes.
    "torch.distributed.tensor": _LIBRARIES,
}
"""Modules whose import is put off, and the importers for which it is: packages with all their modules, or modules."""

_COMPILER = "torch._dynamo"
_COMPILER_IMPORTERS = ("torch._compile", "torch.compiler", "transformers")
_SYMBOLIC_SHAPES = "torch.fx.experimental.symbolic_shapes"
_SYMBOLIC_SHAPES_IMPORTERS = {"torch", "torch._prims_common", "torch._refs"}
_MODEL_FOLDERS = "transformers.utils.import_utils"
_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
TESTED_RELEASES = {"torch": "2.13", "transformers": "5.23", "sentence-transformers": "6.2", "peft": "0.21"}
"""Releases whose imports are known. With any other one nothing is put off: slower, and sure to work."""


def defer_imports() -> None:
    """Put off the imports of `_DEFERRED` and of torch's compiler for the rest of this process; imports torch.

    It does nothing in a process that a launcher started, where tensors may be distributed, nothing for modules that are
    imported already, and nothing unless all of `TESTED_RELEASES` are installed.
    """
    if isinstance(builtins.__import__, _ImportStatement) or any(name in os.environ for name in _LAUNCHED):
        return
    if not all(_is_release(*tested) for tested in TESTED_RELEASES.items()):
        return
    builtins.__import__ = _ImportStatement(builtins.__import__)
    import torch

    if _COMPILER not in sys.modules:
        torch._dynamo = _CompilerStandIn()  # type: ignore[assignment]
    _leave_out_distributed_tensors()


def _is_release(package: str, release: str) -> bool:
    try:
        return version(package).startswith(f"{release}.")
    except PackageNotFoundError:
        return False


def _leave_out_distributed_tensors() -> None:
    """Tell transformers that this process does not divide models, as if torch had been built without that.

    When imported it registers ways to divide a model over processes, which makes objects of `torch.distributed.tensor`:
    more than references can stand for. Whether to do so it asks once and remembers the answer.
    """
    import torch

    if not torch.distributed.is_available() or "torch.distributed.tensor" in sys.modules:
        return
    torch.distributed.tensor = _DeferredModule("torch.distributed.tensor")  # type: ignore[assignment]
    original = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        from transformers.utils.import_utils import is_torch_distributed_available

        is_torch_distributed_available()
    finally:
        torch.distributed.is_available = original


class _ImportStatement:
    """What an import statement calls: the original, or a deferred module for the importers of `_DEFERRED`."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original
        self._folders_remembered = False

    def __call__(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if level == 0 and globals is not None and name not in sys.modules:
            stand_in = _stand_in(name, str(globals.get("__name__", "")), bool(fromlist))
            if stand_in is not None:
                return stand_in
        found = self._original(name, globals, locals, fromlist, level)
        if not self._folders_remembered:
            self._folders_remembered = _remember_model_folders()
        if _to_allow_in_graph and name.startswith(_COMPILER):
            _tell_compiler()
        return found


def _stand_in(name: str, importer: str, names_asked: bool) -> Any:
    """What an import statement gives in place of a module; None for the module itself.

    `import a.b` without names binds `a`, which has to be the real one.
    """
    if name in _DEFERRED and (names_asked or "." not in name) and _belongs(importer, _DEFERRED[name]):
        return _DeferredModule(name)
    if name == _SYMBOLIC_SHAPES and names_asked and importer in _SYMBOLIC_SHAPES_IMPORTERS:
        return _SymbolicShapesStandIn(name)
    if name == _COMPILER and not names_asked and _belongs(importer, _COMPILER_IMPORTERS):
        return sys.modules["torch"]  # whose `_dynamo` stands in for it
    return None


def _belongs(importer: str, packages: Sequence[str]) -> bool:
    return any(importer == package or importer.startswith(f"{package}.") for package in packages)


def _remember_model_folders() -> bool:
    """Let transformers remember all folders of models whose files it has looked through. Whether that is done.

    It looks through its 1,600 files of models twice, a third of a second each time, because what it remembers of the
    first time is 128 folders of 500.
    """
    module = sys.modules.get(_MODEL_FOLDERS)
    if module is None or getattr(module.__spec__, "_initializing", False):
        return False
    limited: Any = getattr(module, "create_import_structure_from_path", None)
    if hasattr(limited, "__wrapped__"):
        module.create_import_structure_from_path = cache(limited.__wrapped__)  # type: ignore[attr-defined]
    return True


# -- references ------------------------------------------------------------------------------------------------


class _DeferredModule:
    """A module that is imported when one of the references it gives is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            with suppress(PackageNotFoundError):  # a package that is not named as its distribution
                return version(self._name)
        if name.startswith("__") or self._name in sys.modules:
            return getattr(import_module(self._name), name)
        return _Reference(self._name, name)


class _Reference:
    """A class or function of a module that is not imported yet."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __repr__(self) -> str:
        return f"<{self._name} of {self._module}, imported when it is used>"

    def _resolved(self) -> Any:
        return getattr(import_module(self._module), self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._resolved()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and self._module not in sys.modules:
            raise AttributeError(name)  # `typing` looks for some of those in every annotation
        return getattr(self._resolved(), name)

    def __getitem__(self, item: Any) -> Any:
        return self._resolved()[item]

    def __instancecheck__(self, instance: Any) -> bool:
        return self._module in sys.modules and isinstance(instance, self._resolved())

    def __subclasscheck__(self, subclass: Any) -> bool:
        return self._module in sys.modules and issubclass(subclass, self._resolved())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._resolved(),)

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007


# -- symbolic shapes -------------------------------------------------------------------------------------------


class _SymbolicShapesStandIn(_DeferredModule):
    """`torch.fx.experimental.symbolic_shapes` for numbers: what its functions say of sizes that are no expressions.

    torch asks them about every tensor of the meta device, where transformers builds its models.
    """

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        return partial(_of_numbers, _OF_NUMBERS[name], found) if name in _OF_NUMBERS else found


def _of_numbers(rule: Callable[..., Any], real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    found = NotImplemented if kwargs else rule(*args)
    return real(*args, **kwargs) if found is NotImplemented else found


def _truth(*args: Any) -> Any:
    return args[0] if len(args) == 1 and type(args[0]) is bool else NotImplemented


def _all(*args: Any) -> Any:
    return all(args) if args and all(type(arg) is bool for arg in args) else NotImplemented


def _any(*args: Any) -> Any:
    return any(args) if args and all(type(arg) is bool for arg in args) else NotImplemented


def _equal(*args: Any) -> Any:
    if len(args) != 2:
        return NotImplemented
    if all(type(arg) is int for arg in args):
        return args[0] == args[1]
    if all(type(arg) in (tuple, list) and all(type(size) is int for size in arg) for arg in args):
        return list(args[0]) == list(args[1])
    return NotImplemented


def _never(*args: Any) -> Any:
    return False if len(args) == 1 and type(args[0]) is int else NotImplemented


_OF_NUMBERS: dict[str, Callable[..., Any]] = {
    "expect_true": _truth,
    "guard_or_false": _truth,
    "guard_or_true": _truth,
    "statically_known_true": _truth,
    "sym_and": _all,
    "sym_or": _any,
    "sym_eq": _equal,
    "is_nested_int": _never,
}
"""The functions that are called while a model is built, with their answers for Python numbers, else NotImplemented."""


# -- the compiler ----------------------------------------------------------------------------------------------


class _CompilerStandIn:
    """`torch._dynamo` until something compiles: the three decorators that are used where functions are defined.

    Without the compiler in the process a function whose compilation is disabled is that function. Any other attribute
    imports the compiler, which from then on is what `torch._dynamo` means.
    """

    def disable(
        self, fn: Callable[..., Any] | None = None, recursive: bool = True, *, reason: str | None = None, **options: Any
    ) -> Any:
        """As `torch._dynamo.disable` of a function; it takes effect when the compiler has been imported."""
        if fn is None:
            return partial(self.disable, recursive=recursive, reason=reason, **options)
        disabled: list[Callable[..., Any]] = []

        @wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not disabled and (compiler := _compiler()) is not None:
                disabled.append(compiler.disable(fn, recursive, reason=reason, **options))
            return (disabled[0] if disabled else fn)(*args, **kwargs)

        return call

    def assume_constant_result(self, fn: Any) -> Any:
        """As that of `torch._dynamo`: the mark is an attribute of the function."""
        fn._dynamo_marked_constant = True
        return fn

    def allow_in_graph(self, fn: Any) -> Any:
        """As that of `torch._dynamo`, told to the compiler when it is imported."""
        _to_allow_in_graph.append(fn)
        return fn

    def __getattr__(self, name: str) -> Any:
        compiler = import_module(_COMPILER)
        _tell_compiler()
        return getattr(compiler, name)


_to_allow_in_graph: list[Any] = []


def _tell_compiler() -> None:
    """Tell torch's compiler, once it is ready, what it was to be told before."""
    compiler = _compiler()
    while compiler is not None and _to_allow_in_graph:
        compiler.allow_in_graph(_to_allow_in_graph.pop())


def _compiler() -> ModuleType | None:
    """Torch's compiler, if it is imported and ready."""
    module = sys.modules.get(_COMPILER)
    return None if module is None or getattr(module.__spec__, "_initializing", False) else module
