"""The JSON state of a checkpoint: what JSON keeps exactly, and nothing that it would change."""

from __future__ import annotations

import math
from typing import Any

from hyparflow.formats.text import shortened

__all__ = ["fault_of_state"]

_DEEPEST = 64  # objects and lists within one another
_INTEGERS = range(-(2**63), 2**64)  # which JSON libraries for typed languages read exactly


def fault_of_state(state: Any) -> str:
    """Why a state cannot be kept as JSON; an empty string if it can.

    JSON has no NaN and no infinity: msgspec would write null in their place.
    """
    open_values = [(state, "state", 1)]
    while open_values:
        value, place, depth = open_values.pop()
        if depth > _DEEPEST:
            return f"`state` is nested more than {_DEEPEST} deep"
        if isinstance(value, dict):
            for name, inner in value.items():
                if not isinstance(name, str):
                    return f"`{place}` has the name {shortened(name)}, which is no text"
                open_values.append((inner, f"{place}.{name}"[:200], depth + 1))
        elif isinstance(value, list):
            open_values.extend((inner, f"{place}[...]"[:200], depth + 1) for inner in value)
        elif not _is_plain(value):
            return (
                f"`{place}` is {shortened(value)}, which JSON does not keep; write it as text, "
                "or as a tensor"
            )
    return ""


def _is_plain(value: Any) -> bool:
    if type(value) is int:
        return value in _INTEGERS
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (str, bool)
