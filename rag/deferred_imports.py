"""Imports that answering a question does not need, put off until something uses what they give.

On the way to a language model and an encoder, transformers 5.23, sentence-transformers 6.2 and peft 0.21 import what only
training, compilation, tensor parallelism, detection losses and sparse vectors use: torch's compiler, sympy, distributed
tensors, scipy, scikit-learn, `datasets` and pandas, together more than half of the time to a first answer.
None of them can be asked to leave that out.

`defer_imports` makes import statements of `_DEFERRED` give references where the named library executes them. A reference
imports its module when it is called, subclassed, or asked for an attribute, so whatever is used works as ever, later.
`isinstance` says False without importing: as long as a module is not imported there are no objects of its classes.
Import statements of all others are unchanged, and `sys.modules` never holds anything but real modules. A library that
changes how it uses a name is at worst slow again: what is not listed here is imported at once.

For a process of the command line that only answers (`rag.cli.main`). It holds until the process ends.
"""

import builtins
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial, wraps
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
    # A context of masks that are compiled.
    "torch._dynamo._trace_wrapped_higher_order_op": ("transformers.masking_utils",),
    # isinstance with a tensor that is split over several processes.
    "torch.distributed.tensor": _LIBRARIES,
}
"""Modules whose import is put off, and the importers for which it is: packages with all their modules, or modules."""

_COMPILER = "torch._dynamo"
_COMPILER_IMPORTERS = ("accelerate", "torch._compile", "torch.compiler", "transformers")
_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def defer_imports() -> None:
    """Put off the imports of `_DEFERRED` and of torch's compiler for the rest of this process; imports torch.

    It does nothing in a process that a launcher started, where tensors may be distributed, and nothing for modules that
    are imported already.
    """
    if isinstance(builtins.__import__, _ImportStatement) or any(name in os.environ for name in _LAUNCHED):
        return
    builtins.__import__ = _ImportStatement(builtins.__import__)
    import torch

    if _COMPILER not in sys.modules:
        torch._dynamo = _CompilerStandIn()  # type: ignore[assignment]
    _leave_out_distributed_tensors()


def _leave_out_distributed_tensors() -> None:
    """Tell transformers that this process does not divide models, as if torch had been built without that.

    At import it registers ways to divide a model over processes, which makes objects of `torch.distributed.tensor`: more
    than references can stand for. Whether to do so it asks once and remembers the answer.
    """
    import torch

    if not torch.distributed.is_available() or "torch.distributed.tensor" in sys.modules:
        return
    torch.distributed.tensor = _DeferredModule("torch.distributed.tensor")
    original = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        from transformers.utils import is_torch_distributed_available

        is_torch_distributed_available()
    finally:
        torch.distributed.is_available = original


class _ImportStatement:
    """What an import statement calls: the original, or a deferred module for the importers of `_DEFERRED`."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original

    def __call__(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if level == 0 and globals is not None and name not in sys.modules:
            importer = str(globals.get("__name__", ""))
            # `import a.b` without a list of names binds `a`, which has to be the real one.
            if name in _DEFERRED and (fromlist or "." not in name) and _belongs(importer, _DEFERRED[name]):
                return _DeferredModule(name)
            if name == _COMPILER and not fromlist and _belongs(importer, _COMPILER_IMPORTERS):
                return sys.modules["torch"]  # whose `_dynamo` stands in for it
        found = self._original(name, globals, locals, fromlist, level)
        if _to_allow_in_graph and name.startswith(_COMPILER):
            _tell_compiler()
        return found


def _belongs(importer: str, packages: Sequence[str]) -> bool:
    return any(importer == package or importer.startswith(f"{package}.") for package in packages)


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
        return Union[self, other]  # noqa: UP007: this is what `|` of an annotation calls

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007


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
