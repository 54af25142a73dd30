"""The gradients of one rank's weights, summed over the micro-batches of a step.

Gradients of embeddings stay sparse (rows and values), as in plain Keras: its norms and Adam's
squares are taken over the values as they come, so densifying them first would give other numbers.
They are joined, except those of rows that all samples have in common
(`hyparflow.engine.gradients.common_lookups`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["GradientSum", "joined"]


@tf.function(autograph=False, reduce_retracing=True)
def _add(left: list[Any], right: list[Any]) -> list[Any]:
    return [a + b for a, b in zip(left, right, strict=True)]


class GradientSum:
    """Adds up the gradients of a rank's weights, one micro-batch after the other.

    Args:
        common: returns the positions of weights of which all samples look up the same rows;
            asked only where sparse gradients are to be summed.
        largest: positions of weights of which the largest "gradient" is kept instead of the sum.
    """

    def __init__(
        self,
        common: Callable[[], frozenset[int]] = frozenset,
        largest: Collection[int] = (),
    ) -> None:
        self.values: list[Any] | None = None
        self.common = common
        self._largest = frozenset(largest)

    def add(self, gradients: Sequence[Any]) -> None:
        """Add one micro-batch's gradients: tensors, `tf.IndexedSlices` or None."""
        if self.values is None:
            self.values = list(gradients)
            return
        if not any(gradient is not None for gradient in gradients):
            return
        total, dense = self.values, []
        for index, gradient in enumerate(gradients):
            if total[index] is None or gradient is None:
                total[index] = gradient if total[index] is None else total[index]
            elif all(isinstance(x, tf.IndexedSlices) for x in (gradient, total[index])):
                combine = _overlay if index in self.common() else _concat
                total[index] = combine(total[index], gradient)
            elif index in self._largest:
                total[index] = tf.maximum(total[index], gradient)
            else:
                dense.append(index)
        if dense:
            left = [tf.convert_to_tensor(total[i]) for i in dense]
            sums = _add(left, [tf.convert_to_tensor(gradients[i]) for i in dense])
            for index, value in zip(dense, sums, strict=True):
                total[index] = value


def joined(parts: Sequence[tuple[Sequence[int], GradientSum]], count: int) -> GradientSum:
    """The sums of several stages as one.

    Args:
        parts: for each stage, the positions of its weights among `count`, and its sum.
        count: how many weights there are.
    """
    if len(parts) == 1:
        return parts[0][1]

    def common() -> frozenset[int]:
        found = [positions[i] for positions, part in parts for i in part.common()]
        used = [position for positions, _ in parts for position in positions]
        return frozenset(p for p in found if used.count(p) == 1)

    total = GradientSum(common)
    for positions, part in parts:
        if part.values is not None:
            spread: list[Any] = [None] * count
            for position, value in zip(positions, part.values, strict=True):
                spread[position] = value
            total.add(spread)
    return total


def _concat(left: Any, right: Any) -> Any:
    return tf.IndexedSlices(
        tf.concat([left.values, right.values], 0),
        tf.concat([left.indices, right.indices], 0),
        left.dense_shape,
    )


def _overlay(left: Any, right: Any) -> Any:
    return tf.IndexedSlices(left.values + right.values, left.indices, left.dense_shape)
