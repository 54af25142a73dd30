"""One training step on paper: the lowered schedule, played with costs and a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hyparflow.actions import Edge, Kind, Step
from hyparflow.grid import Grid
from hyparflow.lowering import lower
from hyparflow.partition import Partitioning
from hyparflow.planning.candidate import Candidate, Problem
from hyparflow.planning.memory import Memory, partition_memory
from hyparflow.schedule import make_schedule
from hyparflow.simulate import Timeline, play

__all__ = ["Prediction", "predict"]


@dataclass(frozen=True)
class Prediction:
    """What one step of a candidate takes.

    Attributes:
        candidate: the candidate.
        timeline: what each partition of a replica does when; the replicas are alike.
        step_seconds: the time of a step.
        forward, backward: per partition, seconds of computing a micro-batch.
        reduce: per partition, seconds of summing gradients over replicas.
        apply: per partition, seconds of the optimizer.
        memory: per partition.
        sent: per partition, bytes sent to each other partition in a step.
    """

    candidate: Candidate
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

    Every replica is taken to have an equal part of the batch, and every micro-batch of it; so one
    replica stands for all.
    """
    timings = _Timings(problem, candidate)
    grid, partitioning = candidate.grid, candidate.partitioning
    schedule = make_schedule(candidate.schedule, grid.num_partitions, candidate.num_microbatches)
    timeline = play(lower(schedule, partitioning.edges), timings)
    stages = range(grid.num_partitions)
    backward = list(timings.backward)
    if any(span.step.kind == Kind.FUSED for span in timeline.spans[-1]):
        backward[-1] = timings.fused_surplus
    return Prediction(
        candidate,
        timeline,
        timeline.makespan + problem.costs.overheads.step,
        tuple(timings.forward),
        tuple(backward),
        tuple(timings.reduce),
        tuple(timings.apply),
        tuple(
            partition_memory(problem.costs, candidate, timings.rows, timeline, s) for s in stages
        ),
        tuple(_sent(partitioning, timings, candidate.num_microbatches, s) for s in stages),
    )


class _Timings:
    """The seconds of each step of a lowered list; called by the simulator."""

    def __init__(self, problem: Problem, candidate: Candidate) -> None:
        costs, cluster, grid = problem.costs, problem.cluster, candidate.grid
        self._costs, self._cluster = costs, cluster
        self._edges = candidate.partitioning.edges
        self.rows = problem.batch_size / grid.num_replicas / candidate.num_microbatches
        ranges = [candidate.partitioning.operations(s) for s in range(grid.num_partitions)]
        times = costs.times(self.rows, self._computing_at_once(candidate, ranges))

        def per_stage(seconds: Callable[[range], float]) -> list[float]:
            return [seconds(numbers) / cluster.speed for numbers in ranges]

        def total(values: object) -> list[float]:
            return per_stage(lambda r: float(values[r.start : r.stop].sum()))  # type: ignore[index]

        over = costs.overheads
        self._counts = [costs.weight_count(numbers) for numbers in ranges]
        self.gradients = [costs.weight_bytes(numbers, trainable=True) for numbers in ranges]
        self._add = per_stage(
            lambda r: (
                over.accumulate * costs.weight_bytes(r, trainable=True)
                + over.accumulate_weight * costs.weight_count(r)
            )
        )
        call = over.call / cluster.speed
        self.forward = [seconds + call for seconds in total(times.forward)]
        self.backward = [seconds + call for seconds in total(times.backward)]
        self._fused = [seconds + call for seconds in total(times.fused)]
        self.apply = per_stage(
            lambda r: (
                over.apply * costs.weight_bytes(r, trainable=True)
                + over.apply_weight * costs.weight_count(r)
            )
        )
        self.reduce = [self._reduced(grid, stage) for stage in range(grid.num_partitions)]

    def _computing_at_once(self, candidate: Candidate, ranges: list[range]) -> float:
        """How many ranks of a node compute at a time, on average: some of a pipeline wait."""
        times = self._costs.times(self.rows)
        each = [float((times.forward + times.backward)[r.start : r.stop].sum()) for r in ranges]
        count, total = candidate.num_microbatches, sum(each)
        step = total + (count - 1) * max(each)
        share = count * total / (step * len(ranges)) if step else 1.0
        return share * min(candidate.grid.size, self._cluster.ranks_per_node)

    @property
    def fused_surplus(self) -> float:
        """What the last stage's backward adds to its forward where both are one call."""
        return max(0.0, self._fused[-1] - self.forward[-1])

    def _reduced(self, grid: Grid, stage: int) -> float:
        if grid.num_replicas == 1:
            return 0.0
        ranks = [grid.rank(replica, stage) for replica in range(grid.num_replicas)]
        size = self.gradients[stage]
        groups = min(grid.num_partitions, self._cluster.ranks_per_node)
        over = self._costs.overheads
        packing = over.reduce * size + over.reduce_weight * self._counts[stage]
        return packing / self._cluster.speed + self._cluster.allreduce_seconds(ranks, size, groups)

    def size(self, edge: Edge) -> float:
        """Bytes of an edge's tensor in one micro-batch."""
        return float(self._costs.tensors[edge.tensor]) * self.rows

    def __call__(self, step: Step) -> float:
        stage, message = step.stage, self._costs.overheads.message / self._cluster.speed
        if step.kind in Kind.SENDS:
            return message
        if step.kind in Kind.RECEIVES:
            edge = self._edges[step.edge]
            link = self._cluster.link(edge.producer, edge.consumer)
            return message + link.seconds(self.size(edge))
        added = self._add[stage] if step.microbatch else 0.0
        return {
            Kind.FORWARD: self.forward[stage],
            Kind.BACKWARD: self.backward[stage] + added,
            Kind.FUSED: self._fused[stage] + added,
            Kind.REDUCE: self.reduce[stage],
            Kind.APPLY: self.apply[stage],
        }[step.kind]


def _sent(
    partitioning: Partitioning, timings: _Timings, num_microbatches: int, stage: int
) -> dict[int, int]:
    """Bytes that `stage` sends in a step, by the stage that gets them."""
    sent: dict[int, int] = {}
    for edge in partitioning.edges:
        size = round(timings.size(edge) * num_microbatches)
        if edge.producer == stage:
            sent[edge.consumer] = sent.get(edge.consumer, 0) + size
        if edge.consumer == stage and edge.carries_gradient:
            sent[edge.producer] = sent.get(edge.producer, 0) + size
    return dict(sorted(sent.items()))
