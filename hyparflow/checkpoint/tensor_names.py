"""The names of a model's variables in a checkpoint, the same in every process and layout."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from hyparflow.model.keras_internals.layers import seed_states

__all__ = ["named_variables", "unused", "without_numbers"]

_NUMBER = re.compile(r"_\d+(?=[/_#]|$)")


def named_variables(model: Any) -> dict[str, Any]:
    """Name -> variable: weights, random generators and the optimizer's variables, in Keras's order.

    Args:
        model: built, as is its optimizer, if it has one.
    """
    found: dict[str, Any] = {}
    known: set[int] = set()
    optimizer = getattr(model, "optimizer", None)
    groups: dict[str, Iterable[Any]] = {
        "model": model.weights,
        "random": seed_states(model),
        "optimizer": [] if optimizer is None else optimizer.variables,
    }
    for group, variables in groups.items():
        for variable in variables:
            if id(variable) not in known:
                known.add(id(variable))
                found[unused(f"{group}/{getattr(variable, 'path', variable.name)}", found)] = (
                    variable
                )
    return found


def without_numbers(name: str) -> str:
    """A name without the numbers that Keras gives to layers of which there are several.

    They count the layers of a process, and differ where it has made other models before.
    """
    return _NUMBER.sub("", name)


def unused(name: str, used: dict[str, Any]) -> str:
    """A name, with a number behind it where it is taken: paths need not be unique."""
    number, tried = 2, name
    while tried in used:
        tried, number = f"{name}#{number}", number + 1
    return tried
