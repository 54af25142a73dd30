"""Models, costs and machines as numbers, to plan for on paper."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.operations import Operation, OperationGraph
from hyparflow.pipeline.partition import make_partitioning
from hyparflow.planning.costs.cluster import Cluster, Link
from hyparflow.planning.costs.costs import Costs, Weight
from hyparflow.planning.costs.overheads import Overheads
from hyparflow.planning.search.problem import Candidate

__all__ = ["FAST", "FREE", "INSTANT", "MEGABYTE", "candidate", "chain", "costs"]

FREE = Overheads(*[0] * len(dataclasses.fields(Overheads)))
MEGABYTE = 2**20
INSTANT = 1e30  # bytes per second that take no time


def chain(count: int) -> OperationGraph:
    """Operation i reads tensor i and makes tensor i + 1."""
    operations = tuple(Operation(f"op{i}", (i,), (i + 1,)) for i in range(count))
    return OperationGraph(operations, (0,), (count,), frozenset(range(1, count + 1)))


def costs(seconds: list[float], overheads: Overheads = FREE, **changes: Any) -> Costs:
    """Costs per row: a backward takes twice the forward, tensors and weights a megabyte."""
    count = len(seconds)
    forward = np.array(seconds, float)[:, None]
    made = Costs(
        operations=tuple(f"op{i}" for i in range(count)),
        rows=(1,),
        forward=forward,
        backward=2 * forward,
        fused=3 * forward,
        kept=np.full(count, float(MEGABYTE)),
        working=np.zeros(count),
        program=np.zeros(count),
        by_xla=np.zeros(count),
        tensors=np.full(count + 1, float(MEGABYTE)),
        weights=tuple(Weight(MEGABYTE, True) for _ in range(count)),
        used=tuple((i,) for i in range(count)),
        overheads=overheads,
    )
    return dataclasses.replace(made, **changes)


FAST = Cluster(1, 8, within=Link(0.0, 1e30), sum_bandwidth=INSTANT)


def candidate(
    graph: OperationGraph, bounds: tuple[int, ...], microbatches: int, schedule: str = "1f1b",
    replicas: int = 1,
) -> Candidate:  # fmt: skip
    grid = Grid(len(bounds) - 1, replicas)
    return Candidate(grid, microbatches, schedule, make_partitioning(graph, bounds))
