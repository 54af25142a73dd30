"""The constants that a tensor of a traced graph is computed from. Public API of TensorFlow only;
without it a mask that depends on distances not tried could not be told.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["constants_before"]

_SHAPES = ("Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike")


def constants_before(tensor: Any) -> set[int]:
    """The positive whole numbers among the single constants that a tensor is computed from."""
    found: set[int] = set()
    seen: set[Any] = set()
    waiting = [tensor]
    while waiting:
        operation = waiting.pop().op
        if operation in seen:
            continue
        seen.add(operation)
        if operation.type not in _SHAPES:  # these depend on no value
            waiting += operation.inputs
        if operation.type == "Const":
            value = tf.get_static_value(operation.outputs[0])
            if value is not None and np.size(value) == 1 and np.issubdtype(value.dtype, np.number):
                number = float(np.reshape(value, ()))
                if number > 0 and number.is_integer():
                    found.add(int(number))
    return found
