"""Exchanges of two experts of a layer, to bring ranks within their load, or tokens nearer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["LayerTask", "improved", "repaired"]

_NOTHING = 1e-9  # what is nearer is rounding


@dataclass(frozen=True, eq=False)
class LayerTask:
    """One layer, with the other layers as they are.

    Attributes:
        gain: placed x ranks; what an expert is worth on a rank.
        visits: loads x placed; the tokens that an expert brings, in its layer and in others that
            depend on where it is.
        base: loads x ranks; the tokens that a rank computes whatever is placed where.
        limit: the most tokens of a rank.
    """

    gain: np.ndarray
    visits: np.ndarray
    base: np.ndarray
    limit: float

    def worth(self, ranks: np.ndarray) -> float:
        """What a placement of the layer is worth."""
        return float(self.gain[np.arange(len(ranks)), ranks].sum())

    def loads(self, ranks: np.ndarray) -> np.ndarray:
        """The tokens of each rank: loads x ranks."""
        return self.base + self.visits @ np.eye(self.base.shape[1])[ranks]

    def excess(self, ranks: np.ndarray) -> float:
        """The tokens above the limit, over all ranks."""
        return float(np.maximum(self.loads(ranks) - self.limit, 0).sum())

    def exchanges(self, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What exchanging two experts changes, of worth and of excess: placed x placed."""
        elsewhere = self.gain[:, ranks]  # the worth of one on the other's rank
        here = elsewhere.diagonal()
        worth = elsewhere + elsewhere.T - here[:, np.newaxis] - here
        excess = np.zeros_like(worth)
        for visits, loads in zip(self.visits, self.loads(ranks), strict=True):
            moved = visits[:, np.newaxis] - visits
            room = (loads - self.limit)[ranks]
            over = np.maximum(room, 0)
            excess += np.maximum(room[:, np.newaxis] - moved, 0) + np.maximum(room + moved, 0)
            excess -= over[:, np.newaxis] + over
        excess[ranks[:, np.newaxis] == ranks] = 0
        return worth, excess


def repaired(task: LayerTask, ranks: np.ndarray) -> np.ndarray:
    """Exchange experts until no rank is above the limit, or nothing helps, at the least loss."""
    ranks = ranks.copy()
    while task.excess(ranks) > _NOTHING:
        worth, excess = task.exchanges(ranks)
        helps = excess < -_NOTHING
        if not helps.any():
            break
        # The least loss for each token that a rank is relieved of.
        price = np.where(helps, -worth / np.where(helps, -excess, 1.0), np.inf)
        _exchange(ranks, int(price.argmin()))
    return ranks


def improved(task: LayerTask, ranks: np.ndarray) -> np.ndarray:
    """Exchange experts as long as tokens come nearer, and no rank gets further above the limit."""
    ranks = ranks.copy()
    while True:
        worth, excess = task.exchanges(ranks)
        worth[excess > _NOTHING] = -np.inf
        best = int(worth.argmax())
        if worth.flat[best] <= _NOTHING:
            return ranks
        _exchange(ranks, best)


def _exchange(ranks: np.ndarray, pair: int) -> None:
    one, other = divmod(pair, len(ranks))
    ranks[one], ranks[other] = ranks[other], ranks[one]
