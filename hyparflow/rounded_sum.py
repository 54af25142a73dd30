"""A sum over ranks of numbers that MPI cannot add, by messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from hyparflow.pending import Together

__all__ = ["rounded_sum"]


def rounded_sum(
    comm: Any, pieces: Iterable[tuple[np.ndarray, np.ndarray]], tag: int
) -> Iterator[Together]:
    """The exchanges that add up pieces of an array, each begun when the one before is done.

    Each rank adds up, in 32 bits, one part of a piece of all ranks, and gives the sum, rounded, to
    the others: what travels is as small as the type, and all ranks get the same.

    These are messages with a tag of their own, not collective operations: of several sums under
    way, one rank may be the first to come to the second exchange of this one and another to that of
    another, and MPI tells collective operations apart only by their order.

    Args:
        comm: an mpi4py communicator.
        pieces: (where the sum of a piece goes, this rank's piece), flat and of one size.
        tag: of no other sum that is under way, and the same on all ranks.
    """
    rank, size = comm.Get_rank(), comm.Get_size()
    for total, mine in pieces:
        each = -(-mine.size // size)
        parts = np.zeros((size, each), mine.dtype)
        parts.reshape(-1)[: mine.size] = mine
        received = np.empty_like(parts)
        yield _exchange(comm, list(parts), received, tag)
        rounded = received.astype(np.float32).sum(0).astype(mine.dtype)
        parts[rank] = rounded
        yield _exchange(comm, [rounded] * size, parts, tag)
        total[:] = parts.reshape(-1)[: mine.size]


def _exchange(comm: Any, mine: Sequence[np.ndarray], all_: np.ndarray, tag: int) -> Together:
    """Begin to give each rank its part of `mine`, and to take in the parts for this one."""
    rank, size = comm.Get_rank(), comm.Get_size()
    all_[rank] = mine[rank]
    peers = [peer for peer in range(size) if peer != rank]
    handles = [comm.Irecv(all_[peer].view(np.uint8), peer, tag) for peer in peers]
    handles += [comm.Isend(mine[peer].view(np.uint8), peer, tag) for peer in peers]
    return Together(handles)
