"""How fast a model trains: samples per second, and the ranks' shares of time, for TensorBoard."""

from __future__ import annotations

import time

import numpy as np

from hyparflow.comm.leader import LEADER
from hyparflow.comm.world import World
from hyparflow.tracing.summary import means, settled

__all__ = ["Throughput"]


class Throughput:
    """Measures the speed of all ranks since the last call of `take`.

    Args:
        world: all ranks; their recorders are turned on.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        world.recorder.on = True
        self._since, self._rows, self._steps = time.monotonic(), 0, 0

    def add(self, rows: int) -> None:
        """Note that a step with a global batch of `rows` rows has begun."""
        self._rows += rows
        self._steps += 1

    def take(self) -> dict[str, float]:
        """The figures by name, on the leader. Collective."""
        since, rows, steps = self._since, self._rows, self._steps
        self._since, self._rows, self._steps = time.monotonic(), 0, 0
        if not steps:
            return {}
        # Events that a trace will show stay in the recorder.
        recorder = self._world.recorder
        recorded = [step for step in recorder.steps if step and step[0].start >= since]
        mine = means(settled(recorded))
        among = np.array([mine.idle, mine.communication]) / self._world.size
        self._world.sum_to(among, LEADER, "the ranks' shares of time")
        per_second = rows / steps / (mine.step + mine.between)
        return {
            "samples_per_second": per_second,
            "idle_share": float(among[0]),
            "communication_share": float(among[1]),
        }
