"""How long the sum of gradients over replicas takes, and how much of it is hidden."""

from __future__ import annotations

from collections.abc import Sequence

from hyparflow.planning.costs.cluster import Cluster
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.search.problem import Candidate

__all__ = ["reduce_seconds"]


def reduce_seconds(
    costs: Costs,
    cluster: Cluster,
    candidate: Candidate,
    partition: int,
    backward: Sequence[float],
) -> float:
    """Seconds by which the sum of a partition's gradients prolongs its step.

    The sum of a stage begins with its last backward. Between nodes it goes on while the partition's
    other stages compute; within a node the cores themselves do it, so nothing is hidden.

    Args:
        costs: the costs of the model's operations.
        cluster: the machine.
        candidate: how the model is spread.
        partition: the partition.
        backward: seconds of a backward of each stage.
    """
    grid, table = candidate.grid, candidate.partitioning
    if grid.num_peers == 1:
        return 0.0
    ranks = [grid.peer_rank(peer, partition) for peer in range(grid.num_peers)]
    groups = min(grid.num_partitions, cluster.ranks_per_node)
    over, everything = costs.overheads, candidate.operations(partition)
    size = costs.weight_bytes(everything, trainable=True)
    packing = over.reduce * size + over.reduce_weight * len(costs.trained_sizes(everything))
    stages = sorted(candidate.stages(partition), reverse=True)  # in order of their end
    within = len({cluster.node(rank) for rank in ranks}) == 1
    now = end = 0.0  # since the first stage was done
    for position, stage in enumerate(stages):
        now += backward[stage] if position and not within else 0.0
        mine = costs.weight_bytes(table.operations(stage), trainable=True)
        end = max(now, end) + cluster.allreduce_seconds(ranks, mine, groups)
    return packing / cluster.speed + end - now
