"""Gradients that are added up where they are computed, inside the compiled backward.

Reaches into nothing itself; its variables are made by the compiler. For the gain, the versions and
what happens without it see `hyparflow.engine.compiled.hidden_variable`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import tensorflow as tf

from hyparflow.engine.compiled import choice
from hyparflow.engine.compiled.fast_call import FixedFunction

__all__ = ["Accumulator"]


class Accumulator:
    """The sums of the dense gradients of a stage over the micro-batches of a step.

    Args:
        weights: the variables (TensorFlow's) that the stage trains.
        largest: positions of those of which the largest is kept instead of the sum.
    """

    def __init__(self, weights: Sequence[Any], largest: Collection[int] = ()) -> None:
        self._weights = weights
        self._largest = frozenset(largest)
        self._sums: dict[int, Any] = {}  # position -> variable
        self._zero = FixedFunction(self._trace_zero)
        self._read = FixedFunction(self._trace_read)

    def add(self, gradients: Sequence[Any]) -> tuple[list[Any], dict[int, None]]:
        """To be traced: add the dense ones.

        Returns:
            The others, with None for those added; and the positions of those added, as keys, which
            compiled functions return without a tensor.
        """
        rest: list[Any] = []
        added: dict[int, None] = {}
        for position, gradient in enumerate(gradients):
            if isinstance(gradient, tf.Tensor):
                total = self._sum(position)
                if position in self._largest:
                    total.assign(tf.maximum(total, gradient))
                else:
                    total.assign_add(gradient)
                added[position] = gradient = None
            rest.append(gradient)
        return rest, added

    def _sum(self, position: int) -> Any:
        if position not in self._sums:  # which gradients are dense is known while they are traced
            weight = self._weights[position]
            self._sums[position] = choice.compiler().variable(
                lambda: tf.Variable(tf.zeros(weight.shape, weight.dtype), trainable=False)
            )
        return self._sums[position]

    def reset(self) -> None:
        """Begin a step."""
        if self._sums:
            self._zero([], len(self._sums))

    def fill(self, values: list[Any], added: Collection[int]) -> None:
        """Add the sums of those that this step `added` to their places in `values`."""
        if added:
            for position, value in zip(self._sums, self._read([], len(self._sums)), strict=True):
                if position in added:
                    sparse = values[position]
                    values[position] = value if sparse is None else value + _dense(sparse)

    # Traced again when there are more sums, which a count as an argument brings about.

    def _trace_zero(self, nothing: list[Any], count: int) -> None:
        for variable in self._sums.values():
            variable.assign(tf.zeros(variable.shape, variable.dtype))

    def _trace_read(self, nothing: list[Any], count: int) -> list[Any]:
        return [variable.read_value() for variable in self._sums.values()]


def _dense(gradient: Any) -> Any:
    """A gradient that another micro-batch gave as rows and values."""
    return tf.convert_to_tensor(gradient)
