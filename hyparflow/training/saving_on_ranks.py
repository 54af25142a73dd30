"""Saves a model whose weights may be on several ranks: the leader writes, the others lend."""

from __future__ import annotations

import os
from typing import Any

from hyparflow.comm.leader import on_leader
from hyparflow.comm.world import World
from hyparflow.model.saving import save_atomically
from hyparflow.training.left_weights import borrowing, lend

__all__ = ["save_on_leader"]


def save_on_leader(
    model: Any, world: World, path: str | os.PathLike[str], method: str, **kwargs: Any
) -> None:
    """Keras's `save`, `save_weights` or `export`, complete or not at all. Collective.

    The leader has few of the others' weights at once.

    Args:
        model: the user's.
        world: all ranks.
        path: of the file or folder.
        method: the name of Keras's method.
        **kwargs: its other arguments.
    """
    lend(model, world)

    def save() -> None:
        with borrowing(model, world):
            save_atomically(model, path, method, **kwargs)

    on_leader(world, save, "the leader to save the model")
