"""Requests come, windows run, tokens go out."""

from __future__ import annotations

from collections.abc import Callable

from hyparflow.serving.ranks.replicas import Replicas
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import EndReason, Request, RequestProgress
from hyparflow.serving.scheduling.scheduler import Scheduler

__all__ = ["ServingEngine"]


class ServingEngine:
    """Has windows computed that schedulers plan, those of each replica one after the other.

    Attributes:
        schedulers: one of each replica: which requests compute together.

    Args:
        replicas: compute them.
        limits: what each replica may take.
    """

    def __init__(self, replicas: Replicas, limits: Limits) -> None:
        self.schedulers = [Scheduler(limits) for _ in range(replicas.num_replicas)]
        self._replicas = replicas
        self._running: set[int] = set()  # replicas that compute a window

    @property
    def is_idle(self) -> bool:
        """Whether no request waits, and no window runs."""
        return not self._running and all(scheduler.is_idle for scheduler in self.schedulers)

    def submit(self, request: Request) -> None:
        """Give a request to the replica that has the least to do; see `Scheduler.submit`."""
        min(self.schedulers, key=lambda scheduler: scheduler.load).submit(request)

    def cancel(self, number: int, reason: EndReason = EndReason.CANCELLED) -> None:
        """See `Scheduler.cancel`."""
        for scheduler in self.schedulers:
            scheduler.cancel(number, reason)

    def advance(self, is_wanted: Callable[[], bool] = lambda: False) -> list[RequestProgress]:
        """Start windows on replicas without any, and wait until one is done.

        Args:
            is_wanted: says whether the caller has something else to do, and waits no longer.

        Returns:
            What became of the requests.
        """
        found: list[RequestProgress] = []
        for replica, scheduler in enumerate(self.schedulers):
            if replica not in self._running:
                found += scheduler.report(())  # on those that were cancelled
                self._start(replica)
        if found or not self._running:
            return found
        for replica, result in self._replicas.wait(is_wanted).items():
            self._running.remove(replica)
            found += self.schedulers[replica].report(result.tokens, result.logprobs)
        return found

    def _start(self, replica: int) -> None:
        window = self.schedulers[replica].plan()
        if window is not None:
            self._running.add(replica)
            self._replicas.start(replica, window)
