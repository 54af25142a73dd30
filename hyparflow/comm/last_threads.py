"""A deadline for threads that a script leaves behind, for which Python waits at its end.

Python ends only when the threads that are no daemons have ended. As long as one rank still runs,
the launcher and the other ranks wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["watch_last_threads"]

_NAME = "hyparflow-last-threads"
_GRACE = 2.0  # seconds in which rank 0 reports first


def watch_last_threads(
    rank: int, seconds: float, end: Callable[[str], object], what: str = "script"
) -> None:
    """End the job if threads still run `seconds` after the main one. Returns at once.

    Called again, it does nothing.

    Args:
        rank: this rank.
        seconds: the deadline.
        end: called with a text, which says why.
        what: what the main thread runs.
    """

    def watch() -> None:
        main.join()
        last = time.monotonic() + seconds + (_GRACE if rank else 0.0)
        while names := _names():
            if time.monotonic() > last:
                end(
                    f"hyparflow: rank {rank} has not ended within {seconds:g} s "
                    f"(HYPARFLOW_TIMEOUT) after its {what}, for it waits for threads that are no "
                    f"daemons: {', '.join(names)}; all ranks are stopped.\n"
                )
                return
            time.sleep(min(0.2, seconds / 10))

    main = threading.main_thread()
    if all(thread.name != _NAME for thread in threading.enumerate()):
        threading.Thread(target=watch, name=_NAME, daemon=True).start()


def _names() -> list[str]:
    """The threads that Python waits for."""
    return [t.name for t in threading.enumerate() if not t.daemon and t.name != "MainThread"]
