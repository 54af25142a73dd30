"""Asks all ranks whether their kinds of gradients have changed, while other sums go on."""

from __future__ import annotations

import numpy as np

from hyparflow.comm.communicator import Communicator

__all__ = ["ChangedKinds"]


class ChangedKinds:
    """Whether the kinds of gradients have changed on any rank: a sum that goes on meanwhile.

    Args:
        comm: the ranks. Collective.
        mine: whether they have changed on this rank.
    """

    def __init__(self, comm: Communicator, mine: bool) -> None:
        self._count = np.zeros(1, np.int64)
        what = "whether kinds of gradients changed"
        self._pending = comm.start_sum(self._count, what, np.array([mine], np.int64))

    def anywhere(self) -> bool:
        """Whether they have changed on any rank. Waits for the sum."""
        self._pending.wait()
        return bool(self._count[0])
