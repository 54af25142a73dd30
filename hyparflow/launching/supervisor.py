"""Runs a job again after a fault: on the hosts that are left, and not after a bug."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from hyparflow.comm.timeout import timeout_seconds
from hyparflow.formats.text import counted
from hyparflow.launching.attempt_processes import AttemptMark, end_leftovers, stopped_ones_killed
from hyparflow.launching.end import End
from hyparflow.launching.first_error import OutputScan
from hyparflow.launching.folder import job_folder
from hyparflow.launching.hosts_left import reachable, remaining
from hyparflow.launching.job import Job, run
from hyparflow.launching.output import checked_output
from hyparflow.launching.progress_note import VARIABLE, make_note, read_note
from hyparflow.launching.restarts import SAVED, Attempt, decide, report, restart_line

__all__ = ["RestartLimits", "run_again"]

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TOLD_AT_START = "SIGUSR1 came before the first step; what was saved before is all there is"
_PLACES = ("all", "leader")  # values of --output that are no folder


class RestartLimits(NamedTuple):
    """How long to go on.

    Attributes:
        restarts: how many restarts there may be.
        least_ranks: fewer ranks than these are not started.
    """

    restarts: int
    least_ranks: int = 1


class _Told(BaseException):
    """A signal that came while no rank ran."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run_again(job: Job, limits: RestartLimits, say: Callable[[str], object]) -> End:
    """Run a job, and after a fault again, until it ends well or another attempt is of no use.

    Args:
        job: the job, as for its first attempt.
        limits: how long to go on.
        say: called with each line for the user.

    Returns:
        How the last attempt ended.

    Raises:
        ValueError: if the job cannot be started, or may have more ranks than it starts with.
    """
    if limits.least_ranks > job.request.ranks:
        raise ValueError(
            "`--min-ranks` must be at most the number of ranks. Received: "
            f"--min-ranks {limits.least_ranks} for {job.request.ranks} ranks. Use fewer."
        )
    attempts: list[Attempt] = []
    with job_folder() as folder, _signals_raised():
        try:
            end = _run_attempts(job, limits, say, folder, attempts)
            if end.code == 128 + signal.SIGUSR1 and end.is_users and attempts[-1].reached.step < 0:
                end = End(SAVED, _TOLD_AT_START, is_users=True)
        except _Told as told:
            is_asked_to_save = told.number == signal.SIGUSR1  # nothing runs: all is saved
            end = End(SAVED if is_asked_to_save else 128 + told.number, is_users=True)
    if len(attempts) > 1:
        for line in report(attempts):
            say(line)
    return end


def _run_attempts(
    job: Job,
    limits: RestartLimits,
    say: Callable[[str], object],
    folder: Path,
    attempts: list[Attempt],
) -> End:
    request = job.request
    while True:
        number = len(attempts) + 1
        attempt = _run_once(dataclasses.replace(job, request=request), number, say, folder)
        attempts.append(attempt)
        found = decide(attempts, limits.restarts)
        if not found.is_again:
            return _last(attempt, found.why_not)
        request = remaining(
            job.request, functools.partial(reachable, job), folder / f"hosts-{number + 1}"
        )
        if request.ranks < limits.least_ranks:
            left = counted(request.ranks, "rank", "ranks")
            why = f"the hosts that are left take {left}, fewer than --min-ranks allows"
            return _last(attempt, f"{why} ({limits.least_ranks})")
        say(restart_line(attempts, limits.restarts, found.pause, request.ranks))
        time.sleep(found.pause)


def _last(attempt: Attempt, why: str) -> End:
    """The end of the last attempt, with the reason for which there is no other."""
    if not why:
        return attempt.end
    text = f"{attempt.how} {attempt.where}; {why}. The job does not start again"
    return attempt.end._replace(text=text)


def _run_once(job: Job, number: int, say: Callable[[str], object], folder: Path) -> Attempt:
    """Run an attempt to the end of all of its processes on this machine."""
    note = folder / f"progress-{number}"
    make_note(note)
    output = job.output
    if output not in _PLACES:
        output = checked_output("--output", os.path.join(output, f"attempt-{number}"))
    mark = AttemptMark(VARIABLE, str(note))
    marked = dataclasses.replace(job, output=output, known=job.known | {mark.variable: mark.value})
    scan = OutputScan()
    began = time.time()
    try:
        with stopped_ones_killed(timeout_seconds(job.known), say):
            end = run(marked, say, scan.take)
    finally:
        end_leftovers(mark)
    return Attempt(
        ranks=job.request.ranks,
        end=end,
        began=began,
        ended=time.time(),
        reached=read_note(note),
        error=scan.error_of(end.rank) if end.code else None,
        has_hung=scan.has_hung,
    )


@contextlib.contextmanager
def _signals_raised() -> Iterator[None]:
    """While open, signals end the waits between attempts; within one, the job has its own way."""

    numbers = (*_ENDING, signal.SIGUSR1)

    def tell(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)  # one is enough: the end is near
        raise _Told(number)

    previous = {number: signal.signal(number, tell) for number in numbers}
    previous[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
