"""Units: the pieces of stages that are compiled, each once for all that compute the same."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from hyparflow.pipeline.operations import OperationGraph
from hyparflow.pipeline.partition import (
    Partitioning,
    allowed_cuts,
    crossing_costs,
    make_partitioning,
)
from hyparflow.pipeline.repeats import Repeat, repeats, unit_boundaries

__all__ = ["Units", "make_units"]

_WORTH = 0.25  # of the operations must not need compiling for units to be worth their calls


@dataclass(frozen=True)
class Units:
    """How stages are divided into units.

    Attributes:
        table: the units, as if each were a stage.
        of_stage: the numbers of each stage's units.
        kinds: for each unit, the first one of the model that computes the same; may be itself.
    """

    table: Partitioning
    of_stage: tuple[range, ...]
    kinds: tuple[int, ...]


def make_units(
    graph: OperationGraph,
    stages: Partitioning,
    kinds: Sequence[int],
    least: float,
    always: bool = False,
    fine: bool = False,
) -> Units | None:
    """Divide stages into units of blocks that repeat.

    Args:
        graph: the operations in execution order.
        stages: how they are divided into stages.
        kinds: for each operation, a number that those share which compute the same.
        least: the cost that a unit should have at least, in the unit of `Operation.cost`.
        always: whether units are made where they save little, too.
        fine: whether long units are divided, too, so that a stage has many short ones.

    Returns:
        The units; None if too little repeats.
    """

    def blocks(repeat: Repeat) -> int:
        block = graph.operations[repeat.start : repeat.start + repeat.length]
        count = math.ceil(least / max(sum(operation.cost for operation in block), 1e-9))
        return max(1, min(count, math.isqrt(repeat.count)) if fine else count)

    crossing = crossing_costs(graph).tolist()
    found = repeats(kinds, crossing)
    allowed = allowed_cuts(graph)
    wanted = unit_boundaries(found, blocks, stages.boundaries)
    boundaries = tuple(cut for cut in wanted if allowed[cut])
    if fine:
        boundaries = _divided(boundaries, stages, crossing, allowed)
    table = make_partitioning(graph, boundaries)
    of_stage = tuple(
        range(boundaries.index(start), boundaries.index(stop))
        for start, stop in itertools.pairwise(stages.boundaries)
    )
    unit_kinds = _kinds(graph, table, kinds)
    compiled = {(stage, unit_kinds[n]): n for stage, units in enumerate(of_stage) for n in units}
    operations = sum(len(table.operations(number)) for number in compiled.values())
    if not always and operations > (1.0 - _WORTH) * len(graph.operations):
        return None
    return Units(table, of_stage, unit_kinds)


def _divided(
    boundaries: Sequence[int],
    stages: Partitioning,
    crossing: Sequence[float],
    allowed: Sequence[bool],
) -> tuple[int, ...]:
    """The boundaries, and further ones in long units, where little crosses.

    Short is what is as long as the stage has pieces of that length, or up to twice that.
    """
    cuts = set(boundaries)
    for begin, end in itertools.pairwise(stages.boundaries):
        length = math.isqrt(end - begin)
        inside = [cut for cut in boundaries if begin <= cut <= end]
        for start, stop in itertools.pairwise(inside):
            pieces = (stop - start) // length if stop - start > 2 * length else 1
            for n in range(1, pieces):
                at = start + (stop - start) * n // pieces
                near = range(max(start + 1, at - length // 2), min(stop, at + length // 2 + 1))
                places = [(crossing[cut], abs(cut - at), cut) for cut in near if allowed[cut]]
                cuts.update(cut for *_, cut in sorted(places)[:1])
    return tuple(sorted(cuts))


def _kinds(graph: OperationGraph, table: Partitioning, kinds: Sequence[int]) -> tuple[int, ...]:
    """For each unit, the first that computes the same."""
    made = {n: (i, p) for i, op in enumerate(graph.operations) for p, n in enumerate(op.outputs)}
    ends = {0, table.num_stages - 1}  # they take the data, and end with the loss
    first: dict[Hashable, int] = {}
    found = []
    for number in range(table.num_stages):
        numbers = table.operations(number)

        def place(tensor: int, start: int = numbers.start) -> Hashable:
            maker, position = made.get(tensor, (None, tensor))
            return (None if maker is None else maker - start), position

        tensors = (
            table.stage_inputs[number],
            table.stage_outputs[number],
            [edge.tensor for edge in table.gradient_inputs(number)],
            table.gradient_outputs(number),
        )
        key: Hashable = (
            tuple(kinds[index] for index in numbers),
            tuple(tuple(map(place, some)) for some in tensors),
        )
        found.append(first.setdefault(number if number in ends else key, number))
    return tuple(found)
