"""Operations and costs -> stages, and the table of tensors that cross between them.

A stage is a contiguous run of operations. `verify` checks a division and lists all faults in one
message.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hyparflow.pipeline.actions import Edge
from hyparflow.pipeline.balance import balance
from hyparflow.pipeline.crossing import crossing_sums, reads_of
from hyparflow.pipeline.operations import OperationGraph
from hyparflow.pipeline.placement import Placement
from hyparflow.pipeline.refine import refine

__all__ = [
    "Partitioning",
    "allowed_cuts",
    "crossing_costs",
    "divide",
    "make_partitioning",
    "stages_between",
    "verify",
]


@dataclass(frozen=True)
class Partitioning:
    """A verified division of an `OperationGraph` into stages.

    Attributes:
        boundaries: stage s holds operations ``boundaries[s]:boundaries[s + 1]``.
        edges: the crossing tensors, sorted, the same on every rank.
        stage_inputs: per stage, the tensors that it takes from earlier stages or the data.
        stage_outputs: per stage, the tensors that it gives to later stages or to the loss.
    """

    boundaries: tuple[int, ...]
    edges: tuple[Edge, ...]
    stage_inputs: tuple[tuple[int, ...], ...]
    stage_outputs: tuple[tuple[int, ...], ...]

    @property
    def num_stages(self) -> int:
        """The number of stages."""
        return len(self.boundaries) - 1

    def operations(self, stage: int) -> range:
        """The numbers of the operations in `stage`."""
        return range(self.boundaries[stage], self.boundaries[stage + 1])

    def gradient_inputs(self, stage: int) -> list[Edge]:
        """The edges on which `stage` sends a gradient back."""
        return [edge for edge in self.edges if edge.consumer == stage and edge.carries_gradient]

    def gradient_outputs(self, stage: int) -> list[int]:
        """The tensors of `stage` whose gradient comes back from later stages."""
        given = [e.tensor for e in self.edges if e.producer == stage and e.carries_gradient]
        return list(dict.fromkeys(given))


def divide(
    graph: OperationGraph,
    num_stages: int,
    lpp: Sequence[int] | None = None,
    balanced_for: tuple[str, Placement, int] | None = None,
) -> Partitioning:
    """Divide `graph` into `num_stages` stages of equal cost, or as `lpp` says.

    Args:
        graph: the operations in execution order.
        num_stages: how many stages to make.
        lpp: layers per partition: how many operations each stage gets; overrides the balance.
        balanced_for: a schedule, its placement and the number of its micro-batches: the cuts are
            moved from equal cost to where a step of it ends sooner.

    Returns:
        A verified partitioning.

    Raises:
        ValueError: if there are fewer operations than stages, if `lpp` has the wrong length or
            sum, or if operations that share changing state would be separated.
    """
    count = len(graph.operations)
    if num_stages > count:
        raise ValueError(
            "A model cannot be cut into more partitions than it has operations, nor into more "
            f"stages. Received: {num_stages} of them for {count} operations. "
            "Use fewer partitions, or replicas."
        )
    if lpp is None:
        costs = [operation.cost for operation in graph.operations]
        allowed = allowed_cuts(graph)
        boundaries = balance(costs, num_stages, allowed)
        if balanced_for is not None:
            boundaries = refine(boundaries, costs, crossing_costs(graph), allowed, *balanced_for)
    else:
        boundaries = _boundaries_from_lpp(graph, num_stages, lpp)
    return make_partitioning(graph, boundaries)


def crossing_costs(graph: OperationGraph) -> np.ndarray:
    """What the tensors that cross each boundary 0..n cost at either end."""
    reads, _ = reads_of(graph)
    costs = [
        cost
        for operation in graph.operations
        for cost in operation.crossing or [0.0] * len(operation.outputs)
    ]
    return crossing_sums(reads, np.array(costs), len(graph.operations))


def make_partitioning(graph: OperationGraph, boundaries: tuple[int, ...]) -> Partitioning:
    """The stages between `boundaries` and what crosses between them, verified.

    Raises:
        ValueError: if they are no division of `graph`.
    """
    partitioning = stages_between(graph, boundaries)
    verify(graph, partitioning)
    return partitioning


def _boundaries_from_lpp(
    graph: OperationGraph, num_stages: int, lpp: Sequence[int]
) -> tuple[int, ...]:
    count = len(graph.operations)
    if len(lpp) != num_stages or sum(lpp) != count or any(part < 1 for part in lpp):
        raise ValueError(
            "`lpp` (layers per partition) must have one positive number per partition, and they "
            f"must add up to the model's {count} operations (input layers not counted, nested "
            f"models opened). Received: lpp={list(lpp)} with sum {sum(lpp)} for "
            f"{num_stages} partitions"
        )
    return (0, *(int(end) for end in np.cumsum(lpp)))


def allowed_cuts(graph: OperationGraph) -> list[bool]:
    """For each boundary 0..n, whether a cut may stand there.

    Operations that change the same variable must stay in one stage: two ranks would each change
    a copy of their own.
    """
    allowed = [True] * (len(graph.operations) + 1)
    first: dict[int, int] = {}
    for index, operation in enumerate(graph.operations):
        for variable in operation.state:
            start = first.setdefault(variable, index)
            allowed[start + 1 : index + 1] = [False] * (index - start)
    return allowed


def stages_between(graph: OperationGraph, boundaries: tuple[int, ...]) -> Partitioning:
    """The stages between `boundaries` and what crosses between them, not verified.

    Data enters at stage 0, and the loss sits at the last.
    """
    last = len(boundaries) - 2
    producer = dict.fromkeys(graph.inputs, 0)
    consumers: dict[int, set[int]] = {}
    for stage in range(last + 1):
        for operation in graph.operations[boundaries[stage] : boundaries[stage + 1]]:
            for tensor in operation.inputs:
                consumers.setdefault(tensor, set()).add(stage)
            for tensor in operation.outputs:
                producer[tensor] = stage
    for tensor in graph.outputs:
        consumers.setdefault(tensor, set()).add(last)
    edges = tuple(
        Edge(tensor, producer[tensor], consumer, tensor in graph.gradient_tensors)
        for tensor in sorted(consumers)
        for consumer in sorted(consumers[tensor])
        if consumer != producer.get(tensor)
    )
    taken: list[set[int]] = [set() for _ in range(last + 1)]
    given: list[set[int]] = [set() for _ in range(last + 1)]
    for edge in edges:
        taken[edge.consumer].add(edge.tensor)
        given[edge.producer].add(edge.tensor)
    inputs = (tuple(graph.inputs), *(tuple(sorted(tensors)) for tensors in taken[1:]))
    outputs = (*(tuple(sorted(tensors)) for tensors in given[:-1]), tuple(graph.outputs))
    return Partitioning(boundaries, edges, inputs, outputs)


def verify(graph: OperationGraph, partitioning: Partitioning) -> None:
    """Check that `partitioning` computes exactly `graph`.

    Raises:
        ValueError: with every fault found, one per line.
    """
    faults = [
        *_faults_of_boundaries(graph, partitioning),
        *_faults_of_tensors(graph, partitioning),
        *_faults_of_state(graph, partitioning),
    ]
    if faults:
        raise ValueError("The partitioning is not valid:\n" + "\n".join(f"  - {f}" for f in faults))


def _faults_of_boundaries(graph: OperationGraph, partitioning: Partitioning) -> Iterable[str]:
    boundaries, count = partitioning.boundaries, len(graph.operations)
    if boundaries[0] != 0 or boundaries[-1] != count:
        yield f"boundaries {boundaries} do not span all {count} operations"
    for stage, (start, end) in enumerate(zip(boundaries, boundaries[1:], strict=False)):
        if start >= end:
            yield f"stage {stage} holds no operation"
    times = [0] * count
    for stage in range(partitioning.num_stages):
        for index in partitioning.operations(stage):
            if index < count:
                times[index] += 1
    for operation, seen in zip(graph.operations, times, strict=True):
        if seen != 1:
            yield f"operation '{operation.name}' is in {seen} stages instead of one"


def _faults_of_tensors(graph: OperationGraph, partitioning: Partitioning) -> Iterable[str]:
    brought = {(edge.tensor, edge.consumer) for edge in partitioning.edges}
    brought |= {(tensor, 0) for tensor in graph.inputs}
    for stage in range(partitioning.num_stages):
        known = set(partitioning.stage_inputs[stage])
        for tensor in sorted(known):
            if (tensor, stage) not in brought:
                yield f"nothing brings tensor {tensor} to stage {stage}"
        numbers = partitioning.operations(stage)
        for operation in graph.operations[numbers.start : numbers.stop]:
            for tensor in operation.inputs:
                if tensor not in known:
                    yield f"stage {stage} lacks tensor {tensor} for operation '{operation.name}'"
            known.update(operation.outputs)
        for tensor in partitioning.stage_outputs[stage]:
            if tensor not in known:
                yield f"stage {stage} cannot give tensor {tensor}"
    for edge in partitioning.edges:
        if edge.producer >= edge.consumer:
            yield f"tensor {edge.tensor} goes back from stage {edge.producer} to {edge.consumer}"
        elif edge.tensor not in partitioning.stage_outputs[edge.producer]:
            yield f"stage {edge.producer} does not give crossing tensor {edge.tensor}"
        elif edge.tensor not in partitioning.stage_inputs[edge.consumer]:
            yield f"stage {edge.consumer} does not take crossing tensor {edge.tensor}"
    if partitioning.stage_inputs[0] != graph.inputs:
        yield f"stage 0 does not take the model's inputs {graph.inputs}"
    if partitioning.stage_outputs[-1] != graph.outputs:
        missing = sorted(set(graph.outputs) - set(partitioning.stage_outputs[-1]))
        yield f"the last stage does not give the model's outputs {graph.outputs}: lacks {missing}"


def _faults_of_state(graph: OperationGraph, partitioning: Partitioning) -> Iterable[str]:
    holder: dict[int, tuple[int, str]] = {}
    for stage in range(partitioning.num_stages):
        numbers = partitioning.operations(stage)
        for operation in graph.operations[numbers.start : numbers.stop]:
            for variable in sorted(operation.state):
                other, name = holder.setdefault(variable, (stage, operation.name))
                if other != stage:
                    yield (
                        f"operations '{name}' (stage {other}) and '{operation.name}' (stage "
                        f"{stage}) change the same variable and must stay in one stage"
                    )
