"""Calls of compiled functions without a look at each argument.

The usual way looks at each argument anew, 10 to 20 us of Python for each. A backward takes
hundreds: those of half of ResNet-56 took as long as computing 2 rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["FixedFunction", "flat_call", "packed_call"]


def flat_call(concrete: Any) -> Callable[..., list[Any]]:
    """A call of a concrete function, which returns a list, with tensors that are known to fit."""
    captured, function = concrete.captured_inputs, concrete.inference_fn
    return lambda *tensors: function.call_flat(*tensors, *captured) or []  # None if nothing


def packed_call(concrete: Any) -> Callable[..., Any]:
    """The same of a function that returns any structure."""
    captured, function = concrete.captured_inputs, concrete.inference_fn
    return lambda *tensors: function.call_preflattened([*tensors, *captured])


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
            call = self._calls[key] = packed_call(self.concrete(tensors, *constants))
        return call(*(x for x in tensors if x is not None))

    def concrete(self, tensors: Sequence[Any], *constants: Hashable) -> Any:
        """The concrete function for these arguments."""
        return self._function.get_concrete_function(list(tensors), *constants)
