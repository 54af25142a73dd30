"""Which cores the ranks of a node compute on, and a word where they get in each other's way."""

from __future__ import annotations

import functools
import platform
import warnings

from hyparflow import launcher
from hyparflow.claims import Claim, crowded
from hyparflow.comm import World
from hyparflow.grid import LEADER
from hyparflow.notices import users_stack_level
from hyparflow.threads import intra_op_threads

__all__ = ["announce_cores"]


@functools.cache
def announce_cores(world: World) -> None:
    """Warn once, on the leader, of ranks that share cores; where none do, use them. Collective."""
    mine = Claim(platform.node(), tuple(sorted(launcher.usable_cores())), intra_op_threads())
    claims = world.all_gather_objects(mine, "the cores of all ranks")
    texts = crowded(claims)
    if not texts:
        world.keep_cores_busy()
    elif world.rank == LEADER:
        for text in texts:
            warnings.warn(text, stacklevel=users_stack_level())
