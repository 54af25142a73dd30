"""What one rank does and when, noted while it happens."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

__all__ = ["Event", "EventKind", "Recorder"]

_KEPT = 200  # steps: the last ones of a training


class EventKind:
    """The kinds of an `Event` beside those of the steps in the lowered list."""

    TRAINING_STEP = "step"  # a whole training step
    DATA = "data"  # getting the rows of a step
    WAIT = "wait"  # for another rank
    EXCHANGE = "exchange"  # of rows of experts, from all ranks to all
    SUM = "sum"  # over replicas, from its start until all parts have arrived


class Event(NamedTuple):
    """Something that took a rank from `start` to `end` (seconds of its own clock).

    Attributes:
        kind: that of a step in the lowered list, or one of `EventKind`.
        stage, microbatch, peer: those of a step, or -1.
        moved: bytes that it sent or received.
        text: for what a rank waited.
    """

    kind: str
    start: float
    end: float
    stage: int = -1
    microbatch: int = -1
    peer: int = -1
    moved: int = 0
    text: str = ""


class Recorder:
    """Notes events of the last training steps while it is on.

    Attributes:
        on: whether events are recorded; while it is False they are dropped.
        steps: the events of each step.
    """

    def __init__(self) -> None:
        self.on = False
        self.steps: deque[list[Event]] = deque(maxlen=_KEPT)

    def begin_step(self) -> None:
        """Begin a training step: later events belong to it."""
        if self.on:
            self.steps.append([])

    def note(self, kind: str, start: float, text: str = "", moved: int = 0) -> None:
        """Note an event of this kind, from `start` until now."""
        if self.on and self.steps:
            event = Event(kind, start, time.monotonic(), text=text, moved=moved)
            self.steps[-1].append(event)

    def note_step(
        self, kind: str, stage: int, microbatch: int, peer: int, start: float, moved: int
    ) -> None:
        """Note a step of the lowered list, from `start` until now."""
        if self.on and self.steps:
            event = Event(
                kind=kind,
                start=start,
                end=time.monotonic(),
                stage=stage,
                microbatch=microbatch,
                peer=peer,
                moved=moved,
            )
            self.steps[-1].append(event)
