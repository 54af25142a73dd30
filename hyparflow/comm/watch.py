"""Starts a process beside this rank that watches MPI's start and end, as no thread could."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from hyparflow.comm import launcher, sentinel
from hyparflow.comm.timeout import timeout_seconds

__all__ = ["Watch", "own_watch"]


class Watch:
    """Tells the process beside this rank (`sentinel.py`) what the rank does.

    That process costs a rank some milliseconds once and some megabytes, and sleeps while the rank
    trains. There is none where a rank is alone, or where the system does not show processes as
    files (/proc).

    Args:
        seconds: the deadline.
    """

    def __init__(self, seconds: float) -> None:
        size = launcher.expected_size()[0]
        self._variable = launcher.rank_variable()
        self._channel: int | None = None
        self._phase = sentinel.RUNNING
        if size > 1 and self._variable and sys.executable and os.path.exists("/proc/self/stat"):
            with contextlib.suppress(OSError):  # no more processes are allowed
                self._channel = _start(self._variable, seconds, size)

    @property
    def is_kept(self) -> bool:
        """Whether there is a process beside this rank."""
        return self._channel is not None

    def enter(self, phase: str) -> None:
        """Tell the process the new phase of this rank, one of `sentinel.PHASES`."""
        self._phase = phase
        if self._channel is not None:
            with contextlib.suppress(OSError):  # somebody has killed it
                os.write(self._channel, f"{phase}\n".encode())

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """While open, the rank is in this phase; then in the one before."""
        before = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def states(self) -> dict[int, str]:
        """What the ranks of this machine do, as far as the system tells."""
        if not self.is_kept:
            return {}
        with contextlib.suppress(OSError):
            return sentinel.states(os.getpid(), self._variable)
        return {}


@functools.cache
def own_watch() -> Watch:
    """The watch of this process; the first call starts the process beside it.

    Raises:
        ValueError: if HYPARFLOW_TIMEOUT is not valid.
    """
    return Watch(timeout_seconds())


def _start(variable: str, seconds: float, size: int) -> int:
    """Start the process; returns the file descriptor on which it is told the phases."""
    ours, other = os.pipe()
    words = (os.getpid(), variable, repr(seconds), size, launcher.local_size())
    script = str(Path(sentinel.__file__).resolve())
    # Nothing of the user's is imported; but some Pythons do not find their own without PYTHONHOME.
    alone = "-s" if "PYTHONHOME" in os.environ else "-I"
    try:
        os.posix_spawn(
            sys.executable,
            [sys.executable, alone, "-S", script, *map(str, words)],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, ours, 0)],
            setpgroup=0,  # out of the way of Ctrl-C
        )
    except OSError:
        os.close(other)
        raise
    finally:
        os.close(ours)
    os.set_blocking(other, False)  # whatever happens there, the rank does not wait for it
    return other
