"""What the leader has the ranks of a replica do. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from hyparflow.serving.scheduling.window import Window

__all__ = ["Idle", "Record", "WarmUp"]


@dataclass(frozen=True)
class WarmUp:
    """What `Runner.warm_up` takes."""

    window: Window


@dataclass(frozen=True)
class Idle:
    """Nothing to do: tells ranks that wait that the leader is there."""


# A window is to be computed; None ends it all.
Record = Window | WarmUp | Idle | None
