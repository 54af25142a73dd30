"""Predicts a training step: plays the lowered schedule with costs and a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyparflow.pipeline.actions import RECEIVES, SENDS, Edge, Kind, Step
from hyparflow.pipeline.lowering import lower
from hyparflow.pipeline.schedules import make_schedule
from hyparflow.pipeline.simulator import Timeline, play
from hyparflow.planning.search.predict_memory import Memory, partition_memory
from hyparflow.planning.search.predict_reductions import reduce_seconds
from hyparflow.planning.search.problem import Candidate, Problem, Saving

__all__ = ["Prediction", "predict"]


@dataclass(frozen=True)
class Prediction:
    """The predicted times and memory of one step of a candidate.

    Attributes:
        candidate: the candidate.
        saving: what it does to need less memory.
        timeline: what each partition of a replica does when; the replicas are alike.
        step_seconds: the time of a step.
        forward, backward: per partition, seconds of computing a micro-batch.
        reduce: per partition, seconds of summing gradients over replicas.
        apply: per partition, seconds of the optimizer.
        memory: per partition.
        sent: per partition, bytes sent to each other partition in a step.
    """

    candidate: Candidate
    saving: Saving
    timeline: Timeline
    step_seconds: float
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    reduce: tuple[float, ...]
    apply: tuple[float, ...]
    memory: tuple[Memory, ...]
    sent: tuple[dict[int, int], ...]

    @property
    def idle_share(self) -> float:
        """The share of all ranks' time in which nothing is computed, 0 to 1."""
        ranks = range(len(self.timeline.spans))
        computing = sum(
            span.end - span.start
            for rank in ranks
            for span in self.timeline.spans[rank]
            if span.step.edge < 0 and span.step.kind != Kind.REDUCE
        )
        return max(0.0, 1.0 - computing / (self.step_seconds * len(ranks)))


def predict(problem: Problem, candidate: Candidate) -> Prediction:
    """Play one training step of `candidate`.

    All replicas, and all micro-batches, are assumed to have equally many rows; so one replica
    stands for all.
    """
    timings = _Timings(problem, candidate)
    grid, table = candidate.grid, candidate.partitioning
    actions = make_schedule(candidate.schedule, grid.placement, candidate.num_microbatches)
    timeline = play(lower(actions, table.edges), timings)
    partitions = range(grid.num_partitions)
    forward, backward = list(timings.forward), list(timings.backward)
    if any(span.step.kind == Kind.FUSED for span in timeline.spans[grid.placement.last_partition]):
        forward[-1], backward[-1] = timings.fused_parts

    def of_partitions(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(sum(values[stage] for stage in candidate.stages(p)) for p in partitions)

    return Prediction(
        candidate=candidate,
        saving=problem.saving,
        timeline=timeline,
        step_seconds=timeline.makespan + problem.costs.overheads.step,
        forward=of_partitions(forward),
        backward=of_partitions(backward),
        reduce=tuple(timings.reduce),
        apply=tuple(timings.apply),
        memory=tuple(
            partition_memory(problem, candidate, timings.rows, timeline, p) for p in partitions
        ),
        sent=tuple(_sent(candidate, timings, p) for p in partitions),
    )


class _Timings:
    """The seconds of each step of a lowered list; called by the simulator."""

    def __init__(self, problem: Problem, candidate: Candidate) -> None:
        costs, cluster, grid = problem.spent, problem.cluster, candidate.grid
        self._costs, self._cluster = costs, cluster
        self._edges = candidate.partitioning.edges
        self._holders = grid.placement.partitions
        self.rows = problem.batch_size / grid.num_replicas / candidate.num_microbatches
        table = candidate.partitioning
        ranges = [table.operations(stage) for stage in range(table.num_stages)]
        times = costs.times(self.rows, self._computing_at_once(candidate))
        over, call = costs.overheads, costs.overheads.call

        def computing(seconds: np.ndarray) -> list[float]:
            return [(float(seconds[r.start : r.stop].sum()) + call) / cluster.speed for r in ranges]

        self.forward = computing(times.forward)
        self.backward = computing(times.backward)
        self._fused = computing(times.fused)
        self._add = [
            self._per_weight(r, over.accumulate, over.accumulate_weight) / cluster.speed
            for r in ranges
        ]
        partitions = range(grid.num_partitions)
        mine = [candidate.operations(p) for p in partitions]
        shares = grid.num_replicas if problem.saving.shard_optimizer else 1
        self.apply = [
            self._per_weight(m, over.apply, over.apply_weight) / cluster.speed / shares
            for m in mine
        ]
        self.reduce = [
            reduce_seconds(costs, cluster, candidate, p, self.backward) for p in partitions
        ]

    def _per_weight(self, operations: Sequence[int], byte: float, weight: float) -> float:
        """`byte` seconds per byte of trained weights, plus `weight` seconds per weight."""
        size = self._costs.weight_bytes(operations, trainable=True)
        return byte * size + weight * self._costs.weight_count(operations)

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

    def __call__(self, step: Step) -> float:
        stage, message = step.stage, self._costs.overheads.message / self._cluster.speed
        if step.kind in SENDS:
            return message
        if step.kind in RECEIVES:
            edge = self._edges[step.edge]
            link = self._cluster.link(self._holders[edge.producer], self._holders[edge.consumer])
            return message + link.seconds(self.size(edge))
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


def _sent(candidate: Candidate, timings: _Timings, partition: int) -> dict[int, int]:
    """Bytes that `partition` sends in a step, by the partition that gets them."""
    holders = candidate.grid.placement.partitions
    sent: dict[int, int] = {}
    for edge in candidate.partitioning.edges:
        producer, consumer = holders[edge.producer], holders[edge.consumer]
        if producer == consumer:
            continue
        size = round(timings.size(edge) * candidate.num_microbatches)
        if producer == partition:
            sent[consumer] = sent.get(consumer, 0) + size
        if consumer == partition and edge.carries_gradient:
            sent[producer] = sent.get(producer, 0) + size
    return dict(sorted(sent.items()))
