"""What ranks other than the leader have in place of a server: they work until it closes."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from hyparflow.serving.ranks.ranks_runner import RanksRunner

__all__ = ["Follower"]


class _BodyIsLeadersError(Exception):
    """Raised at the first line of a ``with`` block, to leave it out."""


class Follower:
    """Stands for the server of the leader: ``with`` works until that closes, and has no body.

    A ``with`` statement cannot leave out its body by itself. So a trace function, which Python
    calls before the first line of it, raises an error there, and the end of the block takes it.

    Args:
        runner: does what the leader says.
    """

    def __init__(self, runner: RanksRunner) -> None:
        self._runner = runner
        self._trace: Any = None

    def __enter__(self) -> Follower:
        self._runner.follow()
        frame = _caller()
        self._trace = sys.gettrace()
        if self._trace is None:  # frames are traced only while there is a function for all
            sys.settrace(lambda *event: None)
        self._traced_before = frame.f_trace
        frame.f_trace = self._leave_out
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        _caller().f_trace = self._traced_before
        sys.settrace(self._trace)
        return kind is _BodyIsLeadersError

    def _leave_out(self, *event: Any) -> Any:
        raise _BodyIsLeadersError


def _caller() -> Any:
    """The frame of the `with` statement."""
    own = inspect.currentframe()
    return own.f_back.f_back if own is not None and own.f_back is not None else None
