"""Stops a launcher that has not started any rank by the deadline."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hyparflow.comm import abort
from hyparflow.comm.timeout import Waiting

__all__ = ["begins_in_time"]

_LOOK = 0.2  # seconds from one look to the next


def begins_in_time(
    process: subprocess.Popen[bytes],
    launcher: Path,
    record: Path,
    seconds: float,
    stop: Callable[[subprocess.Popen[bytes]], object],
) -> None:
    """Watch a launcher until one of its ranks runs; from then on the ranks watch deadlines.

    Args:
        process: the launcher's process.
        launcher: its path.
        record: the job's record; a rank makes a file beside it when it begins (`rank_process.py`).
        seconds: the deadline.
        stop: ends the process and what it has started.
    """
    begun = Path(f"{record}.begun")

    def watch() -> None:
        waiting = Waiting()
        while process.poll() is None and not begun.exists():
            time.sleep(_LOOK)
            if waiting.look() > seconds:
                abort.say(
                    f"hyparflow: {launcher} has started no rank within {seconds:g} s "
                    "(HYPARFLOW_TIMEOUT); all ranks are stopped.\n"
                )
                stop(process)
                return

    threading.Thread(target=watch, daemon=True).start()
