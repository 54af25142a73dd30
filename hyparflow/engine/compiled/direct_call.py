"""Calls of compiled functions without TensorFlow's checks of each argument.

The usual call checks each argument, 10 to 20 us of Python for each. A backward takes hundreds:
those of half of ResNet-56 took as long as computing 2 rows.

A compiled function takes the variables that it captured as further arguments. So one that was
traced for a layer serves for another layer of the same kind, if its variables are given instead.

Relies on methods of concrete functions that are documented nowhere. Gain: without it a step of
small layers took 10 to 29 % more processor time (``benchmarks/border``). Seen to work on TensorFlow
2.21 with Keras 3.15. Without it functions are called in the usual way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["DirectCall", "flat_call", "packed_call"]


class DirectCall:
    """A compiled function, called with tensors that are known to fit.

    Args:
        function: calls it with a list of all its arguments.
        captured: the last of them, which it captured when it was traced.
    """

    __slots__ = ("_captured", "_function")

    def __init__(self, function: Callable[[list[Any]], Any], captured: Sequence[Any]) -> None:
        self._function = function
        self._captured = list(captured)

    def __call__(self, *tensors: Any) -> Any:
        return self._function([*tensors, *self._captured])

    def on(self, replace: Callable[[Any], Any]) -> DirectCall:
        """The same function with other variables.

        Args:
            replace: (a captured tensor, of a variable its handle) -> the one to take instead.
        """
        return DirectCall(self._function, [replace(tensor) for tensor in self._captured])


def flat_call(concrete: Any) -> DirectCall:
    """A call of a concrete function that returns a list."""
    function = concrete.inference_fn
    # TensorFlow returns None for an empty list.
    return DirectCall(lambda given: function.call_flat(*given) or [], concrete.captured_inputs)


def packed_call(concrete: Any) -> DirectCall:
    """Like `flat_call`, for a function that returns any structure."""
    return DirectCall(concrete.inference_fn.call_preflattened, concrete.captured_inputs)
