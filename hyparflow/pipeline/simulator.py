"""Plays all ranks of a lowered schedule in one process: time, idle share, activations in flight.

The rules are those of rendezvous messages: nothing is buffered, so a transfer happens only once
both ends have posted it; a send does not block its rank, a receive does; at the end of its list a
rank waits until its last send has been taken. What can finish under these rules finishes under any
MPI, whatever its eager limit.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hyparflow.pipeline.actions import RECEIVES, SENDS, Action, Kind, Step

__all__ = ["Lowered", "Span", "Timeline", "peak_kept", "peaks_in_flight", "play"]

_KEPT = {Kind.FORWARD: 1, Kind.BACKWARD: -1, Kind.WEIGHT_BACKWARD: -1}  # of micro-batches

Lowered = list[list[Step]]
Cost = Callable[[Step], float]


@dataclass(frozen=True)
class Span:
    """One step of one rank in time (`start`, `end` in the unit of the costs)."""

    step: Step
    start: float
    end: float


@dataclass
class Timeline:
    """What a played schedule did: the spans of every rank."""

    spans: list[list[Span]] = field(default_factory=list)

    @property
    def makespan(self) -> float:
        """When the last rank was done."""
        return max((spans[-1].end for spans in self.spans if spans), default=0.0)

    def busy(self, rank: int) -> float:
        """The time in which `rank` computed."""
        return sum(span.end - span.start for span in self.spans[rank] if span.step.edge < 0)

    @property
    def idle_share(self) -> float:
        """The share of all ranks' time in which nothing was computed, 0 to 1."""
        if not self.makespan:
            return 0.0
        busy = sum(self.busy(rank) for rank in range(len(self.spans)))
        return 1.0 - busy / (self.makespan * len(self.spans))

    def peak_in_flight(self, rank: int) -> int:
        """The most micro-batches whose activations `rank` keeps at one time."""
        steps = [span.step for span in self.spans[rank]]
        return int(peak_kept(steps, defaultdict(lambda: 1.0)))

    def order(self, rank: int) -> list[str]:
        """The steps of `rank` in text form, as executed."""
        return [str(span.step) for span in self.spans[rank]]


def peak_kept(steps: Iterable[Action | Step], size: Mapping[int, float]) -> float:
    """The largest sum over what a partition keeps at one time.

    Args:
        steps: what it computes, in order; messages and reductions do not count.
        size: for each stage, what a computation keeps: a forward until its backward, a fused one
            while it runs.
    """
    kept = peak = 0.0
    for stage, kind, *_ in steps:
        sign = _KEPT.get(kind, 0)
        if sign:
            kept += sign * size[stage]
        peak = max(peak, kept + size[stage] if kind == Kind.FUSED else kept)
    return peak


def peaks_in_flight(schedule: Iterable[Iterable[Action]]) -> dict[int, int]:
    """The most micro-batches whose activations each stage keeps at one time.

    Nothing needs to be played for it: a stage's actions stand in the list of one partition.
    """
    kept: dict[int, int] = defaultdict(int)
    peaks: dict[int, int] = defaultdict(int)
    for action in itertools.chain.from_iterable(schedule):
        kept[action.stage] += _KEPT.get(action.kind, 0)
        peaks[action.stage] = max(peaks[action.stage], kept[action.stage])
    return peaks


def unit_cost(step: Step) -> float:
    """Forward 1, backward 2, everything else free: the textbook's costs."""
    halves = {Kind.INPUT_BACKWARD: 1.0, Kind.WEIGHT_BACKWARD: 1.0}
    costs = {Kind.FORWARD: 1.0, Kind.BACKWARD: 2.0, Kind.FUSED: 3.0} | halves
    return costs.get(step.kind, 0.0)


def play(lowered: Lowered, cost: Cost = unit_cost) -> Timeline:
    """Play `lowered` to its end.

    Args:
        lowered: one list of steps per rank of a replica (`hyparflow.pipeline.lowering.lower`).
        cost: the duration of a computation; of a receive, from the arrival of the message on;
            and the time for which a send keeps its rank busy.

    Returns:
        The timeline.

    Raises:
        RuntimeError: with a table of every rank's position, if no rank can go on.
    """
    ranks = range(len(lowered))
    position = [0 for _ in ranks]
    clock = [0.0 for _ in ranks]
    posted: dict[tuple[bool, int, int], float] = {}  # message -> when its send was posted
    taken: set[tuple[bool, int, int]] = set()
    timeline = Timeline([[] for _ in ranks])
    progress = True
    while progress:
        progress = False
        for rank in ranks:
            while position[rank] < len(lowered[rank]):
                step = lowered[rank][position[rank]]
                start = clock[rank]
                if step.kind in RECEIVES:
                    if step.message not in posted:
                        break
                    start = max(start, posted[step.message])
                    taken.add(step.message)
                end = start + cost(step)
                if step.kind in SENDS:
                    posted[step.message] = end
                clock[rank] = end
                timeline.spans[rank].append(Span(step, start, end))
                position[rank] += 1
                progress = True
    _report_if_stuck(lowered, position, set(posted) - taken)
    return timeline


def _report_if_stuck(
    lowered: Lowered, position: list[int], untaken: set[tuple[bool, int, int]]
) -> None:
    stuck = [rank for rank, steps in enumerate(lowered) if position[rank] < len(steps)]
    if not stuck and not untaken:
        return
    rows = []
    for rank, steps in enumerate(lowered):
        at = position[rank]
        done = " ".join(map(str, steps[max(0, at - 6) : at]))
        here = f">>{steps[at]}<<" if at < len(steps) else "(done)"
        rows.append(f"  rank {rank}: ... {done} {here}")
    raise RuntimeError(
        f"The schedule deadlocks: ranks {stuck} wait for messages that are never sent, "
        f"{len(untaken)} sends are never received.\n" + "\n".join(rows)
    )
