"""How much memory a rank of each partition needs in a training step."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from hyparflow.actions import Kind
from hyparflow.planning.candidate import Candidate
from hyparflow.planning.costs import Costs
from hyparflow.simulate import Timeline

__all__ = ["Memory", "partition_memory", "program_bytes"]


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step.

    Attributes:
        weights: of the whole model, which every rank holds.
        gradients: of this partition's weights: the sum, and what is added or packed.
        slots: the optimizer's state, of the whole model.
        activations: of the micro-batches in flight, and what the current one needs beside.
        buffers: tensors on their way to or from other partitions.
        program: the compiled partition itself, and what TensorFlow needs to run any.
    """

    weights: int
    gradients: int
    slots: int
    activations: int
    buffers: int
    program: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(astuple(self))


def partition_memory(
    costs: Costs, candidate: Candidate, rows: float, timeline: Timeline, stage: int
) -> Memory:
    """The memory of the ranks of partition `stage`.

    Args:
        costs: of the model's operations.
        candidate: how it is spread.
        rows: of a micro-batch.
        timeline: the step as played.
        stage: the partition.
    """
    numbers = candidate.partitioning.operations(stage)
    mine = costs.weight_bytes(numbers, trainable=True)
    # One sum of gradients; and, while a micro-batch's are added or replicas' are packed, the old
    # sum, the new one and what is added.
    several = candidate.num_microbatches > 1 or candidate.grid.num_replicas > 1
    inside = slice(numbers.start, numbers.stop)
    in_flight = timeline.peak_in_flight(stage)
    is_fused = any(span.step.kind == Kind.FUSED for span in timeline.spans[stage])
    kept = (costs.kept if is_fused else costs.held)[inside].sum()
    working = costs.working[inside].max()
    edges = candidate.partitioning.edges
    crossing = sum(costs.tensors[e.tensor] for e in edges if stage in (e.producer, e.consumer))
    return Memory(
        weights=costs.fixed_bytes - costs.slot_bytes,
        gradients=mine * (3 if several else 1),
        slots=costs.slot_bytes,
        activations=round(rows * (in_flight * kept + working)),
        buffers=round(2 * rows * crossing),
        program=program_bytes(costs, numbers),
    )


def program_bytes(costs: Costs, numbers: range) -> int:
    """What the compiled form of these operations takes."""
    count = costs.program[numbers.start : numbers.stop].sum()
    return round(count * costs.overheads.program + costs.overheads.runtime)
