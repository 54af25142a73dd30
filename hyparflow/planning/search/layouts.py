"""Searches all layouts: replicas and partitions, micro-batches, schedules and cuts.

For each grid and number of micro-batches the best divisions come from dynamic programming
(`hyparflow.planning.search.cuts`), under the memory limit; a simulation of each with each schedule
(`hyparflow.planning.search.predict`) chooses between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from hyparflow.formats.sizes import size_text
from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.schedules import TABLE, placement_of
from hyparflow.planning.search.divisions import Divisions, LayoutCandidate
from hyparflow.planning.search.order import fastest
from hyparflow.planning.search.predict import Prediction
from hyparflow.planning.search.problem import Constraints, Problem
from hyparflow.planning.search.shared_experts import expert_numbers

__all__ = ["best_of", "consider", "fits", "has_layouts", "no_layout"]

_STAGES = (2, 4, 8, 16)  # per partition, where a schedule leaves the number free
_FAR = 1.5  # a layout is left out if even its best division must be slower by this factor
_NAMED = 3  # layers in a message
_NEAR = 1.1  # all divisions are tried of layouts whose first is slower by this factor at most


def consider(
    problem: Problem,
    constraints: Constraints,
    say: Callable[[str], object] = lambda text: None,
) -> list[Prediction]:
    """The predictions of all layouts worth one, in any order, whether they fit or not.

    Args:
        problem: the problem to solve.
        constraints: what the user fixed.
        say: called with a line of progress.

    Raises:
        ValueError: if no layout agrees with `constraints`.
    """
    layouts = list(_layouts(problem, constraints))
    if not layouts:
        raise no_layout(problem, constraints)
    divisions, limit = Divisions(problem, constraints), constraints.memory_limit
    tried = _try_promising(layouts, divisions, constraints, say)
    near = _NEAR * _best([first for (first,) in tried.values()], limit).step_seconds
    for number, (layout, found) in enumerate(tried.items()):
        say(f"moving the cuts of layout {number + 1} of {len(tried)}")
        if found[0].is_within(near) and not divisions.too_large(layout):
            found += divisions.others(layout)
    return [_best(found, limit) for found in tried.values()]


def has_layouts(problem: Problem, constraints: Constraints) -> bool:
    """Whether any layout agrees with `constraints`."""
    return next(_layouts(problem, constraints), None) is not None


def no_layout(problem: Problem, constraints: Constraints) -> ValueError:
    """The error for constraints with which no layout agrees."""
    return ValueError(
        "No layout has at least one row for every replica and micro-batch, and one operation "
        f"for every stage{_other_rules(problem)}. Received: {constraints.num_ranks} ranks, a "
        "batch of "
        f"{problem.batch_size} rows, "
        f"a model of {len(problem.graph.operations)} operations{_decided(constraints)}"
    )


def _other_rules(problem: Problem) -> str:
    """The rules of layouts for mixtures of experts, as the end of a sentence."""
    rules = ""
    if problem.saving.expert_parallel:
        numbers = " and ".join(map(str, expert_numbers(problem.costs)))
        rules += f"; replicas share out experts evenly, so that {numbers} must be a multiple of "
        rules += "their number"
    if problem.balanced:
        rules += f"; {_whole_batches(problem)}"
    return rules


def _whole_batches(problem: Problem) -> str:
    names = ", ".join(map(repr, problem.balanced[:_NAMED]))
    return f"a loss of {names} balances experts over a whole batch, which is one micro-batch"


def _try_promising(
    layouts: Sequence[LayoutCandidate],
    divisions: Divisions,
    constraints: Constraints,
    say: Callable[[str], object],
) -> dict[LayoutCandidate, list[Prediction]]:
    """The first prediction of each layout that may be among the best, and of one per grid."""
    tried: dict[LayoutCandidate, list[Prediction]] = {}
    best = np.inf
    put_off = []
    bounds = {}

    def attempt(layout: LayoutCandidate) -> float:
        """Try a layout; returns the best time so far."""
        first = divisions.first(layout)
        tried[layout] = [first]
        better = first.least_seconds < best and _fits(first, constraints.memory_limit)
        return min(best, first.step_seconds) if better else best

    for number, layout in enumerate(layouts):
        say(f"cutting the model for layout {number + 1} of {len(layouts)}")
        bounds[layout] = divisions.bound(layout)
    for number, layout in enumerate(sorted(layouts, key=bounds.__getitem__)):
        say(f"simulating layout {number + 1} of {len(layouts)}")
        if bounds[layout] > _FAR * best and _has_grid(tried, layout):
            continue
        if divisions.too_large(layout):
            put_off.append(layout)
            continue
        best = attempt(layout)
    for layout in put_off:
        # The search gave each stage of a rank an equal part of its memory; together they may fit.
        if bounds[layout] < best or not _has_grid(tried, layout):
            best = attempt(layout)
    return tried


def _has_grid(tried: dict[LayoutCandidate, list[Prediction]], layout: LayoutCandidate) -> bool:
    return any(other.grid.num_replicas == layout.grid.num_replicas for other in tried)


def _decided(constraints: Constraints) -> str:
    """The arguments that the user fixed, as text."""
    given = [f"{name}={value}" for name, value in constraints.decided.items()]
    return f", and {', '.join(given)}" if given else ""


def _best(predictions: Sequence[Prediction], memory_limit: int | None) -> Prediction:
    """The fastest that fits in memory; if none does, the fastest."""
    if len(predictions) == 1:
        return predictions[0]
    return fastest([p for p in predictions if _fits(p, memory_limit)] or predictions)


def fits(predictions: Sequence[Prediction], memory_limit: int | None) -> bool:
    """Whether any of the layouts fits in memory."""
    return any(_fits(prediction, memory_limit) for prediction in predictions)


def best_of(predictions: Sequence[Prediction], memory_limit: int | None) -> Prediction:
    """The best prediction that fits in memory.

    Raises:
        ValueError: if none fits; it names the layout that comes nearest, and what would help.
    """
    fitting = [prediction for prediction in predictions if _fits(prediction, memory_limit)]
    if fitting:
        return fastest(fitting)
    raise ValueError(_does_not_fit(min(predictions, key=_peak), memory_limit or 0))


def _fits(prediction: Prediction, memory_limit: int | None) -> bool:
    return memory_limit is None or _peak(prediction) <= memory_limit


def _peak(prediction: Prediction) -> int:
    return max(memory.total for memory in prediction.memory)


def _does_not_fit(nearest: Prediction, limit: int) -> str:
    totals = [memory.total for memory in nearest.memory]
    partition = totals.index(max(totals))
    memory, grid = nearest.memory[partition], nearest.candidate.grid
    held = memory.weights + memory.slots + memory.gradients + memory.program
    fixed = max(held, memory.around)
    words = (nearest.candidate.in_words, nearest.saving.in_words(grid.num_peers))
    schedule = "".join(f", {text}" for text in words if text)
    if fixed > limit:
        help_ = (
            f"A smaller batch would not help: without activations and buffers it needs "
            f"{size_text(fixed)}. A larger limit is needed"
        )
    else:
        share = (limit - fixed) / max(1, memory.total - fixed)
        help_ = (
            f"A batch of about {max(0.01, share):.0%} of this size would fit, or more partitions"
        )
        whole = nearest.problem.balanced
        help_ += f" ({_whole_batches(nearest.problem)})" if whole else ", or more micro-batches"
    return (
        "No layout fits in the memory limit. "
        f"Received: memory_limit={limit:,} bytes ({size_text(limit)}); the nearest layout, "
        f"{grid.in_words}, micro-batches: "
        f"{nearest.candidate.num_microbatches}{schedule}, needs "
        f"{memory.total:,} bytes ({size_text(memory.total)}) on partition {partition}: "
        f"weights {size_text(memory.weights)}, gradients {size_text(memory.gradients)}, optimizer "
        f"slots {size_text(memory.slots)}, activations {size_text(memory.activations)}, updates "
        f"{size_text(memory.updates)}, buffers {size_text(memory.buffers)}, compiled program "
        f"{size_text(memory.program)}; before and after the steps {size_text(memory.around)}. "
        f"{help_}."
    )


def _grids(problem: Problem, constraints: Constraints) -> Iterator[Grid]:
    shares, experts = problem.saving.expert_parallel, expert_numbers(problem.costs)
    for partitions in range(1, min(constraints.num_ranks, len(problem.graph.operations)) + 1):
        shards = problem.saving.num_shards
        replicas = constraints.num_ranks // partitions // shards
        if (
            replicas * partitions * shards == constraints.num_ranks
            and constraints.options.num_partitions in (None, partitions)
            and constraints.options.num_replicas in (None, replicas)
            and replicas <= problem.batch_size
            and not (shares and any(number % replicas for number in experts))
        ):
            yield Grid(num_partitions=partitions, num_replicas=replicas, num_shards=shards)


def _microbatches(problem: Problem, constraints: Constraints, grid: Grid) -> list[int]:
    """Powers of two, up to one row each; 1 where a loss is of a whole batch."""
    if problem.balanced and constraints.options.num_microbatches not in ("auto", 1):
        return []
    if problem.balanced:
        return [1]
    rows = problem.batch_size // grid.num_replicas
    if isinstance(count := constraints.options.num_microbatches, int):
        return [count] if count <= rows else []
    return [2**power for power in range(rows.bit_length()) if 2**power <= min(rows, 256)]


def _schedules(
    constraints: Constraints, grid: Grid, num_microbatches: int
) -> Iterator[tuple[str, int | None]]:
    """Schedules, and how many stages a partition has with each; None for the usual number."""
    if grid.num_partitions == 1:
        yield ("1f1b", None)
        return
    wanted, several = constraints.options.schedule, constraints.options.stages_per_partition
    for schedule, entry in TABLE.items():
        if wanted != schedule and not (wanted == "auto" and entry.is_searched):
            continue
        if not entry.free:
            yield (schedule, None)
        elif num_microbatches >= grid.num_partitions or wanted != "auto":
            yield from ((schedule, each) for each in ([several] if several else _STAGES))


def _layouts(problem: Problem, constraints: Constraints) -> Iterator[LayoutCandidate]:
    most = len(problem.graph.operations)
    for grid in _grids(problem, constraints):
        for count in _microbatches(problem, constraints, grid):
            for schedule, each in _schedules(constraints, grid, count):
                if (each or 1) * grid.num_partitions > most:
                    continue
                placement = placement_of(schedule, grid.num_partitions, each)
                lpp = constraints.options.lpp
                fits = lpp is None or len(lpp) == placement.num_stages
                if fits and placement.num_stages <= most:
                    placed = dataclasses.replace(grid, placement=placement)
                    yield LayoutCandidate(placed, count, schedule)
