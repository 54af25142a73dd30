"""Removes a job's folder when the process that made it has been killed.

    python janitor.py FOLDER

That process holds a lock as long as it lives, and removes the folder itself if it can. Imports
nothing of hyparflow, to start fast.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import time

__all__ = ["main"]

# Several trials, seconds apart: the launcher writes into the folder until it has ended, too.
_TRIALS, _INTERVAL = 20, 0.5


def main() -> None:
    """Wait for the end of that process; then remove the folder."""
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
    """Remove the folder, the lock last: by the lock the next job finds a folder that is left."""
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
