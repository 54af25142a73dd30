"""Gradients that are added up where they are computed, inside the compiled backward."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from hyparflow.flat_call import FixedFunction

__all__ = ["Accumulator"]


class Accumulator:
    """The sums of the dense gradients of a stage over the micro-batches of a step.

    Args:
        weights: the variables (TensorFlow's) that the stage trains.
    """

    def __init__(self, weights: Sequence[Any]) -> None:
        self._weights = weights
        self._sums: dict[int, Any] = {}  # position -> variable
        self._zero = FixedFunction(self._trace_zero)
        self._read = FixedFunction(self._trace_read)

    def add(self, gradients: Sequence[Any]) -> list[Any]:
        """To be traced: add the dense ones; the others are returned, with None for those added."""
        rest: list[Any] = []
        for position, gradient in enumerate(gradients):
            if isinstance(gradient, tf.Tensor):
                self._sum(position).assign_add(gradient)
                gradient = None
            rest.append(gradient)
        return rest

    def _sum(self, position: int) -> Any:
        if position not in self._sums:
            # Which gradients are dense is known while they are traced. A variable that tf.function
            # sees being made lets it trace all again; in a thread of its own it does not see it.
            maker = threading.Thread(target=self._make, args=(position,))
            maker.start()
            maker.join()
        return self._sums[position]

    def _make(self, position: int) -> None:
        weight = self._weights[position]
        zeros = tf.zeros(weight.shape, weight.dtype)
        self._sums[position] = tf.Variable(zeros, trainable=False)

    def reset(self) -> None:
        """Begin a step."""
        if self._sums:
            self._zero([], len(self._sums))

    def fill(self, values: list[Any]) -> None:
        """Put the sums in their places in `values`."""
        if self._sums:
            for position, value in zip(self._sums, self._read([], len(self._sums)), strict=True):
                values[position] = value

    # Traced again when there are more sums, which a count as an argument brings about.

    def _trace_zero(self, nothing: list[Any], count: int) -> None:
        for variable in self._sums.values():
            variable.assign(tf.zeros(variable.shape, variable.dtype))

    def _trace_read(self, nothing: list[Any], count: int) -> list[Any]:
        return [variable.read_value() for variable in self._sums.values()]
