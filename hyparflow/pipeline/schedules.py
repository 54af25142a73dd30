"""Schedules as data: which stage runs which micro-batch, in which order, on every rank.

A schedule is a list of `Action`, one list per partition, and holds computation only;
`hyparflow.pipeline.lowering` adds the messages. `F` is a stage's forward of one micro-batch, `B`
its backward. With several stages per partition, partition p holds stages p, p + P, p + 2 P and so
on.
"""

from __future__ import annotations

import itertools

from hyparflow.pipeline.actions import Action

__all__ = [
    "SCHEDULES",
    "Schedule",
    "forward_only",
    "gpipe",
    "group_size",
    "in_words",
    "interleaved",
    "make_schedule",
    "one_forward_one_backward",
    "zero_bubble",
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


def interleaved(num_partitions: int, num_microbatches: int, stages_per_partition: int) -> Schedule:
    """1F1B with V stages per partition (Narayanan et al. 2021, section 2.2).

    The pipeline fills in steps of a stage, a V-th of a partition: idle share
    ``(P - 1) / (V M + P - 1)``, for V times as many messages. Micro-batches go in groups, and each
    group through all of a partition's stages before the next; see `group_size`.
    """
    groups = _groups(num_partitions, num_microbatches)
    turns = range(stages_per_partition)
    schedule = []
    for partition in range(num_partitions):
        stages = [turn * num_partitions + partition for turn in turns]
        forwards = [Action(s, "F", m) for group in groups for s in stages for m in group]
        backwards = [Action(s, "B", m) for group in groups for s in stages[::-1] for m in group]
        each = 2 if stages_per_partition > 1 else 1  # forwards per partition that comes after
        ahead = (num_partitions - 1 - partition) * each
        ahead += (stages_per_partition - 1) * max(map(len, groups), default=0)
        ahead = min(ahead, len(forwards))
        actions = forwards[:ahead]
        for forward, backward in zip(forwards[ahead:], backwards, strict=False):
            actions += [forward, backward]
        schedule.append(actions + backwards[len(forwards) - ahead :])
    return schedule


def group_size(num_partitions: int) -> int:
    """How many micro-batches go through all stages of a partition before the next do, at least.

    As published there are P, and fewer would deadlock. But with P, what one rank sends the next
    needs at once: each message's way, and each computation that takes a little longer, delays all
    ranks. Half as many again give them time, and keep half as many activations more.
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


def zero_bubble(num_partitions: int, num_microbatches: int) -> Schedule:
    """1F1B with backwards in two parts (Qi et al., "Zero Bubble Pipeline Parallelism", 2023: H1).

    `I` gives the gradients that the stage before waits for; `W`, those of the weights, fills the
    time in which a stage would wait. No stage keeps more than P micro-batches' activations. The
    order is that of a machine on which all three take one unit of time: each stage runs what is
    ready, an `I` before an `F` before a `W`.
    """
    last = num_partitions - 1
    done: dict[Action, int] = {}  # when each was finished
    schedule: Schedule = [[] for _ in range(num_partitions)]
    counts = [dict.fromkeys("FIW", 0) for _ in range(num_partitions)]
    now = 0
    while any(count["W"] < num_microbatches for count in counts):
        for stage, count in enumerate(counts):
            before = Action(stage - 1, "F", count["F"])
            after = Action(stage + 1, "I", count["I"])
            if stage == last:
                after = Action(stage, "F", count["I"])
            ready = {
                "I": count["I"] < count["F"] and done.get(after, now + 1) <= now,
                "F": count["F"] < num_microbatches
                and count["F"] - count["W"] < num_partitions
                and (stage == 0 or done.get(before, now + 1) <= now),
                "W": count["W"] < count["I"],
            }
            kind = next((kind for kind in "IFW" if ready[kind]), None)
            if kind is not None:
                action = Action(stage, kind, count[kind])
                schedule[stage].append(action)
                done[action] = now + 1
                count[kind] += 1
        now += 1
    return schedule


def forward_only(
    num_partitions: int, num_microbatches: int, stages_per_partition: int = 1
) -> Schedule:
    """What `evaluate` and `predict` run: every stage forwards every micro-batch."""
    return [
        [
            Action(turn * num_partitions + partition, "F", m)
            for group in _groups(num_partitions, num_microbatches)
            for turn in range(stages_per_partition)
            for m in group
        ]
        for partition in range(num_partitions)
    ]


SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero-bubble")


def in_words(schedule: str, num_partitions: int, stages_per_partition: int) -> str:
    """What to call a schedule; one partition is no pipeline, and has none.

    Args:
        schedule: one of `SCHEDULES`.
        num_partitions: number of partitions.
        stages_per_partition: several are named, for one partition too: their sums begin in turn.
    """
    words = [schedule] if num_partitions > 1 else []
    if stages_per_partition > 1:
        words.append(f"{stages_per_partition} stages per partition")
    return ", ".join(words)


def make_schedule(
    name: str, num_partitions: int, num_microbatches: int, stages_per_partition: int = 1
) -> Schedule:
    """The schedule called `name`, one list of actions per partition.

    Args:
        name: one of `SCHEDULES`.
        num_partitions: number of partitions, P.
        num_microbatches: number of micro-batches, M.
        stages_per_partition: V; more than one only with "interleaved".

    Raises:
        ValueError: if there is no schedule of this name, or it has one stage per partition.
    """
    if name not in SCHEDULES:
        raise ValueError(
            f"`schedule` must be one of {', '.join(map(repr, SCHEDULES))} or 'auto'. "
            f"Received: schedule={name!r}"
        )
    if name == "interleaved":
        return interleaved(num_partitions, num_microbatches, stages_per_partition)
    if stages_per_partition != 1:
        raise ValueError(
            "Only schedule='interleaved' has several stages per partition. Received: "
            f"schedule={name!r}, stages_per_partition={stages_per_partition}"
        )
    simple = {
        "gpipe": gpipe,
        "1f1b": one_forward_one_backward,
        "zero-bubble": zero_bubble,
    }
    return simple[name](num_partitions, num_microbatches)
