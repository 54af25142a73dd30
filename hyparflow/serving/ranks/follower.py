"""What ranks other than the leader have in place of a server: they work until it closes."""

from __future__ import annotations

import contextlib
import inspect
import sys
from types import FrameType
from typing import Any

from hyparflow.serving.ranks.following_rank import FollowingRank

__all__ = ["Follower"]


class _BodyIsLeadersError(Exception):
    """Raised at the first line of a ``with`` block, to leave it out."""


class Follower:
    """Stands for the server of the leader: ``with`` works until that closes, and has no body.

    A ``with`` statement cannot leave out its body by itself. So a trace function, which Python
    calls before the first instruction of it, raises an error there, and the end of the block takes
    it.

    Args:
        rank: does what the leader says.
    """

    def __init__(self, rank: FollowingRank) -> None:
        self._rank = rank
        self._trace: Any = None
        self._traced: tuple[Any, bool] = None, False

    def __enter__(self) -> Follower:
        frame = _caller()
        if frame is None or frame.f_code.co_filename == contextlib.__file__:
            raise RuntimeError(
                "Over ranks a server must have a `with` statement of its own, whose body other "
                "ranks than the first leave out. Received: a context that an ExitStack or another "
                "function enters. Write: with hyparflow.serve(...) as server:"
            )
        self._rank.follow()
        self._trace, self._traced = sys.gettrace(), (frame.f_trace, frame.f_trace_opcodes)
        # Before each instruction, for the body may begin with a line that no block holds.
        frame.f_trace, frame.f_trace_opcodes = self._leave_out, True
        # Frames are traced only while there is a function for all; Python 3.12 looks at a call.
        sys.settrace(self._trace or _nothing)
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        frame = _caller()
        if frame is not None:
            frame.f_trace, frame.f_trace_opcodes = self._traced
        sys.settrace(self._trace)
        return kind is _BodyIsLeadersError

    def _leave_out(self, *event: Any) -> Any:
        raise _BodyIsLeadersError


def _nothing(*event: Any) -> None:
    """Traces nothing."""


def _caller() -> FrameType | None:
    """The frame of the `with` statement."""
    own = inspect.currentframe()
    return own.f_back.f_back if own is not None and own.f_back is not None else None
