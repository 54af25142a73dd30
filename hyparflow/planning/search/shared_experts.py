"""What changes where replicas share out experts: what each holds, and what they exchange."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.planning.costs.cluster import Cluster
from hyparflow.planning.costs.costs import Costs

__all__ = ["exchange_seconds", "expert_numbers", "held_costs", "without_experts"]

_TRIPS = 2  # of rows in a forward, to their experts and back; and of their gradients in a backward


def expert_numbers(costs: Costs) -> list[int]:
    """The numbers of experts that mixtures have, each once."""
    return sorted({weight.num_experts for weight in costs.weights if weight.num_experts})


def held_costs(costs: Costs, sharers: int) -> Costs:
    """The costs of a rank that holds the weights of one of so many shares of the experts."""
    weights = [
        dataclasses.replace(weight, size=weight.size // sharers) if weight.num_experts else weight
        for weight in costs.weights
    ]
    return dataclasses.replace(costs, weights=tuple(weights))


def without_experts(costs: Costs) -> Costs:
    """The costs of a model whose experts are not trained: no gradients of theirs are summed."""
    weights = [
        dataclasses.replace(weight, trainable=weight.trainable and not weight.num_experts)
        for weight in costs.weights
    ]
    return dataclasses.replace(costs, weights=tuple(weights))


def exchange_seconds(
    costs: Costs,
    graph: OperationGraph,
    cluster: Cluster,
    grid: Grid,
    partition: int,
    operations: range,
    rows: float,
) -> float:
    """Seconds that tokens of a micro-batch travel in the forward of a stage, or in its backward.

    A row of a token goes to each expert that it visits, and comes back: two all-to-alls, in which
    a rank has a message for each other one. Tokens are assumed to be spread evenly. Left out are
    the counts in front of rows, the time in which rows are brought into the order of experts, and
    waiting for the rank whose experts have most tokens.

    Args:
        costs: the costs of the model's operations.
        graph: these.
        cluster: the machine.
        grid: the replicas that share out experts.
        partition: the partition that holds the stage.
        operations: of the stage.
        rows: of a micro-batch.
    """
    count = grid.num_replicas
    ranks = [grid.peer_rank(replica, partition) for replica in range(count)]
    nodes = {cluster.node(rank) for rank in ranks}
    # All ranks of a node exchange at the same time.
    link = cluster.within if len(nodes) == 1 else cluster.between.shared(cluster.ranks_per_node)
    seconds = 0.0
    for mixture in costs.mixtures:
        if mixture.operation in operations:
            # What comes out of the operation is as wide as the tokens that its experts take.
            made = _widest(costs, graph.operations[mixture.operation].outputs)
            part = mixture.top_k * made * rows / count
            seconds += _TRIPS * (count - 1) * link.seconds(part)
    return seconds


def _widest(costs: Costs, tensors: Sequence[int]) -> float:
    """Bytes of the largest of some tensors."""
    return max((float(costs.tensors[number]) for number in tensors), default=0.0)
