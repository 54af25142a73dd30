"""Reads JSON files, and names the field and the file that are wrong.

The types of a dataclass's fields are the schema. msgspec reads and checks in one pass, quickly
enough for files of 100 MB, and names the field.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import operator
import os
import re
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec

from hyparflow.formats.plain_files import kind_of
from hyparflow.formats.text import path_text

__all__ = ["Amount", "Bytes", "Count", "Number", "Share", "made", "read", "schema_of"]

_T = TypeVar("_T")
_LARGEST = 2**53  # the largest integer that every reader of JSON knows
_MOST_BYTES = 2**30  # of a file; no plan, costs or trace has as many
_CHECKED_TWICE = 2**24  # bytes up to which a file is checked for fields that stand twice
_SHOWN = 40  # letters that are shown before and after an error in the JSON

Count = Annotated[int, msgspec.Meta(ge=1, le=_LARGEST)]
Number = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST)]  # of a rank, a stage, a variable
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Amount = Annotated[float, msgspec.Meta(ge=0)]  # seconds, or bytes on average
Share = Annotated[float, msgspec.Meta(ge=-1e-6, le=1 + 1e-6)]  # 0 to 1, but for rounding


def read(
    path: str | bytes | os.PathLike[str],
    schema: Any,
    rule: str,
    finish: Callable[[Any], _T],
) -> _T:
    """Read a JSON file, and return what `finish` makes of its content.

    Args:
        path: the file.
        schema: the type of the content, as msgspec or `schema_of` has it.
        rule: the first words of the error, which say what the file must be.
        finish: (content) -> result; raises ValueError if fields contradict each other.

    Raises:
        ValueError: if the file cannot be read, or holds something else.
    """
    data, name = b"", path_text(path)
    try:
        data = _content(path)
        content = msgspec.json.decode(data, type=schema)
        if len(data) <= _CHECKED_TWICE:
            json.loads(data, object_pairs_hook=_each_once)
        return finish(content)
    except (OSError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        reason = str(error) or type(error).__name__
        if match := re.search(r"\(byte (\d+)\)", reason):
            at = int(match[1])
            near = data[max(0, at - _SHOWN) : at + _SHOWN].decode(errors="backslashreplace")
            reason += f", near {near!r}"
        raise ValueError(f"{rule} Received: {name} ({reason})") from error


def made(values: Any, kind: type[_T]) -> _T:
    """A dataclass from its fields by name, or from what `schema_of(kind)` read.

    Raises:
        ValueError: if a field is missing, unknown or of another type; it names the field.
    """
    if isinstance(values, dict):
        values = msgspec.convert(values, schema_of(kind), str_keys=True)
    return msgspec.convert(values, kind, from_attributes=True)


def schema_of(kind: type, **others: Any) -> Any:
    """The type of JSON that has the fields of a dataclass and no other.

    Args:
        kind: the dataclass; the types of its fields may be dataclasses, or hold some.
        others: field name -> the type that takes the place of the field's own.
    """
    hints = typing.get_type_hints(kind, include_extras=True) | others
    described: list[Any] = []
    for field in dataclasses.fields(kind):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            described.append(
                (
                    field.name,
                    _strict(hints[field.name]),
                    msgspec.field(default_factory=field.default_factory),
                )
            )
        elif default is not dataclasses.MISSING:
            described.append((field.name, _strict(hints[field.name]), default))
        else:
            described.append((field.name, _strict(hints[field.name])))
    return msgspec.defstruct(kind.__name__, described, forbid_unknown_fields=True, frozen=True)


def _strict(hint: Any) -> Any:
    """A type in which each dataclass is replaced by its `schema_of`."""
    if dataclasses.is_dataclass(hint):
        return schema_of(hint)  # type: ignore[arg-type]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is None or origin is Annotated:
        return hint
    parts = tuple(part if part is Ellipsis else _strict(part) for part in inner)
    if origin in (types.UnionType, typing.Union):
        return functools.reduce(operator.or_, parts)
    return origin[parts]


def _content(path: str | bytes | os.PathLike[str]) -> bytes:
    """The bytes of a plain file; other files, such as named pipes, are refused unread."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if kind := kind_of(found.st_mode):
            raise ValueError(f"no plain file: it is {kind}")
        if found.st_size > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        return file.read(_MOST_BYTES)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field `{twice}` stands there twice")
    return found
