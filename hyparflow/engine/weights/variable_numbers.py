"""Numbers of variables, alike on all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyparflow.model.keras_internals.deferred_variables import raw_variable

__all__ = ["numbers_of", "unique"]


def numbers_of(variables: Sequence[Any]) -> dict[int, int]:
    """The number of each variable, by its id and by the id of TensorFlow's variable in it."""
    numbers: dict[int, int] = {}
    for number, variable in enumerate(variables):
        numbers.setdefault(id(variable), number)
        numbers.setdefault(id(raw_variable(variable)), number)
    return numbers


def unique(variables: Sequence[Any]) -> list[Any]:
    return list({id(variable): variable for variable in variables}.values())
