"""Calls of compiled functions without TensorFlow's checks of each argument.

The usual call checks each argument, 10 to 20 us of Python for each. A backward takes hundreds:
those of half of ResNet-56 took as long as computing 2 rows.

Relies on methods of concrete functions that are documented nowhere. Gain: without it a step of
small layers took 10 to 29 % more processor time (``benchmarks/border``). Seen to work on TensorFlow
2.21 with Keras 3.15. Without it functions are called in the usual way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["flat_call", "packed_call"]


def flat_call(concrete: Any) -> Callable[..., list[Any]]:
    """A call of a concrete function, which returns a list, with tensors that are known to fit."""
    captured, function = concrete.captured_inputs, concrete.inference_fn
    return lambda *tensors: function.call_flat(*tensors, *captured) or []  # None if nothing


def packed_call(concrete: Any) -> Callable[..., Any]:
    """Like `flat_call`, for a function that returns any structure."""
    captured, function = concrete.captured_inputs, concrete.inference_fn
    return lambda *tensors: function.call_preflattened([*tensors, *captured])
