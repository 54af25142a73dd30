"""Replicas of several ranks, as the leader has them: a record to each rank for each window.

A replica is told its next window as soon as it is done with the one before, whatever the others do.
The leader is in the first replica itself. It computes the windows of that one in a thread, so that
it hears of the others meanwhile; a replica of several ranks has communicators of its own.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hyparflow.comm.arriving import ArrivingObject
from hyparflow.comm.leader import LEADER
from hyparflow.comm.requests import Transfer
from hyparflow.comm.tags import Tag
from hyparflow.comm.world import World
from hyparflow.pipeline.grid import Grid
from hyparflow.serving.ranks.own_windows import StartedWindow, WindowBeside, WindowInTurn
from hyparflow.serving.ranks.records import Idle, Record, WarmUp
from hyparflow.serving.ranks.runner import Runner, WindowResult
from hyparflow.serving.ranks.traffic import Traffic
from hyparflow.serving.scheduling.window import Window

__all__ = ["ReplicasOnRanks"]

_OWN = 0  # the replica that the leader is in
_SILENCE = 2.5  # seconds after which ranks that wait hear that nothing is to be done
_PAUSE = 1e-3  # seconds between two looks, at most; longer ones step by step
_STEP = 2e-5


class ReplicasOnRanks:
    """On the leader, what has all ranks compute; see `FollowingRank` for the others.

    Attributes:
        num_replicas: of the grid.
        traffic: what this rank has sent.

    Args:
        runner: computes this rank's share of the windows of its replica.
        grid: replicas, partitions and shards of tensors.
        world: all ranks.
        traffic: counts what this rank sends.
    """

    def __init__(self, runner: Runner, grid: Grid, world: World, traffic: Traffic) -> None:
        self.num_replicas, self.traffic = grid.num_replicas, traffic
        self._runner, self._grid, self._world = runner, grid, world
        self._ranks = grid.num_partitions * grid.num_shards  # of a replica
        self._thread = self._own_thread()
        self._running: dict[int, StartedWindow] = {}
        self._told = [time.monotonic()] * grid.num_replicas
        self._sent: list[Transfer] = []

    def start(self, replica: int, window: Window) -> None:
        """See `Replicas.start`."""
        self._tell(replica, window)
        self._running[replica] = self._started(replica, window)

    def wait(self, is_wanted: Callable[[], bool]) -> dict[int, WindowResult]:
        """See `Replicas.wait`."""
        pause = 0.0
        while not (done := self._done()) and self._running and not is_wanted():
            self.idle()
            pause = min(pause + _STEP, _PAUSE)
            time.sleep(pause)  # the core is for the thread that computes
        return done

    def warm_up(self, window: Window) -> None:
        """See `Replicas.warm_up`."""
        for replica in range(self.num_replicas):
            self._tell(replica, WarmUp(window))
        self._runner.warm_up(window)
        self._wait_for_records()

    def idle(self) -> None:
        """See `Replicas.idle`."""
        now = time.monotonic()
        for replica, told in enumerate(self._told):
            if replica not in self._running and now - told > _SILENCE:
                self._tell(replica, Idle())

    def bytes(self) -> dict[str, int]:
        """See `Replicas.bytes`; of this rank."""
        return self._runner.bytes() | dict(self.traffic.bytes)

    def close(self) -> None:
        """See `Replicas.close`; what comes of windows that go on is lost."""
        try:
            while self._running:
                self.wait(lambda: False)
        finally:
            for replica in range(self.num_replicas):
                self._tell(replica, None)
            self._wait_for_records()
            if self._thread is not None:
                self._thread.shutdown()
            self._runner.close()

    # --- windows ---

    def _own_thread(self) -> ThreadPoolExecutor | None:
        """None if there is nobody else to look after, or if MPI forbids two threads to call it."""
        calls_mpi = self._ranks > 1
        if self.num_replicas == 1 or (calls_mpi and not self._world.threads_may_share_it):
            return None
        return ThreadPoolExecutor(1, "hyparflow-windows")

    def _started(self, replica: int, window: Window) -> StartedWindow:
        if replica != _OWN:
            sender, what = self._grid.rank(replica, 0), f"tokens of replica {replica}"
            return ArrivingObject(self._world, sender, Tag.SERVED_RESULTS, what)
        if self._thread is None:
            return WindowInTurn(self._runner, window)
        return WindowBeside(self._thread.submit(self._runner.run, window))

    def _done(self) -> dict[int, WindowResult]:
        """Windows that are done; the own one only if no other is, for it may be computed now."""
        found: dict[int, WindowResult] = {}
        for replica in sorted(self._running, reverse=True):
            if (not found or replica != _OWN) and self._running[replica].advance():
                found[replica] = self._running.pop(replica).value
        return found

    # --- records ---

    def _tell(self, replica: int, record: Record) -> None:
        """Send a record to all ranks of a replica but this one."""
        self._told[replica] = time.monotonic()
        self._sent = [sent for sent in self._sent if not sent.handle.Test()]
        kind = "heartbeats" if isinstance(record, Idle) else "records"
        first = self._grid.rank(replica, 0)
        for rank in range(first, first + self._ranks):
            if rank != LEADER:
                self._sent += self._world.send_object(record, rank, Tag.SERVED_RECORDS)
                self.traffic.add(kind, len(pickle.dumps(record)))

    def _wait_for_records(self) -> None:
        self._world.wait_all(self._sent, "the ranks that serve")
        self._sent.clear()
