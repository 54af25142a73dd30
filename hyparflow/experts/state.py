"""A placement while it is searched for: which rank each expert is on, and what that is worth."""

from __future__ import annotations

import numpy as np

from hyparflow.experts.problem import PlacementProblem
from hyparflow.experts.swaps import LayerTask

__all__ = ["PlacementState"]


class PlacementState:
    """The ranks of all experts; at first no layer is placed.

    Args:
        problem: what is to be placed.

    Attributes:
        ranks: layers x placed; -1 in layers that are not placed yet. Written by `put` alone.
        worth: how many tokens stay on their rank between layers; near ranks count in part.
    """

    def __init__(self, problem: PlacementProblem) -> None:
        self.problem = problem
        self.ranks = np.full((problem.num_layers, problem.num_placed), -1)
        self.worth = 0.0
        nodes = problem.num_ranks + self.ranks.size
        self._where = np.zeros((nodes, problem.num_ranks))  # 1 where a node is
        self._where[: problem.num_ranks] = np.eye(problem.num_ranks)

    def task(self, layer: int) -> LayerTask:
        """A layer, with the others as they are."""
        problem = self.problem
        gain = (problem.pairs[layer] @ self._where) @ problem.nearness
        base = problem.other_loads[layer] @ self._where
        return LayerTask(gain, problem.own_loads[layer], base, problem.limit)

    def put(self, task: LayerTask, layer: int, ranks: np.ndarray) -> None:
        """Place a layer; `task` is that of the layer as the others are now."""
        before = self.ranks[layer]
        self.worth += task.worth(ranks) - (task.worth(before) if before[0] >= 0 else 0.0)
        self.ranks[layer] = ranks
        rows = self._where[self.problem.nodes(layer)]
        rows[:] = 0.0
        rows[np.arange(len(ranks)), ranks] = 1.0

    def excess(self) -> float:
        """The tokens above the limit, over all layers and ranks."""
        loads = self.problem.loads @ self._where
        return float(np.maximum(loads - self.problem.limit, 0.0).sum())

    def restore(self, ranks: np.ndarray, worth: float) -> None:
        """Go back to a placement that was there before."""
        problem = self.problem
        self.ranks[:] = ranks
        self.worth = worth
        self._where[problem.num_ranks :] = np.eye(problem.num_ranks)[ranks.ravel()]
