"""Adds communication to a schedule: sends, receives, reductions; and proves the result.

A schedule says what to compute. `lower` turns it into the flat list that the engine executes:
around every computation stand the messages of the edges that touch its stage. One function
places both ends of a message, so they cannot disagree. `prove` plays the lists with rendezvous
sends before anything runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from hyparflow.pipeline.actions import BACKWARDS, RECEIVES, SENDS, Action, Edge, Kind, Step
from hyparflow.pipeline.schedules import Schedule
from hyparflow.pipeline.simulator import Lowered, Timeline, play

__all__ = ["fused", "lower", "messages_around", "prove", "tags_of"]


def tags_of(lowered: Lowered, limit: int) -> list[list[int]]:
    """The MPI tag of each step that is a message, and -1 for the others, for each partition.

    Messages from one rank to another are numbered in the order of sending, from 0 again when the
    tags are used up.

    Args:
        lowered: one list of steps per partition.
        limit: tags must be less.

    Raises:
        RuntimeError: if two messages that share a tag are received in another order than sent.
    """
    receivers = {s.message: p for p, steps in enumerate(lowered) for s in steps if _receives(s)}
    tags: dict[tuple[bool, int, int], int] = {}
    counts: Counter[tuple[int, int]] = Counter()
    for partition, steps in enumerate(lowered):
        for step in steps:
            if step.kind in SENDS:
                ends = partition, receivers[step.message]
                tags[step.message] = counts[ends]
                counts[ends] += 1
    if any(count > limit for count in counts.values()):
        _check_order(lowered, tags, limit)
    return [[tags[s.message] % limit if s.edge >= 0 else -1 for s in steps] for steps in lowered]


def _receives(step: Step) -> bool:
    return step.kind in RECEIVES


def _check_order(lowered: Lowered, tags: dict[tuple[bool, int, int], int], limit: int) -> None:
    """MPI keeps the order of messages of one tag, so they must be received as they were sent."""
    senders = {s.message: p for p, steps in enumerate(lowered) for s in steps if s.kind in SENDS}
    for steps in lowered:
        last: dict[tuple[int, int], int] = {}
        for step in filter(_receives, steps):
            number = tags[step.message]
            key = senders[step.message], number % limit
            if last.get(key, -1) > number:
                raise RuntimeError(
                    "Messages that share a tag must be received as they were sent. "
                    f"Received: {step} too early, with {limit} tags."
                )
            last[key] = number


def lower(schedule: Schedule, edges: Sequence[Edge], *, training: bool = True) -> Lowered:
    """Add the messages of `edges` to `schedule`, and, in training, the reduction and the update.

    Args:
        schedule: computation, one list of actions per partition.
        edges: the table of crossing tensors.
        training: whether to end with the gradient reduction and the optimizer step.

    Returns:
        One list of steps per partition.
    """
    messages = messages_around(edges, schedule)
    lowered = []
    for partition, actions in enumerate(fused(schedule) if training else schedule):
        steps: list[Step] = []
        for stage, kind, m in actions:
            before, after = messages[stage, kind]
            steps += [
                Step(stage=stage, kind=message, microbatch=m, edge=edge, peer=peer)
                for message, edge, peer in before
            ]
            steps.append(Step(stage, kind, m))
            steps += [
                Step(stage=stage, kind=message, microbatch=m, edge=edge, peer=peer)
                for message, edge, peer in after
            ]
        if training:
            steps = _start_reductions(steps)
            steps += [Step(partition, Kind.REDUCE), Step(partition, Kind.APPLY)]
        lowered.append(steps)
    return lowered


# The messages before and after a computation: their kinds, edges and peers.
Messages = list[tuple[Kind, int, int]]


def messages_around(
    edges: Sequence[Edge], schedule: Schedule
) -> dict[tuple[int, Kind], tuple[Messages, Messages]]:
    """What each stage receives before a computation of each kind, and sends after it.

    Between stages of one partition no message is needed. A fused computation of the last stage
    receives what its forward would, and sends what its backward would.
    """
    holder = {action.stage: p for p, actions in enumerate(schedule) for action in actions}
    around: dict[tuple[int, Kind], tuple[Messages, Messages]] = defaultdict(lambda: ([], []))
    last = max(holder, default=0)
    for index, edge in enumerate(edges):
        if holder.get(edge.producer) == holder.get(edge.consumer):
            continue
        producer, consumer = edge.producer, edge.consumer
        around[producer, Kind.FORWARD][1].append((Kind.SEND_ACTIVATION, index, consumer))
        around[consumer, Kind.FORWARD][0].append((Kind.RECEIVE_ACTIVATION, index, producer))
        for kind in BACKWARDS if edge.carries_gradient else ():
            around[producer, kind][0].append((Kind.RECEIVE_GRADIENT, index, consumer))
            around[consumer, kind][1].append((Kind.SEND_GRADIENT, index, producer))
    around[last, Kind.FUSED] = around[last, Kind.FORWARD][0], around[last, Kind.BACKWARD][1]
    return around


def fused(schedule: Schedule) -> Schedule:
    """Join a forward of the last stage and its backward where one follows the other.

    The last stage receives nothing between the two, so they can be one compiled call, which
    is cheaper and keeps no activations.
    """
    last = max((action.stage for actions in schedule for action in actions), default=0)
    return [_fused(actions, last) for actions in schedule]


def _fused(actions: Sequence[Action], last: int) -> list[Action]:
    joined: list[Action] = []
    for action in actions:
        if action.kind == Kind.BACKWARD and action.stage == last:
            forward = Action(last, Kind.FORWARD, action.microbatch)
            if joined and joined[-1] == forward:
                joined[-1] = forward._replace(kind=Kind.FUSED)
                continue
        joined.append(action)
    return joined


def _start_reductions(steps: list[Step]) -> list[Step]:
    """Begin the reduction of each stage that is done while others still compute.

    A stage's gradients are complete with its last backward. The stage that is done last needs no
    such step: the reduction follows at once. All replicas must begin in the same order, however
    many micro-batches each has: by the number of the stage, last first.
    """
    kinds = (Kind.BACKWARD, Kind.WEIGHT_BACKWARD, Kind.FUSED)
    done = {step.stage: index for index, step in enumerate(steps) if step.kind in kinds}
    after: dict[int, list[Step]] = defaultdict(list)
    ready = 0
    for stage in sorted(done, reverse=True):
        ready = max(ready, done[stage])
        if ready < max(done.values()):
            after[ready].append(Step(stage, Kind.START_REDUCE))
    return [one for index, step in enumerate(steps) for one in (step, *after.get(index, ()))]


def prove(lowered: Lowered, edges: Sequence[Edge]) -> Timeline:
    """Play `lowered` on all ranks with rendezvous sends, or say who waits for whom.

    Also checks that each message has exactly one sender and one receiver.

    Raises:
        RuntimeError: if the lists deadlock or an end of a message is missing. This is a defect
            of a schedule, never of the user's script.
    """
    sends = _ends(lowered, SENDS)
    receives = _ends(lowered, RECEIVES)
    if sends != receives:
        odd = sorted((sends - receives) | (receives - sends))[:5]
        raise RuntimeError(
            "Every message of a lowered schedule needs one sender and one receiver. "
            f"Received: messages with one end only: {odd}"
        )
    if any(count > 1 for count in sends.values()):
        raise RuntimeError("A message stands twice in the lowered schedule.")
    for edge in edges:
        if edge.producer >= edge.consumer:
            raise RuntimeError(f"An edge must lead to a later stage. Received: {edge}")
    return play(lowered)


def _ends(lowered: Lowered, kinds: Sequence[Kind]) -> Counter[tuple[bool, int, int]]:
    return Counter(step.message for steps in lowered for step in steps if step.kind in kinds)
