"""Communicators: messages, and what all ranks of a group do together."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hyparflow.comm import sentinel
from hyparflow.comm.aligned import aligned
from hyparflow.comm.byte_chunks import as_bytes, chunks, unsized_chunks
from hyparflow.comm.deadline import Deadline
from hyparflow.comm.direct import given_to_all, summed_to
from hyparflow.comm.half_precision_sum import Add, rounded_sum
from hyparflow.comm.ledger import Collective
from hyparflow.comm.point_to_point import PointToPoint
from hyparflow.comm.recorder import EventKind, Recorder
from hyparflow.comm.requests import Pending, Transfer
from hyparflow.comm.tags import FIRST_OF_SUMS, SMALLEST_LIMIT
from hyparflow.comm.unsized import UnsizedMessages

__all__ = ["Communicator"]

_EMBEDDED = 4096  # bytes of an object that are broadcast together with its length


class Communicator(PointToPoint):
    """A group of ranks that talk to each other; see `PointToPoint` for messages between two.

    Args:
        comm: an mpi4py communicator of our own.
        mpi: the mpi4py.MPI module.
        deadline: limits every wait.
        recorder: notes every wait.
    """

    def __init__(self, comm: Any, mpi: Any, deadline: Deadline, recorder: Recorder) -> None:
        super().__init__(comm, mpi, deadline, recorder)
        self._numbered = 0  # exchanges begun so far

    def broadcast(self, array: np.ndarray, root: int, what: str) -> None:
        """Copy `array` of rank `root` into `array` of all others, in place."""
        self._note_broadcast(array, root, what)
        self._give(array, root, what)

    def _give(self, array: np.ndarray, root: int, what: str) -> None:
        for part in chunks(as_bytes(array)):
            self.wait(self._comm.Ibcast([part, self._mpi.BYTE], root), what)

    def start_broadcast(self, array: np.ndarray, root: int, what: str) -> Pending:
        """Begin a `broadcast`; `array` may not change until it is done."""
        self._note_broadcast(array, root, what)
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
        self._note(Collective.ALL_GATHER, what, data.nbytes)
        sizes = np.zeros(self.size, np.int64)
        mine = np.array([data.size], np.int64)
        self.wait(self._comm.Iallgather(mine, sizes), what)
        parts = self._gather_bytes(data, sizes, what)
        return [pickle.loads(part.tobytes()) for part in parts]

    def all_gather_rows(self, array: np.ndarray, what: str) -> np.ndarray:
        """The arrays of all ranks joined along their first axis, in rank order."""
        self._note(Collective.ALL_GATHER, what, array.nbytes)
        rows = np.zeros(self.size, np.int64)
        self.wait(self._comm.Iallgather(np.array([len(array)], np.int64), rows), what)
        width = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64))
        joined = aligned([int(rows.sum()) * width], np.uint8)
        ends = np.cumsum(rows * width)
        parts = [joined[end - size : end] for end, size in zip(ends, rows * width, strict=True)]
        parts[self.rank][:] = as_bytes(array)
        for root, part in enumerate(parts):
            self._give(part, root, what)
        return joined.view(array.dtype).reshape(-1, *array.shape[1:])

    def _gather_bytes(self, data: np.ndarray, sizes: np.ndarray, what: str) -> list[np.ndarray]:
        """Each rank's bytes on all ranks, one broadcast each (sizes may exceed 2**31 - 1)."""
        parts = []
        for root, size in enumerate(sizes):
            part = data if root == self.rank else np.empty(int(size), np.uint8)
            self._give(part, root, what)
            parts.append(part)
        return parts

    def sum(self, array: np.ndarray, what: str, mine: np.ndarray | None = None) -> None:
        """Add the ranks' `array`s, or their `mine` if given; `array` holds the sum on all ranks."""
        self.start_sum(array, what, mine).wait()

    def start_sum(self, array: np.ndarray, what: str, mine: np.ndarray | None = None) -> Pending:
        """Begin a `sum`; neither array may change until it is done."""
        self._note_sum(array, what)
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
        self._note_all_to_all(sent, what)
        received[self.rank][...] = sent[self.rank]
        others = [(self.rank + step) % self.size for step in range(1, self.size)]
        requests: list[Transfer] = []
        for peer in reversed(others):
            requests += self.receive(received[peer], peer, tag)
        for peer in others:
            requests += self.send(sent[peer], peer, tag)
        self.wait_all(requests, what)

    def all_to_all_unsized(self, sent: Sequence[np.ndarray], what: str) -> list[np.ndarray]:
        """Give each rank its array, of any size; returns theirs, whose sizes MPI tells.

        Args:
            sent: contiguous, one for each rank.
            what: names it in reports.

        Returns:
            The bytes that each rank gave to this one, flat.
        """
        off_rank = self._note_all_to_all(sent, what)
        return self._exchanged(sent, what, off_rank)

    def all_gather_unsized(self, array: np.ndarray, what: str) -> list[np.ndarray]:
        """The bytes of each rank's array, of any size, on all ranks; see `all_to_all_unsized`."""
        self._note(Collective.ALL_GATHER, what, array.nbytes)
        return self._exchanged([array] * self.size, what, array.nbytes * (self.size - 1))

    def _exchanged(self, sent: Sequence[np.ndarray], what: str, off_rank: int) -> list[np.ndarray]:
        tag, start = self._next_tag(), time.monotonic()
        others = [(self.rank + step) % self.size for step in range(1, self.size)]
        requests = [
            Transfer(self._comm.Isend([part, self._mpi.BYTE], peer, tag), part)
            for peer in others
            for part in unsized_chunks(as_bytes(sent[peer]))
        ]
        messages = UnsizedMessages(self._comm, self._mpi, others, tag)
        self.poll(messages.advance, what)
        self.wait_all(requests, what)
        self.recorder.note(EventKind.EXCHANGE, start, what, off_rank)
        mine = as_bytes(sent[self.rank])
        return [mine if peer == self.rank else messages.of(peer) for peer in range(self.size)]

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
        self._note_sum(array, what)
        tag = self._next_tag()
        pieces = zip(chunks(array.reshape(-1)), chunks(mine.reshape(-1)), strict=True)
        return Pending(rounded_sum(self._comm, pieces, tag, add), self.poll, what)

    def sum_to(self, array: np.ndarray, root: int, what: str) -> None:
        """Add `array` of all ranks, in place, on rank `root` only."""
        self._note_sum(array, what)
        send = self._mpi.IN_PLACE if self.rank == root else array
        receive = array if self.rank == root else None
        self.wait(self._comm.Ireduce(send, receive, self._mpi.SUM, root), what)

    def start_sum_to(
        self, array: np.ndarray | None, root: int, what: str, mine: np.ndarray
    ) -> Pending:
        """Begin to add the ranks' `mine` into `array` of rank `root`, flat and contiguous.

        `array` is None on other ranks. Neither array may change until it is done.
        """
        self._note_sum(mine, what)
        exchange = summed_to(self._comm, self._mpi, array, mine, root, self._next_tag())
        return Pending(exchange, self.poll, what)

    # --- what is noted of a collective ---

    def _note(self, kind: Collective, what: str, size: int) -> None:
        """Count what goes to all other ranks."""
        self.ledger.note(kind, what, size, size * (self.size - 1))

    def _note_broadcast(self, array: np.ndarray, root: int, what: str) -> None:
        self._note(Collective.BROADCAST, what, array.nbytes if root == self.rank else 0)
        if self._log is not None:
            self._log.broadcasts(array, root)

    def _note_sum(self, array: np.ndarray, what: str) -> None:
        alone = self.size == 1
        self.ledger.note(Collective.SUM, what, array.nbytes, 0 if alone else array.nbytes)
        if self._log is not None:
            self._log.sums(array)

    def _note_all_to_all(self, sent: Sequence[np.ndarray], what: str) -> int:
        payload = sum(array.nbytes for array in sent)
        off_rank = payload - sent[self.rank].nbytes
        self.ledger.note(Collective.ALL_TO_ALL, what, payload, off_rank)
        return off_rank

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
