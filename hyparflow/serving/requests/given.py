"""Checks of what callers pass, before anything is computed with it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

from hyparflow.formats.argument_checks import count_of
from hyparflow.formats.text import shortened

__all__ = [
    "integer_of",
    "integers_of",
    "logprobs_of",
    "seconds_of",
    "stop_strings_of",
    "tokens_given",
]


def integer_of(name: str, value: Any) -> int:
    """An integer, of Python or NumPy.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise ValueError(f"`{name}` must be an integer. Received: {name}={shortened(value)}")
    return int(value)


def integers_of(name: str, values: Any) -> list[int]:
    """Several integers.

    Raises:
        ValueError: if they are none.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ValueError(f"`{name}` must be integers. Received: {name}={shortened(values)}")
    return [integer_of(name, value) for value in values]


def tokens_given(name: str, values: Any, vocabulary: int) -> tuple[int, ...]:
    """Tokens of a model.

    Args:
        name: of the argument.
        values: what was passed.
        vocabulary: how many tokens there are.

    Raises:
        ValueError: if they are no tokens.
    """
    found = integers_of(name, values)
    unknown = [token for token in found if not 0 <= token < vocabulary]
    if unknown:
        raise ValueError(
            f"`{name}` must be tokens from 0 to {vocabulary - 1}. Received: {unknown[0]}"
        )
    return tuple(found)


def stop_strings_of(value: Any) -> list[str]:
    """The strings that end a text.

    Raises:
        ValueError: if they are none.
    """
    is_several = isinstance(value, Iterable) and not isinstance(value, str | bytes)
    strings: list[Any] = list(value) if is_several else [value]
    if not all(isinstance(string, str) and string for string in strings):
        raise ValueError(f"`stop` must be a string or several. Received: stop={shortened(value)}")
    return strings


def logprobs_of(value: Any) -> int | None:
    """Of how many tokens to give logarithms of probabilities, or None.

    Raises:
        ValueError: if it is neither.
    """
    if value is None:
        return None
    count = integer_of("num_logprobs", value)
    return count_of("num_logprobs", count) if count else 0


def seconds_of(name: str, value: Any) -> float | None:
    """A time, or None.

    Raises:
        ValueError: if it is none.
    """
    if value is None:
        return None
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(float(value)) or float(value) < 0:
        raise ValueError(
            f"`{name}` must be a number of seconds, or None. Received: {name}={shortened(value)}"
        )
    return float(value)
