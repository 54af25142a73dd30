"""Gradients: summed over micro-batches, over replicas and over the holders of shared weights.

All three are plain sums; what makes them right stands in `hyparflow.losses`, [Note: One scale].
The order of everything that follows the backward is fixed: sum over micro-batches, sum over
replicas, sum over holders, add weight regularization, clip, apply.

Gradients of embeddings stay sparse (rows and values), as in plain Keras: its norms and Adam's
squares are taken over the values as they come, so densifying them first would give other numbers.
They are joined, except those of rows that all samples have in common (`hyparflow.lookups`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm import Communicator
from hyparflow.flat import FlatBuffer
from hyparflow.gradient_sum import GradientSum

__all__ = ["Reducer", "SharedGroup"]

# Kinds of gradient, by rising precedence; -1 is not known yet.
NONE, COMMON, SPARSE, DENSE = 0, 1, 2, 3
_UNKNOWN = -1


@dataclass
class SharedGroup:
    """Weights that several partitions hold, with the ranks of one replica that hold them.

    Attributes:
        positions: where they stand in this rank's list of trained weights.
        comm: the holders.
    """

    positions: list[int]
    comm: Communicator


class Reducer:
    """Sums one rank's gradients over the ranks that train the same weights.

    Args:
        variables: the weights that this rank trains.
        replicas: the ranks that own the same partition, one per replica.
        shared: groups of weights held by other partitions too.
    """

    def __init__(
        self, variables: Sequence[Any], replicas: Communicator, shared: Sequence[SharedGroup]
    ) -> None:
        self._shapes = [tuple(variable.shape) for variable in variables]
        self._dtypes = [np.dtype(tf.as_dtype(v.dtype).as_numpy_dtype) for v in variables]
        self._groups = [(list(range(len(self._shapes))), replicas)]
        self._groups += [(group.positions, group.comm) for group in shared]
        self._kinds: list[list[int] | None] = [None] * len(self._groups)
        self._buffers: dict[tuple[int, ...], FlatBuffer] = {}

    def reduce(self, gradients: GradientSum) -> list[Any]:
        """The summed gradients: tensors, `tf.IndexedSlices`, or None where nothing depends.

        Args:
            gradients: this rank's sum; empty if its replica had no rows in this step.
        """
        total = gradients.values
        values: list[Any] = [None] * len(self._shapes) if total is None else list(total)
        known = total is not None
        for group, (positions, comm) in enumerate(self._groups):
            if comm.size > 1 and positions:
                # The other partitions that hold a weight look up something else.
                common = gradients.common if group == 0 else frozenset
                part = self._reduce_group(group, comm, positions, values, known, common)
                for position, value in zip(positions, part, strict=True):
                    values[position] = value
            known = True
        return values

    def _reduce_group(
        self,
        group: int,
        comm: Communicator,
        positions: list[int],
        values: list[Any],
        known: bool,
        common: Callable[[], frozenset[int]],
    ) -> list[Any]:
        kinds = self._kinds[group]
        if kinds is None:
            mine = [_kind(values, p, common) if known else _UNKNOWN for p in positions]
            everyone = comm.all_gather_objects(mine, "the kinds of gradients")
            kinds = [max(column) for column in zip(*everyone, strict=True)]
            if any(_UNKNOWN not in rank_kinds for rank_kinds in everyone):
                self._kinds[group] = kinds
        result: list[Any] = [None] * len(positions)
        dense = [i for i, kind in enumerate(kinds) if kind == DENSE]
        summed = self._sum_dense(comm, [positions[i] for i in dense], values)
        for i, value in zip(dense, summed, strict=True):
            result[i] = value
        for i, kind in enumerate(kinds):
            if kind in (COMMON, SPARSE):
                value = values[positions[i]]
                result[i] = self._gather_sparse(comm, positions[i], value)
                if kind == COMMON:
                    result[i] = _added_up(comm, result[i], value is not None)
        return result

    def _sum_dense(self, comm: Communicator, positions: list[int], values: list[Any]) -> list[Any]:
        """Sum dense gradients through one flat buffer per dtype, those of 16 bits in 32."""
        result: dict[int, Any] = {}
        for dtype in dict.fromkeys(self._dtypes[p] for p in positions):
            members = tuple(p for p in positions if self._dtypes[p] == dtype)
            if members not in self._buffers:
                self._buffers[members] = FlatBuffer([self._shapes[p] for p in members], dtype)

            def add(mine: np.ndarray, total: np.ndarray) -> None:
                comm.sum(total, "the sum of gradients", mine)

            summed = self._buffers[members].sum([values[p] for p in members], add)
            result.update(zip(members, summed, strict=True))
        return [result[position] for position in positions]

    def _gather_sparse(self, comm: Communicator, position: int, value: Any) -> Any:
        """Join the rows and values of all ranks, in rank order: plain Keras's order of rows."""
        shape, dtype = self._shapes[position], self._dtypes[position]
        if value is None:
            rows, values = np.zeros(0, np.int64), np.zeros((0, *shape[1:]), dtype)
        else:
            rows = np.asarray(value.indices).astype(np.int64)
            values = np.asarray(value.values, order="C")
        what = "the rows of a sparse gradient"
        return tf.IndexedSlices(
            tf.convert_to_tensor(comm.all_gather_rows(values, what)),
            tf.convert_to_tensor(comm.all_gather_rows(rows, what)),
            tf.constant(shape, tf.int64),
        )


def _added_up(comm: Communicator, joined: Any, contributes: bool) -> Any:
    """The sum of the values that ranks, with the same rows each, have `joined`."""
    parts = np.array([int(contributes)])
    comm.sum(parts, "the number of ranks with a sparse gradient")
    values = tf.reshape(joined.values, [int(parts[0]), -1, *joined.values.shape[1:]])
    rows = joined.indices[: values.shape[1]]
    return tf.IndexedSlices(tf.reduce_sum(values, 0), rows, joined.dense_shape)


def _kind(values: list[Any], position: int, common: Callable[[], frozenset[int]]) -> int:
    gradient = values[position]
    if gradient is None:
        return NONE
    if isinstance(gradient, tf.IndexedSlices):
        return COMMON if position in common() else SPARSE
    return DENSE
