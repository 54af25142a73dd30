"""Removes a job's folder when the process that made it has been killed.

    python janitor.py FOLDER

That process holds a lock as long as it lives, and removes the folder itself if it may. Imports
nothing of hyparflow: it starts at once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import time

__all__ = ["main"]

_TRIALS, _INTERVAL = 20, 0.5  # seconds; the launcher writes into it until it has ended, too


def main() -> None:
    """Wait for the end of that process; then see to it that nothing is left."""
    folder = sys.argv[1]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(os.path.join(folder, "lock"), "rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        trial = 0
        while os.path.exists(folder) and trial < _TRIALS:
            time.sleep(_INTERVAL)
            remove(folder)
            trial += 1


def remove(folder: str) -> None:
    """Remove it, the lock last: by that the next job finds what is left."""
    try:
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != "lock":
                os.unlink(entry.path)
        shutil.rmtree(folder)
    except OSError:
        return


if __name__ == "__main__":
    main()
