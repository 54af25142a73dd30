"""The world of a process that no launcher started: one rank, without MPI."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.recorder import Recorder
from hyparflow.comm.requests import Pending
from hyparflow.comm.tags import SMALLEST_LIMIT
from hyparflow.comm.world import World

__all__ = ["OneProcess", "one_process"]


class _Board:
    """What the rank does, in a line of text; see `StatusBoard`."""

    def __init__(self) -> None:
        self._line = "started"

    def write(self, text: str) -> None:
        self._line = text

    def read(self) -> dict[int, str]:
        return {0: self._line}


class OneProcess(World):
    """One rank that has nobody to talk to: collectives give it what it gave them."""

    def __init__(self) -> None:
        self.rank, self.size, self.ranks_per_node = 0, 1, 1
        self.memory_sharers = {}
        self.recorder = Recorder()
        self.board: Any = _Board()

    @property
    def tag_limit(self) -> int:
        """See `Communicator.tag_limit`."""
        return SMALLEST_LIMIT

    @property
    def threads_may_share_it(self) -> bool:
        """See `World.threads_may_share_it`; they would call nothing."""
        return True

    def begin_call(self) -> None:
        """Nobody counts."""

    def keep_cores_busy(self) -> None:
        """Nobody waits."""

    def poll(self, done: Callable[[], bool], what: str) -> None:
        """See `Communicator.poll`; there is nothing to wait for."""
        done()

    def broadcast(self, array: np.ndarray, root: int, what: str) -> None:
        """See `Communicator.broadcast`."""

    def broadcast_object(self, value: Any, root: int, what: str) -> Any:
        """See `Communicator.broadcast_object`."""
        return value

    def all_gather_objects(self, value: Any, what: str) -> list[Any]:
        """See `Communicator.all_gather_objects`."""
        return [value]

    def all_gather_rows(self, array: np.ndarray, what: str) -> np.ndarray:
        """See `Communicator.all_gather_rows`."""
        return array.copy()

    def start_sum(self, array: np.ndarray, what: str, mine: np.ndarray | None = None) -> Pending:
        """See `Communicator.start_sum`."""
        if mine is not None:
            array[...] = mine
        return Pending(iter(()), self.poll, what)

    def sum_to(self, array: np.ndarray, root: int, what: str) -> None:
        """See `Communicator.sum_to`."""

    def group(self, color: int) -> Communicator:
        """See `Communicator.group`."""
        return self

    def free(self) -> None:
        """See `Communicator.free`."""


@functools.cache
def one_process() -> OneProcess:
    """The one rank of this process, so that what is made for it serves all models."""
    return OneProcess()
