"""Communicators: messages, collectives, waiting.

Every wait polls, so that Ctrl-C works, deadlines hold and other ranks' notices are heard; all
operations underneath are nonblocking. Everything runs on communicators of our own.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hyparflow.comm import sentinel
from hyparflow.comm.aligned import aligned
from hyparflow.comm.byte_chunks import as_bytes, chunks
from hyparflow.comm.deadline import Deadline
from hyparflow.comm.direct import given_to_all, summed_to
from hyparflow.comm.half_precision_sum import Add, rounded_sum
from hyparflow.comm.message_log import MessageLog, wants_messages
from hyparflow.comm.recorder import EventKind, Recorder
from hyparflow.comm.requests import Pending, Transfer
from hyparflow.comm.tags import FIRST_OF_SUMS, SMALLEST_LIMIT
from hyparflow.comm.timeout import Waiting

__all__ = ["Communicator"]

_EAGER = 0.5  # seconds of a wait after which deadline and notices are checked in any case
_EMBEDDED = 4096  # bytes of an object that are broadcast together with its length


class Communicator:
    """A group of ranks that talk to each other.

    Args:
        comm: an mpi4py communicator of our own.
        mpi: the mpi4py.MPI module.
        deadline: limits every wait.
        recorder: notes every wait.
    """

    def __init__(self, comm: Any, mpi: Any, deadline: Deadline, recorder: Recorder) -> None:
        self._comm = comm
        self._mpi = mpi
        self._deadline = deadline
        self.recorder = recorder
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self._numbered = 0  # exchanges begun so far
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

    # --- collectives ---

    def broadcast(self, array: np.ndarray, root: int, what: str) -> None:
        """Copy `array` of rank `root` into `array` of all others, in place."""
        if self._log is not None:
            self._log.broadcasts(array, root)
        for part in chunks(as_bytes(array)):
            self.wait(self._comm.Ibcast([part, self._mpi.BYTE], root), what)

    def start_broadcast(self, array: np.ndarray, root: int, what: str) -> Pending:
        """Begin a `broadcast`; `array` may not change until it is done."""
        if self._log is not None:
            self._log.broadcasts(array, root)
        exchange = given_to_all(self._comm, self._mpi, array, root, self._next_tag())
        return Pending(exchange, self.poll, what)

    def broadcast_object(self, value: Any, root: int, what: str) -> Any:
        """The `value` of rank `root`, on all ranks."""
        header = np.zeros(8 + _EMBEDDED, np.uint8)
        data = b""
        if self.rank == root:
            data = pickle.dumps(value, protocol=5)
            header[:8] = np.frombuffer(len(data).to_bytes(8, "little"), np.uint8)
            head = data[:_EMBEDDED]
            header[8 : 8 + len(head)] = np.frombuffer(head, np.uint8)
        self.broadcast(header, root, what)
        size = int.from_bytes(header[:8].tobytes(), "little")
        rest = np.zeros(max(0, size - _EMBEDDED), np.uint8)
        if rest.size:
            if self.rank == root:
                rest[:] = np.frombuffer(data[_EMBEDDED:], np.uint8)
            self.broadcast(rest, root, what)
        if self.rank == root:
            return value
        return pickle.loads(header[8 : 8 + min(size, _EMBEDDED)].tobytes() + rest.tobytes())

    def all_gather_objects(self, value: Any, what: str) -> list[Any]:
        """The `value` of every rank, in rank order, on all ranks."""
        data = np.frombuffer(pickle.dumps(value, protocol=5), np.uint8)
        sizes = np.zeros(self.size, np.int64)
        mine = np.array([data.size], np.int64)
        self.wait(self._comm.Iallgather(mine, sizes), what)
        parts = self._gather_bytes(data, sizes, what)
        return [pickle.loads(part.tobytes()) for part in parts]

    def all_gather_rows(self, array: np.ndarray, what: str) -> np.ndarray:
        """The arrays of all ranks joined along their first axis, in rank order."""
        rows = np.zeros(self.size, np.int64)
        self.wait(self._comm.Iallgather(np.array([len(array)], np.int64), rows), what)
        width = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
        joined = aligned([int(rows.sum()) * width], np.uint8)
        ends = np.cumsum(rows * width)
        parts = [joined[end - size : end] for end, size in zip(ends, rows * width, strict=True)]
        parts[self.rank][:] = as_bytes(array)
        for root, part in enumerate(parts):
            self.broadcast(part, root, what)
        return joined.view(array.dtype).reshape(-1, *array.shape[1:])

    def _gather_bytes(self, data: np.ndarray, sizes: np.ndarray, what: str) -> list[np.ndarray]:
        """Each rank's bytes on all ranks, one broadcast each (sizes may exceed 2**31 - 1)."""
        parts = []
        for root, size in enumerate(sizes):
            part = data if root == self.rank else np.empty(int(size), np.uint8)
            self.broadcast(part, root, what)
            parts.append(part)
        return parts

    def sum(self, array: np.ndarray, what: str, mine: np.ndarray | None = None) -> None:
        """Add the ranks' `array`s, or their `mine` if given; `array` holds the sum on all ranks."""
        self.start_sum(array, what, mine).wait()

    def start_sum(self, array: np.ndarray, what: str, mine: np.ndarray | None = None) -> Pending:
        """Begin a `sum`; neither array may change until it is done."""
        if self._log is not None:
            self._log.sums(array)
        return Pending(self._sum(array.reshape(-1), mine), self.poll, what)

    def _sum(self, array: np.ndarray, mine: np.ndarray | None) -> Iterator[Any]:
        """The MPI operations of a sum; the iterator keeps both arrays alive until it ends."""
        parts = chunks(array)
        sources = [self._mpi.IN_PLACE] * len(parts)
        if mine is not None:
            sources = chunks(mine.reshape(-1))
        pairs = zip(sources, parts, strict=True)
        yield from [self._comm.Iallreduce(source, part, self._mpi.SUM) for source, part in pairs]

    def all_to_all(
        self, sent: Sequence[np.ndarray], received: Sequence[np.ndarray], what: str
    ) -> None:
        """Give each rank its array of `sent`, and take one of each into `received`.

        Args:
            sent, received: contiguous, one for each rank; of a pair of ranks equally large.
            what: names it in reports.
        """
        tag = self._next_tag()
        received[self.rank][...] = sent[self.rank]
        others = [(self.rank + step) % self.size for step in range(1, self.size)]
        requests: list[Transfer] = []
        for peer in reversed(others):
            requests += self.receive(received[peer], peer, tag)
        for peer in others:
            requests += self.send(sent[peer], peer, tag)
        self.wait_all(requests, what)

    def start_rounded_sum(
        self, array: np.ndarray, what: str, mine: np.ndarray, add: Add
    ) -> Pending:
        """Begin to add `mine` of all ranks into `array`, both of a type that MPI cannot add.

        Messages have the size of this type; all ranks get the same (`half_precision_sum.py`).

        Args:
            array: where the sum goes.
            what: names it in reports.
            mine: what this rank adds.
            add: adds up rows of this type.
        """
        if self._log is not None:
            self._log.sums(array)
        tag = self._next_tag()
        pieces = zip(chunks(array.reshape(-1)), chunks(mine.reshape(-1)), strict=True)
        return Pending(rounded_sum(self._comm, pieces, tag, add), self.poll, what)

    def sum_to(self, array: np.ndarray, root: int, what: str) -> None:
        """Add `array` of all ranks, in place, on rank `root` only."""
        if self._log is not None:
            self._log.sums(array)
        send = self._mpi.IN_PLACE if self.rank == root else array
        receive = array if self.rank == root else None
        self.wait(self._comm.Ireduce(send, receive, self._mpi.SUM, root), what)

    def start_sum_to(
        self, array: np.ndarray | None, root: int, what: str, mine: np.ndarray
    ) -> Pending:
        """Begin to add the ranks' `mine` into `array` of rank `root`, flat and contiguous.

        `array` is None on other ranks. Neither array may change until it is done.
        """
        if self._log is not None:
            self._log.sums(mine)
        exchange = summed_to(self._comm, self._mpi, array, mine, root, self._next_tag())
        return Pending(exchange, self.poll, what)

    def _next_tag(self) -> int:
        """A tag for exchanges that all ranks begin in one order, so they number them alike."""
        self._numbered += 1
        return FIRST_OF_SUMS + self._numbered % (SMALLEST_LIMIT - FIRST_OF_SUMS)

    def group(self, color: int) -> Communicator:
        """A communicator of the ranks that give the same `color`. Collective."""
        self.wait(self._comm.Ibarrier(), "all ranks to make their communicators")
        with self._deadline.watch.during(sentinel.BUILDING):
            comm = self._comm.Split(color, self.rank)
        return Communicator(comm, self._mpi, self._deadline, self.recorder)

    def free(self) -> None:
        """Give the communicator back to MPI. Collective."""
        self._comm.Free()
