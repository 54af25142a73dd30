"""Python's plain values (numbers, text, arrays, containers of them) in a form that compares."""

from __future__ import annotations

import enum
import types
from typing import Any

import numpy as np

__all__ = ["CONTAINERS", "LONGEST", "SIMPLE", "Identity", "comparable", "compared", "is_empty"]

SIMPLE = (int, float, complex, str, bytes, type(None), np.generic, enum.Enum, np.dtype)
CONTAINERS = (list, tuple, dict, set, frozenset)
LONGEST = 1000  # members of a container that are compared
_LARGEST = 1 << 20  # bytes of an array that are compared; a larger one only as an object


def comparable(value: Any) -> Any:
    """A comparable form of a plain value (numbers, text, arrays, containers); None for others."""
    found = compared(value)
    return None if isinstance(found, Identity) else found


class Identity:
    """Wraps an object that is compared by identity, not by its content."""

    def __init__(self, value: Any) -> None:
        self.value = value  # held, so that no other object gets its id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.value is other.value


def compared(value: Any) -> Any:
    """A key of `value`: equal keys mean that a call which reads the values sees the same.

    The key of a value that is not plain is an `Identity`.
    """
    if isinstance(value, float | np.floating):
        return type(value), repr(value)  # NaN equals itself, and -0.0 is not 0.0
    if isinstance(value, SIMPLE):
        return type(value), value
    if isinstance(value, np.ndarray) and value.dtype.kind != "O" and value.nbytes <= _LARGEST:
        return type(value), value.dtype.str, value.shape, value.tobytes()
    if not isinstance(value, CONTAINERS) or len(value) > LONGEST:
        return Identity(value)
    if isinstance(value, set | frozenset):
        simple = all(isinstance(m, SIMPLE) for m in value)
        members: Any = sorted(map(repr, value)) if simple else None
    elif isinstance(value, dict):
        members = [(repr(key), compared(member)) for key, member in value.items()]
        members = None if any(isinstance(m, Identity) for _, m in members) else members
    else:
        members = [compared(member) for member in value]
        members = None if any(isinstance(m, Identity) for m in members) else members
    return Identity(value) if members is None else (type(value), members)


def is_empty(cell: types.CellType) -> bool:
    """Whether nothing is in `cell` yet."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False
