"""How long a schedule takes: what `hyparflow.pipeline.simulator` says, in a tighter loop.

A search plays many schedules and wants to know of most of them only when they end. So nothing is
noted down, and what a computation takes, receives and sends is looked up once for all of its
micro-batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from hyparflow.pipeline.actions import Action, Edge, Kind, Step
from hyparflow.pipeline.lowering import Messages, lower, messages_around
from hyparflow.pipeline.schedules import Schedule
from hyparflow.pipeline.simulator import Cost, play

__all__ = ["makespan"]

_Posted = dict[int, float]  # when a message was sent, by micro-batch


def makespan(schedule: Schedule, edges: Sequence[Edge], cost: Cost) -> float:
    """When the last partition is done with a step of training.

    Args:
        schedule: the computations, with those joined that are one call (`fused`).
        edges: the table of crossing tensors.
        cost: as for `play`. It may tell the first micro-batch from others, but not these from each
            other, and it must say that nothing is lost with the begin of a reduction.

    Raises:
        RuntimeError: if no partition can go on.
    """
    posted: dict[tuple[bool, int], _Posted] = defaultdict(dict)
    around = messages_around(edges, schedule)
    works = {m: _Works(around, posted, cost, m) for m in (False, True)}
    positions, clocks = [0] * len(schedule), [0.0] * len(schedule)
    goes_on = True
    while goes_on:
        goes_on = False
        for rank, actions in enumerate(schedule):
            done, clock = _advance(actions, positions[rank], clocks[rank], works)
            goes_on = goes_on or done > positions[rank]
            positions[rank], clocks[rank] = done, clock
    if positions != list(map(len, schedule)):
        return play(lower(schedule, edges), cost).makespan  # says who waits for whom
    return max(
        clock + cost(Step(rank, Kind.REDUCE)) + cost(Step(rank, Kind.APPLY))
        for rank, clock in enumerate(clocks)
    )


# A computation: its receives, its own seconds and its sends, each message with its seconds.
_Work = tuple[list[tuple[_Posted, float]], float, list[tuple[_Posted, float]]]


class _Works(dict[tuple[int, Kind], _Work]):
    """The computations of the first micro-batch, or of the others."""

    def __init__(
        self,
        around: dict[tuple[int, Kind], tuple[Messages, Messages]],
        posted: dict[tuple[bool, int], _Posted],
        cost: Cost,
        later: bool,
    ) -> None:
        super().__init__()
        self._around, self._posted, self._cost, self._m = around, posted, cost, int(later)

    def __missing__(self, key: tuple[int, Kind]) -> _Work:
        stage, kind = key
        before, after = (
            [self._message(Step(stage, kind, self._m, *ends)) for kind, *ends in messages]
            for messages in self._around[key]
        )
        self[key] = before, self._cost(Step(stage, kind, self._m)), after
        return self[key]

    def _message(self, step: Step) -> tuple[_Posted, float]:
        is_activation, edge, _ = step.message
        return self._posted[is_activation, edge], self._cost(step)


def _advance(
    actions: Sequence[Action], start: int, clock: float, works: dict[bool, _Works]
) -> tuple[int, float]:
    """Run actions from position `start` on until one waits; where it is, and the time by then."""
    first, others = works[False], works[True]
    for position in range(start, len(actions)):
        stage, kind, m = actions[position]
        receives, seconds, sends = (others if m else first)[stage, kind]
        now = clock
        for posted, wait in receives:
            sent = posted.get(m)
            if sent is None:
                return position, clock
            now = (sent if sent > now else now) + wait
        clock = now + seconds
        for posted, busy in sends:
            clock += busy
            posted[m] = clock
    return len(actions), clock
