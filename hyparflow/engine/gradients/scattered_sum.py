"""The sum of dense gradients over replicas, of which each replica gets those that it owns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyparflow.comm.communicator import Communicator
from hyparflow.engine.gradients.flat_buffer import FlatBuffer, buckets, carried_type
from hyparflow.engine.gradients.pending_sums import PendingSums

__all__ = ["ScatteredSum"]


class ScatteredSum:
    """Sums tensors to their owners: of each owner, the small ones in one flat buffer.

    Attributes:
        size: bytes of what each rank adds.

    Args:
        comm: the ranks.
        shapes, dtypes: of the tensors.
        owners: for each tensor, the rank that gets the sum.
    """

    def __init__(
        self,
        comm: Communicator,
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[np.dtype],
        owners: Sequence[int],
    ) -> None:
        self._comm, self._sums = comm, PendingSums(len(shapes))
        self._buffers: list[tuple[int, list[int], FlatBuffer]] = []
        for owner in sorted(set(owners)):
            theirs = [i for i, other in enumerate(owners) if other == owner]
            for bucket in buckets([shapes[i] for i in theirs], [dtypes[i] for i in theirs]):
                members = [theirs[i] for i in bucket]
                dtype = dtypes[members[0]]
                carried = carried_type(dtype, None)
                buffer = FlatBuffer([shapes[i] for i in members], dtype, carried)
                self._buffers.append((owner, members, buffer))
        self.size = sum(buffer.size for _, _, buffer in self._buffers)

    def start(self, values: Sequence[Any]) -> None:
        """Begin to sum this rank's tensors; None counts as zeros."""
        for owner, members, buffer in self._buffers:
            mine = buffer.pack([values[i] for i in members])
            total = buffer.empty() if owner == self._comm.rank else None
            array = None if total is None else total.array
            pending = self._comm.start_sum_to(array, owner, "the sum of gradients", mine)
            self._sums.add(pending, members, buffer, total)

    def advance(self) -> bool:
        """Let MPI make progress; returns whether the sums are done."""
        return self._sums.advance()

    def finish(self) -> list[Any]:
        """The sums that this rank owns, in the order of the tensors; None for the others."""
        return self._sums.finish()
