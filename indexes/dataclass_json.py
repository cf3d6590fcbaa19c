"""Dataclasses to and from the objects of a JSON file, checked against their annotations.

A field whose default is None is left out of the file where it is None, so that a part which was not measured leaves no
trace; all other fields are always written. Reading is strict: a key that is missing, unknown or of another type is a
`DataError` with the path of the key, because a file of another version must not be half understood.
"""

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from indexes.errors import DataError

T = TypeVar("T")


def to_json_object(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON has them: nested dataclasses are objects, tuples are lists."""
    return {
        f.name: _json(value)
        for f in fields(instance)
        if (value := getattr(instance, f.name)) is not None or f.default is not None
    }


def from_json_object(cls: type[T], data: object, where: str) -> T:
    """Read what `to_json_object` wrote.

    Args:
        cls: A dataclass.
        data: The parsed JSON.
        where: Opens error messages: the file, say.

    Raises:
        DataError: A key that is missing, unknown, or whose value has another type than its field; it is named.
    """
    found: T = _read(cls, data, "", where)
    return found


def _json(value: Any) -> Any:
    if is_dataclass(value):
        return to_json_object(value)
    if isinstance(value, Mapping):
        return {key: _json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_json(entry) for entry in value]
    return value


@cache
def _annotations(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _read(annotation: Any, value: object, path: str, where: str) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None and type(None) in arguments else _read_union(arguments, value, path, where)
    if isinstance(annotation, type) and is_dataclass(annotation):
        return _read_dataclass(annotation, value, path, where)
    if origin is Literal:
        return value if value in arguments else _refuse(annotation, value, path, where)
    if origin in (list, tuple, Sequence):
        return _read_list(origin, arguments, value, path, where)
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            return _refuse(annotation, value, path, where)
        return {key: _read(arguments[1], entry, f"{path}.{key}", where) for key, entry in value.items()}
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, annotation) or (annotation is int and isinstance(value, bool)):
        return _refuse(annotation, value, path, where)
    return value


def _read_union(arguments: Sequence[Any], value: object, path: str, where: str) -> Any:
    """The only alternative to None; or the first that fits."""
    kinds = [kind for kind in arguments if kind is not type(None)]
    for kind in kinds[:-1]:
        try:
            return _read(kind, value, path, where)
        except DataError:
            continue
    return _read(kinds[-1], value, path, where)


def _read_list(origin: Any, arguments: Sequence[Any], value: object, path: str, where: str) -> Any:
    if not isinstance(value, list | tuple):
        return _refuse(list, value, path, where)
    if origin is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            return _refuse(f"a list of {len(arguments)}", value, path, where)
        return tuple(_read(a, v, f"{path}[{i}]", where) for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    found = [_read(arguments[0], entry, f"{path}[{i}]", where) for i, entry in enumerate(value)]
    return tuple(found) if origin is tuple else found


def _read_dataclass(cls: Any, value: object, path: str, where: str) -> Any:
    if not isinstance(value, Mapping):
        return _refuse(f"an object ({cls.__name__})", value, path, where)
    known: dict[str, Field[Any]] = {f.name: f for f in fields(cls) if f.init}
    missing = [
        name for name, f in known.items() if name not in value and f.default is MISSING and f.default_factory is MISSING
    ]
    unknown = [str(key) for key in value if key not in known]
    for kind, names in (("missing", missing), ("unknown", unknown)):
        if names:
            raise DataError(
                f"{where}: {_key(path, names[0])} is {kind}; {_key(path) or 'the file'} must have the keys "
                f"{sorted(known)}. It is of another version or of another kind: write it again."
            )
    annotations = _annotations(cls)
    return cls(**{key: _read(annotations[key], entry, f"{path}.{key}", where) for key, entry in value.items()})


def _key(path: str, name: str = "") -> str:
    joined = ".".join(part for part in (path.removeprefix("."), name) if part)
    return f"the key {joined!r}" if joined else ""


def _refuse(annotation: Any, value: object, path: str, where: str) -> Any:
    expected = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    raise DataError(
        f"{where}: {_key(path) or 'the file'} must be {expected}, got {str(value)[:60]!r}. It is of another version or "
        "damaged: write it again."
    )
