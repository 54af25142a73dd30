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
        like: the sums of a stage that computes the same with other weights; what was traced with
            them serves for these, too.
        tables: positions of weights whose sparse gradients are added up as dense ones, row by row.
    """

    def __init__(
        self,
        weights: Sequence[Any],
        largest: Collection[int] = (),
        like: Accumulator | None = None,
        tables: Collection[int] = (),
    ) -> None:
        self._weights = weights
        self._tables = frozenset(tables)
        self._largest = frozenset(largest)
        self._like = like
        self._sums: dict[int, Any] = {}  # position -> variable
        self._positions: dict[int, int] = {}  # id of a variable's handle -> position
        self._zero = FixedFunction(self._trace_zero)
        self._read = FixedFunction(self._trace_read)
        if like is not None:
            self._zero_alike = like._zero.on(self.counterpart)
            self._read_alike = like._read.on(self.counterpart)

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
            elif position in self._tables and gradient is not None:
                self._sum(position).scatter_add(gradient)
                added[position] = gradient = None
            rest.append(gradient)
        return rest, added

    def _sum(self, position: int) -> Any:
        if position not in self._sums:  # tracing tells which gradients are dense
            weight = self._weights[position]

            def make() -> Any:
                return tf.Variable(tf.zeros(weight.shape, weight.dtype), trainable=False)

            made = make() if tf.executing_eagerly() else choice.compiler().variable(make)
            self._sums[position] = made
            self._positions[id(made.handle)] = position
        return self._sums[position]

    def counterpart(self, handle: Any) -> Any | None:
        """The handle of the sum in place of that of the stage this one is like; None for others."""
        position = None if self._like is None else self._like._positions.get(id(handle))
        return None if position is None else self._sum(position).handle

    def reset(self) -> None:
        """Begin a step."""
        if self._sums:
            zero, _ = self._functions()
            zero([], len(self._sums))

    def fill(self, values: list[Any], added: Collection[int]) -> None:
        """Put the sums at the positions in `added` into `values`, added to the values there."""
        if added:
            _, read = self._functions()
            for position, value in zip(self._sums, read([], len(self._sums)), strict=True):
                if position in added:
                    sparse = values[position]
                    values[position] = value if sparse is None else value + _dense(sparse)

    def _functions(self) -> tuple[FixedFunction, FixedFunction]:
        """What sets the sums to zero, and reads them: traced here, or for those that are alike."""
        like = self._like
        if like is None or like._sums.keys() != self._sums.keys():
            return self._zero, self._read
        if list(like._sums) != list(self._sums):
            self._sums = {position: self._sums[position] for position in like._sums}
        return self._zero_alike, self._read_alike

    # The count is an argument so that the function is traced again when there are more sums.

    def _trace_zero(self, nothing: list[Any], count: int) -> None:
        for variable in self._sums.values():
            # Zeros would be a constant of the function, which keeps them beside the sums for ever.
            variable.assign(tf.raw_ops.Empty(shape=variable.shape, dtype=variable.dtype, init=True))

    def _trace_read(self, nothing: list[Any], count: int) -> list[Any]:
        return [variable.read_value() for variable in self._sums.values()]


def _dense(gradient: Any) -> Any:
    """A gradient as a dense tensor; another micro-batch gave it as rows and values."""
    return tf.convert_to_tensor(gradient)
