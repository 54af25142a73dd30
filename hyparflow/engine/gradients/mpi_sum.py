"""The sum of dense gradients over ranks by MPI, begun in one call and finished in another."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.requests import Pending
from hyparflow.engine.compiled.tensor_buffer import TensorBuffer
from hyparflow.engine.gradients.flat_buffer import FlatBuffer, adder, carried_type

__all__ = ["DenseSum", "MakeSum", "MpiSum", "mpi_sums"]

_WHAT = "the sum of gradients"
_LARGE = 1 << 20  # bytes from which on copying a tensor costs more than a sum of its own


class DenseSum(Protocol):
    """Sums tensors of the same shapes over ranks, step after step.

    Attributes:
        size: bytes of what each rank adds.
    """

    size: int

    def start(self, values: Sequence[Any]) -> None:
        """Begin with this rank's tensors; None counts as zeros. Collective, in one order."""

    def advance(self) -> bool:
        """Go on as far as the other ranks have come; whether the sums are there."""

    def finish(self) -> list[Any]:
        """The sums, once they are there."""


# (shapes, types) of tensors -> what sums them over the ranks that it was made for.
MakeSum = Callable[[Sequence[tuple[int, ...]], Sequence[np.dtype]], DenseSum]


class MpiSum:
    """Sums small tensors of a type through one flat buffer, and large ones where they are.

    Args:
        comm: the ranks.
        shapes, dtypes: of the tensors.
        compression: "bf16" or "fp16": what floating-point numbers of more bits travel as.
    """

    def __init__(
        self,
        comm: Communicator,
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[np.dtype],
        compression: str | None = None,
    ) -> None:
        self._comm = comm
        self._count = len(shapes)
        self._buffers: list[tuple[list[int], FlatBuffer]] = []
        for members in _buckets(shapes, dtypes):
            dtype = dtypes[members[0]]
            carried = carried_type(dtype, compression)
            buffer = FlatBuffer([shapes[i] for i in members], dtype, carried)
            self._buffers.append((members, buffer))
        self._pending: list[tuple[Pending, TensorBuffer]] = []
        self.size = sum(buffer.size for _, buffer in self._buffers)

    def start(self, values: Sequence[Any]) -> None:
        """Begin to sum this rank's tensors; None counts as zeros."""
        for members, buffer in self._buffers:
            mine, total = buffer.pack([values[i] for i in members]), buffer.empty()
            if mine.dtype.itemsize == 2:
                pending = self._comm.start_rounded_sum(total.array, _WHAT, mine, adder(mine.dtype))
            else:
                pending = self._comm.start_sum(total.array, _WHAT, mine)
            self._pending.append((pending, total))

    def advance(self) -> bool:
        """Let MPI go on; whether it is done."""
        done = [pending.advance() for pending, _ in self._pending]  # each of them goes on
        return all(done)

    def finish(self) -> list[Any]:
        """The sums, in the order of the tensors."""
        result: list[Any] = [None] * self._count
        for (members, buffer), (pending, total) in zip(self._buffers, self._pending, strict=True):
            pending.wait()
            for i, value in zip(members, buffer.unpack(total), strict=True):
                result[i] = value
        self._pending.clear()
        return result


def _buckets(shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype]) -> list[list[int]]:
    """Which tensors are summed together: a large one alone, the small ones of each type."""
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True)]
    buckets = [[i] for i, size in enumerate(sizes) if size >= _LARGE]
    for dtype in dict.fromkeys(dtypes):
        small = [i for i, size in enumerate(sizes) if size < _LARGE and dtypes[i] == dtype]
        buckets += [small] * bool(small)
    return buckets


def mpi_sums(comm: Communicator, compression: str | None = None) -> MakeSum:
    """Makes sums over these ranks."""
    return lambda shapes, dtypes: MpiSum(comm, shapes, dtypes, compression)
