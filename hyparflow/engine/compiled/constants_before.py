"""What a tensor of a traced graph is computed from: single constants, and stored tables.

Public API of TensorFlow only; without it a mask that depends on distances not tried could not be
told.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["constants_before", "is_stored"]

_READS = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd")
_SHAPES = ("Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike")


def constants_before(tensor: Any) -> set[int]:
    """The positive whole numbers among the single constants that a tensor is computed from."""
    found: set[int] = set()
    for operation in _before(tensor):
        if operation.type == "Const":
            value = tf.get_static_value(operation.outputs[0])
            if value is not None and np.size(value) == 1 and np.issubdtype(value.dtype, np.number):
                number = float(np.reshape(value, ()))
                if number > 0 and number.is_integer():
                    found.add(int(number))
    return found


def is_stored(tensor: Any, arguments: Collection[Any]) -> bool:
    """Whether a tensor is computed from a variable, or from an array of several axes.

    Args:
        tensor: of the graph.
        arguments: the operations of the arguments of the function that is traced.
    """
    for operation in _before(tensor):
        if operation.type in _READS or (
            operation.type == "Placeholder" and operation not in arguments
        ):
            return True
        if operation.type == "Const":
            sizes = operation.outputs[0].shape.as_list()
            if sum(size > 1 for size in sizes) > 1:
                return True
    return False


def _before(tensor: Any) -> list[Any]:
    """The operations that a tensor is computed from, but for those of shapes."""
    seen: dict[Any, None] = {}
    waiting = [tensor]
    while waiting:
        operation = waiting.pop().op
        if operation not in seen:
            seen[operation] = None
            if operation.type not in _SHAPES:  # these depend on no value
                waiting += operation.inputs
    return list(seen)
