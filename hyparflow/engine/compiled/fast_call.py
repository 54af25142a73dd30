"""Compiled functions of many tensors, called without a look at each of them where that can be.

Reaches into nothing itself: how they are called is the compiler's. For the gain, the versions and
what happens without it see `hyparflow.engine.compiled.direct_call`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled import choice

__all__ = ["FixedFunction"]


class FixedFunction:
    """Compiles a function of many tensors whose types do not change from call to call.

    Args:
        function: (tensors, *constants) -> any structure.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = tf.function(function, autograph=False, reduce_retracing=True)
        self._calls: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, tensors: Sequence[Any], *constants: Hashable) -> Any:
        """Call it with tensors, and None where one is missing; compiled once for each lack.

        Sparse gradients, of which the number of rows changes, are called as usual.
        """
        if any(isinstance(x, tf.IndexedSlices) for x in tensors):
            return self._function(list(tensors), *constants)
        key = (tuple(x is None for x in tensors), constants)
        call = self._calls.get(key)
        if call is None:
            concrete = self.concrete(tensors, *constants)
            arguments = (_types(tensors), *constants)
            call = self._calls[key] = choice.compiler().call(concrete, arguments)
        return call(*(x for x in tensors if x is not None))

    def concrete(self, tensors: Sequence[Any], *constants: Hashable) -> Any:
        """The concrete function for these arguments."""
        return self._function.get_concrete_function(list(tensors), *constants)


def _types(tensors: Sequence[Any]) -> list[Any]:
    """Their types, which hold no memory."""
    return [None if x is None else tf.TensorSpec(x.shape, x.dtype) for x in tensors]
