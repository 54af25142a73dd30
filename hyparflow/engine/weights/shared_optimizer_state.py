"""Which variables of an optimizer of the user's own the updates of several weights write.

Such a variable, a sum over all gradients for instance, is right only where all weights are updated
by one process. Keras's own optimizers have none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled.captured import captures_of
from hyparflow.model.keras_internals.deferred_variables import handle_of
from hyparflow.model.keras_internals.layers import reading_no_values
from hyparflow.model.keras_internals.optimizer import (
    inner_optimizer,
    learning_rates,
    step_counter,
)

__all__ = ["written_by_several"]

_VALUE = "AssignVariableOp"  # the others add to what is there
_WRITES = ("Assign", "ResourceScatter", "ResourceApply", "ResourceSparseApply")
_CALLS = ("If", "While", "Case", "StatefulPartitionedCall")  # which may write what they are given


def written_by_several(optimizer: Any, weights: Sequence[Any]) -> list[str]:
    """Names of the optimizer's variables that `update_step` writes for several weights.

    A value that is the same for all weights may be written for each of them. None is found of an
    `update_step` that cannot be traced here; Keras's own trace then says why.

    Args:
        optimizer: built for the weights.
        weights: those of the whole model; they may have no memory.
    """
    inner = inner_optimizer(optimizer)
    if type(inner).__module__.startswith("keras."):
        return []
    common = [step_counter(inner), *learning_rates(inner)]
    writers: dict[str, set[int]] = {}

    def trace() -> None:
        graph = tf.compat.v1.get_default_graph()
        known = {graph.capture(handle_of(variable)).name for variable in common}
        with reading_no_values():
            for number, weight in enumerate(weights):
                start = len(graph.get_operations())
                gradient = tf.compat.v1.placeholder(weight.dtype, weight.shape)
                inner.update_step(gradient, weight, tf.zeros((), weight.dtype))
                for name in _written(graph.get_operations()[start:], known):
                    writers.setdefault(name, set()).add(number)

    try:
        concrete = tf.function(trace, autograph=False).get_concrete_function()
    except Exception:  # whatever the user's code raises
        return []
    several = {name for name, numbers in writers.items() if len(numbers) > 1}
    handles = {id(outer) for outer, inside in captures_of(concrete.graph) if inside.name in several}
    return [v.name for v in inner.variables if id(handle_of(v)) in handles]


def _written(operations: Sequence[Any], common: Collection[str]) -> Iterator[str]:
    """Names of the handles of variables that operations write, but for values all have alike."""
    for operation in operations:
        if operation.type.startswith(_WRITES):
            handle, *values = operation.inputs
            if operation.type != _VALUE or _depends(values[0], common):
                yield handle.name
        elif operation.type in _CALLS:
            handles = [x.name for x in operation.inputs if x.dtype == tf.resource]
            yield from (name for name in handles if name not in common)


def _depends(tensor: Any, common: Collection[str]) -> bool:
    """Whether a value depends on a gradient, or on variables that are not `common`."""
    seen: set[Any] = set()
    waiting = [tensor.op]
    while waiting:
        operation = waiting.pop()
        if operation in seen:
            continue
        seen.add(operation)
        if operation.type == "Placeholder":
            return True
        if operation.type == "ReadVariableOp":
            if operation.inputs[0].name not in common:
                return True
            continue
        waiting += [x.op for x in operation.inputs]
    return False
