"""Predicts a training step: plays the lowered schedule with costs and a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hyparflow.pipeline.actions import Kind
from hyparflow.pipeline.lowering import fused, lower
from hyparflow.pipeline.makespan import makespan
from hyparflow.pipeline.schedules import Schedule, make_schedule
from hyparflow.pipeline.simulator import Timeline, play
from hyparflow.planning.search.least_seconds import least_seconds
from hyparflow.planning.search.predict_memory import Memory, partition_memory
from hyparflow.planning.search.predict_times import StepTimes
from hyparflow.planning.search.problem import Candidate, Problem, Saving

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """The predicted times and memory of one step of a candidate.

    All replicas, and all micro-batches, are assumed to have equally many rows; so one replica
    stands for all. What takes long is worked out when it is first asked for.

    Attributes:
        problem: the problem to solve.
        candidate: the candidate.
    """

    problem: Problem
    candidate: Candidate

    @property
    def saving(self) -> Saving:
        """What the candidate does to need less memory."""
        return self.problem.saving

    @cached_property
    def least_seconds(self) -> float:
        """A lower bound of the time of a step, for which nothing is played."""
        return least_seconds(self._times, self.candidate) + self.problem.costs.overheads.step

    @cached_property
    def step_seconds(self) -> float:
        """The time of a step."""
        end = makespan(self._schedule(), self.candidate.partitioning.edges, self._times)
        return end + self.problem.costs.overheads.step

    def is_within(self, seconds: float) -> bool:
        """Whether a step takes at most so long."""
        return self.least_seconds <= seconds and self.step_seconds <= seconds

    @cached_property
    def timeline(self) -> Timeline:
        """What each partition of a replica does when; the replicas are alike."""
        return play(lower(self._schedule(), self.candidate.partitioning.edges), self._times)

    @cached_property
    def memory(self) -> tuple[Memory, ...]:
        """The memory of the ranks of each partition."""
        schedule, rows = self._schedule(), self._times.rows
        return tuple(
            partition_memory(self.problem, self.candidate, rows, actions, partition)
            for partition, actions in enumerate(schedule)
        )

    @property
    def forward(self) -> tuple[float, ...]:
        """Per partition, seconds of the forward of a micro-batch."""
        return self._of_partitions([*self._times.forward[:-1], self._last_parts[0]])

    @property
    def backward(self) -> tuple[float, ...]:
        """Per partition, seconds of the backward of a micro-batch."""
        return self._of_partitions([*self._times.backward[:-1], self._last_parts[1]])

    @property
    def reduce(self) -> tuple[float, ...]:
        """Per partition, seconds of summing gradients over replicas."""
        return tuple(self._times.reduce)

    @property
    def apply(self) -> tuple[float, ...]:
        """Per partition, seconds of the optimizer."""
        return tuple(self._times.apply)

    @property
    def sent(self) -> tuple[dict[int, int], ...]:
        """Per partition, bytes sent to each other partition in a step."""
        partitions = range(self.candidate.grid.num_partitions)
        return tuple(_sent(self.candidate, self._times, partition) for partition in partitions)

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

    @cached_property
    def _times(self) -> StepTimes:
        return StepTimes(self.problem, self.candidate)

    @property
    def _last_parts(self) -> tuple[float, float]:
        """Seconds of the forward and the backward of the last stage."""
        spans = self.timeline.spans[self.candidate.grid.placement.last_partition]
        if any(span.step.kind == Kind.FUSED for span in spans):
            return self._times.fused_parts
        return self._times.forward[-1], self._times.backward[-1]

    def _of_partitions(self, values: Sequence[float]) -> tuple[float, ...]:
        partitions = range(self.candidate.grid.num_partitions)
        return tuple(sum(values[s] for s in self.candidate.stages(p)) for p in partitions)

    def _schedule(self) -> Schedule:
        """The computations; made anew each time, since it may be long."""
        placement, count = self.candidate.grid.placement, self.candidate.num_microbatches
        return fused(make_schedule(self.candidate.schedule, placement, count))


def _sent(candidate: Candidate, times: StepTimes, partition: int) -> dict[int, int]:
    """Bytes that `partition` sends in a step, by the partition that gets them."""
    holders = candidate.grid.placement.partitions
    sent: dict[int, int] = {}
    for edge in candidate.partitioning.edges:
        producer, consumer = holders[edge.producer], holders[edge.consumer]
        if producer == consumer:
            continue
        size = round(times.size(edge) * candidate.num_microbatches)
        if producer == partition:
            sent[consumer] = sent.get(consumer, 0) + size
        if consumer == partition and edge.carries_gradient:
            sent[producer] = sent.get(producer, 0) + size
    return dict(sorted(sent.items()))
