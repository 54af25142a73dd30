"""Requests come, windows run, tokens go out."""

from __future__ import annotations

from hyparflow.serving.ranks.runner import Runner, WindowResult
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import EndReason, Request, RequestProgress
from hyparflow.serving.scheduling.scheduler import Scheduler

__all__ = ["ServingEngine"]


class ServingEngine:
    """Has windows computed that schedulers plan.

    Attributes:
        schedulers: one of each replica: which requests compute together.

    Args:
        runner: computes them.
        limits: what each replica may take.
    """

    def __init__(self, runner: Runner, limits: Limits) -> None:
        self.schedulers = [Scheduler(limits) for _ in range(runner.num_replicas)]
        self._runner = runner
        self._holds = False  # whether anybody holds caches

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return all(scheduler.is_idle for scheduler in self.schedulers)

    def submit(self, request: Request) -> None:
        """Give a request to the replica with the fewest; see `Scheduler.submit`."""
        min(self.schedulers, key=lambda scheduler: scheduler.load).submit(request)

    def cancel(self, number: int, reason: EndReason = EndReason.CANCELLED) -> None:
        """See `Scheduler.cancel`."""
        for scheduler in self.schedulers:
            scheduler.cancel(number, reason)

    def advance(self) -> list[RequestProgress]:
        """Run a window, if there is anything to do: what became of the requests."""
        windows = [scheduler.plan() for scheduler in self.schedulers]
        made = [WindowResult()] * len(windows)
        if self._holds or any(windows):
            made = self._runner.run(windows)
        self._holds = any(windows)
        found: list[RequestProgress] = []
        for scheduler, result in zip(self.schedulers, made, strict=True):
            found += scheduler.report(result.tokens, result.logprobs)
        return found
