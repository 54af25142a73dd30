"""Which calls of a model compute the same from other tensors and weights.

Calls are of one kind if a trace of the one serves for the other: their operations have the same
class and settings, their variables the same shapes and types, and they read tensors of the same
types, made at the same distances before them. The names of layers, and what variables begin with,
do not matter. What may do more than its settings say (a layer of one's own, a function that was
given to a layer) is of a kind of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any

import keras

from hyparflow.model.comparable import Identity, compared
from hyparflow.model.graph import FlatGraph
from hyparflow.model.graph_call import Standardize
from hyparflow.model.keras_internals.layers import takes_training
from hyparflow.model.own_layers import holds_own_code

__all__ = ["call_kinds"]

# Settings that do not change what a call computes: seeds are kept in variables.
_IGNORED = ("name", "seed", "build_config")
_FIRST = "_initializer"


def call_kinds(graph: FlatGraph) -> list[int]:
    """A number for each call of `graph`: calls of one number compute the same."""
    times = Counter(id(call.operation) for call in graph.calls)
    numbers: dict[Hashable, int] = {}
    kinds = []
    for index, call in enumerate(graph.calls):
        # Two calls of one layer have the same variables, which no other call has.
        key = None if times[id(call.operation)] > 1 else _kind(graph, index)
        kinds.append(numbers.setdefault(("alone", index) if key is None else key, len(numbers)))
    return kinds


def _kind(graph: FlatGraph, index: int) -> Hashable | None:
    """A key that calls of one kind share; None for a call that is like no other."""
    call = graph.calls[index]
    operation = call.operation
    if isinstance(operation, Standardize) or holds_own_code(operation):
        return None
    settings = _settings(operation)
    arguments = keras.tree.flatten_with_path(graph.arguments[index])
    given = [(path, _argument(graph, index, leaf)) for path, leaf in arguments]
    if settings is None or any(argument is None for _, argument in given):
        return None
    variables = [
        (tuple(variable.shape), str(variable.dtype), variable.trainable)
        for layer in call.layers
        for variable in layer.variables
    ]
    return type(operation), repr((settings, given, variables, takes_training(operation)))


def _argument(graph: FlatGraph, index: int, leaf: Any) -> Any:
    """What an argument of a call is; of a tensor, where it was made and its type."""
    if isinstance(leaf, keras.KerasTensor):
        return graph.origin(index, leaf), tuple(leaf.shape), str(leaf.dtype), bool(leaf.sparse)
    return _plain(leaf)


def _settings(operation: Any) -> Any:
    """The settings of an operation, without what does not matter; None if they are not plain."""
    if not isinstance(operation, keras.Layer):
        settings = {name: v for name, v in vars(operation).items() if not name.startswith("_")}
        return _plain(_without_names(settings))
    try:
        return _plain(_without_names(operation.get_config()))
    except Exception:  # it cannot be saved
        return None


def _without_names(settings: Any) -> Any:
    if isinstance(settings, dict):
        kept = {n: v for n, v in settings.items() if n not in _IGNORED and not n.endswith(_FIRST)}
        return {name: _without_names(value) for name, value in kept.items()}
    if isinstance(settings, list | tuple):
        return [_without_names(value) for value in settings]
    return settings


def _plain(value: Any) -> Any:
    """A comparable form of a plain value, which is written alike if it is; None for others."""
    found = compared(value)
    return None if isinstance(found, Identity) else repr(found)
