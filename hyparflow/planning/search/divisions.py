"""The divisions of a layout into stages that are worth a simulation."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np

from hyparflow.pipeline.grid import Grid
from hyparflow.pipeline.partition import allowed_cuts, divide, stages_between
from hyparflow.pipeline.refine import refine
from hyparflow.pipeline.schedules import make_schedule
from hyparflow.pipeline.simulator import peaks_in_flight
from hyparflow.planning.search.boundaries import Boundaries, Load
from hyparflow.planning.search.cuts import Division, Fits, Search, rounds_of
from hyparflow.planning.search.predict import Prediction
from hyparflow.planning.search.predict_memory import gradient_copies, held_slots, updated_copies
from hyparflow.planning.search.problem import Candidate, Constraints, Problem

__all__ = ["Divisions", "LayoutCandidate"]

_SIMULATED = 6  # largest number of divisions of a layout that are simulated


class LayoutCandidate(NamedTuple):
    """A layout: a candidate without its cuts."""

    grid: Grid
    num_microbatches: int
    schedule: str

    @property
    def num_stages(self) -> int:
        return self.grid.placement.num_stages


class Divisions:
    """The divisions of each layout that are worth a simulation: those that fit, if there are any.

    Args:
        problem: the problem to solve.
        constraints: what the user fixed.
    """

    def __init__(self, problem: Problem, constraints: Constraints) -> None:
        self._problem, self._constraints = problem, constraints
        rows = max(1.0, problem.batch_size / constraints.num_ranks)
        self._boundaries = functools.cache(lambda: Boundaries(problem, rows))
        self._search = functools.lru_cache(16)(self._new_search)  # its matrices are large
        self._search_once = functools.cache(self._search_freely)
        self._fitting = functools.cache(self._search_fitting)
        self._of = functools.cache(self._divide)
        self._balanced = functools.cache(lambda stages: divide(problem.graph, stages).boundaries)

    def bound(self, layout: LayoutCandidate) -> float:
        """An approximate lower bound of the seconds of a step, without sums and memory limit."""
        if self._constraints.options.lpp is not None:
            return 0.0
        free = self._free(layout)
        return free[0].value(_rounds(layout)) if free else 0.0

    def too_large(self, layout: LayoutCandidate) -> bool:
        """Whether no division of a layout seems to fit in memory."""
        chosen = self._constraints.options.lpp is not None or layout.num_stages == 1
        return not (chosen or self._fitting(layout))

    def first(self, layout: LayoutCandidate) -> Prediction:
        """The prediction for the division of a layout that should be fastest."""
        return self._predict(layout, self._of(layout)[0])

    def others(self, layout: LayoutCandidate) -> list[Prediction]:
        """The predictions for the other divisions of a layout."""
        divisions = self._of(layout)
        first, chosen = divisions[0], self._constraints.options.lpp is not None
        if layout.grid.placement.depth > 1 and layout.num_stages > 1 and not chosen:
            divisions = [*divisions, self._refined(first, layout)]
        return [
            self._predict(layout, division)
            for division in dict.fromkeys(divisions[1:])
            if division != first
        ]

    def _predict(self, layout: LayoutCandidate, division: tuple[int, ...]) -> Prediction:
        partitioning = stages_between(self._problem.graph, division)
        candidate = Candidate(layout.grid, layout.num_microbatches, layout.schedule, partitioning)
        return Prediction(self._problem, candidate)

    def _divide(self, layout: LayoutCandidate) -> list[tuple[int, ...]]:
        """The divisions that the search found, the best first."""
        graph, stages = self._problem.graph, layout.num_stages
        if self._constraints.options.lpp is not None:
            return [divide(graph, stages, self._constraints.options.lpp).boundaries]
        if stages == 1:
            return [(0, len(graph.operations))]
        found = self._fitting(layout) or self._free(layout)
        positions = self._boundaries().positions
        if not found:  # too few places to cut: raise the error
            return [self._balanced(stages)]
        divisions = [division.boundaries for division in found[:_SIMULATED]]
        return [tuple(int(positions[i]) for i in boundaries) for boundaries in divisions]

    def _refined(self, division: tuple[int, ...], layout: LayoutCandidate) -> tuple[int, ...]:
        """The boundaries, moved to where a step of the layout's schedule ends sooner."""
        grid, count, schedule = layout
        boundaries, rows = self._boundaries(), self._rows(layout)
        costs = boundaries.operation_seconds(rows), boundaries.crossing_seconds(rows) / 2
        allowed = allowed_cuts(self._problem.graph)
        fused = boundaries.fused_share(rows)
        return refine(division, *costs, allowed, schedule, grid.placement, count, fused)

    def _free(self, layout: LayoutCandidate) -> list[Division]:
        """The divisions that are best without a limit of memory, whatever the schedule."""
        return self._search_once(layout._replace(schedule=""))

    def _search_freely(self, layout: LayoutCandidate) -> list[Division]:
        return self._search(self._rows(layout)).best(layout.num_stages, _rounds(layout))

    def _search_fitting(self, layout: LayoutCandidate) -> list[Division]:
        """The best divisions that fit in memory."""
        free = self._free(layout)
        if self._constraints.memory_limit is None or not free:
            return free
        fits = self._whether_fits(layout, self._constraints.memory_limit)
        if fits is None:
            return []
        if _all_fit(free[0], fits):
            return free
        return self._search(self._rows(layout)).best(layout.num_stages, _rounds(layout), fits)

    def _rows(self, layout: LayoutCandidate) -> float:
        return self._problem.batch_size / layout.grid.num_replicas / layout.num_microbatches

    def _new_search(self, rows: float) -> Search:
        return Search(self._boundaries().seconds(rows))

    def _whether_fits(self, layout: LayoutCandidate, limit: int) -> Fits | None:
        """What fits in the memory of each stage; None if the model cannot fit."""
        grid, count, schedule = layout
        in_flight = peaks_in_flight(make_schedule(schedule, grid.placement, count))
        most = [in_flight[stage] for stage in range(layout.num_stages)]
        saving = self._problem.saving
        in_units = self._problem.compiled_units(grid) is not None
        load = Load(
            rows=self._rows(layout),
            copies=gradient_copies(grid, saving),
            updated=updated_copies(grid, saving, in_units),
            slots=held_slots(self._problem.costs, grid, saving),
            sharers=self._problem.sharers(grid),
            in_flight=most,
            placement=grid.placement,
        )
        return self._boundaries().fits(load, limit)


def _rounds(layout: LayoutCandidate) -> int:
    return rounds_of(layout.grid.placement, layout.num_microbatches)


def _all_fit(division: Division, fits: Fits) -> bool:
    pairs = enumerate(itertools.pairwise(division.boundaries))
    return all(fits.holds(stage, np.array(start), np.array(end)) for stage, (start, end) in pairs)
