"""The seconds of each step of a lowered list, by costs and a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyparflow.pipeline.actions import RECEIVES, SENDS, Edge, Kind, Step
from hyparflow.planning.search.predict_reductions import reduce_seconds
from hyparflow.planning.search.problem import Candidate, Problem
from hyparflow.planning.search.shared_experts import exchange_seconds

__all__ = ["StepTimes"]


class StepTimes:
    """The seconds of each step of a lowered list; called by the simulator."""

    def __init__(self, problem: Problem, candidate: Candidate) -> None:
        costs, cluster, grid = problem.spent, problem.cluster, candidate.grid
        self._costs, self._cluster, self._held = costs, cluster, problem.held(grid)
        self._edges = candidate.partitioning.edges
        self._holders = grid.placement.partitions
        self.rows = problem.batch_size / grid.num_replicas / candidate.num_microbatches
        table = candidate.partitioning
        ranges = [table.operations(stage) for stage in range(table.num_stages)]
        times = costs.times(self.rows, self._computing_at_once(candidate))
        over, call = costs.overheads, costs.overheads.call

        travelling = self._travelling(problem, candidate, ranges)

        def computing(seconds: np.ndarray, trips: int) -> list[float]:
            return [
                (float(seconds[r.start : r.stop].sum()) + call) / cluster.speed + trips * travel
                for r, travel in zip(ranges, travelling, strict=True)
            ]

        self.forward = computing(times.forward, 1)
        self.backward = computing(times.backward, 1)
        self._fused = computing(times.fused, 2)
        self._add = [
            self._per_weight(r, over.accumulate, over.accumulate_weight) / cluster.speed
            for r in ranges
        ]
        partitions = range(grid.num_partitions)
        mine = [candidate.operations(p) for p in partitions]
        shares = grid.num_peers if problem.saving.shard_optimizer else 1
        self.apply = [
            self._per_weight(m, over.apply, over.apply_weight) / cluster.speed / shares
            for m in mine
        ]
        summed = costs if problem.sharers(grid) == 1 else problem.without_experts
        self.reduce = [
            reduce_seconds(summed, cluster, candidate, p, self.backward) for p in partitions
        ]

    def _travelling(
        self, problem: Problem, candidate: Candidate, ranges: Sequence[range]
    ) -> list[float]:
        """For each stage, the seconds of a forward in which tokens travel to experts and back."""
        if problem.sharers(candidate.grid) == 1:
            return [0.0] * len(ranges)
        given = problem.costs, problem.graph, self._cluster, candidate.grid
        pairs = zip(self._holders, ranges, strict=True)
        return [exchange_seconds(*given, holder, inside, self.rows) for holder, inside in pairs]

    def _per_weight(self, operations: Sequence[int], byte: float, weight: float) -> float:
        """`byte` seconds per byte of trained weights, plus `weight` seconds per weight."""
        size = self._held.weight_bytes(operations, trainable=True)
        return byte * size + weight * len(self._held.trained_sizes(operations))

    def _computing_at_once(self, candidate: Candidate) -> float:
        """How many ranks of a node compute at a time, on average: in a pipeline some wait."""
        times = self._costs.times(self.rows)
        both = times.forward + times.backward
        partitions = range(candidate.grid.num_partitions)
        each = [float(both[candidate.operations(p)].sum()) for p in partitions]
        several = candidate.grid.placement.depth
        count, total = candidate.num_microbatches * several, sum(each)
        step = total + (count - 1) * max(each)
        share = count * total / (step * len(each)) if step else 1.0
        return share * min(candidate.grid.size, self._cluster.ranks_per_node)

    @property
    def fused_parts(self) -> tuple[float, float]:
        """The seconds of the last stage's forward and backward in one call, split into the two."""
        total = self.forward[-1] + self.backward[-1]
        share = self.forward[-1] / total if total else 0.5
        return share * self._fused[-1], (1.0 - share) * self._fused[-1]

    def size(self, edge: Edge) -> float:
        """Bytes of an edge's tensor in one micro-batch."""
        return float(self._costs.tensors[edge.tensor]) * self.rows

    @property
    def sending(self) -> float:
        """The seconds for which the send of a message keeps its rank busy."""
        return self._costs.overheads.message / self._cluster.speed

    def receiving(self, edge: Edge) -> float:
        """The seconds of a receive of an edge's tensor or gradient, once it was sent."""
        link = self._cluster.link(self._holders[edge.producer], self._holders[edge.consumer])
        return self.sending + link.seconds(self.size(edge))

    def __call__(self, step: Step) -> float:
        stage = step.stage
        if step.kind in SENDS:
            return self.sending
        if step.kind in RECEIVES:
            return self.receiving(self._edges[step.edge])
        if step.kind == Kind.FORWARD:
            return self.forward[stage]
        if step.kind == Kind.START_REDUCE:
            return 0.0  # its time that is not hidden counts in REDUCE
        if step.kind == Kind.REDUCE:  # its `stage` is a partition, as in APPLY
            return self.reduce[stage]
        if step.kind == Kind.APPLY:
            return self.apply[stage]
        of_inputs, of_weights = self._costs.halves if stage else (0.0, 1.0)  # for data, none
        if step.kind == Kind.INPUT_BACKWARD:
            return of_inputs * self.backward[stage]
        added = self._add[stage] if step.microbatch else 0.0
        if step.kind == Kind.WEIGHT_BACKWARD:
            return added + of_weights * self.backward[stage]
        return added + (self.backward if step.kind == Kind.BACKWARD else self._fused)[stage]
