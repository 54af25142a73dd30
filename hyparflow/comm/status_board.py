"""The status board of a machine: a line of text per rank, in shared memory.

It lets the other ranks know the last action of a rank that is stopped.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from typing import Any

import numpy as np

__all__ = ["StatusBoard"]

_SLOT = 192  # bytes of text per rank


class StatusBoard:
    """One line of text per rank of this machine, in shared memory.

    Args:
        mpi: the mpi4py.MPI module.
        node: communicator of the ranks that share this machine's memory.
    """

    def __init__(self, mpi: Any, node: Any) -> None:
        self.ranks: list[int] = node.allgather(mpi.COMM_WORLD.Get_rank())
        self._lines = _shared_lines(node, len(self.ranks))
        self._mine = self._lines[node.Get_rank()]
        self.role = f"rank {mpi.COMM_WORLD.Get_rank()}"
        self.write("started")

    def write(self, text: str) -> None:
        """Say what this rank does now."""
        data = text.encode()[:_SLOT].ljust(_SLOT, b"\0")
        self._mine[:] = np.frombuffer(data, np.uint8)

    def read(self) -> dict[int, str]:
        """What each rank of this machine said last."""
        return {
            rank: line.tobytes().rstrip(b"\0").decode(errors="replace")
            for rank, line in zip(self.ranks, self._lines, strict=True)
        }


def _shared_lines(node: Any, count: int) -> list[np.ndarray]:
    """Memory that all ranks of a machine see: a mapped file that has no name any more.

    (MPI's shared windows would do, but Open MPI prints warnings when it makes one.)
    """
    path = node.bcast(_new_file(count * _SLOT) if node.Get_rank() == 0 else None)
    memory = mmap.mmap(-1, count * _SLOT)  # of this rank alone, if no file can be made
    with contextlib.suppress(OSError, TypeError), open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), count * _SLOT)
    node.Barrier()
    if node.Get_rank() == 0 and path is not None:
        os.unlink(path)
    whole = np.frombuffer(memory, np.uint8)
    return [whole[i * _SLOT : (i + 1) * _SLOT] for i in range(count)]


def _new_file(size: int) -> str | None:
    """A file with room for `size` bytes; None on a machine whose disks are full."""
    for folder in ("/dev/shm", None):
        with contextlib.suppress(OSError):
            descriptor, path = tempfile.mkstemp(prefix="hyparflow-", dir=folder)
            try:
                # Writing to a sparse file on a full disk would kill the rank.
                os.posix_fallocate(descriptor, 0, size)
                return path
            except OSError:
                os.unlink(path)
            finally:
                os.close(descriptor)
    return None
