"""Who am I: the ranks of this job, as far as there are several."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from hyparflow.comm import abort, launcher, log

if TYPE_CHECKING:
    from hyparflow.comm.world import World

__all__ = ["is_leader", "rank", "size", "world"]


@functools.cache
def world() -> World | None:
    """All ranks, or None in a process that no launcher started. Starts MPI."""
    if not launcher.is_launched():
        log.configure()
        return None
    from hyparflow.comm.world import World

    abort.install()
    ranks = World()
    log.configure()  # after MPI has started, so that one rank reports what is wrong for all
    return ranks


def rank() -> int:
    """This process's rank, 0 to ``size() - 1``; 0 outside of MPI."""
    ranks = world()
    return 0 if ranks is None else ranks.rank


def size() -> int:
    """The number of ranks; 1 outside of MPI."""
    ranks = world()
    return 1 if ranks is None else ranks.size


def is_leader() -> bool:
    """Whether this is rank 0, which runs callbacks and shows progress."""
    return rank() == 0
