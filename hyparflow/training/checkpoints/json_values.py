"""Values of Python as JSON has them, and back: JSON knows no NaN, and nothing of NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["from_json", "is_plain", "to_json"]

_FLOAT = "float"  # the only key of the object that stands for a number that is not finite


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a boolean or None."""
    return value is None or isinstance(value, bool | int | float | np.number | np.bool_)


def to_json(value: Any) -> Any:
    """A value for a JSON file; objects of other types are not allowed in it.

    Args:
        value: numbers, texts and None, in lists, tuples and dicts.

    Raises:
        TypeError: if it holds anything else.
    """
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    if isinstance(value, np.number | np.bool_):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"JSON has no {type(value).__name__}")


def from_json(value: Any) -> Any:
    """What `to_json` was given; tuples and arrays are lists now."""
    if isinstance(value, dict):
        if set(value) == {_FLOAT} and value[_FLOAT] in ("nan", "inf", "-inf"):
            return float(value[_FLOAT])
        return {key: from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    return value
