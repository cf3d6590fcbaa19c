"""Checks of the values inside records: objects, lists, texts."""

from collections.abc import Mapping
from typing import Any

from indexes.errors import DataError

_SHOWN = 60  # characters of a value that an error shows


def as_object(value: object, where: str) -> Mapping[str, Any]:
    """The value itself, if it is an object.

    Raises:
        DataError: It is something else.
    """
    if isinstance(value, Mapping):
        return value
    raise DataError(f"{where}: every record must be a JSON object, {describe(value)}. Correct or remove it.")


def as_list(value: object, where: str) -> list[Any]:
    """The value as a list, if it is a list or a tuple.

    Args:
        value: The value.
        where: How errors begin; its end names the field.

    Raises:
        DataError: It is something else.
    """
    if isinstance(value, list | tuple):
        return list(value)
    raise DataError(f"{where} must be a list, {describe(value)}. Correct the record.")


def as_text(fields: Mapping[str, Any], key: str, where: str) -> str:
    """The text of a field, empty where it is missing.

    Raises:
        DataError: It is something else than text.
    """
    value = fields.get(key)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise DataError(f"{where}: {key} must be text, {describe(value)}. Correct the record.")


def as_objects(value: object, names: tuple[str, ...], where: str) -> list[Mapping[str, Any]]:
    """A list of objects, which may also be given as lists in the order of the names, or as one object of columns.

    `datasets` exports a list of objects as one object whose values are lists.

    Raises:
        DataError: It is none of these.
    """
    if isinstance(value, Mapping):
        columns = list(value.values())
        lists = all(isinstance(column, list | tuple) for column in columns) and set(names) <= set(value)
        if lists and len({len(column) for column in columns}) == 1:
            return [dict(zip(value, values, strict=True)) for values in zip(*columns, strict=True)]
        raise DataError(
            f"{where} must have the columns {', '.join(names)} of equal lengths, got {str(value)[:_SHOWN]!r}. Correct "
            "the record."
        )
    return [_object(entry, names, f"{where}, entry {number}") for number, entry in enumerate(as_list(value, where))]


def _object(entry: object, names: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if isinstance(entry, Mapping):
        return entry
    if isinstance(entry, list | tuple) and len(entry) == len(names):
        return dict(zip(names, entry, strict=True))
    raise DataError(f"{where} must hold {' and '.join(names)}, {describe(entry)}. Correct the record.")


def check_unicode(text: str, where: str) -> str:
    r"""The text itself, if UTF-8 can encode it.

    Raises:
        DataError: It holds half a surrogate pair, as JSON's escapes can ("\ud83d" without its second half).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: a text must be whole characters, got {text[error.start]!r} at character {error.start + 1}, half "
            "of one. Correct the escape."
        ) from error
    return text


def describe(value: object) -> str:
    """What a message says of a value that does not fit."""
    return f"got {type(value).__name__}: {str(value)[:_SHOWN]!r}"
