"""The best places to cut: dynamic programming over all contiguous divisions.

A pipeline of stages that take t_0 ... t_{P-1} seconds for the forward and backward of a
micro-batch, the receiving of their tensors included, needs about

    sum(t) + (M - 1) max(t)

for M micro-batches: the first goes through all stages, and the slowest stage sets the rate of the
others. `Search.best` finds the division that minimises this exactly; and further divisions with a
smaller sum (less is sent) and a larger maximum, among which a simulator chooses.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from hyparflow.pipeline.placement import Placement

__all__ = ["Division", "Fits", "Search", "rounds_of"]

_TOLERANCE = 1e-3  # relative; two divisions closer than this need not both be found
_CEILINGS = 1.15  # ratio of the first two ceilings that are tried; its square, of the next two


@dataclass(frozen=True)
class Fits:
    """What the stages can hold.

    Attributes:
        holds: whether stage s can hold the operations between boundaries a and b:
            (s, [a], [b]) -> [bool]; the arrays are broadcast.
        longest: stage s holds at most so many parts between two neighbouring boundaries.
    """

    holds: Callable[[int, np.ndarray, np.ndarray], np.ndarray]
    longest: Callable[[int], int]


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
        """The value that is minimised: the sum of all stages, plus `rounds` times the slowest."""
        return self.total + rounds * self.slowest


def rounds_of(placement: Placement, num_microbatches: int) -> int:
    """How often the slowest stage counts beside the sum of all: M - 1 with one stage each.

    With V stages per partition, equal stages of c seconds take (M V + P - 1) c
    (Narayanan et al. 2021, section 2.2), of which the sum is P V c.
    """
    num_partitions = placement.num_partitions
    surplus = num_microbatches - num_partitions
    return max(0, surplus * placement.depth + num_partitions - 1)


class Search:
    """Divisions of a model whose stages take known times.

    Args:
        seconds: the seconds of a stage from candidate a to candidate b, [a, b]; infinite if it is
            not possible.
    """

    def __init__(self, seconds: np.ndarray) -> None:
        self._seconds = seconds
        count = seconds.shape[0]
        self._last = count - 1
        # By end and length: if there are many stages, only short ones matter.
        self._starts = np.arange(count)[:, None] - np.arange(1, count)[None, :]
        self._ends = np.arange(count)[:, None]
        band = seconds[np.maximum(self._starts, 0), self._ends]
        self._band = np.where(self._starts >= 0, band, np.inf)
        self._quickest = self._band.min(axis=0, initial=np.inf)  # the fastest stage of each length
        self._fastest_freely = functools.cache(lambda num_stages: self._fastest(num_stages, None))

    def best(
        self,
        num_stages: int,
        rounds: float,
        fits: Fits | None = None,
        tolerance: float = _TOLERANCE,
    ) -> list[Division]:
        """Divisions into `num_stages` stages; the first is the best.

        Args:
            num_stages: how many stages.
            rounds: how often the slowest stage counts beside the sum; see `rounds_of`.
            fits: whether a stage can hold a part, because of its memory for example.
            tolerance: relative; a division that is better than the best found by less may be
                missed.

        Returns:
            The best division, then others of smaller sums or maxima; nothing if none is possible.
        """
        free = fits is None
        fastest = self._fastest_freely(num_stages) if free else self._fastest(num_stages, fits)
        if fastest is None:
            return []
        whole = float(self._seconds[0, self._last])  # the smallest possible sum: nothing is sent
        least = whole if np.isfinite(whole) else 0.0
        found = [fastest]
        ceiling = np.inf
        while True:
            best = min(division.value(rounds) for division in found)
            # A slower stage than this makes the value worse than the best, whatever the sum.
            bound = (best - least) / rounds if rounds else np.inf
            ceiling = min(bound, ceiling)
            if ceiling < fastest.slowest:
                break
            division = self._trace(num_stages, fits, ceiling, minimax=False)
            if division is None:
                break
            found.append(division)
            if not rounds:
                break
            ceiling = min(ceiling, division.slowest) * (1 - tolerance) - 1e-15
        distinct = {division.boundaries: division for division in found}
        return sorted(distinct.values(), key=lambda division: division.value(rounds))

    def _fastest(self, num_stages: int, fits: Fits | None) -> Division | None:
        """The division whose slowest stage is fastest."""
        whole = float(self._seconds[0, self._last])
        # No stage of all can be faster; ceilings are tried upwards, since low ones are quick to
        # try. Which one succeeds does not matter for what is found.
        ceiling = max(whole / num_stages, self._bottleneck) if np.isfinite(whole) else np.inf
        ratio = _CEILINGS
        while ceiling < whole:
            ceiling, ratio = ceiling * ratio, ratio**2
            division = self._trace(num_stages, fits, ceiling, minimax=True)
            if division is not None:
                return division
        return self._trace(num_stages, fits, np.inf, minimax=True)

    @cached_property
    def _bottleneck(self) -> float:
        """What the slowest stage takes at least: that of the worst place, at its best."""
        at_most = np.minimum.accumulate(self._seconds, axis=0)
        around = np.minimum.accumulate(at_most[:, ::-1], axis=1)[:, ::-1]
        return float(np.diagonal(around, offset=1).max(initial=0.0))

    def _trace(
        self, num_stages: int, fits: Fits | None, ceiling: float, minimax: bool
    ) -> Division | None:
        """The division of the least maximum, or of the least sum, with no stage above `ceiling`."""
        width = int(np.flatnonzero(self._quickest <= ceiling).max(initial=-1)) + 1
        if not width:
            return None
        band = self._band[:, :width]
        cost = np.where(band <= ceiling, band, np.inf)
        add = np.maximum if minimax else np.add
        best = np.full(width + self._last + 1, np.inf)  # by end; none is before the first
        best[width] = 0.0
        before = sliding_window_view(best, width)[:, ::-1]  # by end and length, as the band
        longest = [
            width if fits is None else min(width, fits.longest(s)) for s in range(num_stages)
        ]
        furthest = list(itertools.accumulate(longest, initial=0))
        choices = []
        for stage, length in enumerate(longest):
            left = num_stages - 1 - stage  # stages, each of which holds one part at least
            low = max(stage + 1, self._last - (furthest[-1] - furthest[stage + 1]))
            ends = slice(low, min(furthest[stage + 1], self._last - left) + 1)
            if length < 1 or low >= ends.stop:
                return None
            mine = cost[ends, :length]
            if fits is not None:
                begin = np.maximum(self._starts[ends, :length], 0)
                mine = np.where(fits.holds(stage, begin, self._ends[ends]), mine, np.inf)
            both = add(before[ends, :length], mine)
            nearest = np.argmin(both, axis=1)
            choices.append((low, nearest))
            best.fill(np.inf)
            best[width + low : width + ends.stop] = both[np.arange(len(both)), nearest]
        if not np.isfinite(best[-1]):
            return None
        return self._division(choices)

    def _division(self, choices: list[tuple[int, np.ndarray]]) -> Division:
        """Walk back through what each stage chose for its end: its length, less one."""
        boundaries = [self._last]
        for low, nearest in reversed(choices):
            boundaries.append(boundaries[-1] - 1 - int(nearest[boundaries[-1] - low]))
        boundaries.reverse()
        stages = [self._seconds[pair] for pair in itertools.pairwise(boundaries)]
        return Division(tuple(boundaries), float(sum(stages)), float(max(stages)))
