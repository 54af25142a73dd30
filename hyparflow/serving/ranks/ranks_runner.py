"""All ranks run the windows that the leader's schedulers plan: one record for each."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.leader import LEADER
from hyparflow.comm.tags import Tag
from hyparflow.comm.world import World
from hyparflow.pipeline.grid import Grid
from hyparflow.serving.ranks.runner import Runner, WindowResult
from hyparflow.serving.ranks.traffic import Traffic
from hyparflow.serving.scheduling.window import Window

__all__ = ["RanksRunner"]


@dataclass(frozen=True)
class _WarmUp:
    """What `Runner.warm_up` takes."""

    window: Window


@dataclass(frozen=True)
class _Idle:
    """Nothing to do: tells ranks that wait that the leader is there."""


# What the leader has all do: windows, one of each replica; None to end.
_Record = tuple[Window | None, ...] | _WarmUp | _Idle | None


class RanksRunner:
    """On the leader what schedulers call; other ranks `follow`.

    Attributes:
        num_replicas: of the grid.
        traffic: what this rank has sent.

    Args:
        own: runs this rank's share of the windows of its replica.
        grid: replicas, partitions and shards of tensors.
        world: all ranks.
        traffic: counts what this rank sends.
        shards: the ranks that share this one's partition; None without any.
    """

    def __init__(
        self,
        own: Runner,
        grid: Grid,
        world: World,
        traffic: Traffic,
        shards: Communicator | None = None,
    ) -> None:
        self.num_replicas, self.traffic = grid.num_replicas, traffic
        self._own, self._grid, self._world, self._shards = own, grid, world, shards

    # --- the leader ---

    def run(self, windows: Sequence[Window | None]) -> list[WindowResult]:
        """See `Runner.run`."""
        self._tell(tuple(windows))
        results = [WindowResult()] * self.num_replicas
        results[0] = self._run_own(windows)
        for replica in range(1, self.num_replicas):
            if windows[replica] is not None:
                results[replica] = self._world.receive_object(
                    self._grid.rank(replica, 0), Tag.SERVED_RESULTS, "tokens of a replica"
                )
        return results

    def warm_up(self, window: Window) -> None:
        """See `Runner.warm_up`."""
        self._tell(_WarmUp(window))
        self._own.warm_up(window)

    def idle(self) -> None:
        """See `Runner.idle`."""
        self._tell(_Idle())

    def bytes(self) -> dict[str, int]:
        """See `Runner.bytes`; of this rank."""
        return self._own.bytes() | dict(self.traffic.bytes)

    def close(self) -> None:
        """See `Runner.close`."""
        self._tell(None)
        self._own.close()

    def _tell(self, record: _Record) -> None:
        self.traffic.add("records", len(pickle.dumps(record)))
        self._world.broadcast_object(record, LEADER, "the ranks that serve")

    # --- the others ---

    def follow(self) -> None:
        """Do what the leader says, until it ends."""
        while True:
            record: _Record = self._world.broadcast_object(None, LEADER, "requests")
            if record is None:
                self._own.close()
                return
            if isinstance(record, _WarmUp):
                self._own.warm_up(record.window)
            elif not isinstance(record, _Idle):
                self._send(record, self._run_own(record))

    def _run_own(self, windows: Sequence[Window | None]) -> WindowResult:
        result = self._own.run([windows[self._grid.replica(self._world.rank)]])[0]
        if self._shards is not None and result.tokens:
            said = self._shards.all_gather_objects(result.tokens, "the shards to agree on tokens")
            if any(tokens != said[0] for tokens in said):
                raise RuntimeError(
                    "All shards of a layer must choose the same tokens. Received: different ones, "
                    "as processors of different kinds may make them. Run the shards of a partition "
                    "on equal machines."
                )
        return result

    def _send(self, windows: Sequence[Window | None], result: WindowResult) -> None:
        replica = self._grid.replica(self._world.rank)
        if self._world.rank == self._grid.rank(replica, 0) and windows[replica] is not None:
            requests = self._world.send_object(result, LEADER, Tag.SERVED_RESULTS)
            self._world.wait_all(requests, "the leader to take tokens")
