"""Sums to one rank, and what one rank gives to all, by direct messages.

Open MPI 5 cuts its own nonblocking ones into pieces of some KiB, each of which waits for a call of
MPI's: with 16 MiB a sum to one of two ranks took ten times as long as a sum to both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hyparflow.comm.byte_chunks import as_bytes, chunks
from hyparflow.comm.requests import Together

__all__ = ["given_to_all", "summed_to"]


def summed_to(
    comm: Any, mpi: Any, array: np.ndarray | None, mine: np.ndarray, root: int, tag: int
) -> Iterator[Together]:
    """Add all ranks' `mine` into `array` of rank `root`, in the order of ranks.

    Args:
        comm: an mpi4py communicator.
        mpi: the mpi4py.MPI module.
        array: where the sum goes, flat; None on other ranks.
        mine: what this rank adds, flat.
        root: the rank that adds up.
        tag: the same on all ranks.
    """
    if array is None:
        yield Together([comm.Isend([p, mpi.BYTE], root, tag) for p in chunks(as_bytes(mine))])
        return
    others = [rank for rank in range(comm.Get_size()) if rank != root]
    rows = {rank: np.empty_like(array) for rank in others}
    yield Together(
        [
            comm.Irecv([part, mpi.BYTE], rank, tag)
            for rank in others
            for part in chunks(as_bytes(rows[rank]))
        ]
    )
    rows[root] = mine
    first, *rest = (rows[rank] for rank in sorted(rows))
    if not rest:
        array[:] = first
    for number, row in enumerate(rest):
        np.add(array if number else first, row, out=array)


def given_to_all(comm: Any, mpi: Any, array: np.ndarray, root: int, tag: int) -> Iterator[Together]:
    """Copy `array` of rank `root` into `array` of all others.

    Args:
        comm: an mpi4py communicator.
        mpi: the mpi4py.MPI module.
        array: contiguous.
        root: the rank that has it.
        tag: the same on all ranks.
    """
    parts = chunks(as_bytes(array))
    if comm.Get_rank() == root:
        others = [rank for rank in range(comm.Get_size()) if rank != root]
        yield Together([comm.Isend([p, mpi.BYTE], rank, tag) for rank in others for p in parts])
    else:
        yield Together([comm.Irecv([part, mpi.BYTE], root, tag) for part in parts])
