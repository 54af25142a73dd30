"""Which replica computes what, and when, by a virtual clock: no replica waits for another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from hyparflow.serving.engine import ServingEngine
from hyparflow.serving.ranks.runner import WindowResult
from hyparflow.serving.scheduling.limits import Limits
from hyparflow.serving.scheduling.request import EndReason, Request
from hyparflow.serving.scheduling.window import Window

LIMITS = Limits(4, 64, window=4, piece=16)
SHORT_OF_MEMORY = replace(LIMITS, shortest=16, cache=130)


@dataclass
class Clocked:
    """Replicas whose iterations and pieces of prompts take some time of a virtual clock.

    Attributes:
        costs: of an iteration, and of a piece, on each replica.
        clock: the time.
        events: (replica, "start" or "end") of each window.
    """

    costs: Sequence[int]
    clock: int = 0
    events: list[tuple[int, str]] = field(default_factory=list)
    ends: dict[int, tuple[int, Window]] = field(default_factory=dict)

    @property
    def num_replicas(self) -> int:
        return len(self.costs)

    def start(self, replica: int, window: Window) -> None:
        assert replica not in self.ends, "it computes one window at a time"
        self.events.append((replica, "start"))
        took = self.costs[replica] * (window.steps + len(window.pieces))
        self.ends[replica] = self.clock + took, window

    def wait(self, is_wanted: Callable[[], bool]) -> dict[int, WindowResult]:
        if is_wanted():
            return {}
        replica = min(self.ends, key=lambda replica: self.ends[replica][0])
        self.clock, window = self.ends.pop(replica)
        self.events.append((replica, "end"))
        return {replica: WindowResult([[1] * len(window.live)] * window.steps)}

    def warm_up(self, window: Window) -> None: ...

    def idle(self) -> None: ...

    def bytes(self) -> dict[str, int]:
        return {}

    def close(self) -> None: ...


def served(engine: ServingEngine, clocked: Clocked) -> dict[int, int]:
    """Number of each request -> the time at which it ends."""
    ends: dict[int, int] = {}
    while not engine.is_idle:
        for progress in engine.advance():
            if progress.end is not None:
                ends[progress.number] = clocked.clock
    return ends


@pytest.mark.parametrize("busy", [0, 1])
def test_a_short_request_ends_after_its_own_windows(busy: int) -> None:
    """Beside a long prompt and many windows of the other replica."""
    costs = [1, 1]
    costs[busy] = 100
    clocked = Clocked(costs)
    engine = ServingEngine(clocked, LIMITS)
    long, short = Request(busy, (7,) * 40, 20), Request(1 - busy, (7,), 9)
    for request in sorted((long, short), key=lambda request: request.number):
        engine.submit(request)
    # 4 + 4 + 1 iterations; of the other prompt there are three pieces, in windows of their own.
    assert served(engine, clocked) == {short.number: 9, long.number: 100 * (3 + 20)}
    counts = [scheduler.counts for scheduler in engine.schedulers]
    assert (counts[1 - busy].windows, counts[busy].windows) == (3, 7)
    before = clocked.events[: clocked.events.index((busy, "end"))]
    assert before.count((1 - busy, "end")) == 3


def test_each_replica_does_what_it_does_alone() -> None:
    """Of random requests, with preemption: the same windows, at the same times of its clock."""
    random, costs = np.random.default_rng(3), (1, 3, 10)
    clocked = Clocked(costs)
    engine = ServingEngine(clocked, SHORT_OF_MEMORY)
    asked = [
        Request(number, (1,) * int(random.integers(1, 30)), int(random.integers(1, 30)))
        for number in range(40)
    ]
    dealt: dict[int, list[Request]] = {0: [], 1: [], 2: []}
    for request in asked:
        loads = [scheduler.load for scheduler in engine.schedulers]
        dealt[loads.index(min(loads))].append(request)
        engine.submit(request)
    ends = served(engine, clocked)
    assert sorted(ends) == list(range(40))
    for replica, requests in dealt.items():
        alone = Clocked([costs[replica]])
        own = ServingEngine(alone, SHORT_OF_MEMORY)
        for request in requests:
            own.submit(request)
        assert served(own, alone) == {request.number: ends[request.number] for request in requests}
        assert own.schedulers[0].counts == engine.schedulers[replica].counts
        assert own.schedulers[0].counts.preemptions > 0


def test_a_request_goes_to_the_replica_with_the_least_to_do() -> None:
    clocked = Clocked([1, 1])
    engine = ServingEngine(clocked, LIMITS)
    engine.submit(Request(0, (1,), 30))
    engine.submit(Request(1, (1,), 4))
    engine.submit(Request(2, (1,), 20))  # 30 and 4 are left
    engine.submit(Request(3, (1,), 5))  # 30 and 24
    engine.submit(Request(4, (1,), 5))  # 30 and 29
    assert [scheduler.load for scheduler in engine.schedulers] == [30, 34]
    engine.advance()  # 4 iterations of one replica
    engine.advance()  # and of the other, for each of four requests
    assert [scheduler.load for scheduler in engine.schedulers] == [26, 18]


def test_a_replica_without_work_starts_at_once() -> None:
    """What comes while the other computes waits for nothing."""
    clocked = Clocked([100, 1])
    engine = ServingEngine(clocked, LIMITS)
    engine.submit(Request(0, (1,), 4))
    assert engine.advance(lambda: True) == []  # somebody wants something
    assert clocked.events == [(0, "start")]
    engine.submit(Request(1, (1,), 4))
    ended = engine.advance()
    assert [(progress.number, progress.end) for progress in ended] == [(1, EndReason.LENGTH)]
    assert clocked.clock == 4
    assert clocked.events == [(0, "start"), (1, "start"), (1, "end")]


def test_requests_that_are_cancelled_while_windows_run() -> None:
    """One that waits on a replica that computes is over with its window; nobody else is held up."""
    clocked = Clocked([100, 1])
    engine = ServingEngine(clocked, replace(LIMITS, max_batch=1))
    for number, count in enumerate((4, 4, 8, 8)):  # two of each replica
        engine.submit(Request(number, (1,), count))
    assert engine.advance(lambda: True) == []
    engine.cancel(0)
    engine.cancel(2)
    assert [progress.number for progress in engine.advance()] == [1]
    found = [(x.number, x.end) for _ in range(3) for x in engine.advance()]
    assert found[-2:] == [(0, EndReason.CANCELLED), (2, EndReason.CANCELLED)]
    assert (3, EndReason.LENGTH) in found
    assert clocked.clock == 400
    assert engine.is_idle
