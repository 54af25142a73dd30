"""Calls of Python functions, which may call MPI, from inside a compiled step.

Public API of TensorFlow only. Without a fixed order, ranks could wait for each other for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["OrderedCalls"]


class OrderedCalls:
    """Calls Python functions from compiled steps one after the other, in traced order.

    TensorFlow may run operations in any order that their inputs allow; but ranks that wait for each
    other must use the same order.
    """

    def __init__(self) -> None:
        self._last: Any = None  # the last call in the graph that is being traced

    def __call__(
        self, function: Callable[[np.ndarray], np.ndarray], values: Any, shape: Sequence[Any]
    ) -> Any:
        """`function(values)` in the graph: a tensor of the same dtype and of `shape`."""
        return self.several(lambda array: [function(array)], [values], [shape])[0]

    def several(
        self,
        function: Callable[..., list[np.ndarray]],
        values: Sequence[Any],
        shapes: Sequence[Sequence[Any]],
    ) -> list[Any]:
        """`function` of several tensors in the graph: as many, of their dtypes and of `shapes`."""
        return self.others(function, values, [value.dtype for value in values], shapes)

    def others(
        self,
        function: Callable[..., list[np.ndarray]],
        values: Sequence[Any],
        dtypes: Sequence[Any],
        shapes: Sequence[Sequence[Any]],
    ) -> list[Any]:
        """`function` of tensors in the graph: other ones, of `dtypes` and of `shapes`."""
        if tf.executing_eagerly():
            return [tf.convert_to_tensor(x) for x in function(*(np.asarray(v) for v in values))]
        graph = tf.compat.v1.get_default_graph()
        before = [self._last] if self._last is not None and self._last.graph is graph else []
        with tf.control_dependencies(before):
            results = tf.numpy_function(function, list(values), list(dtypes))
        self._last = results[0]
        for result, shape in zip(results, shapes, strict=True):
            result.set_shape(shape)
        return list(results)
