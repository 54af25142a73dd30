"""Replicas of a model, each of which computes windows of its own: here one, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from hyparflow.serving.ranks.own_windows import StartedWindow, WindowInTurn
from hyparflow.serving.ranks.runner import Runner, WindowResult
from hyparflow.serving.scheduling.window import Window

__all__ = ["OneReplica", "Replicas"]


class Replicas(Protocol):
    """Compute windows, one at a time each, and none waits for another."""

    @property
    def num_replicas(self) -> int:
        """How many there are."""

    def start(self, replica: int, window: Window) -> None:
        """Have a replica that computes none compute a window."""

    def wait(self, is_wanted: Callable[[], bool]) -> dict[int, WindowResult]:
        """Wait until a window that was started is done.

        Args:
            is_wanted: says whether the caller has something else to do, and waits no longer.

        Returns:
            Number of a replica -> what came of its window.
        """

    def warm_up(self, window: Window) -> None:
        """Have all compile what a window needs, while nobody is served; see `warm_up_window`."""

    def idle(self) -> None:
        """Called now and then while there is nothing to do."""

    def bytes(self) -> dict[str, int]:
        """Of memory and messages, by kind."""

    def close(self) -> None:
        """End what was started for them."""


class OneReplica:
    """A replica in this process, which computes while one waits for it.

    Attributes:
        num_replicas: one.
        runner: computes the windows.

    Args:
        runner: computes the windows.
    """

    num_replicas = 1

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._started: StartedWindow | None = None

    def start(self, replica: int, window: Window) -> None:
        """See `Replicas.start`."""
        self._started = WindowInTurn(self.runner, window)

    def wait(self, is_wanted: Callable[[], bool]) -> dict[int, WindowResult]:
        """See `Replicas.wait`."""
        started, self._started = self._started, None
        return {} if started is None else {0: started.value}

    def warm_up(self, window: Window) -> None:
        """See `Replicas.warm_up`."""
        self.runner.warm_up(window)

    def idle(self) -> None:
        """See `Replicas.idle`."""

    def bytes(self) -> dict[str, int]:
        """See `Replicas.bytes`."""
        return self.runner.bytes()

    def close(self) -> None:
        """See `Replicas.close`."""
        self.runner.close()
