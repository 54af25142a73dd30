"""Gradients of a function, by TensorFlow: the one place that opens a tape.

Public API of TensorFlow only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = ["gradients_of"]


def _differentiable(sources: list[Any]) -> list[Any]:
    """The sources of floating point: a tensor that Keras takes for a float may be an integer."""
    return [x for x in sources if not isinstance(x, tf.Tensor) or x.dtype.is_floating]


def gradients_of(function: Callable[[], list[Any]], sources: list[Any]) -> list[Any]:
    """The gradients of the sum of what `function` returns; to be traced."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        targets = function()
    return list(tape.gradient(targets, sources)) if sources else []
