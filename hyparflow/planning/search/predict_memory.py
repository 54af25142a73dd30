"""How much memory a rank of each partition needs in a training step."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

from hyparflow.engine.sequence.looked_up import LookedUp
from hyparflow.formats.records import Bytes
from hyparflow.pipeline.actions import Action, Kind
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.share_out import largest_share
from hyparflow.pipeline.simulator import peak_kept
from hyparflow.pipeline.token_layout import TokenLayout
from hyparflow.planning.costs.costs import Costs
from hyparflow.planning.search.problem import Candidate, Problem, Saving
from hyparflow.planning.search.sequence_memory import compiled_strips, looked_up

__all__ = ["Memory", "gradient_copies", "held_slots", "partition_memory", "updated_copies"]

# What is compiled at a time: a stage, operations, and whether these are the stage's last.
_Piece = tuple[int, range, bool]
# Tensors that updates make beside weights and slots, of all weights in one call: the new slot and
# the new weight; and of units one after the other, as was measured with large weights.
_UPDATED, _UPDATED_OF_UNIT = 2, 3
_DRAWN = 2  # tensors that drawing an initial weight takes, beside the weight


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step, and around the steps.

    Attributes:
        weights: of this partition.
        gradients: of its weights: their sums over micro-batches, and those over replicas.
        slots: the optimizer's state of its weights.
        activations: of the micro-batches in flight, and the working memory of the current one.
        updates: what the optimizer computes before it assigns it, beyond the memory of activations,
            which are gone by then.
        buffers: tensors on their way to or from other partitions.
        program: the compiled partition itself, the objects of the whole model, and what TensorFlow
            needs to run anything.
        around: of the whole model, built before the steps or gathered after them, with what its
            largest weight is made in, and the program; 0 if no rank holds it whole.
    """

    weights: Bytes
    gradients: Bytes
    slots: Bytes
    activations: Bytes
    updates: Bytes
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
    problem: Problem,
    candidate: Candidate,
    rows: float,
    actions: Sequence[Action],
    partition: int,
) -> Memory:
    """The memory of the ranks of a partition.

    Args:
        problem: the problem to solve.
        candidate: the way in which the model is spread.
        rows: the rows of a micro-batch.
        actions: what the partition computes, with those joined that are one call.
        partition: the partition.
    """
    grid, saving, found = candidate.grid, problem.saving, problem.activations
    costs, whole = problem.held(grid), problem.spent
    numbers, table = candidate.operations(partition), candidate.partitioning
    mine = costs.weight_bytes(numbers, trainable=True)
    copies = gradient_copies(grid, saving)
    slots = mine * held_slots(costs, grid, saving)
    if saving.shard_optimizer and not costs.divides:
        slots = costs.slots * largest_share(costs.trained_sizes(numbers), grid.num_peers)
    own = set(candidate.stages(partition))
    kept = {stage: found.kept(table.operations(stage)) for stage in own}
    crossing = sum(
        costs.tensors[edge.tensor]
        for edge in table.edges
        if (edge.producer in own) != (edge.consumer in own)
    )
    working = max(found.working(table.operations(stage)) for stage in own)
    waiting = peak_kept(actions, kept)
    activations = rows * (waiting + working) + costs.overheads.scratch
    embedded = _embedded(problem, grid, numbers)
    pieces = list(_compiled(problem, candidate, partition))
    around = whole.fixed_bytes + _DRAWN * whole.largest_weight
    program = _program_bytes(problem, candidate, actions, pieces)
    return Memory(
        weights=costs.weight_bytes(numbers),
        gradients=round(_gradient_bytes(problem, grid, numbers) - embedded.tables * copies),
        slots=round(slots),
        activations=round(activations),
        updates=round(
            _beyond(
                _update_bytes(problem, grid, pieces, mine) + embedded.pooled,
                embedded.gathered,
                activations,
                rows * waiting if saving.sequences and saving.sequences.waits_in_memory else 0.0,
            )
        ),
        buffers=round(2 * rows * crossing),
        program=program,
        around=0 if saving.apart else around + program,
    )


def _embedded(problem: Problem, grid: Grid, numbers: Sequence[int]) -> LookedUp:
    """The gradients of embeddings, where sequences are divided; where not, these are short."""
    if problem.saving.sequences is None:
        return LookedUp()
    return looked_up(problem.costs, set(numbers), problem.batch_size, grid.num_peers)


def _beyond(pooled: float, beside: float, activations: float, stored: float) -> float:
    """Bytes of updates beyond what activations had, which are gone by then.

    A pool keeps what it once had; what a store had is free again.

    Args:
        pooled: of updates, in TensorFlow's pool.
        beside: of updates, outside of it.
        activations: all that were there.
        stored: those of them that a store had outside of the pool.
    """
    return max(0.0, max(0.0, pooled - (activations - stored)) + beside - stored)


