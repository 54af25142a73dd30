"""How a job ended: its exit status and a text for the user."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["End", "end_of", "ended_well"]

_HINTS: dict[int, str] = {
    signal.SIGTERM: "; launchers do so, and hyparflow at a deadline: why stands above",
    signal.SIGKILL: "; the system does so when memory runs out",
    signal.SIGBUS: "; the system does so when a disk or /dev/shm runs out of room",
}


class End(NamedTuple):
    """How a job ended.

    Attributes:
        code: 0, or the exit status of the first rank that failed (128 + the signal that killed it).
        text: which rank failed and how; empty if none did, or a signal from outside ended the job.
        rank: the first rank that failed; None if none did, or the launcher ended by itself.
        failed: that rank's exit status as in `subprocess`: negative for a signal.
        is_users: whether a signal that was sent to the job ended it.
    """

    code: int
    text: str = ""
    rank: int | None = None
    failed: int = 0
    is_users: bool = False


def end_of(code: int, record: Path, received: Sequence[int]) -> End:
    """How a job ended.

    Args:
        code: the launcher's exit status, as in `subprocess`.
        record: where ranks of this machine noted how they failed.
        received: the signals that were sent to the job.
    """
    ended = [
        n for n in received if n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
    ]
    if code and ended:
        return End(128 + ended[0], is_users=True)
    noted = record.read_text().split("\n")[0] if record.exists() else ""
    rank, failed = map(int, noted.split()) if noted else (None, 0)
    # Ranks whose launcher has been killed end by SIGTERM, too.
    if failed and not (code < 0 and failed == -signal.SIGTERM):
        text = f"rank {rank} {_said(failed)}{_left(failed, record)}"
        return End(_as_status(failed), text, rank, failed, is_users=-failed in received)
    if code:
        before = ", and no rank of this machine had failed before" if code > 0 else ""
        return End(_as_status(code), f"the launcher {_said(code)}{before}")
    return End(0)


def ended_well(record: Path) -> list[int]:
    """The ranks of this machine that have ended with exit status 0 so far."""
    noted = Path(f"{record}.well")
    return [int(line) for line in noted.read_text().split()] if noted.exists() else []


def _left(failed: int, record: Path) -> str:
    """Who may be why a rank was ended: a rank that left while others went on."""
    well = ended_well(record) if failed == -signal.SIGTERM else []
    if not well:
        return ""
    ranks = ", ".join(f"rank {rank}" for rank in sorted(well))
    return f". Before, {ranks} had ended with exit status 0"


def _as_status(code: int) -> int:
    return code if code >= 0 else 128 - code


def _said(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:  # one of the real-time signals
        name = ""
    return f"was killed by signal {-code}{name}{_HINTS.get(-code, '')}"
