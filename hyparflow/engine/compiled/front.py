"""Which operations of a traced forward and backward run in the forward.

If a backward needs only the shape of a tensor, the shape is taken in the forward: then the tensor
itself need not be kept.

Uses public API of TensorFlow only; for gain and versions see
`hyparflow.engine.compiled.split_function`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import tensorflow as tf

__all__ = ["with_shapes"]

_SHAPES = ("Shape", "ShapeN", "Rank", "Size", "BroadcastGradientArgs")
_WHOLE = (tf.int32, tf.int64, tf.bool)


def with_shapes(forward: Collection[Any], later: Iterable[Any]) -> set[Any]:
    """The operations of a forward, and those after it that need only shapes.

    Args:
        forward: operations.
        later: the others, in order.
    """
    front, small = set(forward), set[Any]()
    for operation in later:
        inputs = [x.op for x in operation.inputs]
        if operation.type in _SHAPES:
            moves = all(op in front or op.type == "Const" for op in inputs)
        else:
            whole = all(x.dtype in _WHOLE for x in operation.outputs)
            moves = whole and any(op in small for op in inputs)
            moves = moves and all(op in small or op.type == "Const" for op in inputs)
        if moves and operation.outputs:
            small.add(operation)
            front.add(operation)
    return front
