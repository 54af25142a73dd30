"""Whether a job that failed starts again: what is a fault, what is a bug, and the report.

A fault comes from outside, so that another attempt may go well: a rank was killed, hangs, or its
host is lost. A bug is an error that came twice at the same step, or that a script has before it
does anything.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from hyparflow.formats.text import counted
from hyparflow.launching.end import End
from hyparflow.launching.first_error import FirstError
from hyparflow.launching.progress_note import Reached

__all__ = ["SAVED", "Attempt", "RestartDecision", "report", "restart_line", "decide"]

SAVED = 85  # exit status of a training that was told to save and end: "run me again later"
_USAGE = 2  # exit status of Python, argparse and click where a command line is wrong
# Before the first step these are the same each time.
_UNREADABLE = ("SyntaxError", "IndentationError", "TabError", "ImportError", "ModuleNotFoundError")
# A crash of a library may be a bug; other signals come from outside.
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
_LONGEST_PAUSE = 60.0  # seconds


@dataclass(frozen=True)
class Attempt:
    """One run of a job, which has ended.

    Attributes:
        ranks: how many there were.
        end: how it ended.
        began: when it was started, in seconds since 1970.
        ended: when its last process was gone.
        reached: how far it came.
        error: the error that the first failed rank has shown; None for none.
        has_hung: whether it was ended because a wait passed its deadline.
    """

    ranks: int
    end: End
    began: float
    ended: float
    reached: Reached = Reached()
    error: FirstError | None = None
    has_hung: bool = False

    @property
    def how(self) -> str:
        """How it ended, in a few words."""
        if not self.end.code:
            return "ended without error"
        if self.end.is_users:
            return "ended by a signal from outside"
        text = self.end.text.split("; ")[0]
        if self.has_hung:
            return f"{text} (a wait passed its deadline)"
        return f"{text} ({self.error})" if self.error is not None else text

    @property
    def where(self) -> str:
        """The step it came to, in words."""
        if self.reached.step < 0:
            return "before a first step that is known"
        return f"at epoch {self.reached.epoch}, step {self.reached.step}"

    @property
    def signature(self) -> str | None:
        """What tells its error from others; None for a fault, which may come twice."""
        failed = self.end.failed
        if self.has_hung or self.end.code > 128 and not failed:
            return None
        if failed < 0 and failed != -signal.SIGTERM:
            is_crash = -failed in _CRASHES and self.reached.step >= 0
            return f"signal {-failed}" if is_crash else None
        # A rank may be ended by SIGTERM while it shows its error.
        if self.error is not None:
            return self.error.signature
        return f"exit status {failed}" if failed > 0 else None

    def is_same_as(self, other: Attempt) -> bool:
        """Whether both had the same error at the same step.

        Other ranks than the first may be a step ahead of it, so one step makes no difference.
        """
        near = abs(self.reached.step - other.reached.step) <= 1
        is_begun = (self.reached.step < 0) == (other.reached.step < 0)
        return (
            self.signature is not None and self.signature == other.signature and near and is_begun
        )


class RestartDecision(NamedTuple):
    """What to do after an attempt.

    Attributes:
        is_again: whether another one starts.
        pause: seconds to wait before it.
        why_not: why none starts, in words; empty if there is no need for one.
    """

    is_again: bool
    pause: float = 0.0
    why_not: str = ""


def decide(attempts: Sequence[Attempt], most: int) -> RestartDecision:
    """What to do after the last of these attempts.

    Args:
        attempts: all so far.
        most: how many restarts there may be.
    """
    last = attempts[-1]
    if last.end.code in (0, SAVED) or last.end.is_users:
        return RestartDecision(False)
    if last.reached.step < 0 and _is_hopeless(last):
        return RestartDecision(
            False, why_not="it failed before its first step as it would each time: a bug, no fault"
        )
    if any(last.is_same_as(other) for other in attempts[:-1]):
        return RestartDecision(
            False, why_not=f"the same error came twice {last.where}: a bug, no fault"
        )
    if len(attempts) > most:
        return RestartDecision(False, why_not=f"no restart is left of {most}")
    return RestartDecision(True, _pause(attempts))


def _is_hopeless(attempt: Attempt) -> bool:
    """Whether an attempt without a first step failed as it would each time."""
    if attempt.signature is None:
        return False
    if attempt.error is not None:
        return attempt.error.kind in _UNREADABLE
    return attempt.end.code == _USAGE


def _pause(attempts: Sequence[Attempt]) -> float:
    """Twice as long after each attempt in a row that came no further than the one before."""
    pause = 1.0
    for before, after in pairwise(attempts):
        pause = 1.0 if after.reached.step > before.reached.step else pause * 2
    return min(pause, _LONGEST_PAUSE)


def _saved(attempts: Sequence[Attempt]) -> int:
    return max(attempt.reached.saved for attempt in attempts)


def restart_line(attempts: Sequence[Attempt], most: int, pause: float, ranks: int) -> str:
    """What is said before another attempt.

    Args:
        attempts: all so far.
        most: how many restarts there may be.
        pause: seconds until the next begins.
        ranks: how many ranks it has.
    """
    last = attempts[-1]
    saved = _saved(attempts)
    goes_on = f"goes on from step {saved}" if saved >= 0 else "no saved step is known"
    return (
        f"{last.how} {last.where}; attempt {len(attempts) + 1} of {most + 1} starts in "
        f"{pause:g} s on {counted(ranks, 'rank', 'ranks')}, {goes_on}."
    )


def report(attempts: Sequence[Attempt]) -> list[str]:
    """A line for each attempt: how it ended, the step, the last save, and the time lost."""
    lines = []
    for number, attempt in enumerate(attempts, 1):
        saved = _saved(attempts[:number])
        parts = [
            f"attempt {number} on {counted(attempt.ranks, 'rank', 'ranks')}: {attempt.how}",
            f"reached epoch {attempt.reached.epoch}, step {attempt.reached.step}"
            if attempt.reached.step >= 0
            else "step not known",
            f"last saved step {saved}" if saved >= 0 else "no save known",
        ]
        if attempt.end.code:
            parts.append(f"{_lost(attempts, number - 1):.1f} s lost")
        lines.append(", ".join(parts))
    return lines


def _lost(attempts: Sequence[Attempt], index: int) -> float:
    """Seconds from the last save of an attempt to the first step of the next."""
    attempt = attempts[index]
    since = attempt.reached.saved_at or attempt.reached.first_at or attempt.began
    if index + 1 == len(attempts):
        return attempt.ended - since
    following = attempts[index + 1]
    return (following.reached.first_at or following.ended) - since
