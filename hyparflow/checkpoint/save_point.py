"""Where a training stands when it saves a checkpoint: the same on all ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["SavePoint"]


@dataclass(frozen=True)
class SavePoint:
    """Where a training stands.

    Attributes:
        step: training steps so far, of all epochs.
        epoch: the epoch that runs, from 0, or that comes next.
        step_in_epoch: its steps so far.
        state: what the leader alone knows, as JSON.
        best: the step of the checkpoint whose metric is the best so far; None if none decides.
    """

    step: int
    epoch: int
    step_in_epoch: int
    state: dict[str, Any]
    best: int | None = None
