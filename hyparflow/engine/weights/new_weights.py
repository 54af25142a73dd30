"""Gives the weights that each replica has updated to the other replicas, after each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.requests import Pending
from hyparflow.engine.compiled.fast_call import FixedFunction
from hyparflow.engine.compiled.tensor_buffer import TensorBuffer
from hyparflow.engine.weights.pieces import value_of
from hyparflow.model.keras_internals.deferred_variables import raw_variable
from hyparflow.model.variable_sizes import bytes_of
from hyparflow.pipeline.row_ranges import RowRanges

__all__ = ["NewWeights"]

_LARGE = 1 << 20  # bytes; copying a larger weight costs more than a message of its own


class NewWeights:
    """Broadcasts weights from the replicas that update them.

    Args:
        comm: the replicas of one partition.
        variables: the weights, in the same order on all of them.
        owners: for each, the rank in `comm` that updates it, or the rows that each rank updates.
        rows: by id of a weight that is divided, the variable with this rank's rows, if it has any.
    """

    def __init__(
        self,
        comm: Communicator,
        variables: Sequence[Any],
        owners: Sequence[int | RowRanges],
        rows: Mapping[int, Any],
    ) -> None:
        pairs = list(zip(variables, owners, strict=True))
        self._parcels: list[_Parcel | _DividedParcel] = [
            _Parcel(comm, owner, parcel)
            for owner in range(comm.size)
            for parcel in _parcels([v for v, o in pairs if o == owner])
        ]
        self._parcels += [
            _DividedParcel(comm, variable, owner, rows.get(id(variable)))
            for variable, owner in pairs
            if isinstance(owner, RowRanges)
        ]

    def share(self) -> None:
        """Send and take the new weights. Collective."""
        for parcel in self._parcels:
            parcel.start()
        for parcel in self._parcels:
            parcel.finish()


class _Parcel:
    """Weights of one type that travel in one message."""

    def __init__(self, comm: Communicator, owner: int, variables: Sequence[Any]) -> None:
        self._comm, self._owner = comm, owner
        self._variables = [raw_variable(variable) for variable in variables]
        self._dtype = tf.as_dtype(self._variables[0].dtype).as_numpy_dtype
        self._sizes = [int(np.prod(v.shape, dtype=np.int64)) for v in self._variables]
        self._join = FixedFunction(self._trace_join)
        self._part = FixedFunction(self._trace_part)
        self._room: TensorBuffer | None = None
        self._pending: Pending | None = None

    def start(self) -> None:
        """Begin the message."""
        if self._comm.rank == self._owner:
            array = np.asarray(self._join([]))
        else:
            self._room = TensorBuffer([sum(self._sizes)], np.dtype(self._dtype))
            array = self._room.array
        what = f"the new weights of replica {self._owner}"
        self._pending = self._comm.start_broadcast(array, self._owner, what)

    def finish(self) -> None:
        """Wait for it, and let the weights have what came."""
        if self._pending is not None:
            self._pending.wait()
        if self._room is not None:
            self._part([self._room.tensor])
        self._room = self._pending = None

    def _trace_join(self, tensors: list[Any]) -> Any:
        flat = [tf.reshape(variable.read_value(), [-1]) for variable in self._variables]
        return tf.concat(flat, 0) if len(flat) > 1 else flat[0]

    def _trace_part(self, tensors: list[Any]) -> None:
        (flat,) = tensors
        parts = tf.split(flat, self._sizes) if len(self._sizes) > 1 else [flat]
        for variable, part in zip(self._variables, parts, strict=True):
            variable.assign(tf.reshape(part, variable.shape))


class _DividedParcel:
    """A weight of which each rank updates some rows: they meet in a new value of the whole."""

    def __init__(self, comm: Communicator, whole: Any, ranges: RowRanges, rows: Any) -> None:
        self._comm, self._whole, self._ranges = comm, raw_variable(whole), ranges
        self._rows = rows
        self._assign = FixedFunction(self._trace)
        self._room: TensorBuffer | None = None
        self._pending: list[Pending] = []

    def start(self) -> None:
        """Begin the messages."""
        kind = np.dtype(tf.as_dtype(self._whole.dtype).as_numpy_dtype)
        self._room = TensorBuffer(tuple(self._whole.shape), kind)
        viewed = self._room.array.reshape(self._ranges.view)
        for owner in self._ranges.owners:
            part = viewed[self._ranges.rows(owner)]
            if owner == self._comm.rank:
                part[:] = value_of(self._rows)
            what = f"the new rows of replica {owner}"
            self._pending.append(self._comm.start_broadcast(part, owner, what))

    def finish(self) -> None:
        """Wait for them, and let the weight have what came."""
        for pending in self._pending:
            pending.wait()
        if self._room is not None:
            self._assign([self._room.tensor])
        self._room, self._pending = None, []

    def _trace(self, tensors: list[Any]) -> None:
        (whole,) = tensors
        self._whole.assign(whole)


def _parcels(variables: Sequence[Any]) -> list[list[Any]]:
    """The variables of each message: a large one alone, the small ones of each type."""
    parcels = [[v] for v in variables if bytes_of(v) >= _LARGE]
    small: dict[str, list[Any]] = {}
    for variable in variables:
        if bytes_of(variable) < _LARGE:
            small.setdefault(str(variable.dtype), []).append(variable)
    return parcels + list(small.values())
