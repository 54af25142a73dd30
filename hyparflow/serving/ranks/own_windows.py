"""A window of the leader's own replica: computed in turn, or beside all else that the leader does.

Both are used as an `ArrivingObject` is, which stands for a window of another replica.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from hyparflow.serving.ranks.runner import Runner, WindowResult
from hyparflow.serving.scheduling.window import Window

__all__ = ["StartedWindow", "WindowBeside", "WindowInTurn"]


class StartedWindow(Protocol):
    """A window that is computed, or will be."""

    def advance(self) -> bool:
        """Whether its value can be had."""

    @property
    def value(self) -> WindowResult:
        """What came of it; to be taken once."""


class WindowInTurn:
    """Is computed as its value is taken; nothing else happens meanwhile.

    Args:
        runner: computes it.
        window: what is to be done.
    """

    def __init__(self, runner: Runner, window: Window) -> None:
        self._runner, self._window = runner, window

    def advance(self) -> bool:
        """See `StartedWindow.advance`."""
        return True

    @property
    def value(self) -> WindowResult:
        """See `StartedWindow.value`."""
        return self._runner.run(self._window)


class WindowBeside:
    """Is computed by a thread.

    Args:
        made: what the thread makes.
    """

    def __init__(self, made: Future[WindowResult]) -> None:
        self._made = made

    def advance(self) -> bool:
        """See `StartedWindow.advance`."""
        return self._made.done()

    @property
    def value(self) -> WindowResult:
        """See `StartedWindow.value`."""
        return self._made.result()
