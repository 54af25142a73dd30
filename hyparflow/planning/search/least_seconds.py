"""A lower bound of the time of a step, from what a partition does and what it must wait for."""

from __future__ import annotations

from hyparflow.pipeline.actions import Kind, Step
from hyparflow.pipeline.schedules import TABLE
from hyparflow.planning.search.predict_times import StepTimes
from hyparflow.planning.search.problem import Candidate

__all__ = ["least_seconds"]

_ROUNDING = 1e-9  # relative; sums in another order differ by less


def least_seconds(times: StepTimes, candidate: Candidate) -> float:
    """What no schedule of the candidate's can beat, whatever its order.

    A partition is busy with all micro-batches. It begins once one has come through the stages
    before it, and when it is done with the backward of its last one, those stages still have to
    compute theirs.
    """
    grid = candidate.grid
    starts, ends, messages = _waits(times, candidate)
    least = []
    for partition in range(grid.num_partitions):
        stages = candidate.stages(partition)
        busy = sum(_computing(times, candidate, stage) for stage in stages)
        busy += candidate.num_microbatches * messages[partition]
        done = times.reduce[partition] + times.apply[partition]
        later = min(ends[stage] for stage in stages)
        least.append(min(starts[stage] for stage in stages) + busy + max(done, later))
    return max(least) * (1.0 - _ROUNDING)


def _computing(times: StepTimes, candidate: Candidate, stage: int) -> float:
    """The seconds in which a stage computes all micro-batches."""

    def seconds(*kinds: Kind) -> float:
        first, other = (sum(times(Step(stage, kind, m)) for kind in kinds) for m in (0, 1))
        return first + (candidate.num_microbatches - 1) * other

    if TABLE[candidate.schedule].in_two:
        return seconds(Kind.FORWARD, Kind.INPUT_BACKWARD, Kind.WEIGHT_BACKWARD)
    apart = seconds(Kind.FORWARD, Kind.BACKWARD)
    is_last = stage == candidate.partitioning.num_stages - 1
    return min(apart, seconds(Kind.FUSED)) if is_last else apart


def _waits(times: StepTimes, candidate: Candidate) -> tuple[list[float], list[float], list[float]]:
    """The soonest begin of each stage, what must follow after it, and the messages of partitions.

    Returns:
        For each stage, when the first of its messages for a forward is being received; for each
        stage, seconds from its last backward and the sends after it to the end of the step; for
        each partition, seconds that the messages of a micro-batch take.
    """
    count, holders = candidate.partitioning.num_stages, candidate.grid.placement.partitions
    ready, received = [0.0] * count, [0.0] * count
    messages = [0.0] * candidate.grid.num_partitions
    edges = candidate.partitioning.edges
    for edge in sorted(edges, key=lambda edge: edge.producer):
        producer, consumer = edge.producer, edge.consumer
        ends = holders[producer], holders[consumer]
        send, wait = (times.sending, times.receiving(edge)) if ends[0] != ends[1] else (0.0, 0.0)
        begin = ready[producer] + times.forward[producer] + send + wait
        ready[consumer] = max(ready[consumer], begin)
        received[consumer] += wait
        messages[ends[0]] += send + (wait if edge.carries_gradient else 0.0)
        messages[ends[1]] += wait + (send if edge.carries_gradient else 0.0)
    starts = [max(0.0, begin - taken) for begin, taken in zip(ready, received, strict=True)]
    return starts, _ends(times, candidate), messages


def _ends(times: StepTimes, candidate: Candidate) -> list[float]:
    """For each stage, seconds from its last backward and its sends to the end of the step."""
    count, holders = candidate.partitioning.num_stages, candidate.grid.placement.partitions
    if TABLE[candidate.schedule].in_two:  # a gradient is given long before the backward is done
        return [0.0] * count
    after = [times.reduce[holder] + times.apply[holder] for holder in holders]
    sent = [0.0] * count
    gradients = [edge for edge in candidate.partitioning.edges if edge.carries_gradient]
    for edge in sorted(gradients, key=lambda edge: edge.consumer):
        producer, consumer = edge.producer, edge.consumer
        crosses = holders[producer] != holders[consumer]
        send, wait = (times.sending, times.receiving(edge)) if crosses else (0.0, 0.0)
        then = send + wait + times.backward[producer] + after[producer]
        after[consumer] = max(after[consumer], then)
        sent[consumer] += send
    return [seconds - sending for seconds, sending in zip(after, sent, strict=True)]
