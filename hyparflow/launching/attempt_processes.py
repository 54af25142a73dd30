"""The processes of one attempt of a job: those that are stopped, and those that stay behind."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import psutil

__all__ = ["AttemptMark", "end_leftovers", "stopped_ones_killed"]

_LOOK = 2.0  # seconds from one look for stopped processes to the next
_SPARE = 8.0  # seconds after the deadline in which ranks may report it themselves
_PATIENCE = 3.0  # seconds for processes to end by themselves when their launcher has gone
_INTERVAL = 0.1


class AttemptMark(NamedTuple):
    """An environment variable that all processes of an attempt have inherited."""

    variable: str
    value: str


def end_leftovers(mark: AttemptMark) -> int:
    """Wait for the end of an attempt's processes on this machine; kill those that stay.

    Args:
        mark: what they have in their environment.

    Returns:
        How many had to be killed.
    """
    end = time.monotonic() + _PATIENCE
    while (left := _marked(mark)) and time.monotonic() < end:
        time.sleep(_INTERVAL)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, _PATIENCE)
    return len(left)


def _marked(mark: AttemptMark) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it has ended, or is another user's
            if process.environ().get(mark.variable) == mark.value:
                found.append(process)
    return found


@contextlib.contextmanager
def stopped_ones_killed(seconds: float, say: Callable[[str], object]) -> Iterator[None]:
    """While open, kill processes below this one that stay stopped, as by SIGSTOP.

    Ranks that wait for a stopped one end the job at the deadline themselves. This ends it where no
    rank waits in a call of hyparflow: a single rank, a launcher that is stopped, all ranks at once.

    Args:
        seconds: the deadline; infinity for none.
        say: called with a text for each process that is killed.
    """
    if math.isinf(seconds):
        yield
        return
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(over, seconds + _SPARE, say), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(over: threading.Event, seconds: float, say: Callable[[str], object]) -> None:
    waits: dict[int, float] = {}
    while not over.wait(_LOOK):
        stopped = {process.pid: process for process in _stopped()}
        # Counted by looks: none is made while this process is stopped, too, as after Ctrl-Z.
        waits = {number: waits.get(number, 0.0) + _LOOK for number in stopped}
        for number, waited in waits.items():
            if waited > seconds:
                say(
                    f"process {number} has been stopped for {seconds:g} s, which is longer than "
                    "HYPARFLOW_TIMEOUT; it is killed."
                )
                with contextlib.suppress(psutil.Error):
                    stopped[number].kill()


def _stopped() -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.Error, OSError):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_STOPPED:
                    yield process
