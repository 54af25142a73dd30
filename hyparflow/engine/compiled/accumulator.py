"""Gradients that are added up where they are computed, inside the compiled backward.

Uses no private part of TensorFlow itself; the compiler makes its variables. For the gain, the
versions and what happens without it see `hyparflow.engine.compiled.hidden_variable`.
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
        largest: positions of weights of which the largest gradient is kept instead of the sum.
    """

    def __init__(self, weights: Sequence[Any], largest: Collection[int] = ()) -> None:
        self._weights = weights
        self._largest = frozenset(largest)
        self._sums: dict[int, Any] = {}  # position -> variable
        self._zero = FixedFunction(self._trace_zero)
        self._read = FixedFunction(self._trace_read)

    def add(self, gradients: Sequence[Any]) -> tuple[list[Any], dict[int, None]]:
        """To be traced: add the dense gradients.

        Returns:
            The gradients, with None for the dense ones; and the positions of the dense ones, as
            keys of a dict, which compiled functions return without a tensor.
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
        if position not in self._sums:  # tracing tells which gradients are dense
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
        """Put the sums at the positions in `added` into `values`, added to the values there."""
        if added:
            for position, value in zip(self._sums, self._read([], len(self._sums)), strict=True):
                if position in added:
                    sparse = values[position]
                    values[position] = value if sparse is None else value + _dense(sparse)

    # The count is an argument so that the function is traced again when there are more sums.

    def _trace_zero(self, nothing: list[Any], count: int) -> None:
        for variable in self._sums.values():
            variable.assign(tf.zeros(variable.shape, variable.dtype))

    def _trace_read(self, nothing: list[Any], count: int) -> list[Any]:
        return [variable.read_value() for variable in self._sums.values()]


def _dense(gradient: Any) -> Any:
    """A gradient as a dense tensor; another micro-batch gave it as rows and values."""
    return tf.convert_to_tensor(gradient)
