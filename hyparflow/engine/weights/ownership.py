"""What one rank holds, and with whom: its partition, its stages and its weights."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hyparflow.comm.world import World
from hyparflow.engine.weights.groups import groups_of
from hyparflow.model.layout import ModelCut
from hyparflow.pipeline.grid import Grid

__all__ = ["Ownership", "holders_of"]


class Ownership:
    """One rank among the others. Making it is collective.

    Attributes:
        rank, partition: its numbers.
        stages: numbers of the stages that it holds.
        replica, peers: the ranks of its replica; the ranks with its partition.
        reducing: the same ranks as `peers`, for sums that overlap with other operations.
        holders: id of a variable -> the partitions that use it.
        shared: communicators of the partitions that hold a weight together with this one.
        trained: the weights that it trains.
    """

    def __init__(self, model: Any, layout: ModelCut, grid: Grid, world: World) -> None:
        self.grid, self.world, self.rank = grid, world, world.rank
        self.partition = grid.partition(world.rank)
        self.is_last = grid.is_last(world.rank)
        self.stages = grid.placement.stages(self.partition)
        groups = groups_of(grid, world)
        self.replica, self.peers, self.reducing = groups.replica, groups.peers, groups.reducing
        self.holders = holders_of(model, layout, grid)
        self.shared = groups.sharing(who for who in self.holders.values() if len(who) > 1)
        self.trained = [
            v for v in model.trainable_variables if self.partition in self.holders[id(v)]
        ]

    def trained_by(self, stage: int, layout: ModelCut) -> list[int]:
        """Positions of the weights in `trained` that `stage` trains.

        Weights that no operation uses belong to stage 0.
        """
        if layout.graph is None:
            return list(range(len(self.trained)))
        table, graph = layout.partitioning, layout.graph
        mine = {id(v) for v in graph.variables(table.operations(stage))}
        if stage == 0:
            everywhere = {id(v) for v in graph.variables(range(len(graph.calls)))}
            mine |= {id(v) for v in self.trained} - everywhere
        return [position for position, v in enumerate(self.trained) if id(v) in mine]

    def pieces(self, layout: ModelCut) -> dict[int, list[int]]:
        """For each stage, the weights whose gradients are complete when it is done.

        They are positions in `trained`; the last stage comes first, as it is done first.
        """
        trained = {stage: self.trained_by(stage, layout) for stage in reversed(self.stages)}
        counts = Counter(position for positions in trained.values() for position in positions)
        return {
            stage: [position for position in positions if counts[position] == 1]
            for stage, positions in trained.items()
        }

    def owns(self, variable: Any) -> bool:
        """Whether this partition is the first that holds `variable`."""
        return self.holders[id(variable)][0] == self.partition


def holders_of(model: Any, layout: ModelCut, grid: Grid) -> dict[int, tuple[int, ...]]:
    """For each variable (by id), the partitions that hold it; the first of them owns it.

    A trained variable that no operation uses belongs to partition 0, where its missing gradient
    is noticed as plain Keras notices it.
    """
    holders: dict[int, list[int]] = {}
    if layout.graph is not None:
        table = layout.partitioning
        for partition in range(grid.num_partitions):
            for stage in grid.placement.stages(partition):
                for variable in layout.graph.variables(table.operations(stage)):
                    found = holders.setdefault(id(variable), [])
                    if partition not in found:
                        found.append(partition)
    for variable in model.trainable_variables:
        holders.setdefault(id(variable), [0])
    return {key: tuple(partitions) for key, partitions in holders.items()}
