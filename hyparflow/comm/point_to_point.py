"""Waiting for other ranks, and messages between two of them.

Every wait polls, so that Ctrl-C works, deadlines hold and other ranks' notices are heard; all
operations underneath are nonblocking. Everything runs on communicators of our own.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hyparflow.comm.byte_chunks import as_bytes, chunks
from hyparflow.comm.deadline import Deadline
from hyparflow.comm.ledger import Ledger
from hyparflow.comm.message_log import MessageLog, wants_messages
from hyparflow.comm.recorder import EventKind, Recorder
from hyparflow.comm.requests import Transfer
from hyparflow.comm.tags import SMALLEST_LIMIT
from hyparflow.comm.timeout import Waiting

__all__ = ["PointToPoint"]

_EAGER = 0.5  # seconds of a wait after which deadline and notices are checked in any case


class PointToPoint:
    """A group of ranks that talk to each other.

    Args:
        comm: an mpi4py communicator of our own.
        mpi: the mpi4py.MPI module.
        deadline: limits every wait.
        recorder: notes every wait.

    Attributes:
        rank, size: the number of this rank in the group, and of all.
        ledger: counts collectives.
    """

    def __init__(self, comm: Any, mpi: Any, deadline: Deadline, recorder: Recorder) -> None:
        self._comm = comm
        self._mpi = mpi
        self._deadline = deadline
        self.recorder = recorder
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.ledger = Ledger()
        self._log: MessageLog | None = None
        if wants_messages():
            ranks = comm.group.Translate_ranks(range(self.size), mpi.COMM_WORLD.group)
            self._log = MessageLog(ranks, self.rank)

    @property
    def tag_limit(self) -> int:
        """Tags must be less than this, as MPI says."""
        largest = self._comm.Get_attr(self._mpi.TAG_UB)
        return SMALLEST_LIMIT if largest is None else int(largest) + 1

    # --- waiting ---

    def wait(self, handle: Any, what: str) -> None:
        """Wait until `handle` is done; `what` names it in the deadline's report."""
        self.poll(handle.Test, what)

    def poll(self, done: Callable[[], bool], what: str) -> None:
        """Poll `done` until it holds: first eagerly, then with short sleeps.

        A core that has slept computes more slowly for a while; see `World.keep_cores_busy`.
        """
        if done():
            return
        start = time.monotonic()
        waiting = Waiting()
        pause = 0.0
        while not done():
            waited = waiting.look()
            if waited < self._deadline.spin:
                os.sched_yield()
            else:
                pause = min(pause + 2e-5, 1e-3)
                time.sleep(pause)
            if waited >= min(self._deadline.spin, _EAGER):
                self._deadline.check(waited, what)
        self.recorder.note(EventKind.WAIT, start, what)

    def keep_deadline(self, waiting: Waiting, what: str) -> None:
        """Hear notices, and end the job at the deadline, while a wait goes on beside other work."""
        self._deadline.check(waiting.look(), what)

    # --- messages between two ranks ---

    def send(self, array: np.ndarray, peer: int, tag: int) -> list[Transfer]:
        """Start to send a contiguous `array`, which must not change until the requests are done."""
        if self._log is not None:
            self._log.sends(array, peer, tag)
        return [
            Transfer(self._comm.Isend([part, self._mpi.BYTE], peer, tag), part)
            for part in chunks(as_bytes(array))
        ]

    def receive(self, array: np.ndarray, peer: int, tag: int) -> list[Transfer]:
        """Start to receive into a contiguous `array`."""
        if self._log is not None:
            self._log.receives(array, peer, tag)
        return [
            Transfer(self._comm.Irecv([part, self._mpi.BYTE], peer, tag), part)
            for part in chunks(as_bytes(array))
        ]

    def wait_all(self, requests: Sequence[Transfer], what: str) -> None:
        """Wait for all `requests`."""
        for request in requests:
            self.wait(request.handle, what)

    def send_object(self, value: Any, peer: int, tag: int) -> list[Transfer]:
        """Start to send any picklable `value`."""
        data = np.frombuffer(pickle.dumps(value, protocol=5), np.uint8)
        size = np.array([data.size], np.int64)
        return self.send(size, peer, tag) + self.send(data, peer, tag)

    def receive_object(self, peer: int, tag: int, what: str) -> Any:
        """Receive what `send_object` sent."""
        size = np.zeros(1, np.int64)
        self.wait_all(self.receive(size, peer, tag), what)
        data = np.empty(int(size[0]), np.uint8)
        self.wait_all(self.receive(data, peer, tag), what)
        return pickle.loads(data.tobytes())
