"""The groups of ranks that talk to each other: made once for a layout, and used by all models.

MPI has a limited number of communicators, and all ranks of a communicator must free it together;
but Python collects a model at a different moment on each rank. So none is freed: a job has as many
as it has layouts, whatever the number of models.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.one_process import one_process
from hyparflow.comm.world import World
from hyparflow.pipeline.grid import Grid

__all__ = ["Groups", "groups_of"]


class Groups:
    """The groups that one rank belongs to. Making it is collective.

    Calls run one after the other, in one order on all ranks, and no message is left when one ends;
    so models that share a communicator do not receive each other's messages.

    Args:
        grid: the ranks.
        world: all ranks.

    Attributes:
        replica: the ranks of its replica, with its shard of sequences.
        shards: the ranks that share each sequence with it, in their order.
        peers: the ranks with its partition.
        reducing: the same ranks as `peers`, for sums that overlap with other operations.
    """

    def __init__(self, grid: Grid, world: World) -> None:
        self.partition = grid.partition(world.rank)
        line = grid.replica(world.rank) * grid.num_shards + grid.shard(world.rank)
        self.replica = world.group(line)
        place = grid.replica(world.rank) * grid.num_partitions + self.partition
        self.shards = world.group(place) if grid.num_shards > 1 else one_process()
        self.peers = world.group(self.partition)
        self.reducing = world.group(self.partition)
        self._sharing: dict[tuple[int, ...], Communicator | None] = {}

    def sharing(self, sets: Iterable[tuple[int, ...]]) -> dict[tuple[int, ...], Communicator]:
        """A communicator for each set of partitions that this rank is in. Collective.

        Args:
            sets: sets of partitions that hold weights together, the same on all ranks.
        """
        wanted = sorted(set(sets))
        for partitions in wanted:
            if partitions not in self._sharing:
                self._sharing[partitions] = self._made(partitions)
        found = {partitions: self._sharing[partitions] for partitions in wanted}
        return {partitions: comm for partitions, comm in found.items() if comm is not None}

    def _made(self, partitions: tuple[int, ...]) -> Communicator | None:
        comm = self.replica.group(int(self.partition in partitions))
        if self.partition in partitions:
            return comm
        comm.free()
        return None


@functools.cache
def groups_of(grid: Grid, world: World) -> Groups:
    """The groups of a layout, made once. Collective."""
    return Groups(grid, world)
