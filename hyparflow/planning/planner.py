"""Which layout: all pairs of replicas and partitions, micro-batches, schedules and cuts.

For each grid and number of micro-batches the best divisions come from dynamic programming
(`hyparflow.planning.search`), under the memory limit; a simulation of each with each schedule
(`hyparflow.planning.predict`) chooses between them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hyparflow.grid import Grid
from hyparflow.lowering import lower
from hyparflow.partition import divide, make_partitioning
from hyparflow.planning.boundaries import Boundaries
from hyparflow.planning.candidate import Candidate, Problem
from hyparflow.planning.memory import gradient_copies
from hyparflow.planning.predict import Prediction, predict
from hyparflow.planning.search import Division, Fits, Search, rounds_of
from hyparflow.schedule import SCHEDULES, make_schedule
from hyparflow.simulate import play

__all__ = ["Wishes", "best_of", "consider"]

_SIMULATED = 6  # divisions of a layout that are simulated at most
_STAGES = (2, 4)  # per partition of an interleaved schedule
_NEAR = 1.1  # all those of a layout whose first is this much slower than the best, or less


@dataclass(frozen=True)
class Wishes:
    """What the user fixed; None leaves it to the planner.

    Attributes:
        num_ranks: ranks to use, all of them.
        num_partitions, num_replicas, num_microbatches, schedule: as for `hyparflow.parallelize`.
        stages_per_partition: of an interleaved schedule.
        lpp: operations per stage, in place of the search.
        memory_limit: bytes that a rank may use, beyond what it uses before training.
    """

    num_ranks: int
    num_partitions: int | None = None
    num_replicas: int | None = None
    num_microbatches: int | None = None
    schedule: str | None = None
    stages_per_partition: int | None = None
    lpp: tuple[int, ...] | None = None
    memory_limit: int | None = None


def consider(problem: Problem, wishes: Wishes) -> list[Prediction]:
    """The predictions of all layouts worth a simulation, fastest first, whether they fit or not.

    Raises:
        ValueError: if no layout agrees with `wishes`.
    """
    layouts = list(_layouts(problem, wishes))
    divisions = _Divisions(problem, wishes)
    tried = {layout: [divisions.predict(layout, 0)] for layout in layouts}
    if not tried:
        raise ValueError(
            "No layout has at least one row for every replica and one operation for every "
            f"partition. Received: {wishes.num_ranks} ranks, a batch of {problem.batch_size} rows, "
            f"a model of {len(problem.graph.operations)} operations{_decided(wishes)}"
        )
    near = _NEAR * min(_rank(first, wishes) for (first,) in tried.values())[1]
    for layout, found in tried.items():
        if found[0].step_seconds <= near:
            others = range(1, divisions.count(layout))
            found += [divisions.predict(layout, number) for number in others]
    best = [min(found, key=lambda p: _rank(p, wishes)) for found in tried.values()]
    return sorted(best, key=lambda prediction: prediction.step_seconds)


def _decided(wishes: Wishes) -> str:
    """What the user fixed, as text."""
    names = ("num_partitions", "num_replicas", "num_microbatches", "schedule", "lpp")
    given = [f"{n}={getattr(wishes, n)}" for n in names if getattr(wishes, n) is not None]
    return f", and {', '.join(given)}" if given else ""


def _rank(prediction: Prediction, wishes: Wishes) -> tuple[bool, float]:
    """What is less is better: those that fit first, the fastest of them before."""
    limit = wishes.memory_limit
    return limit is not None and _peak(prediction) > limit, prediction.step_seconds


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


def _schedules(wishes: Wishes, grid: Grid, num_microbatches: int) -> Iterator[tuple[str, int]]:
    """Schedules, and how many stages a partition has with each."""
    if grid.num_partitions == 1:
        yield ("1f1b", 1)
        return
    for schedule in SCHEDULES:
        if wishes.schedule not in (None, schedule):
            continue
        if schedule == "zero-bubble" and wishes.schedule is None:
            continue  # its backwards in two parts are not measured
        if schedule == "gpipe" and wishes.schedule is None:
            continue  # takes as long as 1f1b, and more memory
        if schedule != "interleaved":
            yield (schedule, 1)
        elif num_microbatches >= grid.num_partitions or wishes.schedule:
            several = (wishes.stages_per_partition,) if wishes.stages_per_partition else _STAGES
            yield from ((schedule, each) for each in several)


def _layouts(problem: Problem, wishes: Wishes) -> Iterator[_Layout]:
    most = len(problem.graph.operations)
    for grid in _grids(problem, wishes):
        for count in _microbatches(problem, wishes, grid):
            for schedule, each in _schedules(wishes, grid, count):
                num_stages = each * grid.num_partitions
                if num_stages <= most and (not wishes.lpp or len(wishes.lpp) == num_stages):
                    yield _Layout(grid, count, schedule, each)


class _Layout(NamedTuple):
    """A candidate without its cuts."""

    grid: Grid
    num_microbatches: int
    schedule: str
    stages_per_partition: int

    @property
    def num_stages(self) -> int:
        return self.grid.num_partitions * self.stages_per_partition


class _Divisions:
    """The divisions of each layout that are worth a simulation: those that fit, if there are any.

    Args:
        problem: what is to be planned.
        wishes: what the user fixed.
    """

    def __init__(self, problem: Problem, wishes: Wishes) -> None:
        self._problem, self._wishes = problem, wishes
        rows = max(1.0, problem.batch_size / wishes.num_ranks)
        self._boundaries = functools.cache(lambda: Boundaries(problem, rows))
        self._search = functools.lru_cache(2)(self._new_search)  # its matrices are large
        self._free = functools.lru_cache(2)(self._search_freely)
        self._found: dict[_Layout, list[tuple[int, ...]]] = {}

    def count(self, layout: _Layout) -> int:
        """How many there are."""
        return len(self._of(layout))

    def predict(self, layout: _Layout, number: int) -> Prediction:
        """What the division `number` of a layout takes; 0 is the one that should be fastest."""
        partitioning = make_partitioning(self._problem.graph, self._of(layout)[number])
        candidate = Candidate(layout.grid, layout.num_microbatches, layout.schedule, partitioning)
        return predict(self._problem, candidate)

    def _of(self, layout: _Layout) -> list[tuple[int, ...]]:
        if layout not in self._found:
            self._found[layout] = self._divide(layout)
        return self._found[layout]

    def _divide(self, layout: _Layout) -> list[tuple[int, ...]]:
        graph, stages = self._problem.graph, layout.num_stages
        if self._wishes.lpp is not None:
            return [divide(graph, stages, self._wishes.lpp).boundaries]
        if stages == 1:
            return [(0, len(graph.operations))]
        found = self._free(layout._replace(schedule=""))
        fits = self._fits(layout)
        if found and fits is not None and not _all_fit(found[0], fits):
            found = self._search(self._rows(layout)).best(stages, _rounds(layout), fits) or found
        positions = self._boundaries().positions
        if not found:  # too few places to cut at: say so
            return [divide(graph, stages).boundaries]
        return [
            tuple(int(positions[i]) for i in division.boundaries) for division in found[:_SIMULATED]
        ]

    def _search_freely(self, layout: _Layout) -> list[Division]:
        """The divisions that are best without a limit of memory, whatever the schedule."""
        return self._search(self._rows(layout)).best(layout.num_stages, _rounds(layout))

    def _rows(self, layout: _Layout) -> float:
        return self._problem.batch_size / layout.grid.num_replicas / layout.num_microbatches

    def _new_search(self, rows: float) -> Search:
        return Search(self._boundaries().seconds(rows))

    def _fits(self, layout: _Layout) -> Fits | None:
        limit = self._wishes.memory_limit
        if limit is None:
            return None
        grid, count, schedule, each = layout
        timeline = play(lower(make_schedule(schedule, grid.num_partitions, count, each), ()))
        in_flight = timeline.peaks_in_flight()
        most = [in_flight[stage] for stage in range(layout.num_stages)]
        copies = gradient_copies(grid, count)
        return self._boundaries().fits(self._rows(layout), copies, most, each, limit)


def _rounds(layout: _Layout) -> int:
    return rounds_of(
        layout.grid.num_partitions, layout.num_microbatches, layout.stages_per_partition
    )


def _all_fit(division: Division, fits: Fits) -> bool:
    pairs = enumerate(itertools.pairwise(division.boundaries))
    return all(fits(stage, np.array(start), np.array(end)) for stage, (start, end) in pairs)
