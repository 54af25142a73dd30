"""Which hosts of a job can still be reached, and the ranks that fit on them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from hyparflow.launching.flags import LaunchRequest, environment, flags
from hyparflow.launching.job import Job

__all__ = ["HostLine", "hosts_of", "reachable", "remaining"]

_PATIENCE = 30.0  # seconds for the launcher to start a program on a host
_AGAIN = 10.0  # seconds after which another launcher tries it, too
_LOOK = 0.05
_AT_ONCE = 16  # hosts that are tried at the same time
_SLOTS = re.compile(r"\bslots\s*=\s*(\d+)|^\S+?:(\d+)(?:\s|$)")  # Open MPI's way, and MPICH's


class HostLine(NamedTuple):
    """A host as the user has written it.

    Attributes:
        name: its name.
        slots: how many ranks it takes; None if that is not written.
        text: the whole of what is written of it.
    """

    name: str
    slots: int | None
    text: str


def hosts_of(request: LaunchRequest) -> list[HostLine]:
    """The hosts that a user has named; none for this machine, or where a batch system names them.

    Raises:
        OSError: if the file of hosts cannot be read.
    """
    if request.hosts is not None:
        parts = [part.partition(":") for part in request.hosts.split(",")]
        return [HostLine(name, int(n or 1), f"{name}{colon}{n}") for name, colon, n in parts]
    if request.hostfile is None:
        return []
    found = []
    for line in Path(request.hostfile).read_text().splitlines():
        if text := line.partition("#")[0].strip():
            slots = _SLOTS.search(text)
            count = int(slots[1] or slots[2]) if slots else None
            found.append(HostLine(re.split(r"[\s:]", text)[0], count, text))
    return found


def remaining(
    request: LaunchRequest, reached: Callable[[Sequence[str]], Collection[str]], file: Path
) -> LaunchRequest:
    """The same request on the hosts that can be reached; with no ranks if there are none.

    Args:
        request: what the user asked for.
        reached: which of these hosts can be reached, by their names.
        file: written with the lines of hosts that are left, for a request with a file of hosts.

    Raises:
        OSError: if a file of hosts cannot be read or written.
    """
    hosts = hosts_of(request)
    names = reached([host.name for host in hosts])
    left = [host for host in hosts if host.name in names]
    if len(left) == len(hosts):
        return request
    share = -(-request.ranks // len(hosts))  # where nothing says how many a host takes
    ranks = min(request.ranks, sum(share if host.slots is None else host.slots for host in left))
    if request.hosts is not None:
        text = ",".join(host.text for host in left)
        return dataclasses.replace(request, ranks=ranks, hosts=text)
    file.write_text("".join(f"{host.text}\n" for host in left))
    return dataclasses.replace(request, ranks=ranks, hostfile=str(file))


def reachable(job: Job, names: Sequence[str]) -> set[str]:
    """The hosts on which the job's launcher can start a program.

    A launcher whose connection was lost does not try it again. So another one begins after a while
    on hosts that have not answered, for a network that has come back meanwhile.
    """
    found: set[str] = set()
    for begin in range(0, len(names), _AT_ONCE):
        tried = {name: [_trial(job, name)] for name in names[begin : begin + _AT_ONCE]}
        begun = time.monotonic()
        try:
            while (waited := time.monotonic() - begun) < _PATIENCE:
                found |= {name for name in tried if _has_answered(tried[name])}
                left = [name for name in tried if name not in found and _has_hope(tried[name])]
                if not left:
                    break
                for name in left:
                    if waited > _AGAIN * len(tried[name]):
                        tried[name].append(_trial(job, name))
                time.sleep(_LOOK)
        finally:  # also where a signal ends the wait
            for process in itertools.chain(*tried.values()):
                with contextlib.suppress(OSError):  # it has ended
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return found


def _has_answered(trials: Sequence[subprocess.Popen[bytes]]) -> bool:
    return any(trial.poll() == 0 for trial in trials)


def _has_hope(trials: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Whether a host may still answer, or has done so just now."""
    return any(trial.poll() in (None, 0) for trial in trials)


def _trial(job: Job, name: str) -> subprocess.Popen[bytes]:
    """The launcher, about to start `true` on a host."""
    request = LaunchRequest(1, hosts=f"{name}:1", oversubscribe=True)
    return subprocess.Popen(
        [str(job.launcher), *flags(job.mpi, request), "true"],
        env=job.known | environment(job.mpi, request, job.known),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
