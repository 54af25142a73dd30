"""What ranks other than the leader do while a model is served."""

from __future__ import annotations

from hyparflow.comm.leader import LEADER
from hyparflow.comm.tags import Tag
from hyparflow.comm.world import World
from hyparflow.pipeline.grid import Grid
from hyparflow.serving.ranks.records import Record, WarmUp
from hyparflow.serving.ranks.runner import Runner, WindowResult
from hyparflow.serving.ranks.traffic import Traffic
from hyparflow.serving.scheduling.window import Window

__all__ = ["FollowingRank"]


class FollowingRank:
    """Computes the windows that the leader tells its replica; see `ReplicasOnRanks`.

    Attributes:
        traffic: what this rank has sent.

    Args:
        runner: computes this rank's share of them.
        grid: replicas, partitions and shards of tensors.
        world: all ranks.
        traffic: counts what this rank sends.
    """

    def __init__(self, runner: Runner, grid: Grid, world: World, traffic: Traffic) -> None:
        self.traffic = traffic
        self._runner, self._world = runner, world
        replica = grid.replica(world.rank)
        self._tells = world.rank == grid.rank(replica, 0) and replica != grid.replica(LEADER)

    def follow(self) -> None:
        """Do what the leader says, until it ends."""
        while True:
            record: Record = self._world.receive_object(LEADER, Tag.SERVED_RECORDS, "requests")
            if record is None:
                self._runner.close()
                return
            if isinstance(record, WarmUp):
                self._runner.warm_up(record.window)
            elif isinstance(record, Window):
                self._tell(self._runner.run(record))

    def _tell(self, result: WindowResult) -> None:
        if self._tells:
            requests = self._world.send_object(result, LEADER, Tag.SERVED_RESULTS)
            self._world.wait_all(requests, "the leader to take tokens")
