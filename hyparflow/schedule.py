"""Schedules as data: which stage runs which micro-batch, in which order, on every rank.

A schedule is a list of `Action`, one list per partition, and holds computation only;
`hyparflow.lowering` adds the messages. `F` is a stage's forward of one micro-batch, `B` its
backward.
"""

from __future__ import annotations

from collections.abc import Callable

from hyparflow.actions import Action

__all__ = [
    "SCHEDULES",
    "Schedule",
    "forward_only",
    "gpipe",
    "make_schedule",
    "one_forward_one_backward",
]

Schedule = list[list[Action]]


def gpipe(num_partitions: int, num_microbatches: int) -> Schedule:
    """All forwards, then all backwards (GPipe, Huang et al. 2019, section 2.3).

    Idle share ``(P - 1) / (M + P - 1)``; each stage keeps all M micro-batches' activations.
    """
    return [
        [Action(stage, "F", m) for m in range(num_microbatches)]
        + [Action(stage, "B", m) for m in range(num_microbatches)]
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
        actions = [Action(stage, "F", m) for m in range(ahead)]
        for m in range(ahead, num_microbatches):
            actions += [Action(stage, "F", m), Action(stage, "B", m - ahead)]
        actions += [
            Action(stage, "B", m) for m in range(num_microbatches - ahead, num_microbatches)
        ]
        schedule.append(actions)
    return schedule


def forward_only(num_partitions: int, num_microbatches: int) -> Schedule:
    """What `evaluate` and `predict` run: every stage forwards every micro-batch."""
    return [
        [Action(stage, "F", m) for m in range(num_microbatches)] for stage in range(num_partitions)
    ]


SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_forward_one_backward,
}


def make_schedule(name: str, num_partitions: int, num_microbatches: int) -> Schedule:
    """The schedule called `name`, one list of actions per partition.

    Args:
        name: one of `SCHEDULES`.
        num_partitions: number of partitions, P.
        num_microbatches: number of micro-batches, M.

    Raises:
        ValueError: if there is no schedule of this name.
    """
    if name not in SCHEDULES:
        raise ValueError(
            f"`schedule` must be one of {', '.join(map(repr, SCHEDULES))} or 'auto'. "
            f"Received: schedule={name!r}"
        )
    return SCHEDULES[name](num_partitions, num_microbatches)
