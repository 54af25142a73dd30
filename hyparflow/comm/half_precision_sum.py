"""A sum over ranks of numbers that MPI cannot add, by messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from hyparflow.comm.requests import Together

__all__ = ["Add", "rounded_sum"]

Add = Callable[[np.ndarray], np.ndarray]  # rows -> their sum, of the same type


def rounded_sum(
    comm: Any, pieces: Iterable[tuple[np.ndarray, np.ndarray]], tag: int, add: Add
) -> Iterator[Together]:
    """The exchanges that add up pieces of an array, each begun when the one before is done.

    Each rank receives one part of a piece from all ranks, adds it up, and sends the sum to the
    others: messages have the size of the type, and all ranks get the same sum.

    The exchanges are messages with a tag of their own, not collective operations. MPI tells
    collective operations apart only by their order, and with several sums under way ranks may
    reach the second exchanges of these sums in different orders.

    Args:
        comm: an mpi4py communicator.
        pieces: (where the sum of a piece goes, this rank's piece), flat and of one size.
        tag: the same on all ranks, and not in use by another sum under way.
        add: adds up the rows of all ranks, and rounds once.
    """
    rank, size = comm.Get_rank(), comm.Get_size()
    for total, mine in pieces:
        each = -(-mine.size // size)
        parts = [slice(each * k, each * (k + 1)) for k in range(size)]
        given = [mine[part] for part in parts]
        received = np.empty((size, given[rank].size), mine.dtype)
        yield _exchange(comm, given, list(received), tag)
        sums = [total[part] for part in parts]
        yield _exchange(comm, [add(received)] * size, sums, tag)


def _exchange(
    comm: Any, given: Sequence[np.ndarray], taken: Sequence[np.ndarray], tag: int
) -> Together:
    """Begin to send each rank its part, and to receive this rank's part from each."""
    rank, size = comm.Get_rank(), comm.Get_size()
    taken[rank][...] = given[rank]
    peers = [peer for peer in range(size) if peer != rank]
    handles = [comm.Irecv(taken[peer].view(np.uint8), peer, tag) for peer in peers]
    handles += [comm.Isend(given[peer].view(np.uint8), peer, tag) for peer in peers]
    return Together(handles)
