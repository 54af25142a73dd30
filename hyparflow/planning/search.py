"""The best places to cut: dynamic programming over all contiguous divisions.

A pipeline of stages that take t_0 ... t_{P-1} seconds for the forward and backward of a
micro-batch, the receiving of their tensors included, needs about

    sum(t) + (M - 1) max(t)

for M micro-batches: the first goes through all stages, the others follow at the pace of the
slowest. `best_cuts` finds the division that minimises this exactly; and with it the divisions
that trade a smaller sum (less is sent) for a larger maximum, for a simulator to choose from.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Division", "best_cuts", "candidates", "rounds_of", "stage_seconds"]

_TOLERANCE = 1e-3  # relative; two divisions closer than this need not both be found


@dataclass(frozen=True)
class Division:
    """A division into stages, by the indices of its boundaries among the candidates.

    Attributes:
        boundaries: from 0 to the last candidate.
        total: the sum of the stages' seconds.
        slowest: the seconds of the slowest.
    """

    boundaries: tuple[int, ...]
    total: float
    slowest: float

    def value(self, rounds: float) -> float:
        """What is minimised: the first micro-batch's way, and `rounds` more of the slowest."""
        return self.total + rounds * self.slowest


def rounds_of(num_partitions: int, num_microbatches: int, stages_per_partition: int = 1) -> int:
    """How often the slowest stage counts beside the sum of all: M - 1 with one stage each.

    With V stages per partition, equal stages of c seconds take (M V + P - 1) c
    (Narayanan et al. 2021, section 2.2), of which the sum is P V c.
    """
    surplus = num_microbatches - num_partitions
    return max(0, surplus * stages_per_partition + num_partitions - 1)


def candidates(
    seconds: Sequence[float] | np.ndarray,
    crossing: Sequence[float] | np.ndarray,
    allowed: Sequence[bool],
    limit: int,
) -> np.ndarray:
    """The boundaries worth looking at: all allowed ones, or `limit` of them.

    In a model of thousands of operations most take next to no time. Neighbours that are less than
    1 / `limit` of the model apart are represented by the one that the fewest bytes cross.

    Args:
        seconds: of each of n operations.
        crossing: bytes that cross each boundary 0..n.
        allowed: whether a cut may stand at each boundary 0..n.
        limit: how many to return at most, about.
    """
    count = len(seconds)
    inner = np.flatnonzero(np.asarray(allowed)[1:count]) + 1
    if len(inner) > limit:
        before = np.concatenate([[0.0], np.cumsum(seconds)])
        bins = np.floor(before[inner] / max(before[-1], 1e-30) * limit).astype(int)
        order = np.lexsort((np.asarray(crossing)[inner], bins))  # cheapest of each bin first
        _, first = np.unique(bins[order], return_index=True)
        inner = np.sort(inner[order[first]])
    return np.concatenate([[0], inner, [count]])


def stage_seconds(
    seconds: Sequence[float],
    reads: Sequence[tuple[int, Sequence[int], float]],
    positions: np.ndarray,
) -> np.ndarray:
    """What a stage from candidate a to candidate b takes, as a matrix [a, b]; infinite if b <= a.

    Args:
        seconds: of each operation.
        reads: of each tensor, the operation that makes it (-1: an input), those that read it, in
            order, and the seconds that sending it to another stage takes, gradient included.
        positions: boundaries that may be used, from 0 to n.
    """
    before = np.concatenate([[0.0], np.cumsum(seconds)])[positions]
    cost = before[None, :] - before[:, None]
    # A tensor is received once by a stage that starts after its maker and holds a reader of it:
    # from the first reader in the stage on, whatever else the stage holds.
    received = np.zeros((len(positions), len(positions) + 1))
    for maker, readers, price in reads:
        if not readers or maker < 0:
            continue
        low = int(np.searchsorted(positions, maker, side="right"))
        ends = np.searchsorted(positions, readers, side="right")
        starts = np.searchsorted(positions, readers, side="right") - 1
        for start in range(low, int(starts[-1]) + 1):
            following = int(np.searchsorted(starts, start))
            received[start, ends[following]] += price
    cost += np.cumsum(received, axis=1)[:, :-1]
    cost[np.tril_indices(len(positions))] = np.inf
    return cost


