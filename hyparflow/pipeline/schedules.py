"""Schedules as data: which stage runs which micro-batch, in which order, on every rank.

A schedule is a list of `Action`, one list per partition, and holds computation only;
`hyparflow.pipeline.lowering` adds the messages. `F` is a stage's forward of one micro-batch, `B`
its backward, `I` and `W` its two parts. Which partition holds which stage is a
`hyparflow.pipeline.placement.Placement`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hyparflow.pipeline.actions import Action, Kind
from hyparflow.pipeline.placement import Placement, v_shaped, wrapped

__all__ = [
    "SCHEDULES",
    "TABLE",
    "Schedule",
    "ScheduleEntry",
    "forward_only",
    "gpipe",
    "group_size",
    "in_words",
    "interleaved",
    "make_schedule",
    "one_forward_one_backward",
    "placement_of",
    "zero_bubble",
]

Schedule = list[list[Action]]
_F, _B, _I, _W = Kind.FORWARD, Kind.BACKWARD, Kind.INPUT_BACKWARD, Kind.WEIGHT_BACKWARD


def gpipe(num_partitions: int, num_microbatches: int) -> Schedule:
    """All forwards, then all backwards (GPipe, Huang et al. 2019, section 2.3).

    Idle share ``(P - 1) / (M + P - 1)``; each stage keeps all M micro-batches' activations.
    """
    return [
        [Action(stage, _F, m) for m in range(num_microbatches)]
        + [Action(stage, _B, m) for m in range(num_microbatches)]
        for stage in range(num_partitions)
    ]


def one_forward_one_backward(num_partitions: int, num_microbatches: int) -> Schedule:
    """1F1B (PipeDream-Flush, Narayanan et al. 2021, section 2.2): the idle share of GPipe, but
    stage p keeps at most ``P - p`` micro-batches' activations.

    Stage p runs ``P - 1 - p`` forwards ahead, then one forward and one backward in turn.
    """
    schedule = []
    for stage in range(num_partitions):
        ahead = min(num_partitions - 1 - stage, num_microbatches)
        actions = [Action(stage, _F, m) for m in range(ahead)]
        for m in range(ahead, num_microbatches):
            actions += [Action(stage, _F, m), Action(stage, _B, m - ahead)]
        actions += [Action(stage, _B, m) for m in range(num_microbatches - ahead, num_microbatches)]
        schedule.append(actions)
    return schedule


def interleaved(placement: Placement, num_microbatches: int) -> Schedule:
    """1F1B with V stages per partition (Narayanan et al. 2021, section 2.2).

    The pipeline fills in steps of a stage, a V-th of a partition: idle share
    ``(P - 1) / (V M + P - 1)``, for V times as many messages. Micro-batches go in groups, and each
    group through all of a partition's stages before the next; see `group_size`.
    """
    num_partitions = placement.num_partitions
    groups = _groups(num_partitions, num_microbatches)
    further = placement.depth - 1
    schedule = []
    for partition in range(num_partitions):
        stages = placement.stages(partition)
        forwards = [Action(s, _F, m) for group in groups for s in stages for m in group]
        backwards = [Action(s, _B, m) for group in groups for s in stages[::-1] for m in group]
        each = 2 if further else 1  # forwards ahead for each later partition
        ahead = (num_partitions - 1 - partition) * each
        ahead += further * max(map(len, groups), default=0)
        ahead = min(ahead, len(forwards))
        actions = forwards[:ahead]
        for forward, backward in zip(forwards[ahead:], backwards, strict=False):
            actions += [forward, backward]
        schedule.append(actions + backwards[len(forwards) - ahead :])
    return schedule


def group_size(num_partitions: int) -> int:
    """The least number of micro-batches in a group, which goes through all stages of a partition.

    As published it is P, and fewer would deadlock. With groups of P, the next rank needs each
    message the moment it is sent, so any delay stops all ranks. Groups of 1.5 P leave slack, for
    half as many activations more.
    """
    return num_partitions + num_partitions // 2


def _groups(num_partitions: int, count: int) -> list[range]:
    """`count` micro-batches in groups as even as can be, the larger ones first."""
    size = group_size(num_partitions)
    number = max(1, count // size)
    ends = [0]
    for index in range(number):
        ends.append(ends[-1] + count // number + (index < count % number))
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def zero_bubble(placement: Placement, num_microbatches: int) -> Schedule:
    """1F1B with backwards in two parts (Qi et al. 2024, "Zero Bubble Pipeline Parallelism").

    `I` computes the gradients that the stage before waits for; `W`, the gradients of the weights,
    fills the time in which a partition would wait. No partition keeps the activations of more than
    P micro-batches. The order follows from a simulation in which `F`, `I` and `W` take one unit of
    time: each partition runs an action that is ready, later stages first, and a `W` last.

    With one stage per partition that is H1 (section 3); with two, placed as a V, ZB-V (section 6),
    with idle share ``(P - 1) / (6 M + P - 1)`` where M is a multiple of P.
    """
    partitions = range(placement.num_partitions)
    progress = _Progress(placement, num_microbatches)
    schedule: Schedule = [[] for _ in partitions]
    while sum(map(len, schedule)) < 3 * num_microbatches * placement.num_stages:
        chosen = [next(progress.ready(partition), None) for partition in partitions]
        for actions, action in zip(schedule, chosen, strict=True):
            actions += [] if action is None else [action]
        progress.note(action for action in chosen if action is not None)
    return schedule


class _Progress:
    """Which computations of a schedule are done, if each takes one unit of time.

    Args:
        placement: of the stages.
        num_microbatches: M.
    """

    def __init__(self, placement: Placement, num_microbatches: int) -> None:
        self._placement = placement
        self._count = num_microbatches
        self._done = {kind: dict.fromkeys(range(placement.num_stages), 0) for kind in (_F, _I, _W)}

    def note(self, actions: Iterator[Action]) -> None:
        """Note what was done in one unit of time."""
        for action in actions:
            self._done[action.kind][action.stage] += 1

    def ready(self, partition: int) -> Iterator[Action]:
        """The actions that a partition could run next, the best first."""
        stages = self._placement.stages(partition)
        for stage in stages:
            if self._has_gradient(stage):
                yield Action(stage, _I, self._done[_I][stage])
        for stage in reversed(stages):
            if self._has_input(stage) and self._has_room(stage, stages):
                yield Action(stage, _F, self._done[_F][stage])
        for stage in stages:
            if self._done[_W][stage] < self._done[_I][stage]:
                yield Action(stage, _W, self._done[_W][stage])

    def _has_gradient(self, stage: int) -> bool:
        is_last = stage == self._placement.num_stages - 1
        given = self._done[_F][stage] if is_last else self._done[_I][stage + 1]
        return self._done[_I][stage] < given

    def _has_input(self, stage: int) -> bool:
        given = self._done[_F][stage - 1] if stage else self._count
        return self._done[_F][stage] < given

    def _has_room(self, stage: int, stages: tuple[int, ...]) -> bool:
        """Whether there is memory for more activations, with some left for later stages."""
        kept = {s: self._done[_F][s] - self._done[_W][s] for s in stages}
        most = self._placement.num_stages
        later = len(stages) - 1 - stages.index(stage)
        return sum(kept.values()) < most and kept[stage] < most - later


def forward_only(placement: Placement, num_microbatches: int) -> Schedule:
    """What `evaluate` and `predict` run: every stage forwards every micro-batch."""
    groups = _groups(placement.num_partitions, num_microbatches)
    return [
        [Action(stage, _F, m) for group in groups for stage in placement.stages(p) for m in group]
        for p in range(placement.num_partitions)
    ]


class ScheduleEntry(NamedTuple):
    """All that is known of one schedule.

    Attributes:
        make: (placement, number of micro-batches) -> the schedule.
        place: (number of partitions, stages per partition) -> the placement.
        stages: how many stages a partition has by default.
        free: whether the user may choose another number of stages.
        in_two: whether each backward is computed in two parts.
        is_searched: whether a plan may choose the schedule; otherwise only the user can.
    """

    make: Callable[[Placement, int], Schedule]
    place: Callable[[int, int], Placement] = wrapped
    stages: int = 1
    free: bool = False
    in_two: bool = False
    is_searched: bool = True


TABLE = {
    # Not searched: it takes as long as 1f1b, and more memory.
    "gpipe": ScheduleEntry(lambda place, m: gpipe(place.num_partitions, m), is_searched=False),
    "1f1b": ScheduleEntry(lambda place, m: one_forward_one_backward(place.num_partitions, m)),
    "interleaved": ScheduleEntry(interleaved, stages=2, free=True),
    # Not searched: the two parts of a backward are measured for one piece of the model only.
    "zero-bubble": ScheduleEntry(zero_bubble, in_two=True, is_searched=False),
    "zero-bubble-v": ScheduleEntry(
        zero_bubble,
        place=lambda num_partitions, _: v_shaped(num_partitions),
        stages=2,
        in_two=True,
        is_searched=False,
    ),
}
SCHEDULES = tuple(TABLE)
_MOST_STAGES = 2**20


def placement_of(
    schedule: str, num_partitions: int, stages_per_partition: int | None = None
) -> Placement:
    """Where a schedule wants the stages.

    Args:
        schedule: one of `SCHEDULES`, or "auto" for "1f1b".
        num_partitions: P.
        stages_per_partition: V; None for the schedule's usual number.

    Raises:
        ValueError: if the schedule has another number of stages per partition, or there are more
            stages than any model has operations.
    """
    entry = TABLE["1f1b" if schedule == "auto" else schedule]
    count = entry.stages if stages_per_partition is None else stages_per_partition
    if num_partitions * count > _MOST_STAGES:
        raise ValueError(
            f"A model can be cut into {_MOST_STAGES} stages at most. Received: "
            f"num_partitions={num_partitions}, stages_per_partition={count}"
        )
    if count != entry.stages and not entry.free:
        free = " or ".join(repr(name) for name, known in TABLE.items() if known.free)
        raise ValueError(
            f"Only schedule={free} has several stages per partition, as many as you say; "
            f"schedule={schedule!r} has {entry.stages}. Received: "
            f"schedule={schedule!r}, stages_per_partition={stages_per_partition}"
        )
    return entry.place(num_partitions, count)


def in_words(schedule: str, placement: Placement) -> str:
    """What to call a schedule; on one partition, which is no pipeline, an empty string.

    Args:
        schedule: one of `SCHEDULES`.
        placement: of the stages; several per partition are named on one partition, too, where they
            say in how many pieces the gradients are summed.
    """
    words = [schedule] if placement.num_partitions > 1 else []
    if placement.depth > 1:
        words.append(f"{placement.depth} stages per partition")
    return ", ".join(words)


def make_schedule(name: str, placement: Placement, num_microbatches: int) -> Schedule:
    """The schedule called `name`, one list of actions per partition.

    Args:
        name: one of `SCHEDULES`.
        placement: of the stages, as `placement_of` gives it for this schedule.
        num_microbatches: M.

    Raises:
        ValueError: if there is no schedule of this name.
    """
    if name not in TABLE:
        raise ValueError(
            f"`schedule` must be one of {', '.join(map(repr, SCHEDULES))} or 'auto'. "
            f"Received: schedule={name!r}"
        )
    return TABLE[name].make(placement, num_microbatches)
