"""A compiled function of tensors of many sizes, each of which is traced once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

__all__ = ["TracedBySize"]


class TracedBySize:
    """Keeps what is traced for each size: TensorFlow warns of a `tf.function` that has many.

    Args:
        function: what is traced.
        jit_compile: whether XLA compiles it.
    """

    def __init__(self, function: Callable[..., Any], jit_compile: bool = False) -> None:
        self._function, self._jit = function, jit_compile
        self._traced: dict[Any, Any] = {}

    def __call__(self, *args: Any) -> Any:
        """The function of tensors and variables."""
        size = tuple(tuple(tensor.shape) for tensor in keras.tree.flatten(args))
        if size not in self._traced:
            function = tf.function(
                self._function, autograph=False, jit_compile=True if self._jit else None
            )
            self._traced[size] = function.get_concrete_function(*args)
        return self._traced[size](*args)
