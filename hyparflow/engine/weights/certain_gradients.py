"""Which weights surely have a gradient as large as they are, and surely get their slots."""

from __future__ import annotations

from typing import Any

import keras

from hyparflow.model.graph import FlatGraph
from hyparflow.model.keras_internals.compiled import own_step
from hyparflow.model.keras_internals.layers import all_layers
from hyparflow.model.reachable_variables import is_users_own

__all__ = ["sure_to_be_trained"]

# Operations, beside layers, that let gradients through to all that they take.
_PASSING = frozenset(
    (
        *("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Matmul", "Mean"),
        *("Concatenate", "Reshape", "Transpose", "Relu", "Gelu", "Softmax"),
    )
)


def sure_to_be_trained(model: Any, graph: FlatGraph | None) -> set[int]:
    """The trainable weights, by id, that a step changes in any case; empty where that is not sure.

    What the user's code does is not known: it may stop gradients. Neither is which outputs have a
    loss. An embedding's gradient has as many rows as are looked up.
    """
    layers = all_layers(model, include_self=False)
    if graph is None or len(graph.outputs) != 1 or own_step(model, "train_step"):
        return set()
    if any(isinstance(layer, keras.Model) and _has_loose_ends(layer) for layer in layers):
        return set()
    operations = [call.operation for call in graph.calls]
    if not all(map(_passes, operations)) or not all(map(_passes, layers)):
        return set()
    embeddings = [layer for layer in layers if isinstance(layer, keras.layers.Embedding)]
    rare = {id(v) for layer in embeddings for v in layer.weights}
    used = {id(v) for v in graph.variables(range(len(graph.calls)))}
    return {id(v) for v in model.trainable_variables} & used - rare


def _has_loose_ends(model: Any) -> bool:
    """Whether a nested model may have outputs that nobody takes."""
    outputs = getattr(model, "outputs", None)
    return outputs is None or len(outputs) != 1


def _passes(operation: Any) -> bool:
    """Whether gradients surely come to the weights of an operation, and to what it takes."""
    if isinstance(operation, keras.Layer):
        return not is_users_own(type(operation)) and not isinstance(operation, keras.layers.Lambda)
    return type(operation).__name__ in _PASSING
