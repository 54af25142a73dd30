"""Which layout: all pairs of replicas and partitions, micro-batches, schedules and cuts.

For each grid and number of micro-batches the best divisions come from dynamic programming
(`hyparflow.planning.search`), under the memory limit; a simulation of each with each schedule
(`hyparflow.planning.predict`) chooses between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hyparflow.actions import Kind
from hyparflow.grid import Grid
from hyparflow.lowering import lower
from hyparflow.partition import Partitioning, allowed_cuts, divide, make_partitioning
from hyparflow.planning.candidate import Candidate, Problem
from hyparflow.planning.predict import Prediction, predict
from hyparflow.planning.search import best_cuts, candidates, rounds_of, stage_seconds
from hyparflow.schedule import SCHEDULES, make_schedule
from hyparflow.simulate import play

__all__ = ["Wishes", "best_of", "consider"]

_CANDIDATES = 1024  # boundaries that the search looks at
_SIMULATED = 6  # divisions of a grid and schedule that are simulated


@dataclass(frozen=True)
class Wishes:
    """What the user fixed; None leaves it to the planner.

    Attributes:
        num_ranks: ranks to use, all of them.
        num_partitions, num_replicas, num_microbatches, schedule: as for `hyparflow.parallelize`.
        lpp: operations per partition, in place of the search.
        memory_limit: bytes that a rank may use, beyond what it uses before training.
    """

    num_ranks: int
    num_partitions: int | None = None
    num_replicas: int | None = None
    num_microbatches: int | None = None
    schedule: str | None = None
    lpp: tuple[int, ...] | None = None
    memory_limit: int | None = None


def consider(problem: Problem, wishes: Wishes) -> list[Prediction]:
    """The predictions of all layouts worth a simulation, fastest first, whether they fit or not.

    Raises:
        ValueError: if no layout agrees with `wishes`.
    """
    found = []
    for grid in _grids(problem, wishes):
        for count in _microbatches(problem, wishes, grid):
            found += _best_of_grid(problem, wishes, grid, count)
    if not found:
        raise ValueError(
            "No layout has at least one row for every replica and one operation for every "
            f"partition. Received: {wishes.num_ranks} ranks, a batch of {problem.batch_size} rows, "
            f"a model of {len(problem.graph.operations)} operations and {wishes}"
        )
    return sorted(found, key=lambda prediction: prediction.step_seconds)


def best_of(predictions: Sequence[Prediction], memory_limit: int | None) -> Prediction:
    """The fastest of those that fit in memory.

    Raises:
        ValueError: if none fits; it names the layout that comes nearest, and what would help.
    """
    for prediction in predictions:
        if memory_limit is None or _peak(prediction) <= memory_limit:
            return prediction
    raise ValueError(_does_not_fit(min(predictions, key=_peak), memory_limit or 0))


def _peak(prediction: Prediction) -> int:
    return max(memory.total for memory in prediction.memory)


def _does_not_fit(nearest: Prediction, limit: int) -> str:
    totals = [memory.total for memory in nearest.memory]
    partition = totals.index(max(totals))
    memory, grid = nearest.memory[partition], nearest.candidate.grid
    fixed = memory.weights + memory.slots + memory.gradients + memory.program
    if fixed > limit:
        help_ = "What does not depend on the batch alone takes more: a larger limit is needed"
    else:
        share = (limit - fixed) / max(1, memory.total - fixed)
        help_ = (
            f"A batch of about {max(0.01, share):.0%} of this size would fit, or more partitions, "
            "or more micro-batches"
        )
    return (
        "No layout fits in the memory limit. "
        f"Received: memory_limit={limit:,} bytes; the nearest layout ({grid.num_replicas} replicas "
        f"x {grid.num_partitions} partitions, {nearest.candidate.num_microbatches} micro-batches, "
        f"{nearest.candidate.schedule}) needs {memory.total:,} bytes on partition {partition}: "
        f"weights {memory.weights:,}, gradients {memory.gradients:,}, optimizer slots "
        f"{memory.slots:,}, activations {memory.activations:,}, buffers {memory.buffers:,}, "
        f"compiled program {memory.program:,}. "
        f"{help_}."
    )


def _grids(problem: Problem, wishes: Wishes) -> Iterator[Grid]:
    for partitions in range(1, wishes.num_ranks + 1):
        replicas = wishes.num_ranks // partitions
        if (
            replicas * partitions == wishes.num_ranks
            and wishes.num_partitions in (None, partitions)
            and wishes.num_replicas in (None, replicas)
            and replicas <= problem.batch_size
            and partitions <= len(problem.graph.operations)
        ):
            yield Grid(num_partitions=partitions, num_replicas=replicas)


def _microbatches(problem: Problem, wishes: Wishes, grid: Grid) -> list[int]:
    """Powers of two, up to one row each."""
    if wishes.num_microbatches is not None:
        return [wishes.num_microbatches]
    rows = problem.batch_size // grid.num_replicas
    return [2**power for power in range(rows.bit_length()) if 2**power <= min(rows, 256)]


def _best_of_grid(
    problem: Problem, wishes: Wishes, grid: Grid, num_microbatches: int
) -> list[Prediction]:
    """The fastest division with each schedule, and the fastest of those that fit."""
    found = []
    for schedule in _schedules(wishes, grid):
        tried = [
            predict(problem, Candidate(grid, num_microbatches, schedule, partitioning))
            for partitioning in _divisions(problem, wishes, grid, num_microbatches, schedule)
        ]
        tried.sort(key=lambda prediction: prediction.step_seconds)
        limit = wishes.memory_limit
        fitting = [p for p in tried if limit is None or _peak(p) <= limit]
        found += (fitting or tried)[:1]
    return found


def _schedules(wishes: Wishes, grid: Grid) -> list[str]:
    if wishes.schedule is not None:
        return [wishes.schedule]
    return ["1f1b"] if grid.num_partitions == 1 else list(SCHEDULES)


def _divisions(
    problem: Problem, wishes: Wishes, grid: Grid, num_microbatches: int, schedule: str
) -> Iterator[Partitioning]:
    """Divisions worth a simulation: those that fit if there are any."""
    graph, count = problem.graph, len(problem.graph.operations)
    if wishes.lpp is not None:
        if len(wishes.lpp) == grid.num_partitions:
            yield divide(graph, grid.num_partitions, wishes.lpp)
        return
    if grid.num_partitions == 1:
        yield make_partitioning(graph, (0, count))
        return
    rows = problem.batch_size / grid.num_replicas / num_microbatches
    times = problem.costs.times(rows)
    seconds = (times.forward + times.backward) / problem.cluster.speed
    reads = _reads(problem, rows)
    crossing = _crossing(reads, count)
    positions = candidates(seconds, crossing, allowed_cuts(graph), _CANDIDATES)
    cost = stage_seconds(seconds, reads, positions)
    cost += problem.costs.overheads.call * 2 / problem.cluster.speed
    rounds = rounds_of(grid.num_partitions, num_microbatches)
    sizes = _stage_memory(problem, wishes, grid, num_microbatches, schedule, positions)
    limit = wishes.memory_limit
    fitting = [cost if limit is None else np.where(size <= limit, cost, np.inf) for size in sizes]
    found = best_cuts(fitting, rounds) or best_cuts([cost] * grid.num_partitions, rounds)
    for division in found[:_SIMULATED]:
        boundaries = tuple(int(positions[index]) for index in division.boundaries)
        yield make_partitioning(graph, boundaries)


def _reads(problem: Problem, rows: float) -> list[tuple[int, list[int], float]]:
    """Who makes and who reads each tensor, and what moving it and its gradient takes."""
    graph, cluster, over = problem.graph, problem.cluster, problem.costs.overheads
    makers = {n: index for index, op in enumerate(graph.operations) for n in op.outputs}
    readers: dict[int, list[int]] = {}
    for index, operation in enumerate(graph.operations):
        for number in operation.inputs:
            readers.setdefault(number, []).append(index)
    for number in graph.outputs:  # the loss sits in the last stage
        readers.setdefault(number, []).append(len(graph.operations) - 1)
    link = cluster.within if cluster.ranks_per_node > 1 else cluster.between
    reads = []
    for number, maker in makers.items():
        size = float(problem.costs.tensors[number]) * rows
        price = link.seconds(size) + 2 * over.message / cluster.speed
        price *= 2 if number in graph.gradient_tensors else 1
        reads.append((maker, sorted(set(readers.get(number, []))), price))
    return reads


def _crossing(reads: list[tuple[int, list[int], float]], count: int) -> np.ndarray:
    """What a cut at each boundary 0..count costs."""
    change = np.zeros(count + 2)
    for maker, readers, price in reads:
        if readers:
            change[maker + 1] += price
            change[readers[-1] + 1] -= price
    return np.cumsum(change)[: count + 1]


def _stage_memory(
    problem: Problem,
    wishes: Wishes,
    grid: Grid,
    num_microbatches: int,
    schedule: str,
    positions: np.ndarray,
) -> Iterator[np.ndarray]:
    """For each stage, the bytes that it takes from candidate a to candidate b, [a, b].

    Never less than `partition_memory` says: a weight used twice in a stage is counted twice.
    """
    costs = problem.costs
    everything = range(len(costs.operations))
    trained = costs.weight_bytes(everything, trainable=True)
    fixed = costs.weight_bytes(everything) + round(trained * costs.slots) + costs.overheads.runtime
    program = costs.program * costs.overheads.program
    several = num_microbatches > 1 or grid.num_replicas > 1
    mine = [costs.weight_bytes(range(i, i + 1), trainable=True) for i in everything]
    rows = problem.batch_size / grid.num_replicas / num_microbatches
    gradients = _between(mine, positions) * (3 if several else 1)
    gradients += _between(program, positions)
    kept, held = (_between(sizes * rows, positions) for sizes in (costs.kept, costs.held))
    working = float(costs.working.max() * rows)
    actions = make_schedule(schedule, grid.num_partitions, num_microbatches)
    timeline = play(lower(actions, ()))
    for stage in range(grid.num_partitions):
        fused = any(span.step.kind == Kind.FUSED for span in timeline.spans[stage])
        yield (
            fixed + gradients + timeline.peak_in_flight(stage) * (kept if fused else held) + working
        )


def _between(values: Sequence[float] | np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The sums of `values` from position a to position b, [a, b]."""
    before = np.concatenate([[0.0], np.cumsum(values)])[positions]
    return before[None, :] - before[:, None]
