"""Gradients: summed over micro-batches, over replicas and over the holders of shared weights.

All three are plain sums; `hyparflow.engine.loss.terms`, [Note: One scale], says why they are right.
But a "gradient" that is the next value of its variable (scales and largest values of float8) is not
summed: the largest is kept. The order of all that follows the backward is fixed: sum over
micro-batches, over replicas, over holders, add weight regularization, clip, apply.

Gradients of embeddings stay sparse, for the reason that `hyparflow.engine.gradients.microbatch_sum`
gives.

[Note: Kinds] Which gradients there are, and which are sparse, decides what ranks send each other.
Ranks exchange these kinds in the first step, and again in a step in which the kinds of one rank
have changed: a layer may take part in some steps only. Whether they have is a number that is summed
beside the gradients. Sums that have already begun with the wrong kinds are made again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.recorder import EventKind
from hyparflow.engine.compiled.shared_memory import as_tensor
from hyparflow.engine.gradients.changed_kinds import ChangedKinds
from hyparflow.engine.gradients.divided_sum import DividedSum, rows_of
from hyparflow.engine.gradients.microbatch_sum import GradientSum, added_rows
from hyparflow.engine.gradients.mpi_sum import DenseSum, MakeSum, mpi_sums
from hyparflow.pipeline.row_ranges import RowRanges

__all__ = ["Reducer", "SharedGroup"]

# Kinds of gradient, by rising precedence; -1 is not known yet.
NONE, COMMON, SPARSE, DENSE, LARGEST = 0, 1, 2, 3, 4
_UNKNOWN = -1

_Key = tuple[int, tuple[int, ...]]  # a group of ranks, and positions of weights


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

    The sums over replicas of a stage that is done can begin while others still compute (`start`).

    Attributes:
        unclear: positions of weights whose sparse gradients were joined, their lookups unknown.

    Args:
        variables: the weights that this rank trains.
        replicas: the ranks that own the same partition, one per replica.
        shared: groups of weights held by other partitions too.
        sums: makes the sums of dense gradients over `replicas`; by default, sums of MPI.
        pieces: stage -> the weights that are summed by themselves when the stage is done; in the
            order in which stages are done, the same on all replicas. Other weights come last.
        owners: for each weight, the replica that needs its gradient, or which rows of it each
            needs; None if all need all.
        complete: positions of weights whose gradients each replica has whole.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        replicas: Communicator,
        shared: Sequence[SharedGroup],
        sums: MakeSum | None = None,
        pieces: Mapping[int, Sequence[int]] | None = None,
        owners: Sequence[int | RowRanges] | None = None,
        complete: Collection[int] = (),
    ) -> None:
        self._shapes = [tuple(variable.shape) for variable in variables]
        self._dtypes = [np.dtype(tf.as_dtype(v.dtype).as_numpy_dtype) for v in variables]
        self._overwritten = {n for n, v in enumerate(variables) if v.overwrite_with_gradient}
        everything = [n for n in range(len(self._shapes)) if n not in complete]
        self._groups = [(everything, replicas)]
        self._groups += [(group.positions, group.comm) for group in shared]
        self._makers = [sums or mpi_sums(replicas), *(mpi_sums(group.comm) for group in shared)]
        self._early = {s: [p for p in x if p not in complete] for s, x in (pieces or {}).items()}
        self._owners = owners
        self._divided = {
            n: owner for n, owner in enumerate(owners or ()) if isinstance(owner, RowRanges)
        }
        apart = {position for piece in self._early.values() for position in piece}
        rest = [position for position in everything if position not in apart]
        self._pieces: list[list[Sequence[int]]] = [[*self._early.values(), rest]]
        self._pieces += [[group.positions] for group in shared]
        self._kinds: list[dict[int, int] | None] = [None] * len(self._groups)  # by position
        self._told: list[list[int] | None] = [None] * len(self._groups)  # kinds of this rank
        self._sums: dict[_Key, DenseSum] = {}
        self._started: dict[_Key, DenseSum] = {}  # in this step
        self._since: dict[_Key, float] = {}  # when sums began that are not done yet
        self._recorder = replicas.recorder
        self.unclear: set[int] = set()

    def start(self, stage: int, positions: Sequence[int], values: Sequence[Any] | None) -> None:
        """Begin to sum the gradients of a stage over replicas. Collective, in their order.

        In the first step all begin with `reduce`, which finds out what kinds of gradients there
        are, [Note: Kinds].

        Args:
            stage: the stage that is done.
            positions: its weights; weights that other stages have, too, are left for `reduce`.
            values: their gradients; None if this replica had no rows in this step.
        """
        kinds = self._kinds[0]
        if kinds is not None and self._groups[0][1].size > 1:
            known = dict(zip(positions, values or (), strict=False))
            self._start(0, self._early[stage], kinds, known)

    def advance(self) -> None:
        """Let sums that have begun go on."""
        for key, started in self._started.items():
            if started.advance():
                self._note_done(key)

    def reduce(self, gradients: GradientSum) -> list[Any]:
        """The summed gradients: tensors, `tf.IndexedSlices`, or None for weights without one.

        They are None, too, for weights that another replica owns; of those that are divided, they
        are those of this replica's rows.

        Args:
            gradients: this rank's sum; empty if its replica had no rows in this step.
        """
        total = gradients.values
        values: list[Any] = [None] * len(self._shapes) if total is None else list(total)
        known = total is not None
        for group, (positions, comm) in enumerate(self._groups):
            if comm.size > 1 and positions:
                # Other partitions that hold the weight look up other rows.
                common = gradients.common if group == 0 else frozenset
                self._reduce_group(group, values, known, common)
            if group == 0 and self._owners is not None:
                values = [self._mine(position, value) for position, value in enumerate(values)]
            known = True
        if self._groups[0][1].rank == 0:  # one replica reports it
            self.unclear |= gradients.unclear
        return values

    def _mine(self, position: int, value: Any) -> Any:
        """What this replica needs of a sum over replicas."""
        owner, replica = (self._owners or ())[position], self._groups[0][1].rank
        if not isinstance(owner, RowRanges):
            return value if owner == replica else None
        if isinstance(value, tf.IndexedSlices):
            return rows_of(value, self._shapes[position], owner, replica)
        return value  # the sum of its rows

    def _reduce_group(
        self, group: int, values: list[Any], known: bool, common: Callable[[], frozenset[int]]
    ) -> None:
        """Put the sums over a group of ranks in place of their weights' `values`."""
        positions, comm = self._groups[group]
        mine = [self._kind(values, p, common) for p in positions] if known else None
        changed = ChangedKinds(comm, mine != self._told[group])
        kinds, own = self._kinds[group], list(values)
        if kinds is not None:
            self._sum_dense(group, kinds, own, values)
        if changed.anywhere() or kinds is None:
            before, kinds = kinds, self._agree(group, mine)
            if kinds != before:
                self._sum_dense(group, kinds, own, values)
        for position, kind in kinds.items():
            if kind == NONE:
                values[position] = None
            elif kind in (COMMON, SPARSE):
                shape = self._shape(group, position)
                values[position] = self._gather_sparse(comm, position, own[position], kind, shape)
        self._keep_largest(comm, [p for p, kind in kinds.items() if kind == LARGEST], own, values)

    def _agree(self, group: int, mine: list[int] | None) -> dict[int, int]:
        """For each weight, the kind of highest precedence on any rank. Collective."""
        positions, comm = self._groups[group]
        told = [_UNKNOWN] * len(positions) if mine is None else mine
        everyone = comm.all_gather_objects(told, "the kinds of gradients")
        highest = [max(column) for column in zip(*everyone, strict=True)]
        kinds = dict(zip(positions, highest, strict=True))
        if any(_UNKNOWN not in rank_kinds for rank_kinds in everyone):
            self._kinds[group], self._told[group] = kinds, mine
        return kinds

    def _sum_dense(
        self, group: int, kinds: dict[int, int], own: list[Any], values: list[Any]
    ) -> None:
        """Put sums of dense gradients in their places in `values`.

        They are summed piece by piece; pieces that have not begun begin together.
        """
        known = dict(enumerate(own))
        for piece in self._pieces[group]:
            self._start(group, piece, kinds, known)
        for key in [key for key in self._started if key[0] == group]:
            sums = self._started[key].finish()
            self._note_done(key)
            del self._started[key]
            for position, value in zip(key[1], sums, strict=True):
                values[position] = value

    def _note_done(self, key: _Key) -> None:
        since = self._since.pop(key, None)
        if since is not None:
            self._recorder.note(EventKind.SUM, since, moved=self._started[key].size)

    def _start(
        self, group: int, piece: Sequence[int], kinds: dict[int, int], values: dict[int, Any]
    ) -> None:
        """Begin the sum of a piece, unless it has begun."""
        key = (group, tuple(position for position in piece if kinds[position] == DENSE))
        if key[1] and key not in self._started:
            self._started[key] = self._sum(key)
            self._since[key] = time.monotonic()
            self._started[key].start([values.get(position) for position in key[1]])

    def _sum(self, key: _Key) -> DenseSum:
        if key not in self._sums:
            group, positions = key
            shapes = [self._shape(group, position) for position in positions]
            dtypes = [self._dtypes[position] for position in positions]
            owners = None
            if group == 0 and self._owners is not None:
                owners = [self._owners[position] for position in positions]
            self._sums[key] = DividedSum.of(
                self._makers[group], shapes, dtypes, owners, self._groups[group][1].rank
            )
        return self._sums[key]

    def _shape(self, group: int, position: int) -> tuple[int, ...]:
        """The shape of what a group of ranks sums: of a divided weight, replicas sum the whole."""
        ranges = self._divided.get(position) if group else None
        return ranges.shape(self._groups[0][1].rank) if ranges else self._shapes[position]

    def _kind(self, values: list[Any], position: int, common: Callable[[], frozenset[int]]) -> int:
        gradient = values[position]
        if gradient is None:
            return NONE
        if position in self._overwritten:
            return LARGEST
        if isinstance(gradient, tf.IndexedSlices):
            return COMMON if position in common() else SPARSE
        return DENSE

    def _keep_largest(
        self, comm: Communicator, positions: list[int], own: list[Any], values: list[Any]
    ) -> None:
        """Replace the values at `positions` by the largest of all ranks; none is negative."""
        if not positions:
            return
        zeros = {p: np.zeros(self._shapes[p], self._dtypes[p]) for p in positions}
        mine = [np.ravel(zeros[p] if own[p] is None else np.asarray(own[p])) for p in positions]
        all_ranks = comm.all_gather_rows(np.concatenate(mine)[None], "what is kept of gradients")
        parts = np.split(all_ranks.max(axis=0), np.cumsum([part.size for part in mine])[:-1])
        for p, part in zip(positions, parts, strict=True):
            values[p] = tf.constant(part.reshape(self._shapes[p]), self._dtypes[p])

    def _gather_sparse(
        self, comm: Communicator, position: int, value: Any, kind: int, shape: tuple[int, ...]
    ) -> Any:
        """Join the rows and values of all ranks, in rank order: plain Keras's order of rows. Or
        add them up, if they are of the kind COMMON.
        """
        dtype = self._dtypes[position]
        if value is None:
            rows, values = np.zeros(0, np.int64), np.zeros((0, *shape[1:]), dtype)
        else:
            rows = np.asarray(value.indices).astype(np.int64)
            values = np.asarray(value.values, order="C")
        rows, values = (comm.all_gather_rows(x, "a sparse gradient") for x in (rows, values))
        dense_shape = tf.constant(shape, tf.int64)
        everything = tf.IndexedSlices(as_tensor(values), as_tensor(rows), dense_shape)
        if kind == SPARSE:
            return everything
        counts = np.zeros(comm.size, np.int64)
        counts[comm.rank] = 0 if value is None else value.indices.shape[0]
        comm.sum(counts, "the numbers of rows of a sparse gradient")
        ends = np.cumsum(counts)[:-1]
        parts = [
            tf.IndexedSlices(tf.constant(v), tf.constant(r), dense_shape)
            for v, r in zip(np.split(values, ends), np.split(rows, ends), strict=True)
            if len(r)
        ]
        return functools.reduce(added_rows, parts) if parts else everything
