"""Compiled functions of many tensors, called without checks of each one where possible.

Uses no private part of TensorFlow itself: the compiler calls the functions. For the gain, the
versions and what happens without it see `hyparflow.engine.compiled.direct_call`.
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
        """Call it with tensors or None; compiled once for each set of missing tensors.

        With sparse gradients, whose number of rows changes, it is called in the usual way.
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
    """The types of the tensors, which hold no memory."""
    return [None if x is None else tf.TensorSpec(x.shape, x.dtype) for x in tensors]
