"""How much memory a rank of each partition needs in a training step."""

from __future__ import annotations

import functools
from dataclasses import astuple, dataclass

from hyparflow.formats.records import Bytes
from hyparflow.pipeline.actions import Kind, Step
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.simulator import Timeline
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.search.problem import Candidate, Problem

__all__ = ["Memory", "gradient_copies", "partition_memory", "program_bytes"]


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step, and around the steps.

    Attributes:
        weights: of this partition.
        gradients: of its weights: their sums, and tensors computed from these.
        slots: the optimizer's state of its weights.
        activations: of the micro-batches in flight, and the working memory of the current one.
        buffers: tensors on their way to or from other partitions.
        program: the compiled partition itself, and what TensorFlow needs to run anything.
        around: of the whole model, built before the steps or gathered after them, and the program;
            0 if no rank holds it whole.
    """

    weights: Bytes
    gradients: Bytes
    slots: Bytes
    activations: Bytes
    buffers: Bytes
    program: Bytes
    around: Bytes

    @property
    def total(self) -> int:
        """The most that is needed at a time."""
        return max(sum(self.parts), self.around)

    @property
    def parts(self) -> tuple[int, ...]:
        """What a step needs at its peak."""
        return astuple(self)[:-1]


def partition_memory(
    problem: Problem, candidate: Candidate, rows: float, timeline: Timeline, partition: int
) -> Memory:
    """The memory of the ranks of a partition.

    Args:
        problem: the problem to solve.
        candidate: the way in which the model is spread.
        rows: the rows of a micro-batch.
        timeline: the step as played.
        partition: the partition.
    """
    costs = problem.costs
    numbers, table = candidate.operations(partition), candidate.partitioning
    mine = costs.weight_bytes(numbers, trainable=True)
    copies = gradient_copies(candidate.grid, candidate.num_microbatches)

    def kept(step: Step) -> float:
        inside = table.operations(step.stage)
        return float(costs.kept[inside.start : inside.stop].sum())

    own = set(candidate.stages(partition))
    crossing = sum(
        costs.tensors[edge.tensor]
        for edge in table.edges
        if (edge.producer in own) != (edge.consumer in own)
    )
    activations = (
        timeline.peak_kept(partition, functools.cache(kept)) + costs.working[numbers].max()
    )
    program = program_bytes(costs, candidate, timeline, partition)
    return Memory(
        weights=costs.weight_bytes(numbers),
        gradients=mine * copies,
        slots=round(mine * costs.slots),
        activations=round(rows * activations),
        buffers=round(2 * rows * crossing),
        program=program,
        around=0 if problem.apart else costs.fixed_bytes + program,
    )


def gradient_copies(grid: Grid, num_microbatches: int) -> int:
    """How many tensors as large as a weight there are at a time, beside it and its slots.

    The gradient of a micro-batch; the sum over micro-batches; the sum over replicas; and the new
    slot and the new weight that the optimizer computes before it assigns them.
    """
    return 3 + (num_microbatches > 1) + (grid.num_replicas > 1)


def program_bytes(costs: Costs, candidate: Candidate, timeline: Timeline, partition: int) -> int:
    """Bytes of the compiled functions of a partition."""
    in_two = {s.step.stage for s in timeline.spans[partition] if s.step.kind == Kind.FORWARD}
    over = costs.overheads
    counts = {True: 0.0, False: 0.0}
    for stage in candidate.stages(partition):
        inside = candidate.partitioning.operations(stage)
        counts[stage in in_two] += float(costs.program[inside.start : inside.stop].sum())
    total = over.runtime + over.program_bytes(whole=counts[False], in_two=counts[True])
    if candidate.is_plain_keras:
        total += over.program_of_keras * counts[False]
    return round(float(total))
