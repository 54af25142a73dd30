"""By how much the clocks of ranks on different nodes differ."""

from __future__ import annotations

import time

import numpy as np

from hyparflow.comm.communicator import Communicator
from hyparflow.comm.leader import LEADER
from hyparflow.comm.tags import Tag

__all__ = ["clock_offset"]

_ROUNDS = 10
_WHAT = "the comparison of clocks"


def clock_offset(world: Communicator) -> float:
    """Seconds to add to this rank's clock (`time.monotonic`) to get the leader's. Collective.

    Each rank asks the leader for its time, several times; the shortest round trip is most exact.

    Source: Cristian, Probabilistic clock synchronization (Distributed Computing 3, 1989).
    """
    for rank in range(world.size):
        if rank == LEADER:
            continue
        if world.rank == LEADER:
            for _ in range(_ROUNDS):
                _receive(world, rank)
                world.wait_all(world.send(np.array([time.monotonic()]), rank, Tag.CLOCK), _WHAT)
        elif world.rank == rank:
            return min(_ask(world) for _ in range(_ROUNDS))[1]
    return 0.0


def _ask(world: Communicator) -> tuple[float, float]:
    """The time of one round trip, and the difference of the clocks that it shows."""
    start = time.monotonic()
    requests = world.send(np.array([start]), LEADER, Tag.CLOCK)
    leader = _receive(world, LEADER)
    end = time.monotonic()
    world.wait_all(requests, _WHAT)
    return end - start, leader - (start + end) / 2


def _receive(world: Communicator, peer: int) -> float:
    value = np.zeros(1)
    world.wait_all(world.receive(value, peer, Tag.CLOCK), _WHAT)
    return float(value[0])
