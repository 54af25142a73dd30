"""Which layers make outputs for some rows depend on other rows.

All calls of layers and operations are recorded, in a run of the model on some rows and in one with
one row changed. Then each layer is called alone, with only that row changed in its inputs: if
outputs for other rows change, this layer mixes rows itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from hyparflow.engine.trials.other_rows import others_differ
from hyparflow.engine.trials.rows_trial import RowsTrial
from hyparflow.model.keras_internals.layers import all_layers, opened_graph

__all__ = ["mixing_layers"]


class _Call(NamedTuple):
    """One call of a layer or operation: positional and named arguments."""

    operation: Any
    arguments: tuple[tuple[Any, ...], dict[str, Any]]


def mixing_layers(trial: RowsTrial, changed: Any, row: int, training: bool) -> list[str]:
    """Names of the layers and operations that mix rows, in the order in which they are called.

    Of layers within layers the innermost are named. None where they are not found.

    Args:
        trial: an open trial.
        changed: its inputs with one row changed.
        row: the row that was changed.
        training: whether the layers are called as in training.
    """
    try:
        before, after = (_calls(trial, x, training) for x in (trial.inputs, changed))
        if [call.operation for call in before] != [call.operation for call in after]:
            return []
        pairs = zip(before, after, strict=True)
        found = [one.operation for one, other in pairs if _mixes(trial, row, one, other)]
    except Exception:  # some call cannot be made alone
        return []
    distinct = {id(operation): operation for operation in found}
    return list(dict.fromkeys(o.name for o in distinct.values() if not _holds(o, distinct)))


def _holds(operation: Any, others: dict[int, Any]) -> bool:
    """Whether one of `others` is inside a layer."""
    if not isinstance(operation, keras.Layer):
        return False
    return any(id(layer) in others for layer in all_layers(operation, include_self=False))


def _calls(trial: RowsTrial, inputs: Any, training: bool) -> list[_Call]:
    """All calls in one run of the model, the inner ones first."""
    found: list[_Call] = []
    with contextlib.ExitStack() as stack:
        for operation in _operations(trial.model):
            stack.enter_context(_watched(operation, found.append))
        trial.run(inputs, training)
    return found


def _operations(model: Any) -> Iterator[Any]:
    """Layers, but those that only walk through a graph, and the operations of graphs."""
    seen: set[int] = set()
    for layer in all_layers(model):
        graph = opened_graph(layer)
        for operation in [layer] if graph is None else graph.operations:
            is_walk = isinstance(operation, keras.Model) and opened_graph(operation) is not None
            if id(operation) not in seen and not is_walk:
                seen.add(id(operation))
                yield operation


@contextlib.contextmanager
def _watched(operation: Any, note: Callable[[_Call], object]) -> Iterator[None]:
    """While open, each call of a layer or operation is noted when it ends."""
    original = operation.call

    def call(*args: Any, **kwargs: Any) -> Any:
        outputs = original(*args, **kwargs)
        note(_Call(operation, (args, kwargs)))
        return outputs

    attributes = vars(operation)  # written directly: `setattr` would track it
    saved = {"call": attributes["call"]} if "call" in attributes else {}
    attributes["call"] = call
    try:
        yield
    finally:
        del attributes["call"]
        attributes.update(saved)


def _mixes(trial: RowsTrial, row: int, one: _Call, other: _Call) -> bool:
    """Whether a layer's outputs for other rows change with one row of its inputs."""
    arguments = keras.tree.map_structure(
        lambda x, y: _with_row(x, y, row, trial.rows), one.arguments, other.arguments
    )
    pairs = zip(keras.tree.flatten(one.arguments), keras.tree.flatten(arguments), strict=True)
    if all(x is y for x, y in pairs):
        return False  # its inputs did not change with the row
    base, again, new = (_run(trial, one.operation, x) for x in (one.arguments,) * 2 + (arguments,))
    for old, repeated, changed in zip(base, again, new, strict=True):
        if old.shape != changed.shape:
            return True
        if old.ndim == 0 or old.shape[0] % trial.rows:
            if np.array_equal(old, repeated) and not np.array_equal(old, changed):
                return True
        elif others_differ(trial.rows, row, old, repeated, changed):
            return True
    return False


def _with_row(before: Any, after: Any, row: int, rows: int) -> Any:
    """`before` with one row of `after`, if that differs."""
    if not isinstance(before, tf.Tensor) or not before.shape.rank or before.shape[0] % rows:
        return before
    if before.shape != after.shape:
        return before
    old, new = (x.numpy().reshape(rows, -1) for x in (before, after))
    if np.array_equal(old[row], new[row]):
        return before
    old = old.copy()
    old[row] = new[row]
    return tf.constant(old.reshape(before.shape), before.dtype)


def _run(trial: RowsTrial, operation: Any, arguments: Any) -> list[np.ndarray]:
    """The flat outputs of one call, with random generators set back to the start."""
    trial.restore()
    args, kwargs = arguments
    flat = keras.tree.flatten(operation(*args, **kwargs))
    return [np.asarray(x) for x in flat if x is not None]
