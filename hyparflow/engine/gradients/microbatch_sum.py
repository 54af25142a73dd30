"""The gradients of one rank's weights, summed over the micro-batches of a step.

Gradients of embeddings stay sparse (rows and values), as in plain Keras: its norms and Adam's
squares are taken over the values without adding up rows, so dense gradients would give others.
They are joined, except those of rows that all samples have in common
(`hyparflow.engine.gradients.common_lookups`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.engine.gradients.common_lookups import Lookups

__all__ = ["GradientSum", "added_rows", "joined"]


@tf.function(autograph=False, reduce_retracing=True)
def _add(left: list[Any], right: list[Any]) -> list[Any]:
    return [a + b for a, b in zip(left, right, strict=True)]


class GradientSum:
    """Adds up the gradients of a rank's weights, one micro-batch after the other.

    Attributes:
        unclear: positions of sparse gradients that were joined although their lookups are unknown.

    Args:
        lookups: returns the kinds of sparse gradients; called only if there are any to sum.
        largest: positions of weights of which the largest "gradient" is kept instead of the sum.
    """

    def __init__(
        self, lookups: Callable[[], Lookups] = Lookups, largest: Collection[int] = ()
    ) -> None:
        self.values: list[Any] | None = None
        self.unclear: set[int] = set()
        self._lookups = lookups
        self._largest = frozenset(largest)

    def common(self) -> frozenset[int]:
        """Positions of weights of which all samples look up the same rows."""
        found = self._lookups()
        self.unclear |= found.unclear
        return found.common

    def add(self, gradients: Sequence[Any]) -> None:
        """Add one micro-batch's gradients: tensors, `tf.IndexedSlices` or None."""
        self.take(gradients, self.common)

    def take(self, gradients: Sequence[Any], common: Callable[[], frozenset[int]]) -> None:
        """Add gradients; all samples look up the same rows of the sparse ones in `common`."""
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
                combine = added_rows if index in common() else _concat
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

    def put(self, positions: Sequence[int], gradients: Sequence[Any]) -> None:
        """Add gradients of some of the weights, by another stage that looks up other rows."""
        total = self.values or []
        for position, gradient in zip(positions, gradients, strict=True):
            if total[position] is None:
                total[position] = gradient
            elif gradient is not None:
                single: list[Any] = [None] * len(total)
                single[position] = gradient
                self.take(single, frozenset)


def joined(parts: Sequence[tuple[Sequence[int], GradientSum]], count: int) -> GradientSum:
    """The sums of several stages as one.

    Args:
        parts: for each stage, the positions of its weights among `count`, and its sum.
        count: how many weights there are.
    """
    if len(parts) == 1 and list(parts[0][0]) == list(range(count)):
        return parts[0][1]

    def lookups() -> Lookups:
        common: set[int] = set()
        others: set[int] = set()
        unclear: set[int] = set()
        for positions, part in parts:
            found = part.common()
            unclear |= {positions[i] for i in part.unclear}
            for i, position in enumerate(positions):
                if part.values is not None and part.values[i] is not None:
                    (common if i in found else others).add(position)
        return Lookups(frozenset(common - others), frozenset(unclear | (common & others)))

    total = GradientSum(lookups)
    for positions, part in parts:
        total.unclear |= {positions[i] for i in part.unclear}
        if part.values is not None:
            total.values = [None] * count if total.values is None else total.values
            total.put(positions, part.values)
    return total


def _concat(left: Any, right: Any) -> Any:
    return tf.IndexedSlices(
        tf.concat([left.values, right.values], 0),
        tf.concat([left.indices, right.indices], 0),
        left.dense_shape,
    )


def added_rows(left: Any, right: Any) -> Any:
    """The sum of two sparse gradients of rows that all samples look up.

    The number of rows may depend on values, as for positions up to the longest sequence: then one
    gradient has rows that the other lacks, and the sum has each row once.
    """
    mine, others = np.asarray(left.indices), np.asarray(right.indices)
    if np.array_equal(mine, others):
        return tf.IndexedSlices(left.values + right.values, left.indices, left.dense_shape)
    both = _concat(left, right)
    if any(len(np.unique(rows)) < len(rows) for rows in (mine, others)):
        return both  # it is not known which rows belong together
    rows, places = tf.unique(both.indices)
    values = tf.math.unsorted_segment_sum(both.values, places, tf.size(rows))
    return tf.IndexedSlices(values, rows, left.dense_shape)
