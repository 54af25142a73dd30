"""Keys of operations and tensors; operations with equal keys share a measurement."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any

import keras

from hyparflow.model.graph import FlatGraph

__all__ = ["has_kernel", "operation_kinds", "tensor_types"]

_IGNORED = ("name", "build_config", "seed", "dtype")


def operation_kinds(graph: FlatGraph) -> list[Hashable]:
    """For each call: its type, settings, constant arguments and the shapes of its weights."""
    return [_kind(graph, index) for index in range(len(graph.calls))]


def tensor_types(graph: FlatGraph) -> list[Hashable]:
    """For each tensor: its shape and type."""
    return [(tuple(x.shape), str(x.dtype)) for x in graph.tensors]


def has_kernel(graph: FlatGraph) -> list[bool]:
    """For each call, whether it has a weight of at least two dimensions."""
    return [
        any(len(variable.shape) > 1 for layer in call.layers for variable in layer.variables)
        for call in graph.calls
    ]


def _kind(graph: FlatGraph, index: int) -> Hashable:
    call = graph.calls[index]
    operation = call.operation
    weights = tuple(
        (tuple(v.shape), str(v.dtype), v.trainable)
        for layer in call.layers
        for v in layer.variables
    )
    args = keras.tree.map_structure(
        lambda x: "tensor" if isinstance(x, keras.KerasTensor) else repr(x), graph.arguments[index]
    )
    return type(operation).__qualname__, _settings(operation), repr(args), weights


def _settings(operation: Any) -> str:
    if isinstance(operation, keras.Layer):
        try:
            settings = operation.get_config()
        except Exception:  # noqa: BLE001 (a layer of the user's that cannot be saved)
            return str(id(operation))
    else:
        settings = {k: v for k, v in vars(operation).items() if not k.startswith("_")}
    return json.dumps({k: v for k, v in settings.items() if k not in _IGNORED}, default=repr)
