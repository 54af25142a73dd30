"""Calls of Python, and by it of MPI, from inside a compiled step.

Public API of TensorFlow only. It gains no time: without it ranks could wait for each other in
different orders, for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["OrderedCalls"]


class OrderedCalls:
    """Calls Python functions from compiled steps one after the other, in traced order.

    TensorFlow may run operations in any order that their inputs allow; ranks that wait for each
    other must not differ in theirs.
    """

    def __init__(self) -> None:
        self._last: Any = None  # the last call in the graph that is being traced

    def __call__(
        self, function: Callable[[np.ndarray], np.ndarray], values: Any, shape: Sequence[Any]
    ) -> Any:
        """What `function` makes of the tensor `values`: a tensor of its dtype and of `shape`."""
        return self.several(lambda array: [function(array)], [values], [shape])[0]

    def several(
        self,
        function: Callable[..., list[np.ndarray]],
        values: Sequence[Any],
        shapes: Sequence[Sequence[Any]],
    ) -> list[Any]:
        """What `function` makes of tensors: as many, of their dtypes and of `shapes`."""
        if tf.executing_eagerly():
            return [tf.convert_to_tensor(x) for x in function(*(np.asarray(v) for v in values))]
        graph = tf.compat.v1.get_default_graph()
        before = [self._last] if self._last is not None and self._last.graph is graph else []
        with tf.control_dependencies(before):
            results = tf.numpy_function(function, list(values), [v.dtype for v in values])
        self._last = results[0]
        for result, shape in zip(results, shapes, strict=True):
            result.set_shape(shape)
        return list(results)
