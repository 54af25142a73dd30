"""Ends a launcher that does not end after its ranks, as Open MPI's may.

    python -I -S launcher_end.py LAUNCHER SECONDS

LAUNCHER is its process, SECONDS the deadline. The process beside the last rank of a job
(`sentinel.py`) becomes this one. Imports nothing of hyparflow: it starts at once. It ends with the
launcher. A launcher that waits for somebody to read the output of the job is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import time

__all__ = ["main"]

# Launchers of one job, by the names of their processes; others serve jobs that come later.
_LAUNCHERS = ("mpirun", "mpiexec", "mpiexec.hydra", "hydra_pmi_proxy", "orterun", "prterun")
_LOOK = 0.2  # seconds from one look to the next
_PAUSE = 1.0  # a longer time between two looks is one in which this process was stopped, too
_PATIENCE = 3.0  # seconds for it to end when it is told to


def _name_and_state(process: int) -> tuple[str, str]:
    """The name of a process, and its state as a letter; empty once it has ended."""
    try:
        with open(f"/proc/{process}/stat", errors="replace") as file:
            head, _, rest = file.read().rpartition(")")
    except OSError:
        return "", ""
    state = rest.split()[0]
    return ("", "") if state in "ZX" else (head.partition("(")[2], state)


def _is_read(process: int) -> bool:
    """Whether somebody takes the output of a process; False where that cannot be known."""
    return all(_takes(f"/proc/{process}/fd/{stream}") for stream in (1, 2))


def _takes(path: str) -> bool:
    """Whether a write to this open file would not wait."""
    try:
        if os.readlink(path).startswith("socket:"):  # which nobody else can open
            return False
        stream = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        return error.errno == errno.ENXIO  # a pipe without a reader
    ready = select.select([], [stream], [], 0)[1]
    os.close(stream)
    return bool(ready)


def _stop(process: int, name: str, seconds: float) -> None:
    text = (
        f"hyparflow: {name} (process {process}) has not ended within {seconds:g} s "
        "(HYPARFLOW_TIMEOUT) after its ranks did; it is stopped.\n"
    )
    with contextlib.suppress(OSError), open(f"/proc/{process}/fd/2", "w") as file:
        file.write(text)
    end = time.monotonic() + _PATIENCE
    with contextlib.suppress(OSError):
        os.kill(process, signal.SIGTERM)
        while _name_and_state(process)[0] == name:
            if time.monotonic() > end:
                os.kill(process, signal.SIGKILL)
            time.sleep(_LOOK)


def main() -> None:
    """Wait for the launcher's end, or the deadline."""
    process, seconds = int(sys.argv[1]), float(sys.argv[2])
    waited, last = 0.0, time.monotonic()
    while waited <= seconds:
        name, state = _name_and_state(process)
        if name not in _LAUNCHERS:
            return
        time.sleep(_LOOK)
        now = time.monotonic()
        if now - last < _PAUSE and state not in "Tt" and _is_read(process):
            waited += now - last
        last = now
    _stop(process, name, seconds)


if __name__ == "__main__":
    main()
