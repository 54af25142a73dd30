"""The layer that an operation of TensorFlow's, or an error, belongs to."""

from __future__ import annotations

import re
import traceback
from collections.abc import Collection, Iterable
from typing import Any

import keras

__all__ = ["layer_of", "layer_of_operation", "layer_that_failed"]

_NODES = re.compile(r"\{\{node ([^}\s]+)\}\}|Detected at node (\S+) defined at")


def layer_of_operation(operation: str, layers: Collection[str]) -> str:
    """The innermost of `layers` whose name is a part of an operation's name, or "".

    TensorFlow numbers a scope that is entered again, so "dense_1" may be the layer of that name, or
    "dense": then both are named, with ' or ' between them.
    """
    for part in reversed(operation.split("/")):
        names = dict.fromkeys([re.sub(r"_\d+$", "", part), part])
        if found := [name for name in names if name in layers]:
            return "' or '".join(found)
    return ""


def layer_of(error: BaseException) -> str:
    """The name of the innermost layer in whose code `error` was raised, or ""."""
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.Layer) and not isinstance(owner, keras.Model):
            found = owner.name
    return found


def layer_that_failed(error: BaseException, layers: Iterable[Any]) -> str:
    """The name of the layer that failed, in Python's code or in TensorFlow's graph, or "".

    Args:
        error: the error.
        layers: the layers of the model.
    """
    names = {layer.name for layer in layers}
    found = layer_of(error)
    if found in names:
        return found
    for nodes in _NODES.findall(str(error)):
        if name := layer_of_operation("".join(nodes), names):
            return name
    return ""
