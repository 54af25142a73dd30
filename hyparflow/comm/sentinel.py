"""A process beside a rank that ends the job when MPI's start or its end passes the deadline.

    python -I -S sentinel.py PROCESS VARIABLE SECONDS RANKS LOCAL

MPI starts and ends in calls during which no thread of a rank's Python runs, so nothing within the
rank could. PROCESS is the rank's, VARIABLE the environment variable with a rank's number, SECONDS
the deadline, RANKS how many there are, LOCAL how many on this machine. What the rank does, one of
`PHASES`, comes on standard input and becomes the name of this process, so that others can tell.
Imports nothing of hyparflow: it starts at once. It ends with its rank; the last one of a job
becomes `launcher_end.py`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["BUILDING", "ENDING", "PHASES", "RUNNING", "STARTED", "STARTING", "main", "states"]

STARTING = "starting"
BUILDING = "building"
RUNNING = "running"
ENDING = "ending"
PHASES = {  # what a rank waits for in each
    STARTING: "all ranks to start MPI",
    BUILDING: "all ranks to make their communicators",
    RUNNING: "",
    ENDING: "all ranks to end",
}
STARTED = "started MPI"  # in reports, of a rank that has got further
_NAME = "hyparflow:"  # of this process, before the phase; Linux keeps 15 characters, see `phase`
_LOOK = 0.2  # seconds from one look at the time to the next
_PAUSE = 1.0  # a longer time between two looks is one in which this process was stopped, too
_GRACE = 3.0  # seconds for another report, or for the launcher to end the other ranks


class Watched(NamedTuple):
    """The rank that this process watches; see the words on the command line."""

    process: int
    variable: str
    seconds: float
    ranks: int
    local: int


class Process(NamedTuple):
    """What /proc tells of a process: its parent, its state as a letter, and its name."""

    parent: int
    state: str
    name: str

    @property
    def is_stopped(self) -> bool:
        return self.state in ("T", "t")

    @property
    def phase(self) -> str | None:
        """What the rank beside this process does, if it is a sentinel."""
        named = self.name[: len(_NAME)] == _NAME
        start = self.name[len(_NAME) :]
        return next((p for p in PHASES if named and p.startswith(start)), None)


def process(number: int) -> Process | None:
    """What is known of a process; None if it has ended."""
    try:
        with open(f"/proc/{number}/stat", errors="replace") as file:
            head, _, rest = file.read().rpartition(")")
    except OSError:
        return None
    state, parent = rest.split()[:2]
    return Process(int(parent), state, head.partition("(")[2])


def _processes() -> dict[int, Process]:
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return {n: found for n in numbers if (found := process(n)) is not None}


def _rank_of(number: int, variable: str) -> int | None:
    """The rank that a process belongs to; None if it is of no job, or another user's."""
    try:
        with open(f"/proc/{number}/environ", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return None
    start = f"{variable}=".encode()
    value = next((word[len(start) :] for word in words if word.startswith(start)), b"")
    return int(value) if value.isdigit() else None


def _launcher(number: int, variable: str, known: dict[int, Process]) -> int:
    """The process that has started the rank of process `number`; 0 if that has ended."""
    while number in known and _rank_of(known[number].parent, variable) is not None:
        number = known[number].parent
    return known[number].parent if number in known else 0


def _roots(launcher: int, variable: str, known: dict[int, Process]) -> dict[int, int]:
    """The processes that the launcher has started here, and which rank each is."""
    started = [n for n, one in known.items() if launcher and one.parent == launcher]
    return {n: rank for n in started if (rank := _rank_of(n, variable)) is not None}


def _family(root: int, known: dict[int, Process]) -> Iterator[int]:
    """A process and all that come from it."""
    yield root
    for number, one in known.items():
        if one.parent == root:
            yield from _family(number, known)


def states(number: int, variable: str) -> dict[int, str]:
    """What each rank does that runs on this machine in the job of process `number`."""
    known = _processes()
    found = {}
    for root, rank in _roots(_launcher(number, variable, known), variable, known).items():
        family = [known[n] for n in _family(root, known)]
        phases = [one.phase for one in family if one.phase is not None]
        others = [one for one in family if one.phase is None]
        found[rank] = _describe(others, phases[0] if phases else None)
    return found


def _describe(processes: list[Process], phase: str | None) -> str:
    if any(one.is_stopped for one in processes):
        text = "is stopped"
    elif all(one.state in "ZX" for one in processes):
        return "has ended"
    else:
        text = "runs"
    if phase is None:
        return f"{text}, has not started MPI by a call of hyparflow"
    if phase == RUNNING:
        return f"{text}, has {STARTED}"
    ends = "ends, or " if phase == ENDING else ""  # the script may do something at its exit
    return f"{text}, {ends}waits for {PHASES[phase]}"


def _report(rank: Watched, phase: str, found: dict[int, str]) -> str:
    is_alone = rank.ranks <= max(rank.local, len(found))
    absent = "has ended" if is_alone else "has ended, or is on another machine"
    number = os.environ.get(rank.variable)
    return "\n".join(
        [
            f"hyparflow: a wait passed its deadline of {rank.seconds:g} s (HYPARFLOW_TIMEOUT): "
            f"rank {number} waits for {PHASES[phase]}.",
            "  rank | now",
            *(f"  {n:>4} | {found.get(n, absent)}" for n in range(rank.ranks)),
            "hyparflow: all ranks are stopped.\n",
        ]
    )


def _is_first(launcher: int) -> bool:
    """Whether no other rank of this machine reports; the name goes with this process."""
    import socket

    try:
        mine = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        mine.bind(f"\0hyparflow-{os.getuid()}-{launcher}")
    except OSError:
        return False
    os.set_inheritable(mine.detach(), True)  # open until this process ends, whatever it becomes
    return True


def _end(rank: Watched, phase: str) -> None:
    """Report, and end this rank; the launcher ends the others, or else this does."""
    launcher = _launcher(rank.process, rank.variable, _processes())
    found = states(rank.process, rank.variable)
    if 0 not in found and rank.ranks > max(rank.local, len(found)):
        time.sleep(_GRACE)  # the machine of rank 0 reports first
    is_first = _is_first(launcher)
    if os.getppid() != rank.process:  # another's report has ended this rank meanwhile
        return
    if is_first:
        with contextlib.suppress(OSError):
            os.write(2, _report(rank, phase, found).encode())
        time.sleep(_LOOK)
        _kill(rank.process, signal.SIGTERM)
    _wait_for(lambda: not _left(launcher, rank.variable))
    for number in _left(launcher, rank.variable) if is_first else [rank.process]:
        _kill(number, signal.SIGKILL)


def _left(launcher: int, variable: str) -> list[int]:
    """All processes of ranks that the launcher has started here and not ended yet."""
    known = _processes()
    all_ = [n for root in _roots(launcher, variable, known) for n in _family(root, known)]
    return [n for n in all_ if known[n].phase is None and known[n].state not in "ZX"]


def _wait_for(done: Callable[[], bool]) -> None:
    end = time.monotonic() + _GRACE
    while not done() and time.monotonic() < end:
        time.sleep(_LOOK)


def _kill(number: int, with_: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        os.kill(number, with_)


def _name(phase: str) -> None:
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(f"{_NAME}{phase}")


def main() -> None:
    """Watch until the rank has ended; after the last rank, watch the launcher."""
    kinds = (int, str, float, int, int)
    watched = Watched(*(kind(word) for kind, word in zip(kinds, sys.argv[1:], strict=True)))
    os.closerange(3, 4096)  # the launcher's channels to the rank are not for this process
    _name(STARTING)
    launcher = _launcher(watched.process, watched.variable, _processes())
    _watch(watched)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # the launcher waits until nobody holds the output of the rank
        os.dup2(nowhere, stream)
    while os.getppid() == watched.process:
        time.sleep(_LOOK)
    is_whole = watched.ranks <= watched.local  # else the launcher waits for other machines
    if launcher and is_whole and not _left(launcher, watched.variable) and _is_first(launcher):
        script = os.path.join(os.path.dirname(__file__), "launcher_end.py")
        alone = "-I" if sys.flags.isolated else "-s"
        words = [alone, "-S", script, str(launcher), repr(watched.seconds)]
        os.execv(sys.executable, [sys.executable, *words])


def _watch(watched: Watched) -> None:
    """End the job at a deadline; returns when the rank has ended, or tells no more."""
    phase, waited = STARTING, 0.0
    events = select.poll()
    events.register(0, select.POLLIN)
    idle: float | None = 1000 * _PAUSE
    with contextlib.suppress(OSError, AttributeError):
        events.register(os.pidfd_open(watched.process), select.POLLIN)  # ready at its end
        idle = None
    last = time.monotonic()
    while os.getppid() == watched.process:
        ready = events.poll(1000 * _LOOK if PHASES[phase] else idle)
        now = time.monotonic()
        if any(number == 0 for number, _ in ready):
            words = os.read(0, 4096).decode().split()
            if not words:
                return
            phase, waited = words[-1], 0.0
            _name(phase)
        elif PHASES[phase]:
            rank = process(watched.process)
            if rank is not None and not rank.is_stopped and now - last < _PAUSE:
                waited += now - last
            if waited > watched.seconds:
                return _end(watched, phase)
        last = now


if __name__ == "__main__":
    main()
