"""Sums up a trace: what each rank spent its time on."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hyparflow.comm.recorder import Event, EventKind
from hyparflow.engine.sequence.sequence_counts import SequenceCounts
from hyparflow.formats.text import Page, counted, counted_names
from hyparflow.pipeline.actions import BACKWARDS, Kind
from hyparflow.tracing.trace import RankTrace, Trace

__all__ = ["Shares", "describe", "means", "settled", "shares", "whole_step"]

_WARM = 2  # first steps, which compile and are left out
_SAME = 1e-6  # seconds by which times in a file may be off
_TITLES = (
    *("", "step", "forward", "backward", "messages", "waiting", "sums", "waiting for sums"),
    *("optimizer", "data", "other", "between steps", "sums hidden", "sent and received"),
)
_FORWARDS = (Kind.FORWARD,)
_BACKWARDS = (*BACKWARDS, Kind.WEIGHT_BACKWARD, Kind.FUSED)
_NOTHING = ("0.0", "-", "0.0 MB")  # the cells of a column that is left out
_REDUCES = (Kind.START_REDUCE, Kind.REDUCE)


@dataclass(frozen=True)
class Shares:
    """The times of a step of a rank, in seconds.

    Attributes:
        step: the whole step, the sum of the times from `forward` to `other`.
        forward: forwards alone.
        backward: backwards, and forwards that are one call with them.
        messages: sending and receiving, without waiting.
        waiting: waiting for messages.
        sums: sums over replicas and holders of shared weights, without waiting.
        waiting_for_sums: seconds in which the rank waited for sums to arrive.
        optimizer: the update.
        data: getting the rows.
        other: the rest.
        between: median time from one step to the next: Keras's loop, callbacks, and waiting for
            them.
        under_way: how long sums were under way.
        moved: bytes of tensors sent and received.
    """

    step: float
    forward: float
    backward: float
    messages: float
    waiting: float
    sums: float
    waiting_for_sums: float
    optimizer: float
    data: float
    other: float
    between: float
    under_way: float
    moved: float

    @property
    def idle(self) -> float:
        """The share of the step in which the rank waited, 0 to 1."""
        return (self.waiting + self.waiting_for_sums) / (self.step or 1.0)

    @property
    def communication(self) -> float:
        """The share of the step that went to messages and sums, 0 to 1, waiting included."""
        return self.idle + (self.messages + self.sums) / (self.step or 1.0)

    @property
    def hidden(self) -> float | None:
        """The share of the time of sums in which the rank computes, 0 to 1; None without sums."""
        if not self.under_way:
            return None
        return max(0.0, 1.0 - (self.sums + self.waiting_for_sums) / self.under_way)


def settled(steps: Sequence[list[Event]]) -> list[list[Event]]:
    """The steps without those that compile; all, if there are no others."""
    complete = [step for step in steps if whole_step(step) is not None]
    return complete[_WARM:] or complete


def shares(rank: RankTrace) -> Shares:
    """Means over the settled steps of a rank.

    Raises:
        ValueError: if it took no step.
    """
    steps = settled(rank.steps)
    if not steps:
        raise ValueError(f"A trace must have a training step. Received: none of {rank.name}")
    return means(steps)


def means(steps: Sequence[list[Event]]) -> Shares:
    """Means over one or more steps of a rank, each of them complete."""
    sums: dict[str, float] = defaultdict(float)
    for step in steps:
        for name, value in _split(step).items():
            sums[name] += value / len(steps)
    spans = [span for step in steps if (span := whole_step(step)) is not None]
    gaps = [b.start - a.end for a, b in zip(spans, spans[1:], strict=False)]
    # The mean would consist mostly of the validation at the end of an epoch.
    sums["between"] = statistics.median(gaps) if gaps else 0.0
    return Shares(**sums)


def whole_step(step: Sequence[Event]) -> Event | None:
    """The event that spans all of a training step; None if it was not finished."""
    return next((event for event in step if event.kind == EventKind.TRAINING_STEP), None)


def _split(step: Sequence[Event]) -> dict[str, float]:
    """The times of one step; validation, which comes after it, is not part of it."""
    found = dict.fromkeys(
        ("forward", "backward", "messages", "waiting", "sums", "waiting_for_sums", "optimizer"), 0.0
    ) | {"data": 0.0, "moved": 0.0}
    whole = whole_step(step)
    total = whole.end - whole.start if whole else 0.0
    inner = [event for event in step if whole is None or event.end <= whole.end + _SAME]
    waits: list[Event] = []  # since the last action; an event is noted when it ends
    for event in inner:
        if event.kind == EventKind.WAIT:
            waits.append(event)
            continue
        if event.kind in (EventKind.SUM, EventKind.EXCHANGE, EventKind.TRAINING_STEP):
            continue
        inside = [w for w in waits if w.start >= event.start - _SAME]
        waited = sum(w.end - w.start for w in inside)
        waits = [w for w in waits if w.start < event.start - _SAME]
        _add(found, event, waited)
    found["waiting"] += sum(w.end - w.start for w in waits)  # for sends to be taken
    parts = sum(value for name, value in found.items() if name != "moved")
    return found | {"step": total, "other": total - parts, "under_way": _under_way(inner)}


def _add(found: dict[str, float], event: Event, waited: float) -> None:
    took = event.end - event.start
    if event.kind in _FORWARDS:
        found["forward"] += took
    elif event.kind in _BACKWARDS:
        found["backward"] += took
    elif event.kind in _REDUCES:
        found["sums"] += took - waited
        found["waiting_for_sums"] += waited
        found["moved"] += event.moved
    elif event.kind == Kind.APPLY:
        found["optimizer"] += took
    elif event.kind == EventKind.DATA:
        found["data"] += took
    else:
        found["messages"] += took - waited
        found["waiting"] += waited
        found["moved"] += event.moved


def _under_way(step: Sequence[Event]) -> float:
    """How long at least one sum was under way."""
    total, until = 0.0, float("-inf")
    for start, end in sorted((e.start, e.end) for e in step if e.kind == EventKind.SUM):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def describe(trace: Trace) -> Page:
    """A table: milliseconds of a step of each rank."""
    found = [shares(rank) for rank in trace.ranks]
    titles: tuple[str, ...] = _TITLES
    if not trace.has_sums:
        found, titles = _without_replicas(found)
    rows = [titles, *(_row(r.name, mine) for r, mine in zip(trace.ranks, found, strict=True))]
    kept = [n for n in range(len(titles)) if any(row[n] not in _NOTHING for row in rows[1:])]
    count = len(settled(trace.ranks[0].steps))
    idle = f"idle {statistics.mean(mine.idle for mine in found):.1%}, mean over ranks"
    whole = found[0].step + found[0].between
    if (rows_of_batch := _batch_size(trace)) is not None and whole:
        idle = f"{rows_of_batch / whole:.1f} samples/s, {idle}"
    steps = counted(count, "step", "steps")
    head = [f"milliseconds of a step, means over {steps}", idle]
    rewritten = sum((Counter(rank.rewritten) for rank in trace.ranks), Counter[str]())
    if rewritten:
        head.append(f"faster kernels: {counted_names(rewritten)}")
    head += [_sequences(rank) for rank in trace.ranks if rank.sequences != SequenceCounts()]
    return Page(head, [[row[n] for n in kept] for row in rows])


def _sequences(rank: RankTrace) -> str:
    """What a rank moved and kept of divided sequences in the whole call."""
    known = rank.sequences
    sizes = known.bytes_sent, known.bytes_kept, known.peak, known.bytes_got
    sent, kept, peak, got = (f"{size / 1e6:.1f} MB" for size in sizes)
    return (
        f"sequences of {rank.name}: {counted(known.exchanges, 'exchange', 'exchanges')}, {sent} to "
        f"others; {kept} kept, {peak} at a time, {got} got back, {known.stalls:.2f} s waited for "
        "a disk"
    )


def _without_replicas(found: Sequence[Shares]) -> tuple[list[Shares], tuple[str, ...]]:
    """For a single replica: the times, and the titles of the columns.

    It sums only gradients of weights that ranks share. If there are none, the time of `sums` is
    added to `other`.
    """
    titles = tuple(title.replace("sums", "shared weights") for title in _TITLES)
    shared = any(mine.under_way for mine in found)
    changed = []
    for mine in found:
        mine = replace(mine, under_way=0.0)
        if not shared:
            other = mine.other + mine.sums + mine.waiting_for_sums
            mine = replace(mine, sums=0.0, waiting_for_sums=0.0, other=other)
        changed.append(mine)
    return changed, titles


def _batch_size(trace: Trace) -> int | None:
    """Rows of a global batch, as far as the trace tells."""
    rows = trace.arguments.get("batch_size")
    if rows is None and trace.plan is not None:
        rows = trace.plan["batch_size"]
    return rows


def _row(name: str, mine: Shares) -> tuple[str, ...]:
    times = (
        *(mine.step, mine.forward, mine.backward, mine.messages, mine.waiting, mine.sums),
        *(mine.waiting_for_sums, mine.optimizer, mine.data, mine.other, mine.between),
    )
    hidden = "-" if mine.hidden is None else f"{mine.hidden:.0%}"
    moved = f"{mine.moved / 1e6:.1f} MB"
    return (name, *(f"{seconds * 1e3:.1f}" for seconds in times), hidden, moved)
