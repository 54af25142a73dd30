"""The ranks of this job: how many there are, and which of them this process is."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from hyparflow.comm import abort, launcher, log

if TYPE_CHECKING:
    from hyparflow.comm.world import World

__all__ = ["alone", "is_leader", "rank", "size", "world"]


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


@functools.cache
def alone() -> World:
    """This process as the only rank, where no launcher started it. Starts MPI."""
    from hyparflow.comm.world import World

    return World()


def rank() -> int:
    """Return the rank of this process.

    Under a launcher of MPI jobs the first call starts MPI.

    Returns:
        Integer, from 0 to `size() - 1`; 0 in a process that no launcher started.
    """
    ranks = world()
    return 0 if ranks is None else ranks.rank


def size() -> int:
    """Return the number of ranks of this job.

    Under a launcher of MPI jobs the first call starts MPI.

    Returns:
        Integer, at least 1; 1 in a process that no launcher started.
    """
    ranks = world()
    return 1 if ranks is None else ranks.size


def is_leader() -> bool:
    """Return whether this process is the leader, rank 0.

    The leader runs the callbacks and shows the progress bar. Ask before a script writes files of
    its own. All ranks must make the same calls of hyparflow, so none may depend on the answer.

    Returns:
        Boolean; `True` in a process that no launcher started.

    Example::

        history = hf.fit(model, x, y)
        if hf.is_leader():
            Path("history.json").write_text(json.dumps(history.history))
    """
    return rank() == 0
