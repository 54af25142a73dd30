"""Becomes a command that is told to end when the process that started it has gone.

    python parent_tie.py PARENT COMMAND...

PARENT is the number of that process. So ranks end when a notebook's kernel, or a script, is killed;
Linux keeps this setting over `exec`. Imports nothing of hyparflow, to start fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

__all__ = ["main"]

_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def main() -> None:
    """Tie this process to its parent, and become the command."""
    parent, *command = sys.argv[1:]
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() == int(parent):  # the parent may have ended before
        os.execvp(command[0], command)


if __name__ == "__main__":
    main()
