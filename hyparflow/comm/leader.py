"""What only the leader does, with the same outcome on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from hyparflow.comm import abort
from hyparflow.comm.portable_errors import portable
from hyparflow.comm.world import World

__all__ = ["LEADER", "on_leader"]

_T = TypeVar("_T")


def on_leader(world: World, work: Callable[[], _T], what: str) -> _T:
    """What `work` returns on the leader, on all ranks. Collective.

    Args:
        world: all ranks.
        work: called on the leader only.
        what: what the others wait for.

    Raises:
        Exception: on all ranks, what `work` raises.
    """
    world.begin_call()
    error: Exception | None = None
    message: Any = None
    if world.rank == LEADER:
        try:
            message = work(), None
        except Exception as caught:  # raised below, on all ranks
            error = caught
            message = None, portable(caught)
    result, recipe = world.broadcast_object(message, LEADER, what)
    if recipe is not None:
        raise abort.mark_collective(error or recipe[0](*recipe[1]))
    return result  # type: ignore[no-any-return]


LEADER = 0
