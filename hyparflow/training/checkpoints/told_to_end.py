"""SIGUSR1: a batch system's word that time is nearly over. Training saves, and ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["SAVED", "listening", "was_told"]

SAVED = 85  # the exit status that says: saved, run it again

_TOLD = threading.Event()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """While open, SIGUSR1 does not end this process, but is noted.

    A handler of the user's own stays. Signals come to the main thread, and elsewhere nothing is
    changed.
    """
    _TOLD.clear()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGUSR1, lambda number, frame: _TOLD.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def was_told() -> bool:
    """Whether SIGUSR1 came since `listening` was opened."""
    return _TOLD.is_set()
