"""Sums of gradients of which each replica needs some rows, where weights are divided among them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.engine.compiled.fast_call import FixedFunction
from hyparflow.engine.gradients.mpi_sum import DenseSum, MakeSum
from hyparflow.pipeline.row_ranges import RowRanges

__all__ = ["DividedSum", "rows_of"]

Owner = int | RowRanges


class DividedSum:
    """Sums tensors, those of divided weights part by part.

    Args:
        make: makes sums of tensors that each have one owner.
        shapes, dtypes: of the tensors.
        owners: for each tensor, the replica that needs the sum, or which rows of it each needs.
        replica: this one.
    """

    def __init__(
        self,
        make: MakeSum,
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[np.dtype],
        owners: Sequence[Owner],
        replica: int,
    ) -> None:
        self._cuts = [
            FixedFunction(functools.partial(_cut, owner)) if isinstance(owner, RowRanges) else None
            for owner in owners
        ]
        self._owners = owners
        parts: list[tuple[int, ...]] = []
        kinds: list[np.dtype] = []
        theirs: list[int] = []
        self._mine: list[int | None] = []  # for each tensor, the number of the part to be had
        for shape, dtype, owner in zip(shapes, dtypes, owners, strict=True):
            found = _parts(shape, owner)
            numbers = {r: len(parts) + n for n, r in enumerate(found)}
            split = isinstance(owner, RowRanges)
            self._mine.append(numbers.get(replica) if split else len(parts))
            parts += found.values()
            theirs += found
            kinds += [dtype] * len(found)
        self._sum = make(parts, kinds, theirs)
        self.size = self._sum.size

    @classmethod
    def of(
        cls,
        make: MakeSum,
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[np.dtype],
        owners: Sequence[Owner] | None,
        replica: int,
    ) -> DenseSum:
        """Such a sum, or an ordinary one where no weight is divided."""
        whole = [owner for owner in owners or () if not isinstance(owner, RowRanges)]
        if owners is not None and len(whole) < len(owners):
            return cls(make, shapes, dtypes, owners, replica)
        return make(shapes, dtypes, None if owners is None else whole)

    def start(self, values: Sequence[Any]) -> None:
        """Begin to sum this rank's tensors; None counts as zeros."""
        parts: list[Any] = []
        for value, owner, cut in zip(values, self._owners, self._cuts, strict=True):
            if cut is None or not isinstance(owner, RowRanges):
                parts.append(value)
            elif value is None:
                parts += [None] * len(owner.owners)
            else:
                parts += cut([tf.convert_to_tensor(value)])
        self._sum.start(parts)

    def advance(self) -> bool:
        """Make progress without waiting; returns whether the sums are done."""
        return self._sum.advance()

    def finish(self) -> list[Any]:
        """The sums; of a divided tensor, that of this replica's rows, or None if it has none."""
        sums = self._sum.finish()
        return [None if number is None else sums[number] for number in self._mine]


def _parts(shape: tuple[int, ...], owner: Owner) -> dict[int, tuple[int, ...]]:
    """The shapes of a tensor's parts, by the replicas that own them."""
    if isinstance(owner, RowRanges):
        return {replica: owner.shape(replica) for replica in owner.owners}
    return {owner: shape}


def _cut(ranges: RowRanges, tensors: list[Any]) -> list[Any]:
    (whole,) = tensors
    viewed = tf.reshape(whole, ranges.view)
    return [viewed[ranges.rows(replica)] for replica in ranges.owners]


def rows_of(
    gradient: Any, shape: tuple[int, ...], ranges: RowRanges, replica: int
) -> tf.IndexedSlices | None:
    """What a sparse gradient has for a replica's rows of a weight, or None if it has no rows.

    Where the weight is divided flat, its rows become as many single numbers.

    Args:
        gradient: the sparse gradient of the whole weight.
        shape: of the weight.
        ranges: which rows each replica has.
        replica: the replica.
    """
    if replica not in ranges.owners:
        return None
    indices, values = tf.cast(gradient.indices, tf.int64), gradient.values
    if ranges.view != shape:
        width = math.prod(shape[1:])
        indices = tf.reshape(indices[:, None] * width + tf.range(width, dtype=tf.int64), [-1])
        values = tf.reshape(values, [-1])
    rows = ranges.rows(replica)
    mine = tf.where((indices >= rows.start) & (indices < rows.stop))[:, 0]
    return tf.IndexedSlices(
        tf.gather(values, mine),
        tf.gather(indices, mine) - rows.start,
        tf.constant(ranges.shape(replica), tf.int64),
    )
