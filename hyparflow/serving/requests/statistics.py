"""What a server has done so far, in numbers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hyparflow.serving.requests.served_request import RequestTimes
from hyparflow.serving.scheduling.request import EndReason
from hyparflow.serving.scheduling.scheduler import SchedulerCounts

__all__ = ["Latencies", "Percentiles", "ServerStatistics"]

_KEPT = 10_000  # requests whose times are kept: the newest


@dataclass(frozen=True)
class Percentiles:
    """Of some times, in seconds; NaN if there is none.

    Attributes:
        p50: half are shorter.
        p99: 99 percent are shorter.
    """

    p50: float
    p99: float

    @classmethod
    def of(cls, times: Iterable[float]) -> Percentiles:
        """Of these."""
        ordered = sorted(times)
        return cls(_share(ordered, 0.5), _share(ordered, 0.99))


def _share(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


class Latencies:
    """Keeps how long requests took."""

    def __init__(self) -> None:
        self._first: deque[float] = deque(maxlen=_KEPT)
        self._each: deque[float] = deque(maxlen=_KEPT)

    def add(self, times: RequestTimes, count: int) -> None:
        """Note a request that has ended, with so many tokens."""
        if times.first is None or times.last is None:
            return
        self._first.append(times.first - times.submitted)
        if count > 1:
            self._each.append((times.last - times.first) / (count - 1))

    @property
    def to_first_token(self) -> Percentiles:
        """From submitting to the first token."""
        return Percentiles.of(tuple(self._first))

    @property
    def per_token(self) -> Percentiles:
        """Between tokens, the mean of each request."""
        return Percentiles.of(tuple(self._each))


@dataclass(frozen=True)
class ServerStatistics:
    """What a server has done so far.

    Attributes:
        running: requests that have a row.
        waiting: requests that wait for one.
        ended: requests that have ended, by reason.
        tokens: that were given out.
        counts: of windows, iterations and rows, of each replica.
        time_to_first_token: of requests that have ended, in seconds.
        time_per_token: between the tokens of a request, its mean, in seconds.
        bytes: of memory and messages, by kind.
    """

    running: int
    waiting: int
    ended: dict[EndReason, int]
    tokens: int
    counts: tuple[SchedulerCounts, ...]
    time_to_first_token: Percentiles
    time_per_token: Percentiles
    bytes: dict[str, int]
