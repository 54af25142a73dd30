"""Checks of the parallel arguments: a name and a value in; the value that is meant, or an error."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any

from hyparflow.formats.text import shortened

__all__ = [
    "Check",
    "count_of",
    "count_or_auto",
    "flag",
    "is_auto",
    "layers_per_partition",
    "number_above",
    "number_from",
    "one_of",
    "or_none",
    "share_of",
    "whole_number",
]

_LARGEST = 2**31 - 1  # what MPI counts to
Check = Callable[[str, Any], Any]  # (name, what the user gives) -> what is meant


def count_of(name: str, value: Any, also: str = "") -> int:
    """The value of the argument `name`, which must be a positive integer.

    Raises:
        ValueError: if it is not.
    """
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (is_integer and 0 < int(value) <= _LARGEST):
        also += " below 2**31" if is_integer and int(value) > 0 else ""
        raise ValueError(
            f"`{name}` must be a positive integer{also}. Received: {name}={shortened(value)}"
        )
    return int(value)


def whole_number(name: str, value: Any) -> int:
    """The value of the argument `name`, which must be an integer of at least 0.

    Raises:
        ValueError: if it is not.
    """
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (is_integer and 0 <= int(value) <= _LARGEST):
        raise ValueError(
            f"`{name}` must be an integer of 0 or more, below 2**31. "
            f"Received: {name}={shortened(value)}"
        )
    return int(value)


def number_above(name: str, value: Any, least: float) -> float:
    """The value of the argument `name`, which must be a finite number above `least`.

    Raises:
        ValueError: if it is not.
    """
    found = _finite(value)
    if found is None or found <= least:
        raise ValueError(
            f"`{name}` must be a number above {least:g}. Received: {name}={shortened(value)}"
        )
    return found


def number_from(name: str, value: Any, least: float) -> float:
    """The value of the argument `name`, which must be a finite number of `least` or more.

    Raises:
        ValueError: if it is not.
    """
    found = _finite(value)
    if found is None or found < least:
        raise ValueError(
            f"`{name}` must be a number of {least:g} or more. Received: {name}={shortened(value)}"
        )
    return found


def share_of(name: str, value: Any) -> float:
    """The value of the argument `name`, which must be a number above 0 and below 1.

    Raises:
        ValueError: if it is not.
    """
    found = _finite(value)
    if found is None or not 0 < found < 1:
        raise ValueError(
            f"`{name}` must be a number above 0 and below 1. Received: {name}={shortened(value)}"
        )
    return found


def _finite(value: Any) -> float | None:
    """A finite number as a float; None for anything else."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def count_or_auto(name: str, value: Any) -> int | str:
    """A positive integer, or "auto"."""
    return "auto" if is_auto(value) else count_of(name, value, ' or "auto"')


def is_auto(value: Any) -> bool:
    """Whether `value` is the text "auto"; arrays and other types are not."""
    return isinstance(value, str) and value == "auto"


def one_of(choices: Sequence[str], also: str = "", others: Sequence[str] = ()) -> Check:
    """A check that accepts `choices` and `others` only; `also` names `others` in the message."""

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in (*choices, *others):
            raise ValueError(
                f"`{name}` must be one of {', '.join(map(repr, choices))}{also}. "
                f"Received: {name}={shortened(value)}"
            )
        return value

    return check


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if type(value).__name__ not in ("bool", "bool_"):  # NumPy's is named like the latter
        raise ValueError(f"`{name}` must be True or False. Received: {name}={shortened(value)}")
    return bool(value)


def text(name: str, value: Any) -> str:
    """A string, or a path, which becomes one."""
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(found, str) or not found:
        raise ValueError(f"`{name}` must be a string. Received: {name}={value!r}")
    return found


def layers_per_partition(name: str, value: Any) -> tuple[int, ...]:
    """Layers per partition: a list of positive integers."""
    parts = tuple(value) if isinstance(value, list | tuple) else ()
    if not parts or not all(
        isinstance(part, numbers.Integral) and not isinstance(part, bool) and int(part) > 0
        for part in parts
    ):
        raise ValueError(
            f"`{name}` (layers per partition) must be a list of positive integers, one per "
            "partition, or per stage of an interleaved schedule. Received: "
            f"{name}={shortened(value)}"
        )
    return tuple(int(part) for part in parts)


def or_none(check: Check) -> Check:
    """A check that accepts None and all that `check` accepts."""
    return lambda name, value: None if value is None else check(name, value)


def can_be_summed(by: str, rounded_to: str | None) -> None:
    """Check that what sums gradients can sum numbers of the type that they are rounded to.

    Raises:
        ValueError: if it cannot.
    """
    if by == "horovod" and rounded_to == "bf16":
        raise ValueError(
            "Horovod cannot sum numbers of type bfloat16. Received: allreduce='horovod', "
            "compression='bf16'. Use compression='fp16', or allreduce='mpi'."
        )
