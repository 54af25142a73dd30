"""The search for a placement: layer after layer is assigned anew, the others left as they are.

With the other layers fixed, the best assignment of a layer's experts to ranks is a linear sum
assignment, which SciPy solves. Layer by layer this ends in a placement that no single layer can
better. A disturbance of a few layers, and the same again around them, leads on from there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from hyparflow.experts.problem import PlacementProblem
from hyparflow.experts.state import PlacementState
from hyparflow.experts.swaps import LayerTask, improved, repaired

__all__ = ["FoundPlacement", "search_placement"]

_STARTS = 8  # at random, of which the best is taken on
_START_SHARE = 0.4  # of the time, at most, for them
_PATIENCE = 2000  # rounds without a better placement, after which none is expected
_MOST_SWEEPS = 20  # over layers until none is bettered; a few are enough
_MOST_DISTURBED = 3  # layers at a time, and exchanges in each
_NEVER = 1e15  # tokens
_NOTHING = 1e-6  # tokens; less is rounding


@dataclass(frozen=True, eq=False)
class FoundPlacement:
    """What a search found.

    Attributes:
        ranks: layers x placed.
        worth: of `PlacementState`.
        excess: tokens above the limit.
        rounds: how many starts and disturbances there were.
    """

    ranks: np.ndarray
    worth: float
    excess: float
    rounds: int

    @property
    def rating(self) -> tuple[int, float]:
        """The larger the better; to be within the limit comes first."""
        return -round(self.excess), round(self.worth, 3)


def search_placement(
    problem: PlacementProblem,
    balanced: np.ndarray,
    seconds: float,
    seed: int,
    most_rounds: int = 2**63,
) -> FoundPlacement:
    """Look for the placement with the least way for tokens.

    Args:
        problem: what is to be placed.
        balanced: layers x placed; ranks that are within the limit.
        seconds: of the clock; one placement is made in any case.
        seed: of the random numbers.
        most_rounds: the most starts and disturbances; a result that depends on the seed alone.
    """
    end = time.monotonic() + seconds
    search = _Search(problem, balanced, np.random.default_rng(seed), end)
    best = search.start()
    first = time.monotonic() + _START_SHARE * seconds
    if problem.num_layers == 1 or problem.num_ranks == 1:
        most_rounds = 1  # no token has a way between ranks
    while search.rounds < min(_STARTS, most_rounds) and time.monotonic() < first:
        best = max(best, search.start(), key=lambda found: found.rating)
    search.state.restore(best.ranks, best.worth)
    since = 0
    while search.rounds < most_rounds and since < _PATIENCE and time.monotonic() < end:
        found = search.disturbed()
        since = 0 if found.rating > best.rating else since + 1
        if found.rating >= best.rating:
            best = found
        else:
            search.state.restore(best.ranks, best.worth)
    return best


class _Search:
    """The moves of a search, each of which leads to a placement that no single layer betters."""

    def __init__(
        self,
        problem: PlacementProblem,
        balanced: np.ndarray,
        random: np.random.Generator,
        end: float,
    ) -> None:
        self.problem = problem
        self.balanced = balanced
        self.random = random
        self.end = end  # of the time, by the clock
        self.state = PlacementState(problem)
        self.rounds = 0

    def start(self) -> FoundPlacement:
        """A placement from nothing: each layer to suit those before it, then all to suit all."""
        self.state = PlacementState(self.problem)
        layers = range(self.problem.num_layers)
        for layer in layers:
            task = self.state.task(layer)
            first = (
                self.random.permutation(self.problem.slots[0])
                if layer == 0
                else self._assigned(task, layer)
            )
            self.state.put(task, layer, self._within_limit(task, layer, first))
        self._settle(layers)
        return self._found()

    def disturbed(self) -> FoundPlacement:
        """A placement from the one that is there, with a few layers disturbed."""
        count = int(self.random.integers(1, min(_MOST_DISTURBED, self.problem.num_layers) + 1))
        first = int(self.random.integers(0, self.problem.num_layers - count + 1))
        for layer in range(first, first + count):
            ranks = self.state.ranks[layer].copy()
            for _ in range(self.random.integers(1, _MOST_DISTURBED + 1)):
                one, other = self.random.integers(0, len(ranks), 2)
                ranks[one], ranks[other] = ranks[other], ranks[one]
            self.state.put(self.state.task(layer), layer, ranks)
        self._settle(range(max(0, first - 1), min(self.problem.num_layers, first + count + 1)))
        return self._found()

    def _settle(self, layers: Sequence[int]) -> None:
        """Assign these layers anew, over and over, until nothing is bettered, or time is over."""
        for _ in range(_MOST_SWEEPS):
            bettered = False
            for layer in layers:
                if time.monotonic() > self.end:
                    return
                bettered |= self._reassign(layer)
            if not bettered:
                return

    def _reassign(self, layer: int) -> bool:
        """Assign a layer anew; whether that betters it."""
        task, now = self.state.task(layer), self.state.ranks[layer]
        found = self._assigned(task, layer)
        if task.excess(found) > _NOTHING:
            # To better what is within the limit takes less time than to mend what is not.
            is_within = task.excess(now) <= _NOTHING
            found = improved(task, now) if is_within else self._within_limit(task, layer, found)
        if _rating(task, found) <= _rating(task, now):
            return False
        self.state.put(task, layer, found)
        return True

    def _assigned(self, task: LayerTask, layer: int) -> np.ndarray:
        """The best ranks for a layer, whatever the load."""
        slots = self.problem.slots[layer]
        _, chosen = linear_sum_assignment(task.gain[:, slots], maximize=True)
        return slots[chosen]

    def _within_limit(self, task: LayerTask, layer: int, ranks: np.ndarray) -> np.ndarray:
        """Ranks as near to these as the limit allows."""
        if task.excess(ranks) <= _NOTHING:
            return ranks
        found = repaired(task, ranks)
        if task.excess(found) > _NOTHING:
            found = repaired(task, self._balanced(task, layer))
        return improved(task, found)

    def _balanced(self, task: LayerTask, layer: int) -> np.ndarray:
        """Ranks that are within the limit, numbered as suits the other layers."""
        ranks = self.balanced[layer]
        worth = np.zeros((self.problem.num_ranks, self.problem.num_ranks))
        np.add.at(worth, ranks, task.gain)
        sizes = np.bincount(ranks, minlength=self.problem.num_ranks)
        worth[sizes[:, np.newaxis] != sizes] = -_NEVER
        _, renumbered = linear_sum_assignment(worth, maximize=True)
        return renumbered[ranks]

    def _found(self) -> FoundPlacement:
        self.rounds += 1
        state = self.state
        return FoundPlacement(state.ranks.copy(), state.worth, state.excess(), self.rounds)


def _rating(task: LayerTask, ranks: np.ndarray) -> tuple[int, float]:
    return -round(task.excess(ranks)), round(task.worth(ranks), 3)
