"""Which layers of a model may do more than treat each row of a batch alone.

They are the user's own layers, layers of Keras and KerasHub that mix rows by themselves, and layers
that were given a function or an axis by which they may. A trial finds out what they do
(`hyparflow.engine.trials.row_findings`).
"""

from __future__ import annotations

from typing import Any

import keras

from hyparflow.model.keras_internals.layers import all_layers, opened_graph

__all__ = ["holds_own_code", "own_layers"]

_OVER_ROWS = frozenset(  # operations of keras.ops that may mix the rows
    ["Mean", "Sum", "Max", "Min", "Std", "Var", "Norm", "Prod", "Cumsum", "Cumprod", "Average"]
    + ["Median", "Quantile", "Softmax", "LogSoftmax", "Moments", "Sort", "Argsort", "Flip", "Roll"]
    + ["Matmul", "Einsum", "Tensordot", "Transpose", "Reshape", "Logsumexp", "CountNonzero"]
)
_HOLD_CODE = ("Lambda", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper")
_LIBRARIES = ("keras", "keras_hub")
# Layers of these libraries that mix rows.
_MIXING = frozenset(["MixUp", "CutMix", "CLIPHead", "SigLIPHead", "MetaCLIP2Head"])
# Methods by which a call changes state.
_CHANGES = frozenset(["add_loss", "assign", "assign_add", "assign_sub"])


def own_layers(model: Any) -> list[str]:
    """Names of the layers and operations of `model` that may do more than treat each row alone."""
    found = []
    for layer in all_layers(model):
        graph = opened_graph(layer)
        if _may_join(layer, graph is not None):
            found.append(layer.name)
        for operation in () if graph is None else graph.operations:
            if not isinstance(operation, keras.Layer) and type(operation).__name__ in _OVER_ROWS:
                found.append(operation.name)
    return list(dict.fromkeys(found))


def holds_own_code(operation: Any) -> bool:
    """Whether an operation, or a layer inside it, runs code that is not of a library."""
    layers = all_layers(operation) if isinstance(operation, keras.Layer) else []
    return not _is_of_library(type(operation)) or any(
        not _is_of_library(type(layer))
        or type(layer).__name__ in _HOLD_CODE
        or _has_own_function(layer)
        for layer in layers
    )


def _may_join(layer: Any, is_graph: bool) -> bool:
    if not _is_of_library(type(layer)):
        return not is_graph
    kind = type(layer).__name__
    if kind in _HOLD_CODE or kind in _MIXING:
        return True
    return _has_own_function(layer) or _has_axis_of_rows(layer) or _changes_state(layer)


def _is_of_library(thing: Any) -> bool:
    return getattr(thing, "__module__", "").partition(".")[0] in _LIBRARIES


def _has_own_function(layer: Any) -> bool:
    """Whether the layer was given an activation, or a regularizer of it, that is not Keras's."""
    given = [x for name, x in vars(layer).items() if "activation" in name and callable(x)]
    given.append(layer.activity_regularizer)
    return not all(x is None or _is_of_library(x) for x in given)


def _has_axis_of_rows(layer: Any) -> bool:
    """Whether one of the layer's axes may be that of the rows; negative ones count from the end."""
    axes = keras.tree.flatten([getattr(layer, "axis", None), getattr(layer, "axes", None)])
    return any(isinstance(axis, int) and (axis == 0 or axis < -1) for axis in axes)


def _changes_state(layer: Any) -> bool:
    """Whether a call of a layer of KerasHub adds to the loss, or writes to variables."""
    if type(layer).__module__.startswith("keras."):
        return False
    code = getattr(type(layer).call, "__code__", None)
    return code is not None and not _CHANGES.isdisjoint(code.co_names)
