"""What `gather=False` leaves: a model whose weights are each at the ranks of their partition."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from hyparflow.engine.weights.sync import WeightSync

__all__ = ["gathered", "note_left", "take_back"]

_LEFT = "_hyparflow_left"  # attribute of a model: what moves its weights between their owners


def note_left(model: Any, sync: WeightSync | None) -> None:
    """Note that weights are left where they are, or with None that they are everywhere."""
    vars(model).pop(_LEFT, None)
    if sync is not None and sync.holdings.parts:
        vars(model)[_LEFT] = sync


def take_back(model: Any, sync: WeightSync) -> None:
    """Gather what was left by an engine of other partitions than the present one's. Collective."""
    left = vars(model).get(_LEFT)
    if left is not None and left is not sync:
        left.gather()
        note_left(model, None)


@contextlib.contextmanager
def gathered(model: Any) -> Iterator[None]:
    """While open, the leader has all weights. Collective."""
    left = vars(model).get(_LEFT)
    if left is not None:
        left.gather_to_leader()
    yield
    if left is not None:
        left.drop()
