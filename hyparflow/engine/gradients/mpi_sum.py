"""The sum of dense gradients over ranks by MPI, begun in one call and finished in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.gradients.flat_buffer import FlatBuffer, adder, buckets, carried_type
from hyparflow.engine.gradients.pending_sums import PendingSums
from hyparflow.engine.gradients.scattered_sum import ScatteredSum

__all__ = ["DenseSum", "MakeSum", "MpiSum", "mpi_sums"]

_WHAT = "the sum of gradients"


class DenseSum(Protocol):
    """Sums tensors of the same shapes over ranks, step after step.

    Attributes:
        size: bytes of what each rank adds.
    """

    size: int

    def start(self, values: Sequence[Any]) -> None:
        """Begin to sum; None counts as zeros. Collective: all ranks begin sums in one order."""

    def advance(self) -> bool:
        """Make progress without waiting; returns whether the sums are done."""

    def finish(self) -> list[Any]:
        """Wait for the sums, and return them."""


class MakeSum(Protocol):
    """Makes an object that sums tensors over ranks."""

    def __call__(
        self,
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[np.dtype],
        owners: Sequence[int] | None = None,
    ) -> DenseSum:
        """Make it.

        Args:
            shapes, dtypes: of the tensors.
            owners: for each, the one rank that needs the sum; None if all ranks do. The sums of
                others may be None.
        """


class MpiSum:
    """Sums the small tensors of a type in one flat buffer, and large ones in their own memory.

    Args:
        comm: the ranks.
        shapes, dtypes: of the tensors.
        compression: "bf16" or "fp16": the type in which longer floating-point numbers are sent.
    """

    def __init__(
        self,
        comm: Communicator,
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[np.dtype],
        compression: str | None = None,
    ) -> None:
        self._comm, self._sums = comm, PendingSums(len(shapes))
        self._buffers: list[tuple[list[int], FlatBuffer]] = []
        for members in buckets(shapes, dtypes):
            dtype = dtypes[members[0]]
            carried = carried_type(dtype, compression)
            buffer = FlatBuffer([shapes[i] for i in members], dtype, carried)
            self._buffers.append((members, buffer))
        self.size = sum(buffer.size for _, buffer in self._buffers)

    def start(self, values: Sequence[Any]) -> None:
        """Begin to sum this rank's tensors; None counts as zeros."""
        for members, buffer in self._buffers:
            mine, total = buffer.pack([values[i] for i in members]), buffer.empty()
            if mine.dtype.itemsize == 2:
                pending = self._comm.start_rounded_sum(total.array, _WHAT, mine, adder(mine.dtype))
            else:
                pending = self._comm.start_sum(total.array, _WHAT, mine)
            self._sums.add(pending, members, buffer, total)

    def advance(self) -> bool:
        """Let MPI make progress; returns whether the sums are done."""
        return self._sums.advance()

    def finish(self) -> list[Any]:
        """The sums, in the order of the tensors."""
        return self._sums.finish()


def mpi_sums(comm: Communicator, compression: str | None = None) -> MakeSum:
    """The function that makes sums over the ranks of `comm`."""

    def make(
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[np.dtype],
        owners: Sequence[int] | None = None,
    ) -> DenseSum:
        if owners is None or compression is not None:  # rounded sums are made for all ranks
            return MpiSum(comm, shapes, dtypes, compression)
        return ScatteredSum(comm, shapes, dtypes, owners)

    return make
