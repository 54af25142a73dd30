"""Becomes a command that is told to end when the process that started it has gone.

    python parent_tie.py PARENT COMMAND...

PARENT is the number of that process. So ranks do not outlive a notebook's kernel, or a script, that
is killed; Linux keeps the promise over `exec`. Imports nothing of hyparflow: it starts at once.
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
    with contextlib.suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() == int(parent):  # it might have gone before
        os.execvp(command[0], command)


if __name__ == "__main__":
    main()