def gradient_copies(grid: Grid, saving: Saving) -> float:
    """How many tensors as large as a weight there are for each, beside it and its slots.

    The sum over micro-batches, and that over replicas. A replica that updates its share of the
    weights has the sums over replicas of these.
    """
    return 1 + (grid.num_peers > 1) / _sharers(grid, saving)


def _gradient_bytes(problem: Problem, grid: Grid, numbers: Sequence[int]) -> float:
    """Bytes of the gradients of operations, with their sums."""
    mine = problem.held(grid).weight_bytes(numbers, trainable=True)
    summed = mine
    if problem.sharers(grid) > 1:  # those of experts are complete where they are made
        summed = problem.without_experts.weight_bytes(numbers, trainable=True)
    return mine + summed * (gradient_copies(grid, problem.saving) - 1)


def updated_copies(grid: Grid, saving: Saving, in_units: bool) -> float:
    """How many tensors as large as a weight an update makes for each, before it assigns them.

    0 if units are updated one after the other, which is not in proportion to all weights.
    """
    return 0.0 if in_units else _UPDATED / _sharers(grid, saving)


def _sharers(grid: Grid, saving: Saving) -> int:
    return grid.num_peers if saving.shard_optimizer else 1


def _update_bytes(problem: Problem, grid: Grid, pieces: Sequence[_Piece], trained: int) -> float:
    """Bytes that the optimizer computes for weights of so many bytes before it assigns them."""
    saving, costs = problem.saving, problem.held(grid)
    if problem.compiled_units(grid) is None:
        return trained * updated_copies(grid, saving, in_units=False)
    largest = max(costs.weight_bytes(inside, trainable=True) for _, inside, _ in pieces)
    return _UPDATED_OF_UNIT * largest / _sharers(grid, saving)


def held_slots(costs: Costs, grid: Grid, saving: Saving) -> float:
    """Bytes of optimizer state that a rank holds per byte of trained weights, if that is even."""
    return costs.slots / _sharers(grid, saving)


def _program_bytes(
    problem: Problem, candidate: Candidate, actions: Sequence[Action], pieces: Sequence[_Piece]
) -> int:
    """Bytes of the compiled functions of a partition."""
    in_two = {action.stage for action in actions if action.kind == Kind.FORWARD}
    divided = problem.saving.sequences
    costs = problem.costs if divided is None else problem.spent
    over = costs.overheads
    counts, updated, by_xla = {True: 0.0, False: 0.0}, 0, False
    for stage, inside, is_last in pieces:
        there = slice(inside.start, inside.stop)
        # Sections are traced as one, too.
        apart = stage in in_two or not is_last or divided is not None
        counts[apart] += float(costs.program[there].sum())
        updated += len(costs.trained_sizes(inside))
        by_xla |= bool(costs.by_xla[there].any())
    total = costs.base_bytes + over.program_bytes(counts[False], counts[True], updated)
    total += over.xla * by_xla + over.sums * (candidate.grid.num_peers > 1)
    if divided is not None:
        numbers = {n for _, inside, _ in pieces for n in inside}
        layout = TokenLayout(costs.length or 1, divided.num_chunks)
        kinds = {x.kind for x in costs.attention if x.operation in numbers}
        total += over.trial + over.strip * sum(compiled_strips(x.pattern, layout) for x in kinds)
    units, saving = problem.compiled_units(candidate.grid), problem.saving
    by_engine = units is not None or costs.rewritten or saving != Saving()
    if candidate.is_plain_keras and not by_engine:
        total += over.program_of_keras * counts[False]
    return round(float(total))


def _compiled(problem: Problem, candidate: Candidate, partition: int) -> Iterator[_Piece]:
    """What a partition compiles.

    Of units of a kind the first is compiled.
    """
    units = problem.compiled_units(candidate.grid)
    if units is None:
        for stage in candidate.stages(partition):
            yield stage, candidate.partitioning.operations(stage), True
        return
    boundaries, seen = units.table.boundaries, set()
    for stage in candidate.stages(partition):
        inside = candidate.partitioning.operations(stage)
        unit = bisect.bisect_right(boundaries, inside.start) - 1
        while boundaries[unit] < inside.stop:
            start, stop = boundaries[unit : unit + 2]
            here = range(max(start, inside.start), min(stop, inside.stop))
            # What a cut leaves of a unit is like no other.
            key = (units.kinds[unit], here.start - start, here.stop - start)
            if key not in seen:
                seen.add(key)
                yield stage, here, here.stop == inside.stop
            unit += 1
            if unit == len(units.kinds):
                break
