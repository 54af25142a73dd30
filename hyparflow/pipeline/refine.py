"""Moves cuts to where a step of a schedule ends sooner.

If each partition has one stage, stages of equal cost are best. If it has several, ranks take
turns: the last stage runs forward and backward at once while the others, which have only forwards
left, wait for it; so the last stage should be small, and the other ranks' stages larger. Which
sizes are best depends on the schedule, so the schedule is played.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from hyparflow.pipeline.actions import Kind
from hyparflow.pipeline.placement import Placement
from hyparflow.pipeline.schedules import Schedule, group_size, make_schedule

__all__ = ["refine", "step_lengths"]

# Of a stage's cost: a backward takes twice as long as its forward.
_SHARES = {
    Kind.FORWARD: 1 / 3,
    Kind.BACKWARD: 2 / 3,
    Kind.INPUT_BACKWARD: 1 / 3,
    Kind.WEIGHT_BACKWARD: 1 / 3,
}
_FUSED = 0.92  # of the last stage's cost, if its forward and backward are one call
_STEPS = (1, 2, 4, 8)  # places by which cuts move
_BETTER = 1e-4  # relative gain below which cuts do not move
_GROUPS = 3  # of micro-batches that are played
_MOST = 2e8  # computations that may be played, which takes seconds


def refine(
    boundaries: Sequence[int],
    costs: Sequence[float] | np.ndarray,
    crossing: Sequence[float] | np.ndarray,
    allowed: Sequence[bool],
    schedule: str,
    placement: Placement,
    num_microbatches: int,
    fused: float = _FUSED,
) -> tuple[int, ...]:
    """Boundaries at which a step ends sooner than at those given, or these.

    Moves runs of neighbouring cuts, the best move first, until none is better.

    Args:
        boundaries: of the stages, from 0 to the number of operations.
        costs: of each operation.
        crossing: what a cut at each boundary 0..n costs the stages at either end of it.
        allowed: whether a cut may stand at each boundary 0..n.
        schedule: its name.
        placement: of the stages.
        num_microbatches: M.
        fused: the time of the last stage's forward and backward in one call, over its cost.

    Returns:
        As many boundaries.
    """
    places = np.flatnonzero([True, *allowed[1:-1], True])
    before = np.concatenate([[0.0], np.cumsum(np.asarray(costs, float))])[places]
    first = at = np.searchsorted(places, boundaries)
    ends = np.asarray(crossing, float)[places]

    def sizes(tried: np.ndarray) -> np.ndarray:
        """What stages cost: (stage, division)."""
        inner = np.where((tried == 0) | (tried == len(places) - 1), 0.0, ends[tried])
        costs = (np.diff(before[tried], axis=1) + inner[:, 1:] + inner[:, :-1]).T
        costs[-1] *= fused if length.fuses else 1.0
        return costs

    moves = _moves(len(boundaries) - 1)
    length = _Length(schedule, placement, num_microbatches)
    best = np.inf
    for _ in range(int(_MOST / (length.count * len(moves) or 1))):
        tried = np.concatenate([at[None], at + moves])
        tried = tried[(np.diff(tried, axis=1) > 0).all(axis=1)]
        lengths = length(sizes(tried))
        chosen = int(np.argmin(lengths))
        if lengths[chosen] > best * (1 - _BETTER):
            break
        best, at = lengths[chosen], tried[chosen]
    if (at == first).all() or not length.is_less(sizes(np.stack([at, first]))):
        return tuple(boundaries)
    return tuple(int(place) for place in places[at])


class _Length:
    """How long a step takes; of many micro-batches only some are played.

    In the middle of a step each group of micro-batches takes the same time: what one group more
    adds to a step, and at least the time of the rank that computes most.

    Attributes:
        count: how many computations are played for a division.
        fuses: whether backwards are whole, so that the last stage's can be one with its forward.
    """

    def __init__(self, schedule: str, placement: Placement, microbatches: int) -> None:
        def make(microbatches: int) -> Schedule:
            return make_schedule(schedule, placement, microbatches)

        self._placement = placement
        self._group = group = group_size(placement.num_partitions)
        most = _GROUPS * group + microbatches % group
        self._left = max(0, microbatches - most) // group  # groups that are not played
        played = microbatches - self._left * group
        self._make_all = lambda: make(microbatches)  # for the last comparison only
        self._played = make(played)
        self._without = make(max(0, played - group))
        self.count = sum(map(len, self._played)) * (2 if self._left else 1)
        kinds = {action.kind for actions in self._played for action in actions}
        self.fuses = Kind.BACKWARD in kinds

    def __call__(self, costs: np.ndarray) -> np.ndarray:
        lengths = step_lengths(self._played, costs)
        if self._left:
            one = lengths - step_lengths(self._without, costs)
            of_ranks = np.zeros((self._placement.num_partitions, costs.shape[1]))
            np.add.at(of_ranks, list(self._placement.partitions), costs)
            one = np.maximum(one, self._group * of_ranks.max(axis=0))
            lengths = lengths + self._left * one
        return lengths

    def is_less(self, costs: np.ndarray) -> bool:
        """Whether the first of two divisions is better, all micro-batches played."""
        one, other = step_lengths(self._make_all(), costs)
        return bool(one < other)


def _moves(num_stages: int) -> np.ndarray:
    """Changes of boundaries, a row each: runs of 1, 2, 4, ... neighbours move together."""
    rows = []
    lengths = [2**power for power in range((num_stages - 1).bit_length())]
    for length in lengths:
        for start in range(1, num_stages - length + 1):
            row = np.zeros(num_stages + 1, int)
            row[start : start + length] = 1
            rows += [sign * step * row for step, sign in itertools.product(_STEPS, (1, -1))]
    return np.array(rows).reshape(-1, num_stages + 1)


def step_lengths(schedule: Schedule, costs: np.ndarray) -> np.ndarray:
    """How long a step takes, without messages and update, for several divisions at a time.

    Args:
        schedule: one list of actions per partition.
        costs: of each stage's forward and backward of a micro-batch: (stage, division).

    Returns:
        (division,).
    """
    last = len(costs) - 1
    clocks = [np.zeros(costs.shape[1]) for _ in schedule]
    ends: dict[tuple[int, bool, int], np.ndarray] = {}  # stage, whether forward, micro-batch
    queues = [list(reversed(actions)) for actions in schedule]
    times = {kind: share * costs for kind, share in _SHARES.items()}
    while any(queues):
        for rank, queue in enumerate(queues):
            while queue:
                stage, kind, m = queue[-1]
                forward = kind is Kind.FORWARD
                needed = (stage + (-1 if forward else 1), forward, m)
                waits = kind is not Kind.WEIGHT_BACKWARD and 0 <= needed[0] <= last
                if waits and needed not in ends:
                    break
                if waits:
                    clocks[rank] = np.maximum(clocks[rank], ends[needed])
                clocks[rank] = clocks[rank] + times[kind][stage]
                if kind is not Kind.WEIGHT_BACKWARD:
                    ends[stage, forward, m] = clocks[rank]
                queue.pop()
    return np.max(clocks, axis=0)
