"""The leader's weights and optimizer state, on their way to the ranks that need them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.leader import LEADER
from hyparflow.engine.weights import pieces
from hyparflow.engine.weights.holdings import Holdings, is_elsewhere
from hyparflow.model.keras_internals.deferred_variables import is_absent, source_of
from hyparflow.pipeline.grid import Grid

__all__ = ["LeadersValues"]

_LEFT = 1  # in place of a digest: at its owners


class LeadersValues:
    """Hands out the leader's values.

    Args:
        holdings: which variables this rank needs.
        grid: the ranks.
        world, peers: all ranks; the ranks of this partition.
    """

    def __init__(
        self, holdings: Holdings, grid: Grid, world: Communicator, peers: Communicator
    ) -> None:
        self._holdings, self._grid = holdings, grid
        self._world, self._peers = world, peers

    def hand_out(self, variables: Sequence[Any]) -> None:
        """Give the leader's values to the ranks that need them. Collective."""
        divided = [v for v in variables if v in self._holdings.divided]
        variables = self._travelling(variables)
        self._hand_out_rows(divided, variables)
        variables = [v for v in variables if v not in self._holdings.divided]
        groups: dict[tuple[tuple[int, ...] | None, int | None], list[Any]] = {}
        for variable in variables:
            who = self._holdings.holders(variable), self._holdings.replica(variable)
            groups.setdefault(who, []).append(variable)
        for (partitions, only), group in groups.items():
            for piece in pieces.pieces(group):
                if partitions is not None:
                    self._give(piece, partitions, only)
                elif self._world.size > 1:
                    pieces.broadcast(piece, LEADER, self._world)

    def _travelling(self, variables: Sequence[Any]) -> list[Any]:
        """The variables whose values must come from the leader. Collective.

        They are left out that have no memory on any rank, and which initializers draw alike, or
        files hold alike; and those that the leader itself would have to ask for.
        """
        mine = np.array([_digest(variable) for variable in variables], np.uint64)
        leaders = mine.copy()
        self._world.broadcast(leaders, LEADER, "the leader's initializers")
        alike = (mine == leaders).astype(np.int64)
        self._world.sum(alike, "the comparison of initializers")
        stay = (leaders == _LEFT) | ((leaders != 0) & (alike == self._world.size))
        return [v for v, stays in zip(variables, stay, strict=True) if not stays]

    def _hand_out_rows(self, divided: Sequence[Any], travelling: Sequence[Any]) -> None:
        """Give rows of slots; those that do not travel are at their owners, or drawn."""
        moving = {id(variable) for variable in travelling}
        for variable in divided:
            if id(variable) in moving:
                self._holdings.divided.hand_out(variable)
            elif not is_elsewhere(variable):
                self._holdings.divided.take(variable)
            self._holdings.drop([variable])

    def _give(self, piece: Sequence[Any], who: tuple[int, ...], only: int | None) -> None:
        """Give values to some partitions: to the first replica's, and from these to the others'.

        With `only`, that replica alone gets them.
        """
        mine = self._grid.partition(self._world.rank)
        for partition in who:
            owner = self._grid.peer_rank(only or 0, partition)
            if owner != LEADER and self._world.rank == LEADER:
                pieces.send(piece, owner, self._world)
            elif owner != LEADER and self._world.rank == owner:
                pieces.receive(piece, LEADER, self._world)
            if partition == mine and self._peers.size > 1 and only is None:
                pieces.broadcast(piece, 0, self._peers)
        self._holdings.drop(piece)


def _digest(variable: Any) -> int:
    """Equal, and neither 0 nor 1, where initializers draw, or files hold, the same.

    It is 0 where there is a value.
    """
    if not is_absent(variable):
        return 0
    key = getattr(source_of(variable), "key", None)
    if key is None:
        return _LEFT
    found = hashlib.sha256(repr(key).encode()).digest()[:8]
    return max(int.from_bytes(found, "little"), _LEFT + 1)