def best_cuts(
    costs: Sequence[np.ndarray], rounds: float, tolerance: float = _TOLERANCE
) -> list[Division]:
    """Divisions into as many stages as there are `costs`; the first is the best.

    Args:
        costs: for each stage, the seconds of holding operations from candidate a to candidate b,
            [a, b]; infinite where that is not possible, because of its memory for example.
        rounds: how often the slowest stage counts beside the sum; see `rounds_of`.
        tolerance: relative; a division that is better than the best found by less may be missed.

    Returns:
        The best division, then others of smaller sums or maxima; nothing if none is possible.
    """
    fastest = _fastest(costs)
    if fastest is None:
        return []
    last = costs[0].shape[0] - 1
    least = min(float(cost[0, last]) for cost in costs)  # of any sum: nothing is sent
    least = least if np.isfinite(least) else 0.0
    found = [fastest]
    ceiling = np.inf
    while True:
        best = min(division.value(rounds) for division in found)
        # A slower stage than this makes the value worse than the best, whatever the sum.
        bound = (best - least) / rounds if rounds else np.inf
        ceiling = min(bound, ceiling)
        if ceiling < fastest.slowest:
            break
        division = _trace(costs, minimax=False, ceiling=ceiling)
        if division is None:
            break
        found.append(division)
        if not rounds:
            break
        ceiling = min(ceiling, division.slowest) * (1 - tolerance) - 1e-15
    distinct = {division.boundaries: division for division in found}
    return sorted(distinct.values(), key=lambda division: division.value(rounds))


def _fastest(costs: Sequence[np.ndarray]) -> Division | None:
    """The division whose slowest stage is fastest."""
    last = costs[0].shape[0] - 1
    whole = float(costs[0][0, last])
    # Equal stages would take this; try ceilings from there on, for low ones are quick.
    ceiling = whole / len(costs) if np.isfinite(whole) else np.inf
    while ceiling < whole:
        ceiling *= 2
        division = _trace(costs, minimax=True, ceiling=ceiling)
        if division is not None:
            return division
    return _trace(costs, minimax=True, ceiling=np.inf)


class _Band:
    """A cost matrix as what ends at each candidate: [end, how many candidates before it starts]."""

    def __init__(self, cost: np.ndarray, ceiling: float) -> None:
        count = cost.shape[0]
        usable = np.isfinite(cost) & (cost <= ceiling)
        starts, ends = np.nonzero(usable)
        width = int((ends - starts).max(initial=1))
        self.starts = np.arange(count)[:, None] - np.arange(1, width + 1)[None, :]
        self.cost = np.full((count, width), np.inf)
        self.cost[ends, ends - starts - 1] = cost[starts, ends]


def _trace(costs: Sequence[np.ndarray], minimax: bool, ceiling: float) -> Division | None:
    """The division of the least maximum, or of the least sum, with no stage above `ceiling`."""
    last = costs[0].shape[0] - 1
    bands: dict[int, _Band] = {}
    best = np.where(costs[0][0] <= ceiling, costs[0][0], np.inf)
    choices = []
    everything = np.arange(last + 1)
    for cost in costs[1:]:
        if id(cost) not in bands:
            bands[id(cost)] = _Band(cost, ceiling)
        band = bands[id(cost)]
        before = best[np.maximum(band.starts, 0)]
        both = np.maximum(before, band.cost) if minimax else before + band.cost
        nearest = np.argmin(both, axis=1)
        choices.append(band.starts[everything, nearest])
        best = both[everything, nearest]
    if not np.isfinite(best[last]):
        return None
    boundaries = [last]
    for choice in reversed(choices):
        boundaries.append(int(choice[boundaries[-1]]))
    boundaries.append(0)
    boundaries.reverse()
    pairs = enumerate(itertools.pairwise(boundaries))
    stages = [costs[stage][start, end] for stage, (start, end) in pairs]
    return Division(tuple(boundaries), float(sum(stages)), float(max(stages)))
